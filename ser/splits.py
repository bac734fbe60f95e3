"""Splits as they lie on disk: parts and folds, leak checks, split hash.

Every scheme covers the *official* list of a corpus, so that missing clips change neither split nor hash.
"""

import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ser.errors import UserError, nearest, some
from ser.files import PROJECT, corpus_folder, read_csv, read_json, write_csv
from ser.metadata import Clip, metadata_path, read_sound_hashes, unprepared

__all__ = [
    "PARTS",
    "UNUSED",
    "Split",
    "check_leaks",
    "check_same_sound",
    "evaluation_name",
    "parts_of",
    "published",
    "read_split",
    "schemes",
    "select",
    "split_path",
    "summary",
    "write_split",
]

PARTS = ("train", "val", "test")
UNUSED = "unused"  # part of the clips that a scheme leaves out
OWN_SCHEMES = ("holdout", "holdout_text", "kfold5")
FOLD = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class Split:
    """A scheme: which part, or which fold, every official clip is in.

    Attributes:
        corpus: its name.
        scheme: its name.
        column: ``part`` for a fixed scheme, ``fold`` for a scheme of folds.
        of: clip -> part name or fold number as text.
        speaker_independent: no speaker is in two parts; the published schemes of which this is not true are
            loadable for comparison, and every figure made with them carries the tag.
        source: where the scheme comes from.
        note: what a reader of its figures should know.
    """

    corpus: str
    scheme: str
    column: str
    of: Mapping[str, str]
    speaker_independent: bool = True
    source: str = ""
    note: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the sorted ``clip,part`` lines, LF endings, no header."""
        lines = "".join(f"{clip},{self.of[clip]}\n" for clip in sorted(self.of))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def folds(self) -> int:
        """Number of folds; 0 for a fixed scheme."""
        return len(set(self.of.values())) if self.column == "fold" else 0


def schemes(corpus: str) -> list[str]:
    """Return the schemes that ``prepare`` makes of ``corpus``: our own, then the published ones."""
    own = OWN_SCHEMES if corpus != "custom" else ("holdout",)  # whose statements and speakers may be few
    return [*own, *sorted(path.stem for path in scheme_folder(corpus).glob("*.json"))]


def published(corpus: str, scheme: str) -> dict:
    """Return a published scheme as it stands in ``data/<corpus>/schemes/``, or an empty dictionary."""
    path = scheme_folder(corpus) / f"{scheme}.json"
    return read_json(path) if path.is_file() else {}


def scheme_folder(corpus: str) -> Path:
    """Return the folder of published schemes, which travels with the code."""
    return PROJECT / "data" / corpus / "schemes"


def split_path(corpus: str, scheme: str) -> Path:
    """Return ``data/<corpus>/splits/<scheme>.csv``."""
    return corpus_folder(corpus) / "splits" / f"{scheme}.csv"


def write_split(split: Split) -> Path:
    """Write ``clip,part`` or ``clip,fold`` sorted by clip; return the path. A file that differs is kept as ``.old``."""
    path = split_path(split.corpus, split.scheme)
    if path.is_file() and not is_written(split, path):
        kept = path.with_name(f"{path.name}.old")
        shutil.copyfile(path, kept)
        note(f"{path.name} was another one, now kept as {kept}")
    write_csv(path, ("clip", split.column), sorted(split.of.items()))
    return path


def is_written(split: Split, path: Path) -> bool:
    """Say whether a file holds a split."""
    with suppress(UserError):
        rows = [row for _, row in read_csv(path, ("clip", split.column))]
        return {row["clip"]: row[split.column] for row in rows} == dict(split.of)
    return False


def read_split(corpus: str, scheme: str) -> Split:
    """Read a split file, as written or as edited by its user.

    Raises:
        UserError: no such file, a wrong header, a clip twice, or an unknown part.
    """
    path = split_path(corpus, scheme)
    if not path.is_file():
        if scheme in schemes(corpus) and not metadata_path(corpus).is_file():
            raise unprepared(corpus)
        hint = f"; run: just split {corpus} {scheme}" if scheme in schemes(corpus) else nearest(scheme, schemes(corpus))
        raise UserError(f"{path}: no such split{hint}")
    header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0].strip()
    column = "fold" if header == "clip,fold" else "part"
    of: dict[str, str] = {}
    for line, row in read_csv(path, ("clip", column)):
        if row["clip"] in of:
            raise UserError(f"{path}: line {line}: clip '{row['clip']}' appears twice")
        good = FOLD.fullmatch(row[column]) if column == "fold" else row[column] in (*PARTS, UNUSED)
        if not good:
            expected = "a fold number" if column == "fold" else ", ".join((*PARTS, UNUSED))
            raise UserError(f"{path}: line {line}: {column} '{row[column]}'; expected {expected}")
        of[row["clip"]] = row[column]
    split = Split(corpus, scheme, column, of, published(corpus, scheme).get("speaker_independent", True))
    if gaps := [number for number in range(1, split.folds + 1) if str(number) not in of.values()]:
        raise UserError(
            f"{path}: {split.folds} folds, but none is numbered {some(gaps)}; number them from 1 without gaps"
        )
    return split


def evaluation_name(corpus: str, scheme: str, part: str) -> str:
    """Name the evaluation of a part, as ``ravdess-emobox6-test``: its folder, and what scorings are counted by."""
    return f"{corpus}-{scheme}-{part}"


def parts_of(split: Split, fold: int | None) -> dict[str, str]:
    """Return clip -> train, val or test.

    For a scheme of folds, fold k tests, fold k + 1 (cyclic) validates and the rest trains.

    Raises:
        UserError: a fold is missing, superfluous or out of range.
    """
    if split.column == "part":
        if fold is not None:
            raise UserError(f"scheme '{split.scheme}' has no folds; set 'split/fold = None' (it is {fold})")
        return dict(split.of)
    folds = split.folds
    if fold is None or not 1 <= fold <= folds:
        raise UserError(f"scheme '{split.scheme}' has folds 1 to {folds}; set 'split/fold = 1' (it is {fold})")
    following = str(fold % folds + 1)
    names = {str(fold): "test", following: "val"}
    return {clip: names.get(number, "train") for clip, number in split.of.items()}


def select(
    clips: Sequence[Clip], part_of: Mapping[str, str], where: str, speaker_independent: bool = True
) -> dict[str, list[Clip]]:
    """Sort the clips at hand into their parts and see that no speaker is in two.

    Args:
        clips: at hand.
        part_of: clip -> part, of ``parts_of``.
        where: names the split in messages.
        speaker_independent: False only for a scheme that is known to share its speakers.

    Raises:
        UserError: a clip that the split does not hold, or a leaking speaker.
    """
    unknown = [clip.clip for clip in clips if clip.clip not in part_of]
    if unknown:
        corpus, scheme = next(clip.corpus for clip in clips), Path(where).stem
        again = f"make it again: just split {corpus} {scheme}"
        if scheme not in schemes(corpus):
            again = f"add them to it; the part '{UNUSED}' leaves a clip out"
        raise UserError(f"{where}: {len(unknown)} clips of the metadata are in no part: {some(unknown)}; {again}")
    parts: dict[str, list[Clip]] = {part: [] for part in PARTS}
    for clip in clips:
        if part_of[clip.clip] != UNUSED:
            parts[part_of[clip.clip]].append(clip)
    if speaker_independent:
        known = {part: (clip.speaker for clip in members if clip.speaker) for part, members in parts.items()}
        check_leaks(known, where)
    return parts


def check_leaks(speakers: Mapping[str, Iterable[str]], where: str) -> None:
    """Raise a UserError that names every speaker who is in more than one part."""
    found: dict[str, list[str]] = {}
    for part, names in speakers.items():
        for name in set(names):
            found.setdefault(name, []).append(part)
    leaking = [f"{name} ({' and '.join(parts)})" for name, parts in sorted(found.items()) if len(parts) > 1]
    if leaking:
        raise UserError(
            f"{where}: speakers in more than one part: {some(leaking)}; "
            "a figure made with it would not be speaker-independent: fix the split"
        )


@cache
def note(text: str) -> None:
    """Say something on stderr, once."""
    print(f"note: {text}", file=sys.stderr)


def check_same_sound(parts: Mapping[str, Sequence[Clip]], where: str, remedy: str) -> None:
    """Raise a UserError where one recording is in two parts, whatever its names and speakers.

    Args:
        parts: clips by part, of any corpora; those whose samples are not known are passed over, which is said.
        where: names the split in messages.
        remedy: what to do, for the message.
    """
    sound = {
        corpus: read_sound_hashes(corpus) for corpus in {clip.corpus for clips in parts.values() for clip in clips}
    }
    every = [clip for clips in parts.values() for clip in clips]
    unheard = Counter(clip.corpus for clip in every if clip.clip not in sound[clip.corpus])
    if unheard and os.environ.get("RANK", "0") == "0":
        again = " and ".join(f"just verify {corpus}" for corpus in sorted(unheard))
        note(
            f"{sum(unheard.values())} of {len(every)} clips were not compared with the others, whether they are the "
            f"same recording ({where}); run: {again}"
        )
    first: dict[str, tuple[str, str]] = {}
    found = []
    for part, clips in parts.items():
        for clip in clips:
            if content := sound[clip.corpus].get(clip.clip):
                other, name = first.setdefault(content, (part, clip.clip))
                if other != part:
                    found.append(f"{name} ({other}) and {clip.clip} ({part})")
    if found:
        raise UserError(
            f"{where}: the same recording in two parts: {some(found, 3)}; a figure made with it would be of what was "
            f"trained on: {remedy}"
        )


def summary(split: Split, speaker_of: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Return (part or fold, clips, known speakers) of each group of a split."""
    clips = Counter(split.of.values())
    speakers: dict[str, set[str]] = {}
    for clip, group in split.of.items():
        if speaker_of[clip]:
            speakers.setdefault(group, set()).add(speaker_of[clip])
    order = (*PARTS, UNUSED) if split.column == "part" else sorted(clips, key=int)
    return [(group, clips[group], len(speakers.get(group, ()))) for group in order if group in clips]
