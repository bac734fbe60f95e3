"""Fetch the official recordings of a corpus: resumable at any byte, checked, each file whole or not at all.

A ``Source`` lists ``Item``s, ``fetch`` brings them, ``unpack`` opens an archive; ``download`` is the three in a row.
Unfinished bytes lie in ``NAME.part`` beside their place, the version they belong to in ``NAME.part.etag``.
"""

import errno
import hashlib
import lzma
import os
import random
import re
import shutil
import stat
import struct
import threading
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path, PurePosixPath
from time import monotonic
from urllib.parse import quote, urlsplit

from ser import __version__, corpora
from ser.errors import UserError, nearest, some
from ser.files import locked, write_atomically
from ser.progress import progress as progress_bar

__all__ = ["SOURCES", "Item", "Outcome", "Source", "download", "fetch", "notice", "source", "summary", "trouble", "unpack"]

TRIES = 5  # requests in a row that bring nothing new, before a file counts as failed
WRONG = 3  # whole files with a wrong checksum or size, before the file counts as failed
PATIENCE = 3  # failed files in a row, before the rest of their host is given up
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds of back-off; doubled each time, with jitter
LONGEST_RETRY_AFTER = 120.0  # seconds that a server may ask us to wait
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
CHUNK = 1 << 20  # bytes read from disk at once
LARGEST = 4 << 30  # bytes of a file of unknown size, or of everything in an archive
LFS_POINTER = b"version https://git-lfs"
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A file to fetch.

    Attributes:
        url: its address, http or https.
        path: its place in the target folder, with slashes.
        checksum: ``sha256:HEX`` or ``md5:HEX``; empty where none is published.
        size: bytes; 0 where unknown.
    """

    url: str
    path: str
    checksum: str = ""
    size: int = 0


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from, and on which terms.

    Attributes:
        corpus: as in ``just download CORPUS``.
        title: for people.
        licence: its name.
        terms: what may not be done, or only under conditions.
        citation: the paper to name.
        page: address for people.
        clips: number of sound files of the distribution.
        items: lists the files to fetch; those named ``.zip`` are unpacked.
    """

    corpus: str
    title: str
    licence: str
    terms: str
    citation: str
    page: str
    clips: int
    items: Callable[[], list[Item]]


def crema_d_items() -> list[Item]:
    """Return the 7442 sound files of the manifest and three tables, from the repository's two addresses."""
    repository = "githubusercontent.com/{}CheyneyComputerScience/CREMA-D/master"
    media, plain = "https://media." + repository.format("media/"), "https://raw." + repository.format("")
    sound = [
        Item(f"{media}/AudioWAV/{clip}.wav", f"AudioWAV/{clip}.wav", f"sha256:{official.sha256}", official.size)
        for clip, official in corpora.crema_d_official().items()
    ]
    tables = ("VideoDemographics.csv", "processedResults/summaryTable.csv", "processedResults/tabulatedVotes.csv")
    return [Item(f"{plain}/{table}", table) for table in tables] + sound


def ravdess_items() -> list[Item]:
    """Return the one archive of speech; Zenodo publishes its MD5."""
    name = "Audio_Speech_Actors_01-24.zip"
    url = f"https://zenodo.org/records/1188976/files/{name}"
    return [Item(url, name, "md5:bc696df654c87fed845eb13823edef8a", 208_468_073)]


def emodb_items() -> list[Item]:
    """Return the one archive; nothing is published to check it by but the CRCs inside."""
    return [Item("http://emodb.bilderbar.info/download/download.zip", "download.zip")]


SOURCES = {
    entry.corpus: entry
    for entry in (
        Source(
            "crema_d", "CREMA-D", "ODbL 1.0 (database), DbCL 1.0 (contents)",
            "no public use without naming the source; databases made from it stay under the ODbL",
            "H. Cao et al. (2014), IEEE Transactions on Affective Computing 5(4), "
            "https://doi.org/10.1109/TAFFC.2014.2336244",
            "https://github.com/CheyneyComputerScience/CREMA-D", 7442, crema_d_items,
        ),
        Source(
            "ravdess", "RAVDESS speech", "CC BY-NC-SA 4.0",
            "no commercial use; what is made from it and passed on stays under the same licence, with credit",
            "S. R. Livingstone and F. A. Russo (2018), PLoS ONE 13(5): e0196391, "
            "https://doi.org/10.1371/journal.pone.0196391",
            "https://zenodo.org/records/1188976", 1440, ravdess_items,
        ),
        Source(
            "emodb", "EmoDB", "free for research",
            "no publication without the citation; ask its authors before any other use",
            "F. Burkhardt et al. (2005), A Database of German Emotional Speech, Proc. Interspeech 2005",
            "http://emodb.bilderbar.info", 535, emodb_items,
        ),
    )
}  # fmt: skip


def source(corpus: str) -> Source:
    """Return where a corpus comes from.

    Raises:
        UserError: nothing is known to download under this name.
    """
    if corpus == "demo":
        raise UserError("corpus 'demo' is built in, there is nothing to download; go on with: just prepare demo")
    if corpus not in SOURCES:
        raise UserError(f"corpus '{corpus}' cannot be downloaded{nearest(corpus, SOURCES)}")
    return SOURCES[corpus]


@dataclass
class Outcome:
    """What became of the items, by path.

    Attributes:
        fetched: brought now.
        kept: were there and right.
        failed: path -> why.
        offline: nothing was brought because no server could be reached.
        unpacked: sound files taken out of archives now; ``unpacked_kept`` were there and right.
    """

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    offline: bool = False
    unpacked: int = 0
    unpacked_kept: int = 0


def download(
    source: Source, folder: Path, workers: int = 8, base: str = "", sleep: Callable | None = None, progress: bool = True
) -> Outcome:
    """Fetch a corpus into ``folder`` and unpack its archive; what is there and right is kept.

    Args:
        source: what to fetch.
        folder: becomes the raw folder of the corpus.
        workers: files at the same time.
        base: address of a mirror that has the files as the raw folder will have them, instead of the official one.
        sleep: waits so many seconds before a further try; for tests.
        progress: show a bar.

    Raises:
        UserError: the folder cannot be written, the disk is full, another download writes here, or the archive is
            unsafe or does not hold the corpus. Files that could not be fetched are in ``Outcome.failed``.
    """
    items = source.items()
    if base:
        items = [replace(item, url=f"{base.rstrip('/')}/{quote(item.path)}") for item in items]
    busy = f"{folder}: another download is writing here; wait for it, or take another folder: --to PATH"
    try:
        with locked(folder / ".download.lock", busy):
            outcome = fetch(items, folder, workers, sleep, progress)
            archives = [] if outcome.failed else [item for item in items if item.path.endswith(".zip")]
            for item in archives:
                written, kept = unpack(folder / item.path, folder, progress)
                outcome.unpacked, outcome.unpacked_kept = outcome.unpacked + written, outcome.unpacked_kept + kept
    except OSError as error:
        raise disk_trouble(folder, error) from error
    clips = outcome.unpacked + outcome.unpacked_kept
    if archives and clips != source.clips:
        raise UserError(
            f"{folder / archives[0].path}: holds {clips} sound files; expected the {source.clips} of {source.title}; "
            f"remove it and see what lies at {archives[0].url}"
        )
    return outcome


def notice(source: Source, folder: Path) -> str:
    """Return what a user should know before the download starts: place, licence, terms, citation."""
    rows = {"corpus": source.title, "from": source.page, "into": folder}
    rows |= {"licence": source.licence, "terms": source.terms, "cite": source.citation}
    return "\n".join(f"{name:<10}{value}" for name, value in rows.items())


def summary(outcome: Outcome) -> str:
    """Return the counts of a download in a line."""
    text = f"files: {len(outcome.fetched)} fetched, {len(outcome.kept)} kept, {len(outcome.failed)} failed"
    if outcome.unpacked or outcome.unpacked_kept:
        text += f"; sound: {outcome.unpacked} unpacked, {outcome.unpacked_kept} kept"
    return text


def trouble(source: Source, folder: Path, outcome: Outcome) -> str:
    """Return the message of a download that failed: what failed, and how to go on."""
    failed = [f"{path} ({why})" for path, why in outcome.failed.items()]
    if not outcome.offline:
        count = len(failed) + len(outcome.fetched) + len(outcome.kept)
        again = "run the same command again, it keeps what is there"
        return f"{folder}: {len(failed)} of {count} files failed: {some(failed, 3)}; {again}"
    wanted = [item for item in source.items() if item.path in outcome.failed]
    by_folder = Counter(urlsplit(item.url)._replace(path=item.url.rsplit("/", 1)[0]) for item in wanted)
    prepare = f"just raw={folder} prepare {source.corpus}"
    if len(wanted) == 1:
        what = f"fetch {wanted[0].url} elsewhere and put it at {folder / wanted[0].path}"
        ending = f"then run the same command again, or unpack it there and go on with: {prepare}"
    else:
        addresses = " and ".join(dict.fromkeys(item.url.rsplit("/", 1)[0] for item in reversed(wanted)))
        what = f"fetch {len(wanted)} files elsewhere, from {addresses}, and put {wanted[-1].path} at "
        what += f"{folder / wanted[-1].path} and so on"
        ending = f"then go on with: {prepare}"
    return f"no network: {next(iter(outcome.failed.values()))}; {what}; {ending}"


# What is on the disk


def part_of(target: Path) -> Path:
    """Return the file that holds what was received so far."""
    return target.with_name(f"{target.name}.part")


def etag_of(part: Path) -> Path:
    """Return the file that holds the ETag of what was received so far."""
    return part.with_name(f"{part.name}.etag")


def discard(part: Path) -> None:
    """Forget what was received so far."""
    part.unlink(missing_ok=True)
    etag_of(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def fault(item: Item, path: Path) -> str:
    """Say what is wrong with a file that should be whole; empty where nothing is."""
    size = path.stat().st_size
    if is_pointer(path):
        return "a git-lfs pointer in place of the file"
    if size != item.size if item.size else not size:
        return f"{size} bytes, expected {item.size or 'some'}"
    if item.checksum:
        algorithm, _, expected = item.checksum.partition(":")
        digest = hashlib.new(algorithm, usedforsecurity=False)
        read_through(path, digest.update)
        return "" if digest.hexdigest() == expected else f"its {algorithm} is not the published one"
    return damage(path) if item.path.endswith(".zip") else ""


def is_pointer(path: Path) -> bool:
    """Tell whether git-lfs left its pointer in place of the file."""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def read_through(path: Path, use: Callable[[bytes], object]) -> None:
    """Hand a file over in pieces."""
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            use(data)


def damage(path: Path) -> str:
    """Say what is wrong with an archive, by the CRCs of its entries."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                return ""  # not worth reading; ``unpack`` refuses it
            bad = archive.testzip()
            return f"its entry {bad} is damaged" if bad else ""
    except DAMAGED as error:
        return f"not a whole zip archive: {error}"
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        return f"not a whole zip archive: {error}"


def disk_trouble(path: Path, error: OSError) -> UserError:
    """Return the one line for a disk that is full or a place that cannot be written."""
    place = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        ending = "what was fetched is kept; free some space and run the same command again"
        return UserError(f"{place}: no space left on the disk, {ending}")
    return UserError(f"{place}: cannot be written ({error.strerror or error}); check the folder and its owner")


# Archives


def unpack(archive: Path, folder: Path, progress: bool = True) -> tuple[int, int]:
    """Unpack the wav files of a zip archive; those that are there with the right CRC are kept.

    Returns:
        number of files written, number kept.

    Raises:
        UserError: the archive is damaged, larger than ``LARGEST`` bytes, or unsafe: an entry that leaves the folder,
            is a link, or comes twice. Nothing is written then, but for sound before a damaged entry.
    """
    counts = [0, 0]
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = safe_entries(archive, opened.infolist())
            for place, entry in progress_bar(entries.items(), "unpack", len(entries), shown=progress):
                kept = is_unpacked(folder / place, entry)
                if not kept:
                    for stale in (folder / place).parent.glob(f".{glob_safe(entry_name(place))}.*.tmp"):
                        stale.unlink()  # of an unpacking that was killed
                    # The CRCs find what a power cut may spoil, so that nothing waits for the disk here.
                    write_atomically(folder / place, partial(copy_entry, opened, entry), wait=False)
                counts[kept] += 1
    except DAMAGED as error:
        raise UserError(f"{archive}: damaged ({error}); remove it and run the same command again") from error
    except OSError as error:
        raise disk_trouble(archive, error) from error
    return counts[0], counts[1]


def safe_entries(archive: Path, entries: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return place -> entry of the sound in an archive, after a look at every entry.

    Raises:
        UserError: an entry is unsafe, or all together are too large.
    """
    sound: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        place = PurePosixPath(name)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if place.is_absolute() or ".." in place.parts or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{archive}: entry {entry.filename!r} leads out of the folder; nothing is unpacked")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: entry {entry.filename!r} is a link or no file; nothing is unpacked")
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        if entry.is_dir() or hidden or place.suffix.lower() != ".wav":
            continue
        if str(place) in sound:
            raise UserError(f"{archive}: entry {entry.filename!r} comes twice; nothing is unpacked")
        sound[str(place)] = entry
    if (size := sum(entry.file_size for entry in sound.values())) > LARGEST:
        raise UserError(f"{archive}: would unpack to {size} bytes; expected {LARGEST} at most; nothing is unpacked")
    return sound


def is_unpacked(path: Path, entry: zipfile.ZipInfo) -> bool:
    """Tell whether a file is there as the archive has it, by size and CRC."""
    if not path.is_file() or path.stat().st_size != entry.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return crc == entry.CRC


def copy_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file) -> None:
    """Write an entry into an open file; a wrong CRC raises at its end."""
    with archive.open(entry) as content:
        shutil.copyfileobj(content, file, CHUNK)


# The network


class Again(Exception):
    """A try failed in a way that a further one may not."""

    def __init__(self, why: str, wait: float | None = None, wrong: bool = False, unreachable: bool = False):
        super().__init__(why)
        self.wait, self.wrong, self.unreachable = wait, wrong, unreachable


class Failed(Exception):
    """A file cannot be had."""

    def __init__(self, why: str, unreachable: bool = False):
        super().__init__(why)
        self.unreachable = unreachable


class Stopped(Exception):
    """The user or a full disk ended the download; what was received lies in the part files."""


def fetch(
    items: Sequence[Item], folder: Path, workers: int = 8, sleep: Callable | None = None, progress: bool = True
) -> Outcome:
    """Bring every item that is not in ``folder`` yet, going on where an earlier call was cut off.

    Args:
        items: what to bring; their paths differ.
        folder: where to.
        workers: files at the same time.
        sleep: waits so many seconds before a further try; for tests.
        progress: show a bar, in bytes.

    Raises:
        UserError: an address is neither http nor https, the disk is full, or the folder cannot be written.
    """
    for item in items:
        if urlsplit(item.url).scheme not in ("http", "https"):
            raise UserError(f"{item.url}: expected an address that starts with http:// or https://")
    with progress_bar(None, "download", sum(item.size for item in items), unit="B", shown=progress) as bar:
        bar.unit_scale = True
        transfer = Transfer(folder, Meter(bar), sleep)
        try:
            with ThreadPoolExecutor(workers) as pool:
                whole = list(pool.map(transfer.is_there, items))
        except OSError as error:
            raise disk_trouble(folder, error) from error
        transfer.outcome.kept += [item.path for item, there in zip(items, whole, strict=True) if there]
        transfer.run([item for item, there in zip(items, whole, strict=True) if not there], workers)
    return transfer.outcome


class Meter:
    """Moves the one bar of all files; a file that starts anew takes its bytes back."""

    def __init__(self, bar):
        self.bar, self.lock = bar, threading.Lock()
        self.position: Counter[str] = Counter()
        self.noted = ""

    def at(self, item: Item, position: int) -> None:
        """Say that the first ``position`` bytes of an item are there."""
        with self.lock:
            self.bar.update(position - self.position[item.path])
            self.position[item.path] = position

    def expect(self, size: int) -> None:
        """Count in a file whose size only its server knew."""
        with self.lock:
            self.bar.total += size

    def note(self, text: str) -> None:
        """Show why nothing moves."""
        with self.lock:
            if text != self.noted:
                self.bar.set_postfix_str(text)
            self.noted = text


class Transfer:
    """What the threads of one ``fetch`` share, and the life of one file within it."""

    def __init__(self, folder: Path, meter: Meter, sleep: Callable | None):
        self.folder, self.meter = folder, meter
        self.stop = threading.Event()
        self.sleep = sleep or self.stop.wait
        self.outcome = Outcome()
        self.strikes: Counter[str] = Counter()  # host -> files in a row that failed
        self.last: dict[str, Failed] = {}  # host -> why the last one did
        self.unreachable: list[bool] = []  # of each failed file
        self.fatal: BaseException | None = None

    def is_there(self, item: Item) -> bool:
        """Tell whether an item is in its place and right."""
        path = self.folder / item.path
        if not path.is_file() or fault(item, path):
            return False
        self.meter.at(item, item.size)
        return True

    def run(self, items: Sequence[Item], workers: int) -> None:
        """Bring the items over several threads; an interruption ends them between two pieces."""
        if not items:
            return
        import httpx

        self.client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=workers, max_keepalive_connections=workers),
            # Sizes, ranges and checksums are of the plain bytes.
            headers={"User-Agent": f"ser-toolkit/{__version__}", "Accept-Encoding": "identity"},
        )
        queue = deque(items)
        threads = [threading.Thread(target=self.work, args=(queue,), daemon=True) for _ in items[:workers]]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.stop.set()
            end = monotonic() + 2  # a thread may hang in a dead connection; it writes nothing more after ``stop``
            for thread in threads:
                with suppress(RuntimeError):  # of one that was never started
                    thread.join(max(0.0, end - monotonic()))
            self.client.close()
        if self.fatal:
            raise self.fatal
        self.outcome.offline = bool(self.unreachable) and all(self.unreachable) and not self.outcome.fetched

    def work(self, queue: deque[Item]) -> None:
        """Bring one item of the queue after the other."""
        while not self.stop.is_set():
            try:
                item = queue.popleft()
            except IndexError:
                return
            try:
                self.bring(item)
                self.outcome.fetched.append(item.path)
            except Failed as error:
                self.outcome.failed[item.path] = str(error)
                self.unreachable.append(error.unreachable)
            except Stopped:
                return
            except BaseException as error:
                part = part_of(self.folder / item.path)
                self.fatal = self.fatal or (disk_trouble(part, error) if isinstance(error, OSError) else error)
                self.stop.set()

    def bring(self, item: Item) -> None:
        """Try until an item is there, or until trying on is no use.

        Raises:
            Failed: no use.
            Stopped: somebody ended the download.
        """
        host = urlsplit(item.url).netloc
        part = part_of(self.folder / item.path)
        part.parent.mkdir(parents=True, exist_ok=True)
        furthest, tries, wrong = size_of(part), 0, 0
        while True:
            if self.strikes[host] >= PATIENCE:
                last = self.last[host]
                raise Failed(f"given up, as the others from {host}: {last}", last.unreachable)
            try:
                self.attempt(item, part)
                self.strikes[host] = 0
                return
            except Again as error:
                reached = size_of(part)
                tries = 1 if reached > furthest else tries + 1  # new bytes are worth new patience
                furthest = max(furthest, reached)
                wrong += error.wrong
                if wrong >= WRONG:
                    raise Failed(str(error)) from error
                if tries >= TRIES:
                    failed = Failed(str(error), error.unreachable)
                    self.last[host] = failed
                    self.strikes[host] += 1
                    raise failed from error
                self.meter.note(f"waiting: {error}")
                self.sleep(back_off(tries) if error.wait is None else error.wait)
                if self.stop.is_set():
                    raise Stopped from error

    def attempt(self, item: Item, part: Path) -> None:
        """Receive the rest of an item once, check the whole and put it in its place.

        Raises:
            Again, Failed, Stopped: it did not come whole, or is not what it should be.
        """
        have = size_of(part)
        if item.size and have > item.size:
            discard(part)
            have = 0
        if have == 0 or have != item.size:
            self.receive(item, part, have)
        if is_pointer(part):
            discard(part)
            raise Failed("the server sent a git-lfs pointer in place of the file")
        if why := fault(item, part):
            if size_of(part) >= item.size:  # a shorter one is merely cut off
                discard(part)
                self.meter.at(item, 0)
                raise Again(why, wrong=True)
            raise Again(why)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        etag_of(part).unlink(missing_ok=True)
        os.replace(part, self.folder / item.path)

    def receive(self, item: Item, part: Path, have: int) -> None:
        """Append to the part file what a server sends; ``have`` bytes are there.

        Raises:
            Again, Failed, Stopped: it did not come whole.
        """
        import httpx

        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag_of(part).is_file():
                headers["If-Range"] = etag_of(part).read_text()
        try:
            with self.client.stream("GET", item.url, headers=headers) as response:
                start = self.begin(item, part, have, response)
                if start is None:
                    return
                self.meter.note("")
                with open(part, "ab") as file:
                    for data in response.iter_raw():
                        if self.stop.is_set():
                            raise Stopped
                        start += len(data)
                        if start > (item.size or LARGEST):
                            discard(part)
                            raise Again(f"more than {item.size or LARGEST} bytes", wrong=True)
                        file.write(data)
                        self.meter.at(item, start)
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise Failed(f"{item.url}: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            host = urlsplit(item.url).netloc
            raise Again(f"{host} cannot be reached ({str(error) or 'timed out'})", unreachable=True) from error
        except httpx.TransportError as error:
            raise Again(f"connection lost ({str(error) or type(error).__name__})") from error

    def begin(self, item: Item, part: Path, have: int, response) -> int | None:
        """Read the head of an answer and make the part file ready for its body.

        Returns:
            position of the first byte of the body; None where nothing is missing.

        Raises:
            Again, Failed: the answer is none.
        """
        status, headers = response.status_code, response.headers
        if headers.get("content-encoding", "identity") != "identity":
            raise Failed(f"{item.url}: sent compressed although plain bytes were asked for")
        if status == 206 and have:
            first, _ = content_range(headers)
            known = etag_of(part).read_text() if etag_of(part).is_file() else ""
            if first == have and (not known or headers.get("etag", known) == known):
                self.expect(item, have, headers)
                return have
            discard(part)
            raise Again("the server sent another range than asked for")
        if status == 416 and have:
            if not item.size and content_range(headers)[1] == have:
                return None
            discard(part)
            raise Again("the server has fewer bytes than were received")
        if status == 200:
            discard(part)
            self.expect(item, 0, headers)
            etag = headers.get("etag", "")
            if etag.startswith('"'):  # a weak one does not vouch for bytes
                etag_of(part).write_text(etag)
            part.touch()
            return 0
        why = f"HTTP {status} {response.reason_phrase}".strip()
        if status in (408, 425, 429) or status >= 500:
            raise Again(why, wait=retry_after(headers.get("retry-after", "")))
        raise Failed(why)

    def expect(self, item: Item, have: int, headers) -> None:
        """Let the bar know how far an item goes, and where it stands."""
        if not item.size and item.path not in self.meter.position and headers.get("content-length", "").isdecimal():
            self.meter.expect(have + int(headers["content-length"]))
        self.meter.at(item, have)


def content_range(headers) -> tuple[int | None, int | None]:
    """Read first byte and total size of ``bytes 5-99/100`` or ``bytes */100``; None for what is not said."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("content-range", ""))
    if not found:
        return None, None
    first, total = found.groups()
    return int(first) if first else None, int(total) if total != "*" else None


def retry_after(text: str) -> float | None:
    """Read the seconds, or the date, that a server asks to wait for; None where it does not, bounded where it does."""
    if text.isdecimal():
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def back_off(tries: int) -> float:
    """Return the seconds to wait after so many tries: twice as long each time, and never in step with others."""
    return min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
