"""Which clips train, validate and test a run."""

import json
import shutil
from pathlib import Path

import pytest
from corpus_factory import prepare_corpus

from ser import metadata
from ser.errors import UserError
from ser.protocol import Protocol
from ser.splits import PARTS


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Return a home with a small RAVDESS and a small CREMA-D, prepared."""
    folder = tmp_path_factory.mktemp("protocol")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        prepare_corpus(folder, "ravdess", per_class=1, seconds=0.1)
        prepare_corpus(folder, "crema_d", per_class=1, seconds=0.1)
    return folder


@pytest.fixture
def prepared_home(shared, monkeypatch) -> Path:
    monkeypatch.setenv("SER_HOME", str(shared))
    return shared


def speakers(protocol: Protocol, part: str) -> set[str]:
    return {clip.speaker for clip in protocol.part(part)}


def test_the_parts_hold_every_clip_at_hand_once(prepared_home):
    protocol = Protocol("crema_d", "tfds")
    clips = [clip.clip for part in PARTS for clip in protocol.part(part)]
    assert sorted(clips) == sorted(clip.clip for clip in protocol.table.clips)
    assert speakers(protocol, "val") == {"1009", "1022", "1034", "1082"}
    assert speakers(protocol, "test") == {"1001", "1019", "1033", "1060"}


def test_the_split_column_of_the_metadata_is_the_part_in_holdout(prepared_home):
    protocol = Protocol("ravdess", "holdout")
    assert {part: {clip.split for clip in protocol.part(part)} for part in PARTS} == {part: {part} for part in PARTS}


def test_each_fold_tests_other_speakers_and_validates_on_the_next(prepared_home):
    folds = [Protocol("ravdess", "emobox6", fold) for fold in range(1, 7)]
    tested = [speakers(protocol, "test") for protocol in folds]
    everyone = {clip.speaker for clip in folds[0].table.clips}
    assert sorted(speaker for fold in tested for speaker in fold) == sorted(everyone)
    for number, protocol in enumerate(folds):
        assert speakers(protocol, "val") == tested[(number + 1) % 6]
        assert speakers(protocol, "train") == everyone - tested[number] - tested[(number + 1) % 6]


def test_another_corpus_trains_along_and_neither_validates_nor_tests(prepared_home):
    alone, joined = Protocol("crema_d", "tfds"), Protocol("crema_d", "tfds", extra=["ravdess"])
    assert joined.part("val") == alone.part("val")
    assert joined.part("test") == alone.part("test")
    others = joined.part("train")[len(alone.part("train")) :]
    there = [clip for clip in Protocol("ravdess", "holdout").table.clips if clip.emotion != "surprised"]
    assert [clip.clip for clip in others] == [clip.clip for clip in there]
    assert all(other.speaker == f"ravdess:{clip.speaker}" for other, clip in zip(others, there, strict=True))
    assert {(clip.emotion, other.emotion) for other, clip in zip(others, there, strict=True)} == {
        *((label, label) for label in ("angry", "disgust", "fearful", "happy", "neutral", "sad")), ("calm", "neutral"),
    }  # fmt: skip
    assert joined.describe() == "crema_d tfds and ravdess"
    back = Protocol("ravdess", "emobox6", 1, extra=["crema_d"])
    assert {clip.emotion for clip in back.part("train") if clip.corpus == "crema_d"} == {
        "angry", "disgust", "fearful", "happy", "neutral", "sad",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["crema_d"], "which trains already"),
        (["ravdess", "ravdess"], "name each other corpus once"),
        (["revdess"], "did you mean 'ravdess'"),
    ],
)
def test_a_corpus_that_cannot_train_along_is_named(prepared_home, extra, says):
    with pytest.raises(UserError, match=says):
        Protocol("crema_d", "tfds", extra=extra)


def test_some_classes_alone_are_trained_on_and_scored_and_calm_is_what_was_said(prepared_home):
    four = ["angry", "happy", "neutral", "sad"]
    all_of_them = Protocol("ravdess", "emobox6", 1, extra=["crema_d"])
    some = Protocol("ravdess", "emobox6", 1, extra=["crema_d"], classes=four)
    assert (some.labels, some.tags, all_of_them.tags) == (tuple(four), ["classes-4", "calm-as-neutral"], [])
    assert some.speaker_independent
    counts_as = dict(zip(four, four, strict=True)) | {"calm": "neutral"}
    for part in PARTS:
        expected = [
            (clip.clip, counts_as[clip.emotion]) for clip in all_of_them.part(part) if clip.emotion in counts_as
        ]
        assert [(clip.clip, clip.emotion) for clip in some.part(part)] == expected
    without = Protocol("ravdess", "emobox6", 1, classes=four, calm="leave_out")
    assert without.tags == ["classes-4", "calm-left-out"]
    meant = {clip.clip: clip.emotion for clip in without.table.clips}
    assert {meant[clip.clip] for clip in without.part("train")} == set(four)
    assert Protocol("ravdess", "emobox6", 1, classes=["angry", "sad"]).tags == ["classes-2"]
    with pytest.raises(UserError, match="calm policy 'leaveout' is unknown"):
        Protocol("ravdess", "emobox6", 1, classes=four, calm="leaveout")


def test_odd_clips_can_be_dropped_and_a_wrong_name_is_refused(prepared_home):
    odd = Protocol("crema_d", "tfds").table.clips[0].clip
    dropped = Protocol("crema_d", "tfds", drop=[odd])
    assert odd not in {clip.clip for part in PARTS for clip in dropped.part(part)}
    assert len(dropped.table.clips) == len(Protocol("crema_d", "tfds").table.clips) - 1
    with pytest.raises(UserError, match="not at hand: 9999_XXX"):
        Protocol("crema_d", "tfds", drop=["9999_XXX"]).part("train")


def test_the_description_says_corpus_scheme_and_fold():
    assert Protocol("ravdess", "emobox6", 1).describe() == "ravdess emobox6 fold 1"
    assert Protocol("crema_d", "tfds").describe() == "crema_d tfds"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ravdes", "holdout"), "did you mean 'ravdess'"),
        (("ravdess", "holdout", None, "intended_"), "did you mean 'intended'"),
    ],
)
def test_what_can_be_refused_at_once_is(arguments, says):
    with pytest.raises(UserError, match=says):
        Protocol(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ravdess", "emobox6"), "has folds 1 to 6; set 'split/fold = 1'"),
        (("ravdess", "emobox6", 7), r"has folds 1 to 6; .*\(it is 7\)"),
        (("ravdess", "holdout", 1), "'holdout' has no folds"),
        (("ravdess", "holdot"), "did you mean 'holdout'"),
        (("demo", "holdout"), "just prepare demo"),
    ],
)
def test_a_wrong_protocol_is_refused_when_its_clips_are_asked_for(prepared_home, arguments, says):
    with pytest.raises(UserError, match=says):
        Protocol(*arguments).part("train")


def test_an_unknown_part_names_the_nearest(prepared_home):
    with pytest.raises(UserError, match="part 'tset' is unknown; did you mean 'test'"):
        Protocol("ravdess", "holdout").part("tset")


def test_a_part_of_which_no_clip_is_at_hand_is_refused_with_the_counts(home):
    prepare_corpus(home, "crema_d", speakers=("1002", "1009"), per_class=1, seconds=0.1)
    protocol = Protocol("crema_d", "tfds")
    assert len(protocol.part("train")) == len(protocol.part("val")) == 6
    with pytest.raises(UserError, match=r"crema_d tfds: no clip of part 'test' .*train 6, val 6, test 0") as refused:
        protocol.part("test")
    assert """just histogram crema_d 'split/scheme = "tfds"', or choose""" in str(refused.value)


def test_missing_clips_change_neither_parts_nor_hash(home, prepared_home, monkeypatch):
    whole = Protocol("ravdess", "holdout")
    sha256, part_of = whole.split.sha256, {clip.clip: part for part in PARTS for clip in whole.part(part)}
    monkeypatch.setenv("SER_HOME", str(home))
    prepare_corpus(home, "ravdess", speakers=("01", "09", "10", "11"), per_class=1, seconds=0.1)
    fewer = Protocol("ravdess", "holdout")
    assert fewer.split.sha256 == sha256
    assert 0 < len(fewer.table.clips) < len(whole.table.clips)
    assert all(part_of[clip.clip] == part for part in PARTS for clip in fewer.part(part))


def test_a_leak_is_refused_with_speaker_and_file(home):
    prepare_corpus(home, "ravdess", speakers=("01", "10", "11"), per_class=1, seconds=0.1)
    path = home / "data/ravdess/splits/emobox6.csv"
    clip = next(clip.clip for clip in Protocol("ravdess", "emobox6", 1).part("test") if clip.speaker == "01")
    path.write_text(path.read_text().replace(f"{clip},1", f"{clip},3"))
    with pytest.raises(UserError) as caught:
        Protocol("ravdess", "emobox6", 1).part("test")
    assert f"{path}: speakers in more than one part: 01 (train and test)" in str(caught.value)
    # With both folds in the training part nothing leaks, and nothing is refused.
    assert len(Protocol("ravdess", "emobox6", 4).part("train")) > 0


def test_a_clip_that_the_split_does_not_know_is_named(home):
    prepare_corpus(home, "ravdess", speakers=("01",), per_class=1, seconds=0.1)
    path = home / "data/ravdess/splits/holdout.csv"
    first = Protocol("ravdess", "holdout").table.clips[0].clip
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(first)))
    with pytest.raises(UserError) as caught:
        Protocol("ravdess", "holdout").part("train")
    assert f"{path}: 1 clips of the metadata are in no part: {first}" in str(caught.value)


def test_a_recording_in_two_parts_is_refused_whatever_its_name(home, prepared_home, monkeypatch, capsys):
    shutil.copytree(prepared_home / "data", home / "data")
    monkeypatch.setenv("SER_HOME", str(home))
    protocol = Protocol("crema_d", "tfds", extra=["ravdess"])
    heard, other, scored = (protocol.part("train")[0], protocol.part("train")[-1], protocol.part("test")[0])
    assert other.corpus == "ravdess"
    assert "run: just verify crema_d and just verify ravdess" in capsys.readouterr().err
    raws = {corpus: protocol.tables[corpus].raw for corpus in ("crema_d", "ravdess")}

    def store_sound_hashes(corpus: str, sound: dict[str, str]) -> None:
        metadata.store_sound_hashes(corpus, raws[corpus], sound)

    known = {clip.clip: f"{number:032x}" for number, clip in enumerate(protocol.table.clips)}
    store_sound_hashes("crema_d", known)
    Protocol("crema_d", "tfds").part("test")
    store_sound_hashes("crema_d", known | {heard.clip: known[scored.clip]})
    with pytest.raises(UserError, match=f"same recording in two parts: {heard.clip} .train. and {scored.clip} .test"):
        Protocol("crema_d", "tfds").part("test")
    Protocol("crema_d", "tfds", drop=[heard.clip]).part("test")
    store_sound_hashes("crema_d", known)
    metadata.store_sound_hashes("crema_d", home, known | {heard.clip: known[scored.clip]})  # of recordings elsewhere
    Protocol("crema_d", "tfds").part("test")
    path = home / "data/crema_d/sound.json"
    for foreign in ("[]", json.dumps({str(raws["crema_d"]): {heard.clip: []}}), "{"):
        path.write_text(foreign)
        with pytest.raises(UserError, match=r"sound\.json: "):
            Protocol("crema_d", "tfds").part("test")
        store_sound_hashes("crema_d", known)  # as verify does
        Protocol("crema_d", "tfds").part("test")
    Protocol("crema_d", "emobox1").part("test")  # known to share its speakers, and tagged
    store_sound_hashes("crema_d", known)
    store_sound_hashes("ravdess", {other.clip: known[scored.clip]})
    with pytest.raises(UserError, match=f"{other.clip} .train. and {scored.clip} .test"):
        Protocol("crema_d", "tfds", extra=["ravdess"]).part("test")
