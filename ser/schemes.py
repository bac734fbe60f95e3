"""Split schemes: our own, and the published ones.

Every scheme covers the *official* list of a corpus, so that missing clips change neither split nor hash.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ser.corpora import Fields, corpus_named
from ser.errors import UserError, nearest
from ser.splits import PARTS, UNUSED, Split, published, schemes

__all__ = ["FEWEST", "make_split", "official_clips"]

FEWEST = 3  # speakers that a scheme needs
MANY = 10_000  # speakers above which a twentieth of the seeds is tried
CANDIDATES = 200  # seeds tried for the schemes of our own
HELD_OUT = 0.1  # share of the speakers in each of the validation and test parts of `holdout`
KFOLD = re.compile(r"kfold([3-9]|[1-9][0-9])")
CAVEAT = "independent of the speaker, not of the text: every part repeats the corpus's statements"


def make_split(corpus: str, scheme: str, at_hand: Sequence[Fields] = ()) -> Split:
    """Compute a scheme over the official list of ``corpus``, or over the clips at hand where it has none.

    Args:
        corpus: its name.
        scheme: one of ``schemes(corpus)``, or ``kfold<k>`` for any k from 3.
        at_hand: the clips, for a corpus without an official list.

    Raises:
        UserError: an unknown corpus or scheme.
    """
    listed = official_clips(corpus)
    official = listed or [clip if clip["speaker"] else one_speaker(clip) for clip in at_hand]
    speakers_at_hand = len({clip["speaker"] for clip in official})
    if speakers_at_hand < FEWEST:
        raise UserError(f"{corpus}: fewer than {FEWEST} speakers at hand; no part could be held out")
    unknown = 0 if listed else sum(not clip["speaker"] for clip in at_hand)
    note = f"{unknown} clips without a speaker, split one by one: a person may be in several parts" if unknown else ""
    if scheme == "holdout":
        source = "GroupShuffleSplit 80/10/10 by speaker"
        return by_speaker(corpus, scheme, "part", official, holdout(official), source, note)
    if scheme == "holdout_text":
        return speaker_and_text(corpus, official)
    if folds := KFOLD.fullmatch(scheme):
        if speakers_at_hand < int(folds[1]):
            raise UserError(f"{corpus}: fewer than {folds[1]} speakers at hand, so no {scheme}; choose fewer folds")
        groups = kfold(official, int(folds[1]))
        return by_speaker(corpus, scheme, "fold", official, groups, f"{folds[1]} folds by speaker", note)
    scheme_file = published(corpus, scheme)
    if not scheme_file:
        raise UserError(f"scheme '{scheme}' is not one of {corpus}'s{nearest(scheme, schemes(corpus))}")
    source, note = scheme_file["source"], scheme_file.get("note", "")
    if "test_clips" in scheme_file:
        of = by_clip([clip["clip"] for clip in official], set(scheme_file["test_clips"]))
        return Split(corpus, scheme, "part", of, scheme_file["speaker_independent"], source, note)
    column = "fold" if "folds" in scheme_file else "part"
    speakers = {speaker: group for group, members in scheme_file[f"{column}s"].items() for speaker in members}
    return by_speaker(corpus, scheme, column, official, speakers, source, note)


def one_speaker(clip: Fields) -> Fields:
    """Let a clip whose speaker is unknown be split by itself; its figures are tagged."""
    return {**clip, "speaker": f"clip {clip['clip']}"}


def by_clip(clips: Sequence[str], test: set[str]) -> dict[str, str]:
    """Return clip -> part for a published list of test clips; every tenth of the others, sorted, validates."""
    rest = sorted(set(clips) - test)
    return dict.fromkeys(test, "test") | {
        clip: "val" if number % 10 == 9 else "train" for number, clip in enumerate(rest)
    }


def by_speaker(
    corpus: str,
    scheme: str,
    column: str,
    official: Sequence[Fields],
    group_of: Mapping[str, str],
    source: str,
    note: str = "",
) -> Split:
    """Give every clip the group of its speaker."""
    of = {clip["clip"]: group_of[clip["speaker"]] for clip in official}
    return Split(corpus, scheme, column, of, True, source, note or CAVEAT)


def official_clips(corpus: str) -> list[Fields]:
    """Return the fields that the names of the official list tell."""
    entry = corpus_named(corpus)
    parsed = (entry.parse(name) for name in entry.official())
    return [clip for clip in parsed if clip is not None]


def holdout(clips: Sequence[Fields]) -> dict[str, str]:
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


def kfold(clips: Sequence[Fields], folds: int) -> dict[str, str]:
    """Return speaker -> fold "1".."k", of sizes as equal as can be; the best of ``CANDIDATES`` shuffles."""
    names, counts = speaker_table(clips)

    def assign(seed: int) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(len(names))
        fold = np.empty(len(names), dtype=int)
        fold[order] = np.arange(len(names)) % folds
        return fold

    fold = best_assignment(counts, assign, groups=folds)
    return {name: str(index + 1) for name, index in zip(names, fold, strict=True)}


def speaker_and_text(corpus: str, official: Sequence[Fields]) -> Split:
    """Split by speaker *and* statement: no part shares either with the training part.

    Speakers are those of ``holdout``. A fifth of the statements is held out from training; where there are
    enough of them (four), validation and test share none either. Other combinations are left unused.
    """
    speakers = holdout(official)
    statements = sorted({clip["statement"] for clip in official} - {""})
    if len(statements) < 2:
        raise UserError(f"{corpus}: fewer than two statements are known, so none can be held out")
    order = np.random.default_rng(0).permutation(len(statements)).tolist()
    held = max(1, round(len(statements) / 5))
    test = {statements[index] for index in order[:held]}
    val = {statements[index] for index in order[held : 2 * held]} if len(statements) >= 4 else test
    texts = {"test": test, "val": val, "train": set(statements) - test - val}
    of = {
        clip["clip"]: part if clip["statement"] in texts[part := speakers[clip["speaker"]]] else UNUSED
        for clip in official
    }
    shown = "; ".join(f"{part} {' '.join(sorted(texts[part]))}" for part in PARTS)
    return Split(
        corpus, "holdout_text", "part", of, True, "speakers of holdout, other statements", f"statements: {shown}"
    )


def speaker_table(clips: Sequence[Fields]) -> tuple[list[str], np.ndarray]:
    """Return the sorted speakers and their counts [S, classes + sexes]."""
    cells = Counter((clip["speaker"], clip["emotion"], clip["sex"]) for clip in clips)
    names, emotions, sexes = (sorted({cell[place] for cell in cells}) for place in range(3))
    row, emotion, sex = ({value: number for number, value in enumerate(values)} for values in (names, emotions, sexes))
    counts = np.zeros((len(names), len(emotions) + len(sexes)))
    for (speaker, which, whose), count in cells.items():
        counts[row[speaker], emotion[which]] += count
        counts[row[speaker], len(emotions) + sex[whose]] += count
    return names, counts


def best_assignment(counts: np.ndarray, assign: Callable[[int], np.ndarray], groups: int) -> np.ndarray:
    """Return the assignment [S] whose groups' proportions stray least from the whole's."""
    whole = counts.sum(0) / counts.sum()

    def deviation(seed: int) -> float:
        group = assign(seed)
        sums = np.stack([counts[group == number].sum(0) for number in range(groups)])
        return float(np.abs(sums / sums.sum(1, keepdims=True) - whole).max())

    # Among very many speakers the shuffles differ little, and each costs more.
    candidates = CANDIDATES if len(counts) <= MANY else CANDIDATES // 20
    deviations = [round(deviation(seed), 12) for seed in range(candidates)]
    return assign(int(np.argmin(deviations)))
