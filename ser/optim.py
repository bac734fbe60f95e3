"""Optimiser, learning rate and average of the weights; what of a model is learned at all."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ser.errors import UserError

__all__ = ["EMA", "AdamW", "WarmupCosine", "kept"]


@dataclass(frozen=True)
class AdamW:
    """AdamW with decay on weight matrices only: biases and normalisation scales are left alone.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled decay.
        beta1, beta2: of the running averages.

    Raises:
        UserError: a value out of range.
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

    def build(self, model: nn.Module, scales: Mapping[str, float] | None = None) -> torch.optim.AdamW:
        """Return the optimiser over the parameters that require gradients.

        Args:
            model: of the parameters.
            scales: factors on the learning rate of some of them, by name; each group carries its own as ``scale``.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = (scales or {}).get(name, 1.0)
                matrix = sum(size > 1 for size in parameter.shape) > 1
                groups.setdefault((scale, matrix), []).append(parameter)
        options = [
            {"params": members, "lr": self.lr * scale, "scale": scale, "weight_decay": self.weight_decay * matrix}
            for (scale, matrix), members in groups.items()
        ]
        return torch.optim.AdamW(options, lr=self.lr, betas=(self.beta1, self.beta2))


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to a share of the peak.

    Attributes:
        warmup: share of all steps that warm up.
        final: learning rate at the end, as a share of the peak.

    Raises:
        UserError: a share out of range.
    """

    warmup: float = 0.1
    final: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise UserError(f"WarmupCosine.warmup is {self.warmup}; expected a share of the steps in [0, 1)")
        if not 0 <= self.final <= 1:
            raise UserError(f"WarmupCosine.final is {self.final}; expected a share of the peak in [0, 1]")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the peak learning rate at ``step`` (from 0) of ``steps``."""
        warmup_steps = round(self.warmup * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint keeps of a model: all but the frozen weights, which come from a pretrained encoder."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


class EMA:
    """Moving average of what a model learns (Polyak and Juditsky 1992), statistics of norms included.

    The decay grows as (1 + t) / (10 + t) up to its value, so that the first steps are soon forgotten.

    Args:
        model: whose weights it begins with.
        decay: a step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.steps = 0
        live = kept(model)  # shares memory with the model, which is changed in place
        self.values = {name: value.clone() for name, value in live.items()}
        smooth = [name for name, value in live.items() if value.is_floating_point()]
        self.smooth = [self.values[name] for name in smooth], [live[name] for name in smooth]
        self.counts = [(self.values[name], live[name]) for name in live if name not in smooth]

    @torch.no_grad()
    def update(self) -> None:
        """Let the model's present weights in."""
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        get_ema_multi_avg_fn(1 - share)(*self.smooth, None)
        for value, now in self.counts:
            value.copy_(now)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a while."""
        own = {name: value.clone() for name, value in kept(self.model).items()}
        self.model.load_state_dict(self.values, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of steps in it."""
        return {**self.values, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict``."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            value.copy_(state[name])
