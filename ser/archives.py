"""Unpack the sound of an archive: safely, each file whole or not at all."""

import errno
import re
import shutil
import stat
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath

from ser.errors import UserError
from ser.fetching import KEPT, LARGEST
from ser.files import cannot_write, write_atomically
from ser.progress import progress_bar

__all__ = ["unpack"]

DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)


def unpack(archive: Path, folder: Path, progress: bool = True) -> tuple[int, int]:
    """Unpack the wav files of a zip archive, each whole or not at all; return how many now, how many were right.

    Raises:
        UserError: the archive is damaged (sound before the damage is unpacked) or unsafe (nothing is): an entry leads
            out of the folder, is a link or comes twice, or all are larger than ``LARGEST`` bytes.
    """
    counts = [0, 0]
    try:
        with zipfile.ZipFile(archive) as opened:
            sound = safe_entries(archive, opened)
            for stale in folder.rglob(".*.wav.*.tmp"):  # of an unpacking that was killed
                stale.unlink()
            for place, entry in progress_bar(sound.items(), "unpack", len(sound), shown=progress):
                path = folder / place
                same_size = path.is_file() and path.stat().st_size == entry.file_size
                right = same_size and zlib.crc32(path.read_bytes()) == entry.CRC
                if not right:
                    with opened.open(entry) as content:
                        write_atomically(path, partial(shutil.copyfileobj, content), wait=False)  # CRC holds the rest
                counts[right] += 1
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # those two are of bad offsets
            if error.filename == str(archive):
                raise UserError(
                    f"{archive}: cannot be read ({error.strerror}); check the file and its owner"
                ) from error
            raise cannot_write(Path(error.filename or archive), error, KEPT) from error
        raise UserError(f"{archive}: damaged ({error}); remove it and run the same command again") from error
    return counts[0], counts[1]


def safe_entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return place -> entry of the sound in an archive; every entry is looked at before one is used."""
    sound: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        place, bad = PurePosixPath(name), ""
        if place.is_absolute() or ".." in place.parts or re.match("[A-Za-z]:", name):
            bad = "leads out of the folder"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            bad = "is a link or no file"
        elif str(place) in sound:
            bad = "comes twice"
        if bad:
            raise UserError(f"{path}: entry {entry.filename!r} {bad}, expected plain files; nothing is unpacked")
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        if place.suffix.lower() == ".wav" and not hidden and not entry.is_dir():
            sound[str(place)] = entry
    if (size := sum(entry.file_size for entry in sound.values())) > LARGEST:
        raise UserError(f"{path}: {size} bytes when unpacked, expected at most {LARGEST}; nothing is unpacked")
    return sound
