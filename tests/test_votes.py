"""The raters' votes: what they heard, the labels that follow, and training on their distribution."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import command, one_error_line
from corpus_factory import prepare_corpus

from ser import config, runs
from ser.corpora import crema_d_official, parse_crema_d
from ser.cross_validation import cross_validate
from ser.errors import UserError
from ser.labels import label_set
from ser.metadata import read_table
from ser.protocol import Protocol
from ser.run_evaluation import evaluate, raters
from ser.schemes import make_split
from ser.splits import write_split
from ser.training_setup import set_up
from ser.votes import Votes, plurality, read_votes, store_votes, stored_votes

HEADER = '"","A","D","F","H","N","S","fileName"'
LABELS = label_set("crema_d")


def table_of(folder: Path, votes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Path:
    """Write a ``tabulatedVotes.csv`` of clip -> (votes on the voice, votes on voice and face)."""
    lines = [HEADER]
    for number, (clip, (voice, both)) in enumerate(votes.items()):
        for digit, counts in (("1", voice), ("2", (9, 9, 9, 9, 9, 9)), ("3", both)):
            lines.append(f'"{digit}{number:05d}",{",".join(map(str, counts))},"{clip}"')
    path = folder / "tabulatedVotes.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def rated(home):
    """Return a small CREMA-D whose clips are all heard as happy, but for a tie on every neutral one."""
    raw = prepare_corpus(home, "crema_d")
    votes = {}
    for clip in read_table("crema_d").clips:
        tie = clip.emotion == "neutral"
        votes[clip.clip] = ((0, 0, 0, 4, 4, 0) if tie else (1, 0, 0, 6, 1, 0), (5, 0, 0, 0, 0, 0))
    table_of(raw, votes)
    store_votes("crema_d", raw)
    return raw


def test_the_plurality_of_a_tie_is_no_label():
    assert plurality((0, 1, 0, 3, 2, 0)) == "happy"
    assert plurality((3, 0, 0, 3, 0, 0)) == ""
    assert plurality((0, 0, 0, 0, 0, 0)) == ""


def test_votes_on_the_voice_and_on_both_are_told_apart_and_kept(home, tmp_path):
    (tmp_path / "data/crema_d").mkdir(parents=True)
    table_of(tmp_path, {"1001_DFA_ANG_XX": ((1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1))})
    assert store_votes("crema_d", tmp_path) == 1
    votes = stored_votes("crema_d")["1001_DFA_ANG_XX"]
    assert votes.voice == (1, 2, 3, 4, 5, 6)
    assert votes.multimodal == (6, 5, 4, 3, 2, 1)


@pytest.mark.parametrize("place", [".", "..", "processedResults", "../processedResults"])
def test_the_votes_are_found_beside_the_sound(place, home, tmp_path):
    raw = tmp_path / "corpus/AudioWAV"
    raw.mkdir(parents=True)
    (raw / place).mkdir(parents=True, exist_ok=True)
    table_of(raw / place, {"1001_DFA_ANG_XX": ((1, 0, 0, 0, 0, 0),) * 2})
    assert store_votes("crema_d", raw) == 1


def test_hard_labels_follow_the_votes_and_ties_are_left_out(rated):
    intended, voice = Protocol("crema_d", "tfds"), Protocol("crema_d", "tfds", label_source="voice")
    for part in ("train", "val", "test"):
        assert {clip.emotion for clip in voice.part(part)} == {"happy"}
        ties = sum(clip.emotion == "neutral" for clip in intended.part(part))
        assert ties > 0
        assert len(voice.part(part)) == len(intended.part(part)) - ties
    assert {clip.emotion for clip in Protocol("crema_d", "tfds", None, "multimodal").part("val")} == {"angry"}


def test_soft_targets_are_the_distribution_of_the_votes_and_ties_still_train(rated):
    protocol = Protocol("crema_d", "tfds", label_source="voice_soft")
    assert len(protocol.part("train")) == len(Protocol("crema_d", "tfds").part("train"))
    assert len(protocol.part("val")) < len(Protocol("crema_d", "tfds").part("val"))
    for clip in protocol.part("train"):
        target = protocol.soft_target(clip)
        assert sum(target) == pytest.approx(1)
        assert target[LABELS.index("happy")] == pytest.approx(0.75 if clip.emotion else 0.5)


def test_votes_for_other_classes_are_left_out(rated):
    classes = ["angry", "happy", "neutral", "sad"]
    protocol = Protocol("crema_d", "tfds", label_source="voice_soft", classes=classes)
    every = Protocol("crema_d", "tfds", label_source="voice_soft")
    assert [clip.clip for clip in protocol.part("train")] == [clip.clip for clip in every.part("train")]
    for clip in protocol.part("train"):
        assert protocol.soft_target(clip) == ([0.0, 0.5, 0.5, 0.0] if not clip.emotion else [1 / 8, 6 / 8, 1 / 8, 0.0])
    other = Protocol("crema_d", "tfds", label_source="voice", classes=["angry", "sad"])
    assert not any(other.parts.values())  # all were heard as happy, or a tie
    soft = Protocol("crema_d", "tfds", label_source="voice_soft", classes=["angry", "sad"])
    assert not soft.parts["train"]  # no tie is between these either


def test_people_choose_between_the_same_classes(rated):
    votes = {"a": Votes((3, 4, 0, 0, 0, 1), (1,) * 6), "b": Votes((0, 4, 0, 0, 0, 3), (1,) * 6)}
    clips = [SimpleNamespace(clip="a", emotion="angry"), SimpleNamespace(clip="b", emotion="angry")]
    assert raters(votes, "intended", clips, LABELS)["wa"] == 0  # both were heard as disgust
    assert raters(votes, "intended", clips, ["angry", "sad"])["wa"] == 0.5


def test_a_run_on_soft_votes_trains_and_is_scored_against_any_source(trained_home, prepared, tmp_path):
    small = [
        "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
        "labels/source = 'voice_soft'", "train/class_weights = 'inverse'",
    ]  # fmt: skip
    clips = read_table("crema_d").clips
    rng = np.random.default_rng(0)
    votes = {clip.clip: (tuple(rng.integers(0, 5, 6)), tuple(rng.integers(0, 5, 6))) for clip in clips}
    source = table_of(tmp_path, votes)
    try:
        store_votes("crema_d", source.parent)
        experiment, run = runs.create(config.load("crema_d_ecapa", small))
        setup = set_up(experiment)
        counts = setup.reader.targets(setup.train).sum(0)
        torch.testing.assert_close(setup.weights * counts, torch.full((6,), float((setup.weights * counts).mean())))
        runs.train(experiment, run, progress=False)
        own, metrics = evaluate("last", "val", progress=False)
        assert (own.name, metrics["label_source"], metrics["raters"]) == ("crema_d-tfds-val", "voice_soft", None)
        other, metrics = evaluate("last", "val", "intended", progress=False)
        assert other.name == "crema_d-tfds-val-intended"
        assert metrics["label_source"] == "intended"
        assert 0 <= metrics["raters"]["uar"] <= 1
        write_split(make_split("crema_d", "kfold3"))
        folds = ["split/scheme = 'kfold3'", "labels/source = 'multimodal'"]
        _, metrics = cross_validate("crema_d_ecapa", [*small, *folds], progress=False)
        assert metrics["label_source"] == "multimodal"
        assert metrics["raters"] is not None
    finally:
        (prepared / "data/crema_d/votes.csv").unlink()


def test_without_votes_the_message_says_where_to_put_them(trained_home):
    with pytest.raises(UserError, match=r"needs the votes of \d+ clips .*put CREMA-D's tabulatedVotes.csv beside"):
        Protocol("crema_d", "tfds", label_source="voice").part("val")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "the header lacks"),
        (f'{HEADER}\n"100001",1,2,x,0,0,0,"1001_DFA_ANG_XX"\n', "line 2: votes must be whole numbers"),
        (f'{HEADER}\n"100001",1,2,0,0,0,0,"1001_DFA_ANG_XX"\n', "lacks votes on the voice alone or"),
    ],
)
def test_a_wrong_table_of_votes_is_refused(text, says, tmp_path):
    path = tmp_path / "tabulatedVotes.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_votes(path)


def test_the_metadata_tool_stores_votes_and_refuses_wrong_ones(home):
    raw = prepare_corpus(home, "crema_d")
    table_of(raw, dict.fromkeys(crema_d_official(), ((1, 0, 0, 0, 0, 0),) * 2))
    done = command("build_csv.py", "crema_d", "--allow-missing")
    assert "the raters' votes for 7442 clips" in done.stdout, done.stderr
    (raw / "tabulatedVotes.csv").write_text("nonsense\n")
    assert "tabulatedVotes.csv: line 1" in one_error_line(command("build_csv.py", "crema_d", "--allow-missing"))


@pytest.mark.skipif("SER_REAL_DATA" not in os.environ, reason="needs CREMA-D's tables in $SER_REAL_DATA")
def test_the_real_votes_give_the_known_facts():
    folder = Path(os.environ["SER_REAL_DATA"], "crema_d")
    votes = read_votes(folder / "tabulatedVotes.csv")
    assert len(votes) == 7442
    intended = {clip: parse_crema_d(clip)["emotion"] for clip in votes}
    voice = {clip: plurality(of.voice) for clip, of in votes.items()}
    multimodal = {clip: plurality(of.multimodal) for clip, of in votes.items()}
    agree = [voice[clip] == emotion for clip, emotion in intended.items()]
    assert round(100 * sum(agree) / 7442, 2) == 41.64
    assert sum(label == "" for label in voice.values()) == 644
    assert round(100 * sum(multimodal[clip] == emotion for clip, emotion in intended.items()) / 7442, 1) == 72.2
    recalls = [np.mean([a for a, e in zip(agree, intended.values(), strict=True) if e == label]) for label in LABELS]
    assert float(np.mean(recalls)) == pytest.approx(0.430, abs=1e-3)
    with open(folder / "summaryTable.csv", newline="") as file:  # the corpus's own plurality says the same
        letters = {"A": "angry", "D": "disgust", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad"}
        assert all(letters.get(row["VoiceVote"], "") == voice[row["FileName"]] for row in csv.DictReader(file))
