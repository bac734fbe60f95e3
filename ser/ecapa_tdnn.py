"""ECAPA-TDNN on log-mel frames: SpeechBrain's layers, with padding that belongs to each clip.

Desplanques et al. 2020, https://arxiv.org/abs/2005.07143. As it comes, the network is not batch-invariant:
its convolutions reflect at the end of the batch instead of the clip, and its relative lengths round (251 of
501 frames become 252). The layers and weights are SpeechBrain's; the way through them is ours.
Shapes: B clips, T frames, D mel bands, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ser.errors import UserError
from ser.interfaces import Classifier
from ser.layers import InputNorm, Speakers, pad_reflect

__all__ = ["EcapaTdnn"]


class EcapaTdnn(Classifier):
    """ECAPA-TDNN classifier.

    Args:
        labels: the C classes, in the order of the outputs.
        bands: mel bands D of the input.
        channels: of the convolutions; the aggregation has three times as many.
        embedding: size of the utterance embedding.
        dropout: on the embedding.
        channel_dropout: share of whole channels dropped after each convolution block.
        attention_channels: of the attentive statistics pooling.
        normalisation: of the input, see ``layers.InputNorm``.
    """

    def __init__(
        self,
        labels: Sequence[str],
        bands: int = 80,
        channels: int = 512,
        embedding: int = 192,
        dropout: float = 0.0,
        channel_dropout: float = 0.0,
        attention_channels: int = 128,
        normalisation: str = "corpus",
    ):
        super().__init__()
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        if channels < 8 or channels % 8:
            raise UserError(f"ecapa/channels is {channels}; expected a multiple of 8, the scale of the Res2Net blocks")
        if len(set(labels)) != len(labels) or len(labels) < 2:
            raise UserError(f"EcapaTdnn.labels are {', '.join(labels)}; expected two or more, each once")
        self.labels = tuple(labels)
        self.input_shape = (bands,)
        self.norm = InputNorm(bands, normalisation)
        self.ecapa = ECAPA_TDNN(
            bands,
            lin_neurons=embedding,
            channels=[channels] * 4 + [3 * channels],
            attention_channels=attention_channels,
            dropout=channel_dropout,
        )
        self.head = nn.Sequential(
            nn.BatchNorm1d(embedding), nn.ReLU(), nn.Dropout(dropout), nn.Linear(embedding, len(self.labels))
        )

    def forward(self, inputs: Tensor, lengths: Tensor, speakers: Speakers | None = None) -> Tensor:
        """Turn log-mel inputs [B, T, D] and their frames long [B] into logits [B, C]."""
        return self.head(self.embed(self.norm(inputs, lengths, speakers), lengths))

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the utterance embedding [B, E] of normalised frames [B, T, D]."""
        # SpeechBrain compares frame < relative * T; half a frame less survives the rounding of the product.
        relative = (lengths - 0.5) / x.shape[1]
        first, *blocks = self.ecapa.blocks
        x = tdnn(first, x.transpose(1, 2), lengths)
        outputs = []
        for block in blocks:
            x = se_res2net(block, x, lengths, relative)
            outputs.append(x)
        x = self.ecapa.mfa(torch.cat(outputs, dim=1))  # kernel 1: needs no padding
        x = self.ecapa.asp_bn(self.ecapa.asp(x, lengths=relative))
        return self.ecapa.fc(x).squeeze(2)


def tdnn(block: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a SpeechBrain ``TDNNBlock`` on x [B, C, T], reflecting each clip at its own ends."""
    conv = block.conv.conv
    padding = conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    return block.dropout(block.norm(block.activation(conv(pad_reflect(x, lengths, padding)))))


def se_res2net(block: Any, x: Tensor, lengths: Tensor, relative: Tensor) -> Tensor:
    """Run a SpeechBrain ``SERes2NetBlock`` on x [B, C, T]."""
    residual = block.shortcut(x) if block.shortcut else x
    first, *chunks = block.tdnn1(x).chunk(block.res2net_block.scale, dim=1)
    outputs = [first]
    for number, (chunk, layer) in enumerate(zip(chunks, block.res2net_block.blocks, strict=True)):
        outputs.append(tdnn(layer, chunk + outputs[-1] if number else chunk, lengths))
    x = block.tdnn2(torch.cat(outputs, dim=1))
    return block.se_block(x, relative) + residual
