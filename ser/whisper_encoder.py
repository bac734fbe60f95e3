"""Whisper's encoder without the thirty-second tax: as many positions as the batch needs, and no leak from padding.

transformers' encoder takes 30 s or nothing and ignores masks. Here its layers, with the same weights, see a
clip's own frames alone: the convolutions find the same silence after a clip's end in any batch, positions stop
where the longest clip stops, and nothing attends beyond a clip's end.

At exactly 30 s the result is transformers'. Below, it is *not*: Whisper was trained on speech followed by
silence up to 30 s, which shorter contexts lack. Each position then attends to the clip alone, many times faster;
what that does to a figure was not measured against 30 s. Clips above 30 s are cut into windows of equal length
that know nothing of each other.

Shapes: B clips, N samples, T frames, D features; ``lengths`` are long[B].
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ser.interfaces import Encoder
from ser.layers import clip_mask
from ser.mel import WhisperMel
from ser.packing import pack

__all__ = ["WhisperEncoder"]

HOP = 320  # samples a frame


class WhisperEncoder(Encoder):
    """The encoder of any size of Whisper.

    Args:
        model: transformers' ``WhisperEncoder``.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.width = model.config.d_model
        self.layers = model.config.encoder_layers + 1
        self.mel = WhisperMel(model.config.num_mel_bins)
        self.longest = model.config.max_source_positions * HOP  # samples

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer layers."""
        return self.model.layers

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples."""
        return torch.div(lengths + HOP - 1, HOP, rounding_mode="floor")

    def states(self, sound: Tensor, lengths: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield the outputs of the layers [B, T, D]; see ``interfaces.Encoder.states``."""
        last = self.layers - 1 if last is None else last
        if int(lengths.max()) <= self.longest:
            yield from self.short(sound[:, : int(lengths.max())], lengths, last)
            return
        windows, sizes, counts = cut(sound, lengths, self.longest)
        for state in self.short(windows, sizes, last):
            pieces = [window[:size] for window, size in zip(state, self.frames(sizes).tolist(), strict=True)]
            clips = [torch.cat(group) for group in split(pieces, counts)]
            yield pad_sequence(clips, batch_first=True)

    def short(self, sound: Tensor, lengths: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the outputs of the layers for clips of at most 30 s."""
        model = self.model
        frames = self.frames(lengths)
        x = self.mel(sound, lengths).to(model.conv1.weight.dtype)
        x = F.gelu(model.conv2(F.gelu(model.conv1(x)))).transpose(1, 2)[:, : int(frames.max())]
        x = x + model.embed_positions.weight[: x.shape[1]]
        x = F.dropout(x, model.dropout, model.training)
        mask = clip_mask(frames, x.shape[1])
        outside = ~mask[..., None]
        keys = None if bool(mask.all()) else mask[:, None, None]  # [B, 1, 1, T]
        for number, layer in enumerate([*model.layers[:last], None]):
            yield (model.layer_norm(x) if number == self.layers - 1 else x).masked_fill(outside, 0)
            if layer is not None:
                x = layer(x, keys)

    def pack(self) -> None:
        """Lay the weights out for inference on the CPU."""
        pack(self.model)


def cut(sound: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor, list[int]]:
    """Cut clips into windows of equal length, at most ``longest`` samples; the last of a clip may be shorter.

    Returns:
        The windows [W, N'], their lengths long [W], and how many of them each clip has.
    """
    windows, counts = [], []
    for clip, length in zip(sound, lengths.tolist(), strict=True):
        count = -(-length // longest)
        size = -(-length // (count * HOP)) * HOP
        pieces = clip[:length].split(size)
        windows += pieces
        counts.append(len(pieces))
    sizes = torch.tensor([len(window) for window in windows], device=sound.device)
    return pad_sequence(windows, batch_first=True), sizes, counts


def split(items: list[Tensor], counts: list[int]) -> Iterator[list[Tensor]]:
    """Yield ``counts[0]`` items, then ``counts[1]``, and so on."""
    start = 0
    for count in counts:
        yield items[start : start + count]
        start += count
