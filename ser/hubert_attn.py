"""A pretrained encoder, a Bi-LSTM and attentive statistics pooling, on stored frames or from sound.

Shapes: B clips, L layers, T frames, D features of a frame, C classes; ``lengths`` are long[B].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ser.adapting import Adapted
from ser.errors import UserError
from ser.interfaces import Classifier
from ser.layers import (
    AttentiveStatistics,
    InputNorm,
    LayerSum,
    RunningNorm,
    SpeakerStatistics,
    arange_like,
    at_least_float32,
    clip_mask,
    masked_mean_std,
)

__all__ = ["HubertAttn", "recurrent"]


class HubertAttn(Classifier):
    """HuBERT (or any encoder), weighted sum of layers, Bi-LSTM, attentive statistics pooling, linear classifier.

    Args:
        labels: the C classes, in the order of the outputs.
        width: features D of a frame.
        layers: number L of stored layers, of which a weighted sum is learned; with an encoder that is its own choice.
        encoder: what turns sound into frames; None for stored frames.
        hidden: size of each direction of the Bi-LSTM.
        lstm_layers: of the Bi-LSTM; 0 leaves it out.
        attention: size of the attention; 0 for plain mean and deviation over time.
        dropout: on what goes into the Bi-LSTM and on the pooled statistics.
        normalisation: ``corpus``, ``clip`` or ``none`` of stored frames, see ``layers.InputNorm``; with an encoder
            ``corpus`` or ``none`` of the pooled statistics, see ``layers.RunningNorm``. ``speaker`` is always of the
            pooled statistics: those of the frames vary within a clip far more than from one speaker to the next.
        prior: clips that the corpus weighs as much as, against those of a speaker.

    Raises:
        UserError: a size that is too small, or an encoder of another width.
    """

    speakers_at = "embedding"

    def __init__(
        self,
        labels: Sequence[str],
        width: int,
        layers: int = 1,
        encoder: Adapted | None = None,
        hidden: int = 128,
        lstm_layers: int = 1,
        attention: int = 128,
        dropout: float = 0.3,
        normalisation: str = "corpus",
        prior: float = 1.0,
    ):
        super().__init__()
        if hidden < 1 or min(attention, lstm_layers) < 0:
            raise UserError(
                f"HubertAttn: hidden {hidden}, attention {attention}, lstm_layers {lstm_layers} are too small"
            )
        self.labels = tuple(labels)
        self.encoder = encoder
        pooled = normalisation if encoder is not None or normalisation == "speaker" else "none"
        if encoder is None:
            self.takes = "frames" if layers == 1 else "layers"
            self.input_shape = (width,) if layers == 1 else (layers, width)
            self.norm = InputNorm(self.input_shape, "corpus" if normalisation == "speaker" else normalisation)
            self.sum = LayerSum(layers) if layers > 1 else None
        else:
            if encoder.width != width:
                raise UserError(f"HubertAttn.width is {width}, but its encoder gives {encoder.width}")
            self.takes, self.input_shape = encoder.takes, encoder.input_shape
            self.level = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.lstm = None
        if lstm_layers:
            self.lstm = nn.LSTM(width, hidden, lstm_layers, batch_first=True, bidirectional=True)
        size = 2 * hidden if lstm_layers else width
        self.pool = AttentiveStatistics(size, attention) if attention else None
        self.embedding_norm = RunningNorm(2 * size, pooled, prior)
        self.head = nn.Linear(2 * size, len(self.labels))

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Pool stored frames [B, T, D] or [B, L, T, D], or what the encoder hears, to statistics [B, E]."""
        if self.encoder is not None:
            x, lengths = self.encoder(inputs, lengths)
            x = self.level(x)
        else:
            x = self.frames(inputs, lengths)
        x = self.dropout(x)
        if self.lstm is not None:
            x = recurrent(self.lstm, x, lengths)
        return (
            torch.cat(masked_mean_std(at_least_float32(x), lengths), 1) if self.pool is None else self.pool(x, lengths)
        )

    def frames(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Normalise stored frames, and add up their layers: [B, T, D]."""
        if self.sum is None:
            return self.norm(inputs, lengths)
        return self.sum(self.norm(inputs.transpose(1, 2), lengths).transpose(1, 2))

    def classify(self, embedding: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.dropout(self.embedding_norm(embedding, speakers)))


def recurrent(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a bidirectional LSTM over each clip's own frames x [B, T, D]; the result [B, T, 2H] is zero after its end.

    On a CPU an LSTM over padded clips is at least about twice as fast as one over packed clips. So each direction runs
    alone there, the second over clips turned round: both meet a clip's frames before its padding. cuDNN packs.
    """
    # In float32: in half precision a CPU is slower, and cuDNN takes fp16 for bf16, too, whose gradients nothing scales.
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        if x.is_cuda:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        inside = clip_mask(lengths, x.shape[1])
        steps = arange_like(x.shape[1], x)
        turned = torch.where(inside, lengths[:, None] - 1 - steps, steps)[..., None]
        for layer in range(lstm.num_layers):
            ahead = one_way(lstm, x, f"_l{layer}")
            behind = one_way(lstm, x.gather(1, turned.expand_as(x)), f"_l{layer}_reverse")
            x = torch.cat([ahead, behind.gather(1, turned.expand_as(behind))], -1)
    return x.masked_fill(~inside[..., None], 0)


def one_way(lstm: nn.LSTM, x: Tensor, name: str) -> Tensor:
    """Run one direction of one layer of an LSTM over padded clips [B, T, D]: [B, T, H]."""
    weights = [getattr(lstm, kind + name) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    begin = torch.zeros_like(x[:, 0, :1]).expand(1, -1, lstm.hidden_size).contiguous()  # cuDNN, of exports, wants it
    return torch.lstm(x, [begin, begin], weights, True, 1, 0.0, lstm.training, False, True)[0]
