"""Any sound file to mono float32 at 16 kHz: soundfile reads, torchaudio resamples."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ser.errors import UserError
from ser.files import write_atomically

__all__ = [
    "LFS_MAGIC",
    "SAMPLE_RATE",
    "SHORTEST",
    "SOUND_SUFFIXES",
    "SoundInfo",
    "header",
    "inspect",
    "read",
    "to_mono_16k",
    "windows",
    "write",
]

SAMPLE_RATE = 16_000  # Hz; every model of the house hears this rate
SHORTEST = 0.05  # seconds; less sound than this holds no frame that a model could use
SOUND_SUFFIXES = (".wav", ".flac", ".mp3")

LFS_MAGIC = b"version https://git-lfs"  # the first bytes of a git-lfs pointer


@dataclass(frozen=True)
class SoundInfo:
    """What a sound file is before it is brought to 16 kHz mono."""

    seconds: float
    sample_rate: int  # Hz
    channels: int
    subtype: str  # soundfile's name of the sample format, such as PCM_16


def read(path: Path) -> np.ndarray:
    """Read a sound file as mono float32 [N] at 16 kHz; channels are averaged.

    Raises:
        UserError: missing, a git-lfs pointer, not sound, empty, too short, or holding NaN or infinity.
    """
    sound, sample_rate, _ = decode(path)
    return to_mono_16k(sound, sample_rate)


def inspect(path: Path) -> tuple[np.ndarray, SoundInfo]:
    """Read a whole sound file as stored: float32 [N, channels] at its own rate, and what it is.

    Raises:
        UserError: as ``read``.
    """
    sound, sample_rate, subtype = decode(path)
    return sound, SoundInfo(len(sound) / sample_rate, sample_rate, sound.shape[1], subtype)


def header(path: Path) -> SoundInfo:
    """Read only a sound file's header; the length of an MP3 is an estimate.

    Raises:
        UserError: as ``read``, as far as a header tells.
    """
    with opened(path) as file:
        return SoundInfo(file.frames / file.samplerate, file.samplerate, file.channels, file.subtype)


def windows(path: Path, window: float, hop: float) -> Iterator[tuple[float, np.ndarray]]:
    """Yield windows of a sound file, each with the second it begins at, as mono float32 [N] at 16 kHz.

    The file is read as it is needed, and every window resampled for itself, as a file of its own would be. The last
    may be shorter.

    Args:
        path: of the file.
        window: seconds of a window.
        hop: seconds between the beginnings of two.

    Raises:
        UserError: as ``read``, when the damage is reached.
    """
    with opened(path) as file:
        rate, announced = file.samplerate, file.frames
        size, step = round(window * rate), max(1, round(hop * rate))
        block = file.read(size, dtype="float32", always_2d=True)
        start, heard = 0, len(block)
        while (heard and not start) or heard > start + size - step:  # something that the window before did not hear
            if not np.isfinite(block).all():
                raise UserError(f"{path}: holds NaN or infinite samples; convert it again from the original")
            yield start / rate, to_mono_16k(block, rate)
            fresh = file.read(step, dtype="float32", always_2d=True)
            block = np.concatenate([block[step:], fresh])
            start, heard = start + step, heard + len(fresh)
        check_whole(path, heard, announced, file.subtype)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a sound file for the time of the body; one that cannot be read there is a ``UserError``."""
    import soundfile

    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # bytes: a name need not be UTF-8
            check_data_size(path, file.extra_info)
            yield file
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: {why_unreadable(path)}") from error


def check_whole(path: Path, found: int, announced: int, subtype: str) -> None:
    """Raise a UserError for a file without sound, or one of which fewer frames were found than it announces."""
    if found == 0:
        raise UserError(f"{path}: the sound is empty (0 samples); replace it or remove it")
    # MP3 headers only estimate the length; a lossless file that ends early is truncated.
    if found < announced and subtype != "MPEG_LAYER_III":
        raise UserError(
            f"{path}: truncated, {found} of the {announced} samples that its header announces; "
            "copy or download it again"
        )


def check_data_size(path: Path, log: str) -> None:
    """Raise a UserError for a WAV cut short, whose frames libsndfile quietly counts anew; ``log`` is its log."""
    found = re.search(r"^data\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    # Programs that write to a pipe cannot know the size and announce the largest that they can.
    if found and int(found[2]) < int(found[1]) < 0x7FFFF000:
        raise UserError(
            f"{path}: truncated, {found[2]} of the {found[1]} bytes that its header announces; "
            "copy or download it again"
        )


def decode(path: Path) -> tuple[np.ndarray, int, str]:
    """Decode every frame of a file to float32 [N, channels]; see ``read`` for the errors."""
    with opened(path) as file:
        announced, sample_rate, subtype = file.frames, file.samplerate, file.subtype
        sound = file.read(dtype="float32", always_2d=True)
    check_whole(path, len(sound), announced, subtype)
    if len(sound) < SHORTEST * sample_rate:
        seconds = len(sound) / sample_rate
        raise UserError(f"{path}: {seconds:.3f} s of sound, expected at least {SHORTEST} s; replace it or remove it")
    if not np.isfinite(sound).all():
        raise UserError(f"{path}: holds NaN or infinite samples; convert it again from the original")
    return sound, sample_rate, subtype


def why_unreadable(path: Path) -> str:
    """Say in one line why ``path`` is not a readable sound file, and what to do."""
    if path.is_dir():
        return "is a folder; expected a sound file"
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        return "no such file; bring it back, or correct its path and run: just metadata CORPUS"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if head.startswith(LFS_MAGIC):
        return "is a git-lfs pointer, not sound; fetch the real files with: git lfs pull"
    if not head:
        return "is an empty file (0 bytes); copy or download it again"
    if head[:4] in (b"RIFF", b"fLaC") or head[:3] == b"ID3" or head[:2] in (b"\xff\xfb", b"\xff\xf3"):
        return "the sound is damaged or cut short; copy or download it again"
    return "is not a sound file that libsndfile reads (expected wav, flac or mp3)"


def to_mono_16k(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """Average the channels of float32 [N, channels] and resample to 16 kHz."""
    mono = sound.mean(axis=1, dtype=np.float32)
    if sample_rate == SAMPLE_RATE:
        return mono
    import torch

    with torch.inference_mode():
        return resampler(sample_rate)(torch.from_numpy(mono)).numpy()


@lru_cache(maxsize=8)
def resampler(sample_rate: int):
    """Return the band-limited (windowed sinc, Kaiser) resampler from ``sample_rate`` to 16 kHz."""
    from torchaudio.transforms import Resample

    return Resample(
        sample_rate, SAMPLE_RATE, lowpass_filter_width=64, rolloff=0.95, resampling_method="sinc_interp_kaiser"
    )


def write(path: Path, sound: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono float32 [N] in [-1, 1] as 16-bit PCM; the ending of ``path`` chooses the container."""
    import soundfile

    container = path.suffix.removeprefix(".").upper()
    write_atomically(
        path, lambda file: soundfile.write(file, sound, sample_rate, "PCM_16", format=container), wait=False
    )
