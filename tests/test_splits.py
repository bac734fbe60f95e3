"""Splits: no speaker in two parts, every official clip in one, and missing clips change nothing."""

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus_factory import FEWEST, clip_names, official_split
from hypothesis import given, settings
from hypothesis import strategies as st

from ser import splits
from ser.corpora import CORPORA, corpus_named
from ser.errors import UserError
from ser.files import PROJECT, read_json
from ser.labels import label_set
from ser.metadata import Clip
from ser.schemes import make_split
from ser.splits import PARTS, UNUSED, Split, check_leaks, parts_of, read_split, schemes, select, write_split

OWN = ["holdout", "holdout_text", "kfold5"]
LISTED = [name for name in CORPORA if corpus_named(name).official()]
EVERY = [(name, scheme) for name in LISTED for scheme in schemes(name)]


def summary(name: str, scheme: str) -> list[tuple[str, int, int]]:
    speakers = {clip: corpus_named(name).parse(clip)["speaker"] for clip in corpus_named(name).official()}
    return splits.summary(official_split(name, scheme), speakers)


def speakers_by_group(split: Split) -> dict[str, set[str]]:
    """Return part or fold -> its speakers."""
    parse = corpus_named(split.corpus).parse
    groups: dict[str, set[str]] = {}
    for clip, group in split.of.items():
        groups.setdefault(group, set()).add(parse(clip)["speaker"])
    return groups


def clip_of(name: str, corpus_name: str = "ravdess") -> Clip:
    """Return a row of the table, as far as splits look at it."""
    fields = corpus_named(corpus_name).parse(name)
    return Clip(
        path=f"{name}.wav", split="", corpus=corpus_name, age="", race="", ethnicity="", seconds=1.0,
        sample_rate=16000, channels=1, **fields,
    )  # fmt: skip


def test_the_schemes_of_each_corpus():
    assert {name: schemes(name) for name in CORPORA} == {
        "crema_d": [*OWN, "audeering", "emobox1", "emosuperb5", "peft_ser5", "tfds"],
        "custom": ["holdout"],
        "emodb": OWN,
        "demo": OWN,
        "ravdess": [*OWN, "audeering", "emobox6", "luna5"],
    }


@pytest.mark.parametrize(("name", "scheme"), EVERY)
def test_a_scheme_covers_every_official_clip_and_shares_no_speaker(name, scheme):
    split = official_split(name, scheme)
    assert set(split.of) == set(corpus_named(name).official())
    groups = speakers_by_group(split)
    unused = groups.pop(UNUSED, None)
    assert (unused is not None) == (scheme == "holdout_text")
    shared = sum(len(speakers) for speakers in groups.values()) > len(set.union(*groups.values()))
    assert shared == (not split.speaker_independent) == (scheme == "emobox1")
    if split.column == "part":
        assert set(groups) == set(PARTS)
        assert split.folds == 0
    else:
        assert set(groups) == {str(number) for number in range(1, split.folds + 1)}


@pytest.mark.parametrize(("name", "scheme"), EVERY)
def test_the_hash_is_of_the_sorted_lines(name, scheme):
    split = official_split(name, scheme)
    lines = sorted(f"{clip},{group}" for clip, group in split.of.items())
    assert split.sha256 == hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


@pytest.mark.parametrize(("name", "scheme"), EVERY)
def test_the_small_corpora_of_the_tests_reach_every_group(name, scheme):
    split = official_split(name, scheme)
    reached = {split.of[clip] for clip in clip_names(name)}
    assert reached == set(split.of.values()) or scheme == "holdout_text"
    assert {corpus_named(name).parse(clip)["speaker"] for clip in clip_names(name)} == set(FEWEST[name])


@pytest.mark.parametrize("name", LISTED)
def test_holdout_text_shares_neither_speaker_nor_statement_with_training(name):
    split, parse = official_split(name, "holdout_text"), corpus_named(name).parse
    statements = {part: {parse(clip)["statement"] for clip, p in split.of.items() if p == part} for part in PARTS}
    assert not statements["train"] & (statements["val"] | statements["test"])
    if name != "ravdess":  # which has two statements only
        assert not statements["val"] & statements["test"]
    holdout = official_split(name, "holdout").of
    assert all(part in (holdout[clip], UNUSED) for clip, part in split.of.items())


def test_published_parts_have_the_published_numbers_of_speakers():
    def speakers(name: str, scheme: str) -> list[int]:
        return [len(members) for _, members in sorted(speakers_by_group(official_split(name, scheme)).items())]

    assert speakers("crema_d", "audeering") == [17, 56, 18]  # test, train, val
    assert speakers("crema_d", "emosuperb5") == [18, 18, 18, 18, 19]
    assert speakers("crema_d", "peft_ser5") == [19, 18, 18, 18, 18]
    assert speakers("ravdess", "audeering") == [4, 16, 4]
    assert speakers("ravdess", "luna5") == [5, 5, 5, 5, 4]


@pytest.mark.skipif("SER_REAL_DATA" not in os.environ, reason="needs the published folds in $SER_REAL_DATA")
def test_emobox1_tests_exactly_the_published_clips():
    split = official_split("crema_d", "emobox1")
    with open(os.path.join(os.environ["SER_REAL_DATA"], "emobox_folds/cremad_fold_1.csv"), newline="") as file:
        published = {row["clip"]: row["part"] for row in csv.DictReader(file)}
    assert {clip for clip, part in split.of.items() if part == "test"} == {
        clip for clip, part in published.items() if part == "test"
    }
    assert published.keys() == split.of.keys()


def test_any_number_of_folds_from_three():
    split = make_split("ravdess", "kfold8")
    assert [len(members) for members in speakers_by_group(split).values()] == [3] * 8
    for scheme in ("kfold2", "kfold0", "kfold", "kfold1000"):
        with pytest.raises(UserError, match="is not one of ravdess's"):
            make_split("ravdess", scheme)


def test_a_split_is_the_same_whenever_it_is_made():
    np.random.seed(1)
    assert make_split("ravdess", "holdout") == official_split("ravdess", "holdout")
    assert make_split("ravdess", "kfold5").sha256 == official_split("ravdess", "kfold5").sha256


def slow_holdout(name: str) -> dict[str, str]:
    """Return speaker -> part by trying every seed on the rows of the clips themselves."""
    from sklearn.model_selection import GroupShuffleSplit

    clips = [corpus_named(name).parse(clip) for clip in corpus_named(name).official()]
    speakers = np.array(sorted({clip["speaker"] for clip in clips}))
    group = np.searchsorted(speakers, [clip["speaker"] for clip in clips])
    traits = [
        np.array([clip[field] == value for clip in clips])
        for field in ("emotion", "sex")
        for value in {clip[field] for clip in clips}
    ]

    def parts(seed: int) -> list[np.ndarray]:
        rest, test = next(GroupShuffleSplit(1, test_size=0.1, random_state=seed).split(group, groups=group))
        inner = GroupShuffleSplit(1, test_size=0.1 / (1 - 0.1), random_state=seed)
        train, val = next(inner.split(rest, groups=group[rest]))
        return [rest[train], rest[val], test]

    def largest_deviation(seed: int) -> float:
        return round(max(abs(has[part].mean() - has.mean()) for part in parts(seed) for has in traits), 9)

    best = min(range(200), key=largest_deviation)  # the first of equals
    return {
        str(speakers[number]): part
        for part, rows in zip(PARTS, parts(best), strict=True)
        for number in np.unique(group[rows])
    }


@pytest.mark.parametrize("name", LISTED)
def test_holdout_equals_a_slow_search_with_group_shuffle_split(name):
    split = official_split(name, "holdout")
    of = {corpus_named(name).parse(clip)["speaker"]: part for clip, part in split.of.items()}
    assert of == slow_holdout(name)


@pytest.mark.parametrize("name", LISTED)
def test_holdout_is_about_80_10_10_and_alike(name):
    split = official_split(name, "holdout")
    sizes = {part: len(speakers) for part, speakers in speakers_by_group(split).items()}
    everyone = sum(sizes.values())
    assert sizes["test"] == -(-everyone // 10)
    assert sizes["val"] in (everyone // 10, sizes["test"])
    for part in PARTS:
        clips = [corpus_named(name).parse(clip) for clip, of in split.of.items() if of == part]
        assert 0.3 < sum(clip["sex"] == "male" for clip in clips) / len(clips) < 0.7, part
        assert {clip["emotion"] for clip in clips} == set(label_set(name)), part


@pytest.mark.parametrize("name", LISTED)
def test_kfold5_is_balanced(name):
    split = official_split(name, "kfold5")
    groups = speakers_by_group(split)
    assert len(groups) == split.folds == 5
    sizes = [len(speakers) for speakers in groups.values()]
    assert max(sizes) - min(sizes) <= 1
    whole = shares(list(split.of), name)
    for fold in groups:
        part = shares([clip for clip, of in split.of.items() if of == fold], name)
        assert part.keys() == whole.keys()
        for what, share in part.items():
            # One speaker of five more or less of a sex is 10 %.
            assert abs(share - whole[what]) < (0.11 if what in ("female", "male") else 0.01), (fold, what)


def shares(clips: list[str], name: str) -> dict[str, float]:
    """Return the share of the clips that each emotion and each sex has."""
    fields = [corpus_named(name).parse(clip) for clip in clips]
    counts = Counter(clip["emotion"] for clip in fields) + Counter(clip["sex"] for clip in fields)
    return {what: count / len(clips) for what, count in counts.items()}


def test_tfds_has_the_published_numbers_of_speakers():
    groups = speakers_by_group(official_split("crema_d", "tfds"))
    assert {part: len(speakers) for part, speakers in groups.items()} == {"train": 63, "val": 9, "test": 19}
    assert "1009" in groups["val"]
    assert "1001" in groups["test"]


def test_emobox6_has_six_folds_of_four_actors():
    groups = speakers_by_group(official_split("ravdess", "emobox6"))
    assert {fold: len(speakers) for fold, speakers in groups.items()} == dict.fromkeys("123456", 4)
    assert groups["1"] == {"01", "11", "20", "21"}


@pytest.mark.skipif("SER_REAL_DATA" not in os.environ, reason="needs the published folds in $SER_REAL_DATA")
@pytest.mark.parametrize("fold", range(1, 7))
def test_emobox6_tests_the_published_clips(fold):
    path = Path(os.environ["SER_REAL_DATA"], "emobox_folds", f"ravdess_fold_{fold}.csv")
    with open(path, newline="") as file:
        published = {row["clip"] for row in csv.DictReader(file) if row["part"] == "test"}
    parts = parts_of(official_split("ravdess", "emobox6"), fold)
    assert {clip for clip, part in parts.items() if part == "test"} == published


@pytest.mark.parametrize(("name", "scheme"), [("crema_d", "tfds"), ("ravdess", "emobox6")])
def test_a_published_scheme_says_where_it_comes_from(name, scheme):
    published = read_json(PROJECT / "data" / name / "schemes" / f"{scheme}.json")
    assert published["speaker_independent"] is True
    assert official_split(name, scheme).source == published["source"] != ""


@pytest.mark.parametrize(("name", "scheme"), [("ravdess", "emobox6"), ("crema_d", "kfold5")])
def test_fold_k_tests_and_the_next_validates_in_a_circle(name, scheme):
    split = official_split(name, scheme)
    for fold in range(1, split.folds + 1):
        following = fold + 1 if fold < split.folds else 1
        parts = parts_of(split, fold)
        for clip, number in split.of.items():
            expected = {str(fold): "test", str(following): "val"}.get(number, "train")
            assert parts[clip] == expected


@pytest.mark.parametrize("fold", [None, 0, 7, -1])
def test_a_fold_that_is_not_there_is_refused_with_the_range(fold):
    with pytest.raises(UserError, match=r"'emobox6' has folds 1 to 6; set 'split/fold = 1'"):
        parts_of(official_split("ravdess", "emobox6"), fold)


def test_a_fold_of_a_scheme_without_folds_is_refused():
    assert parts_of(official_split("ravdess", "holdout"), None) == official_split("ravdess", "holdout").of
    with pytest.raises(UserError, match="'holdout' has no folds"):
        parts_of(official_split("ravdess", "holdout"), 1)


@pytest.mark.parametrize(("name", "scheme"), EVERY)
def test_a_written_split_is_read_again_with_the_same_hash(home, name, scheme):
    split = official_split(name, scheme)
    path = write_split(split)
    assert path == home / "data" / name / "splits" / f"{scheme}.csv"
    header, *lines = path.read_bytes().decode().split("\n")
    assert header == f"clip,{split.column}"
    assert lines == [*sorted(lines[:-1]), ""]
    again = read_split(name, scheme)
    assert again.of == split.of
    assert again.column == split.column
    assert again.sha256 == split.sha256
    assert hashlib.sha256(path.read_bytes().partition(b"\n")[2]).hexdigest() == split.sha256


def test_order_endings_and_a_byte_order_mark_do_not_change_the_hash(home):
    path = write_split(official_split("ravdess", "holdout"))
    header, *lines = path.read_text().splitlines()
    path.write_bytes("\r\n".join(["\ufeff" + header, *reversed(lines), ""]).encode())
    assert read_split("ravdess", "holdout").sha256 == official_split("ravdess", "holdout").sha256


def written(home: Path, *lines: str) -> Path:
    """Write a split of RAVDESS by hand; return its path."""
    path = home / "data/ravdess/splits/mine.csv"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("clip;part", "a;train"), "line 1"),
        (("a,train", "b,test"), "line 1"),
        ((), "line 1"),
        (("clip,part", "a,train", "b,dev"), "line 3: part 'dev'; expected train, val, test, unused"),
        (("clip,part", "a,"), "line 2: part ''"),
        (("clip,part", "a,Train"), "line 2: part 'Train'"),
        (("clip,part", "a,train", "b,val", "a,test"), "line 4: clip 'a' appears twice"),
        (("clip,part", "a,train", "", "b,val", "b,val"), "line 5: clip 'b' appears twice"),
        (("clip,part", "a"), "line 2: expected 2 fields"),
        (("clip,part", "a,train,val"), "line 2: expected 2 fields"),
        (("clip,fold", "a,1", "b,two"), "line 3: fold 'two'"),
        (("clip,fold", "a,1", "b,-1"), "line 3: fold '-1'"),
        (("clip,fold", "a,1", "b,1.0"), "line 3: fold '1.0'"),
        (("clip,fold", "a,1", "b,0"), "line 3: fold '0'"),
        (("clip,fold", "a,1", "b,02"), "line 3: fold '02'"),
        (("clip,fold", "a,1", "b,²"), "line 3: fold '²'"),
        (("clip,fold", "a,1", "b,2", "b,2"), "line 4: clip 'b' appears twice"),
    ],
)
def test_a_malformed_split_is_refused_with_file_and_line(home, lines, says):
    path = written(home, *lines)
    with pytest.raises(UserError) as caught:
        read_split("ravdess", "mine")
    assert f"{path}: {says}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folds_with_a_gap_are_refused_since_one_would_never_be_tested(home):
    path = written(home, "clip,fold", "03-01-05-01-01-01-01,1", "03-01-05-01-01-01-02,2", "03-01-05-01-01-01-03,4")
    with pytest.raises(UserError) as caught:
        parts_of(read_split("ravdess", "mine"), 3)
    assert str(path) in str(caught.value)


def test_a_split_of_ones_own_is_read_and_used(home):
    written(home, "clip,part", "03-01-05-01-01-01-01,train", "03-01-05-01-01-01-02,val", "03-01-05-01-01-01-03,test")
    parts = parts_of(read_split("ravdess", "mine"), None)
    clips = [clip_of(name) for name in parts]
    assert [[clip.speaker for clip in select(clips, parts, "mine")[part]] for part in PARTS] == [["01"], ["02"], ["03"]]


def test_a_split_that_is_not_there_says_what_to_do(home):
    with pytest.raises(UserError, match=r"ravdess is not prepared yet; run: just raw=PATH prepare ravdess"):
        read_split("ravdess", "holdout")
    (home / "data/ravdess").mkdir(parents=True, exist_ok=True)
    (home / "data/ravdess/metadata.csv").touch()
    with pytest.raises(UserError, match=r"holdout\.csv: .*run: just split ravdess holdout"):
        read_split("ravdess", "holdout")
    with pytest.raises(UserError, match="did you mean 'emobox6'"):
        read_split("ravdess", "emobox")


@pytest.mark.parametrize(
    ("name", "scheme", "says"),
    [
        ("ravdess", "holdut", "did you mean 'holdout'"),
        ("ravdess", "tfds", "scheme 'tfds' is not one of ravdess's"),
        ("ravdess", "../ravdess", "scheme '../ravdess'"),
        ("ravdes", "holdout", "did you mean 'ravdess'"),
    ],
)
def test_an_unknown_corpus_or_scheme_names_the_nearest(name, scheme, says):
    with pytest.raises(UserError, match=says):
        make_split(name, scheme)


def test_select_sorts_the_clips_at_hand_and_leaves_the_parts_of_the_others_alone():
    split = official_split("ravdess", "holdout")
    clips = [clip_of(name) for name in clip_names("ravdess")]
    parts = select(clips, split.of, "here")
    assert list(parts) == list(PARTS)
    for part, members in parts.items():
        assert members == [clip for clip in clips if split.of[clip.clip] == part]


def test_select_names_clips_that_are_in_no_part():
    with pytest.raises(UserError, match=r"here: 1 clips .* 03-01-05-01-01-01-02"):
        select([clip_of(f"03-01-05-01-01-01-0{n}") for n in (1, 2)], {"03-01-05-01-01-01-01": "train"}, "here")


def test_an_edited_split_that_leaks_a_speaker_is_refused_with_the_speaker(home):
    path = write_split(official_split("ravdess", "holdout"))
    leaking = next(clip for clip, part in official_split("ravdess", "holdout").of.items() if part == "test")
    path.write_text(path.read_text().replace(f"{leaking},test", f"{leaking},train"))
    clips = [clip_of(name) for name in corpus_named("ravdess").official()]
    with pytest.raises(UserError) as caught:
        select(clips, parts_of(read_split("ravdess", "holdout"), None), str(path))
    speaker = corpus_named("ravdess").parse(leaking)["speaker"]
    assert f"{path}: speakers in more than one part: {speaker} (train and test)" in str(caught.value)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(PARTS), st.lists(st.sampled_from("abcde"), max_size=8)))
def test_check_leaks_raises_if_and_only_if_a_speaker_is_in_two_parts(speakers):
    owners = {name: [part for part in PARTS if name in speakers.get(part, ())] for name in "abcde"}
    leaking = {name for name, parts in owners.items() if len(parts) > 1}
    try:
        check_leaks(speakers, "here")
    except UserError as error:
        message = str(error)
        assert leaking
        assert all(f"{name} (" in message for name in leaking)
        assert not any(f"{name} (" in message for name in owners.keys() - leaking)
        assert message.startswith("here: ")
    else:
        assert not leaking


def test_a_summary_counts_clips_and_speakers_of_each_group():
    assert summary("ravdess", "emobox6") == [(fold, 240, 4) for fold in "123456"]
    assert [group for group, _, _ in summary("crema_d", "tfds")] == list(PARTS)
    assert sum(clips for _, clips, _ in summary("crema_d", "tfds")) == 7442
