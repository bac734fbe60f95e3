"""Altered copies: what they do to the sound, and that training alone hears them."""

import numpy as np
import pytest
import torch
from conftest import command
from encoder_factory import noises, padded
from torchaudio.functional import resample

from ser import checkpoints, config, runs
from ser.copies import Altered
from ser.encoders import EncoderFeatures
from ser.errors import UserError
from ser.features import Features
from ser.mel import LogMel, Sound
from ser.stats_probe import logistic_regression, turned
from ser.training_setup import set_up

COPIES = "encoder/copies = ['speed 0.9', 'gain 6']"
QUICK = ["track/wandb = 'off'", "stats/strengths = [0.01]"]


def test_gain_and_speed_do_what_they_say():
    sound, lengths = padded(noises([9000, 5000]))
    louder, same = Altered(Sound(), "gain 6")(sound, lengths)
    assert same.tolist() == [9000, 5000]
    torch.testing.assert_close(louder, (sound * 10**0.3).clamp(-1, 1))
    slower, longer = Altered(Sound(), "speed 0.9")(sound, lengths)
    assert longer.tolist() == [10_000, 5556]
    torch.testing.assert_close(slower[1, :5556], resample(sound[1, :5000], 90, 100))
    for nothing in ("speed 1", "gain 0"):
        torch.testing.assert_close(Altered(Sound(), nothing)(sound, lengths)[0], sound)


@pytest.mark.parametrize("how", ["speed 0.9", "speed 1.25", "gain -6"])
def test_a_copy_is_the_same_alone_and_in_any_batch(sources, how):
    front_end = Altered(EncoderFeatures(sources["whisper"]), how)
    clips = noises([9000, 5000, 16_000])
    together, frames = front_end(*padded(clips, after=0.5))
    for row, clip in enumerate(clips):
        alone, own = front_end(*padded([clip]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
        assert int(frames[row]) == int(own[0])


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        (["speed"], "'speed' is unknown; expected such as"), (["pitch 2"], "'pitch 2' is unknown"),
        (["speed 3"], "'speed 3' is out of range; expected 0.5 to 2"), (["gain 99"], "expected -30 to 30"),
        (["gain 6", "gain 6"], "expected each once"),
    ],
)  # fmt: skip
def test_copies_that_cannot_be_made_are_refused(copies, message):
    with pytest.raises(UserError, match=message):
        Features("logmel80", LogMel(), copies=copies)


def test_copies_are_of_stored_features():
    with pytest.raises(UserError, match="of stored features"):
        Features("sound", Sound(), cached=False, copies=["gain 6"])


def test_a_model_trained_by_steps_has_no_use_for_them(encoded, trained_home):
    with pytest.raises(UserError, match="heard by a solver alone, but StatsProbe is trained by steps"):
        config.build(
            config.load("ravdess_stats_probe", [*QUICK, COPIES, "stats/solver = 'loop'", "stats/refit = False"])
        )


def test_the_solver_hears_clips_and_copies_and_validation_only_clips(encoded, trained_home):
    settings = [*QUICK, COPIES, "stats/refit = False"]
    with pytest.raises(UserError, match=r"just extract ravdess whisper_tiny_en 'encoder/copies = \[\"speed 0.9\"\]'"):
        set_up(config.build(config.load("ravdess_stats_probe", settings)))
    done = command("extract.py", "ravdess", "whisper_tiny_en", COPIES, home=trained_home)
    assert done.returncode == 0, done.stderr
    stores = [line.partition(":")[0].rpartition("/")[2] for line in done.stdout.splitlines()]
    assert stores == [f"whisper_tiny_en-statistics{how}" for how in ("", "-speed0.9", "-gain6")]
    experiment, run = runs.create(config.load("ravdess_stats_probe", settings))
    runs.train(experiment, run, progress=False)
    setup = set_up(config.build(config.load("ravdess_stats_probe", settings)))
    batch = setup.everything(setup.train)
    count = len(setup.train)
    assert len(batch.inputs) == 3 * count
    assert batch.names[:count] == batch.names[count : 2 * count]
    assert not torch.equal(batch.inputs[:count], batch.inputs[count : 2 * count])
    stored = [reader.read(setup.train[0]).float() for reader in setup.copies]
    assert torch.equal(batch.inputs[2 * count], stored[1])
    x = setup.model.embed(batch.inputs, batch.lengths).double().numpy()
    classes = batch.targets.argmax(1).numpy()
    x, basis = turned(x)
    _, weights, _ = logistic_regression(x, classes, np.ones(len(classes)), 0.01)
    weights = weights if basis is None else weights @ basis.T
    kept = checkpoints.load(run.best)["model"]["head.weight"]
    torch.testing.assert_close(kept.double(), torch.from_numpy(weights), rtol=1e-3, atol=1e-5)
    assert len(setup.validate().clips) == len(setup.validation)


def test_each_copy_is_normalised_by_its_own_speaker(encoded, trained_home):
    settings = [*QUICK, COPIES, "stats/normalisation = 'speaker'"]
    assert command("extract.py", "ravdess", "whisper_tiny_en", COPIES, home=trained_home).returncode == 0
    setup = set_up(config.build(config.load("ravdess_stats_probe", settings)))
    batch = setup.everything(setup.train)
    count = len(setup.train)
    assert len(batch.speakers.count) == 3 * count
    own = setup.copies[1].pool.of(setup.train[:5])
    torch.testing.assert_close(batch.speakers.mean[2 * count : 2 * count + 5], own.mean)
    assert not torch.allclose(own.mean, batch.speakers.mean[:5])
