"""Whisper's encoder without the thirty-second tax: as many positions as the batch needs, and no leak from padding.

transformers' encoder takes 30 s or nothing and ignores masks. Here its layers, with the same weights, see a
clip's own frames alone: the convolutions find the same silence after a clip's end in any batch, positions stop
where the longest clip stops, and nothing attends beyond a clip's end. Learned prompts may stand in front.

At exactly 30 s the result is transformers'. Below, it is *not*: Whisper was trained on speech followed by
silence up to 30 s, which shorter contexts lack. Each position then attends to the clip alone, many times faster;
for a probe on tiny.en no difference was found (RAVDESS; larger encoders were not measured). Clips above 30 s are cut
into windows of equal length that know nothing of each other.

Shapes: B clips, T frames, D features, T' frames of the mel; ``lengths`` are long[B].
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ser.interfaces import Encoder
from ser.layers import Prompts, clip_mask, tracing
from ser.mel import WhisperMel
from ser.packed_linear import pack

__all__ = ["WhisperEncoder"]


class WhisperEncoder(Encoder):
    """The encoder of any size of Whisper.

    Args:
        model: transformers' ``WhisperEncoder``.
    """

    prompted = True
    front_end: WhisperMel

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.width = model.config.d_model
        self.state_count = model.config.encoder_layers + 1
        self.front_end = WhisperMel(model.config.num_mel_bins)
        self.longest = 2 * model.config.max_source_positions  # frames of the mel

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer layers."""
        return self.model.layers

    @property
    def convolutions(self) -> list[nn.Module]:
        """The two convolutions, and the positions, which are sines."""
        return [self.model.conv1, self.model.conv2, self.model.embed_positions]

    @property
    def final(self) -> nn.Module:
        """The layer norm after the last layer."""
        return self.model.layer_norm

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples."""
        return self.input_frames(self.front_end.frames(lengths))

    def input_frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames of mels of ``lengths`` frames, two of silence among them."""
        return torch.div(lengths - WhisperMel.SILENCE + 1, 2, rounding_mode="floor")

    def run(
        self, inputs: Tensor, lengths: Tensor, last: int | None = None, prompts: Prompts | None = None
    ) -> Iterator[Tensor]:
        """Yield the outputs of the layers [B, T, D] of mels [B, T', bands]; see ``interfaces.Encoder.run``."""
        last = self.state_count - 1 if last is None else last
        if tracing() or int(lengths.max()) - WhisperMel.SILENCE <= self.longest:  # an exported model takes 30 s
            yield from self.short(inputs, lengths, last, prompts)
            return
        windows, sizes, counts = cut(inputs, lengths, self.longest)
        for state in self.short(windows, sizes, last, prompts):
            pieces = [window[:size] for window, size in zip(state, self.input_frames(sizes).tolist(), strict=True)]
            clips = [torch.cat(group) for group in split(pieces, counts)]
            yield pad_sequence(clips, batch_first=True)

    def short(self, mel: Tensor, lengths: Tensor, last: int, prompts: Prompts | None) -> Iterator[Tensor]:
        """Yield the outputs of the layers for clips of at most 30 s."""
        model = self.model
        frames = self.input_frames(lengths)
        x = mel[:, : self.longest].transpose(1, 2).to(model.conv1.weight.dtype)
        x = F.gelu(model.conv2(F.gelu(model.conv1(x)))).transpose(1, 2)
        if not tracing():
            x = x[:, : int(frames.max())]
        x = x + model.embed_positions.weight[: x.shape[1]]
        x = F.dropout(x, model.dropout, model.training)
        mask = clip_mask(frames, x.shape[1])
        outside = ~mask[..., None]
        first = 0 if prompts is None else prompts.count
        mask = F.pad(mask, (first, 0), value=True)
        keys = mask[:, None, None] if tracing() or not mask.all() else None  # [B, 1, 1, T]
        for number, layer in enumerate([*model.layers[:last], None]):
            state = x if number == 0 else x[:, first:]
            yield (model.layer_norm(state) if number == self.state_count - 1 else state).masked_fill(outside, 0)
            if layer is not None:
                if prompts is not None:
                    x = prompts.insert(number, x)
                x = self.through(layer, x, keys)

    def pack(self) -> None:
        """Lay the weights out for inference on the CPU."""
        pack(self.model)


def cut(mel: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor, list[int]]:
    """Cut clips into windows of equal length, at most ``longest`` frames; the last of a clip may be shorter.

    In place of silence a window is followed by the two frames that begin the next.

    Returns:
        The windows [W, T', bands], their lengths long [W], and how many of them each clip has.
    """
    silence = WhisperMel.SILENCE
    windows, counts = [], []
    for clip, length in zip(mel, lengths.tolist(), strict=True):
        count = -(-(length - silence) // longest)
        size = -(-(length - silence) // (2 * count)) * 2
        starts = range(0, length - silence, size)
        windows += [clip[start : min(start + size + silence, length)] for start in starts]
        counts.append(len(starts))
    sizes = torch.tensor([len(window) for window in windows], device=mel.device)
    return pad_sequence(windows, batch_first=True), sizes, counts


def split(items: list[Tensor], counts: list[int]) -> Iterator[list[Tensor]]:
    """Yield ``counts[0]`` items, then ``counts[1]``, and so on."""
    start = 0
    for count in counts:
        yield items[start : start + count]
        start += count
