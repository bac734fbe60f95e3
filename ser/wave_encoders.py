"""HuBERT, WavLM and wav2vec 2.0 (XLS-R): transformers' weights and layers, run so that padding changes nothing.

What differs from transformers' own way through the same weights, whose results for one clip alone are kept:

- Random masks and dropped layers of pretraining never happen.
- The strided convolutions run as matrix products on frames, which leaves out every transposition.
- Group norm of the first convolution (the base models) takes the statistics of each clip's own frames; transformers
  includes the padding, with a mask or without.
- WavLM's attention runs through scaled dot-product attention instead of a path that keeps all weights.

Shapes: B clips, N samples, T frames, D features, C channels; ``lengths`` are long[B].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import remove_parametrizations

from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.interfaces import Encoder
from ser.layers import Prompts, arange_like, clip_mask, masked_mean_std, tracing
from ser.mel import Sound
from ser.packed_linear import PackedLinear, pack

__all__ = ["FAMILIES", "WaveEncoder"]

FAMILIES = ("hubert", "wav2vec2", "wavlm")
TINY = 1e-10  # smallest deviation: the root of zero, of a silent clip, has no gradient


class WaveEncoder(Encoder):
    """A HuBERT-like encoder of sound.

    Args:
        model: of transformers, one of ``FAMILIES``.
        normalise: bring each clip to mean 0 and variance 1, as the checkpoint was trained.

    Raises:
        UserError: a variant that cannot be run independently of the batch.
    """

    def __init__(self, model: Any, normalise: bool):
        super().__init__()
        settings = model.config
        for option in ("conv_pos_batch_norm", "add_adapter"):
            if getattr(settings, option, False):
                raise UserError(f"its {option} cannot be run one clip like another; choose another checkpoint")
        self.model = model
        self.front_end = Sound()
        self.normalise = normalise
        self.width = settings.hidden_size
        self.state_count = settings.num_hidden_layers + 1
        self.steps = list(zip(settings.conv_kernel, settings.conv_stride, strict=True))
        self.hop = math.prod(settings.conv_stride)  # samples
        if self.hop != SAMPLE_RATE / self.rate:
            raise UserError(f"has a frame every {self.hop} samples; choose one with {SAMPLE_RATE / self.rate:.0f}")
        self.wavlm = settings.model_type == "wavlm"
        # The stable variant has its layer norms inside the layers, and one after the last.
        self.norm_first = settings.do_stable_layer_norm
        self.packed: list[list[PackedLinear]] = []

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer layers."""
        return self.model.encoder.layers

    @property
    def convolutions(self) -> list[nn.Module]:
        """The strided convolutions."""
        return [self.model.feature_extractor]

    @property
    def final(self) -> nn.Module | None:
        """The layer norm after the last layer, in the stable variant."""
        return self.model.encoder.layer_norm if self.norm_first else None

    def input_frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames of sound."""
        return self.frames(lengths)

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples; those of less than 25 ms have none."""
        for kernel, stride in self.steps:
            lengths = conv_frames(lengths, kernel, stride)
        return lengths

    def run(
        self, inputs: Tensor, lengths: Tensor, last: int | None = None, prompts: Prompts | None = None
    ) -> Iterator[Tensor]:
        """Yield the outputs of the layers [B, T, D] of sound [B, N]; see ``interfaces.Encoder.run``."""
        assert prompts is None, "prompts have no place among convolved positions"
        model, encoder = self.model, self.model.encoder
        last = self.state_count - 1 if last is None else last
        frames = self.frames(lengths)
        x = self.convolve(self.prepared(inputs, lengths), lengths)
        if not tracing():
            x = x[:, : int(frames.max())]
        x = model.feature_projection(x)
        x = x[0] if isinstance(x, tuple) else x
        mask = clip_mask(frames, x.shape[1])
        outside = ~mask[..., None]
        x = x.masked_fill(outside, 0)  # what the convolution below finds beyond a clip that stands alone
        x = x + encoder.pos_conv_embed(x)
        if not self.norm_first:
            x = encoder.layer_norm(x)
        x = encoder.dropout(x)
        attend = Attend(mask, encoder, self.wavlm, self.norm_first)
        for number, layer in enumerate([*encoder.layers[:last], None]):
            done = number == self.state_count - 1
            yield (encoder.layer_norm(x) if done and self.norm_first else x).masked_fill(outside, 0)
            if layer is not None:
                x = self.through(attend, layer, x)

    def prepared(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """Return sound [B, N], zero after each clip's end, normalised as the checkpoint demands."""
        if self.normalise:
            mean, std = masked_mean_std(sound[..., None], lengths, TINY)
            sound = (sound - mean) / (std.square() + 1e-7).sqrt()
        return sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0)

    def convolve(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """Return the output of the convolutions [B, T', C]; frames after a clip's end are anything finite.

        The clips stand one behind the other in one long row of frames. Each length is a multiple of all strides,
        so only frames that end in the next clip mix two, and those are after their own clip's end.
        """
        clips = sound.shape[0]
        x = F.pad(sound, (0, -sound.shape[1] % self.hop)).reshape(-1, 1).to(self.dtype)  # [B * N', 1]
        for number, (kernel, stride) in enumerate(self.steps):
            layer = self.model.feature_extractor.conv_layers[number]
            x = strided_conv(x, self.products(number), kernel, stride)
            lengths = conv_frames(lengths, kernel, stride)
            if (norm := getattr(layer, "layer_norm", None)) is not None:
                x = norm(x) if isinstance(norm, nn.LayerNorm) else clip_norm(x, norm, lengths, clips)
            x = layer.activation(x)
        return x.view(clips, -1, x.shape[1])

    def products(self, number: int) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the matrix products of a convolution, see ``conv_parts``."""
        if self.packed:
            return self.packed[number]
        parts = conv_parts(self.model.feature_extractor.conv_layers[number].conv, self.steps[number][1])
        return [partial(F.linear, weight=weight, bias=bias) for weight, bias in parts]

    def pack(self) -> None:
        """Lay the weights out for inference on the CPU."""
        convolutions = [layer.conv for layer in self.model.feature_extractor.conv_layers]
        parts = [conv_parts(conv, stride) for conv, (_, stride) in zip(convolutions, self.steps, strict=True)]
        self.packed = [[PackedLinear(weight, bias) for weight, bias in products] for products in parts]
        positions = self.model.encoder.pos_conv_embed.conv
        if hasattr(positions, "parametrizations"):  # the weight is computed anew at every use
            remove_parametrizations(positions, "weight")
        pack(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights are in."""
        return self.model.encoder.layer_norm.weight.dtype


def conv_frames(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the frames that a convolution without padding makes of ``lengths`` frames."""
    return torch.div(lengths - kernel, stride, rounding_mode="floor").clamp_min(-1) + 1


def conv_parts(conv: nn.Conv1d, stride: int) -> list[tuple[Tensor, Tensor | None]]:
    """Return the weights [C', stride * C] (the last may be narrower) that make a convolution of matrix products.

    ``stride`` frames side by side are one line of a matrix. A kernel covers one line with the first weight, part
    of the next line with the second, and so on. A few numbers a line make one product over the whole kernel.
    """
    weight = conv.weight.transpose(1, 2)  # [C', kernel, C]
    if conv.in_channels == 1:
        return [(weight.flatten(1), conv.bias)]
    starts = range(0, weight.shape[1], stride)
    return [(weight[:, start : start + stride].flatten(1), None if start else conv.bias) for start in starts]


def strided_conv(x: Tensor, products: Sequence[Callable[[Tensor], Tensor]], kernel: int, stride: int) -> Tensor:
    """Convolve a row of frames [T, C] by the products of ``conv_parts``: [T / stride, C'].

    The last lines lack what would follow them.
    """
    lines = x.view(-1, stride * x.shape[1])
    if x.shape[1] == 1:
        following = [F.pad(lines[n:], (0, 0, 0, n)) for n in range(-(-kernel // stride))]
        return products[0](torch.cat(following, 1)[:, :kernel])
    out = products[0](lines)
    for n, product in enumerate(products[1:], start=1):
        width = min(stride, kernel - n * stride) * x.shape[1]
        out[:-n] += product(lines[n:, :width])
    return out


def clip_norm(x: Tensor, norm: nn.GroupNorm, lengths: Tensor, clips: int) -> Tensor:
    """Normalise each channel of each clip over the clip's own frames; x is [B * T, C].

    That is ``norm``, a group norm with one channel a group, of each clip alone.
    """
    x = x.view(clips, -1, x.shape[1])
    mean, std = masked_mean_std(x.float(), lengths, TINY)
    scale = norm.weight / (std.square() + norm.eps).sqrt()
    x = x * scale[:, None].to(x.dtype) + (norm.bias - mean * scale)[:, None].to(x.dtype)
    return x.flatten(0, 1)


class Attend:
    """Runs transformer layers on a padded batch: nothing attends to what lies after a clip's end.

    Args:
        mask: bool [B, T], true inside each clip.
        encoder: of transformers; the first layer of WavLM holds the relative positions of all.
        wavlm: it is WavLM's.
        norm_first: its layers normalise before, not after attention.
    """

    def __init__(self, mask: Tensor, encoder: Any, wavlm: bool, norm_first: bool):
        self.mask = mask[:, None, None] if tracing() or not mask.all() else None  # [B, 1, 1, T]
        self.norm_first = norm_first
        frames = mask.shape[1]
        self.positions = None
        if wavlm and len(encoder.layers):
            first, place = encoder.layers[0].attention, arange_like(frames, mask)
            distance = first._relative_positions_bucket(place[None] - place[:, None])
            self.positions = first.rel_attn_embed(distance).permute(2, 0, 1)[None]

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Return the layer's output [B, T, D]."""
        if self.positions is None:
            return layer(x, attention_mask=self.mask)
        if self.norm_first:
            x = x + layer.dropout(self.gated(layer.attention, layer.layer_norm(x)))
            return x + layer.feed_forward(layer.final_layer_norm(x))
        x = layer.layer_norm(x + layer.dropout(self.gated(layer.attention, x)))
        return layer.final_layer_norm(x + layer.feed_forward(x))

    def gated(self, attention: Any, x: Tensor) -> Tensor:
        """Attend with WavLM's gated relative positions (https://arxiv.org/abs/2110.13900, section 3.1)."""
        clips, frames, _ = x.shape

        def heads(values: Tensor) -> Tensor:
            return values.view(clips, frames, attention.num_heads, -1).transpose(1, 2)

        queries, keys, values = heads(attention.q_proj(x)), heads(attention.k_proj(x)), heads(attention.v_proj(x))
        gates = attention.gru_rel_pos_linear(heads(x)).unflatten(-1, (2, 4)).sum(-1)  # [B, heads, T, 2]
        update, reset = gates.sigmoid().split(1, dim=-1)
        bias = (update * (reset * attention.gru_rel_pos_const - 1) + 2) * self.positions
        if self.mask is not None:
            bias = bias.masked_fill(~self.mask, -torch.inf)
        dropout = attention.dropout if attention.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))
