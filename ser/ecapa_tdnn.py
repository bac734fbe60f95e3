"""ECAPA-TDNN on log-mel frames: SpeechBrain's layers, with padding that belongs to each clip.

Desplanques et al. 2020, https://arxiv.org/abs/2005.07143. As it comes, the network is not batch-invariant:
its convolutions reflect at the end of the batch instead of the clip, and its relative lengths round (251 of
501 frames become 252). The layers and weights are SpeechBrain's; the way through them is ours.
Shapes: B clips, T frames, D mel bands, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.errors import UserError, nearest
from ser.files import data_folder
from ser.interfaces import Classifier
from ser.layers import (
    CosineHead,
    InputNorm,
    SpeakerStatistics,
    attended_mean_std,
    clip_mask,
    masked_mean_std,
    pad_reflect,
)

__all__ = ["EcapaTdnn", "attentive_statistics"]

HEADS = ("linear", "cosine")
SPEAKER_FILE = "embedding_model.ckpt"  # of SpeechBrain's pretrained speaker models


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
        prior: clips that the corpus weighs as much as, against those of a speaker.
        head: ``linear``, or ``cosine`` for AAM-softmax.
        scale: of the cosine head's logits.
        start: name on the hub, folder or file of a SpeechBrain speaker model whose weights (``embedding_model.ckpt``)
            to begin with. A name is looked up in ``data/encoders/<name>/`` before the hub is asked. Such a model was
            trained on another log-mel than ours, so its first layers have to learn anew.

    Raises:
        UserError: sizes that the network cannot have, or weights that do not fit it.
    """

    batch_statistics = True

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
        prior: float = 1.0,
        head: str = "linear",
        scale: float = 30.0,
        start: str = "",
    ):
        super().__init__()
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        if channels < 8 or channels % 8:
            raise UserError(f"ecapa/channels is {channels}; expected a multiple of 8, the scale of the Res2Net blocks")
        if len(set(labels)) != len(labels) or len(labels) < 2:
            raise UserError(f"EcapaTdnn.labels are {', '.join(labels)}; expected two or more, each once")
        if head not in HEADS:
            raise UserError(f"ecapa/head is '{head}'{nearest(head, HEADS)}")
        self.labels = tuple(labels)
        self.input_shape = (bands,)
        self.norm = InputNorm(bands, normalisation, prior)
        self.ecapa = ECAPA_TDNN(
            bands,
            lin_neurons=embedding,
            channels=[channels] * 4 + [3 * channels],
            attention_channels=attention_channels,
            dropout=channel_dropout,
        )
        self.start = start
        last: nn.Module = nn.Linear(embedding, len(self.labels))
        self.cosine_scale = None
        if head == "cosine":
            last, self.cosine_scale = CosineHead(embedding, len(self.labels), scale), scale
        between = [nn.ReLU()] if head == "linear" else []  # an angle wants all directions
        self.head = nn.Sequential(nn.BatchNorm1d(embedding), *between, nn.Dropout(dropout), last)

    def init_weights(self) -> None:
        """Load the speaker model's weights, if it begins with one."""
        if self.start:
            load_speaker_model(self.ecapa, self.start)

    def classify(self, embedding: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.head(embedding)

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return the utterance embedding [B, E] of log-mel inputs [B, T, D] and their frames long [B]."""
        x = self.norm(inputs, lengths, speakers)
        first, *blocks = self.ecapa.blocks
        x = tdnn(first, x.transpose(1, 2), lengths)
        outputs = []
        for block in blocks:
            x = se_res2net(block, x, lengths)
            outputs.append(x)
        x = self.ecapa.mfa(torch.cat(outputs, dim=1))  # kernel 1: needs no padding
        x = self.ecapa.asp_bn(attentive_statistics(self.ecapa.asp, x, lengths))
        return self.ecapa.fc(x).squeeze(2)


def tdnn(block: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a SpeechBrain ``TDNNBlock`` on x [B, C, T], reflecting each clip at its own ends."""
    conv = block.conv.conv
    padding = conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    return block.dropout(block.norm(block.activation(conv(pad_reflect(x, lengths, padding)))))


def se_res2net(block: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a SpeechBrain ``SERes2NetBlock`` on x [B, C, T]; what it squeezes is the clip's own frames."""
    residual = block.shortcut(x) if block.shortcut else x
    first, *chunks = block.tdnn1(x).chunk(block.res2net_block.scale, dim=1)
    outputs = [first]
    for number, (chunk, layer) in enumerate(zip(chunks, block.res2net_block.blocks, strict=True)):
        outputs.append(tdnn(layer, chunk + outputs[-1] if number else chunk, lengths))
    x = block.tdnn2(torch.cat(outputs, dim=1))
    inside = clip_mask(lengths, x.shape[2])[:, None]
    squeezed = x.masked_fill(~inside, 0).sum(2, keepdim=True) / lengths[:, None, None]
    squeeze = block.se_block
    return squeeze.sigmoid(squeeze.conv2(squeeze.relu(squeeze.conv1(squeezed)))) * x + residual


def attentive_statistics(pool: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a SpeechBrain ``AttentiveStatisticsPooling`` on x [B, C, T]: [B, 2C, 1].

    It joins the clip's mean and deviation to every frame before the first convolution. Their part of the sum is the
    same for all frames, so here it is computed once; and the mask comes from lengths that did not pass a ratio.
    """
    block = pool.tdnn
    conv = block.conv.conv
    weight = conv.weight[:, :, 0]
    if pool.global_context:
        mean, std = masked_mean_std(x.float().transpose(1, 2), lengths, 1e-6)
        clip = torch.cat([mean, std], 1) @ weight[:, x.shape[1] :].T
        hidden = F.conv1d(x, weight[:, : x.shape[1], None], conv.bias) + clip[..., None]
    else:
        hidden = conv(x)
    hidden = block.dropout(block.norm(block.activation(hidden)))
    scores = pool.conv(pool.tanh(hidden))
    return torch.cat(attended_mean_std(x, scores, lengths, time=2), 1)[..., None]


def load_speaker_model(network: nn.Module, start: str) -> None:
    """Load the weights of a SpeechBrain speaker model strictly into an ECAPA-TDNN of the same sizes.

    Raises:
        UserError: not found, not such weights, or of other sizes.
    """
    path = speaker_model(start)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except Exception as error:  # whatever torch raises for bytes, names and shapes that are not these
        reason = str(error).strip().replace("\t", "").split("\n")
        raise UserError(
            f"{path}: not the weights of such a network ({' '.join(reason[:2]).strip()[:150]}); its sizes are "
            "ecapa/channels = 1024 and embedding = 192"
        ) from error


def speaker_model(start: str) -> Path:
    """Return the file of a speaker model that is at hand, or fetch it from the hub."""
    for path in (Path(start), Path(start) / SPEAKER_FILE, data_folder() / "encoders" / start / SPEAKER_FILE):
        if path.is_file():
            return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(start, SPEAKER_FILE))
    except Exception as error:  # of the network, or of a name that the hub does not know
        raise UserError(
            f"speaker model '{start}' is neither at hand nor to be fetched ({type(error).__name__}); put its "
            f"{SPEAKER_FILE} into {data_folder() / 'encoders' / start}/"
        ) from error
