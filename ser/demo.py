"""The built-in corpus: procedural emotional speech, made in seconds, no download.

Every clip is a source (a buzzing voice and breath) sent through a filter (a mouth that moves from sound to sound).
The statement decides what is said, the speaker who says it, the emotion how, and chance a little of everything.
It is not real speech, but it is as unfair as real corpora are: what tells emotions apart also tells speakers apart.

Shapes: N samples, T steps of ``HOP`` samples, F frequencies.
"""

import hashlib
import os
import re
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from numpy.random import Generator

from ser import audio
from ser.audio import SAMPLE_RATE
from ser.errors import UserError, some
from ser.labels import label_set
from ser.progress import cores, progress_bar

__all__ = ["EMOTIONS", "REPETITIONS", "SPEAKERS", "STATEMENTS", "clip_file", "clip_names", "make", "sex", "synthesise"]

SPEAKERS = tuple(f"s{number:02d}" for number in range(1, 25))  # odd numbers male, even numbers female
EMOTIONS = label_set("demo")
# Letters of ``PHONES``: a capital is a stressed vowel, - the closure before a burst, a comma a place to pause.
STATEMENTS = {"t1": "mA-tisOla,nE-ki", "t2": "-kosIna,lU-temA", "t3": "sa-tElu,-kAnimo", "t4": "nU-kela,-tosImA"}
REPETITIONS = ("r1", "r2")
NAME = re.compile("_".join(f"({'|'.join(part)})" for part in (SPEAKERS, EMOTIONS, STATEMENTS, REPETITIONS)))

STRENGTH = 1.3  # how far the emotions stand apart: at 0 all are neutral, at 3 nobody mistakes them
HABIT, TASTE = 0.7, 0.5  # of ``SPREAD``: how much speakers differ in all they say, and in each emotion
LOUDNESS = -27  # dB of full scale (root mean square) of a neutral clip
LOUDEST = 0.9  # of full scale: no peak exceeds it
HOP = 128  # samples: 8 ms, one step of every contour
FRAME = 4 * HOP  # samples: 32 ms, one spectrum
WINDOW = np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME)  # used twice, before and after the filter


@dataclass(frozen=True)
class Manner:
    """How a statement is said."""

    pitch: float  # semitones above the speaker's own
    lively: float  # semitones that an accent rises
    slope: float  # semitones from beginning to end
    ending: float  # semitones on the last syllable
    late: float  # seconds from the middle of a vowel to the peak of its accent
    pace: float  # ratio of tempo
    pause: float  # seconds of silence in the middle
    crisp: float  # share of a sound for which the mouth holds still: 0 slurs, 1 jumps from sound to sound
    loud: float  # dB
    punch: float  # dB that an accent stands out
    fade: float  # dB from beginning to end
    tilt: float  # dB per octave that high frequencies gain
    breath: float  # dB of breath relative to the voice
    tremor: float  # semitones of trembling, about six times a second
    jitter: float  # semitones of random unsteadiness
    tract: float  # ratio of the formants to the speaker's own: a smile shortens the vocal tract


# fmt: off
MANNERS = {  #       pitch lively slope ending late   pace pause crisp loud punch fade  tilt breath tremor jitter tract
    "angry":   Manner( 2.0,  4.0, -2.0, -4.0, -0.03, 1.08, 0.03, 0.7,  3.5,  8.0,  0.0,  1.2,  -26,  0.00,  0.30, 1.00),
    "disgust": Manner(-1.0,  3.5, -5.0, -3.0,  0.03, 0.88, 0.12, 0.4,  0.0,  5.0, -4.0,  0.2,  -23,  0.10,  0.50, 0.97),
    "fearful": Manner( 4.0,  1.5,  1.5,  2.0,  0.00, 1.12, 0.12, 0.5,  0.0,  1.0,  0.0, -0.3,  -19,  0.90,  0.30, 1.01),
    "happy":   Manner( 3.0,  5.0,  0.0,  4.0,  0.04, 1.06, 0.03, 0.5,  2.0,  4.0,  2.0,  0.5,  -24,  0.00,  0.15, 1.03),
    "neutral": Manner( 0.0,  2.0, -3.0, -2.0,  0.00, 1.00, 0.04, 0.4,  0.0,  3.0, -2.0,  0.0,  -25,  0.00,  0.15, 1.00),
    "sad":     Manner( 0.0,  1.0, -2.0, -1.0,  0.02, 0.84, 0.16, 0.1, -1.5,  0.5, -5.0, -0.6,  -22,  0.30,  0.20, 0.99),
}
# One standard deviation between two takes of the same.
SPREAD =       Manner( 1.2,  0.9,  1.2,  1.2,  0.01, 0.06, 0.03, 0.1,  1.5,  1.2,  1.5,  0.5,  2.5,  0.12,  0.08, 0.012)


@dataclass(frozen=True)
class Phone:
    """One speech sound, from the mouth of an average man."""

    seconds: float
    voice: float  # dB
    noise: float  # dB of hissing at the teeth
    hiss: float  # Hz of that hissing
    f1: float  # Hz, as all formants
    f2: float
    f3: float


PHONES = {  #  seconds voice noise  hiss    f1    f2    f3
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
    ",": Phone(0.020,  -60,  -60, 3000,  450, 1450, 2450),
    "_": Phone(0.100,  -60,  -60, 3000,  450, 1450, 2450),
}
# fmt: on
UPPER_FORMANTS = (3500, 4500, 5500, 6500, 7500)  # Hz; the ones that hardly move


def clip_names() -> list[str]:
    """Return the names of all clips of the corpus, sorted: ``s01_angry_t1_r1`` and so on."""
    return sorted(f"{s}_{e}_{t}_{r}" for s in SPEAKERS for e in EMOTIONS for t in STATEMENTS for r in REPETITIONS)


def clip_file(clip: str) -> Path:
    """Return where ``clip`` lies in the folder of the corpus: ``s01/s01_angry_t1_r1.wav``."""
    return Path(clip.split("_")[0], f"{clip}.wav")


def sex(speaker: str) -> str:
    """Return ``female`` or ``male``."""
    return "male" if int(speaker[1:]) % 2 else "female"


def make(folder: Path, clips: Sequence[str] | None = None, seed: int = 0) -> int:
    """Write those of ``clips`` (all by default) that ``folder`` lacks, as 16-bit wav; return how many.

    Raises:
        UserError: a name is not of this corpus, or ``folder`` cannot be written.
    """
    wanted = clip_names() if clips is None else list(dict.fromkeys(clips))
    check(wanted)
    missing = [clip for clip in wanted if not (folder / clip_file(clip)).exists()]
    write = partial(write_clip, folder, seed)
    workers = max(1, min(cores(), len(missing) // 50))  # to start one costs as much as some 50 clips
    with ProcessPoolExecutor(workers, get_context("spawn"), follow_parent) as pool:  # starts them at the first task
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # workers inherit it: Ctrl-C is for us alone
        made = pool.map(write, missing, chunksize=8) if workers > 1 else map(write, missing)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for _ in progress_bar(made, "making the demo corpus", len(missing)):
            pass
    return len(missing)


def follow_parent() -> None:
    """Make this worker end when its parent does, even by kill -9."""
    if parent := parent_process():
        threading.Thread(target=lambda: wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def write_clip(folder: Path, seed: int, clip: str) -> None:
    """Synthesise ``clip`` and write its file, whole or not at all."""
    audio.write(folder / clip_file(clip), synthesise(clip, seed))


def check(clips: Iterable[str]) -> None:
    """Raise a ``UserError`` if any of ``clips`` is not of this corpus."""
    if unknown := [clip for clip in clips if not NAME.fullmatch(clip)]:
        raise UserError(f"the demo corpus has no clip {some(unknown)}; expected names such as s01_angry_t1_r1")


def synthesise(clip: str, seed: int = 0) -> np.ndarray:
    """Return the sound of ``clip``, float32 [N] at 16 kHz: always the same for the same ``clip`` and ``seed``.

    Raises:
        UserError: the name is not of this corpus.
    """
    check([clip])
    speaker, emotion, statement, _ = clip.split("_")
    dice = dice_for(seed, clip)
    own_pitch, own_tract, room, acting, habits = cast(speaker, seed)
    manner = perform(emotion, acting, habits, dice_for(seed, speaker, emotion), dice)
    contours, accents = recite(STATEMENTS[statement], manner, dice)
    pitch = own_pitch * 2 ** (intonation(accents, manner, dice) / 12)
    sound = speak(pitch, contours, accents, manner, own_tract, dice)
    sound *= gain(LOUDNESS + manner.loud) / np.sqrt(np.mean(sound**2))
    sound += gain(room) * dice.standard_normal(len(sound))
    return (sound * min(1, LOUDEST / np.abs(sound).max())).astype(np.float32)


def dice_for(*key: object) -> Generator:
    """Return the random generator of ``key``, the same in every process."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


def cast(speaker: str, seed: int) -> tuple[float, float, float, float, np.ndarray]:
    """Return a speaker's pitch in Hz, formant ratio, noise of the room in dB, talent for acting, and habits."""
    dice = dice_for(seed, speaker)
    male = sex(speaker) == "male"
    pitch = dice.uniform(95, 145) if male else dice.uniform(165, 250)
    tract = dice.normal(1.0 if male else 1.16, 0.035)
    habits = HABIT * dice.normal(0, astuple(SPREAD))
    return pitch, tract, dice.uniform(-72, -60), dice.uniform(0.6, 1.3), habits


def perform(emotion: str, acting: float, habits: np.ndarray, taste: Generator, dice: Generator) -> Manner:
    """Return the manner of one take; ``taste`` rolls what the speaker takes ``emotion`` to be, ``dice`` the take."""
    calm, felt = (np.array(astuple(MANNERS[name])) for name in ("neutral", emotion))
    shown = STRENGTH * acting * dice.uniform(0.6, 1.4)
    chance = TASTE * taste.normal(0, astuple(SPREAD)) + dice.normal(0, astuple(SPREAD))
    return Manner(*(calm + shown * (felt - calm) + habits + chance))


def gain(decibels: float | np.ndarray) -> float | np.ndarray:
    """Return the factor of amplitude for ``decibels``."""
    return 10 ** (decibels / 20)


def recite(statement: str, manner: Manner, dice: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the contours of what is said [6, T], the fields of ``Phone`` after seconds, and its accents [T]."""
    letters = np.array(list(f"_{statement}_"))
    phones = np.array([astuple(PHONES[letter.lower()]) for letter in letters])
    stress = np.select([np.char.isupper(letters), np.isin(letters, list("aeiou"))], [1.0, 0.4], 0.0)
    lengths = phones[:, 0] * (1 + 0.35 * (stress == 1)) * dice.lognormal(0, 0.1, len(letters))
    lengths /= np.clip(manner.pace, 0.7, 1.25)
    lengths += max(manner.pause, 0) * (letters == ",")
    ends = np.cumsum(lengths)
    moments = np.arange(0, ends[-1], HOP / SAMPLE_RATE)
    # The mouth holds each sound around the middle of its time and glides from one to the next.
    glide = (1 - np.clip(manner.crisp, 0, 0.9)) / 2 * lengths
    knots = np.column_stack([ends - lengths + glide, ends - glide]).ravel()
    contours = np.array([np.interp(moments, knots, field.repeat(2)) for field in phones.T[1:]])
    peaks = ends - lengths / 2 + manner.late
    heights = stress * dice.normal(1, 0.2, len(letters))
    return contours, (heights * np.exp(-(((moments[:, None] - peaks) / 0.08) ** 2))).sum(axis=1)


def intonation(accents: np.ndarray, manner: Manner, dice: Generator) -> np.ndarray:
    """Return the melody [T] in semitones above the speaker's own pitch."""
    seconds = np.arange(len(accents)) * HOP / SAMPLE_RATE
    progress = seconds / seconds[-1]
    melody = manner.pitch + manner.lively * accents + manner.slope * (progress - 0.5)
    melody += manner.ending * np.clip((progress - 0.75) / 0.2, 0, 1)
    melody += manner.tremor * np.sin(2 * np.pi * (dice.uniform(5, 7) * seconds + dice.random()))
    return melody + manner.jitter * dice.standard_normal(len(accents))


def speak(
    pitch: np.ndarray, contours: np.ndarray, accents: np.ndarray, manner: Manner, tract: float, dice: Generator
) -> np.ndarray:
    """Send a voice of ``pitch`` [T] in Hz, and breath, through the mouth that ``contours`` [6, T] describe: [N]."""
    samples = np.arange((len(pitch) + 3) * HOP)
    voice = spectra(buzz(np.interp(samples / HOP, np.arange(len(pitch)), pitch)))
    noise = spectra(dice.standard_normal(len(samples)))
    level, hissing, hiss, *formants = contours.astype(np.float32)[..., None]  # each [T, 1]
    stress = manner.punch * accents + manner.fade * np.linspace(0, 1, len(pitch))
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE).astype(np.float32)
    octaves = np.log2(np.maximum(frequencies, 60) / 1000)  # from 1 kHz
    mouth = gain(level + stress[:, None] + manner.tilt * octaves)
    for formant in (*formants, *UPPER_FORMANTS):
        mouth = mouth * resonance(frequencies, formant * np.float32(tract * manner.tract))
    teeth = gain(hissing) * np.exp(-(((octaves - np.log2(hiss / 1000)) / 0.4) ** 2))
    return overlap_add((voice + gain(manner.breath) * noise) * mouth + noise * teeth)


def buzz(pitch: np.ndarray) -> np.ndarray:
    """Return a voice without a mouth [N] whose pitch is ``pitch`` [N] in Hz.

    It is a sawtooth: all harmonics, falling by 6 dB per octave as a voice does at the lips.
    """
    step = pitch / SAMPLE_RATE
    phase = np.cumsum(step) % 1
    # A bare jump would fold back from above 8 kHz; a parabola over the samples around it (PolyBLEP) keeps it below.
    return 2 * phase - 1 + np.maximum(1 - phase / step, 0) ** 2 - np.maximum(1 - (1 - phase) / step, 0) ** 2


def resonance(frequencies: np.ndarray, formant: np.ndarray) -> np.ndarray:
    """Return the amplitude of one formant at each of ``frequencies``: a pair of poles, 1 at 0 Hz."""
    ratio = (frequencies / formant) ** 2
    width = 0.06 + 50 / formant  # of the frequency of the formant
    return 1 / np.sqrt((1 - ratio) ** 2 + ratio * width**2)


def spectra(sound: np.ndarray) -> np.ndarray:
    """Return the short-time spectra [T, F] of ``sound`` [(T + 3) * HOP]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP]
    return np.fft.rfft((frames * WINDOW).astype(np.float32))


def overlap_add(spectra: np.ndarray) -> np.ndarray:
    """Return the sound [(T + 3) * HOP] of short-time spectra [T, F]."""
    quarters = (np.fft.irfft(spectra) * WINDOW).reshape(len(spectra), 4, HOP)
    sound = np.zeros((len(spectra) + 3, HOP))
    for quarter in range(4):
        sound[quarter : quarter + len(spectra)] += quarters[:, quarter] / 2  # the squared windows add up to 2
    return sound.ravel()
