"""A pretrained encoder inside a model: frozen, prompted, with low-rank updates, or trained from the top down.

Shapes: B clips, T frames, D features, L layers; ``lengths`` are long[B], as the encoder's front end gives them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.audio import SAMPLE_RATE
from ser.encoders import Pretrained, fingerprint
from ser.errors import UserError
from ser.interfaces import InnerEncoder
from ser.layers import LayerSum, Prompts

__all__ = ["Adapted", "LoraLinear"]

SILENCE = 30  # seconds that prompts begin as
ATTENTION = ("q_proj", "v_proj")  # the projections that get low-rank updates, as in the paper


class LoraLinear(nn.Module):
    """A frozen linear layer and a learned update of low rank (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Args:
        base: frozen from now on.
        rank: of the update, which begins at zero.
        alpha: the update is scaled by alpha / rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] through both, [..., out]."""
        return self.base(x) + F.linear(F.linear(x, self.down), self.up) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that does the same."""
        linear = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        linear.weight.copy_(self.base.weight + self.scale * self.up @ self.down)
        if self.base.bias is not None:
            linear.bias.copy_(self.base.bias)
        return linear.to(self.base.weight)


class Adapted(InnerEncoder):
    """An encoder and what of it is learned.

    What does not train is neither saved in checkpoints nor averaged; it comes from the encoder's own weights, which
    must be the same again.

    Args:
        encoder: pretrained.
        layers: states whose weighted sum is learned, in rising order; one is taken as it is, None means all. The
            encoder's layers above the last of them are dropped.
        tune: layers to train, counted from the highest that is kept; 0 for none, None for all and the input
            projections below them.
        convolutions: with ``tune = None``, train the convolutions of the input too.
        lora: rank of learned updates of the attention's query and value projections; 0 for none.
        lora_alpha: they are scaled by alpha / rank.
        prompts: learned vectors in front of the frames; 0 for none.
        prompt_depth: layers that get prompts of their own: 1 for the input alone, None for all.
        lr_scale: learning rate of the encoder's highest tuned layer, as a share of ``train/lr``.
        decay: of the learning rate from each layer to the one below (Howard and Ruder 2018,
            https://arxiv.org/abs/1801.06146, section 3.2).
        checkpointing: compute inner values again in the backward pass instead of keeping them.

    Raises:
        UserError: the encoder cannot be loaded, or adaptations that exclude each other.
    """

    def __init__(
        self,
        encoder: Pretrained,
        layers: Sequence[int] | None = None,
        tune: int | None = 0,
        convolutions: bool = False,
        lora: int = 0,
        lora_alpha: float = 16.0,
        prompts: int = 0,
        prompt_depth: int | None = 1,
        lr_scale: float = 0.1,
        decay: float = 0.9,
        checkpointing: bool = False,
    ):
        super().__init__()
        check(encoder, layers, tune, convolutions, lora, prompts, prompt_depth, lr_scale, decay)
        self.source, self.name = encoder, encoder.source
        self.encoder = encoder.load()
        if prompts and not self.encoder.prompted:
            raise UserError(
                f"prompt/count is {prompts}, but {encoder.source} takes no prompts; choose an encoder of the family "
                "Whisper, or set 'prompt/count = 0'"
            )
        self.weights_sha256 = fingerprint(self.encoder)
        self.encoder.requires_grad_(False)
        self.encoder.checkpointing = checkpointing
        self.layers = encoder.chosen(layers)
        self.sum = LayerSum(len(self.layers)) if len(self.layers) > 1 else None
        blocks = self.encoder.blocks
        del blocks[self.layers[-1] :]
        tuned = len(blocks) if tune is None else tune
        if tuned:
            blocks[len(blocks) - tuned :].requires_grad_(True)
            if self.encoder.final is not None and self.layers[-1] == self.encoder.state_count - 1:
                self.encoder.final.requires_grad_(True)
        if tune is None:
            self.tune_inputs(convolutions)
        self.tuned = tuned
        if lora:
            for block in blocks:
                add_lora(block, lora, lora_alpha)
        depth = len(blocks) if prompt_depth is None else prompt_depth
        self.prompts = Prompts(prompts, encoder.width, depth) if prompts else None
        self.lr_scale, self.decay = lr_scale, decay
        self.width = encoder.width
        self.takes = self.encoder.front_end.kind
        self.input_shape = self.encoder.front_end.shape
        self.hears = self.encoder.front_end.spec
        if encoder.compile:
            for block in blocks:
                block.compile(dynamic=True)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Let prompts begin as what the encoder makes of silence: random vectors would spoil all that it hears.

        Raises:
            UserError: more prompts than the encoder hears frames.
        """
        if self.prompts is None:
            return
        count, values = self.prompts.count, self.prompts.values
        sound = torch.zeros(1, SILENCE * SAMPLE_RATE, device=values.device)
        inputs, lengths = self.encoder.front_end(sound, torch.tensor([sound.shape[1]], device=values.device))
        for own, state in zip(values, self.encoder.run(inputs, lengths, len(values) - 1), strict=True):
            if state.shape[1] < count:
                raise UserError(f"prompt/count is {count}; the encoder hears {state.shape[1]} frames at most")
            own.copy_(state[0, -count:])

    def tune_inputs(self, convolutions: bool) -> None:
        """Let what lies below the layers train, the convolutions only where that is wanted."""
        kept = {id(p) for module in self.encoder.convolutions for p in module.parameters()}
        above = {id(p) for module in (self.encoder.blocks, self.encoder.final) if module for p in module.parameters()}
        for name, parameter in self.encoder.named_parameters():
            unused = name.endswith("masked_spec_embed") or "embed_positions" in name
            if id(parameter) not in above and not unused and (convolutions or id(parameter) not in kept):
                parameter.requires_grad_(True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the front end's values into frames [B, T, D], zero after each clip's end."""
        states = self.states(inputs, lengths)
        x = next(states) if self.sum is None else self.sum(states)
        return x, self.encoder.input_frames(lengths)

    def states(self, inputs: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Yield the kept states [B, T, D] of the front end's values, zero after each clip's end."""
        states = self.encoder.run(inputs, lengths, self.layers[-1], self.prompts)
        return (state for number, state in enumerate(states) if number in self.layers)

    def train(self, mode: bool = True) -> "Adapted":
        """Switch dropout; an encoder of which no layer trains has none."""
        super().train(mode)
        self.encoder.train(mode and self.tuned > 0)
        return self

    def lr_scales(self) -> dict[str, float]:
        """Return the factor on the learning rate of each of the encoder's own parameters that train, by name."""
        blocks = len(self.encoder.blocks)
        places = {id(p): n for n, block in enumerate(self.encoder.blocks) for p in block.parameters()}
        final = {id(p): blocks - 1 for p in self.encoder.final.parameters()} if self.encoder.final else {}
        scales = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name.startswith("encoder.") and not name.endswith((".down", ".up")):
                place = places.get(id(parameter), final.get(id(parameter), -1))
                scales[name] = self.lr_scale * self.decay ** (blocks - 1 - place)
        return scales

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint names: the encoder, its revision and the fingerprint of its weights."""
        return {
            "source": self.source.source, "revision": self.source.revision, "weights_sha256": self.weights_sha256
        }  # fmt: skip


def add_lora(block: nn.Module, rank: int, alpha: float) -> None:
    """Replace the attention's query and value projections of a transformer layer, in place."""
    for module in list(block.modules()):
        for name in ATTENTION:
            if isinstance(linear := getattr(module, name, None), nn.Linear):
                setattr(module, name, LoraLinear(linear, rank, alpha))


def check(
    encoder: Pretrained,
    layers: Sequence[int] | None,
    tune: int | None,
    convolutions: bool,
    lora: int,
    prompts: int,
    depth: int | None,
    lr_scale: float,
    decay: float,
) -> None:
    """Raise a UserError for values out of range, and for adaptations that exclude each other."""
    blocks = encoder.chosen(layers)[-1]
    if tune is not None and not 0 <= tune <= blocks:
        raise UserError(f"tune/layers is {tune}; expected 0 to {blocks}, the layers that are kept, or None for all")
    if lora < 0 or prompts < 0 or not 0 < decay <= 1 or lr_scale < 0:
        raise UserError(
            f"Adapted: lora {lora}, prompts {prompts}, lr_scale {lr_scale}, decay {decay}; expected none below 0 and "
            "a decay up to 1"
        )
    if depth is not None and not 1 <= depth <= max(1, blocks):
        raise UserError(f"prompt/depth is {depth}; expected 1 to {blocks}, the layers that are kept, or None for all")
    if encoder.precision not in ("auto", "float32"):
        raise UserError(
            f"encoder/precision is '{encoder.precision}', but an encoder inside a model computes as the model "
            f"does; set 'train/precision = \"{encoder.precision}\"'"
        )
    if depth != 1 and not prompts:
        raise UserError(f"prompt/depth is {depth}, but there are no prompts; set 'prompt/count = 16', or leave it out")
    if blocks == 0 and (lora or prompts or tune != 0):
        raise UserError("encoder/layers keeps no layer, so nothing of it can be adapted; keep at least state 1")
    if tune != 0 and lora:
        raise UserError(
            f"tune/layers is {tune} and tune/lora {lora}: low-rank updates are for frozen layers; set one of them to 0"
        )
    if tune != 0 and prompts:
        raise UserError(
            f"tune/layers is {tune} and prompt/count {prompts}: prompts are for a frozen encoder; set one of them to 0"
        )
    if convolutions and tune is not None:
        raise UserError("tune/convolutions is True, but not all layers above them train; set 'tune/layers = None'")
