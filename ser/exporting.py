"""``just export``: a run as files that answer without this package, each seen to answer as the run does.

``model.ts`` (TorchScript, needs torch alone), ``model.onnx``, ``model.pt2``; ``model_half.ts`` (linear layers in half
precision, for GPUs) and ``model_int8.ts`` (in dynamic int8, for CPUs); beside them labels, normalisation statistics,
the model card, ``parity.json`` and, written last, ``export.json`` with the checksum of each.
"""

import copy
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ser import __version__, checkpoints, dist
from ser.adapting import LoraLinear
from ser.audio import SAMPLE_RATE
from ser.card import model_card
from ser.encoders import EncoderFeatures, fingerprint
from ser.errors import UserError, first_line
from ser.export_index import FEWEST_SAMPLES, FORMAT, INDEX, MOST_SAMPLES, read_index
from ser.files import cannot_write, locked, run_folder, sha256_of, write_bytes, write_json, write_text
from ser.layers import InputNorm
from ser.metrics_file import readable
from ser.parity import Answers, answers_of, compare, compare_known, variant_figures
from ser.pipeline import Pipeline
from ser.run_evaluation import tags_of
from ser.runs import TrainedRun, load_trained
from ser.training_state import check_made_with

__all__ = ["export", "exported", "int8", "onnx", "pipeline_of", "script", "write_index"]

FRESH, OLD = ".export.new", ".export.old"  # beside the export while it is written
TOLERANCE = 1e-4  # largest difference in probability to the eager model
EXAMPLE = (24_000, 17_000)  # samples of the two clips that are traced, unlike any that parity is seen on
PT2_SAMPLES = MOST_SAMPLES - 480  # samples; torch.export cannot tell the two lengths of the mel apart at 30 s


class Checked(nn.Module):
    """What the delivered TorchScript does before it answers: sees that it was given what it expects.

    Attributes:
        labels: names of the outputs.
        sample_rate: of the sound, Hz.
    """

    labels: list[str]

    def __init__(self, inner: torch.jit.ScriptModule, labels: list[str]):
        super().__init__()
        self.inner = inner
        self.labels = labels
        self.sample_rate = SAMPLE_RATE
        self.shortest = FEWEST_SAMPLES
        self.longest = MOST_SAMPLES

    def forward(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """Return probabilities [B, C] of sound float32 [B, N] at 16 kHz and its lengths long [B], in samples."""
        self.check(sound, lengths)
        return self.inner(sound, lengths)

    def check(self, sound: Tensor, lengths: Tensor) -> None:
        """Raise an error for anything else."""
        if sound.dim() != 2 or lengths.dim() != 1 or sound.size(0) != lengths.size(0):
            raise ValueError("expected sound [B, N] and lengths [B]")
        if sound.dtype != torch.float32 or lengths.dtype != torch.int64:
            raise ValueError("expected sound in float32 and lengths in int64")
        if int(lengths.max()) > sound.size(1):
            raise ValueError("a length is above the samples of the sound")
        if int(lengths.min()) < self.shortest or int(lengths.max()) > self.longest or sound.size(1) > self.longest:
            raise ValueError("expected clips of 0.05 s to 30 s at 16 kHz; cut longer sound into windows")


class CheckedBySpeaker(Checked):
    """The same of a model that can be told of a clip's speaker, see ``pipeline.Pipeline``."""

    @torch.jit.export
    def known(self, sound: Tensor, lengths: Tensor, count: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return probabilities [B, C] of clips whose speakers are known by so many clips, a mean and a deviation."""
        self.check(sound, lengths)
        return self.inner.known(sound, lengths, count, mean, std)  # type: ignore[operator]

    @torch.jit.export
    def moments(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what clips tell of their speakers: items [B], mean [B, *F], sum of squares [B, *F]."""
        self.check(sound, lengths)
        return self.inner.moments(sound, lengths)  # type: ignore[operator]


def export(name: str, progress: bool = True) -> tuple[Path, dict[str, Any]]:
    """Write ``<run>/export/`` anew, whole or not at all.

    Args:
        name: of the run.
        progress: say what is done.

    Returns:
        The folder, and the content of ``parity.json``.

    Raises:
        UserError: no such run, or a format whose answers differ from the run's by more than ``TOLERANCE``.
    """
    trained = load_trained(name)
    folder = trained.run.folder / "export"
    with locked(folder.with_name(".export.lock"), f"{folder}: another process exports this run; wait for it"):
        clear(folder)
        fresh = folder.with_name(FRESH)
        try:
            fresh.mkdir(parents=True)
            parity = fill(fresh, trained, progress)
            if folder.exists():
                folder.rename(folder.with_name(OLD))
            fresh.rename(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
        finally:
            clear(folder)
    return folder, parity


def clear(folder: Path) -> None:
    """Remove what an export that was stopped has left; between its two renames that is the export before it."""
    fresh, old = folder.with_name(FRESH), folder.with_name(OLD)
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)


def fill(folder: Path, trained: TrainedRun, shown: bool) -> dict[str, Any]:
    """Write all files of an export into an empty folder; the index comes last."""
    say: Callable[[str], None] = print if shown else lambda _: None
    parameters = sum(p.numel() for p in trained.experiment.model.parameters() if p.requires_grad)
    pipeline = pipeline_of(trained)
    wanted = answers_of(pipeline)
    parity: dict[str, Any] = {
        "tolerance": TOLERANCE, "clips_seconds": wanted.seconds, "batches": wanted.batches, "formats": {},
        "left_out": {},
    }  # fmt: skip
    for file, make in FORMATS.items():
        try:
            answer = make(pipeline, folder / file)
        except LeftOut as reason:
            (folder / file).unlink(missing_ok=True)
            parity["left_out"][file] = str(reason)
            say(f"{file:<16}left out: {reason}")
            continue
        longest = PT2_SAMPLES if file == "model.pt2" else MOST_SAMPLES
        found = compare(answer, wanted, longest, alone=file == "model_int8.ts")
        if pipeline.by_speaker and file.endswith(".ts"):
            found |= compare_known(answer, pipeline, wanted, alone=file == "model_int8.ts")
        found["bytes"] = (folder / file).stat().st_size
        worst = torch.tensor([value for name, value in found.items() if name.startswith("largest_difference")]).max()
        if file in EXACT and not worst <= TOLERANCE:
            raise UserError(
                f"{file}: its answers differ from the run's by {worst:.2g}, more than "
                f"{TOLERANCE:g}, at {found['where']}; nothing was exported"
            )
        if file not in EXACT:
            found |= variant_figures(answer, pipeline, trained, shown)
        parity["formats"][file] = found
        say(f"{file:<16}{found['bytes'] / 2**20:5.1f} MiB, largest difference {found['largest_difference']:.1e}")
    write_json(folder / "parity.json", parity)
    write_json(folder / "norm_stats.json", norm_stats(pipeline.model))
    write_text(folder / "model_card.md", model_card(trained, parity, parameters))
    about = {
        "run": trained.run.folder.name,
        "checkpoint": checkpoints.identity(trained.checkpoint),
        "tags": tags_of(trained),
    }
    write_index(folder, pipeline, about)
    return parity


def write_index(folder: Path, pipeline: Pipeline, about: dict[str, Any]) -> None:
    """Write ``labels.json``, and last the index of all files that lie in a folder."""
    labels = list(pipeline.model.labels)
    write_json(folder / "labels.json", {"labels": labels})
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    index = {
        "format": FORMAT, "ser": __version__, **about, "model": type(pipeline.model).__name__, "labels": labels,
        "sample_rate": SAMPLE_RATE, "shortest": FEWEST_SAMPLES, "longest": MOST_SAMPLES,
        "by_speaker": pipeline.by_speaker, "temperature": pipeline.temperature, "identity": fingerprint(pipeline),
        "files": files,
    }  # fmt: skip
    write_json(folder / INDEX, index)


def pipeline_of(trained: TrainedRun) -> Pipeline:
    """Return a run as one module on the CPU, low-rank updates merged and nothing in it that is never used."""
    front_end, classifier = trained.experiment.features.front_end.cpu(), trained.experiment.model.cpu()
    if isinstance(front_end, EncoderFeatures):
        front_end.packs, front_end.encoder = False, None
        front_end.pretrained.precision, front_end.pretrained.compile = "float32", False
        encoder, _ = front_end.ready(torch.device("cpu"))  # first: whoever asks for it loads it where they are
        check_made_with(trained.run.best, trained.checkpoint, front_end.made_with)
        del encoder.blocks[front_end.layers[-1] :]
    for module in classifier.modules():
        module._compiled_call_impl = None  # what torch.compile left; a trace cannot follow it
    replace_layers(classifier, LoraLinear, LoraLinear.merged)
    return Pipeline(front_end, classifier, trained.temperature)


class LeftOut(Exception):
    """Why a format cannot be made of this model, or on this machine."""


def script(pipeline: Pipeline, path: Path) -> Answers:
    """Write a pipeline as TorchScript; return it as it is read back."""
    sound, lengths = example()
    methods: dict[str, tuple[Tensor, ...]] = {"forward": (sound, lengths)}
    with quiet(), torch.no_grad():
        if pipeline.by_speaker:
            _, mean, _ = pipeline.moments(sound, lengths)
            methods["moments"] = (sound, lengths)
            methods["known"] = (sound, lengths, torch.ones(len(lengths)), mean, torch.ones_like(mean))
        inner = torch.jit.trace_module(pipeline, methods, check_trace=False)
        kind = CheckedBySpeaker if pipeline.by_speaker else Checked
        made = torch.jit.script(kind(inner, list(pipeline.model.labels)))
    write_script(made, path)
    return torch.jit.load(str(path))


def write_script(made: torch.jit.ScriptModule, path: Path) -> None:
    """Write TorchScript without its tables of source lines, which hold the paths of this machine."""
    buffer = io.BytesIO()
    torch.jit.save(made, buffer)
    buffer.seek(0)
    reader = torch._C.PyTorchFileReader(buffer)
    written = io.BytesIO()  # not a file: torch's own writer ends the process when the disk is full
    writer = torch._C.PyTorchFileWriter(written)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and not name.startswith(".data/"):  # the writer adds these itself
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    write_bytes(path, written.getbuffer())


class HalfLinear(nn.Module):
    """A linear layer whose weights and products are in half precision, its output in float32."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = copy.deepcopy(layer).half()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return self.layer(x.half()).float()


def half(pipeline: Pipeline, path: Path) -> Answers:
    """Write the pipeline with linear layers in half precision; all else stays as it is."""
    changed = copy.deepcopy(pipeline)
    replace_layers(changed, nn.Linear, HalfLinear)
    return script(changed, path)


def int8(pipeline: Pipeline, path: Path) -> Answers:
    """Write the pipeline with linear layers in dynamic int8.

    Its inputs are rounded by the range of the whole batch, so it is to answer one clip at a time.
    """
    dist.choose_int8_engine()
    try:
        with quiet():
            small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(pipeline), {nn.Linear}, torch.qint8)
    except RuntimeError as error:  # as a torch without int8 says it
        raise LeftOut(f"this torch has no int8 ({first_line(error)})") from error
    return script(small, path)


def replace_layers(module: nn.Module, kind: type, change: Callable[[Any], nn.Module]) -> None:
    """Replace all layers of a kind inside a module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, change(child))


def onnx(pipeline: Pipeline, path: Path) -> Answers:
    """Write ``forward`` as ONNX with a dynamic batch and length; return it as onnxruntime runs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise LeftOut("onnxruntime is not installed: pip install onnx onnxruntime") from error
    if sum(tensor.numel() * tensor.element_size() for tensor in pipeline.state_dict().values()) >= 2**31:
        raise LeftOut("its weights are above the 2 GiB that an ONNX file may have; take model.ts")
    free = {"sound": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}, "probabilities": {0: "batch"}}
    with quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                pipeline, example(), str(path), dynamo=False, opset_version=17, dynamic_axes=free,
                input_names=["sound", "lengths"], output_names=["probabilities"],
            )  # fmt: skip
        except Exception as error:  # whatever the exporter raises for what it has no operator for
            raise LeftOut(f"torch.onnx cannot follow it ({first_line(error)})") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads would take a core
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(sound: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"sound": sound.numpy(), "lengths": lengths.numpy()})[0])

    return answer


def pt2(pipeline: Pipeline, path: Path) -> Answers:
    """Write ``forward`` as a ``torch.export`` programme."""
    if any(isinstance(module, nn.LSTM) for module in pipeline.modules()):
        raise LeftOut("torch.export cannot follow an LSTM over clips of any length; take model.ts or model.onnx")
    from torch.export import Dim

    batch, samples = Dim("batch", max=1024), Dim("samples", min=FEWEST_SAMPLES, max=PT2_SAMPLES)
    with quiet(), torch.no_grad():
        try:
            made = torch.export.export(
                pipeline, example(), dynamic_shapes={"sound": {0: batch, 1: samples}, "lengths": {0: batch}},
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
        except Exception as error:  # whatever torch cannot follow in a model of the user's
            raise LeftOut(f"torch.export cannot follow it ({first_line(error)})") from error
        for node in made.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds the paths of this machine
        torch.export.save(made, path)
        return torch.export.load(path).module()


FORMATS: dict[str, Callable[[Pipeline, Path], Answers]] = {
    "model.ts": script, "model.onnx": onnx, "model.pt2": pt2, "model_half.ts": half, "model_int8.ts": int8,
}  # fmt: skip
EXACT = ("model.ts", "model.onnx", "model.pt2")


def example() -> tuple[Tensor, Tensor]:
    """Return the batch that is traced."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(EXAMPLE), max(EXAMPLE), generator=generator) * 0.1, torch.tensor(EXAMPLE)


def norm_stats(model: nn.Module) -> dict[str, Any]:
    """Return what each normalisation of a model subtracts and divides by, by the name of its module."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, InputNorm)}
    return {
        name: {"kind": norm.kind, "prior": norm.prior, "mean": norm.mean.tolist(), "std": norm.std.tolist()}
        for name, norm in norms.items()
        if norm.kind in ("corpus", "speaker")
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings back: parity says what matters of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def exported(name: str) -> Path:
    """Return the export of a run; made now where there is none, or one of other weights, or before it was scored.

    Raises:
        UserError: as ``export``.
    """
    run = run_folder(name)
    folder = run / "export"
    if (folder / INDEX).is_file():
        best = checkpoints.load(run / checkpoints.BEST)
        same = checkpoints.is_of(read_index(folder).get("checkpoint"), best)
        made = (folder / INDEX).stat().st_mtime
        # The card tells of evaluations; of those made since it would not.
        told = [*run.glob("eval/*/*.json"), *run.glob("scorings.jsonl")]
        for pooled, figures in readable(run.parent.glob("*-cv-*/eval/*/metrics.json")):
            told += [pooled / "metrics.json" for fold in figures.get("folds", []) if fold["run"] == run.name]
        later = [path for path in told if path.stat().st_mtime > made]
        if same and not later and "unfinished" not in read_index(folder)["tags"]:
            return folder
    return export(name)[0]
