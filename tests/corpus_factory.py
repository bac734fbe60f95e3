"""Small synthetic corpora for the tests: real names, made-up sound, no download.

The sound of a clip is a chord of three tones that its emotion chooses, over noise, so that a small model can learn
it; it depends on nothing but the clip's name and length.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np

from ser import audio, metadata, preparing, schemes, splits
from ser.corpora import corpus as corpus_named
from ser.labels import EMOTIONS

# Speakers of both sexes such that every part and every fold of every scheme of the corpus gets at least one
# (``test_splits.py`` holds this).
SPEAKERS = {
    "crema_d": (
        "1001", "1002", "1005", "1009", "1019", "1021", "1022", "1033", "1034", "1054", "1060", "1082",
    ),
    "demo": ("s01", "s02", "s03", "s04", "s08", "s09", "s10", "s11", "s12", "s13", "s23", "s24"),
    "ravdess": ("01", "02", "03", "04", "06", "07", "08", "09", "10", "11", "15", "17", "20", "24"),
}  # fmt: skip
FOLDERS = {"crema_d": "", "demo": "{}", "ravdess": "Actor_{}"}  # where a speaker's clips lie


def make_corpus(
    home: Path,
    corpus: str,
    speakers: Sequence[str] | None = None,
    per_class: int = 2,
    seconds: float = 0.6,
    suffix: str = ".wav",
) -> Path:
    """Write ``per_class`` clips of each emotion of each speaker into ``home/raw/<corpus>``; return that folder.

    Files lie as in the official distribution: CREMA-D flat, RAVDESS in ``Actor_01``, the demo corpus in ``s01``.

    Args:
        home: usually ``tmp_path``.
        corpus: crema_d, ravdess or demo.
        speakers: ``SPEAKERS[corpus]`` by default, which reaches every part of every scheme.
        per_class: clips of each emotion of each speaker, spread over statements, intensities and repetitions.
        seconds: mean length; clips differ by up to a tenth of it.
        suffix: ``.wav`` or ``.flac``.
    """
    raw = home / "raw" / corpus
    for name in clip_names(corpus, speakers, per_class):
        fields = corpus_named(corpus).parse(name)
        folder = raw / FOLDERS[corpus].format(fields["speaker"])
        audio.write(folder / f"{name}{suffix}", synthetic_sound(name, fields["emotion"], seconds))
    return raw


def prepare_corpus(home: Path, corpus: str, **kwargs) -> Path:
    """Make a corpus as ``make_corpus`` does, then its metadata and all its splits; return the raw folder.

    The caller has set SER_HOME to ``home``: ``monkeypatch.setenv("SER_HOME", str(tmp_path))``.
    """
    raw = make_corpus(home, corpus, **kwargs)
    clips, missing = preparing.clips_of(corpus_named(corpus), raw, allow_missing=True)
    metadata.write_table(corpus, clips)
    metadata.remember_raw(corpus, raw, missing)
    for scheme in splits.schemes(corpus):
        splits.write_split(official_split(corpus, scheme))
    return raw


def clip_names(corpus: str, speakers: Sequence[str] | None = None, per_class: int = 2) -> list[str]:
    """Return the official names that ``make_corpus`` writes."""
    groups = names_by_speaker_and_emotion(corpus)
    wanted = SPEAKERS[corpus] if speakers is None else speakers
    chosen = []
    for (speaker, _), names in groups.items():
        if speaker in wanted:
            count = min(per_class, len(names))
            chosen += [names[index * len(names) // count] for index in range(count)]
    return chosen


def synthetic_sound(name: str, emotion: str, seconds: float = 0.6) -> np.ndarray:
    """Return the sound of one clip, float32 [N] at 16 kHz, peak below 0.9."""
    dice = np.random.default_rng(crc32(name.encode()))
    moments = np.arange(round(seconds * dice.uniform(0.9, 1.1) * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
    lowest = 200 * 1.45 ** EMOTIONS.index(emotion) * dice.uniform(0.95, 1.05)  # Hz
    tones = sum(np.sin(2 * np.pi * lowest * ratio * moments + dice.uniform(0, 6)) for ratio in (1, 1.5, 2.5))
    noise = dice.standard_normal(len(moments)).clip(-3, 3)
    return (dice.uniform(0.5, 1) * (0.2 * tones + 0.05 * noise)).astype(np.float32)


@cache
def names_by_speaker_and_emotion(corpus: str) -> dict[tuple[str, str], list[str]]:
    """Return the official clip names of each speaker and emotion, sorted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for clip in schemes.official_clips(corpus):
        groups.setdefault((clip["speaker"], clip["emotion"]), []).append(clip["clip"])
    return {key: sorted(groups[key]) for key in sorted(groups)}


@cache
def official_split(corpus: str, scheme: str) -> splits.Split:
    """Return a computed split; computing one takes a moment, so each is computed once a process."""
    return schemes.make_split(corpus, scheme)
