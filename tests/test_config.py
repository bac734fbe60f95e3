"""The gin boundary: what is wrong with a configuration is said before anything starts."""

import re

import pytest
import torch

from ser import config, gin_files
from ser.errors import UserError
from ser.files import PROJECT

SMALL = ("ecapa/channels = 16", "track/wandb = 'off'", "train/epochs = 1", "train/crop_seconds = 0.5")


def refused(experiment: str = "ravdess_ecapa", *overrides: str) -> str:
    """Return the message with which a configuration is refused while it is loaded or built."""
    with pytest.raises(UserError) as caught:
        config.build(config.load(experiment, [*SMALL, *overrides] if experiment == "ravdess_ecapa" else overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train/epohcs = 5", "did you mean 'train/epochs'?"),  # P2: a mistyped macro
        ("EPOCHS = 5", "no file defines 'EPOCHS'"),
        ("AdamW.weight_decya = 0.1", "did you mean 'weight_decay'?"),  # a mistyped parameter
        ("AdamV.lr = 0.1", "did you mean 'AdamW'?"),  # P1: a mistyped component
        ("optin.AdamW.lr = 0.1", "did you mean 'optim.AdamW'?"),  # a mistyped module
        ("Experiment.model = @EcapaTdn()", "did you mean 'EcapaTdnn'?"),  # a mistyped reference
        ("AdamW.lr = %train/lrr", "did you mean 'train/lr'?"),  # a mistyped macro reference
        ("augment_surroundings.Noise.snr_low = 3.0", "used by nothing: Noise.snr_low"),  # P3: bound, never used
        ("other/AdamW.lr = 3.0", "used by nothing: other/AdamW.lr"),  # P3: a wrong scope
        ("train/lr = '1e-3'", "train/lr is '1e-3', of type str; expected float"),  # P14
        ("train/epochs = 1e3", "train/epochs is 1000.0, of type float; expected int"),  # P14
        ("train/epochs = True", "of type bool; expected int"),
        ("Features.cached = 1", "expected bool"),
        ("Augmentation.operations = 3", "expected"),
        ("train/lr = true", "values are Python literals"),  # P20
        ("track/wandb = off", "values are Python literals"),
        ("train/lr", "values are Python literals"),
        ("train/lr = 1\ntrain/epochs = 2", "expected one binding"),
        ("import os", "gin files import nothing"),  # P6
        ("include 'gin/base.gin'", "an include cannot stand here"),
        ("train/precision = 'fp8'", "train/precision is 'fp8'"),
        ("train/loss = 'focl'", "did you mean 'focal'?"),
        ("train/epochs = 0", "expected 1 or more"),
        ("train/batch_size = 1", "expected 2 or more"),
        ("train/crop_seconds = 0.001", "expected 0.1 or more"),
        ("seed = -1", "expected a whole number from 0"),
        ("seed = @labels.label_set()", "expected a whole number from 0"),
        ("train/lr = -1.0", "expected 0 or more"),
        ("AdamW.beta1 = 2.0", "expected shares in [0, 1)"),
        ("ecapa/channels = 30", "expected a multiple of 8"),
        ("Tracking.every = 0", "expected a number of steps from 1"),
        ("Features.name = '../../x'", "expected the plain name of a folder"),
        ("LogMel.hop_ms = 0", "expected all above 0"),
        ("SpecAugment.band_width = -3", "expected none below 0"),
        ("Experiment.model = @AdamW()", "expected a Classifier"),
        ("Experiment.model = @EcapaTdnn", "with brackets"),
        ("Experiment.augment = @Noise()", "expected a Augmentation"),
        ("Augmentation.operations = [%augment/probabilty]", "did you mean 'augment/probability'?"),
        ("train/epochs = (5", "never closed"),
        ("train/loss = '''", "never closed"),
        (
            "train/loss = focal",
            "not a Python literal in `train/loss = focal`; values are Python literals, text in quotes",
        ),
        ("lr = 1e-4", "did you mean 'train/lr'?"),
        ("include 'gin/augment/heavy.gin'", "write a gin file of your own that has it"),
        ("a/b/AdamW.lr = 0.1", "used by nothing: a/b/AdamW.lr"),
        ("labels/source = 'intendet'", "did you mean 'intended'?"),
        ("data/corpus = 'ravdes'", "did you mean 'ravdess'?"),
        ("Augmentation.operations = [@Noise()]", "Features.cached"),  # sound operations on stored features
    ],
)
def test_a_wrong_override_is_refused_with_the_nearest_right_name(override, says):
    assert says in refused("ravdess_ecapa", override)


def test_an_unknown_experiment_names_the_nearest():
    assert "did you mean 'ravdess_ecapa'?" in refused("ravdes_ecapa")
    assert "no such file" in refused("nowhere/run.gin")


def write(folder, text: str) -> str:
    path = folder / "own.gin"
    path.write_text(text)
    return str(path)


def test_a_mistyped_macro_in_a_file_names_the_nearest(tmp_path):
    message = refused(write(tmp_path, "include 'gin/exp/demo_ecapa.gin'\ntrain/epohcs = 5\n"))
    assert "used by nothing: train/epohcs" in message
    assert "did you mean 'train/epochs'?" in message


def test_a_file_without_slots_says_so(tmp_path):
    assert "cannot be built from these values" in refused(write(tmp_path, "seed = 3\n"))


def test_a_missing_include_names_file_line_and_nearest(tmp_path):
    message = refused(write(tmp_path, "include 'gin/bsae.gin'\n"))
    assert "line 1" in message
    assert "did you mean 'gin/base.gin'?" in message


def test_an_include_after_a_binding_is_refused(tmp_path):
    assert "move includes to the top" in refused(write(tmp_path, "seed = 3\ninclude 'gin/base.gin'\n"))


def test_a_missing_required_value_is_named(tmp_path):
    text = "include 'gin/base.gin'\ninclude 'gin/augment/none.gin'\ninclude 'gin/features/logmel80.gin'\n"
    assert "'data/corpus' must be set" in refused(write(tmp_path, text))
    assert "'experiment.Experiment.model' must be set" in refused(
        write(tmp_path, text + "data/corpus = 'demo'\nsplit/scheme = 'holdout'\n")
    )


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "own.gin").write_bytes(b"\xff\xfe\x00seed")
    assert "not UTF-8" in refused(str(tmp_path / "own.gin"))


@pytest.mark.parametrize("experiment", gin_files.experiments())
def test_every_experiment_file_is_short_and_says_how_to_run_it(experiment):
    lines = (PROJECT / "gin/exp" / f"{experiment}.gin").read_text().splitlines()
    bindings = [line for line in lines if line and not line.startswith(("#", "include"))]
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert len(bindings) <= 20
    assert f"just train {experiment}" in header or f"just cv {experiment}" in header
    assert "UAR" in header


@pytest.mark.parametrize("path", sorted((PROJECT / "gin").rglob("*.gin")), ids=lambda path: path.stem)
def test_includes_come_first_and_start_at_the_checkout(path):  # P15, P16
    kinds = [
        line.startswith("include") for line in path.read_text().splitlines() if line and not line.startswith((" ", "#"))
    ]
    assert kinds == sorted(kinds, reverse=True)
    for line in path.read_text().splitlines():
        if line.startswith("include"):
            assert (PROJECT / line.split("'")[1]).is_file()


def test_slots_stand_in_alphabetical_order():  # P13: evaluation follows the order of binding
    slots = [line for line in (PROJECT / "gin/base.gin").read_text().splitlines() if "Experiment." in line[:40]]
    slots = [line for line in slots if line.startswith("experiment.Experiment.")]
    assert len(slots) >= 10
    assert slots == sorted(slots)


def test_snapshot_reloads_to_the_same_text_and_the_same_weights(tmp_path):  # P4, P5, P12, P13
    first = config.load("ravdess_ecapa", [*SMALL, "seed = 7", "AdamW.beta1 = 0.8"])
    experiment = config.build(first)
    text = config.snapshot(first)
    again = config.load(write(tmp_path, text))
    torch.rand(100)  # a different state of the generator must not matter
    rebuilt = config.build(again)
    assert config.snapshot(again) == text
    assert again.name == "ravdess_ecapa"
    assert rebuilt.seed == 7
    for (name, value), other in zip(
        experiment.model.state_dict().items(), rebuilt.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_another_seed_gives_other_weights():
    one, two = (config.build(config.load("ravdess_ecapa", [*SMALL, f"seed = {seed}"])).model for seed in (1, 2))
    assert not torch.equal(one.head[-1].weight, two.head[-1].weight)


def test_snapshot_holds_defaults_and_typed_settings():
    loaded = config.load("ravdess_ecapa", [*SMALL, "train/lr = 0.002"])
    config.build(loaded)
    values = config.settings(config.snapshot(loaded))  # P22
    assert values["train/lr"] == 0.002
    assert values["AdamW.beta1"] == 0.9  # a default that no file sets
    assert values["train/epochs"] == 1
    assert values["Augmentation.operations"] == ["@augment_features.SpecAugment()", "@augment_features.Mixup()"]


def test_a_path_and_a_name_mean_the_same_from_any_folder(tmp_path, monkeypatch):  # P16
    monkeypatch.chdir(tmp_path)
    by_path = config.load(str(PROJECT / "gin/exp/demo_ecapa.gin"), SMALL)
    assert config.snapshot(by_path) == config.snapshot(config.load("demo_ecapa", SMALL))


def test_show_sorts_values_into_resolved_defaulted_and_unused():
    shown = config.show(config.load("ravdess_ecapa", [*SMALL, "augment_surroundings.Noise.snr_low = 3.0"]))
    resolved, defaulted, wiring, unused = re.split(r"\n(?:defaulted|wiring|unused):", shown)
    assert "train/epochs = 1" in resolved
    assert "AdamW.beta1 = 0.9" in defaulted
    assert "Noise.snr_low = 3.0" in unused
    assert "= %train/epochs" in wiring
    assert not [line for line in resolved.splitlines() if re.search(r" = [%@]", line)]
    lines = [line.strip() for line in resolved.splitlines() if " = " in line]
    first = next(place for place, line in enumerate(lines) if "." in line.partition(" = ")[0])
    assert not any("." not in line.partition(" = ")[0] for line in lines[first:])


def test_every_experiment_is_listed_with_what_it_takes():
    lines = gin_files.experiments_table().splitlines()
    assert [line.split()[0] for line in lines] == gin_files.experiments()
    assert all("UAR" in line for line in lines)


def test_later_overrides_win():
    assert config.build(config.load("ravdess_ecapa", [*SMALL, "seed = 2", "seed = 3"])).seed == 3


def test_a_value_may_hold_an_equals_sign_and_spaces():
    built = config.build(config.load("ravdess_ecapa", [*SMALL, "Tracking.project = 'a = b c'"]))
    assert built.tracking.project == "a = b c"


def test_an_experiment_of_ones_own_without_its_ending_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").touch()
    assert refused("mine") == "'mine' is not in gin/exp/; for the file that lies here: mine.gin"
