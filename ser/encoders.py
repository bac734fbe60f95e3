"""Pretrained encoders behind one face, and the front end that turns their layers into features.

HuBERT, WavLM and wav2vec 2.0 are in ``wave_encoders``, Whisper in ``whisper_encoder``; weights come from the hub,
or from a folder where there is no network.

For emotion the middle layers are far better than the last, and checkpoints that were only pretrained several
points better than those fine-tuned for speech recognition: fine-tuning teaches the upper layers to forget how
something was said. ``just probe`` measures it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ser import dist
from ser.errors import UserError, nearest, some
from ser.files import data_folder
from ser.interfaces import Encoder, FrontEnd
from ser.layers import masked_mean_std

__all__ = ["EncoderFeatures", "Pretrained", "fingerprint", "front_end", "kept_layers"]

KEEP = ("frames", "statistics", "input")
BATCH_SECONDS = {"cpu": 10.0, "cuda": 400.0}  # padded sound that keeps a device busy
UNUSED_WEIGHTS = {"masked_spec_embed"}  # what only pretraining looks at


class Pretrained:
    """An encoder that is loaded when it is first needed.

    Args:
        source: name on the Hugging Face hub, or a folder with config.json, model.safetensors and (all but Whisper)
            preprocessor_config.json. A name is looked up in ``data/encoders/<name>/`` before the hub is asked.
        width: features D of its states; checked when it is loaded.
        states: number L of its states, the convolutions' and each layer's; checked.
        revision: branch, tag or commit on the hub.
        precision: float32, bf16, fp16, or auto: bf16 on a GPU, float32 on a CPU.
        compile: let torch.compile fuse each layer; pays on a GPU, after a minute.

    Raises:
        UserError: an unknown precision.
    """

    def __init__(
        self,
        source: str,
        width: int,
        states: int,
        revision: str = "main",
        precision: str = "auto",
        compile: bool = False,
    ):
        if precision not in (*dist.PRECISIONS, "auto"):
            raise UserError(f"encoder/precision is '{precision}'{nearest(precision, [*dist.PRECISIONS, 'auto'])}")
        self.source, self.revision = source, revision
        self.width, self.states = width, states
        self.precision = precision
        self.compile = compile

    def chosen(self, layers: Sequence[int] | None) -> list[int]:
        """Return the states that ``encoder/layers`` names, all where it is None.

        Raises:
            UserError: none, not in rising order, or more than the encoder has.
        """
        wanted = list(range(self.states)) if layers is None else list(layers)
        if not wanted or wanted != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < self.states:
            raise UserError(
                f"encoder/layers is {layers}; expected None, or states from 0 to {self.states - 1} in rising order"
            )
        return wanted

    def load(self) -> Encoder:
        """Return the encoder in float32 on the CPU, in evaluation mode.

        Raises:
            UserError: not found, damaged, of an unknown family, of another shape than was said, or a WavLM that is to
                be compiled.
        """
        encoder = load(self.source, self.revision)
        for name, said, found in (("width", self.width, encoder.width), ("states", self.states, encoder.state_count)):
            if said != found:
                raise UserError(
                    f"encoder/{name} is {said}, but {self.source} has {found}; set 'encoder/{name} = {found}'"
                )
        if self.compile and getattr(encoder, "wavlm", False):
            raise UserError(f"encoder/compile is True, but {self.source} is a WavLM, whose layers run by their parts")
        return encoder.eval()

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the type that the encoder computes in on a device.

        Raises:
            UserError: fp16 on a CPU.
        """
        if self.precision == "fp16" and device.type == "cpu":
            raise UserError("encoder/precision is 'fp16', which needs a GPU; set 'encoder/precision = \"bf16\"'")
        return dist.PRECISIONS[self.resolved(device)]

    def resolved(self, device: torch.device) -> str:
        """Return the precision with ``auto`` decided for a device."""
        if self.precision != "auto":
            return self.precision
        return "float32" if device.type == "cpu" else "bf16"


def kept_layers(layers: Sequence[int] | None, states: int) -> int:
    """Return how many of ``states`` states are kept, where ``layers`` lists them or None keeps all."""
    return states if layers is None else len(layers)


def front_end(
    encoder: Pretrained, hears: FrontEnd, keep: str = "statistics", layers: Sequence[int] | None = None
) -> FrontEnd:
    """Return what a model is given: something of the states of a frozen encoder, or what the encoder hears.

    Args:
        encoder: pretrained.
        hears: what goes into it, for ``input``: the model has the encoder inside.
        keep: ``statistics`` or ``frames``, see ``EncoderFeatures``; or ``input``.
        layers: as of ``EncoderFeatures``.

    Raises:
        UserError: an unknown ``keep``, or as ``EncoderFeatures``.
    """
    if keep not in KEEP:
        raise UserError(f"encoder/keep is '{keep}'{nearest(keep, KEEP)}")
    return hears if keep == "input" else EncoderFeatures(encoder, keep, layers)


class EncoderFeatures(FrontEnd):
    """What is kept of a frozen encoder.

    Args:
        encoder: pretrained.
        keep: ``statistics``: mean and standard deviation of each state over the clip's frames, [B, L, 2D];
            ``frames``: the states themselves, [B, L, T, D], or [B, T, D] of a single one.
        layers: states to keep, in rising order; None for all. Nothing above the last is computed.

    Raises:
        UserError: an unknown ``keep``, or layers that the encoder does not have.
    """

    ending = ".pt"

    def __init__(self, encoder: Pretrained, keep: str = "statistics", layers: Sequence[int] | None = None):
        super().__init__()
        if keep not in KEEP[:2]:
            raise UserError(f"encoder/keep is '{keep}'{nearest(keep, KEEP[:2])}")
        self.pretrained = encoder
        self.keep = keep
        self.layers = encoder.chosen(layers)
        self.encoder: Encoder | None = None
        self.packs = True  # an exported model must not
        one = keep == "frames" and len(self.layers) == 1
        self.kind = keep if keep == "statistics" or one else "layers"
        width = encoder.width if keep == "frames" else 2 * encoder.width
        self.shape = (width,) if one else (len(self.layers), width)
        self.suffix = f"-{keep}" + ("" if layers is None else "-" + "-".join(map(str, self.layers)))
        self.options = "" if keep == "statistics" else f" 'encoder/keep = \"{keep}\"'"
        self.options += "" if layers is None else f" 'encoder/layers = {self.layers}'"
        for name, usual in (("precision", "auto"), ("revision", "main")):
            if (value := getattr(encoder, name)) != usual:
                self.options += f" 'encoder/{name} = \"{value}\"'"

    @property
    def spec(self) -> dict[str, Any]:
        """How the features are made, for the index of a feature store."""
        return {
            "kind": "encoder", "source": self.pretrained.source, "revision": self.pretrained.revision,
            "keep": self.keep, "layers": self.layers, "precision": self.pretrained.precision,
        }  # fmt: skip

    @property
    def made_with(self) -> dict[str, Any]:
        """The fingerprint of the weights; loads them."""
        return {"weights_sha256": self.ready(dist.device())[1]}

    @property
    def rate(self) -> float:  # type: ignore[override]
        """Frames per second."""
        return Encoder.rate

    @property
    def batch_seconds(self) -> float:  # type: ignore[override]
        """Padded sound of an extraction batch."""
        return BATCH_SECONDS[dist.device().type]

    def resolved(self, device: torch.device) -> str:
        """Return the precision that it computes in on a device."""
        return self.pretrained.resolved(device)

    def settle(self, spec: dict[str, Any]) -> None:
        """Go on in the precision that a store was begun in."""
        self.pretrained.precision = spec["precision"]

    def ready(self, device: torch.device) -> tuple[Encoder, str]:
        """Return the encoder on the device, and the fingerprint of its weights; loads it the first time."""
        if self.encoder is None:
            encoder = self.pretrained.load()
            self.weights = fingerprint(encoder)
            self.encoder = encoder.requires_grad_(False).to(device, self.pretrained.dtype(device))
            if self.pretrained.compile:
                for layer in self.encoder.blocks:
                    layer.compile(dynamic=True)
            elif device.type == "cpu" and self.packs:
                self.encoder.pack()
        return self.encoder, self.weights

    def train(self, mode: bool = True) -> "EncoderFeatures":
        """Stay in evaluation mode: a frozen encoder has no dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn sound [B, N] into what is kept of it, float32, zero after each clip's end, and frames long [B]."""
        encoder, _ = self.ready(sound.device)
        frames = encoder.frames(lengths)
        values = []
        for number, state in enumerate(encoder.states(sound, lengths, self.layers[-1])):
            if number in self.layers:
                state = state.float()
                values.append(torch.cat(masked_mean_std(state, frames), 1) if self.keep == "statistics" else state)
        return (values[0] if self.kind == "frames" else torch.stack(values, 1)), frames


def load(source: str, revision: str) -> Encoder:
    """Load an encoder from a folder or the hub, in float32; see ``Pretrained`` for ``source``."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
    from transformers.models.whisper import modeling_whisper
    from transformers.utils import logging

    from ser.wave_encoders import FAMILIES, WaveEncoder
    from ser.whisper_encoder import WhisperEncoder

    folder = find(source)
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else weights in another format may come twice
    model: Any
    where: dict[str, Any] = {"pretrained_model_name_or_path": folder or source, "revision": revision}
    logging.disable_progress_bar()
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the weights of the decoder that are left out
    hub_logging.set_verbosity_error()  # and each attempt without a network
    try:
        settings = AutoConfig.from_pretrained(**where)
        if settings.model_type not in (*FAMILIES, "whisper"):
            known = ", ".join((*FAMILIES, "whisper"))
            raise UserError(
                f"is of the family '{settings.model_type}'; choose an encoder of {known}, "
                "or write a class for it: CONTRIBUTING.md"
            )
        options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
        if settings.model_type == "whisper":
            model, info = modeling_whisper.WhisperEncoder.from_pretrained(  # type: ignore[misc]
                **where, **options, attn_implementation="sdpa", key_mapping={r"^(model\.)?encoder\.": ""}
            )
            encoder: Encoder = WhisperEncoder(model)
        else:
            attention = "eager" if settings.model_type == "wavlm" else "sdpa"
            model, info = AutoModel.from_pretrained(  # type: ignore[misc]
                **where, **options, attn_implementation=attention
            )
            sound, _ = Wav2Vec2FeatureExtractor.get_feature_extractor_dict(**where)
            encoder = WaveEncoder(model, normalise=sound.get("do_normalize", True))
    except UserError as error:
        raise UserError(f"{folder or source}: {error}") from error
    except Exception as error:  # whatever transformers, safetensors and the network raise
        raise cannot_load(source, folder, error) from error
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        logging.enable_progress_bar()
    if lacking := sorted(set(info["missing_keys"]) - UNUSED_WEIGHTS):
        raise UserError(f"{folder or source}: lacks weights of the encoder: {some(lacking)}; copy or download it again")
    return encoder


def find(source: str) -> Path | None:
    """Return the folder that ``source`` names, or None where the hub has to be asked.

    Raises:
        UserError: a folder without config.json.
    """
    for folder in (Path(source), data_folder() / "encoders" / source):
        if (folder / "config.json").is_file():
            return folder
        if folder.is_dir():
            raise UserError(f"{folder}: holds no config.json; expected the folder of a pretrained encoder")
    return None


def cannot_load(source: str, folder: Path | None, error: Exception) -> UserError:
    """Say in one line why an encoder was not loaded and what to do."""
    reason = str(error).strip().partition("\n")[0].removesuffix("For details look at the above report!").strip()
    reason = reason or type(error).__name__
    if folder is not None:
        return UserError(f"{folder}: not a whole pretrained encoder ({reason}); copy or download it again")
    return UserError(
        f"encoder '{source}' cannot be had from the hub ({reason}); without a network put its config.json, "
        "preprocessor_config.json and model.safetensors (or pytorch_model.bin) into "
        f"{data_folder() / 'encoders' / source}/; "
        "if it is no HuBERT, wav2vec 2.0, WavLM or Whisper of transformers, see CONTRIBUTING.md"
    )


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of the weights of an encoder or whole model, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.rpartition(".")[2] in UNUSED_WEIGHTS:  # random where the checkpoint lacks it
            continue
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
