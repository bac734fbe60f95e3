"""Altered copies of every clip for what is trained on stored features: faster, slower, louder, softer.

A copy is a front end with something done to the sound before it, and has a store of its own. Training hears the copies
beside the clips; validation and test never do.
"""

import re
from typing import Any

import torch
from torch import Tensor

from ser.augment_sound import is_hundredths
from ser.errors import UserError
from ser.interfaces import FrontEnd
from ser.layers import clip_mask

__all__ = ["Altered"]

FORM = re.compile(r"(speed|gain) ([+-]?\d+(?:\.\d+)?)")


class Altered(FrontEnd):
    """A front end that hears something done to the sound.

    Args:
        front_end: that hears it.
        how: ``speed 0.9`` (pitch included, as a tape; 0.5 to 2) or ``gain -6`` (dB, -30 to 30; cut off at full scale).

    Raises:
        UserError: an alteration that is not understood.
    """

    def __init__(self, front_end: FrontEnd, how: str):
        super().__init__()
        found = FORM.fullmatch(how)
        if not found:
            raise UserError(f"encoder/copies: '{how}' is unknown; expected such as 'speed 0.9' or 'gain -6'")
        self.what, self.value = found[1], float(found[2])
        lowest, highest = (0.5, 2.0) if self.what == "speed" else (-30.0, 30.0)
        if not lowest <= self.value <= highest:
            raise UserError(f"encoder/copies: '{how}' is out of range; expected {lowest:g} to {highest:g}")
        if self.what == "speed" and not is_hundredths(self.value):
            raise UserError(f"encoder/copies: '{how}'; expected whole hundredths, such as 'speed 0.95'")
        self.front_end, self.how = front_end, how
        self.kind, self.shape, self.ending = front_end.kind, front_end.shape, front_end.ending
        self.batch_seconds, self.rate = front_end.batch_seconds, front_end.rate  # type: ignore[misc]
        self.suffix = f"{front_end.suffix}-{self.what}{self.value:g}"
        self.options = front_end.options

    @property
    def spec(self) -> dict[str, Any]:
        """How the values are made."""
        return {**self.front_end.spec, "altered": f"{self.what} {self.value:g}"}

    @property
    def made_with(self) -> dict[str, Any]:
        """As of the front end."""
        return self.front_end.made_with

    def resolved(self, device: torch.device) -> str:
        """Return the precision of the front end on a device."""
        return self.front_end.resolved(device)

    def settle(self, spec: dict[str, Any]) -> None:
        """Go on as a store was begun."""
        self.front_end.settle(spec)

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the front end's values of altered sound [B, N], and their frames [B]."""
        from torchaudio.functional import resample

        sound = sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0)
        if self.what == "gain":
            return self.front_end((sound * 10 ** (self.value / 20)).clamp(-1, 1), lengths)
        rate = round(100 * self.value)
        slower = torch.div(lengths * 100 + rate - 1, rate, rounding_mode="floor")
        return self.front_end(resample(sound, rate, 100), slower)
