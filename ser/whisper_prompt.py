"""A frozen Whisper encoder with learned prompts; only prompts, weights of layers and the head are trained and saved.

Shapes: B clips, T frames of the mel, D features of a frame, C classes; ``lengths`` are long[B].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser.adapting import Adapted
from ser.interfaces import Classifier
from ser.layers import RunningNorm, Speakers, masked_mean_std

__all__ = ["WhisperPrompt"]


class WhisperPrompt(Classifier):
    """Whisper encoder with prompts, weighted sum of layers, mean and standard deviation over time, MLP.

    Args:
        labels: the C classes, in the order of the outputs.
        encoder: with prompts, or adapted otherwise.
        hidden: size of the MLP's inner layer; 0 for a linear classifier.
        dropout: on the pooled statistics and the inner layer.
        normalisation: of the pooled statistics: ``corpus``, ``speaker`` or ``none``, see ``layers.RunningNorm``.
        prior: clips that the corpus weighs as much as, against those of a speaker.
    """

    speakers_at = "embedding"

    def __init__(
        self,
        labels: Sequence[str],
        encoder: Adapted,
        hidden: int = 256,
        dropout: float = 0.3,
        normalisation: str = "corpus",
        prior: float = 1.0,
    ):
        super().__init__()
        self.labels = tuple(labels)
        self.encoder = encoder
        self.takes, self.input_shape = encoder.takes, encoder.input_shape
        size = 2 * encoder.width
        self.norm = RunningNorm(size, normalisation, prior)
        inner = [nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout)] if hidden else []
        self.head = nn.Sequential(nn.Dropout(dropout), *inner, nn.Linear(hidden or size, len(self.labels)))

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: Speakers | None = None) -> Tensor:
        """Pool mels [B, T, bands] to mean and standard deviation of the encoder's frames, [B, 2D]."""
        assert self.encoder is not None
        x, frames = self.encoder(inputs, lengths)
        return torch.cat(masked_mean_std(x.float(), frames), 1)

    def classify(self, embedding: Tensor, speakers: Speakers | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.norm(embedding, speakers))
