"""Cross-entropy between logits and target distributions, weighted by class.

A target is a distribution over the classes: one-hot, smoothed, mixed and voted labels are one thing here.
Shapes: B clips, C classes.
"""

import torch
from torch import Tensor

from ser.errors import UserError, nearest

__all__ = ["CLASS_WEIGHTS", "KINDS", "Loss", "class_weights"]

KINDS = ("cross_entropy", "focal")
CLASS_WEIGHTS = ("none", "inverse", "effective")
BETA = 0.999  # of the effective number of samples


def class_weights(counts: Tensor, kind: str) -> Tensor:
    """Return float [C] with mean 1 over the classes that occur; a class without clips gets 0.

    ``inverse`` is 1 / count; ``effective`` is 1 / (1 - beta^count), the effective number of samples of
    Cui et al. 2019 (https://arxiv.org/abs/1901.05555); ``none`` is 1 for all.

    Raises:
        UserError: an unknown ``kind``.
    """
    counts = counts.double()
    if kind == "none":
        return torch.ones_like(counts).float()
    if kind == "inverse":
        weights = 1 / counts
    elif kind == "effective":
        weights = (1 - BETA) / (1 - BETA**counts)
    else:
        raise UserError(f"class weights '{kind}' are unknown{nearest(kind, CLASS_WEIGHTS)}")
    weights = weights.masked_fill(counts == 0, 0)
    return (weights * (counts > 0).sum() / weights.sum()).float()


class Loss:
    """Cross-entropy or focal loss on target distributions, with class weights and label smoothing.

    Args:
        kind: ``cross_entropy``, or ``focal`` (https://arxiv.org/abs/1708.02002), which makes easy clips count less.
        class_weights: one of ``CLASS_WEIGHTS``; the counts are those of the training part.
        label_smoothing: share of each target that is spread evenly over the classes, in [0, 1).
        focal_gamma: exponent of (1 - p) in the focal loss.
    """

    def __init__(
        self,
        kind: str = "cross_entropy",
        class_weights: str = "none",
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
    ):
        if kind not in KINDS:
            raise UserError(f"train/loss is '{kind}'{nearest(kind, KINDS)}")
        if class_weights not in CLASS_WEIGHTS:
            raise UserError(f"train/class_weights is '{class_weights}'{nearest(class_weights, CLASS_WEIGHTS)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"Loss.label_smoothing is {label_smoothing}; expected a share in [0, 1)")
        if focal_gamma < 0:
            raise UserError(f"Loss.focal_gamma is {focal_gamma}; expected 0 or more")
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma if kind == "focal" else 0.0

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean loss of a batch, a scalar in float32.

        Equal to ``torch.nn.functional.cross_entropy`` with class indices, ``weight`` and ``label_smoothing``
        for one-hot targets and the kind ``cross_entropy``.

        Args:
            logits: [B, C].
            targets: float [B, C], each row a distribution.
            weights: float [C] of ``class_weights``.
        """
        log_p = logits.float().log_softmax(-1)
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[-1]
        cost = -log_p
        if self.focal_gamma:
            # Above zero, since a power below 1 has no gradient at 0.
            cost = cost * (1 - log_p.exp()).clamp_min(1e-6) ** self.focal_gamma
        return (smoothed * weights * cost).sum() / (targets * weights).sum()
