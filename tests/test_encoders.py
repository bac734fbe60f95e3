"""Pretrained encoders from folders whole and damaged, and the features that are kept of them."""

import json
import logging
import shutil
import time

import pytest
import torch
from encoder_factory import (
    KINDS,
    STATES,
    WHISPER_STATES,
    WHISPER_WIDTH,
    WIDTH,
    assert_near,
    noises,
    padded,
    save,
    wave_model,
    whisper_model,
)
from safetensors.torch import load_file, save_file

from ser.encoders import EncoderFeatures, Pretrained, kept_layers
from ser.errors import UserError
from ser.wave_encoders import WaveEncoder
from ser.whisper_encoder import WhisperEncoder

CLIPS = [9000, 4321, 800]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder of each family in both forms, and of Whisper."""
    root = tmp_path_factory.mktemp("encoders")
    found = {f"{family}-{norm}": save(wave_model(family, norm), root / f"{family}-{norm}") for family, norm in KINDS}
    return found | {"whisper": save(whisper_model(), root / "whisper")}


@pytest.fixture
def copied(folders, tmp_path):
    """Return a function that copies a folder to where it may be damaged."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


@pytest.fixture
def said(capfd):
    """Return a function that tells what was printed or logged since it was called last."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)

    def since():
        out = [*capfd.readouterr(), *(record.getMessage() for record in records)]
        records.clear()
        return "".join(out)

    yield since
    logger.removeHandler(handler)


def pretrained(source, **options):
    if "whisper" in str(source):
        return Pretrained(str(source), WHISPER_WIDTH, WHISPER_STATES, **options)
    return Pretrained(str(source), WIDTH, STATES, **options)


def features(source, keep="statistics", layers=None, **options):
    return EncoderFeatures(pretrained(source, **options), keep, layers)


def made(name):
    """Return the encoder that a folder of ``folders`` holds, made without it."""
    if name == "whisper":
        return WhisperEncoder(whisper_model().encoder)
    return WaveEncoder(wave_model(*name.split("-")), normalise=True)


@torch.no_grad()
def states_of(encoder):
    return list(encoder.states(*padded(noises(CLIPS))))


def assert_same_states(encoder, wanted):
    for state, other in zip(states_of(encoder), states_of(wanted), strict=True):
        assert_near(state, other, 1e-6)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    """Pass the names and weights of a checkpoint through ``change``."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def refusal(pretrained, **raises):
    """Return the one line that loading ends with."""
    with pytest.raises(UserError, **raises) as caught:
        pretrained.load()
    assert "\n" not in str(caught.value)
    assert str(caught.value).strip()
    return str(caught.value)


every_folder = pytest.mark.parametrize("name", [*(f"{family}-{norm}" for family, norm in KINDS), "whisper"])
two_folders = pytest.mark.parametrize("name", ["hubert-group", "whisper"])


@every_folder
def test_a_folder_holds_an_encoder(folders, name, said):
    said()
    encoder = pretrained(folders[name]).load()
    assert not encoder.training
    assert all(weight.dtype == torch.float32 for weight in encoder.parameters())
    assert_same_states(encoder, made(name))
    assert not said()


@two_folders
def test_a_name_is_looked_up_in_the_data_folder(folders, home, name):
    shutil.copytree(folders[name], home / "data" / "encoders" / "someone" / f"tiny-{name}")
    assert_same_states(pretrained(f"someone/tiny-{name}").load(), made(name))


def test_a_folder_may_be_a_link_or_relative(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(folders["hubert-group"])
    assert_same_states(pretrained("mine").load(), made("hubert-group"))


@pytest.mark.parametrize("head", ["HubertForCTC", "Wav2Vec2ForPreTraining", "WavLMForSequenceClassification"])
def test_a_checkpoint_with_a_head_gives_its_encoder(tmp_path, head, said):
    import transformers

    kind = getattr(transformers, head)
    family = kind.base_model_prefix
    base = wave_model(family, "layer")
    whole = kind(base.config)
    getattr(whole, family).load_state_dict(base.state_dict())
    save(whole, tmp_path / "whole")
    said()
    encoder = pretrained(tmp_path / "whole").load()
    assert not said()  # not a word on the head that was left out
    assert_same_states(encoder, made(f"{family}-layer"))


def test_a_whole_whisper_gives_its_encoder(tmp_path, said):
    from transformers import WhisperForConditionalGeneration

    base = whisper_model()
    whole = WhisperForConditionalGeneration(base.config)
    whole.model.load_state_dict(base.state_dict())
    for name, model in (("whisper-whole", whole), ("whisper-encoder", base.encoder)):
        save(model, tmp_path / name)
        said()
        encoder = pretrained(tmp_path / name).load()
        assert not said()
        assert_same_states(encoder, made("whisper"))


@two_folders
def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path, name):
    half = (whisper_model() if name == "whisper" else wave_model("hubert", "group")).half()
    save(half, tmp_path / name)
    assert load_file(tmp_path / name / "model.safetensors").popitem()[1].dtype == torch.float16
    encoder = pretrained(tmp_path / name).load()
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    rounded = made(name)
    rounded.model.load_state_dict({key: weight.half().float() for key, weight in rounded.model.state_dict().items()})
    assert_same_states(encoder, rounded)


def test_weights_may_have_older_names_and_files(copied):
    """The checkpoints of 2021 are pickled and name the direction and length of a weight otherwise."""
    folder = copied("hubert-group")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def rename(weights):
        for new, was in old.items():
            weights = {name.replace(new, was): weight for name, weight in weights.items()}
        return weights

    edit_weights(folder, rename)
    assert_same_states(pretrained(folder).load(), made("hubert-group"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_states(pretrained(folder).load(), made("hubert-group"))


def test_what_only_pretraining_needs_may_be_missing(copied):
    folder = copied("hubert-group")
    edit_weights(folder, lambda weights: {name: w for name, w in weights.items() if name != "masked_spec_embed"})
    assert_same_states(pretrained(folder).load(), made("hubert-group"))
    # Nothing random may enter the fingerprint, or a store could not be gone on with.
    assert features(folder).made_with == features(folder).made_with


def test_loading_leaves_the_logging_of_transformers_as_it_was(folders, copied, monkeypatch):
    logger = logging.getLogger("transformers")
    before = logging.WARNING
    monkeypatch.setattr(logger, "level", before)
    pretrained(folders["hubert-group"]).load()
    assert logger.level == before
    damaged = copied("hubert-layer")
    (damaged / "model.safetensors").write_bytes(b"")
    refusal(pretrained(damaged))
    assert logger.level == before


@two_folders
def test_another_shape_than_was_said_is_refused_with_the_right_one(folders, name):
    width, states = (WHISPER_WIDTH, WHISPER_STATES) if name == "whisper" else (WIDTH, STATES)
    source = str(folders[name])
    said = refusal(Pretrained(source, width + 1, states))
    assert f"encoder/width is {width + 1}" in said
    assert f"'encoder/width = {width}'" in said
    said = refusal(Pretrained(source, width, states - 1))
    assert f"encoder/states is {states - 1}" in said
    assert f"'encoder/states = {states}'" in said


@two_folders
@pytest.mark.parametrize(
    "content", [None, b"", b"{nonsense", b"[]", b"{}", b"\xff\xfe\x00", b'{"model_type": "parrot"}']
)
def test_a_bad_config_is_refused(copied, name, content):
    folder = copied(name)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    said = refusal(pretrained(folder))
    assert str(folder) in said
    if content is None:
        assert "no config.json" in said
    if content == b"{nonsense":
        assert "config.json' is not a valid JSON" in said
    if content and b"parrot" in content:
        assert "parrot" in said


@two_folders
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_refused(copied, name, kept):
    folder = copied(name)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    said = refusal(pretrained(folder))
    assert str(folder) in said
    assert "again" in said


@two_folders
def test_absent_weights_and_pointers_to_them_are_refused(copied, name):
    folder = copied(name)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    (folder / "model.safetensors").write_text(pointer)
    assert str(folder) in refusal(pretrained(folder))
    (folder / "model.safetensors").unlink()
    said = refusal(pretrained(folder))
    assert str(folder) in said
    assert "model.safetensors" in said


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("hubert-group", "encoder.layers.1.layer_norm.weight"),
        ("hubert-layer", "feature_extractor.conv_layers.3.layer_norm.bias"),
        ("wavlm-group", "encoder.layers.0.attention.rel_attn_embed.weight"),
        ("wav2vec2-layer", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        ("whisper", "encoder.layers.2.fc1.bias"),
        ("whisper", "encoder.embed_positions.weight"),
    ],
)
def test_a_missing_weight_is_refused_by_name(copied, name, lost):
    folder = copied(name)
    edit_weights(folder, lambda weights: {key: weight for key, weight in weights.items() if key != lost})
    said = refusal(pretrained(folder))
    assert str(folder) in said
    assert "lacks weights of the encoder: " in said
    assert lost.removeprefix("encoder.") in said


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hubert-group", {"hidden_size": 64}),
        ("hubert-group", {"hidden_size": "wide"}),
        ("wavlm-layer", {"conv_dim": [16] * 7}),
        ("wav2vec2-group", {"num_hidden_layers": STATES + 1}),
        ("whisper", {"d_model": 64}),
        ("whisper", {"num_mel_bins": 128}),
        ("whisper", {"encoder_layers": WHISPER_STATES + 1}),
    ],
)
def test_a_config_of_other_weights_is_refused(copied, name, changes):
    folder = copied(name)
    edit(folder / "config.json", **changes)
    assert str(folder) in refusal(pretrained(folder))


def test_fewer_layers_than_said_are_refused(copied):
    folder = copied("hubert-group")
    edit(folder / "config.json", num_hidden_layers=STATES - 2)
    assert f"'encoder/states = {STATES - 1}'" in refusal(pretrained(folder))


@pytest.mark.parametrize("content", [None, "", "{nonsense", "[]"])
def test_a_bad_preprocessor_config_is_refused(copied, content):
    folder = copied("wavlm-group")
    path = folder / "preprocessor_config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    said = refusal(pretrained(folder))
    assert str(folder) in said
    if content != "[]":
        assert "preprocessor_config.json" in said


@pytest.mark.parametrize("whole", [True, False])
def test_another_kind_of_model_is_refused(tmp_path, whole):
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    folder = tmp_path / "bert"
    model.save_pretrained(folder)
    if whole:
        (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    said = refusal(pretrained(folder))
    assert "is of the family 'bert'; choose an encoder of hubert, wav2vec2, wavlm, whisper" in said


def test_an_unsupported_variant_is_refused(copied):
    folder = copied("hubert-group")
    edit(folder / "config.json", conv_pos_batch_norm=True)
    assert "conv_pos_batch_norm cannot be run" in refusal(pretrained(folder))


@pytest.mark.parametrize("name", ["nobody/has-this-encoder", "nor-this"])
def test_without_a_network_an_unknown_name_says_at_once_which_files_to_put_where(home, monkeypatch, said, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said()
    start = time.monotonic()
    line = refusal(pretrained(name))
    assert time.monotonic() - start < 5
    assert f"'{name}'" in line
    assert f"{home}/data/encoders/{name}/" in line
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert file in line
    assert not said()


def test_an_empty_folder_in_the_place_of_an_encoder_is_refused(home):
    folder = home / "data" / "encoders" / "someone" / "tiny"
    folder.mkdir(parents=True)
    said = refusal(pretrained("someone/tiny"))
    assert str(folder) in said
    assert "config.json" in said


def test_auto_precision_is_bf16_on_a_gpu_and_float32_on_a_cpu():
    auto = pretrained("x")
    assert (auto.precision, auto.resolved(CPU), auto.resolved(CUDA)) == ("auto", "float32", "bf16")
    assert (auto.dtype(CPU), auto.dtype(CUDA)) == (torch.float32, torch.bfloat16)
    assert features("x").resolved(CUDA) == "bf16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_that_was_asked_for_is_taken(precision, dtype):
    asked = pretrained("x", precision=precision)
    assert asked.resolved(CUDA) == precision
    assert asked.dtype(CUDA) == dtype


def test_fp16_on_a_cpu_is_refused(folders):
    with pytest.raises(UserError, match=r"'fp16'.*GPU.*bf16") as caught:
        features(folders["hubert-group"], precision="fp16")(*padded(noises(CLIPS)))
    assert "\n" not in str(caught.value)


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"encoder/precision is 'bf61'; did you mean 'bf16'\?"):
        pretrained("x", precision="bf61")


@every_folder
def test_bf16_stays_close_to_float32(folders, name):
    sound, lengths = padded(noises(CLIPS))
    for keep in ("frames", "statistics"):
        full, _ = features(folders[name], keep)(sound, lengths)
        half, _ = features(folders[name], keep, precision="bf16")(sound, lengths)
        assert half.dtype == torch.float32
        assert 0 < (half - full).square().mean().sqrt() < 0.05 * full.square().mean().sqrt()


@every_folder
def test_statistics_are_mean_and_deviation_of_each_state_over_each_clip(folders, name):
    encoder = made(name)
    clips = noises(CLIPS)
    values, frames = features(folders[name])(*padded(clips))
    assert values.shape == (len(clips), encoder.state_count, 2 * encoder.width)
    assert values.dtype == torch.float32
    for row, clip in enumerate(clips):
        with torch.no_grad():
            states = list(encoder.states(clip[None], torch.tensor([len(clip)])))
        assert frames[row] == states[0].shape[1]
        for number, state in enumerate(states):
            mean = sum(state[0]) / len(state[0])
            deviation = (sum((frame - mean) ** 2 for frame in state[0]) / len(state[0])).sqrt().clamp_min(1e-5)
            assert_near(values[row, number], torch.cat([mean, deviation]), 1e-4)


@every_folder
@pytest.mark.parametrize("layers", [None, [0], [2], [0, 2], (1, 3)])
def test_frames_are_the_chosen_states(folders, name, layers):
    encoder = made(name)
    front_end = features(folders[name], "frames", layers)
    batch = padded(noises(CLIPS))
    values, frames = front_end(*batch)
    states = states_of(encoder)
    assert torch.equal(frames, encoder.frames(batch[1]))
    if layers is not None and len(layers) == 1:
        assert front_end.kind == "frames"
        assert_near(values, states[layers[0]], 1e-4)
    else:
        chosen = range(encoder.state_count) if layers is None else layers
        assert front_end.kind == "layers"
        assert_near(values, torch.stack([states[layer] for layer in chosen], 1), 1e-4)
    for row, count in enumerate(frames.tolist()):
        assert not values[row, ..., count:, :].any()


@two_folders
def test_statistics_of_chosen_states_are_those_among_all(folders, name):
    batch = padded(noises(CLIPS))
    every, _ = features(folders[name])(*batch)
    for layers in ([1], [0, 2]):
        front_end = features(folders[name], layers=layers)
        assert front_end.kind == "statistics"
        assert_near(front_end(*batch)[0], every[:, layers], 1e-6)


@every_folder
@pytest.mark.parametrize("keep", ["statistics", "frames"])
def test_a_clip_has_the_same_features_alone_and_in_a_batch(folders, name, keep):
    front_end = features(folders[name], keep)
    clips = noises(CLIPS)
    values, frames = front_end(*padded(clips, after=float("nan")))
    for row, clip in enumerate(clips):
        own, count = front_end(clip[None], torch.tensor([len(clip)]))
        assert count == frames[row]
        assert_near(values[row] if keep == "statistics" else values[row, :, : frames[row]], own[0], 1e-4)


@pytest.mark.parametrize(("said", "normalised"), [(True, True), (False, False), (None, True)])
def test_sound_is_normalised_where_the_checkpoint_wants_it(tmp_path, said, normalised):
    model = wave_model("wavlm", "layer")
    save(model, tmp_path / "encoder", normalise=said)
    encoder = pretrained(tmp_path / "encoder").load()
    assert_same_states(encoder, WaveEncoder(model, normalised))
    differs = states_of(encoder)[-1] - states_of(WaveEncoder(model, not normalised))[-1]
    assert differs.abs().max() > 1e-2


@pytest.mark.parametrize("keep", ["statistic", "frame", ""])
def test_an_unknown_way_of_keeping_is_refused(keep):
    with pytest.raises(UserError, match=f"encoder/keep is '{keep}'") as caught:
        features("x", keep)
    assert "statistics" in str(caught.value) or "frames" in str(caught.value)


@pytest.mark.parametrize("layers", [[], [-1], [STATES], [0, STATES], [2, 1], [1, 1], [-1, 2]])
def test_wrong_layers_are_refused(layers):
    with pytest.raises(UserError, match=r"states from 0 to 3 in rising order") as caught:
        features("x", "frames", layers)
    assert f"encoder/layers is {layers}" in str(caught.value)


@pytest.mark.parametrize(
    ("keep", "layers", "kind", "suffix", "options"),
    [
        ("statistics", None, "statistics", "-statistics", ""),
        ("statistics", [2], "statistics", "-statistics-2", " 'encoder/layers = [2]'"),
        ("statistics", (0, 3), "statistics", "-statistics-0-3", " 'encoder/layers = [0, 3]'"),
        ("frames", None, "layers", "-frames", " 'encoder/keep = \"frames\"'"),
        ("frames", [1], "frames", "-frames-1", " 'encoder/keep = \"frames\"' 'encoder/layers = [1]'"),
        ("frames", [1, 2], "layers", "-frames-1-2", " 'encoder/keep = \"frames\"' 'encoder/layers = [1, 2]'"),
    ],
)
def test_what_is_kept_names_the_store(keep, layers, kind, suffix, options):
    front_end = features("x", keep, layers)
    assert (front_end.kind, front_end.suffix, front_end.options) == (kind, suffix, options)
    assert (front_end.ending, front_end.rate) == (".pt", 50)
    assert front_end.batch_seconds > 0


def test_kept_layers_counts():
    assert kept_layers(None, 25) == 25
    assert kept_layers([3], 25) == 1
    assert kept_layers((0, 4, 9), 25) == 3


def test_the_spec_tells_two_front_ends_apart_and_loads_nothing():
    default = features("x").spec
    assert features("x").spec == default
    assert json.loads(json.dumps(default)) == default
    others = [
        features("y"), features("x", "frames"), features("x", layers=[1]), features("x", precision="bf16"),
        features("x", revision="v2"),
    ]  # fmt: skip
    specs = [default, *(other.spec for other in others)]
    assert all(one not in specs[:number] for number, one in enumerate(specs))
    assert features("x", layers=(0, 1, 2, 3)).spec == default


@two_folders
def test_the_fingerprint_is_that_of_the_weights(folders, copied, tmp_path, name):
    known = features(folders[name]).made_with
    folder = copied(name)
    assert features(folder).made_with == known  # wherever they lie
    assert len(known["weights_sha256"]) == 64
    front_end = features(folder)
    front_end(*padded(noises(CLIPS)))
    assert front_end.made_with == known  # and whatever was done with them

    def change(weights):
        weights["encoder.layer_norm.bias"][3] += 1
        return weights

    edit_weights(folder, change)
    assert features(folder).made_with != known


@every_folder
def test_a_frozen_encoder_stays_frozen(folders, name):
    front_end = features(folders[name], "frames", [2])
    batch = padded(noises(CLIPS))
    first, _ = front_end(*batch)
    front_end.train()
    assert not front_end.training
    assert not any(module.training for module in front_end.modules())
    assert not any(weight.requires_grad for weight in front_end.parameters())
    again, _ = front_end(*batch)
    assert not again.requires_grad
    assert torch.equal(first, again)


def test_the_encoder_is_loaded_once(folders, monkeypatch):
    loads = []
    load = Pretrained.load
    monkeypatch.setattr(Pretrained, "load", lambda self: loads.append(self) or load(self))
    front_end = features(folders["hubert-group"])
    assert not loads
    for _ in range(2):
        front_end(*padded(noises(CLIPS)))
        assert front_end.made_with
    assert len(loads) == 1
