"""Downloads survive what networks do: every test has a server of its own on this machine that misbehaves as told."""

import functools
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import PROJECT, command, command_on_a_full_disk, one_error_line

from ser import archives, downloading, fetching, metadata
from ser.archives import unpack
from ser.downloading import Source, download
from ser.errors import UserError
from ser.fetching import Item, Outcome, fetch

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 72862\n"


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; the answers in ``server.script`` come first, one for each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.lstrip("/")
        with self.server.lock:
            self.server.requests.append((path, self.headers.get("Range", ""), self.headers.get("If-Range", "")))
            waiting = self.server.script.get(path)
            answer = waiting.pop(0) if waiting else Handler.serve if path in self.server.files else refusal(404)
        answer(self, self.server.files.get(path))

    def serve(self, body, ranges=True, cut=None, length=None, etag=None, conditions=True, stall=False):
        """Answer as a good server would, but for what the arguments say."""
        etag = f'"{hashlib.md5(body).hexdigest()}"' if etag is None else etag
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
        if conditions and self.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(body) > 0:
            self.refuse(416, {"Content-Range": f"bytes */{len(body)}"})
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(rest) if length is None else length))
        self.end_headers()
        rest = rest if cut is None else rest[:cut]
        self.wfile.write(rest)
        self.wfile.flush()
        with self.server.lock:
            self.server.sent[self.path.lstrip("/")] += len(rest)
        if stall:
            self.server.released.wait(30)
        if cut is not None and length is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, status, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def broken(**how) -> Callable:
    """Return an answer that differs from a good server's in ``how``."""
    return lambda handler, body: handler.serve(body, **how)


def other(body: bytes, **how) -> Callable:
    """Return an answer with another body than the file's."""
    return lambda handler, _: handler.serve(body, **how)


def refusal(status: int, **headers: str) -> Callable:
    return lambda handler, _: handler.refuse(status, {name.replace("_", "-"): value for name, value in headers.items()})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.released = threading.Lock(), threading.Event()
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[Callable]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.sent: Counter[str] = Counter()
        self.base = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *arguments):
        pass  # a client that went away is what these tests are about

    def item(self, path: str, body: bytes, *answers: Callable, known: bool = True) -> Item:
        """Offer a file; return the item that asks for it."""
        self.files[path], self.script[path] = body, list(answers)
        checksum, size = (f"sha256:{hashlib.sha256(body).hexdigest()}", len(body)) if known else ("", 0)
        return Item(f"{self.base}/{path}", path, checksum, size)

    def forget(self) -> None:
        self.requests, self.sent = [], Counter()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sleeps() -> list[float]:
    """Return the waits that would have been, in seconds."""
    return []


@pytest.fixture
def get(tmp_path, sleeps) -> Callable[..., Outcome]:
    """Return ``fetch`` into ``raw`` that notes its waits instead of waiting."""
    return lambda *items, **more: fetch(items, tmp_path / "raw", sleep=sleeps.append, progress=False, **more)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Whole files


def test_files_come_whole_and_a_second_time_nothing_is_asked_for(server, get, tmp_path):
    items = [server.item(f"a/{name}.wav", noise(name, 1000 * name + 1)) for name in range(20)]
    items.append(server.item("table.csv", b"a,b\n", known=False))
    outcome = get(*items)
    assert sorted(outcome.fetched) == sorted(server.files)
    assert (outcome.kept, outcome.failed, outcome.offline) == ([], {}, False)
    assert content(tmp_path / "raw") == server.files
    server.forget()
    outcome = get(*items)
    assert sorted(outcome.kept) == sorted(server.files)
    assert (outcome.fetched, server.requests) == ([], [])


def test_a_spoilt_file_is_brought_again_and_the_others_stay(server, get, tmp_path):
    items = [server.item(f"{name}.wav", noise(name, 5000)) for name in range(4)]
    get(*items)
    (tmp_path / "raw/1.wav").write_bytes(noise(9, 5000))
    (tmp_path / "raw/2.wav").write_bytes(POINTER)
    server.forget()
    assert sorted(get(*items).fetched) == ["1.wav", "2.wav"]
    assert len(server.requests) == 2
    assert content(tmp_path / "raw") == server.files


def test_a_redirect_is_followed_and_one_to_another_scheme_is_not(server, get, sleeps):
    good = server.item("good.wav", b"sound", refusal(302, Location="/else.wav"))
    server.item("else.wav", b"sound")
    bad = server.item("bad.wav", b"sound", *[refusal(302, Location="ftp://127.0.0.1/x.wav")] * 9)
    outcome = get(good, bad)
    assert outcome.fetched == ["good.wav"]
    assert list(outcome.failed) == ["bad.wav"]
    assert sleeps == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x.wav", "x.wav", ""])
def test_other_addresses_than_http_are_refused(get, url):
    with pytest.raises(UserError, match="expected an address that starts with http"):
        get(Item(url, "x.wav"))


# Cut off


def test_a_connection_lost_at_random_bytes_loses_nothing(server, get, tmp_path):
    chance = random.Random(7)
    items = []
    for name in range(12):
        body = noise(name, chance.randrange(20_000, 200_000))
        cuts = [broken(cut=chance.randrange(0, len(body) // 4)) for _ in range(chance.randrange(1, 4))]
        items.append(server.item(f"{name}.wav", body, *cuts, known=name % 3 > 0))
    outcome = get(*items, workers=4)
    assert not outcome.failed
    assert content(tmp_path / "raw") == server.files
    # Each byte was sent once: every further request asked for just the rest.
    assert dict(server.sent) == {path: len(body) for path, body in server.files.items()}
    assert any(wanted for _, wanted, _ in server.requests)


def test_resuming_at_any_byte_asks_for_the_rest_and_ends_in_the_same_file(server, get, tmp_path):
    body = noise(1, 70_000)
    places = [0, 1, 2, 4095, 4096, 4097, 65_535, 65_536, 69_999, 70_000]
    items = [server.item(f"{place}.wav", body) for place in places]
    (tmp_path / "raw").mkdir()
    for place in places:
        (tmp_path / f"raw/{place}.wav.part").write_bytes(body[:place])
    assert not get(*items).failed
    assert content(tmp_path / "raw") == server.files
    assert {place: server.sent[f"{place}.wav"] for place in places} == {place: 70_000 - place for place in places}
    asked = {path: wanted for path, wanted, _ in server.requests}
    expected = {f"{place}.wav": f"bytes={place}-" if place else "" for place in places[:-1]}
    assert asked == expected  # nothing at all for the whole one, which is checked and put in its place


def test_a_large_file_may_be_cut_off_more_often_than_tries_are_given(server, get, tmp_path):
    item = server.item("x.zip", noise(1, 60_000), *[broken(cut=2000)] * 20)
    assert get(item).fetched == ["x.zip"]
    assert content(tmp_path / "raw") == server.files


def test_a_body_shorter_than_the_known_size_is_continued(server, get, tmp_path):
    item = server.item("x.wav", noise(1, 50_000), broken(cut=20_000, length=20_000))
    assert get(item).fetched == ["x.wav"]
    assert [wanted for _, wanted, _ in server.requests] == ["", "bytes=20000-"]
    assert content(tmp_path / "raw") == server.files


def test_a_server_that_ignores_ranges_makes_the_file_start_anew(server, get, tmp_path):
    body = noise(1, 50_000)
    item = server.item("x.wav", body, broken(ranges=False, cut=30_000), broken(ranges=False))
    assert get(item).fetched == ["x.wav"]
    assert server.sent["x.wav"] == 80_000
    assert content(tmp_path / "raw") == {"x.wav": body}


@pytest.mark.parametrize("conditions", [True, False])
def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, get, tmp_path, conditions):
    old, new = noise(1, 40_000), noise(2, 40_000)
    server.item("x.csv", new, other(old, cut=10_000), *[broken(conditions=conditions)] * 3)
    assert get(Item(f"{server.base}/x.csv", "x.csv")).fetched == ["x.csv"]
    assert content(tmp_path / "raw") == {"x.csv": new}
    assert server.requests[1][2] == f'"{hashlib.md5(old).hexdigest()}"'


def test_an_etag_that_does_not_vouch_for_bytes_is_not_used(server, get, tmp_path):
    item = server.item("x.wav", noise(1, 40_000), broken(cut=10_000, etag='W/"1"'), broken(cut=10_000))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.wav.part.etag").write_bytes(b"\0\0\xff\n")  # as a power cut may leave it
    assert get(item).fetched == ["x.wav"]
    assert [condition for _, _, condition in server.requests] == ["", "", ""]


def test_a_part_that_is_whole_though_nobody_knew_the_size_is_taken(server, get, tmp_path):
    item = server.item("x.csv", b"a,b\n", known=False)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.csv.part").write_bytes(b"a,b\n")
    assert get(item).fetched == ["x.csv"]
    assert (len(server.requests), server.sent["x.csv"]) == (1, 0)
    assert content(tmp_path / "raw") == {"x.csv": b"a,b\n"}


@pytest.mark.parametrize("left", [noise(9, 30_000), noise(9, 50_000), noise(9, 70_000)])
def test_a_part_that_belongs_to_no_such_file_is_thrown_away(server, get, tmp_path, left):
    item = server.item("x.wav", noise(1, 50_000))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.wav.part").write_bytes(left)
    assert get(item).fetched == ["x.wav"]
    assert content(tmp_path / "raw") == server.files


def test_a_connection_that_falls_silent_is_left_and_continued(server, get, tmp_path, monkeypatch):
    monkeypatch.setattr("httpx.Timeout", lambda *seconds, **kinds: 0.3)
    item = server.item("x.wav", noise(1, 50_000), broken(cut=20_000, stall=True))
    assert get(item).fetched == ["x.wav"]
    assert [wanted for _, wanted, _ in server.requests] == ["", "bytes=20000-"]
    assert content(tmp_path / "raw") == server.files


# Wrong answers


def test_a_wrong_file_is_removed_and_tried_again(server, get, tmp_path):
    item = server.item("x.wav", noise(1, 5000), other(noise(2, 5000)))
    assert get(item).fetched == ["x.wav"]
    assert content(tmp_path / "raw") == server.files


@pytest.mark.parametrize(("body", "why"), [(noise(2, 5000), "sha256"), (noise(2, 5001), "more than 5000 bytes")])
def test_a_file_that_is_always_wrong_is_reported_and_nothing_of_it_stays(server, get, tmp_path, body, why):
    item = server.item("x.wav", noise(1, 5000), *[other(body)] * 9)
    assert why in get(item).failed["x.wav"]
    assert len(server.requests) == fetching.WRONG
    assert content(tmp_path / "raw") == {}


@pytest.mark.parametrize("known", [True, False])
def test_a_git_lfs_pointer_is_called_by_its_name(server, get, tmp_path, sleeps, known):
    item = server.item("x.wav", noise(1, 72_862), *[other(POINTER)] * 9, known=known)
    assert "git-lfs pointer" in get(item).failed["x.wav"]
    assert len(server.requests) == 1
    assert sleeps == []
    assert content(tmp_path / "raw") == {}


def test_a_corpus_that_is_not_prepared_names_the_download_where_there_is_one():
    assert set(metadata.FETCHED) == set(downloading.SOURCES)
    assert "or fetch it first: just download ravdess" in str(metadata.unprepared("ravdess"))
    assert "download" not in str(metadata.unprepared("custom"))


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_gone_is_not_asked_for_twice_and_the_rest_comes(server, get, sleeps, status):
    items = [server.item(f"{name}.wav", noise(name, 100)) for name in range(9)]
    gone = [server.item(f"gone{name}.wav", b"x", *[refusal(status)] * 9) for name in range(5)]
    outcome = get(*gone, *items)
    assert sorted(outcome.failed) == [item.path for item in gone]
    assert all(f"HTTP {status}" in why for why in outcome.failed.values())
    assert len(outcome.fetched) == 9
    assert len(server.requests) == 14
    assert sleeps == []


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 7), ("0", 0, 0), ("999999", 120, 120), ("9" * 500, 120, 120), ("soon", 0.5, 1), ("-5", 0.5, 1),
        ("in 40 s", 30, 40), ("before", 0, 0), ("Fri, 99 Foo 2099 00:00:00 GMT", 0.5, 1),
    ],
)  # fmt: skip
def test_too_many_requests_wait_as_long_as_the_server_asks_within_bounds(server, get, sleeps, asked, least, most):
    dates = {"in 40 s": formatdate(time.time() + 40, usegmt=True), "before": "Sat, 01 Jan 2000 00:00:00 GMT"}
    item = server.item("x.wav", b"sound", refusal(429, Retry_After=dates.get(asked, asked)))
    assert get(item).fetched == ["x.wav"]
    assert len(sleeps) == 1
    assert least <= sleeps[0] <= most


def test_a_server_in_trouble_is_asked_again_ever_more_slowly(server, get, sleeps):
    item = server.item("x.wav", b"sound", refusal(500), refusal(502), refusal(503), broken(cut=0))
    assert get(item).fetched == ["x.wav"]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(sleeps, (1, 2, 4, 8), strict=True))


def test_a_server_that_stays_in_trouble_is_given_up(server, get, tmp_path):
    items = [server.item(f"{name}.wav", b"sound", *[refusal(503)] * 99) for name in range(200)]
    outcome = get(*items, workers=2)
    assert len(outcome.failed) == 200
    assert not outcome.offline
    assert len(server.requests) <= (fetching.PATIENCE + 1) * fetching.TRIES
    assert "HTTP 503" in next(iter(outcome.failed.values()))


def test_an_answer_that_was_compressed_on_the_way_is_refused(server, get):
    def compressed(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b")

    assert "compressed" in get(server.item("x.wav", b"sound", compressed)).failed["x.wav"]


# Archives


def zipped(entries: dict[str, bytes], kinds: dict[str, int] | None = None) -> bytes:
    """Return a zip archive; ``kinds`` gives an entry another file type than that of a plain file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((kinds or {}).get(name, stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, body)
    return buffer.getvalue()


def placed(tmp_path: Path, archive: bytes) -> tuple[Path, Path]:
    folder = tmp_path / "deep/raw"
    folder.mkdir(parents=True)
    (folder / "x.zip").write_bytes(archive)
    return folder / "x.zip", folder


def test_only_sound_is_unpacked_and_what_is_right_is_kept(tmp_path):
    sound = {f"Actor_01/{name}.wav": noise(name, 9000) for name in range(5)}
    rest = {"info.txt": b"x", "__MACOSX/._1.wav": b"x", "Actor_01/.2.wav": b"x", "video/1.mp4": b"x", "empty/": b""}
    archive, folder = placed(tmp_path, zipped(sound | rest))
    assert unpack(archive, folder, progress=False) == (5, 0)
    archive_itself = {"x.zip": archive.read_bytes()}
    assert content(folder) == sound | archive_itself
    (folder / "Actor_01/2.wav").write_bytes(noise(9, 9000))
    (folder / "Actor_01/3.wav").unlink()
    (folder / "Actor_01/.3.wav.4711.tmp").write_bytes(b"cut off by a SIGKILL")
    assert unpack(archive, folder, progress=False) == (2, 3)
    assert content(folder) == sound | archive_itself


@pytest.mark.parametrize(
    "name",
    [
        "../evil.wav", "a/../../evil.wav", "/tmp/evil.wav", "..\\evil.wav", "a\\..\\..\\evil.wav", "C:\\evil.wav",
        "c:evil.wav", "\\\\host\\share\\evil.wav", "../evil.txt", "../", "a/b/../../../evil.sh",
    ],
)  # fmt: skip
def test_an_entry_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    archive, folder = placed(tmp_path, zipped({"good.wav": b"x", name: b"evil"}))
    before = content(tmp_path)
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(archive, folder, progress=False)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(tmp_path, kind):
    archive, folder = placed(tmp_path, zipped({"good.wav": b"x", "bad.wav": b"/etc/passwd"}, {"bad.wav": kind}))
    with pytest.raises(UserError, match=r"bad\.wav.* is a link"):
        unpack(archive, folder, progress=False)
    assert sorted(content(folder)) == ["x.zip"]


def test_an_archive_that_is_too_large_or_repeats_itself_is_refused(tmp_path, monkeypatch):
    archive, folder = placed(tmp_path, zipped({"a.wav": bytes(6000), "b.wav": bytes(6000)}))
    monkeypatch.setattr(archives, "LARGEST", 11_999)
    with pytest.raises(UserError, match="12000 bytes when unpacked"):
        unpack(archive, folder, progress=False)
    archive.write_bytes(zipped({"a.wav": b"1", "./a.wav": b"2"}))
    with pytest.raises(UserError, match="comes twice"):
        unpack(archive, folder, progress=False)
    assert sorted(content(folder)) == ["x.zip"]


def test_whatever_is_wrong_with_an_archive_is_one_line_and_no_file_is_half_there(tmp_path):
    sound = {f"{name}.wav": noise(name, 2000) for name in range(4)}
    whole = zipped(sound)
    archive, folder = placed(tmp_path, b"")
    chance = random.Random(3)
    spoilt = [b"", b"<html>not found</html>", whole[:-30], whole[: len(whole) // 2], b"PK\5\6" + bytes(18)]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            # Half of them in the directory at the end, where the nasty fields are.
            data[chance.choice([chance.randrange(len(data)), -chance.randrange(1, 230)])] = chance.randrange(256)
        spoilt.append(bytes(data))
    messages = []
    for data in spoilt:
        shutil.rmtree(folder)
        folder.mkdir()
        archive.write_bytes(data)
        try:
            unpack(archive, folder, progress=False)
        except UserError as error:
            messages.append(str(error))
        left = content(folder)
        assert left.pop("x.zip") == data
        assert set(left.values()) <= set(sound.values())
    assert len(messages) > 200
    assert not [message for message in messages if "\n" in message or str(archive) not in message]


# Corpora


def corpus_source(server: Server, archive: bytes, clips: int) -> Source:
    """Return EmoDB's source, with another archive."""
    item = server.item("download.zip", archive, known=False)
    return replace(downloading.source("emodb"), clips=clips, items=lambda: [item])


def test_an_archive_is_fetched_and_unpacked_once(server, tmp_path):
    sound = {f"wav/{name}.wav": noise(name, 3000) for name in range(30)}
    archive = zipped(sound | {"erklaerung.txt": b"x"})
    source = corpus_source(server, archive, 30)
    server.script["download.zip"] = [broken(cut=40_000), broken(cut=7)]
    first = download(source, tmp_path / "raw", sleep=lambda seconds: None, progress=False)
    assert str(first) == "files: 1 fetched, 0 kept, 0 failed; sound: 30 unpacked, 0 kept"
    assert content(tmp_path / "raw") == sound | {"download.zip": archive}
    server.forget()
    again = download(source, tmp_path / "raw", progress=False)
    assert str(again) == "files: 0 fetched, 1 kept, 0 failed; sound: 0 unpacked, 30 kept"
    assert server.requests == []


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (zipped({"wav/1.wav": b"x"}), "1 sound files, expected the 2 of EmoDB"),
        (zipped({"wav/1.wav": b"x", "../2.wav": b"x"}), "leads out of the folder"),
        (b"<html>moved</html>", "damaged"),
    ],
)
def test_an_archive_of_something_else_is_refused_by_its_path(server, tmp_path, archive, message):
    source = corpus_source(server, archive, 2)
    with pytest.raises(UserError, match=message) as caught:
        download(source, tmp_path / "raw", progress=False)
    assert str(tmp_path / "raw/download.zip") in str(caught.value)


def test_two_downloads_do_not_write_into_one_folder(server, tmp_path):
    source = corpus_source(server, zipped({"1.wav": b"x"}), 1)
    with (
        downloading.locked(tmp_path / "raw/.download.lock", "busy"),
        pytest.raises(UserError, match="another download is writing here"),
    ):
        download(source, tmp_path / "raw", progress=False)
    assert server.requests == []


def test_the_sources_are_those_of_the_distributions():
    items = downloading.source("crema_d").items()
    assert len(items) == 7445
    assert len({item.path for item in items}) == 7445
    first = next(item for item in items if item.path == "AudioWAV/1001_DFA_ANG_XX.wav")
    address = "githubusercontent.com/{}CheyneyComputerScience/CREMA-D/master/"
    assert first.url == f"https://media.{address.format('media/')}AudioWAV/1001_DFA_ANG_XX.wav"
    assert first.checksum == "sha256:c6f94b2592487c7556bd86df7df6e8f4420d1b9c11414aeec9d8e5e640b51495"
    assert first.size == 72862
    tables = {item.path: item.url for item in items if not item.checksum}
    names = ("VideoDemographics.csv", "processedResults/summaryTable.csv", "processedResults/tabulatedVotes.csv")
    assert tables == {name: f"https://raw.{address.format('')}{name}" for name in names}
    (ravdess,) = downloading.source("ravdess").items()
    assert ravdess.url.startswith("https://zenodo.org/records/1188976/files/")
    assert (ravdess.checksum[:4], ravdess.size) == ("md5:", 208_468_073)


def test_an_unknown_corpus_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ravdess'"):
        downloading.source("ravdes")
    with pytest.raises(UserError, match="just prepare demo"):
        downloading.source("demo")


# The command


@pytest.fixture
def run_here(home, run_here, monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs the command in this process, where nothing waits before a further try."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.0)
    return functools.partial(run_here, "download.py")


@pytest.fixture
def emodb(server) -> dict[str, bytes]:
    """Offer an archive with as many files as EmoDB has; return them."""
    sound = {f"wav/{name:03d}.wav": noise(name, 700) for name in range(535)}
    server.item("download.zip", zipped(sound))
    return sound


def test_the_command_says_the_terms_fetches_and_says_how_to_go_on(server, emodb, run_here, home):
    done = run_here("emodb", "--base", server.base)
    assert done.returncode == 0, done.stderr
    raw = home / "data/emodb/raw"
    lines = done.stdout.splitlines()
    assert [line.split(" ")[0] for line in lines[1:5]] == ["licence", "terms", "cite", "folder"]
    assert "Interspeech 2005" in done.stdout
    assert lines[-2] == "files: 1 fetched, 0 kept, 0 failed; sound: 535 unpacked, 0 kept"
    assert lines[-1] == f"ok; go on with: just raw={raw} prepare emodb"
    assert {name: body for name, body in content(raw).items() if name != "download.zip"} == emodb
    server.forget()
    again = run_here("emodb", "--base", server.base)
    assert "files: 0 fetched, 1 kept, 0 failed; sound: 0 unpacked, 535 kept" in again.stdout
    assert server.requests == []


def test_failures_are_counted_and_the_first_few_are_named(server, run_here, tmp_path, monkeypatch):
    few = dict(list(downloading.corpora.crema_d_official().items())[:20])
    monkeypatch.setattr(downloading.corpora, "crema_d_official", lambda: few)
    server.item("VideoDemographics.csv", b"a,b\n")
    done = run_here("crema_d", "--base", server.base, "--to", tmp_path / "sound")
    assert "files: 1 fetched, 0 kept, 22 failed" in done.stdout
    line = one_error_line(done)
    assert "22 of 23 files failed" in line
    assert "HTTP 404" in line
    assert "and 19 more" in line
    assert content(tmp_path / "sound") == {"VideoDemographics.csv": b"a,b\n"}


def test_without_a_network_one_line_says_what_to_put_where(run_here, home):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{unused.getsockname()[1]}"
        votes, archive = run_here("crema_d", "--base", base), run_here("ravdess", "--base", base)
    line, raw = one_error_line(votes), home / "data/crema_d/raw"
    assert "no network: 127.0.0.1" in line
    assert "cannot be reached" in line
    assert "7442 files of https://media.githubusercontent.com/media/CheyneyComputerScience/CREMA-D/master/Aud" in line
    assert f"to {raw}/AudioWAV/" in line
    assert f"just raw={raw} prepare crema_d" in line
    line, raw = one_error_line(archive), home / "data/ravdess/raw"
    assert f"https://zenodo.org/records/1188976/files/{(name := 'Audio_Speech_Actors_01-24.zip')}" in line
    assert f"to {raw}/{name}" in line
    assert f"just raw={raw} prepare ravdess" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emodb", "--workers", "0"], "--workers 0: expected 1 to 32"),
        (["emodb", "--base", "file:///tmp"], "file:///tmp/download.zip: expected an address that starts with http"),
        (["emo-db"], "did you mean 'emodb'"),
        (["emodb", "--to", PROJECT / "README.md"], "README.md"),
    ],
)
def test_a_mistake_is_one_line(run_here, arguments, words):
    assert words in one_error_line(run_here(*arguments))


def test_a_folder_in_the_place_of_a_file_is_one_line(server, emodb, run_here, home):
    place = home / "data/emodb/raw/download.zip"
    place.mkdir(parents=True)
    assert str(place) in one_error_line(run_here("emodb", "--base", server.base))


def test_help_needs_no_http_client():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROJECT / "tools/download.py"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--workers" in done.stdout
    assert "argparse" in done.stderr
    assert "httpx" not in done.stderr


def test_a_full_disk_is_one_line_and_nothing_half_written_takes_a_place(server, home):
    archive = zipped({f"wav/{name:03d}.wav": noise(name, 900) for name in range(535)})
    server.item("download.zip", archive)
    done = command_on_a_full_disk(100_000, "download.py", "emodb", "--base", server.base, home=home)
    assert "no space left on the disk, what was fetched is kept" in one_error_line(done)
    raw = home / "data/emodb/raw"
    (left,) = {name: body for name, body in content(raw).items() if not name.endswith(".etag")}.items()
    assert left == ("download.zip.part", archive[: len(left[1])])
    server.forget()
    assert command("download.py", "emodb", "--base", server.base, home=home).returncode == 0
    assert server.sent["download.zip"] == len(archive) - len(left[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_is_killed_or_interrupted_goes_on_where_it_was(server, tmp_path, how):
    # A checkout with a manifest of its own: CREMA-D with few clips, the real command.
    checkout = tmp_path / "checkout"
    shutil.copytree(PROJECT / "ser", checkout / "ser", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "tools").mkdir()
    shutil.copy(PROJECT / "tools/download.py", checkout / "tools")
    names = [f"10{number:02d}_DFA_ANG_XX.wav" for number in range(1, 13)]
    items = [server.item(f"AudioWAV/{name}", noise(number, 50_000 + number)) for number, name in enumerate(names)]
    lines = [f"{name},{item.checksum[7:]},{item.size}" for name, item in zip(names, items, strict=True)]
    (checkout / "data/crema_d").mkdir(parents=True)
    (checkout / "data/crema_d/manifest.csv").write_text("\n".join(["filename,sha256,size", *lines, ""]))
    for table in ("VideoDemographics.csv", "processedResults/summaryTable.csv", "processedResults/tabulatedVotes.csv"):
        server.item(table, b"a,b\n", known=False)
    for number in (5, 6, 9, 11):
        server.script[items[number].path] = [broken(cut=20_000 + number, stall=True)]

    raw = tmp_path / "home/data/crema_d/raw"
    env = dict(os.environ) | {"PYTHONPATH": str(checkout), "SER_HOME": str(tmp_path / "home")}
    tool = [sys.executable, str(checkout / "tools/download.py"), "crema_d", "--base", server.base]
    running = subprocess.Popen(
        tool, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # even where the tests run in the background
    )  # fmt: skip
    stalled = [f"{items[number].path}.part" for number in (5, 6, 9, 11)]
    finished = [path for path in server.files if f"{path}.part" not in stalled]
    end = time.monotonic() + 20
    while not all((raw / path).is_file() and (raw / path).stat().st_size for path in [*finished, *stalled]):
        assert time.monotonic() < end, running.poll()
        time.sleep(0.02)
    running.send_signal(how)
    _, errors = running.communicate(timeout=10)
    server.released.set()
    assert "Traceback" not in errors
    assert running.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)

    left = content(raw)
    for number, name in zip((5, 6, 9, 11), stalled, strict=True):
        assert items[number].path not in left
        assert server.files[items[number].path].startswith(left[name])
    server.forget()
    done = subprocess.run(tool, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "files: 4 fetched, 11 kept, 0 failed" in done.stdout
    assert content(raw) == server.files
    assert dict(server.sent) == {name[:-5]: len(server.files[name[:-5]]) - len(left[name]) for name in stalled}
