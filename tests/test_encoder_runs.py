"""Whole runs of models with an encoder inside, and what an experiment refuses to put together."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import StopAfter, command, one_error_line

from ser import checkpoints, config, runs, training
from ser.cross_corpus import cross
from ser.errors import Interrupted, UserError
from ser.extraction import extract
from ser.files import read_csv
from ser.metadata import read_table
from ser.predictions import read_predictions
from ser.run_evaluation import embeddings, evaluate
from ser.speakers import SpeakerPool
from ser.training import dry_run
from ser.training_setup import set_up

PROMPT = "ravdess_whisper_prompt_tiny"
QUICK = ["track/wandb = 'off'", "train/epochs = 2", "train/batch_size = 32", "train/precision = 'float32'"]
BY_SPEAKER = "prompted/normalisation = 'speaker'"


def start(experiment: str, *overrides: str):
    return runs.create(config.load(experiment, [*QUICK, *overrides]))


def train(experiment: str, *overrides: str):
    built, run = start(experiment, *overrides)
    runs.train(built, run, progress=False)
    return built, run


@pytest.fixture(scope="module")
def straight(encoded, tmp_path_factory):
    """Return the folder of a run with prompts that nothing has interrupted, to be copied."""
    home = tmp_path_factory.mktemp("straight")
    (home / "data").symlink_to(encoded / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(home))
        return train(PROMPT)[1].folder


def test_a_checkpoint_is_small_names_its_encoder_and_answers_as_in_training(straight, trained_home, capsys):
    built, run = start(PROMPT)
    shutil.copytree(straight, run.folder)
    for path in (run.best, run.last):
        assert path.stat().st_size < 4e6
    best = checkpoints.load(run.best)
    assert best["encoder"]["source"] == "openai/whisper-tiny.en"
    assert best["encoder"]["revision"] == "main"
    assert not [name for name in best["model"] if ".encoder." in name]
    _, metrics = evaluate(str(run.folder), "val", progress=False)
    assert metrics["uar"] == pytest.approx(best["state"]["best_uar"])
    assert metrics["parameters_trained"] < metrics["parameters_total"] / 4
    dry_run(built, steps=1)
    assert "parameters trained of" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [(), (BY_SPEAKER,)], ids=["corpus", "speaker"])
def test_an_interrupted_and_resumed_run_equals_a_straight_one(straight, trained_home, monkeypatch, overrides):
    run = start(PROMPT, *overrides)[1]
    if overrides:
        straight = train(PROMPT, *overrides)[1].folder.rename(trained_home / "straight")
    content = [checkpoints.load(straight / path)["model"] for path in (checkpoints.BEST, checkpoints.LAST)]
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(3))
        with pytest.raises(Interrupted):
            runs.train(*start(PROMPT, *overrides), progress=False)
    torch.rand(5)
    runs.train(*start(PROMPT, *overrides), progress=False)
    for path, weights in zip((run.best, run.last), content, strict=True):
        resumed = checkpoints.load(path)["model"]
        for name, value in weights.items():
            assert torch.equal(value, resumed[name]), name


def test_by_speaker_figures_are_tagged_and_one_clip_alone_is_answered(encoded, trained_home):
    _, run = train(PROMPT, BY_SPEAKER, "train/epochs = 1")
    folder, metrics = evaluate(str(run.folder), "val", progress=False)
    assert metrics["tags"] == ["speaker-normalised"]
    assert metrics["uar"] == pytest.approx(checkpoints.load(run.best)["state"]["best_uar"])
    trained = runs.load_trained(str(run.folder))
    clips, values = embeddings(trained, "val", progress=False)
    answers = read_predictions(folder / "predictions.csv")
    place = {clip.clip: row for row, clip in enumerate(clips)}
    speakers = SpeakerPool(clips, lambda clip: values[place[clip.clip]], None).of(clips)
    logits = trained.experiment.model.classify(values, speakers).detach()
    wanted = answers.probabilities[[answers.clips.index(clip.clip) for clip in clips]]
    np.testing.assert_allclose(logits.softmax(1).numpy(), wanted, atol=1e-5)
    alone, single = evaluate(str(run.folder), "val", speaker_clips=1, progress=False)
    assert single["speaker_clips"] == 1
    assert (alone / "predictions.csv").read_text() != (folder / "predictions.csv").read_text()
    content = checkpoints.load(run.best)
    content["model"]["norm.steps"].zero_()  # of an earlier version, which normalised by speaker elsewhere
    checkpoints.save(run.best, content)
    line = one_error_line(command("eval_model.py", run.folder, "--part", "val", home=trained_home))
    assert f"{run.best}: was trained by an earlier version of ser" in line


def test_other_weights_of_the_encoder_are_refused(encoded, trained_home):
    source = trained_home / "own"
    source.mkdir()
    original = encoded / "data/encoders/openai/whisper-tiny.en"
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((original / name).read_bytes())
    _, run = train(PROMPT, f"encoder/source = '{source}'", "train/epochs = 1")
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("fc1.bias"))
    weights[name] = weights[name] + 1
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="other weights of the encoder"):
        evaluate(str(run.folder), "val", progress=False)
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not a whole pretrained encoder"):
        evaluate(str(run.folder), "val", progress=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ecapa/head = 'cosine'", "train/loss = 'aam'", "train/label_smoothing = 0.0"],
        ["train/balanced = True"],
        ["train/logit_adjustment = 1.0", "train/label_smoothing = 0.0"],
        ["ecapa/normalisation = 'speaker'"],
    ],
    ids=["aam", "balanced", "adjusted", "by speaker"],
)
def test_what_corrects_and_normalises_trains(prepared, trained_home, overrides):
    parts = ["data/demo", "features/logmel80", "augment/masks", "model/ecapa"]
    quick = ["track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5"]
    settings = config.compose("demo_other", parts, [*quick, "train/batch_size = 16", *overrides])
    built, run = runs.create(settings)
    runs.train(built, run, progress=False)
    _, metrics = evaluate(str(run.folder), "val", progress=False)
    best = checkpoints.load(run.best)
    assert metrics["uar"] == pytest.approx(best["state"]["best_uar"])
    assert metrics["tags"] == ["speaker-normalised"] * ("ecapa/normalisation = 'speaker'" in overrides)
    plain = runs.create(config.compose("demo_plain", parts, [*quick, "train/batch_size = 16"]))
    runs.train(*plain, progress=False)
    weights = checkpoints.load(plain[1].best)["model"]
    assert any(not torch.equal(value, weights[name]) for name, value in best["model"].items() if name in weights)


ADJUSTED, HARD = "train/logit_adjustment = 1.0", "train/label_smoothing = 0.0"
REFUSED = [
    ("demo_ecapa", ["train/balanced = True", "train/class_weights = 'inverse'"], "correct the balance of classes"),
    ("demo_ecapa", ["train/balanced = True", ADJUSTED, HARD], "more than once"),
    ("demo_ecapa", ["train/class_weights = 'effective'", ADJUSTED, HARD], "more than once"),
    ("demo_ecapa", [ADJUSTED], "rare classes would be answered"),
    ("demo_ecapa", ["train/loss = 'aam'"], "needs hard labels"),
    ("demo_ecapa", ["train/loss = 'aam'", "train/label_smoothing = 0.0"], "Mixup makes soft ones"),
    ("demo_ecapa", ["Augmentation.operations = [@SoundMixup()]"], "SoundMixup change sound, but Features.cached"),
    ("demo_ecapa", ["train/crop_seconds = None"], "Mixup needs clips of one length"),
    (PROMPT, ["train/loss = 'aam'", "train/label_smoothing = 0.0"], "needs a model with a cosine head"),
    (PROMPT, ["tune/layers = 2"], "prompts are for a frozen encoder"),
    (PROMPT, ["prompt/count = 0", "tune/layers = 2", "tune/lora = 4"], "low-rank updates are for frozen layers"),
    ("ravdess_ecapa_aam", ["train/crop_seconds = None"], "which padding would spoil"),
    ("ravdess_stats_probe", ["train/balanced = True"], "means nothing to a solver"),
    ("ravdess_stats_probe", ["train/loss = 'focal'", ADJUSTED, HARD], "means nothing to a solver"),
    ("ravdess_stats_probe", ["train/keep = 'last'", "train/accumulate = 2"], "train/accumulate = 2 and train/keep"),
    ("ravdess_stats_probe", ["train/smoothing = 0.5", "train/precision = 'bf16'"], "means nothing to a solver"),
    ("ravdess_stats_probe", ["Augmentation.operations = [@Mixup()]"], "augment: means nothing to a solver"),
    ("ravdess_stats_probe", ["Features.cached = False"], "Features.cached = False: means nothing to a solver"),
    ("ravdess_stats_probe", ["stats/solver = 'loop'"], "refit is of the solver closed_form"),
    ("demo_ecapa", ["train/smoothing = 0.5", "train/keep = 'last'"], "chooses no epoch"),
    ("demo_ecapa", ["Protocol.classes = ['angry', 'sad']"], "but the protocol is of angry, sad; set both"),
    (PROMPT, ["encoder/precision = 'bf16'"], 'train/precision = "bf16"'),
    (PROMPT, ["encoder/hears = @mel.LogMel()"], "hears"),
    (PROMPT, ["prompt/count = 0", "prompt/depth = 2"], "there are no prompts"),
    (PROMPT, ["encoder/keep = 'frames'"], "WhisperPrompt takes frames, but features"),
    (PROMPT, ["prompted/normalisation = 'clip'"], "an embedding has no time"),
    ("ravdess_hubert_attn_tiny", ["augment.Augmentation.operations = [@SpecAugment()]"], "SpecAugment change frames"),
]


@pytest.mark.parametrize(("experiment", "overrides", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_does_not_go_together_is_refused_by_name(encoded, trained_home, experiment, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        config.build(config.load(experiment, overrides))
    assert "\n" not in str(caught.value)


def test_soft_labels_and_an_angular_margin_are_refused(encoded, trained_home):
    from ser.experiment import Experiment

    built = config.build(config.load("crema_d_ecapa", []))
    assert isinstance(built, Experiment)
    overrides = ["labels/source = 'voice_soft'", "train/loss = 'aam'", "train/label_smoothing = 0.0"]
    with pytest.raises(UserError, match="soft"):
        config.build(config.load("crema_d_ecapa", [*overrides, "ecapa/head = 'cosine'"]))


def test_the_log_of_a_tuned_encoder_says_the_rate_of_the_rest(encoded, trained_home):
    built, run = train("ravdess_hubert_attn_finetune_tiny", "train/epochs = 1", "Tracking.every = 1", "tune/layers = 1")
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert max(line.get("train/lr", 0) for line in lines) == pytest.approx(1e-3)
    groups = set_up(built).optimizer.param_groups
    assert {round(group["scale"], 6) for group in groups} == {1.0, 0.2}


def test_which_clips_of_a_speaker_count_does_not_depend_on_their_labels(encoded, trained_home):
    """Left-out emotions are no figure's business, but their sound tells of the speaker all the same."""
    settings = ["track/wandb = 'off'", "stats/normalisation = 'speaker'"]
    built, run = runs.create(config.load("crema_d_stats_probe", settings))
    runs.train(built, run, progress=False)
    answers = []
    for calm in ("neutral", "leave_out"):
        folder, metrics = cross(str(run.folder), "ravdess", calm, progress=False)
        rows = [row for _, row in read_csv(folder / "predictions.csv", ("clip",))]
        answers.append({row["clip"]: [row[name] for name in row if name.startswith("p_")] for row in rows})
        assert "speaker-normalised" in metrics["tags"]
    assert set(answers[1]) < set(answers[0])
    assert all(answers[0][clip] == value for clip, value in answers[1].items())


def test_frames_of_several_layers_are_normalised_alike_stored_or_not(encoded, trained_home):
    quick = ["track/wandb = 'off'", "train/epochs = 1"]
    norms = []
    for cached in (True, False):
        built = config.build(config.load("ravdess_hubert_attn_tiny", [*quick, f"Features.cached = {cached}"]))
        if cached:
            extract(read_table("ravdess"), built.features, progress=False)
        norms.append(set_up(built).model.norm)
    torch.testing.assert_close(norms[0].mean, norms[1].mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norms[0].std, norms[1].std, rtol=1e-2, atol=1e-2)
