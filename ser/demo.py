"""The built-in corpus: procedural emotional speech, made in seconds, no download.

Every clip is a source (a buzzing voice and breath) sent through a filter (a mouth that moves from sound to
sound). What is said depends on the statement, the voice on the speaker, the manner on the emotion, and a little of
each on chance. Real speech it is not, but it is as unfair as real corpora are: speakers differ more than emotions do.

Shapes: N samples, T frames of ``HOP`` samples, F frequencies, P phones of a statement.
"""

import hashlib
import io
import os
import re
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from ser.audio import SAMPLE_RATE
from ser.errors import UserError, some
from ser.files import write_atomically
from ser.labels import label_set

__all__ = ["EMOTIONS", "REPETITIONS", "SPEAKERS", "STATEMENTS", "clip_file", "clip_names", "make", "sex", "synthesise"]

SPEAKERS = tuple(f"s{number:02d}" for number in range(1, 25))  # odd numbers male, even numbers female
EMOTIONS = label_set("demo")
# Phones of ``PHONES``; a capital is a stressed vowel, a hyphen the closure before a burst, a comma a place to pause.
STATEMENTS = {"t1": "mA-tisOla,nE-ki", "t2": "-kosIna,lU-temA", "t3": "sa-tElu,-kAnimo", "t4": "nU-kela,-tosImA"}
REPETITIONS = ("r1", "r2")
NAME = re.compile(rf"({'|'.join(SPEAKERS)})_({'|'.join(EMOTIONS)})_({'|'.join(STATEMENTS)})_({'|'.join(REPETITIONS)})")

STRENGTH = 1.0  # how far the emotions stand apart: 0 makes all of them neutral, 2 makes the corpus trivial
HABIT = 0.6
OPINION = 0.5
HOP = 128  # samples: 8 ms, one step of every contour
FRAME = 4 * HOP  # samples: 32 ms, one spectrum of the filter
WINDOW = np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME)  # used twice, before and after the filter
LOUDEST = 0.9  # of full scale: no peak exceeds it


@dataclass(frozen=True)
class Manner:
    """How a statement is said."""

    pitch: float  # semitones above the speaker's own pitch
    lively: float  # semitones that an accent rises
    slope: float  # semitones from beginning to end
    ending: float  # semitones on the last syllable
    late: float  # seconds that the peak of an accent comes after the middle of its vowel
    pace: float  # ratio to the speaker's own tempo
    pause: float  # seconds of silence in the middle
    crisp: float  # how much of a sound the mouth holds still: 0 slurs, 1 jumps from sound to sound
    loudness: float  # dB above the speaker's own
    punch: float  # dB that an accent stands out
    fade: float  # dB from beginning to end
    tilt: float  # dB per octave that high frequencies gain
    breath: float  # dB of breath relative to the voice
    tremor: float  # semitones of trembling, about six times a second
    jitter: float  # semitones of random unsteadiness
    tract: float  # ratio of the formants to the speaker's own: a smile shortens the tract, a droop lengthens it


# fmt: off
#                   pitch lively slope ending late  pace pause crisp loudness punch fade tilt breath tremor jitter tract
MANNERS = {
    "angry":   Manner(2.0,  4.0, -2.0, -4.0, -0.03, 1.08, 0.03,  0.7,   3.5,  8.0,  0.0,  1.2,  -26,  0.0,  0.30, 1.00),
    "disgust": Manner(-1.,  3.5, -5.0, -3.0,  0.03, 0.88, 0.12,  0.4,   0.0,  5.0, -4.0,  0.2,  -23,  0.1,  0.50, 0.97),
    "fearful": Manner(4.0,  1.5,  1.5,  2.0,  0.00, 1.12, 0.12,  0.5,   0.0,  1.0,  0.0, -0.3,  -19,  0.9,  0.30, 1.01),
    "happy":   Manner(3.0,  5.0,  0.0,  4.0,  0.04, 1.06, 0.03,  0.5,   2.0,  4.0,  2.0,  0.5,  -24,  0.0,  0.15, 1.03),
    "neutral": Manner(0.0,  2.0, -3.0, -2.0,  0.00, 1.00, 0.04,  0.4,   0.0,  3.0, -2.0,  0.0,  -25,  0.0,  0.15, 1.00),
    "sad":     Manner(0.0,  1.0, -2.0, -1.0,  0.02, 0.84, 0.16,  0.1,  -2.0,  0.5, -6.0, -0.8,  -21,  0.3,  0.20, 0.99),
}
# One standard deviation between two takes of the same.
SPREAD =     Manner(1.2,  0.9,  1.2,  1.2,  0.01, 0.06, 0.03, 0.10,   1.5,  1.2,  1.5,  0.5,  2.5,  0.12, 0.08, 0.012)
# fmt: on


@dataclass(frozen=True)
class Speaker:
    """A voice."""

    pitch: float  # Hz
    tract: float  # ratio of the formants to those in ``PHONES``
    pace: float  # ratio of tempo
    loudness: float  # dB of full scale
    tilt: float  # dB per octave
    hiss: float  # dB of full scale: the noise of the room and the microphone
    acting: float  # how much of each emotion shows
    habits: np.ndarray  # [fields of Manner] added to everything this speaker says


@dataclass(frozen=True)
class Phone:
    """One speech sound, as a grown man makes it."""

    seconds: float
    voice: float  # dB
    noise: float  # dB of hissing
    hiss: float  # Hz: where the hissing is
    f1: float  # Hz
    f2: float  # Hz
    f3: float  # Hz


# fmt: off
PHONES = {  #  seconds voice noise  hiss   f1    f2    f3
    "a": Phone(0.130,    0,  -60, 3000,  730, 1090, 2440),
    "e": Phone(0.120,    0,  -60, 3000,  530, 1840, 2480),
    "i": Phone(0.110,   -2,  -60, 3000,  280, 2250, 2950),
    "o": Phone(0.125,    0,  -60, 3000,  550,  860, 2410),
    "u": Phone(0.115,   -2,  -60, 3000,  310,  870, 2240),
    "m": Phone(0.070,   -9,  -60, 3000,  260, 1050, 2200),
    "n": Phone(0.065,   -9,  -60, 3000,  260, 1500, 2500),
    "l": Phone(0.060,   -6,  -60, 3000,  360, 1250, 2700),
    "s": Phone(0.100,  -50,  -14, 5800,  320, 1600, 2600),
    "t": Phone(0.030,  -40,  -12, 4200,  320, 1750, 2700),
    "k": Phone(0.040,  -40,  -12, 2100,  320, 1900, 2300),
    "-": Phone(0.050,  -50,  -60, 3000,  300, 1600, 2500),
    ",": Phone(0.000,  -60,  -60, 3000,  450, 1450, 2450),
    "_": Phone(0.080,  -60,  -60, 3000,  450, 1450, 2450),
}
# fmt: on
UPPER_FORMANTS = (3500, 4500, 5500, 6500, 7500)  # Hz; the ones that hardly move


def clip_names() -> list[str]:
    """Return the names of all clips of the corpus, sorted: ``s01_angry_t1_r1`` and so on."""
    return sorted(f"{s}_{e}_{t}_{r}" for s in SPEAKERS for e in EMOTIONS for t in STATEMENTS for r in REPETITIONS)


def clip_file(clip: str) -> Path:
    """Return where ``clip`` lies in the corpus: one folder per speaker."""
    return Path(clip.partition("_")[0], f"{clip}.wav")


def sex(speaker: str) -> str:
    """Return ``male`` or ``female``."""
    return "male" if int(speaker[1:]) % 2 else "female"


def make(folder: Path, clips: Sequence[str] | None = None, seed: int = 0) -> int:
    """Write those of ``clips`` (default: all) that ``folder`` lacks; return how many were made.

    Raises:
        UserError: a name is not of this corpus, or the folder cannot be written.
    """
    from tqdm import tqdm

    wanted = clip_names() if clips is None else clips
    check(wanted)
    missing = [clip for clip in dict.fromkeys(wanted) if not (folder / clip_file(clip)).exists()]
    write_one = partial(write_clip, folder, seed)
    workers = min(os.cpu_count() or 1, len(missing) // 50)
    progress = partial(tqdm, total=len(missing), desc="making the demo corpus", unit="clip", disable=not missing)
    if workers < 2:  # a new process costs more than a few clips
        for _ in progress(map(write_one, missing)):
            pass
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), follow_parent) as pool:
            for _ in progress(pool.map(write_one, missing, chunksize=8)):
                pass
    return len(missing)


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_clip(folder: Path, seed: int, clip: str) -> None:
    """Synthesise ``clip`` and write it into ``folder`` as 16-bit wav, whole or not at all."""
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, synthesise(clip, seed), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    write_atomically(folder / clip_file(clip), lambda file: file.write(wav.getbuffer()))


def synthesise(clip: str, seed: int = 0) -> np.ndarray:
    """Return the sound of ``clip``, float32 [N] at 16 kHz: always the same for the same ``clip`` and ``seed``.

    Raises:
        UserError: the name is not of this corpus.
    """
    check([clip])
    name, emotion, statement, _ = clip.split("_")
    dice = dice_for(seed, clip)
    speaker = cast(name, seed)
    manner = perform(speaker, emotion, dice_for(seed, name, emotion), dice)
    contours, accents = recite(STATEMENTS[statement], manner, speaker.pace * manner.pace, dice)
    pitch = speaker.pitch * 2 ** (intonation(accents, manner, dice) / 12)
    sound = speak(pitch, contours, accents, manner, speaker, dice)
    sound *= gain(speaker.loudness + manner.loudness) / np.sqrt(np.mean(sound**2))
    sound += gain(speaker.hiss) * dice.standard_normal(len(sound))
    return (sound * min(1, LOUDEST / np.abs(sound).max())).astype(np.float32)


def check(clips: Iterable[str]) -> None:
    """Raise a ``UserError`` if one of ``clips`` is not of this corpus."""
    unknown = [clip for clip in clips if not NAME.fullmatch(clip)]
    if unknown:
        raise UserError(f"the demo corpus has no clip {some(unknown)}; expected names such as s01_angry_t1_r1")


def dice_for(*key: object) -> np.random.Generator:
    """Return the random generator of ``key``, the same in every process."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


def gain(decibels: np.ndarray | float) -> np.ndarray | float:
    """Return the factor of amplitude for ``decibels``."""
    return 10 ** (decibels / 20)


def cast(name: str, seed: int) -> Speaker:
    """Return the voice of the speaker called ``name``."""
    dice = dice_for(seed, name)
    male = sex(name) == "male"
    return Speaker(
        pitch=dice.uniform(95, 145) if male else dice.uniform(165, 250),
        tract=dice.normal(1.0 if male else 1.16, 0.035),
        pace=dice.uniform(0.9, 1.12),
        loudness=dice.normal(-27, 2),
        tilt=dice.normal(0, 0.5),
        hiss=dice.uniform(-70, -58),
        acting=dice.uniform(0.6, 1.3),
        habits=dice.standard_normal(len(vector(SPREAD))) * HABIT * vector(SPREAD),
    )


def vector(manner: Manner) -> np.ndarray:
    """Return the fields of ``manner`` as an array."""
    return np.array(astuple(manner))


def perform(speaker: Speaker, emotion: str, opinion: np.random.Generator, dice: np.random.Generator) -> Manner:
    """Return the manner of one take; ``opinion`` rolls what the speaker takes ``emotion`` to be, ``dice`` this take."""
    calm, felt, spread = vector(MANNERS["neutral"]), vector(MANNERS[emotion]), vector(SPREAD)
    acting = STRENGTH * speaker.acting * dice.uniform(0.6, 1.4)
    chance = spread * (OPINION * opinion.standard_normal(len(spread)) + dice.standard_normal(len(spread)))
    return Manner(*(calm + acting * (felt - calm) + speaker.habits + chance))


def recite(statement: str, manner: Manner, pace: float, dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the contours of what is said [6, T], the fields of ``Phone`` after seconds, and its accents [T]."""
    letters = f"_{statement}_"
    phones = np.array([astuple(PHONES[letter.lower()]) for letter in letters])
    stress = np.array([0.0 if letter.lower() not in "aeiou" else 1.0 if letter.isupper() else 0.4 for letter in letters])
    lengths = phones[:, 0] * np.where(stress == 1, 1.35, 1.0) * dice.lognormal(0, 0.1, len(letters)) / pace
    lengths[letters.index(",")] = max(manner.pause, 0.02)
    ends = np.cumsum(lengths)
    moments = np.arange(0, ends[-1], HOP / SAMPLE_RATE)
    # The mouth holds each sound through the middle of its time and glides between them.
    glide = 0.5 * (1 - np.clip(manner.crisp, 0, 0.9)) * lengths
    knots = np.ravel([ends - lengths + glide, ends - glide], order="F")
    contours = np.array([np.interp(moments, knots, field.repeat(2)) for field in phones.T[1:]])
    heights = stress * dice.normal(1, 0.2, len(letters))
    distance = moments[:, None] - (ends - 0.5 * lengths + manner.late)
    return contours, np.exp(-((distance / 0.08) ** 2)) @ heights


def intonation(accents: np.ndarray, manner: Manner, dice: np.random.Generator) -> np.ndarray:
    """Return the pitch in semitones above the speaker's own, [T]."""
    steps = len(accents)
    progress = np.linspace(0, 1, steps)
    seconds = np.arange(steps) * HOP / SAMPLE_RATE
    trembling = np.sin(2 * np.pi * (dice.uniform(5, 7) * seconds + dice.random()))
    return (
        manner.pitch
        + manner.lively * accents
        + manner.slope * (progress - 0.5)
        + manner.ending * np.clip((progress - 0.75) / 0.2, 0, 1)
        + manner.tremor * trembling
        + manner.jitter * dice.standard_normal(steps)
    )


def buzz(pitch: np.ndarray) -> np.ndarray:
    """Return the source of a voice, [N]: a sawtooth without aliasing, its pitch [N] in Hz.

    A sawtooth has all harmonics and falls by 6 dB per octave, as a voice does at the lips.
    """
    step = pitch / SAMPLE_RATE
    phase = np.cumsum(step) % 1
    # Round off the jump (PolyBLEP): a parabola replaces the sample before and the sample after it.
    after = np.clip(1 - phase / step, 0, None)
    before = np.clip(1 - (1 - phase) / step, 0, None)
    return 2 * phase - 1 + after**2 - before**2


def speak(
    pitch: np.ndarray,
    contours: np.ndarray,
    accents: np.ndarray,
    manner: Manner,
    speaker: Speaker,
    dice: np.random.Generator,
) -> np.ndarray:
    """Send a voice of ``pitch`` [T] in Hz and its breath through the mouth that ``contours`` [6, T] describe: [N]."""
    steps = len(pitch)
    samples = (steps + 3) * HOP
    voice = spectra(buzz(np.interp(np.arange(samples) / HOP, np.arange(steps), pitch)))
    noise = spectra(dice.standard_normal(samples))
    level, hissing, hiss, *formants = contours[..., None].astype(np.float32)
    level = level + (manner.punch * accents + manner.fade * np.linspace(0, 1, steps))[:, None].astype(np.float32)

    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE).astype(np.float32)
    octaves = np.log2(np.maximum(frequencies, 60))
    mouth = gain((speaker.tilt + manner.tilt) * (octaves - np.log2(1000)))
    for formant in (*UPPER_FORMANTS, *formants):
        mouth = mouth * resonance(frequencies, formant * np.float32(speaker.tract * manner.tract))
    teeth = gain(hissing) * np.exp(-(((octaves - np.log2(hiss)) / 0.4) ** 2))
    return overlap_add(gain(level) * (voice + gain(manner.breath) * noise) * mouth + teeth * noise)


def resonance(frequencies: np.ndarray, formant: np.ndarray) -> np.ndarray:
    """Return the amplitude of one formant at each frequency: a pole pair, 1 at 0 Hz."""
    ratio = (frequencies / formant) ** 2
    width = 0.06 + 50 / formant  # of the formant's frequency
    return 1 / np.sqrt((1 - ratio) ** 2 + ratio * width**2)


def spectra(sound: np.ndarray) -> np.ndarray:
    """Return the short-time spectra [T, F] of ``sound`` [(T + 3) * HOP]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP]
    return np.fft.rfft((frames * WINDOW).astype(np.float32))


def overlap_add(spectra: np.ndarray) -> np.ndarray:
    """Return the sound [(T + 3) * HOP] of short-time spectra [T, F]; undoes ``spectra``."""
    frames = (np.fft.irfft(spectra) * WINDOW).reshape(len(spectra), 4, HOP)
    sound = np.zeros((len(frames) + 3, HOP))
    for quarter in range(4):
        sound[quarter : quarter + len(frames)] += frames[:, quarter] / 2  # the squared windows add up to 2
    return sound.ravel()
