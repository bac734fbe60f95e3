"""Fetch files over HTTP: resumable at any byte, checked, retried, each whole or not at all.

Unfinished bytes lie in ``NAME.part`` beside their place, the version they belong to in ``NAME.part.etag``.
"""

import hashlib
import random
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from os import fsync
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple
from urllib.parse import urlsplit

from ser import __version__
from ser.audio import LFS_MAGIC
from ser.errors import UserError
from ser.files import cannot_write
from ser.progress import progress_bar

__all__ = ["KEPT", "LARGEST", "Item", "Outcome", "fetch"]

KEPT = "what was fetched is kept"
TRIES = 5  # requests in a row that bring nothing new, before a file counts as failed
WRONG = 3  # whole files that are not what they should be, before the file counts as failed
PATIENCE = 3  # failed files in a row, before the rest of their host is given up
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds of back-off; doubled each time, with jitter
LONGEST_RETRY_AFTER = 120.0  # seconds that a server may ask us to wait
LARGEST = 4 << 30  # bytes of a file of unknown size, or of everything in an archive
STRONG_ETAG = re.compile('"[!-~]*"')  # a weak one does not vouch for bytes


class Item(NamedTuple):
    """A file to fetch: its address (http or https), and its place in the target folder, with slashes."""

    url: str
    path: str
    checksum: str = ""  # sha256:HEX or md5:HEX; empty where none is published
    size: int = 0  # bytes; 0 where unknown


@dataclass
class Outcome:
    """What became of the items, by path; ``offline``: no server could be reached."""

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # were there and right
    failed: dict[str, str] = field(default_factory=dict)  # path -> why
    offline: bool = False
    sound: tuple[int, int] = (0, 0)  # files unpacked now, and kept

    def __str__(self) -> str:
        files = f"files: {len(self.fetched)} fetched, {len(self.kept)} kept, {len(self.failed)} failed"
        return files + ("; sound: {} unpacked, {} kept".format(*self.sound) if any(self.sound) else "")


def fetch(
    items: Sequence[Item], folder: Path, workers: int = 8, sleep: Callable | None = None, progress: bool = True
) -> Outcome:
    """Bring every item that is not in ``folder`` yet, ``workers`` at a time, from where an earlier call was cut off.

    ``sleep`` waits so many seconds before a further try (for tests); ``progress`` shows a bar, in bytes.

    Raises:
        UserError: an address is neither http nor https, the disk is full, or the folder cannot be written.
    """
    for item in items:
        if urlsplit(item.url).scheme not in ("http", "https"):
            raise UserError(f"{item.url}: expected an address that starts with http:// or https://")
    with progress_bar(None, "download", sum(item.size for item in items), unit="B", shown=progress) as bar:
        bar.unit_scale = True
        return Transfer(folder, bar, sleep).run(items, workers)


class Trouble(Exception):
    """A try failed. ``final``: so would the next; ``wait``: seconds to wait; ``wrong``: what came is not the file."""

    def __init__(self, why: str, final: bool = False, wait: float | None = None, wrong: bool = False):
        super().__init__(why)
        self.final, self.wait, self.wrong = final, wait, wrong


class Transfer:
    """What the threads of one ``fetch`` share, and the life of a file within it."""

    def __init__(self, folder: Path, bar, sleep: Callable | None):
        self.folder, self.bar, self.bar_lock = folder, bar, threading.Lock()
        self.shown: Counter[str] = Counter()  # path -> bytes the bar counts
        self.stop = threading.Event()
        self.sleep = sleep or self.stop.wait
        self.outcome = Outcome(offline=True)
        self.strikes: Counter[str] = Counter()  # host -> files in a row that failed
        self.last: dict[str, str] = {}  # host -> why the last of them did
        self.fatal: Exception | None = None

    def run(self, items: Sequence[Item], workers: int) -> Outcome:
        """Bring the items over several threads; an interruption ends them between two pieces."""
        import httpx

        self.client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(30.0, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=workers),
            headers={"User-Agent": f"ser-toolkit/{__version__}", "Accept-Encoding": "identity"},  # ranges are of bytes
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
            end = monotonic() + 0.5  # one may hang in a dead connection; it writes nothing more after ``stop``
            for thread in threads:
                if thread.ident:
                    thread.join(max(0.0, end - monotonic()))
            self.client.close()
        if self.fatal:
            raise self.fatal
        self.outcome.offline &= bool(self.outcome.failed)
        return self.outcome

    def work(self, queue: deque[Item]) -> None:
        """Bring one item of the queue after the other."""
        with suppress(IndexError):
            while not self.stop.is_set():
                item = queue.popleft()
                try:
                    self.bring(item)
                except Trouble as error:
                    self.outcome.failed[item.path] = str(error)
                except Exception as error:
                    path = self.folder / item.path
                    self.fatal = (
                        cannot_write(Path(error.filename or path), error, KEPT) if isinstance(error, OSError) else error
                    )
                    self.stop.set()

    def show(self, item: Item, position: int) -> None:
        """Move the bar: the first ``position`` bytes of an item are there; one of unknown size counts when alone."""
        if item.size or not self.bar.total:
            with self.bar_lock:
                self.bar.update(position - self.shown[item.path])
                self.shown[item.path] = position

    def bring(self, item: Item) -> None:
        """See that an item is there; raise Trouble where trying on is no use."""
        host, target = urlsplit(item.url).netloc, self.folder / item.path
        if target.is_file() and not fault(item, target):
            self.show(item, item.size)
            self.outcome.kept.append(item.path)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part, etag = (target.with_name(target.name + ending) for ending in (".part", ".part.etag"))
        furthest = tries = wrong = 0
        while True:
            if self.stop.is_set() or self.strikes[host] >= PATIENCE:
                raise Trouble(f"given up like others from {host}: {self.last.get(host)}")
            try:
                self.attempt(item, target, part, etag)
                self.outcome.fetched.append(item.path)
                self.strikes[host] = 0
                return
            except Trouble as error:
                reached = part.stat().st_size if part.exists() else 0
                tries = 1 if reached > furthest else tries + 1  # new bytes are worth new patience
                furthest, wrong = max(furthest, reached), wrong + error.wrong
                if error.wrong:
                    part.unlink(missing_ok=True)
                    etag.unlink(missing_ok=True)
                    self.show(item, 0)
                if error.final or wrong >= WRONG:
                    raise
                if tries >= TRIES:
                    self.last[host] = str(error)
                    self.strikes[host] += 1
                    raise
                back_off = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
                self.sleep(back_off if error.wait is None else error.wait)

    def attempt(self, item: Item, target: Path, part: Path, etag: Path) -> None:
        """Receive the rest of an item once, check the whole and put it in its place."""
        have = part.stat().st_size if part.exists() else 0
        if not have or have != item.size:
            self.receive(item, part, etag, have)
        with open(part, "rb") as file:
            if file.read(len(LFS_MAGIC)) == LFS_MAGIC:
                raise Trouble("a git-lfs pointer came in place of the file", final=True, wrong=True)
            fsync(file.fileno())
        if why := fault(item, part):
            raise Trouble(why, wrong=part.stat().st_size >= item.size)  # a shorter one may merely be cut off
        etag.unlink(missing_ok=True)
        part.replace(target)

    def receive(self, item: Item, part: Path, etag: Path, have: int) -> None:
        """Append what the server has beyond the first ``have`` bytes to the part file."""
        import httpx

        known = etag.read_text("latin-1") if etag.is_file() else ""
        known = known if STRONG_ETAG.fullmatch(known) else ""
        headers = {"Range": f"bytes={have}-"} | ({"If-Range": known} if known else {}) if have else {}
        try:
            with self.client.stream("GET", item.url, headers=headers) as answer:
                self.outcome.offline = False
                at = first_byte(answer, item, have, known)
                if at is None:
                    return
                if at == 0:
                    part.write_bytes(b"")
                    etag.write_text(answer.headers.get("etag", ""), "latin-1", "replace")
                with open(part, "ab") as file:
                    for data in answer.iter_raw():
                        if self.stop.is_set():
                            raise Trouble("stopped", final=True)
                        at += len(data)
                        if at > (item.size or LARGEST):
                            raise Trouble(f"more than {item.size or LARGEST} bytes came", wrong=True)
                        file.write(data)
                        self.show(item, at)
        except httpx.TransportError as error:
            connecting = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
            what = f"{urlsplit(item.url).netloc} cannot be reached" if connecting else "connection lost"
            final = isinstance(error, httpx.UnsupportedProtocol)  # of a redirect
            raise Trouble(f"{what}: {str(error) or type(error).__name__}", final) from error
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise Trouble(f"{item.url}: {error}", final=True) from error


def first_byte(answer, item: Item, have: int, known: str) -> int | None:
    """Return where the body of an answer starts in the file; None where nothing is missing."""
    status, headers = answer.status_code, answer.headers
    said = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("content-range", ""))
    first, total = said.groups() if said else (None, None)
    if status in (200, 206) and headers.get("content-encoding", "identity") != "identity":
        raise Trouble("compressed bytes came, plain ones were asked for", final=True)
    if status == 200:
        return 0
    if status == 206 and first == str(have) and known in ("", headers.get("etag", known)):
        return have
    if status == 416 and total == str(have) and not item.size:
        return None
    if status in (206, 416):
        raise Trouble("other bytes came than were asked for; the file has changed", wrong=True)
    again = status in (408, 425, 429) or status >= 500
    raise Trouble(f"HTTP {status} {answer.reason_phrase}", not again, retry_after(headers.get("retry-after", "")))


def retry_after(text: str) -> float | None:
    """Read the seconds or the date that a server asks to wait for; bounded, and None where it asks for neither."""
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def fault(item: Item, path: Path) -> str:
    """Say what is wrong with a file that should be whole; empty where nothing is."""
    size = path.stat().st_size
    if size == 0 or (item.size and size != item.size):
        return f"{size} bytes, expected {item.size or 'more'}"
    if not item.checksum:
        return ""
    algorithm, _, expected = item.checksum.partition(":")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return "" if digest.hexdigest() == expected else f"its {algorithm} is not the published one"
