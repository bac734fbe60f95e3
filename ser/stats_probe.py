"""The cheap strong baseline: mean and standard deviation of every layer of a frozen encoder, and a linear classifier.

Shapes: B clips, L layers, D features of a layer, C classes.
"""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ser.batches import Batch
from ser.errors import UserError, nearest
from ser.interfaces import Solvable
from ser.layers import COMBINED, WITHOUT_TIME, InputNorm, LayerSum, SpeakerStatistics

__all__ = ["NEVER", "StatsProbe", "logistic_regression"]

SOLVERS = ("closed_form", "loop")
NEVER = -30.0  # logit of a class that training has not met


class StatsProbe(Solvable):
    """Multinomial logistic regression on statistics of layers.

    Args:
        labels: the C classes, in the order of the outputs.
        width: features D of a layer.
        layers: number L of layers.
        combine: ``join`` the layers to 2LD features, or learn a weighted ``sum`` of them (2D features).
        normalisation: of each feature: ``corpus``, ``speaker`` or ``none``, see ``layers.InputNorm``.
        prior: clips that the corpus weighs as much as, against those of a speaker.
        solver: ``closed_form``: scikit-learn's logistic regression, at once; ``loop``: by steps, as any model.
        strengths: values of its C (inverse strength of the L2 penalty) to try; validation speakers choose.
        wccn: how much less a direction counts in which clips of one speaker and one emotion differ, 0 for not: one
            along which their variance is v times the mean is scaled by 1 / sqrt(1 + wccn v), within-class covariance
            normalisation (Hatch, Kajarekar and Stolcke 2006) with speaker and emotion as the class. Copies are
            such clips, too.
        refit: solve again on training and validation parts together with the C that was chosen. Validation
            figures of the run are those before.
        dropout: on the features, in the loop.

    Raises:
        UserError: an unknown word, or a value out of range.
    """

    takes = "statistics"

    def __init__(
        self,
        labels: Sequence[str],
        width: int,
        layers: int,
        combine: str = "join",
        normalisation: str = "corpus",
        prior: float = 1.0,
        solver: str = "closed_form",
        strengths: Sequence[float] = (0.01,),
        wccn: float = 0.0,
        refit: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if combine not in COMBINED:
            raise UserError(f"StatsProbe.combine is '{combine}'{nearest(combine, COMBINED)}")
        if solver not in SOLVERS:
            raise UserError(f"StatsProbe.solver is '{solver}'{nearest(solver, SOLVERS)}")
        if normalisation not in WITHOUT_TIME:
            raise UserError(f"StatsProbe.normalisation is '{normalisation}'{nearest(normalisation, WITHOUT_TIME)}")
        if solver == "closed_form" and combine == "sum":
            raise UserError("StatsProbe: weights of layers are learned in the loop; set 'stats/solver = \"loop\"'")
        if not strengths or min(strengths) <= 0:
            raise UserError(f"StatsProbe.strengths is {list(strengths)}; expected one value or more, all above 0")
        if not wccn >= 0 or (wccn and solver != "closed_form"):
            raise UserError(f"StatsProbe.wccn is {wccn}; expected 0 or more, and the solver closed_form")
        self.labels = tuple(labels)
        self.input_shape = (layers, 2 * width)
        self.norm = InputNorm(self.input_shape, normalisation, prior)
        self.sum = LayerSum(layers) if combine == "sum" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width * (1 if self.sum else layers), len(self.labels))
        self.solves = solver == "closed_form"
        self.strengths = tuple(strengths)
        self.wccn = wccn
        self.scaled: tuple[Batch, np.ndarray] | None = None
        self.refit = refit and self.solves

    def embed(self, inputs: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Normalise statistics [B, L, 2D] to [B, 2LD], or [B, 2D] of a weighted sum; lengths are not looked at."""
        x = self.norm.standardised(inputs, speakers)
        return x.flatten(1) if self.sum is None else self.sum(x)

    def classify(self, embedding: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.dropout(embedding))

    @torch.no_grad()
    def solve(self, batch: Batch, weights: Tensor, strength: float) -> None:
        """Find the weights by scikit-learn's logistic regression; a soft target is a weighted clip of each class."""
        x = self.embed(batch.inputs, batch.lengths, batch.speakers).cpu().double().numpy()
        rows, classes = batch.targets.cpu().nonzero(as_tuple=True)
        shares = (batch.targets.cpu()[rows, classes] * weights.cpu()[classes]).numpy()
        scaling = self.scaling(x, batch) if self.wccn else None
        x = x if scaling is None else x @ scaling
        known, coefficients, intercepts = logistic_regression(x[rows.numpy()], classes.numpy(), shares, strength)
        coefficients = coefficients if scaling is None else coefficients @ scaling.T
        self.head.weight.zero_()
        self.head.bias.fill_(NEVER)
        self.head.weight[known] = torch.from_numpy(coefficients).to(self.head.weight)
        self.head.bias[known] = torch.from_numpy(intercepts).to(self.head.bias)

    def scaling(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """Return ``within_class_scaling`` of a batch's features; that of the last batch is kept for other strengths.

        Raises:
            UserError: clips whose speakers are unknown.
        """
        if self.scaled is None or self.scaled[0] is not batch:
            speakers = [clip.speaker for clip in batch.clips]
            if "" in speakers:
                raise UserError("stats/wccn needs to know who speaks, but clips lack a speaker; set 'stats/wccn = 0.0'")
            groups = list(zip(speakers, batch.targets.argmax(1).tolist(), strict=True))
            self.scaled = (batch, within_class_scaling(x, groups, self.wccn))
        return self.scaled[1]


def within_class_scaling(x: np.ndarray, groups: Sequence[Hashable], wccn: float) -> np.ndarray:
    """Return the matrix [F, K] that scales features down along what differs within groups, see ``StatsProbe``.

    Args:
        x: float [N, F].
        groups: of each row, such as its speaker and emotion.
        wccn: how much.
    """
    basis = np.linalg.qr(x.T)[0] if x.shape[1] > x.shape[0] else None  # [F, N]: all that N rows can tell of
    rest = x.copy() if basis is None else x @ basis
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([numbers[group] for group in groups])
    sums = np.zeros((len(numbers), rest.shape[1]))
    np.add.at(sums, place, rest)
    rest -= (sums / np.bincount(place)[:, None])[place]
    values, vectors = np.linalg.eigh(rest.T @ rest)
    mean = values.sum() / x.shape[1]
    scaled = vectors / np.sqrt(1 + wccn * values.clip(0) / max(mean, 1e-12))
    return scaled if basis is None else basis @ scaled


def logistic_regression(
    x: np.ndarray, classes: np.ndarray, shares: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit scikit-learn's multinomial logistic regression with an L2 penalty.

    Args:
        x: float [N, F].
        classes: int [N].
        shares: weight of each row, float [N].
        strength: its C.

    Returns:
        The K classes that occur, int [K], their coefficients [K, F] and intercepts [K].

    Raises:
        UserError: only one class occurs.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(classes)) < 2:
        raise UserError("the clips to learn from all have one emotion; expected two or more: see just histogram CORPUS")
    # More features than clips: turned so that all but N features are zero, the problem is the same and smaller.
    turn = np.linalg.qr(x.T)[0] if x.shape[1] > x.shape[0] else None  # [F, N]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the figures stand still long before the weights do
        solver = LogisticRegression(C=strength, max_iter=1000).fit(x if turn is None else x @ turn, classes, shares)
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # scikit-learn then has one row, of the second class
        coefficients, intercepts = coefficients * [[-0.5], [0.5]], intercepts * [-0.5, 0.5]
    return solver.classes_, coefficients if turn is None else coefficients @ turn.T, intercepts
