"""Steps: what is skipped leaves no trace, what is divided adds up, and what chooses among epochs."""

import numpy as np
import pytest
import torch
from conftest import command, one_error_line

from ser import checkpoints, config, runs
from ser.errors import UserError
from ser.experiment import Training
from ser.features import store_folder
from ser.speakers import EmbeddingMemory
from ser.tracking import read_log
from ser.training_setup import set_up
from ser.training_state import State
from ser.training_step import SKIPS, Stepper, check_finite

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
    "train/batch_size = 8", "Tracking.every = 1",
]  # fmt: skip


def make(*overrides: str):
    experiment = config.build(config.load("demo_ecapa", [*SMALL, *overrides]))
    setup = set_up(experiment)
    setup.model.train()
    return experiment, setup, Stepper(setup)


def pieces(experiment, setup, epoch: int = 0):
    return list(setup.pieces(setup.order(epoch), epoch))


def test_a_step_that_is_not_finite_changes_nothing_and_says_so(trained_home):
    experiment, setup, stepper = make()
    good, bad, *_ = pieces(experiment, setup)
    stepper.step(good, 0, 1.0)
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}  # counts of batches, too
    averaged = {name: value.clone() for name, value in setup.ema.values.items()}
    bad[0].inputs[3, 10] = torch.nan
    values = stepper.step(bad, 0, 1.0)
    assert values["train/skipped"] == 1
    assert not np.isfinite(values["train/loss"])
    for name, value in before.items():
        assert torch.equal(setup.model.state_dict()[name], value), name
    assert all(torch.equal(setup.ema.values[name], value) for name, value in averaged.items())
    assert "train/skipped" not in stepper.step(good, 0, 1.0)


def test_a_skipped_step_leaves_nothing_in_the_memory_of_speakers(trained_home):
    experiment, setup, stepper = make()
    memory = EmbeddingMemory(setup.train)
    object.__setattr__(setup, "embeddings", memory)
    good, bad, *_ = pieces(experiment, setup)
    stepper.step(good, 0, 1.0)
    before = dict(memory.values)
    bad[0].inputs[3, 10] = torch.nan
    assert stepper.step(bad, 0, 1.0)["train/skipped"] == 1
    assert memory.values.keys() == before.keys()
    assert all(torch.isfinite(value).all() for value in memory.values.values())
    assert "train/skipped" not in stepper.step(good, 0, 1.0)
    stepper.step(pieces(experiment, setup)[2], 0, 1.0)
    assert memory.values.keys() > before.keys(), "what comes after is remembered"


def test_after_a_few_such_steps_in_a_row_the_clips_are_named(trained_home):
    experiment, setup, stepper = make()
    parts = pieces(experiment, setup)[0]
    parts[0].inputs[:] = torch.inf
    for skipped in range(1, SKIPS):
        check_finite(skipped, parts, stepper.step(parts, 0, 1.0))
    with pytest.raises(UserError) as caught:
        check_finite(SKIPS, parts, stepper.step(parts, 0, 1.0))
    assert all(name in str(caught.value) for name in parts[0].names[parts[0].neighbours :])


def test_the_log_of_a_run_says_what_was_skipped(trained_home, monkeypatch):
    original, calls = Stepper.forward, []

    def now_and_then(self, batch, epoch):
        total, weight = original(self, batch, epoch)
        calls.append(0)
        return (total * torch.nan if len(calls) in (2, 4) else total), weight

    monkeypatch.setattr(Stepper, "forward", now_and_then)
    experiment, run = runs.create(config.load("demo_ecapa", SMALL))
    runs.train(experiment, run, progress=False)
    lines = read_log(run.folder)
    assert [line["step"] for line in lines if line.get("train/skipped")] == [2, 4]
    assert "NaN" not in (run.folder / "log.jsonl").read_text()
    assert checkpoints.load(run.last)["state"]["skipped"] == 0


def scaled(stepper, scale: float = 4.0):
    """Give a stepper the scaled loss of fp16, which torch has for the CPU as well."""
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return stepper


def test_a_scaled_loss_that_is_not_finite_is_skipped_and_the_next_step_is_made(trained_home):
    experiment, setup, stepper = make()
    scaled(stepper)
    good, bad, *_ = pieces(experiment, setup)
    stepper.step(good, 0, 1.0)
    before = {name: value.clone() for name, value in setup.model.named_parameters()}
    bad[0].inputs[3, 10] = torch.inf
    assert stepper.step(bad, 0, 1.0)["train/skipped"] == 1
    assert stepper.scaler.get_scale() == 2.0
    assert all(torch.equal(value, before[name]) for name, value in setup.model.named_parameters())
    assert np.isfinite(stepper.step(good, 0, 1.0)["train/grad_norm"])


def test_after_an_overflow_the_scale_takes_its_time_to_grow_again(trained_home):
    experiment, setup, stepper = make()
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    (good, bad, *_) = pieces(experiment, setup)
    for _ in range(2):
        stepper.step(good, 0, 1.0)
    bad[0].inputs[3, 10] = torch.inf
    stepper.step(bad, 0, 1.0)
    scales = []
    for _ in range(3):
        stepper.step(good, 0, 1.0)
        scales.append(stepper.scaler.get_scale())
    assert scales == [2.0, 2.0, 4.0]


def test_gradients_that_overflow_lower_the_scale_and_are_counted_once_it_is_no_help(trained_home, monkeypatch):
    experiment, setup, stepper = make()
    scaled(stepper)
    (good, *_) = pieces(experiment, setup)
    averaged = {name: value.clone() for name, value in setup.ema.values.items()}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    found = [stepper.step(good, 0, 1.0) for _ in range(4)]
    assert ["train/overflow" in values for values in found] == [True, True, False, False]
    assert ["train/skipped" in values for values in found] == [False, False, True, True]
    assert all(torch.equal(setup.ema.values[name], value) for name, value in averaged.items())


def test_a_process_without_a_clip_can_begin_with_a_scaled_loss(trained_home):
    _, _, stepper = make()
    assert scaled(stepper).step([], 0, 1.0)["train/skipped"] == 1


def test_a_scaled_loss_learns_what_a_plain_one_does(trained_home):
    weights = []
    for scale in (None, 1024.0):
        experiment, setup, stepper = make("EcapaTdnn.dropout = 0.0")
        if scale:
            scaled(stepper, scale)
        for parts in pieces(experiment, setup)[:3]:
            stepper.step(parts, 0, 1.0)
        weights.append(torch.cat([p.detach().flatten() for p in setup.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_half_precision_with_loss_scaling_needs_a_gpu(trained_home):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    line = one_error_line(command("train.py", "demo_ecapa", *SMALL, "train/precision = 'fp16'", home=trained_home))
    assert "fp16" in line
    assert 'train/precision = "bf16"' in line
    assert not (trained_home / "outputs").exists(), "a run that cannot be leaves nothing"


def test_batches_of_which_no_clip_can_be_read_are_skipped_and_then_said(trained_home):
    _, setup, stepper = make()
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    for skipped in range(1, SKIPS):
        values = stepper.step([], 0, 1.0)
        assert values["train/skipped"] == 1
        check_finite(skipped, [], values)
    assert all(torch.equal(before[name], value) for name, value in setup.model.state_dict().items())
    with pytest.raises(UserError, match="no clip of 5 batches in a row can be read"):
        check_finite(SKIPS, [], stepper.step([], 0, 1.0))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_parts_hold_each_clip_of_a_batch_once_and_its_neighbour(trained_home, accumulate):
    _, setup, _ = make(f"train/accumulate = {accumulate}")
    order = setup.order(0)
    for rows, parts in zip(order, setup.pieces(order, 0), strict=True):
        assert len(parts) == accumulate
        wanted = [setup.train[row].clip for row in rows]
        assert [name for part in parts for name in part.names[part.neighbours :]] == wanted
        for part in parts:
            place = wanted.index(part.names[part.neighbours])
            assert part.neighbours == (1 if accumulate > 1 else 0)
            assert part.names[0] == wanted[place - 1 if accumulate > 1 else place]


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_clip_that_cannot_be_read_is_named_and_by_choice_left_out(prepared, tmp_path, monkeypatch, choice):
    import shutil

    shutil.copytree(prepared / "data/demo", tmp_path / "data/demo", symlinks=True)
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    experiment, _ = runs.create(config.load("demo_ecapa", [*SMALL, f"train/unreadable = '{choice}'"]))
    lost = experiment.protocol.part("train")[3].clip
    path = store_folder("demo", experiment.features) / f"{lost}.npy"
    path.write_bytes(path.read_bytes()[:100])
    done = command(
        "train.py", "demo_ecapa", *SMALL, f"train/unreadable = '{choice}'", "train/epochs = 2", home=tmp_path
    )
    if choice == "stop":
        assert lost in one_error_line(done)
        return
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped: ") == 1
    assert lost in done.stderr


def choices(uars: list[float], **options) -> list[int]:
    """Return the epochs that are kept, given validation UARs."""
    training, state = Training(epochs=9, batch_size=2, crop_seconds=1.0, patience=9, **options), State()
    return [epoch for epoch, uar in enumerate(uars, start=1) if state.improves(uar, training)]


def test_what_is_kept_is_the_best_epoch_a_smoothed_one_or_the_last():
    uars = [0.3, 0.5, 0.9, 0.5, 0.6, 0.6]
    assert choices(uars) == [1, 2, 3]
    assert choices(uars, keep="last") == [1, 2, 3, 4, 5, 6]
    smoothed, best, wanted = uars[0], uars[0], [1]
    for epoch, uar in enumerate(uars[1:], start=2):
        smoothed = 0.8 * smoothed + 0.2 * uar
        if smoothed > best:
            best, wanted = smoothed, [*wanted, epoch]
    assert choices(uars, smoothing=0.8) == wanted == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train/accumulate = 0", "train/accumulate is 0"),
        ("train/accumulate = 99", "above the 8 clips of a batch"),
        ("train/keep = 'worst'", "train/keep is 'worst'"),
        ("train/unreadable = 'skp'", "did you mean 'skip'"),
        ("train/smoothing = 1.0", "train/smoothing is 1.0"),
    ],
)
def test_wrong_settings_are_refused(trained_home, override, message):
    with pytest.raises(UserError, match=message):
        make(override)


def test_a_clip_that_comes_again_in_an_epoch_is_another_crop(trained_home):
    experiment, setup, _ = make("train/balanced = True")
    seen: dict[str, torch.Tensor] = {}
    differs = []
    for parts in pieces(experiment, setup):
        for batch in parts:
            for name, key, value in zip(batch.names, batch.keys, batch.inputs, strict=True):
                if key in seen:  # a neighbour of the next part
                    assert torch.equal(seen[key], value)
                elif key != name:
                    differs.append(not torch.equal(seen[name], value))
                seen[key] = value
    assert len(differs) > 5
    assert np.mean(differs) > 0.8, "but for clips in which there is hardly another place to begin"


def test_single_clips_have_no_batch_statistics(trained_home):
    with pytest.raises(UserError, match="set 'train/batch_size = 16' or more"):
        make("train/accumulate = 8")
