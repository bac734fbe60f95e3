"""What follows a training: worse recordings, several runs as one, every run on every corpus, the report."""

import csv
import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import StopAfter, command, one_error_line

from ser import (
    calibration,
    card,
    comparing,
    config,
    cross_corpus,
    distortions,
    ensembles,
    evaluation,
    protocol,
    report,
    robustness,
    runs,
    schemes,
    splits,
    summary,
    training,
)
from ser.augment import ClipRandom
from ser.batches import SoundSource, open_source
from ser.cross_validation import cross_validate
from ser.errors import Interrupted, UserError
from ser.files import read_json, write_json
from ser.labels import label_set
from ser.metadata import read_table
from ser.pages import page, table
from ser.predictions import Predictions
from ser.run_evaluation import evaluate
from ser.votes import Votes

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
    "train/batch_size = 16",
]  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


TRAINED: dict[str, Path] = {}  # a copy of each run that was trained here, by its name


def train(name="demo_ecapa", *overrides):
    """Train a run in this test's home, or bring it there: its name is that of its settings."""
    experiment, run = runs.create(config.load(name, [*SMALL, *overrides]))
    if run.folder.exists():
        return run
    if kept := TRAINED.get(run.folder.name):
        shutil.copytree(kept, run.folder)
        runs.remember(run)
    else:
        runs.train(experiment, run, progress=False)
        TRAINED[run.folder.name] = shutil.copytree(run.folder, Path(tempfile.mkdtemp()) / run.folder.name)
    return run


@pytest.fixture(autouse=True, scope="module")
def _copies_are_removed():
    yield
    for folder in TRAINED.values():
        shutil.rmtree(folder.parent)
    TRAINED.clear()


# Worse recordings


def test_a_run_is_scored_on_every_condition_and_the_clean_one_is_its_evaluation(trained_home, monkeypatch):
    run = train("ravdess_ecapa")
    some = {"white noise, dB": (20.0, 0.0), "babble, dB": (5.0,), "speed": (0.8,), "first seconds": (1.0,)}
    few = {kind: {value: robustness.CONDITIONS[kind][value] for value in values} for kind, values in some.items()}
    monkeypatch.setattr(robustness, "CONDITIONS", few)
    folder, rows = robustness.robustness("last", "val", progress=False)
    assert [(row["kind"], row["value"]) for row in rows[1:]] == [(k, v) for k, vs in some.items() for v in vs]
    clean = evaluate("last", "val", progress=False)[1]
    assert rows[0]["uar"] == pytest.approx(clean["uar"], abs=1e-9)
    assert rows[0]["same_answers"] == 1
    assert all(row["change"] == pytest.approx(row["uar"] - rows[0]["uar"]) for row in rows)
    assert any(row["same_answers"] < 1 for row in rows[1:])
    assert read_json(folder / "robustness.json")["rows"] == rows
    assert (folder / "robustness.png").is_file()
    assert "white noise" in robustness.table(folder, rows)
    again = robustness.robustness(run.folder.name, "val", progress=False)[1]
    assert again == rows
    assert not (run.folder / "scorings.jsonl").exists()
    assert "UAR on worse recordings" in report.report("last").read_text()
    assert "| white noise, dB | 20 |" in card.robustness(runs.load_trained("last"))
    write_json(folder / "robustness.json", read_json(folder / "robustness.json") | {"clips_sha256": "of other labels"})
    assert "Of other weights or clips than these" in report.report("last").read_text()
    assert "Not measured" in card.robustness(runs.load_trained("last"))
    few.pop("babble, dB")
    robustness.robustness("last", "test", progress=False)
    assert summary.scorings_text([]) == ["ravdess emobox6, test: 1 run (a fold is a run), scored 1 time in all"]
    assert evaluate("last", "test", progress=False)[1]["test_scorings"] == 2
    with pytest.raises(UserError, match="what a model was trained on is not scored"):
        robustness.robustness("last", "train")


def test_an_interrupted_measurement_goes_on_where_it_was(trained_home, monkeypatch):
    train("ravdess_ecapa")
    heard = []

    def condition(name, stop=False):
        def distort(sound, random, others):
            heard.append(name)
            if stop and len(stops) == 0:
                stops.append(1)
                raise KeyboardInterrupt
            return sound / 2

        return distort

    stops = []
    conditions = {"one": {1.0: condition("one")}, "two": {2.0: condition("two", stop=True)}}
    monkeypatch.setattr(robustness, "CONDITIONS", conditions)
    with pytest.raises(KeyboardInterrupt):
        robustness.robustness("last", "val", progress=False)
    first = heard.count("one")
    folder, rows = robustness.robustness("last", "val", progress=False)
    assert heard.count("one") == first > 0
    assert [row["kind"] for row in rows] == ["as it is", "one", "two"]
    assert robustness.robustness("last", "val", progress=False)[1] == rows
    assert heard.count("one") == 2 * first  # a measurement that went through is made anew
    assert not list(folder.glob("*.part.json"))


def heard_by(distort: Callable, sound: torch.Tensor) -> torch.Tensor:
    """Return what a condition makes of a sound [N] that is no clip of a corpus."""
    source = SimpleNamespace(read=lambda clip: sound, time_axis=-1)
    features = SimpleNamespace(cached=False, time_axis=-1)
    return robustness.Distorted(source, features, distort, 3, []).read(SimpleNamespace(clip="made-up"))


@pytest.mark.parametrize("kind", robustness.CONDITIONS)
def test_each_condition_changes_a_sound_in_its_own_way(trained_home, kind):
    heard = SimpleNamespace(cached=False, time_axis=-1)
    known = read_table("demo")
    sound, clip, others = SoundSource(known), known.clips[0], known.clips[-40:]
    before = sound.read(clip)
    for value, distort in robustness.CONDITIONS[kind].items():
        made = [robustness.Distorted(sound, heard, distort, 3, others) for _ in range(2)]
        after = made[0].read(clip)
        assert after.isfinite().all()
        assert np.array_equal(after, made[1].read(clip))  # nothing but the clip and the condition decides
        assert made[0].length(clip) == len(after)
        size = len(before)
        wanted = size / value if kind == "speed" else min(size, 16_000 * value) if kind == "first seconds" else size
        assert abs(len(after) - wanted) <= (2000 if kind.endswith("kbit/s") else 1)  # a coder fills its last frame
        if kind.endswith("noise, dB") or kind in ("babble, dB", "music, dB"):
            noise = after - before
            snr = 10 * np.log10(before.square().sum().item() / noise.square().sum().item())
            assert snr == pytest.approx(value, abs=0.1)
        elif kind == "gain, dB":
            torch.testing.assert_close(after, (before * 10 ** (value / 20)).clamp(-1, 1))
        elif kind == "clipping, share of peak":
            torch.testing.assert_close(after, before.clamp(-value * before.abs().max(), value * before.abs().max()))
        elif kind in ("telephone", "low-pass, Hz"):
            edge = 3400 if kind == "telephone" else value
            assert above(after, 1.2 * edge) < 0.2 * above(before, 1.2 * edge)
        elif kind == "tilt, dB an octave":
            octaves = [between(x, 2000, 4000) / between(x, 1000, 2000) for x in (after, before)]
            assert 10 * np.log10(octaves[0] / octaves[1]) == pytest.approx(value, abs=0.5)
            assert after.square().sum().item() == pytest.approx(before.square().sum().item(), rel=1e-4)
        elif kind == "GSM 6.10, kbit/s":
            assert between(after, 4000, 8000) < 1e-3 * between(after, 0, 4000)
        elif kind == "MP3, kbit/s":
            assert not np.array_equal(after[:size], before)
            assert 0.5 < between(after, 300, 2000) / between(before, 300, 2000) < 2
        elif kind == "first seconds":
            long = torch.randn(48_000, generator=torch.Generator().manual_seed(1))
            assert torch.equal(heard_by(distort, long), long[: round(16_000 * value)])
        elif kind == "speed":
            tone = (2 * np.pi * 440 * torch.arange(16_000) / 16_000).sin()
            faster = heard_by(distort, tone)
            assert between(faster, 440 * value - 20, 440 * value + 20) > 0.9 * between(faster, 0, 8000)
        elif kind == "reverberation, s":
            assert after.square().sum().item() == pytest.approx(before.square().sum().item(), rel=0.05)
            assert (after - before).abs().max() > 0.01


def above(sound: torch.Tensor, edge: float) -> float:
    """Return the power of sound [N] at 16 kHz above a frequency, Hz."""
    return between(sound, edge, 8001)


def between(sound: torch.Tensor, low: float, high: float) -> float:
    """Return the power of sound [N] at 16 kHz between two frequencies, Hz."""
    power, hertz = torch.fft.rfft(sound).abs().square(), torch.linspace(0, 8000, len(sound) // 2 + 1)
    return power[(hertz > low) & (hertz < high)].sum().item()


def test_recorded_noise_is_added_at_its_ratio_and_a_folder_without_is_said(trained_home, tmp_path):
    train("ravdess_ecapa")
    (tmp_path / "silent").mkdir()
    for folder, says in (("nothing", "is not there"), ("silent", "holds no sound")):
        with pytest.raises(UserError, match=says):
            robustness.robustness("last", "val", progress=False, noise=str(tmp_path / folder))
    known = read_table("demo")
    noise = known.sound_path(known.clips[-1]).parent
    before = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16_000))).float() / 10
    for snr, distort in distortions.recorded(str(noise))["recorded noise, dB"].items():
        added = distort(before, ClipRandom(0, 0, 1, ["a"]), None) - before
        assert 10 * (before.square().sum() / added.square().sum()).log10().item() == pytest.approx(snr, abs=0.1)


def test_sound_as_it_is_gives_what_the_store_holds(trained_home):
    experiment, _ = runs.create(config.load("demo_ecapa", SMALL))
    known = read_table("demo")
    source = robustness.Distorted(SoundSource(known), experiment.features, None, 0, [])
    stored = open_source(experiment.features, known)
    for clip in known.clips[:5]:
        assert source.length(clip) == stored.length(clip)
        np.testing.assert_allclose(source.read(clip), stored.read(clip), atol=2e-2)


# Several runs as one


def made_up(skill, seed, clips=200):
    rng = np.random.default_rng(9)
    references = rng.integers(0, 3, clips)
    logits = np.random.default_rng(seed).standard_normal((clips, 3)) + skill * np.eye(3)[references]
    names = [f"c{number:03}" for number in range(clips)]
    return Predictions(
        names, [f"s{n % 10}" for n in range(clips)], [("a", "b", "c")[r] for r in references], ("a", "b", "c"), logits
    )


def cosines(seed):
    """Make up answers of two members that are very sure, and often wrong, as heads with an angular margin are."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 6, 240)
    names, labels = [f"c{number:03}" for number in range(240)], tuple("abcdef")
    cosine = [0.6 * np.eye(6)[references] + rng.normal(0, 0.5, (240, 6)) for _ in range(2)]
    return [
        Predictions(names, ["s"] * 240, [labels[r] for r in references], labels, 30 * each.clip(-1, 1))
        for each in cosine
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", ensembles.AVERAGES)
def test_weights_of_very_sure_members_are_fitted_too(average, seed):
    members = cosines(seed)

    def loss(weights):
        mixed = ensembles.averaged(members, np.array(weights), average)
        return calibration.nll(mixed.probabilities, mixed.indices).mean()

    assert loss(ensembles.fitted_weights(members, average)) <= min(loss((a / 20, 1 - a / 20)) for a in range(21)) + 1e-3


@pytest.mark.parametrize("average", ensembles.AVERAGES)
def test_fitted_weights_are_as_likely_as_any_on_a_grid(average):
    members = [made_up(2.0, 1), made_up(0.0, 2), made_up(1.0, 3)]

    def loss(weights):
        mixed = ensembles.averaged(members, np.array(weights), average)
        return calibration.nll(mixed.probabilities, mixed.indices).mean()

    weights = ensembles.fitted_weights(members, average)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    grid = [(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)]
    assert loss(weights) <= min(map(loss, grid)) + 1e-4
    assert weights[1] < 0.05  # the one that guesses


@pytest.mark.parametrize("average", ensembles.AVERAGES)
def test_an_average_is_that_of_probabilities_or_of_logits(average):
    one, other = made_up(1.0, 1), made_up(1.0, 2)
    mixed = ensembles.averaged([one, other], np.array([0.25, 0.75]), average).probabilities
    if average == "probabilities":
        expected = 0.25 * one.probabilities + 0.75 * other.probabilities
    else:
        expected = one.probabilities**0.25 * other.probabilities**0.75
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(mixed, expected, atol=1e-12)
    same = ensembles.averaged([one, one], np.array([0.5, 0.5]), average)
    np.testing.assert_allclose(same.probabilities, one.probabilities, atol=1e-12)


def test_seeds_are_scored_as_one_and_what_does_not_belong_together_is_refused(trained_home):
    first, second = train(), train("demo_ecapa", "seed = 2")
    names = [run.folder.name for run in (first, second)]
    folder, metrics = ensembles.ensemble(names, "test", weights="fitted")
    assert metrics["tags"] == ["ensemble"]
    assert sum(metrics["members"].values()) == pytest.approx(1)
    assert metrics["parameters_total"] == 2 * evaluate(names[0], "val", progress=False)[1]["parameters_total"]
    assert read_json(folder / "metrics.json") == json.loads(json.dumps(metrics))
    assert "calibrated" in metrics
    done = command("ensemble.py", *names, "--part", "val", home=trained_home)
    assert done.returncode == 0, done.stderr
    assert "0.500  demo_ecapa" in done.stdout
    other = train("demo_ecapa", "split/scheme = 'kfold5'", "split/fold = 2")
    link = trained_home / "another way there"
    link.symlink_to(first.folder)
    for arguments, settings, says in [
        ((names[0],), {}, "two or more different runs"),
        ((names[0], names[0]), {}, "two or more different runs"),
        ((names[0], str(link)), {}, "two or more different runs"),
        (names, {"average": "median"}, "average is 'median'"),
        (names, {"part": "val", "weights": "fitted"}, "cannot be scored on it"),
        ((names[0], other.folder.name), {}, "no evaluation on 'test' that all runs have"),
    ]:
        with pytest.raises(UserError, match=says):
            ensembles.ensemble(arguments, **settings)


def test_scorings_of_the_test_part_by_ensembles_are_counted(trained_home):
    names = [train("demo_ecapa", f"seed = {seed}").folder.name for seed in (1, 2, 3)]
    assert ensembles.ensemble(names[:2])[1]["test_scorings"] == 2  # its members' own, and this
    assert ensembles.ensemble(names[:2], average="logits")[1]["test_scorings"] == 3
    assert ensembles.ensemble(names[1:])[1]["test_scorings"] == 4
    assert evaluate(names[1], progress=False)[1]["test_scorings"] == 5
    assert ensembles.ensemble(names, "val")[1]["test_scorings"] == 0


def test_a_member_that_knows_the_speakers_is_refused(trained_home):
    first, second = train(), train("demo_ecapa", "seed = 2")
    for run in (first, second):
        _, metrics = evaluate(str(run.folder), "train", progress=False, seen=True)
        assert metrics["tags"] == ["speakers-seen"]
        assert metrics["speaker_independent"] is False
    with pytest.raises(UserError, match="was trained on speakers of demo-holdout-train"):
        ensembles.ensemble([str(first.folder), str(second.folder)], "demo-holdout-train")


def test_an_unfinished_member_is_refused_and_not_scored(trained_home, monkeypatch):
    name = train().folder.name
    experiment, run = runs.create(config.load("demo_ecapa", [*SMALL, "seed = 2"]))
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(3))
        with pytest.raises(Interrupted):
            runs.train(experiment, run, progress=False)
    with pytest.raises(UserError, match=f"{run.folder.name}: is not finished; go on with: just resume"):
        ensembles.ensemble([name, run.folder.name], "test")
    assert not (run.folder / "scorings.jsonl").exists()


def test_an_ensemble_says_what_each_member_was_trained_on(trained_home):
    plain = train("demo_ecapa", "train/keep = 'last'")
    both = train("demo_ecapa", "train/keep = 'last'", "train/with_validation = True")
    for names in ((plain, both), (both, plain)):
        _, metrics = ensembles.ensemble([run.folder.name for run in names])
        assert metrics["trained_on"] == "demo holdout; demo holdout, validation speakers too"


def test_cross_validations_and_ensembles_are_reported_and_compared_like_runs(trained_home, capsys):
    splits.write_split(schemes.make_split("demo", "kfold3"))
    folder, pooled = cross_validate("demo_ecapa", [*SMALL, "split/scheme = 'kfold3'"], progress=False)
    first = folder.parents[1]
    shutil.copytree(first, first.with_name("as-if-of-another-seed"))
    names = [first.name, "as-if-of-another-seed"]
    scored, metrics = ensembles.ensemble(names)
    assert {"ensemble", "pooled-folds"} <= set(metrics["tags"])
    for name in (*names, scored.parents[1].name):
        assert "Confusion" in report.report(name).read_text()
    assert "Folds" in report.report(names[0]).read_text()
    assert comparing.compare(*names)[1]["n_clips"] == metrics["n_clips"]
    assert {row["run"] for row in summary.write()[1]} >= {*names, scored.parents[1].name}
    fold = trained_home / "outputs" / pooled["folds"][1]["run"]
    own = fold / "eval/demo-kfold3-test/metrics.json"
    before = own.read_text()
    write_json(own, read_json(own) | {"checkpoint": {"epoch": 9, "step": 1, "crc32": 1}})  # trained and scored again
    with pytest.raises(UserError, match="runs that were trained or scored again since; give the just cv"):
        comparing.compare(*names)
    assert "pooled-folds" not in card.figures(runs.load_trained(fold.name), [])
    assert not {row["run"] for row in summary.write()[1]} & {*names}
    assert (
        f"{first.name}/eval/demo-kfold3-test/metrics.json: its runs were trained or scored again since"
        in capsys.readouterr().err
    )
    for foreign in ("[]", "{"):
        own.write_text(foreign)
        assert not {row["run"] for row in summary.write()[1]} & {*names}
    own.write_text(before)
    figures = card.figures(runs.load_trained(fold.name), [])
    assert f"{pooled['uar']:.3f}" in figures
    assert "pooled-folds" in figures
    (first / "eval/demo-kfold3-test/predictions.csv").write_text("")
    assert scored.parents[1].name not in {row["run"] for row in summary.write()[1]}, "an ensemble of other answers"


def test_figures_of_other_weights_or_of_an_earlier_version_are_made_again(trained_home):
    first, second = train(), train("demo_ecapa", "seed = 2")
    evaluate(str(first.folder), "val", progress=False)
    path = first.folder / "eval/demo-holdout-val/metrics.json"
    old = read_json(path)
    write_json(path, {name: value for name, value in old.items() if name != "classes"} | {"uar": 0.0})
    assert "of an earlier version" in report.report(str(first.folder)).read_text()
    ensembles.ensemble([str(first.folder), str(second.folder)], "val")
    assert read_json(path) == old


# Every run on every corpus


def test_every_run_meets_every_other_corpus_as_it_is_and_adapted(trained_home, monkeypatch):
    run = train("ravdess_ecapa")
    folder, rows = cross_corpus.matrix(progress=False)
    assert {(row["corpus"], row["adapted"]) for row in rows} >= {("crema_d", False), ("crema_d", True), ("demo", True)}
    adapted = [row for row in rows if row["adapted"]]
    assert all("transductive" in row["tags"] for row in adapted)
    assert not any("transductive" in row["tags"] for row in rows if not row["adapted"])
    assert all(row["strict_uar"] <= row["uar"] for row in rows)
    assert (folder / "matrix.csv").is_file()
    assert (folder / "matrix.png").is_file()
    assert run.folder.name in cross_corpus.table(folder, rows)
    scorings = (run.folder / "scorings.jsonl").read_text()
    assert cross_corpus.matrix(progress=False)[1] == rows
    assert (run.folder / "scorings.jsonl").read_text() == scorings  # nothing was scored again
    path = run.folder / "eval/demo-none-all/metrics.json"
    assert read_json(path)["clips_sha256"] == evaluation.clips_hash(read_table("demo").clips)
    write_json(path, read_json(path) | {"clips_sha256": "of other labels", "uar": 0.0})
    assert cross_corpus.matrix(progress=False)[1] == rows
    assert "a corpus is missing" in one_error_line(command("cross_corpus.py", "last", home=trained_home))
    heard = {"angry": "happy", "happy": "angry", "neutral": ""}  # by what was meant; all else as it was meant
    labels = label_set("crema_d")

    def votes_for(label: str) -> tuple[int, ...]:
        return tuple(4 * (each == heard.get(label, label)) + 1 for each in labels)

    votes = {clip.clip: Votes(votes_for(clip.emotion), (1,) * 6) for clip in read_table("crema_d").clips}
    for module in (protocol, cross_corpus):
        monkeypatch.setattr(module, "stored_votes", lambda corpus: votes if corpus == "crema_d" else {})
    folder, metrics = cross_corpus.cross("last", "crema_d", progress=False, label_source="voice")
    assert (folder.name, metrics["label_source"], metrics["raters"]) == ("crema_d-none-all-voice", "voice", None)
    told = {row["clip"]: row["label"] for row in csv.DictReader((folder / "predictions.csv").open())}
    meant = {clip.clip: clip.emotion for clip in read_table("crema_d").clips if clip.emotion != "neutral"}
    assert told == {clip: heard.get(label, label) for clip, label in meant.items()}
    with pytest.raises(UserError, match="only CREMA-D has"):
        cross_corpus.cross("last", "demo", progress=False, label_source="voice")


def test_a_matrix_without_runs_and_a_model_without_statistics_are_said(trained_home):
    with pytest.raises(UserError, match="no run that another prepared corpus"):
        cross_corpus.matrix(progress=False)
    run = train("ravdess_ecapa", "ecapa/normalisation = 'clip'")
    with pytest.raises(UserError, match="no statistics of a corpus to adapt"):
        cross_corpus.cross(str(run.folder), "crema_d", adapt=True, progress=False)


# The report


@pytest.fixture
def reported(trained_home):
    run = train("ravdess_ecapa")
    evaluate("last", "val", progress=False)
    cross_corpus.cross("last", "crema_d", progress=False)
    return run, report.report("last")


def test_a_report_holds_everything_in_one_file(reported):
    run, path = reported
    text = path.read_text()
    metrics = read_json(run.folder / "eval/ravdess-emobox6-val/metrics.json")
    for said in (f"{metrics['uar']:.3f}", "Confusion", "Subgroups", "most confident mistakes", "run.gin", "Training"):
        assert said in text
    assert metrics["split_sha256"][:12] in text
    assert "cross-corpus" in text
    assert not re.search(r"<script|https?://|<audio", text.partition("<pre>")[0])
    assert set(re.findall(r'src="([a-z]+:[a-z]+/[a-z]+)', text)) == {"data:image/png"}


def test_sound_enters_only_when_asked_for_and_the_licence_is_named(reported):
    _, path = reported
    assert "CC BY-NC-SA" not in path.read_text()
    text = report.report("last", sound=True).read_text()
    assert "<audio controls" in text
    assert "CC BY-NC-SA" in text


def test_what_a_name_holds_is_escaped():
    nasty = "<script>alert('&')</script>"
    text = page(nasty, [table((nasty,), [(nasty,)])])
    assert "<script>" not in text
    assert text.count(html.escape(nasty)) == 3


def test_a_report_needs_figures(trained_home):
    train()
    with pytest.raises(UserError, match="not scored yet"):
        report.report("last")
    assert "no run" in one_error_line(command("report.py", "nothing", home=trained_home))


def test_a_report_lives_with_files_that_are_not_of_ser(reported):
    run, _ = reported
    (run.folder / "eval/ravdess-emobox6-val/robustness.json").write_text('{"rows": []}')
    for foreign in ("[]", '{"sessions": []}', '{"sessions": [{}]}', '{"other": 1}'):
        (run.folder / "environment.json").write_text(foreign)
        (run.folder / "eval/crema_d-none-all/metrics.json").write_text(foreign)
        text = report.report("last").read_text()
        assert "environment.json is not of ser" in text
        assert "crema_d-none-all: of an earlier version" in text
        assert "make it again: just robustness RUN" in text
    (run.folder / "eval/crema_d-none-all/metrics.json").write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        report.report("last")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it_without_a_complaint(reported, tmp_path):
    _, path = reported
    picture = tmp_path / "page.png"
    browser = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*browser, "--window-size=500,3000", "--enable-logging=stderr", f"--screenshot={picture}", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert picture.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr
    from matplotlib.image import imread

    shown = imread(picture)
    assert shown.shape[:2] == (3000, 500)
    assert 0.02 < (shown[:, :, :3].min(2) < 0.5).mean() < 0.5  # ink on paper
    assert (shown[:, -4:, :3].min(2) > 0.9).mean() > 0.9  # and none beyond the edge
