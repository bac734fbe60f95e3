"""What every front end, encoder and model is, so that one can stand in for another.

Shapes: B clips, N samples at 16 kHz, T frames, D features, L layers, C classes; ``lengths`` are long[B].
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser.layers import InputNorm, Prompts, SpeakerStatistics

__all__ = ["Classifier", "Encoder", "FrontEnd", "InnerEncoder", "normalised_by_speaker"]


class FrontEnd(nn.Module):
    """Sound to what a model hears of it: ``forward(sound, lengths) -> (values, frames)``.

    Attributes:
        kind: ``sound`` [B, N], ``frames`` [B, T, D], ``layers`` [B, L, T, D] or ``statistics`` [B, L, 2D].
        shape: of a clip's values without time: (), (D,), (L, D), or (L, 2D) of statistics.
        suffix: of the store's name: what is kept, where that is a choice.
        options: the overrides that make this choice again, for a command.
        ending: of a stored file, ``.npy`` or ``.pt``.
        batch_seconds: padded sound of an extraction batch; 0 makes each clip a batch of its own.
        rate: frames per second.
    """

    kind: str = "frames"
    shape: tuple[int, ...]
    suffix: str = ""
    options: str = ""
    ending: str = ".npy"
    batch_seconds: float = 0.0
    rate: float

    @property
    def spec(self) -> dict[str, Any]:
        """How the values are made, for the index of a feature store."""
        raise NotImplementedError

    def resolved(self, device: torch.device) -> str:
        """Return the precision that it computes in on a device, where that is left open."""
        raise NotImplementedError

    def settle(self, spec: dict[str, Any]) -> None:
        """Adopt what a store with this ``spec`` decided and this front end leaves open (an ``auto`` precision)."""

    @property
    def made_with(self) -> dict[str, Any]:
        """Whatever else must match between two files of one store; may be slow to compute."""
        return {}


class Encoder(nn.Module):
    """A pretrained network: sound to the outputs of its layers.

    State 0 is what goes into the first transformer layer, state k the output of layer k; the last one goes
    through the final layer norm where the network has one, and is transformers' ``last_hidden_state``.

    Attributes:
        width: features D of every state.
        state_count: number L of states.
        rate: frames per second, of every encoder here.
        front_end: sound to the inputs of ``run``.
        prompted: its layers can see learned vectors in front of the frames.
        checkpointing: in training, compute a layer's inner values again instead of keeping them: less memory.
    """

    width: int
    state_count: int
    rate: float = 50.0
    front_end: FrontEnd
    prompted: bool = False
    checkpointing: bool = False

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer layers."""
        raise NotImplementedError

    @property
    def convolutions(self) -> list[nn.Module]:
        """What turns inputs into frames, and trains only where that is asked for."""
        raise NotImplementedError

    @property
    def final(self) -> nn.Module | None:
        """What only the last state goes through."""
        raise NotImplementedError

    def input_frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of inputs of ``lengths``, as the front end gives them."""
        raise NotImplementedError

    def run(
        self, inputs: Tensor, lengths: Tensor, last: int | None = None, prompts: Prompts | None = None
    ) -> Iterator[Tensor]:
        """Yield state 0, 1, ... ``last`` [B, T, D] of the front end's values, zero after each clip's end.

        Nothing above ``last`` (by default the top) is computed. A clip's states are the same alone and in
        any batch.

        Args:
            inputs: values of the front end.
            lengths: theirs, long [B].
            last: state to end with.
            prompts: learned vectors that the layers see in front of the frames, where it can be ``prompted``.
        """
        raise NotImplementedError

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples."""
        raise NotImplementedError

    def states(self, sound: Tensor, lengths: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield the states of sound [B, N], see ``run``."""
        inputs, sizes = self.front_end(sound, lengths)
        return self.run(inputs, sizes, last)

    def through(self, layer: Callable[..., Tensor], *values: Any) -> Tensor:
        """Return ``layer(*values)``, by checkpointing where that is wanted."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *values, use_reentrant=False)
        return layer(*values)

    def pack(self) -> None:
        """Lay the weights out for inference on the CPU; the encoder can no longer train, move or be saved."""
        raise NotImplementedError


class InnerEncoder(nn.Module):
    """A pretrained encoder inside a model: ``forward(inputs, lengths) -> (frames [B, T, D], their number long [B])``.

    Attributes:
        name: of the encoder, for people.
        width: features D of a frame.
        takes, input_shape: of its inputs, see ``Classifier``.
        hears: ``FrontEnd.spec`` of its inputs.
    """

    name: str
    width: int
    takes: str
    input_shape: tuple[int, ...]
    hears: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint names, and what must be the same again: the encoder and its weights."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Set what training begins with, see ``Classifier.init_weights``."""

    def lr_scales(self) -> dict[str, float]:
        """Return the factor on the learning rate of its pretrained parameters that train, by name."""
        raise NotImplementedError


class Classifier(nn.Module):
    """What every model is: ``forward(inputs, lengths, speakers=None) -> logits`` [B, C].

    Attributes:
        labels: names of the C classes.
        takes: kind of its inputs, see ``FrontEnd.kind``.
        input_shape: of one clip's input without time, see ``FrontEnd.shape``.
        encoder: the pretrained encoder inside, if there is one.
        batch_statistics: in training it takes statistics over all frames of a batch, which padding would spoil.
        speakers_at: what statistics of speakers are of, where it normalises by them: ``inputs`` or ``embedding``.
        solves: its weights are found at once, by ``solve``, not by steps.
        strengths: inverse strengths of its regularisation to try; validation speakers choose.
        refit: then they are found once more, on the training and validation parts together.
    """

    labels: tuple[str, ...]
    takes: str = "frames"
    input_shape: tuple[int, ...]
    speakers_at: str = "inputs"
    batch_statistics: bool = False
    solves: bool = False
    strengths: tuple[float, ...] = ()
    refit: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.encoder: InnerEncoder | None = None

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return the clips' embeddings [B, E]."""
        raise NotImplementedError

    def classify(self, embedding: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return logits [B, C] of embeddings [B, E]."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Turn inputs, their lengths long [B] and what is known of their speakers into logits [B, C]."""
        if self.speakers_at == "embedding":
            return self.classify(self.embed(inputs, lengths), speakers)
        return self.classify(self.embed(inputs, lengths, speakers))

    def solve(self, batch: Any, weights: Tensor, strength: float) -> None:
        """Find the weights, of a model that ``solves``.

        Args:
            batch: ``batches.Batch`` of all training clips.
            weights: of the classes, float [C].
            strength: one of ``strengths``.
        """
        raise NotImplementedError

    def init_weights(self) -> None:
        """Set what training begins with; a checkpoint brings its own. Called once, before a fresh run."""
        if self.encoder is not None:
            self.encoder.init_weights()

    def lr_scales(self) -> dict[str, float]:
        """Return the factor on the learning rate of parameters, by name; 1 for those without."""
        own = self.encoder.lr_scales() if self.encoder is not None else {}
        return {f"encoder.{name}": scale for name, scale in own.items()}


def normalised_by_speaker(model: Classifier) -> str:
    """Return what a model normalises by speaker: ``inputs``, ``embedding``, or "" for nothing."""
    by_speaker = any(isinstance(module, InputNorm) and module.kind == "speaker" for module in model.modules())
    return model.speakers_at if by_speaker else ""
