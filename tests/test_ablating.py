"""Ablations: what is trained, what is compared with what, and what is refused before anything is trained."""

import numpy as np
import pytest
from conftest import one_error_line

from ser import ablating, config, runs
from ser.errors import UserError
from ser.files import read_csv, read_json

SMALL = ["track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5"]
CHANGES = ["train/label_smoothing = 0.0", "train/lr = 3e-3; ecapa/normalisation = 'clip'"]


def test_every_variant_is_trained_with_every_seed_and_compared_with_its_like(trained_home):
    folder, result = ablating.ablate("demo_ecapa", CHANGES, SMALL, seeds=2, progress=False)
    assert folder.parent == trained_home / "outputs/ablations"
    assert [line["variant"] for line in result["variants"]] == ["as it is", *CHANGES]
    runs = [run for of_variant in result["runs"].values() for run in of_variant]
    assert len(set(runs)) == 6
    uars = {}
    for name, of_variant in result["runs"].items():
        evaluations = [trained_home / f"outputs/{run}/eval" for run in of_variant]
        assert all([path.name for path in folder.iterdir()] == ["demo-holdout-val"] for folder in evaluations)
        uars[name] = np.array([read_json(folder / "demo-holdout-val/metrics.json")["uar"] for folder in evaluations])
    plain = uars["as it is"]
    for line in result["variants"]:
        own = uars[line["variant"]]
        assert line["uar"] == pytest.approx(own.mean())
        assert line["uar_sd"] == pytest.approx(own.std(ddof=1))
        if line["variant"] == "as it is":
            assert line["difference"] is None
            continue
        assert line["difference"] == pytest.approx((own - plain).mean())
        assert line["difference_lowest"] == pytest.approx((own - plain).min())
        assert 0 < line["p"] <= 1
    assert [row["variant"] for _, row in read_csv(folder / "ablation.csv", ("variant",))] == ["as it is", *CHANGES]
    assert (folder / "ablation.png").stat().st_size > 1000
    shown = ablating.table(folder, result)
    assert all(change in shown for change in CHANGES)
    assert "no interval: 2 speakers" in shown
    assert "the epoch was chosen on these speakers" in shown
    stamps = [(trained_home / "outputs" / run / "checkpoints/best.pt").stat().st_mtime_ns for run in runs]
    again = ablating.ablate("demo_ecapa", CHANGES, SMALL, seeds=2, progress=False)
    assert again == (folder, result)
    assert [(trained_home / "outputs" / run / "checkpoints/best.pt").stat().st_mtime_ns for run in runs] == stamps


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ([], 1, "nothing to leave out or change"),
        (["train/lr = 3e-3", "train/epochz = 2"], 1, "train/epochz"),
        (["train/lr = 3e-3", "train/epochs = 1"], 1, "'train/epochs = 1' trains the same as 'as it is'"),
        (["train/lr = 3e-3", "train/lr = 0.003"], 1, "'train/lr = 0.003' trains the same as 'train/lr = 3e-3'"),
        (["train/lr = 3e-3", "split/scheme = 'holdout_text'"], 1, "changes which clips validate"),
        (["train/lr = 3e-3", "train/start = 'nothing'"], 1, "nothing"),
        (["train/keep = 'last'; train/with_validation = True"], 1, "which are to compare; leave it out"),
        (["seed = 2"], 1, "say how many with seeds=N"),
        (["train/lr = 3e-3", "mel/bands = 40"], 1, "logmel80: made otherwise"),
        (["train/lr = 3e-3"], 0, "seeds is 0; expected 1 or more"),
    ],
    ids=["none", "unknown", "no change", "twice", "other clips", "start", "heard", "seed", "not extracted", "no seeds"],
)
def test_a_mistake_is_said_before_anything_is_trained(trained_home, changes, seeds, message):
    with pytest.raises(UserError, match=message):
        ablating.ablate("demo_ecapa", changes, SMALL, seeds, progress=False)
    assert not (trained_home / "outputs").exists()


def test_the_command_trains_several_at_once(trained_home, run_here, monkeypatch):
    """In processes of their own, as folds do (``tests/test_runs.py``); here one after the other."""
    logs = []

    def train_here(experiment, trainings, jobs, gpus):
        assert (jobs, gpus) == (2, 1)
        for training in trainings:
            runs.train(*runs.create(config.load(experiment, training.overrides)), progress=False)
            logs.append(str(training.log.relative_to(trained_home / "outputs/ablations")).partition("/")[2])
        return 0

    monkeypatch.setattr(ablating, "train_in_processes", train_here)
    common = [argument for binding in SMALL for argument in ("--common", binding)]
    done = run_here("ablate.py", "demo_ecapa", CHANGES[0], *common, "--seeds", 1, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    (folder,) = (trained_home / "outputs/ablations").iterdir()
    assert logs == ["variant0-seed1.log", "variant1-seed1.log"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {CHANGES[0]}")]
    found = next(line for line in read_json(folder / "ablation.json")["variants"] if line["variant"] == CHANGES[0])
    assert f"{found['uar']:.3f}" in line
    assert "expected 1 or more" in one_error_line(run_here("ablate.py", "demo_ecapa", "train/lr = 1", "--jobs", 0))
