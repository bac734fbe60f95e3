"""The table of clips, ``data/<corpus>/metadata.csv``: read, write, validate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from ser.errors import UserError, nearest, some
from ser.files import corpus_folder, mark_of, read_csv, read_json, sha256_of, write_csv, write_json
from ser.labels import label_set

__all__ = [
    "COLUMNS",
    "Clip",
    "Table",
    "clips_at_hand",
    "metadata_path",
    "prepare_command",
    "raw_folder",
    "read_sound_hashes",
    "read_table",
    "remember_raw",
    "same_sound",
    "sound_facts",
    "store_sound_hashes",
    "unprepared",
    "write_table",
]

FETCHED = ("crema_d", "emodb", "ravdess")  # corpora that `just download` has


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance. Text fields are empty where a corpus does not tell."""

    path: str  # relative to the raw folder
    speaker: str
    emotion: str  # one of labels.EMOTIONS
    intensity: str  # CREMA-D: low medium high unspecified; RAVDESS: normal strong
    split: str  # part in the scheme `holdout`: train val test
    corpus: str
    clip: str  # file name without its ending
    sex: str  # female male
    age: str  # years
    race: str
    ethnicity: str
    statement: str
    repetition: str
    seconds: float
    sample_rate: int  # Hz, of the file
    channels: int  # of the file


COLUMNS = tuple(field.name for field in fields(Clip))
in_order = itemgetter(*COLUMNS)


@dataclass(frozen=True)
class Table:
    """The clips of a corpus that are at hand, and where their sound lies."""

    corpus: str
    raw: Path  # a folder; for a custom corpus its table
    clips: tuple[Clip, ...]
    missing: int  # official clips that are not at hand

    def sound_path(self, clip: Clip) -> Path:
        """Return the path of a clip's sound file."""
        return (self.raw.parent if self.corpus == "custom" else self.raw) / clip.path


def metadata_path(corpus: str) -> Path:
    """Return ``data/<corpus>/metadata.csv``."""
    return corpus_folder(corpus) / "metadata.csv"


def raw_folder(corpus: str) -> Path:
    """Return the raw folder that the corpus was prepared from, or ``data/<corpus>/raw`` before that.

    Raises:
        UserError: the folder is gone.
    """
    local = corpus_folder(corpus) / "local.json"
    folder = Path(read_local(corpus)["raw"]) if local.is_file() else corpus_folder(corpus) / "raw"
    if not folder.exists():
        fetched = f", or fetch them: just download {corpus}" if corpus in FETCHED else ""
        where = f"say where they are: {prepare_command(corpus)}"
        raise UserError(f"{folder}: no raw recordings of {corpus} here; {where}{fetched}")
    return folder


def prepare_command(corpus: str, recipe: str = "prepare") -> str:
    """Return the command that prepares a corpus, or makes its ``metadata`` anew; the demo makes its own recordings."""
    raw = {"demo": "", "custom": "raw=TABLE.csv "}.get(corpus, "raw=PATH ")
    return f"just {raw}{recipe} {corpus}"


def unprepared(corpus: str) -> UserError:
    """Say in one line that a corpus has no table yet, and how it gets one."""
    fetched = f", or fetch it first: just download {corpus}" if corpus in FETCHED else ""
    return UserError(f"{metadata_path(corpus)}: {corpus} is not prepared yet; run: {prepare_command(corpus)}{fetched}")


def read_local(corpus: str) -> dict[str, Any]:
    """Read ``data/<corpus>/local.json``: where the recordings lie, and how many official clips are missing."""
    path = corpus_folder(corpus) / "local.json"
    local = read_json(path)
    good = isinstance(local, dict) and isinstance(local.get("raw"), str) and isinstance(local.get("missing"), int)
    if not good:
        raise UserError(
            f"{path}: expected raw (text) and missing (number); make it again: {prepare_command(corpus, 'metadata')}"
        )
    return local


def remember_raw(corpus: str, raw: Path, missing: int) -> None:
    """Remember on this machine where the recordings (or the table of a custom corpus) lie, and what is missing."""
    local = {"raw": str(raw.absolute()), "missing": missing}
    if raw.is_file():
        local["table_sha256"] = sha256_of(raw)
    write_json(corpus_folder(corpus) / "local.json", local)


def store_sound_hashes(corpus: str, raw: Path, sound: Mapping[str, str]) -> None:
    """Keep a hash of each clip's decoded samples in ``data/<corpus>/sound.json``, by where the recordings lie."""
    path = corpus_folder(corpus) / "sound.json"
    try:
        known = read_json(path) if path.is_file() else {}
    except UserError:  # damaged: it can be made again
        known = {}
    others = known if isinstance(known, dict) else {}
    write_json(path, others | {str(raw.absolute()): dict(sorted(sound.items()))})


def read_sound_hashes(corpus: str) -> dict[str, str]:
    """Return clip -> hash of its decoded samples, as ``verify`` found them where the recordings lie; empty before.

    Raises:
        UserError: a damaged file.
    """
    path = corpus_folder(corpus) / "sound.json"
    if not path.is_file() or not (corpus_folder(corpus) / "local.json").is_file():
        return {}
    content = read_json(path)
    sound = content.get(read_local(corpus)["raw"], {}) if isinstance(content, dict) else None
    if not isinstance(sound, dict) or not all(isinstance(content, str) for content in sound.values()):
        raise UserError(
            f"{path}: expected hashes by folder and clip; remove it, and make it again: just verify {corpus}"
        )
    return sound


def sound_facts(table: Table, clips: Iterable[Clip]) -> dict[str, str | None]:
    """Return digests by which it is told whether clips still have the same sound.

    ``samples`` is of what ``verify`` heard, ``sizes`` of the sizes of the files; None where not all of them are known,
    or a file was written after it was heard.
    """
    hashes, ordered = read_sound_hashes(table.corpus), sorted(clips, key=attrgetter("clip"))
    marks = [mark_of(table.sound_path(clip)) for clip in ordered]
    heard = (mark_of(corpus_folder(table.corpus) / "sound.json") or [0, 0])[1]
    samples = [None if mark and mark[1] > heard else hashes.get(c.clip) for c, mark in zip(ordered, marks, strict=True)]
    sizes = [mark[0] if mark else None for mark in marks]
    return {"samples": digest_of(ordered, samples), "sizes": digest_of(ordered, sizes)}


def digest_of(clips: Sequence[Clip], values: Sequence[Any]) -> str | None:
    """Return the SHA-256 of clips and what is known of each, or None where of one nothing is."""
    lines = "".join(f"{clip.clip} {value}\n" for clip, value in zip(clips, values, strict=True))
    return None if None in values else sha256(lines.encode()).hexdigest()


def same_sound(then: Any, now: Mapping[str, Any]) -> bool:
    """Say whether two ``sound_facts`` are of the same sound; what one of them does not know is not compared.

    Samples decide where both know them: a file may be stored otherwise and sound the same.
    """
    for name in ("samples", "sizes"):
        if isinstance(then, Mapping) and then.get(name) and now.get(name):
            return then[name] == now[name]
    return True


def write_table(corpus: str, clips: Sequence[Clip]) -> Path:
    """Validate and write the metadata of a corpus, sorted by clip; return its path."""
    validate(metadata_path(corpus), corpus, clips)
    texts = attrgetter(*COLUMNS[:-3])
    ordered = sorted(clips, key=attrgetter("clip"))
    rows = ((*texts(clip), round(clip.seconds, 4), clip.sample_rate, clip.channels) for clip in ordered)
    write_csv(metadata_path(corpus), COLUMNS, rows)
    return metadata_path(corpus)


def read_table(corpus: str, check_files: bool = False) -> Table:
    """Read ``data/<corpus>/metadata.csv``.

    Args:
        corpus: its name.
        check_files: also see that every sound file is there.

    Raises:
        UserError: no metadata yet, a malformed or contradictory row, or (``check_files``) a file that is gone.
    """
    label_set(corpus)  # an unknown corpus is named before any path of it
    path = metadata_path(corpus)
    if not path.is_file():
        raise unprepared(corpus)
    clips = [parse_row(path, line, row) for line, row in read_csv(path, COLUMNS)]
    validate(path, corpus, clips)
    local = read_local(corpus)
    table = Table(corpus, raw_folder(corpus), tuple(clips), local["missing"])
    if table.raw.is_file() and local.get("table_sha256", now := sha256_of(table.raw)) != now:
        raise UserError(f"{table.raw}: has changed since {path} was made of it; run: just prepare {corpus}")
    if check_files:
        gone = [clip.path for clip in table.clips if not table.sound_path(clip).is_file()]
        if gone:
            raise UserError(
                f"{path}: {len(gone)} rows whose sound file is gone from {table.raw}: {some(gone)}; "
                f"bring them back or run again: {prepare_command(corpus, 'metadata')}"
            )
    return table


def clips_at_hand(corpora: Iterable[str]) -> list[Clip]:
    """Return the clips of those corpora that are prepared on this machine."""
    return [clip for corpus in corpora if metadata_path(corpus).is_file() for clip in read_table(corpus).clips]


def parse_row(path: Path, line: int, row: dict[str, str]) -> Clip:
    """Turn a row of text into a ``Clip``."""
    values: list[Any] = list(in_order(row))
    try:
        values[-3:] = float(row["seconds"]), int(row["sample_rate"]), int(row["channels"])
        return Clip(*values)
    except ValueError as error:
        raise UserError(f"{path}: line {line}: seconds, sample_rate and channels must be numbers ({error})") from error


def validate(path: Path, corpus: str, clips: Sequence[Clip]) -> None:
    """Raise a UserError for an empty table, a clip twice, an unknown emotion, or a path that climbs out."""
    if not clips:
        raise UserError(f"{path}: no clips of {corpus}; nothing to work on")
    known = label_set(corpus)
    seen: set[str] = set()
    for number, clip in enumerate(clips, start=2):
        if fault := fault_of(clip, corpus, known, seen):
            raise UserError(f"{path}: line {number}: clip '{clip.clip}'{fault}")
        seen.add(clip.clip)


def fault_of(clip: Clip, corpus: str, known: Sequence[str], seen: set[str]) -> str:
    """Say what is wrong with a row; empty where nothing is."""
    if clip.clip in seen:
        return " appears twice; keep one row of each clip"
    if clip.emotion not in known:
        return f": emotion '{clip.emotion}' is not of {corpus}{nearest(clip.emotion, known)}"
    if not clip.speaker and corpus != "custom":
        return ": the speaker is empty; speaker-independent figures need one"
    if clip.corpus != corpus:
        return f": corpus is '{clip.corpus}', expected '{corpus}'"
    if not 0 < clip.seconds < math.inf:
        return f": seconds is {clip.seconds}; expected a length above 0"
    if "/" in clip.clip or clip.clip in ("", ".", ".."):
        return ": the name holds a folder; expected a file name without its ending"
    if clip.path.startswith("/") or ".." in clip.path.split("/"):
        return f": path '{clip.path}' leaves the raw folder; expected one relative to it"
    return ""
