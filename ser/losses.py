"""Cross-entropy between logits and target distributions, weighted by class.

A target is a distribution over the classes: one-hot, smoothed, mixed and voted labels are one thing here.
Shapes: B clips, C classes.
"""

import math

import torch
from torch import Tensor

from ser.errors import UserError, nearest
from ser.layers import at_least_float32

__all__ = ["CLASS_WEIGHTS", "KINDS", "Loss", "class_weights"]

KINDS = ("cross_entropy", "focal", "aam")
CLASS_WEIGHTS = ("none", "inverse", "effective")
BETA = 0.999  # of the effective number of samples


def class_weights(counts: Tensor, kind: str) -> Tensor:
    """Return float [C] with mean 1 over the classes that occur; a class without clips gets 0, but for ``none``.

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
    """Cross-entropy, focal or AAM-softmax loss, with class weights and label smoothing.

    Args:
        kind: ``cross_entropy``; ``focal`` (https://arxiv.org/abs/1708.02002), which makes easy clips count less; or
            ``aam``, the additive angular margin (https://arxiv.org/abs/1801.07698) on a cosine head, for hard labels.
        class_weights: one of ``CLASS_WEIGHTS``; the counts are those of the training part.
        label_smoothing: share of each target that is spread evenly over the classes, in [0, 1).
        focal_gamma: exponent of (1 - p) in the focal loss.
        logit_adjustment: the logits get this times the logarithm of the training part's class shares, so that rare
            classes are not answered too rarely (https://arxiv.org/abs/2007.07314); 0 for none.
        margin: angle that AAM adds between a clip and its own class, radians.
        scale: of the cosine head's logits.

    Raises:
        UserError: an unknown loss, or a value out of range.
    """

    def __init__(
        self,
        kind: str = "cross_entropy",
        class_weights: str = "none",
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        logit_adjustment: float = 0.0,
        margin: float = 0.2,
        scale: float = 30.0,
    ):
        if kind not in KINDS:
            raise UserError(f"train/loss is '{kind}'{nearest(kind, KINDS)}")
        if class_weights not in CLASS_WEIGHTS:
            raise UserError(f"train/class_weights is '{class_weights}'{nearest(class_weights, CLASS_WEIGHTS)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"Loss.label_smoothing is {label_smoothing}; expected a share in [0, 1)")
        if focal_gamma < 0:
            raise UserError(f"Loss.focal_gamma is {focal_gamma}; expected 0 or more")
        needs_hard_labels = {
            "train/loss is 'aam'": (kind == "aam", "an angular margin needs hard labels"),
            "train/loss is 'focal'": (kind == "focal", "the shares of the other classes would outweigh an easy clip"),
            f"train/logit_adjustment is {logit_adjustment}": (
                logit_adjustment > 0,
                "rare classes would be answered for all clips",
            ),
        }
        for setting, (used, reason) in needs_hard_labels.items():
            if used and label_smoothing:
                raise UserError(
                    f"{setting} and label_smoothing {label_smoothing}: {reason}; set 'train/label_smoothing = 0.0'"
                )
        if logit_adjustment < 0 or not 0 <= margin < math.pi / 2 or scale <= 0:
            raise UserError(
                f"Loss: logit_adjustment {logit_adjustment}, margin {margin}, scale {scale}; expected none below 0, "
                "a margin below 1.57 and a scale above 0"
            )
        self.kind = kind
        self.logit_adjustment = logit_adjustment
        self.margin, self.scale = margin, scale
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma if kind == "focal" else 0.0

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor, prior: Tensor | None = None) -> Tensor:
        """Return the weighted mean loss of a batch, a scalar in float32; see ``parts``."""
        total, weight = self.parts(logits, targets, weights, prior)
        return total / weight

    def parts(
        self, logits: Tensor, targets: Tensor, weights: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of a batch and the sum of their weights, scalars in float32.

        Parts of several batches add up to those of all their clips, whose mean is the quotient of the sums.

        The quotient is ``torch.nn.functional.cross_entropy`` with class indices, ``weight`` and ``label_smoothing``
        for one-hot targets and the kind ``cross_entropy``.

        Args:
            logits: [B, C].
            targets: float [B, C], each row a distribution.
            weights: float [C] of ``class_weights``.
            prior: share of each class in the training part, float [C], for logit adjustment.
        """
        logits = at_least_float32(logits)
        if self.kind == "aam":
            logits = self.with_margin(logits, targets)
        if self.logit_adjustment and prior is not None:
            logits = logits + self.logit_adjustment * prior.clamp_min(1e-6).log()
        log_p = logits.log_softmax(-1)
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[-1]
        cost = -log_p
        if self.focal_gamma:
            # Above zero, since a power below 1 has no gradient at 0.
            cost = cost * (1 - log_p.exp()).clamp_min(1e-6) ** self.focal_gamma
        return (smoothed * weights * cost).sum(), (targets * weights).sum()

    def with_margin(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return logits with the margin added to the angle of each clip's own class.

        Where that angle would pass pi, a line goes on from there, so that the loss stays monotonic.
        """
        cosine = (logits / self.scale).clamp(-1 + 1e-6, 1 - 1e-6)
        shifted = cosine * math.cos(self.margin) - (1 - cosine.square()).sqrt() * math.sin(self.margin)
        straight = cosine - self.margin * math.sin(self.margin)
        own = torch.where(cosine > -math.cos(self.margin), shifted, straight)
        return torch.where(targets > 0.5, own, cosine) * self.scale
