"""A frozen Whisper encoder with learned prompts; only prompts, weights of layers and the head are trained and saved.

Shapes: B clips, T frames of the mel, D features of a frame, L layers, C classes; ``lengths`` are long[B].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser.adapting import Adapted
from ser.errors import UserError, nearest
from ser.interfaces import Classifier
from ser.layers import COMBINED, RunningNorm, SpeakerStatistics, masked_mean_std

__all__ = ["WhisperPrompt"]


class WhisperPrompt(Classifier):
    """Whisper encoder with prompts, mean and standard deviation over time of its layers, linear classifier or MLP.

    Args:
        labels: the C classes, in the order of the outputs.
        encoder: with prompts, or adapted otherwise.
        combine: ``sum``: pool a learned weighted sum of the L layers, E = 2D; ``join``: pool each, E = 2LD, which is
            what ``stats_probe`` sees.
        hidden: size of the MLP's inner layer; 0 for a linear classifier.
        dropout: on the pooled statistics and the inner layer.
        normalisation: of the pooled statistics: ``corpus``, ``speaker`` or ``none``, see ``layers.RunningNorm``.
        prior: clips that the corpus weighs as much as, against those of a speaker.

    Raises:
        UserError: an unknown way to combine the layers.
    """

    speakers_at = "embedding"

    def __init__(
        self,
        labels: Sequence[str],
        encoder: Adapted,
        combine: str = "sum",
        hidden: int = 256,
        dropout: float = 0.3,
        normalisation: str = "corpus",
        prior: float = 1.0,
    ):
        super().__init__()
        if combine not in COMBINED:
            raise UserError(f"prompted/combine is '{combine}'{nearest(combine, COMBINED)}")
        self.labels = tuple(labels)
        self.encoder = encoder
        self.takes, self.input_shape = encoder.takes, encoder.input_shape
        self.joins = combine == "join"
        if self.joins:
            encoder.sum = None  # its weights would learn nothing
        size = 2 * encoder.width * (len(encoder.layers) if self.joins else 1)
        self.norm = RunningNorm(size, normalisation, prior)
        inner = [nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout)] if hidden else []
        self.head = nn.Sequential(nn.Dropout(dropout), *inner, nn.Linear(hidden or size, len(self.labels)))

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Pool mels [B, T, bands] to mean and standard deviation of the encoder's frames, [B, E]."""
        assert isinstance(self.encoder, Adapted)
        frames = self.encoder.encoder.input_frames(lengths)
        states = self.encoder.states(inputs, lengths) if self.joins else [self.encoder(inputs, lengths)[0]]
        return torch.cat([value for x in states for value in masked_mean_std(x.float(), frames)], 1)

    def classify(self, embedding: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.norm(embedding, speakers))
