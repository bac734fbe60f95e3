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
from ser.interfaces import Classifier
from ser.layers import COMBINED, WITHOUT_TIME, InputNorm, LayerSum, SpeakerStatistics

__all__ = ["NEVER", "StatsProbe", "logistic_regression", "turned"]

SOLVERS = ("closed_form", "loop")
NEVER = -30.0  # logit of a class that training has not met


class StatsProbe(Classifier):
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
        if refit and solver == "loop":
            raise UserError(
                "StatsProbe.refit is of the solver closed_form; in the loop set 'stats/refit = False', and to train on "
                "the validation part, too: train/with_validation"
            )
        self.labels = tuple(labels)
        self.input_shape = (layers, 2 * width)
        self.norm = InputNorm(self.input_shape, normalisation, prior)
        self.sum = LayerSum(layers) if combine == "sum" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width * (1 if self.sum else layers), len(self.labels))
        self.solves = solver == "closed_form"
        self.strengths = tuple(strengths)
        self.wccn = wccn
        self.refit = refit
        self.reduced: tuple[Batch, np.ndarray, np.ndarray | None] | None = None

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
        x, map_back = self.reduce(batch)
        rows, classes = batch.targets.cpu().nonzero(as_tuple=True)
        shares = (batch.targets.cpu()[rows, classes] * weights.cpu()[classes]).numpy()
        one_each = len(rows) == len(x) and bool((rows.diff() == 1).all())  # no copy of what may be gigabytes
        x = x if one_each else x[rows.numpy()]
        known, coefficients, intercepts = logistic_regression(x, classes.numpy(), shares, strength)
        coefficients = coefficients if map_back is None else coefficients @ map_back.T
        self.head.weight.zero_()
        self.head.bias.fill_(NEVER)
        self.head.weight[known] = torch.from_numpy(coefficients).to(self.head.weight)
        self.head.bias[known] = torch.from_numpy(intercepts).to(self.head.bias)

    def reduce(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        """Return features [N, K] to solve on, and the matrix [F, K] that maps coefficients back, None for none.

        Those of the last batch are kept for other strengths.

        Raises:
            UserError: clips whose speakers are unknown, with ``wccn``.
        """
        if self.reduced is None or self.reduced[0] is not batch:
            x = self.embed(batch.inputs, batch.lengths, batch.speakers).cpu().double().numpy()
            features = x.shape[1]
            x, basis = turned(x)
            if self.wccn:
                scaling = within_class_scaling(x, groups_of(batch), self.wccn, features)
                basis = scaling if basis is None else basis @ scaling
                x = x @ scaling
            self.reduced = (batch, x, basis)
        return self.reduced[1:]


def groups_of(batch: Batch) -> list[tuple[str, int]]:
    """Return speaker and emotion of each clip.

    Raises:
        UserError: a clip without a speaker.
    """
    speakers = [clip.speaker for clip in batch.clips]
    if "" in speakers:
        raise UserError("stats/wccn needs to know who speaks, but clips lack a speaker; set 'stats/wccn = 0.0'")
    return list(zip(speakers, batch.targets.argmax(1).tolist(), strict=True))


def turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn more features than rows so that all but N are zero: a linear problem with an L2 penalty stays the same.

    Args:
        x: float [N, F].

    Returns:
        float [N, min(N, F)], and the basis [F, N] that maps coefficients back; None where nothing was turned.
    """
    if x.shape[1] <= x.shape[0]:
        return x, None
    basis = np.linalg.qr(x.T)[0]
    return x @ basis, basis


def within_class_scaling(x: np.ndarray, groups: Sequence[Hashable], wccn: float, features: int) -> np.ndarray:
    """Return the matrix [K, K] that scales features down along what differs within groups, see ``StatsProbe``.

    Args:
        x: float [N, K].
        groups: of each row, such as its speaker and emotion.
        wccn: how much.
        features: number that x had before it was turned, over which the mean variance is taken.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([numbers[group] for group in groups])
    sums = np.zeros((len(numbers), x.shape[1]))
    np.add.at(sums, place, x)
    rest = x - (sums / np.bincount(place)[:, None])[place]
    values, vectors = np.linalg.eigh(rest.T @ rest)
    return vectors / np.sqrt(1 + wccn * values.clip(0) / max(values.sum() / features, 1e-12))


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the figures stand still long before the weights do
        solver = LogisticRegression(C=strength, max_iter=1000).fit(x, classes, shares)
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # scikit-learn then has one row, of the second class
        coefficients, intercepts = coefficients * [[-0.5], [0.5]], intercepts * [-0.5, 0.5]
    return solver.classes_, coefficients, intercepts
