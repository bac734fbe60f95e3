"""Speaker-independent splits: own schemes, published schemes, leak checks, split hash.

Every scheme covers the *official* list of a corpus, so that missing clips change neither split nor hash.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ser.corpora import corpus as corpus_named
from ser.errors import UserError, nearest, some
from ser.files import PROJECT, corpus_folder, read_csv, read_json, write_csv
from ser.labels import label_set
from ser.metadata import Clip

__all__ = ["PARTS", "Split", "check_leaks", "make_split", "parts_of", "read_split", "schemes", "select", "write_split"]

PARTS = ("train", "val", "test")
CANDIDATES = 200  # seeds tried for the schemes of our own
HELD_OUT = 0.1  # share of the speakers in each of the validation and test parts of `holdout`
FOLD = re.compile(r"[1-9][0-9]*")
OWN_SCHEMES = ("holdout", "kfold5")


@dataclass(frozen=True)
class Split:
    """A scheme: which part, or which fold, every official clip is in.

    Attributes:
        corpus: its name.
        scheme: its name.
        column: ``part`` for a fixed scheme, ``fold`` for a scheme of folds.
        of: clip -> part name or fold number as text.
        source: where the scheme comes from.
        note: what a reader of its figures should know.
    """

    corpus: str
    scheme: str
    column: str
    of: Mapping[str, str]
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
    """Return the schemes that ``corpus`` has: our own, then the published ones."""
    published = sorted(path.stem for path in scheme_folder(corpus).glob("*.json"))
    return [*OWN_SCHEMES, *published]


def scheme_folder(corpus: str) -> Path:
    """Return the folder of published schemes, which travels with the code."""
    return PROJECT / "data" / corpus / "schemes"


def make_split(corpus: str, scheme: str) -> Split:
    """Compute a scheme over the official list of ``corpus``.

    Raises:
        UserError: an unknown corpus or scheme.
    """
    official = official_clips(corpus)
    if scheme not in schemes(corpus):
        raise UserError(f"scheme '{scheme}' is not one of {corpus}'s{nearest(scheme, schemes(corpus))}")
    if scheme == "holdout":
        return by_speaker(corpus, scheme, "part", official, holdout(official), "GroupShuffleSplit 80/10/10 by speaker")
    if scheme == "kfold5":
        return by_speaker(corpus, scheme, "fold", official, kfold(official, 5), "5 folds by speaker")
    published = read_json(scheme_folder(corpus) / f"{scheme}.json")
    column = "fold" if "folds" in published else "part"
    groups = published[f"{column}s"]
    speakers = {speaker: group for group, members in groups.items() for speaker in members}
    return by_speaker(corpus, scheme, column, official, speakers, published["source"], published.get("note", ""))


def by_speaker(
    corpus: str,
    scheme: str,
    column: str,
    official: Sequence[dict[str, str]],
    group_of: Mapping[str, str],
    source: str,
    note: str = "",
) -> Split:
    """Give every clip the group of its speaker."""
    return Split(corpus, scheme, column, {clip["clip"]: group_of[clip["speaker"]] for clip in official}, source, note)


def official_clips(corpus: str) -> list[dict[str, str]]:
    """Return the fields that the names of the official list tell."""
    entry = corpus_named(corpus)
    parsed = (entry.parse(name) for name in entry.official())
    return [clip for clip in parsed if clip is not None]


def holdout(clips: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return speaker -> part: nested group shuffles, 80/10/10, the best of ``CANDIDATES`` seeds.

    Best is the smallest largest deviation of a part's class and sex proportions from the whole corpus's;
    a tie goes to the lowest seed.
    """
    from sklearn.model_selection import ShuffleSplit

    names, counts = speaker_table(clips)

    def assign(seed: int) -> np.ndarray:
        # GroupShuffleSplit shuffles the sorted unique groups; with one row a speaker ShuffleSplit is the same.
        part = np.zeros(len(names), dtype=int)
        rest, test = next(ShuffleSplit(1, test_size=HELD_OUT, random_state=seed).split(names))
        rest = np.sort(rest)
        inner = ShuffleSplit(1, test_size=HELD_OUT / (1 - HELD_OUT), random_state=seed)
        _, val = next(inner.split(rest))
        part[test], part[rest[val]] = 2, 1
        return part

    part = best_assignment(counts, assign, groups=3)
    return {name: PARTS[index] for name, index in zip(names, part, strict=True)}


def kfold(clips: Sequence[dict[str, str]], folds: int) -> dict[str, str]:
    """Return speaker -> fold "1".."k", of sizes as equal as can be; the best of ``CANDIDATES`` shuffles."""
    names, counts = speaker_table(clips)

    def assign(seed: int) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(len(names))
        fold = np.empty(len(names), dtype=int)
        fold[order] = np.arange(len(names)) % folds
        return fold

    fold = best_assignment(counts, assign, groups=folds)
    return {name: str(index + 1) for name, index in zip(names, fold, strict=True)}


def speaker_table(clips: Sequence[dict[str, str]]) -> tuple[list[str], np.ndarray]:
    """Return the sorted speakers and their counts [S, classes + sexes]."""
    columns = sorted({clip["emotion"] for clip in clips}) + sorted({clip["sex"] for clip in clips})
    index = {column: number for number, column in enumerate(columns)}
    names = sorted({clip["speaker"] for clip in clips})
    row = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(columns)))
    for clip in clips:
        counts[row[clip["speaker"]], [index[clip["emotion"]], index[clip["sex"]]]] += 1
    return names, counts


def best_assignment(counts: np.ndarray, assign, groups: int) -> np.ndarray:
    """Return the assignment [S] whose groups' proportions stray least from the whole's."""
    whole = counts.sum(0) / counts.sum()

    def deviation(seed: int) -> float:
        group = assign(seed)
        sums = np.stack([counts[group == number].sum(0) for number in range(groups)])
        return float(np.abs(sums / sums.sum(1, keepdims=True) - whole).max())

    deviations = [round(deviation(seed), 12) for seed in range(CANDIDATES)]
    return assign(int(np.argmin(deviations)))


def split_path(corpus: str, scheme: str) -> Path:
    """Return ``data/<corpus>/splits/<scheme>.csv``."""
    return corpus_folder(corpus) / "splits" / f"{scheme}.csv"


def write_split(split: Split) -> Path:
    """Write ``clip,part`` or ``clip,fold`` sorted by clip; return the path."""
    path = split_path(split.corpus, split.scheme)
    rows = ({"clip": clip, split.column: split.of[clip]} for clip in sorted(split.of))
    write_csv(path, ("clip", split.column), rows)
    return path


def read_split(corpus: str, scheme: str) -> Split:
    """Read a split file, as written or as edited by its user.

    Raises:
        UserError: no such file, a wrong header, a clip twice, or an unknown part.
    """
    path = split_path(corpus, scheme)
    if not path.is_file():
        known = schemes(corpus)
        hint = "" if scheme in known else nearest(scheme, known)
        raise UserError(f"{path}: no such split{hint or f'; run: just split {corpus} {scheme}'}")
    header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0].strip()
    column = "fold" if header == "clip,fold" else "part"
    of: dict[str, str] = {}
    for line, row in read_csv(path, ("clip", column)):
        if row["clip"] in of:
            raise UserError(f"{path}: line {line}: clip '{row['clip']}' stands twice")
        good = FOLD.fullmatch(row[column]) if column == "fold" else row[column] in PARTS
        if not good:
            expected = "a fold number" if column == "fold" else ", ".join(PARTS)
            raise UserError(f"{path}: line {line}: {column} '{row[column]}'; expected {expected}")
        of[row["clip"]] = row[column]
    split = Split(corpus, scheme, column, of)
    if gaps := [number for number in range(1, split.folds + 1) if str(number) not in of.values()]:
        raise UserError(
            f"{path}: {split.folds} folds, but none is numbered {some(gaps)}; number them from 1 without gaps"
        )
    return split


def parts_of(split: Split, fold: int | None) -> dict[str, str]:
    """Return clip -> train, val or test.

    For a scheme of folds, fold k tests, fold k + 1 (cyclic) validates and the rest trains.

    Raises:
        UserError: a fold is missing, superfluous or out of range.
    """
    if split.column == "part":
        if fold is not None:
            raise UserError(f"scheme '{split.scheme}' has no folds; remove split/fold (it is {fold})")
        return dict(split.of)
    folds = split.folds
    if fold is None or not 1 <= fold <= folds:
        raise UserError(f"scheme '{split.scheme}' has folds 1 to {folds}; set 'split/fold = 1' (it is {fold})")
    following = str(fold % folds + 1)
    names = {str(fold): "test", following: "val"}
    return {clip: names.get(number, "train") for clip, number in split.of.items()}


def select(clips: Sequence[Clip], part_of: Mapping[str, str], where: str) -> dict[str, list[Clip]]:
    """Sort the clips at hand into their parts and see that no speaker is in two.

    Raises:
        UserError: a clip that the split does not hold, or a leaking speaker; ``where`` names the split.
    """
    unknown = [clip.clip for clip in clips if clip.clip not in part_of]
    if unknown:
        raise UserError(f"{where}: {len(unknown)} clips of the metadata are in no part: {some(unknown)}")
    parts: dict[str, list[Clip]] = {part: [] for part in PARTS}
    for clip in clips:
        parts[part_of[clip.clip]].append(clip)
    check_leaks({part: (clip.speaker for clip in members) for part, members in parts.items()}, where)
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
            "a figure made with it would not be speaker-independent: mend the split"
        )


def summary(split: Split) -> list[tuple[str, int, int]]:
    """Return (part or fold, clips, speakers) of each group of a split."""
    parse = corpus_named(split.corpus).parse
    clips = Counter(split.of.values())
    speakers: dict[str, set[str]] = {}
    for clip, group in split.of.items():
        fields = parse(clip)
        speakers.setdefault(group, set()).add(fields["speaker"] if fields else "")
    order = PARTS if split.column == "part" else sorted(clips, key=int)
    return [(group, clips[group], len(speakers.get(group, ()))) for group in order if group in clips]


def class_counts(clips: Iterable[Clip], corpus: str) -> list[int]:
    """Count the clips of each class, in the order of the corpus's label set."""
    counts = Counter(clip.emotion for clip in clips)
    return [counts[label] for label in label_set(corpus)]
