"""What each corpus is: the grammar of its file names, its official list, what is known to be odd."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ser import demo
from ser.files import PROJECT, read_csv
from ser.labels import label_set

__all__ = [
    "CORPORA",
    "Corpus",
    "Fields",
    "Official",
    "corpus_named",
    "crema_d_official",
    "demographics",
    "licence",
    "readme_entry",
]

Fields = dict[str, str]  # the fields of metadata.Clip that a file name tells


@dataclass(frozen=True)
class Official:
    """A file of the official distribution."""

    sha256: str = ""  # of the original container; empty where none is published
    size: int = 0  # bytes


@dataclass(frozen=True)
class Corpus:
    """A corpus: how its names read, and what its official distribution holds.

    Attributes:
        name: as in ``just prepare NAME``.
        title: for people.
        parse: clip name -> fields of ``metadata.Clip``, or None where the grammar does not match.
        official: clip name -> ``Official`` of every clip of the distribution; empty where no list is published.
        expected: number of clips of the distribution, where there is no list.
        sample_rate: of the distribution, Hz; 0 where it has none of its own.
        left_out: clip name -> what it is, for recognised files that are not speech clips; else None.
        known_odd: clip name -> what is known about it; such clips are kept and flagged.
    """

    name: str
    title: str
    parse: Callable[[str], Fields | None]
    official: Callable[[], dict[str, Official]]
    left_out: Callable[[str], str | None] = field(default=lambda name: None)
    known_odd: dict[str, str] = field(default_factory=dict)
    expected: int = 0
    sample_rate: int = 0


CREMA_D_EMOTIONS = {
    "ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
CREMA_D_INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}
CREMA_D_STATEMENTS = ("DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI")
CREMA_D_ODD = {
    "1076_MTI_SAD_XX": "digital silence in the official distribution",
    **{
        f"{stem}_{emotion}_XX": f"identical sound under two labels: {stem}_{{{first},{second}}}_XX"
        for stem, first, second in (("1006_TIE", "HAP", "NEU"), ("1013_WSI", "DIS", "SAD"), ("1017_IWW", "ANG", "FEA"))
        for emotion in (first, second)
    },
}


def parse_crema_d(name: str) -> Fields | None:
    """Read ``1001_DFA_ANG_XX``: speaker, statement, emotion, intensity."""
    parts = name.split("_")
    if len(parts) != 4:
        return None
    speaker, statement, emotion, intensity = parts
    # An older distribution calls 1040_ITH_SAD_XX `1040_ITH_SAD_X`.
    intensity = "XX" if intensity == "X" else intensity
    if (
        speaker not in crema_d_sexes()
        or statement not in CREMA_D_STATEMENTS
        or emotion not in CREMA_D_EMOTIONS
        or intensity not in CREMA_D_INTENSITIES
    ):
        return None
    return {
        "clip": "_".join((speaker, statement, emotion, intensity)),
        "speaker": speaker,
        "sex": crema_d_sexes()[speaker],
        "emotion": CREMA_D_EMOTIONS[emotion],
        "intensity": CREMA_D_INTENSITIES[intensity],
        "statement": statement,
        "repetition": "1",
    }


@cache
def crema_d_sexes() -> dict[str, str]:
    """Return the sex of each of the 91 speakers, from ``data/crema_d/speakers.csv``."""
    with open(PROJECT / "data/crema_d/speakers.csv", newline="") as file:
        return {row["speaker"]: row["sex"] for row in csv.DictReader(file)}


@cache
def crema_d_official() -> dict[str, Official]:
    """Read the 7442 names, checksums and sizes of ``data/crema_d/manifest.csv``."""
    with open(PROJECT / "data/crema_d/manifest.csv", newline="") as file:
        return {
            row["filename"].removesuffix(".wav"): Official(row["sha256"], int(row["size"]))
            for row in csv.DictReader(file)
        }


RAVDESS_EMOTIONS = dict(
    zip(
        ("01", "02", "03", "04", "05", "06", "07", "08"),
        ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
        strict=True,
    )
)
RAVDESS_INTENSITIES = {"01": "normal", "02": "strong"}
RAVDESS_STEREO = (
    "03-01-02-01-01-02-01", "03-01-08-01-02-02-01", "03-01-02-01-02-02-05",
    "03-01-03-01-02-01-20", "03-01-06-01-01-02-20",
)  # fmt: skip
RAVDESS_TWINS = ("03-01-03-01-02-01-07", "03-01-03-01-02-02-07")
RAVDESS_ODD = {
    **dict.fromkeys(RAVDESS_STEREO, "stereo in the official distribution"),
    **dict.fromkeys(RAVDESS_TWINS, f"identical sound in two repetitions: {' and '.join(RAVDESS_TWINS)}"),
}


def ravdess_parts(name: str) -> list[str] | None:
    """Split ``03-01-06-01-02-01-12`` into its seven two-digit fields, or return None."""
    parts = name.split("-")
    good = len(parts) == 7 and all(len(part) == 2 and part.isascii() and part.isdigit() for part in parts)
    if not good or parts[2] not in RAVDESS_EMOTIONS or not 1 <= int(parts[6]) <= 24:
        return None
    if parts[0] not in ("01", "02", "03") or parts[1] not in ("01", "02"):
        return None
    return parts if all(part in ("01", "02") for part in parts[3:6]) else None


def parse_ravdess(name: str) -> Fields | None:
    """Read modality-channel-emotion-intensity-statement-repetition-actor of an audio-only speech clip."""
    parts = ravdess_parts(name)
    if parts is None or parts[:2] != ["03", "01"]:
        return None
    _, _, emotion, intensity, statement, repetition, actor = parts
    if emotion == "01" and intensity == "02":  # neutral has no strong intensity
        return None
    return {
        "clip": name,
        "speaker": actor,
        "sex": "male" if int(actor) % 2 else "female",  # odd actors are male; some tools invert this
        "emotion": RAVDESS_EMOTIONS[emotion],
        "intensity": RAVDESS_INTENSITIES[intensity],
        "statement": statement,
        "repetition": repetition,
    }


def ravdess_left_out(name: str) -> str | None:
    """Recognise song and video files by name."""
    parts = ravdess_parts(name)
    if parts is None or parts[:2] == ["03", "01"]:
        return None
    return "song" if parts[1] == "02" else "video"


@cache
def ravdess_official() -> dict[str, Official]:
    """Return the 1440 speech clips: the grammar's every combination."""
    names = (
        f"03-01-{emotion}-{intensity}-{statement}-{repetition}-{actor:02d}"
        for actor in range(1, 25)
        for emotion in RAVDESS_EMOTIONS
        for intensity in RAVDESS_INTENSITIES
        for statement in ("01", "02")
        for repetition in ("01", "02")
    )
    return {name: Official() for name in names if parse_ravdess(name)}


def parse_demo(name: str) -> Fields | None:
    """Read ``s01_angry_t1_r1``: speaker, emotion, statement, repetition."""
    if name not in demo_official():
        return None
    speaker, emotion, statement, repetition = name.split("_")
    return {
        "clip": name,
        "speaker": speaker,
        "sex": demo.sex(speaker),
        "emotion": emotion,
        "intensity": "unspecified",
        "statement": statement,
        "repetition": repetition,
    }


@cache
def demo_official() -> dict[str, Official]:
    """Return the clips that the generator makes."""
    return {name: Official() for name in demo.clip_names()}


EMODB = re.compile(r"(03|08|09|10|11|12|13|14|15|16)([ab]\d\d)([WLEAFTN])([a-z])")
EMODB_EMOTIONS = {"W": "angry", "E": "disgust", "A": "fearful", "F": "happy", "T": "sad", "N": "neutral"}
EMODB_MEN = ("03", "10", "11", "12", "15")


def parse_emodb(name: str) -> Fields | None:
    """Read ``03a01Wa``: speaker, text, emotion (initial of its German name), version."""
    match = EMODB.fullmatch(name)
    if match is None or match[3] not in EMODB_EMOTIONS:
        return None
    return {
        "clip": name,
        "speaker": match[1],
        "sex": "male" if match[1] in EMODB_MEN else "female",
        "emotion": EMODB_EMOTIONS[match[3]],
        "intensity": "unspecified",
        "statement": match[2],
        "repetition": match[4],
    }


def emodb_left_out(name: str) -> str | None:
    """Recognise boredom (Langeweile), which no other corpus has and the vocabulary does not know."""
    match = EMODB.fullmatch(name)
    return "boredom" if match and match[3] == "L" else None


def listed_elsewhere(name: str) -> Fields | None:
    """Return None: the clips of a custom corpus stand in its table, not in their names."""
    return None


CORPORA = {
    entry.name: entry
    for entry in (
        Corpus("crema_d", "CREMA-D", parse_crema_d, crema_d_official, known_odd=CREMA_D_ODD, sample_rate=16_000),
        Corpus("custom", "custom corpus", listed_elsewhere, dict),
        Corpus("emodb", "EmoDB", parse_emodb, dict, emodb_left_out, expected=454, sample_rate=16_000),
        Corpus("demo", "built-in demo", parse_demo, demo_official),
        Corpus(
            "ravdess", "RAVDESS speech",             parse_ravdess, ravdess_official, ravdess_left_out, RAVDESS_ODD,
            sample_rate=48_000,
        ),
    )
}  # fmt: skip


def corpus_named(name: str) -> Corpus:
    """Return a corpus by name.

    Raises:
        UserError: no such corpus; the nearest name is given.
    """
    label_set(name)
    return CORPORA[name]


def demographics(raw: Path) -> dict[str, Fields]:
    """Return speaker -> age, race, ethnicity and sex from CREMA-D's ``VideoDemographics.csv``.

    The file is looked for in the raw folder and the one above; without it the result is empty.

    Raises:
        UserError: the file is there but is not the demographics table.
    """
    for path in (raw / "VideoDemographics.csv", raw.parent / "VideoDemographics.csv"):
        if not path.is_file():
            continue
        return {
            row["ActorID"]: {
                "age": row["Age"],
                "sex": row["Sex"].lower(),
                "race": row["Race"].lower(),
                "ethnicity": row["Ethnicity"].lower(),
            }
            for _, row in read_csv(path, ("ActorID", "Age", "Sex", "Race", "Ethnicity"))
        }
    return {}


def readme_entry(corpus: str, what: str) -> str:
    """Return what follows ``what``, such as ``Licence:``, in a corpus's README; empty where it says nothing of it."""
    path = PROJECT / "data" / corpus / "README.md"
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(what)[2].strip() for line in lines if what in line), "")


def licence(corpus: str) -> str:
    """Return the licence or the terms of a corpus's recordings, as its README states them."""
    stated = readme_entry(corpus, "Licence:") or readme_entry(corpus, "Terms:")
    return f"{corpus}: {stated or 'licence not known here; ask who made the recordings'}"
