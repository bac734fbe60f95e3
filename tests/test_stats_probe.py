"""The statistics probe: scikit-learn's answer, by way of our runs, with tags where it knows a speaker."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import check_test_part_untouched, command, one_error_line
from sklearn.linear_model import LogisticRegression

from ser import checkpoints, config, exporting, runs, stats_probe
from ser.batches import Batch
from ser.errors import UserError
from ser.layers import SpeakerStatistics
from ser.losses import class_weights
from ser.protocol import Protocol
from ser.run_evaluation import evaluate
from ser.stats_probe import NEVER, StatsProbe, logistic_regression
from ser.tracking import read_log

LABELS = ("angry", "calm", "happy", "sad")
QUIET = "track/wandb = 'off'"


def problem(clips: int, layers: int = 2, width: int = 3, classes: int = 4, seed: int = 0) -> Batch:
    """Return statistics that tell the class a little, with one-hot targets."""
    dice = np.random.default_rng(seed)
    emotions = dice.integers(classes, size=clips)
    x = dice.standard_normal((clips, layers, 2 * width)) + dice.standard_normal((classes, layers, 2 * width))[emotions]
    targets = torch.nn.functional.one_hot(torch.from_numpy(emotions), len(LABELS)).float()
    return Batch(torch.from_numpy(x).float(), torch.full((clips,), 100), targets, [])


def solved(batch: Batch, strength: float = 0.1, weights: torch.Tensor | None = None, **options) -> StatsProbe:
    layers, twice = batch.inputs.shape[1:]
    model = StatsProbe(LABELS, twice // 2, layers, **options).eval()
    model.norm.fit(batch.inputs)
    model.solve(batch, torch.ones(len(LABELS)) if weights is None else weights, strength)
    return model


@pytest.mark.parametrize("clips", [200, 9])  # fewer clips than features takes another way to the same
def test_probabilities_are_scikit_learns(clips):
    batch = problem(clips)
    model = solved(batch)
    x = batch.inputs.flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(x, batch.targets.argmax(1).numpy())
    ours = model(batch.inputs, batch.lengths).softmax(1).detach().numpy()[:, reference.classes_]
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("clips", [200, 9])
def test_wccn_is_a_penalty_on_what_differs_within_a_speakers_clips_of_an_emotion(clips):
    batch = problem(clips)
    batch.clips = [SimpleNamespace(speaker=f"s{number % 3}") for number in range(clips)]
    model = solved(batch, wccn=2.0)
    x = batch.inputs.flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    classes = batch.targets.argmax(1).numpy()
    within = np.zeros((x.shape[1], x.shape[1]))
    for speaker in range(3):
        for label in set(classes):
            own = x[(np.arange(clips) % 3 == speaker) & (classes == label)]
            within += (own - own.mean(0)).T @ (own - own.mean(0)) if len(own) else 0
    penalty = np.eye(x.shape[1]) + 2.0 * within / np.diag(within).mean()
    root = np.linalg.cholesky(np.linalg.inv(penalty))  # |w|^2 of x @ root is w penalty w of x
    reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(x @ root, classes)
    ours = model(batch.inputs, batch.lengths).softmax(1).detach().numpy()[:, reference.classes_]
    np.testing.assert_allclose(ours, reference.predict_proba(x @ root), atol=2e-3)
    plain = solved(batch)(batch.inputs, batch.lengths).softmax(1).detach().numpy()[:, reference.classes_]
    assert abs(ours - plain).max() > 0.01


def test_wccn_is_of_the_batch_at_hand():
    batch, other = problem(60), problem(60, seed=1)
    for each in (batch, other):
        each.clips = [SimpleNamespace(speaker=f"s{number % 3}") for number in range(60)]
    model = solved(batch, wccn=2.0)
    model.solve(other, torch.ones(4), 0.1)
    fresh = StatsProbe(LABELS, 3, 2, wccn=2.0).eval()
    fresh.norm.fit(batch.inputs)
    fresh.solve(other, torch.ones(4), 0.1)
    torch.testing.assert_close(model.head.weight, fresh.head.weight)


def test_wccn_needs_speakers():
    batch = problem(20)
    batch.clips = [SimpleNamespace(speaker="s" * (number % 3)) for number in range(20)]
    with pytest.raises(UserError, match="clips lack a speaker; set 'stats/wccn"):
        solved(batch, wccn=1.0)
    for options in ({"wccn": -1.0}, {"wccn": 1.0, "solver": "loop"}):
        with pytest.raises(UserError, match="expected 0 or more, and the solver closed_form"):
            StatsProbe(LABELS, 3, 2, **options)


def test_two_classes_and_classes_that_training_has_not_met():
    batch = problem(60, classes=2)
    model = solved(batch)
    logits = model(batch.inputs, batch.lengths)
    assert model.head.bias.tolist()[2:] == [NEVER, NEVER]
    assert (logits.argmax(1) == batch.targets.argmax(1)).float().mean() > 0.7
    x = batch.inputs.flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(x, batch.targets.argmax(1).numpy())
    np.testing.assert_allclose(logits.softmax(1).detach().numpy()[:, :2], reference.predict_proba(x), atol=2e-3)


def test_a_soft_target_is_a_weighted_clip_of_each_class():
    batch = problem(80)
    shares = torch.rand(80, 4, generator=torch.Generator().manual_seed(1)) * (torch.rand(80, 4) > 0.3)
    shares[:, 0] += 0.01
    soft = Batch(batch.inputs, batch.lengths, shares / shares.sum(1, keepdim=True), [])
    rows, classes = soft.targets.nonzero(as_tuple=True)
    norm = (batch.inputs - batch.inputs.mean(0)) / batch.inputs.std(0, unbiased=False)
    expected = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(
        norm.flatten(1)[rows].double().numpy(), classes.numpy(), soft.targets[rows, classes].numpy()
    )
    ours = solved(soft)(batch.inputs, batch.lengths).softmax(1).detach().numpy()
    np.testing.assert_allclose(ours, expected.predict_proba(norm.flatten(1).double().numpy()), atol=2e-3)


def test_class_weights_move_answers_to_a_class():
    batch = problem(100)
    heavy = solved(batch, weights=torch.tensor([1.0, 20.0, 1.0, 1.0]))
    plain = solved(batch)

    def answers(model):
        return int((model(batch.inputs, batch.lengths).argmax(1) == 1).sum())

    assert answers(heavy) > answers(plain)


def test_a_clip_is_answered_the_same_alone_and_in_a_batch():
    batch = problem(30)
    model = solved(batch)
    whole = model(batch.inputs, batch.lengths)
    for row in range(30):
        torch.testing.assert_close(
            model(batch.inputs[row : row + 1], batch.lengths[:1])[0], whole[row], rtol=1e-4, atol=1e-5
        )


def test_by_speaker_a_shift_of_all_their_clips_changes_nothing():
    """With many clips of a speaker, what all of them have in common is gone."""
    batch = problem(50)
    model = solved(batch, normalisation="speaker", prior=0.0)
    count = torch.full((50,), 50.0)

    def answer(x):
        of_all = SpeakerStatistics(count, x.mean(0).expand_as(x), x.std(0, unbiased=False).expand_as(x))
        return model(x, batch.lengths, of_all)

    torch.testing.assert_close(answer(batch.inputs), answer(batch.inputs * 3 + 5), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model(batch.inputs, batch.lengths), model(batch.inputs * 3 + 5, batch.lengths), atol=0.1)


def test_a_learned_sum_of_layers_trains_by_steps():
    batch = problem(100, layers=3)
    torch.manual_seed(0)
    model = StatsProbe(LABELS, 3, 3, combine="sum", solver="loop")
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(batch.inputs, batch.lengths), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.sum.weights.std() > 0.01
    assert float(model.sum.weights.detach().sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "add"}, "known: join, sum"),
        ({"solver": "closed"}, "closed_form"),
        ({"normalisation": "clip"}, "known: corpus, none, speaker"),
        ({"combine": "sum"}, "solver"),
        ({"strengths": []}, "strengths"),
        ({"strengths": [0.0]}, "above 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        StatsProbe(LABELS, 3, 2, **options)


def test_turning_the_features_is_exact():
    dice = np.random.default_rng(3)
    x, classes, shares = dice.standard_normal((20, 50)), np.arange(20) % 3, dice.uniform(0.5, 1, 20)
    known, coefficients, intercepts = logistic_regression(x, classes, shares, 0.5)
    direct = LogisticRegression(C=0.5, max_iter=5000, tol=1e-9).fit(x, classes, shares)
    np.testing.assert_allclose(coefficients, direct.coef_, atol=2e-3)
    np.testing.assert_allclose(intercepts, direct.intercept_, atol=2e-3)
    assert known.tolist() == [0, 1, 2]


def test_one_emotion_teaches_nothing_and_is_said():
    with pytest.raises(UserError, match="all have one emotion"):
        logistic_regression(np.eye(3), np.zeros(3, int), np.ones(3), 1.0)


# Whole runs, on statistics of a random encoder.


def train(*overrides: str) -> tuple:
    experiment, run = runs.create(config.load("ravdess_stats_probe", [QUIET, *overrides]))
    runs.train(experiment, run, progress=False)
    return experiment, run


def test_strengths_are_chosen_on_validation_and_both_parts_train_in_the_end(encoded, trained_home):
    experiment, run = train("stats/strengths = [1e-9, 0.01]")
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    tried = [line for line in lines if "strength" in line]
    assert [line["strength"] for line in tried] == [1e-9, 0.01]
    best = checkpoints.load(run.best)
    chosen = max(tried, key=lambda line: line["val/uar"])
    assert best["state"]["best_uar"] == chosen["val/uar"]
    protocol = experiment.protocol
    heard = {clip.speaker for part in ("train", "val") for clip in protocol.part(part)}
    assert set(best["train_speakers"]) == heard
    assert (run.folder / "curves.png").is_file()
    with pytest.raises(UserError, match="was trained on speakers of this part"):
        evaluate(str(run.folder), "val", progress=False)
    _, metrics = evaluate(str(run.folder), "test", progress=False)
    assert metrics["tags"] == []
    assert metrics["uar"] > 0.4  # eight classes of tones


@pytest.mark.parametrize("normalisation", ["corpus", "speaker"])
@pytest.mark.parametrize("refit", [True, False])
def test_the_test_part_is_never_read_in_solving_and_choosing(encoded, trained_home, heard, refit, normalisation):
    check_test_part_untouched(*train(f"stats/refit = {refit}", f"stats/normalisation = '{normalisation}'"), heard)


def test_class_weights_of_the_last_fit_are_those_of_both_parts(encoded, trained_home, monkeypatch):
    seen = []
    solve = stats_probe.StatsProbe.solve

    def noted(self, batch, weights, strength):
        seen.append((batch.targets.sum(0), weights))
        return solve(self, batch, weights, strength)

    monkeypatch.setattr(stats_probe.StatsProbe, "solve", noted)
    part = Protocol.part
    monkeypatch.setattr(Protocol, "part", lambda self, name: [
        clip for clip in part(self, name) if name == "train" or clip.emotion != "angry"
    ])  # fmt: skip
    train("stats/strengths = [0.01]", "train/class_weights = 'inverse'")
    (first, of_train), (both, of_both) = seen
    assert both.sum() > first.sum()
    for counts, weights in seen:
        torch.testing.assert_close(weights, class_weights(counts, "inverse"))
    assert not torch.allclose(of_train, of_both)


def test_without_refitting_validation_can_be_scored_and_is_what_was_logged(encoded, trained_home):
    _, run = train("stats/refit = False")
    _, metrics = evaluate(str(run.folder), "val", progress=False)
    assert metrics["uar"] == pytest.approx(checkpoints.load(run.best)["state"]["best_uar"])


def test_a_run_made_again_is_the_same(encoded, trained_home):
    _, run = train()
    before = checkpoints.load(run.best)["model"]
    for path in run.folder.rglob("*.pt"):
        path.unlink()
    _, run = train()
    after = checkpoints.load(run.best)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_by_speaker_every_figure_is_tagged_and_fewer_clips_can_be_asked_for(encoded, trained_home):
    _, run = train("stats/normalisation = 'speaker'", "stats/refit = False")
    folder, metrics = evaluate(str(run.folder), "val", progress=False)
    assert metrics["tags"] == ["speaker-normalised"]
    few_folder, few = evaluate(str(run.folder), "val", speaker_clips=2, progress=False)
    assert few_folder.name == folder.name + "-speaker2"
    assert few["speaker_clips"] == 2
    assert (few_folder / "predictions.csv").read_text() != (folder / "predictions.csv").read_text()
    everything = evaluate(str(run.folder), "val", speaker_clips=10**6, progress=False)[1]
    assert everything["uar"] == metrics["uar"]


def test_clips_by_speaker_are_refused_where_the_model_does_not_look(encoded, trained_home):
    _, run = train()
    done = command("eval_model.py", run.folder, "--speaker-clips", 5)
    assert "normalises by speaker" in one_error_line(done)


def test_it_trains_by_steps_too(encoded, trained_home):
    _, run = train(
        "stats/solver = 'loop'",
        "stats/refit = False",
        "train/epochs = 3",
        "train/batch_size = 16",
        "train/lr = 0.01",
        "train/average = 0.9",
    )
    state = checkpoints.load(run.best)["state"]
    assert state["best_uar"] > 0.2
    assert [line["epoch"] for line in read_log(run.folder) if "epoch" in line] == [1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder/keep = 'frames'"], "StatsProbe takes statistics"),
        (["train/average = 0.9"], "train/average"),
        (["Augmentation.operations = [@SpecAugment()]"], "change frames"),
        (["encoder/layers = [7]"], "states from 0 to 4"),
        (["StatsProbe.width = 100"], "was built for"),
        (["encoder/precision = 'bf16'"], "made otherwise"),
        (["encoder/precision = 'half'"], "encoder/precision is 'half'"),
    ],
)
def test_what_does_not_fit_is_one_line(encoded, trained_home, run_here, overrides, message):
    done = run_here("train.py", "ravdess_stats_probe", QUIET, *overrides)
    assert message in one_error_line(done)
    assert not (trained_home / "outputs").exists(), "a run that cannot be leaves nothing"


def test_features_of_other_weights_than_it_learned_from_are_refused(encoded, trained_home):
    _, run = train("stats/refit = False")
    path = encoded / "data/ravdess/feats/whisper_tiny_en-statistics/index.json"
    before = path.read_text()
    try:
        path.write_text(before.replace(json.loads(before)["made_with"]["weights_sha256"], "0" * 64))
        with pytest.raises(UserError, match=r"best\.pt: learned from features made with the weights .*, these are of"):
            evaluate(str(run.folder), "val", progress=False)
    finally:
        path.write_text(before)
    checkpoint = checkpoints.load(run.best)
    checkpoint["features"] = {"weights_sha256": "0" * 64}
    checkpoints.save(run.best, checkpoint)
    with pytest.raises(UserError, match="learned from features made with the weights"):
        exporting.pipeline_of(runs.load_trained(str(run.folder)))


def test_features_of_some_layers_ask_for_their_own_extraction(encoded, trained_home):
    done = command("train.py", "ravdess_stats_probe", QUIET, "encoder/layers = [1, 2]", home=trained_home)
    assert "just extract ravdess whisper_tiny_en 'encoder/layers = [1, 2]'" in one_error_line(done)
