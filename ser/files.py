"""Where everything lies on disk, and how a file is written whole or not at all."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ser.errors import UserError, closest, nearest, some

__all__ = [
    "PROJECT",
    "append_line",
    "cannot_write",
    "corpus_folder",
    "data_folder",
    "files_in",
    "home",
    "locked",
    "mark_of",
    "outputs_folder",
    "read_csv",
    "read_json",
    "read_lines",
    "run_folder",
    "sha256_of",
    "write_atomically",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a full disk
PROJECT = Path(__file__).resolve().parents[1]  # the checkout: gin/, tools/ and the published facts in data/


def home() -> Path:
    """Return the folder that holds ``data/`` and ``outputs/``: ``$SER_HOME``, or the checkout."""
    return Path(os.environ.get("SER_HOME") or PROJECT).resolve()


def data_folder() -> Path:
    """Return the folder with one sub-folder per corpus."""
    return home() / "data"


def corpus_folder(corpus: str) -> Path:
    """Return the folder for everything that is made for ``corpus``."""
    return data_folder() / corpus


def outputs_folder() -> Path:
    """Return the folder with one sub-folder per run."""
    return home() / "outputs"


def run_folder(run: str, scored: bool = False) -> Path:
    """Resolve a RUN argument: ``last``, the name of a folder in ``outputs/``, or a path.

    Args:
        run: the argument.
        scored: what has figures is enough: a cross-validation or an ensemble, which are no runs of their own.

    Raises:
        UserError: no such run.
    """
    outputs = outputs_folder()

    def good(folder: Path) -> bool:
        return (folder / "run.gin").is_file() or (scored and any(folder.glob("eval/*/metrics.json")))

    if not run:
        raise UserError("the name of a run is empty; expected a folder in outputs/, a path, or last")
    if run == "last":
        pointer = outputs / "last"
        if not pointer.is_file():
            raise UserError(f"{pointer}: no run yet; train one first: just train EXP")
        name = pointer.read_text().strip()
        if not (outputs / name / "run.gin").is_file():
            raise UserError(
                f"{pointer}: names the run '{name}', which is gone; name another, or train one: just train EXP"
            )
        folder = outputs / name
    else:
        folder = outputs / run if good(outputs / run) else Path(run).absolute()
    if not good(folder):
        found = [path for path in outputs.iterdir() if good(path)] if outputs.is_dir() else []
        names = [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]
        known = [*names, "last"]
        hint = nearest(run, known) if closest(run, known) or not names else f"; newest: {some(names)}"
        if (PROJECT / "gin/exp" / f"{run}.gin").is_file():
            hint = f"; that is an experiment: a run of it is made by: just train {run}"
        raise UserError(f"{run}: no run of this name (a run folder holds run.gin){hint}")
    return folder


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder at any depth, sorted, without hidden ones and what macOS packs beside files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hidden = (".", "__MACOSX")
    return [path for path in paths if not any(part.startswith(hidden) for part in path.relative_to(folder).parts)]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], wait: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    A crash at any moment leaves either the old file or the new one, never a part.

    Args:
        path: the file.
        write: fills an open binary file.
        wait: until the disk has it, so that a power cut cannot undo the promise.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            if wait:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write ``content``, whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove it and make it again") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object] | tuple]) -> None:
    """Write rows, by column or as tuples in the order of the columns, as CSV with LF endings, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    rows = iter(rows)
    for row in rows:
        if isinstance(row, tuple):  # and so are the others, which need not be looked at one by one
            writer.writerow(row)
            writer.writerows(rows)  # type: ignore[arg-type]
        else:
            writer.writerow([row[column] for column in columns])
    write_text(path, buffer.getvalue())


def read_csv(path: Path, columns: Sequence[str], folded: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file whose header holds at least ``columns``; empty lines are passed over.

    Args:
        path: of the file.
        columns: that it needs.
        folded: names of columns lose capitals and the spaces around them, as people's tables have them.

    Raises:
        UserError: the file is missing, is not UTF-8, its header lacks a column or has one twice, or a row has the
            wrong length.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if folded:
                header = [column.strip().casefold() for column in header]
            missing = [column for column in columns if column not in header]
            if missing:
                other = next((mark for mark in ";\t" if len(header) == 1 and mark in header[0]), "")
                why = f", and seems to be separated by {other!r}: save it with commas" if other else ""
                raise UserError(
                    f"{path}: line 1: the header lacks {some_columns(missing)}; expected {','.join(columns)}{why}"
                )
            if twice := sorted({column for column in header if column and header.count(column) > 1}):
                raise UserError(f"{path}: line 1: the header has {some_columns(twice)} twice; keep one")
            width = len(header)
            for row in reader:
                if len(row) != width:
                    if not row:
                        continue
                    raise UserError(f"{path}: line {reader.line_num}: expected {width} fields; fix the line")
                yield reader.line_num, dict(zip(header, row))  # noqa: B905 - of equal length
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: line {first_undecodable(path)}: not UTF-8; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not a CSV file ({error})") from error


def first_undecodable(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 0


def some_columns(columns: Sequence[str]) -> str:
    """Name columns for a message: ``column 'a'`` or ``columns 'a', 'b'``."""
    quoted = ", ".join(f"'{column}'" for column in columns)
    return f"column {quoted}" if len(columns) == 1 else f"columns {quoted}"


def append_line(path: Path, text: str) -> None:
    """Append one line in a single write, so that a crash leaves at most one cut line, which the next one ends.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    try:
        with open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            cut = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if cut else b"") + text.encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that holds one a line, without what a crash cut short; none without a file."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def mark_of(path: Path) -> list[int] | None:
    """Return size and date (ns) of a file, by which one that was replaced is told; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def cannot_write(path: Path, error: OSError, kept: str = "") -> UserError:
    """Say in one line why a file could not be written, and what is ``kept`` where the disk is full."""
    if error.errno in NO_SPACE:
        kept = kept or ("the previous file is kept" if path.exists() else "nothing was written")
        return UserError(f"{path}: no space left on the disk, {kept}; free some space and run the same command again")
    return UserError(f"{path}: cannot be written ({error.strerror or error}); check the folder and its owner")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[IO[str]]:
    """Hold an exclusive lock on ``path`` while the body runs; it ends with the process, however that ends.

    A child that is given the file yielded holds it, too.

    Args:
        path: of the lock.
        busy: message where another process holds it; without one, wait for that.

    Raises:
        UserError: another process holds the lock.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield file
