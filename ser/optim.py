"""Optimiser and learning-rate recipes: cheap objects that gin makes, built once the model exists."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ser.errors import UserError

__all__ = ["AdamW", "WarmupCosine"]


@dataclass(frozen=True)
class AdamW:
    """AdamW with decay on weight matrices only: biases and normalisation scales are left alone.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled decay.
        beta1, beta2: of the running averages.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not (0 <= self.lr < float("inf") and 0 <= self.weight_decay < float("inf")):
            raise UserError(f"AdamW.lr is {self.lr}, weight_decay {self.weight_decay}; expected 0 or more")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"AdamW.beta1 is {self.beta1}, beta2 {self.beta2}; expected shares in [0, 1)")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser over the parameters that require gradients."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to a share of the peak.

    Attributes:
        warmup: share of all steps that warm up.
        final: learning rate at the end, as a share of the peak.
    """

    warmup: float = 0.1
    final: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise UserError(f"WarmupCosine.warmup is {self.warmup}; expected a share of the steps in [0, 1)")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the peak learning rate at ``step`` (from 0) of ``steps``."""
        warmup_steps = round(self.warmup * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
