"""From sound to probabilities in one module: front end, model and temperature, as they are delivered.

Shapes: B clips, N samples at 16 kHz, C classes, F a clip's features without time; ``lengths`` are long[B].
"""

import torch
from torch import Tensor, nn

from ser.interfaces import Classifier, Encoder, FrontEnd, normalised_by_speaker
from ser.layers import SpeakerStatistics, at_least_float32, masked_mean_std

__all__ = ["Pipeline"]


class Pipeline(nn.Module):
    """Sound in, probabilities out; in evaluation mode, and without gradients.

    Args:
        front_end: sound to what the model takes.
        model: trained.
        temperature: that the logits are divided by.
    """

    def __init__(self, front_end: FrontEnd, model: Classifier, temperature: float = 1.0):
        super().__init__()
        self.front_end, self.model, self.temperature = front_end, model, temperature
        self.by_speaker = bool(normalised_by_speaker(model))
        self.eval()

    def pack(self) -> "Pipeline":
        """Lay an encoder's weights out for the CPU; the pipeline can no longer train, move, or be saved or exported."""
        for module in self.modules():
            if isinstance(module, Encoder):
                module.pack()
        return self

    def forward(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """Return probabilities [B, C] of sound [B, N]; of the speakers nothing is known."""
        values, frames = self.front_end(sound, lengths)
        return self.probabilities(self.model(values, frames))

    def known(self, sound: Tensor, lengths: Tensor, count: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return probabilities [B, C] of clips of whose speakers count [B], mean and std [B, *F] are known."""
        values, frames = self.front_end(sound, lengths)
        return self.probabilities(self.model(values, frames, SpeakerStatistics(count, mean, std)))

    def moments(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the clips tell of their speakers.

        Returns:
            The number of items that each clip holds, float [B], their mean [B, *F], and the sum of the squares of
            their distances to it [B, *F]. Items are frames, or the clip itself where features have no time.
        """
        values, frames = self.front_end(sound, lengths)
        if self.model.speakers_at == "embedding" or self.model.takes == "statistics":
            at_inputs = self.model.speakers_at == "inputs"
            values = at_least_float32(values if at_inputs else self.model.embed(values, frames))
            return torch.ones_like(lengths, dtype=values.dtype), values, torch.zeros_like(values)
        items = frames.to(values.dtype)
        mean, std = masked_mean_std(values, frames, std_floor=1e-10)
        return items, mean, std.square() * items.view(-1, *[1] * (std.dim() - 1))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of logits [B, C] at the model's temperature."""
        return (at_least_float32(logits) / self.temperature).softmax(1)
