"""Exports answer as the run does: every model, every format, every length and batch."""

import functools
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, command, compare_unoptimised, one_error_line
from torch import nn

from ser import exporting, parity, runs
from ser.adapting import Adapted
from ser.ecapa_tdnn import EcapaTdnn
from ser.encoders import EncoderFeatures
from ser.errors import UserError
from ser.export_index import MOST_SAMPLES
from ser.hubert_attn import HubertAttn
from ser.mel import LogMel
from ser.pipeline import Pipeline
from ser.stats_probe import StatsProbe
from ser.whisper_prompt import WhisperPrompt

LABELS = ["angry", "happy", "neutral", "sad"]


def probe(sources, family, **options):
    features = EncoderFeatures(sources[family])
    features.packs = False
    features.ready(torch.device("cpu"))
    return Pipeline(features, StatsProbe(LABELS, sources[family].width, sources[family].states, **options), 1.3)


def stored_frames(sources):
    features = EncoderFeatures(sources["whisper"], "frames", [1, 3])
    features.packs = False
    features.ready(torch.device("cpu"))
    return Pipeline(features, HubertAttn(LABELS, features.pretrained.width, 2, hidden=16, normalisation="speaker"))


def with_encoder(sources, family, head=HubertAttn, **options):
    adapted = Adapted(sources[family], **options)
    extra = {"width": adapted.width, "hidden": 16} if head is HubertAttn else {}
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return Pipeline(adapted.encoder.front_end, head(LABELS, encoder=adapted, normalisation="speaker", **extra), 0.8)


def ecapa(sources, **options):
    return Pipeline(LogMel(), EcapaTdnn(LABELS, channels=32, **options))


MODELS = {
    "probe-whisper": lambda sources: probe(sources, "whisper", normalisation="speaker"),
    "probe-hubert": lambda sources: probe(sources, "hubert"),
    "probe-wavlm": lambda sources: probe(sources, "wavlm"),
    "probe-wav2vec2": lambda sources: probe(sources, "wav2vec2"),
    "attn-stored": stored_frames,
    "attn-lora": lambda sources: with_encoder(sources, "hubert", lora=4),
    "attn-tuned": lambda sources: with_encoder(sources, "whisper", tune=None),
    "prompts": lambda sources: with_encoder(sources, "whisper", WhisperPrompt, prompts=4, prompt_depth=None),
    "ecapa": lambda sources: ecapa(sources, normalisation="speaker"),
    "ecapa-cosine": lambda sources: ecapa(sources, head="cosine"),
}


BATCH = functools.cache(parity.batch)  # speech made up for lengths and a seed


@pytest.fixture
def few(monkeypatch, request):
    """Look at fewer lengths, the longest and a batch of eight among them.

    All but two models go without TorchScript's optimiser, which would compile anew for each shape.
    """
    monkeypatch.setattr(parity, "batch", BATCH)
    monkeypatch.setattr(parity, "ALONE", (0.5, 2.0, 30.0))
    monkeypatch.setattr(parity, "TOGETHER", ((1.1, 0.5), (1.3, 2.9, 0.8, 2.0, 3.6, 0.5, 1.1, 2.2)))
    if not request.node.name.endswith(("[prompts]", "[attn-lora]")):
        compare_unoptimised(monkeypatch)


def numbers_alone_know_a_device(path) -> bool:
    """Say whether a traced model computes wherever its inputs lie: what names a device comes to nothing but numbers."""
    lines = str(torch.jit.load(str(path)).inner.inlined_graph).splitlines()
    words = [re.split(r"[ ,()]+", line.strip()) for line in lines if line.strip().startswith("%")]
    devices = {line[0] for line in words if "Device" in line and "prim::Constant" in " ".join(line)}
    users = [line for line in words if "Device" not in line and devices & set(line)]
    fine: set[str] = set()
    for line in reversed(words):  # what a number comes of
        passed_on = line[0] in fine and {"aten::to", "aten::detach"} & set(line)
        if passed_on or "aten::Int" in line:
            fine |= set(line)
    return all(line[0] in fine for line in users)


@torch.no_grad()
def lively(pipeline: Pipeline) -> Pipeline:
    """Make the answers of a random model differ from clip to clip: logits of mean 0, and deviation 1 at most."""
    head = pipeline.model.head
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=4 / parameter.shape[-1] ** 0.5)
    last = head if isinstance(head, nn.Linear) else list(head.children())[-1] if list(head.children()) else None
    if isinstance(last, nn.Linear):
        heard = [BATCH((seconds,), seed) for seed, seconds in enumerate((0.5, 1.0, 2.0, 3.0))]
        logits = torch.cat([pipeline.model(*pipeline.front_end(*each)) for each in heard])
        std, mean = torch.std_mean(logits, 0)
        std = std.clamp_min(1)
        last.weight /= std[:, None]
        last.bias.copy_((last.bias - mean) / std)
    return pipeline


@pytest.mark.parametrize("name", MODELS)
def test_torchscript_and_onnx_answer_as_the_model(sources, few, tmp_path, name):
    torch.manual_seed(0)
    pipeline = lively(MODELS[name](sources))
    wanted = parity.answers_of(pipeline)
    every = torch.cat(list(wanted.answers))
    assert float((every.amax(0) - every.amin(0)).max()) > 0.01, "a hundred times what is allowed below"
    made = exporting.script(pipeline, tmp_path / "model.ts")
    assert numbers_alone_know_a_device(tmp_path / "model.ts")
    assert parity.compare(made, wanted, MOST_SAMPLES)["largest_difference"] < 1e-4
    assert (
        parity.compare(exporting.onnx(pipeline, tmp_path / "m.onnx"), wanted, MOST_SAMPLES)["largest_difference"] < 1e-4
    )
    if pipeline.by_speaker:
        sound, lengths = wanted.inputs[-1]
        ours, theirs = pipeline.moments(sound, lengths), made.moments(sound, lengths)
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
        known = sound, lengths, torch.full((8,), 3.0), ours[1] + 0.1, torch.ones_like(ours[1])
        torch.testing.assert_close(made.known(*known), pipeline.known(*known), rtol=0, atol=1e-4)
        assert (made.known(*known) - made(sound, lengths)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["probe-whisper"])
def test_torch_export_answers_as_the_model(sources, few, tmp_path, name):
    torch.manual_seed(0)
    pipeline = lively(MODELS[name](sources))
    made = exporting.pt2(pipeline, tmp_path / "model.pt2")
    found = parity.compare(made, parity.answers_of(pipeline), exporting.PT2_SAMPLES)
    assert found["largest_difference"] < 1e-4
    assert found["batches_of"] == [1, 1, 2, 8]


def test_torch_export_of_an_lstm_is_left_out_with_the_reason(sources, tmp_path):
    with pytest.raises(exporting.LeftOut, match="LSTM"):
        exporting.pt2(stored_frames(sources), tmp_path / "model.pt2")


@pytest.mark.parametrize("name", ["prompts", "attn-tuned", "probe-hubert"])
@pytest.mark.parametrize(("variant", "share"), [(exporting.half, 0.02), (exporting.int8, 0.3)], ids=["half", "int8"])
def test_variants_that_round_stay_near(sources, few, tmp_path, name, variant, share):
    torch.manual_seed(0)
    pipeline = lively(MODELS[name](sources))
    wanted = parity.answers_of(pipeline)
    every = torch.cat(list(wanted.answers))
    spread = float((every.amax(0) - every.amin(0)).max())  # over clips; a constant answer is off by half of it
    made = variant(pipeline, tmp_path / "model.ts")
    found = parity.compare(made, wanted, MOST_SAMPLES, alone=variant is exporting.int8)
    assert 0 < found["largest_difference"] < share * spread
    assert (tmp_path / "model.ts").stat().st_size > 0


def test_low_rank_updates_are_merged_and_unused_layers_left_out(encoded, trained_home):
    from ser import config

    quick = ["track/wandb = 'off'", "train/epochs = 1", "encoder/layers = [1, 2]", "train/precision = 'float32'"]
    built, run = runs.create(config.load("ravdess_whisper_attn_lora_tiny", quick))
    runs.train(built, run, progress=False)
    model = runs.load_trained(run.folder.name)
    before = model.experiment.model.eval()
    batch = torch.randn(2, 300, 80), torch.tensor([300, 200])
    with torch.no_grad():
        wanted = before(*batch)
        for block in before.encoder.encoder.blocks:
            block.compile()  # as encoder/compile leaves them
        pipeline = exporting.pipeline_of(model)
        exporting.script(pipeline, trained_home / "model.ts")
        torch.testing.assert_close(pipeline.model(*batch), wanted, rtol=1e-4, atol=1e-5)
    names = [name for name, _ in pipeline.named_parameters()]
    assert not [name for name in names if name.endswith((".up", ".down")) or "layers.3" in name]


SHAPE, TYPE = r"expected sound \[B, N\]", "expected sound in float32 and lengths in int64"
LENGTH = "expected clips of 0.05 s"
BAD = {
    "one dimension": (torch.zeros(9000), torch.tensor([9000]), SHAPE),
    "double": (torch.zeros(1, 9000).double(), torch.tensor([9000]), TYPE),
    "int32 lengths": (torch.zeros(1, 9000), torch.tensor([9000], dtype=torch.int32), TYPE),
    "too short": (torch.zeros(1, 9000), torch.tensor([100]), LENGTH),
    "a length beyond": (torch.zeros(1, 9000), torch.tensor([9001]), "a length is above the samples"),
    "too long": (torch.zeros(1, MOST_SAMPLES + 1), torch.tensor([MOST_SAMPLES + 1]), LENGTH),
}


@pytest.fixture(scope="module")
def scripted(delivered):
    return torch.jit.load(str(delivered / "outputs/small/export/model.ts"))


@pytest.mark.parametrize("what", BAD)
def test_the_script_refuses_what_it_cannot_answer(scripted, what):
    *inputs, message = BAD[what]
    with torch.jit.optimized_execution(False), pytest.raises(torch.jit.Error, match=message):
        scripted(*inputs)


def test_the_script_needs_torch_alone(delivered, tmp_path):
    path = delivered / "outputs/small/export/model.ts"
    code = f"""
import sys, torch
model = torch.jit.load({str(path)!r})
print(model.labels, model.sample_rate, model(torch.zeros(1, 16000), torch.tensor([16000])).sum().item())
assert not [name for name in sys.modules if name.split(".")[0] in ("ser", "transformers", "speechbrain", "torchaudio")]
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['angry'")
    assert " 16000 " in done.stdout


def test_the_command_writes_the_whole_set_without_a_trace_of_this_machine(
    delivered, tmp_path, few, run_here, monkeypatch
):
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(delivered / "data")
    (tmp_path / "outputs").mkdir()
    run = tmp_path / "outputs/small"
    subprocess.run(["cp", "-r", str(delivered / "outputs/small"), str(run)], check=True)
    done = run_here("export.py", "small")
    assert done.returncode == 0, done.stderr
    folder = run / "export"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.ts", "model.onnx", "model.pt2", "model_half.ts", "model_int8.ts", "labels.json", "norm_stats.json",
        "model_card.md", "parity.json", "export.json",
    }  # fmt: skip
    found = json.loads((folder / "parity.json").read_text())
    for name in exporting.EXACT:
        assert set(found["formats"][name]["batches_of"]) == {1, 2, 8}
        assert found["formats"][name]["largest_difference"] <= 1e-4
    assert found["formats"]["model.ts"]["largest_difference_known"] <= 1e-4
    for name in ("model_half.ts", "model_int8.ts"):
        facts = found["formats"][name]
        assert facts["uar_change"] == pytest.approx(facts["uar"] - facts["uar_exact"])
        assert facts["bytes"] == (folder / name).stat().st_size
    assert json.loads((folder / "labels.json").read_text())["labels"][0] == "angry"
    (stats,) = json.loads((folder / "norm_stats.json").read_text()).values()
    assert len(stats["mean"]) == 80
    traces = (str(PROJECT).encode(), str(tmp_path).encode(), str(Path.home()).encode() + b"/")
    for path in folder.iterdir():
        assert not [trace for trace in traces if trace in unpacked(path)], path.name
    assert not {exporting.FRESH, exporting.OLD} & {path.name for path in run.iterdir()}


def unpacked(path: Path) -> bytes:
    """Return the bytes of a file, and of all that is packed in it."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"\n".join(archive.read(name) for name in archive.namelist())


def test_a_format_that_answers_otherwise_fails_and_keeps_the_export_before(delivered, few, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(delivered))
    folder = delivered / "outputs/small/export"
    before = (folder / "export.json").read_text()

    def wrong(pipeline, path):
        path.write_bytes(b"")
        return lambda sound, lengths: pipeline(sound, lengths).flip(1)

    monkeypatch.setattr(exporting, "FORMATS", {"model.onnx": wrong})
    with pytest.raises(UserError, match=r"model\.onnx: its answers differ from the run's by .* at a clip of .* s in a"):
        exporting.export("small", progress=False)
    assert (folder / "export.json").read_text() == before
    assert not {exporting.FRESH, exporting.OLD} & {path.name for path in folder.parent.iterdir()}


def test_an_export_that_was_killed_between_its_renames_is_put_back(tmp_path):
    folder = tmp_path / "export"
    for name in (exporting.OLD, exporting.FRESH):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    exporting.clear(folder)
    assert (folder / "which").read_text() == exporting.OLD
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_answer_that_is_not_a_number_is_a_difference(sources, few):
    pipeline = MODELS["ecapa"](sources)
    wanted = parity.answers_of(pipeline)
    found = parity.compare(lambda sound, lengths: pipeline(sound, lengths) * torch.nan, wanted, MOST_SAMPLES)
    assert not found["largest_difference"] <= 1e-4


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    assert "no run of this name" in one_error_line(command("export.py", "nothing", home=tmp_path))
