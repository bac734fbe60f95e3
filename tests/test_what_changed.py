"""What a run was made of changes, under the same names: nothing that was made of the old is taken for the new."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import StopAfter

from ser import ablating, audio, checkpoints, config, cross_corpus, initial_weights, metadata, runs, splits, training
from ser.errors import Interrupted, UserError
from ser.features import store_folder
from ser.files import read_json, run_folder, sha256_of, write_csv, write_json
from ser.metadata import read_table, same_sound, sound_facts, store_sound_hashes
from ser.protocol import Protocol
from ser.run_evaluation import evaluate, evaluated
from ser.splits import split_path, write_split
from ser.training_setup import set_up

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
    "train/batch_size = 16",
]  # fmt: skip


def trained(experiment: str = "demo_ecapa", *overrides: str):
    """Train and return (experiment, run)."""
    made = runs.create(config.load(experiment, [*SMALL, *overrides]))
    runs.train(*made, progress=False)
    return runs.reopen(made[1].folder.name)


@pytest.fixture
def demo(prepared, tmp_path, monkeypatch) -> Path:
    """Return a home with a demo corpus of its own, whose recordings may be changed."""
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    shutil.copytree(prepared / "data/demo", tmp_path / "data/demo", symlinks=True)
    shutil.copytree(metadata.raw_folder("demo"), tmp_path / "raw")
    metadata.remember_raw("demo", tmp_path / "raw", 0)
    return tmp_path


def rewrite(table: metadata.Table, clip: metadata.Clip, seconds: float = 0.3) -> None:
    """Put another recording in the place of a clip's."""
    path = table.sound_path(clip)
    audio.write(path, np.random.default_rng(1).standard_normal(round(seconds * 16_000)).astype("float32") * 0.1)


def heard(table: metadata.Table, **changed: str) -> None:
    """Write down what ``verify`` would have heard: each clip its own sound, but for some."""
    hashes = {clip.clip: f"of {clip.clip}" for clip in table.clips}
    store_sound_hashes("demo", table.raw, hashes | changed)


@pytest.mark.parametrize("known", ["sizes", "samples"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_is_not_scored_over_other_recordings_than_it_learned_from(demo, part, known):
    table = read_table("demo")
    if known == "samples":
        heard(table)
    experiment, run = trained()
    clip = experiment.protocol.part(part)[0]
    if known == "samples":
        heard(table, **{clip.clip: "another"})
    else:
        rewrite(table, clip)
    with pytest.raises(UserError, match=r"the recordings of demo changed since (last|best)\.pt was written") as refused:
        runs.train(experiment, run, progress=False)
    assert "(just prepare demo)" in str(refused.value)
    with pytest.raises(UserError, match="the recordings of demo changed"):
        evaluate(run.folder.name, "test", progress=False)


def test_figures_of_other_recordings_are_made_again(demo):
    table = read_table("demo")
    heard(table)
    experiment, run = trained()
    folder = evaluated(experiment, run, "test", progress=False)
    before = read_json(folder / "metrics.json")
    assert read_json(evaluated(experiment, run, "test", progress=False) / "metrics.json") == before
    heard(table, **{experiment.protocol.part("test")[0].clip: "another"})
    again = read_json(evaluated(experiment, run, "test", progress=False) / "metrics.json")
    assert (before["test_scorings"], again["test_scorings"]) == (1, 2)
    assert again["sound"] != before["sound"]


def test_figures_on_another_corpus_are_made_again_for_other_recordings(demo, prepared):
    for corpus in ("crema_d", "ravdess"):
        (demo / "data" / corpus).symlink_to(prepared / "data" / corpus)
    _, run = trained("ravdess_ecapa")

    def times() -> int:
        return cross_corpus.scored(run.folder, "demo", "neutral", False, progress=False)["test_scorings"]

    assert [times(), times()] == [1, 1]
    rewrite(read_table("demo"), read_table("demo").clips[0])
    shutil.rmtree(demo / "data/demo/feats")
    from ser.extraction import extract

    extract(read_table("demo"), config.load_features("logmel80"), progress=False)
    assert [times(), times()] == [2, 2]


def test_samples_decide_where_they_are_known_and_else_sizes(demo):
    table = read_table("demo")
    clips = table.clips[:5]
    plain = sound_facts(table, clips)
    assert plain["samples"] is None
    heard(table)
    known = sound_facts(table, clips)
    assert known["sizes"] == plain["sizes"]
    assert same_sound(plain, known)
    rewrite(table, clips[2])
    unheard = sound_facts(table, clips)
    assert unheard["samples"] is None, "it was written after it was heard"
    assert not same_sound(known, unheard)
    heard(table)
    stored_otherwise = sound_facts(table, clips)
    assert same_sound(known, stored_otherwise), "the samples are said to be the same"
    assert not same_sound(plain, stored_otherwise)
    heard(table, **{clips[2].clip: "another"})
    assert not same_sound(known, sound_facts(table, clips))
    assert same_sound(known, sound_facts(table, clips[::-1]) | {"samples": None, "sizes": None})
    table.sound_path(clips[0]).unlink()
    assert sound_facts(table, clips)["sizes"] is None
    assert same_sound(None, known), "of an earlier version of ser"


def test_features_of_other_weights_are_refused_though_all_is_trained_and_scored(encoded, trained_home, monkeypatch):
    quick = ["track/wandb = 'off'", "stats/refit = False", "stats/strengths = [0.01]"]
    experiment, run = runs.create(config.load("ravdess_stats_probe", quick))
    runs.train(experiment, run, progress=False)
    evaluated(experiment, run, "test", progress=False)
    folder = store_folder("ravdess", experiment.features)
    own = trained_home / "own"
    shutil.copytree(encoded / "data", own / "data", symlinks=True)
    shutil.copytree(trained_home / "outputs", own / "outputs")
    monkeypatch.setenv("SER_HOME", str(own))
    experiment, run = runs.reopen(run.folder.name)
    path = store_folder("ravdess", experiment.features) / "index.json"
    assert path != folder / "index.json"
    write_json(path, read_json(path) | {"made_with": {"weights_sha256": "of others"}})
    for again in (lambda: runs.train(experiment, run, progress=False), lambda: evaluated(experiment, run, "test")):
        with pytest.raises(UserError, match="learned from features made with the weights"):
            again()


def test_a_run_that_began_with_another_is_not_believed_once_that_is_trained_again(trained_home):
    _, first = trained("crema_d_ecapa")
    experiment, run = trained("ravdess_ecapa", f"train/start = '{first.folder.name}'")
    evaluated(experiment, run, "test", progress=False)
    runs.train(experiment, run, progress=False)
    content = checkpoints.load(first.best)
    checkpoints.save(first.best, content | {"temperature": 3.0})  # the same weights
    runs.train(experiment, run, progress=False)
    content["model"]["norm.mean"] += 1
    checkpoints.save(first.best, content)
    for again in (lambda: runs.train(experiment, run, progress=False), lambda: evaluated(experiment, run, "test")):
        with pytest.raises(UserError, match=f"began with other weights of {first.folder.name} than lie there now"):
            again()
    metrics = evaluate(run.folder.name, "test", progress=False)[1]  # its own figures are as good as before
    assert metrics["checkpoint"] == checkpoints.identity(checkpoints.load(run.best))
    shutil.rmtree(first.folder)
    runs.train(experiment, run, progress=False)


def test_training_needs_no_recordings_and_keeps_what_they_were(demo):
    table = read_table("demo")
    for clip in table.clips:
        table.sound_path(clip).unlink()
    _, run = trained()
    (facts,) = checkpoints.load(run.best)["sound"].values()
    assert facts == {"samples": None, "sizes": None}
    evaluate(run.folder.name, "test", progress=False)


def test_statements_of_the_test_part_are_not_trained_on_by_way_of_validation(encoded, trained_home):
    quick = ["track/wandb = 'off'", "split/scheme = 'holdout_text'", "split/fold = None"]

    def begin(name: str, *overrides: str) -> None:
        set_up(runs.create(config.load(name, [*quick, *overrides]))[0])

    parts = Protocol("ravdess", "holdout_text").parts
    said = {part: {clip.statement for clip in clips} for part, clips in parts.items()}
    assert said == {"train": {"02"}, "val": {"01"}, "test": {"01"}}
    with pytest.raises(UserError, match=r"does \(01\), and is to be trained on, too; set 'stats/refit = False'"):
        begin("ravdess_stats_probe")
    begin("ravdess_stats_probe", "stats/refit = False")
    both = ["train/keep = 'last'", "train/with_validation = True"]
    with pytest.raises(UserError, match="set 'train/with_validation = False'"):
        begin("ravdess_ecapa", *both)
    begin("ravdess_ecapa")
    begin("ravdess_ecapa", *both, "split/scheme = 'holdout'")  # where every part has all statements


def test_clips_that_could_not_be_read_are_tagged(demo, monkeypatch):
    experiment, _ = runs.create(config.load("demo_ecapa", SMALL))
    lost = experiment.protocol.part("train")[3].clip
    path = store_folder("demo", experiment.features) / f"{lost}.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(1))
        with pytest.raises(Interrupted):
            trained("demo_ecapa", "train/unreadable = 'skip'")
    path.write_bytes(whole)  # which does not undo that it was skipped
    _, run = trained("demo_ecapa", "train/unreadable = 'skip'")
    assert checkpoints.load(run.best)["skipped"] == [lost]
    assert "clips-skipped" in evaluate(run.folder.name, "val", progress=False)[1]["tags"]


def test_seeds_of_a_solver_are_refused(encoded, trained_home):
    common = ["stats/refit = False", "track/wandb = 'off'"]
    with pytest.raises(UserError, match="finds the same weights with every seed; set seeds=1"):
        ablating.ablate("ravdess_stats_probe", ["stats/wccn = 0.3"], common, seeds=3, progress=False)


def test_a_split_that_its_user_edited_is_kept_beside_the_new_one(demo, capsys):
    path, split = split_path("demo", "holdout"), splits.read_split("demo", "holdout")
    write_split(split)
    assert not list(path.parent.glob("*.old"))
    edited = path.read_text().replace(",val", ",test")
    path.write_text(edited)
    write_split(split)
    assert splits.read_split("demo", "holdout").of == split.of
    assert (path.parent / "holdout.csv.old").read_text() == edited
    assert "holdout.csv was another one, now kept as" in capsys.readouterr().err


def test_recordings_that_were_not_compared_are_counted(demo, capsys):
    table = read_table("demo")
    protocol = Protocol("demo", "holdout")
    assert protocol.members
    size = len(table.clips)
    assert f"note: {size} of {size} clips were not compared with the others" in capsys.readouterr().err
    assert Protocol("demo", "holdout").members
    assert capsys.readouterr().err == "", "it was said already"
    splits.note.cache_clear()
    heard(table)
    assert Protocol("demo", "holdout").members
    assert capsys.readouterr().err == ""
    hashes = {clip.clip: f"of {clip.clip}" for clip in table.clips[3:]}
    store_sound_hashes("demo", table.raw, hashes)
    assert Protocol("demo", "holdout").members
    said = capsys.readouterr().err
    assert f"note: 3 of {size} clips" in said
    assert "run: just verify demo" in said


def test_a_table_of_ones_own_that_was_edited_is_prepared_again_first(home):
    raw = home / "table.csv"
    rows = [{"path": f"{n}.wav", "emotion": "sad", "speaker": str(n)} for n in range(3)]
    write_csv(raw, ("path", "emotion", "speaker"), rows)
    values = dict.fromkeys(metadata.COLUMNS, "") | {"emotion": "sad", "corpus": "custom"}
    numbers = {"seconds": 1.0, "sample_rate": 16_000, "channels": 1}
    made = [{**values, **row, "clip": row["path"][:-4], **numbers} for row in rows]
    metadata.write_table("custom", [metadata.Clip(**row) for row in made])
    metadata.remember_raw("custom", raw, 0)
    assert read_json(home / "data/custom/local.json")["table_sha256"] == sha256_of(raw)
    assert len(read_table("custom").clips) == 3
    raw.write_text(raw.read_text().replace("sad", "happy"))
    with pytest.raises(UserError, match=r"table\.csv: has changed since .*; run: just prepare custom"):
        read_table("custom")
    metadata.remember_raw("custom", raw, 0)
    assert len(read_table("custom").clips) == 3


def test_what_a_run_keeps_of_its_start_tells_its_weights(trained_home):
    _, first = trained("crema_d_ecapa")
    start = initial_weights.read_start(first.folder.name, Protocol("ravdess", "emobox6", 1))
    content = checkpoints.load(run_folder(first.folder.name) / checkpoints.BEST)
    assert start.facts["weights"] == checkpoints.identity(content)
