"""Cross-entropy on distributions against torch, class weights against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from ser.errors import UserError
from ser.losses import CLASS_WEIGHTS, Loss, class_weights

CLASSES = 5
LABELS = torch.tensor([0, 4, 2, 2, 1, 0, 3])
ONE_HOT = F.one_hot(LABELS, CLASSES).float()
EVEN = torch.ones(CLASSES)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 1.25])
LOGITS = torch.randn(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [EVEN, WEIGHTS], ids=["even", "weighted"])
def test_cross_entropy_and_its_gradient_are_those_of_torch(smoothing, weights):
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    loss = Loss(label_smoothing=smoothing)(ours, ONE_HOT, weights)
    expected = F.cross_entropy(theirs, LABELS, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cross_entropy_of_soft_targets_is_that_of_torch():
    soft = torch.rand(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(2)).softmax(-1)
    torch.testing.assert_close(Loss()(LOGITS, soft, EVEN), F.cross_entropy(LOGITS, soft))


def test_a_mixed_target_costs_the_mixture_of_both():
    mixed = 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, 0)
    parts = 0.7 * Loss()(LOGITS, ONE_HOT, EVEN) + 0.3 * Loss()(LOGITS, ONE_HOT.roll(1, 0), EVEN)
    torch.testing.assert_close(Loss()(LOGITS, mixed, EVEN), parts)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_that_of_a_plain_loop(gamma):
    costs, total = 0.0, 0.0
    for row, label in zip(LOGITS.double(), LABELS.tolist(), strict=True):
        p = row.softmax(-1)[label].item()
        costs += WEIGHTS[label].item() * (1 - p) ** gamma * -np.log(p)
        total += WEIGHTS[label].item()
    loss = Loss("focal", focal_gamma=gamma)(LOGITS, ONE_HOT, WEIGHTS)
    assert loss.item() == pytest.approx(costs / total, rel=1e-5)


def test_focal_loss_without_gamma_is_cross_entropy():
    torch.testing.assert_close(Loss("focal", focal_gamma=0.0)(LOGITS, ONE_HOT, EVEN), F.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_a_certain_answer_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = Loss("focal", focal_gamma=gamma)(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_the_loss_is_float32_under_reduced_precision():
    loss = Loss()(LOGITS.bfloat16(), ONE_HOT, EVEN)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS.bfloat16().float(), LABELS))


def test_inverse_weights_are_proportional_to_those_of_scikit_learn():
    labels = np.repeat(np.arange(4), [10, 1, 5, 30])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = class_weights(torch.tensor([10, 1, 5, 30]), "inverse").numpy()
    np.testing.assert_allclose(weights / weights[0], expected / expected[0], rtol=1e-6)
    assert weights.mean() == pytest.approx(1)


def test_effective_weights_are_those_of_the_paper():
    counts = [1000, 10, 200]
    expected = np.array([(1 - 0.999) / (1 - 0.999**count) for count in counts])
    weights = class_weights(torch.tensor(counts), "effective").numpy()
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_a_class_without_clips_weighs_nothing_and_the_others_one_on_average(kind):
    weights = class_weights(torch.tensor([8, 0, 2, 2]), kind)
    assert weights.dtype == torch.float32
    assert weights[1] == 0
    assert weights[[0, 2, 3]].mean().item() == pytest.approx(1)
    assert weights[0] < weights[2] == weights[3]


def test_no_weights_are_one_for_all():
    assert class_weights(torch.tensor([8, 1, 2]), "none").tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", CLASS_WEIGHTS)
def test_every_kind_that_the_loss_takes_can_be_computed(kind):
    assert class_weights(torch.tensor([3, 3]), Loss(class_weights=kind).class_weights).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "cross_entropi"}, r"train/loss.*did you mean 'cross_entropy'\?"),
        ({"class_weights": "inverted"}, r"train/class_weights.*did you mean 'inverse'\?"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; expected"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1; expected"),
        ({"focal_gamma": -1.0}, r"focal_gamma is -1\.0; expected"),
        ({"kind": "focal", "label_smoothing": 0.1}, r"'focal' and label_smoothing 0\.1: .* outweigh an easy clip; set"),
        ({"logit_adjustment": 1.0, "label_smoothing": 0.1}, "rare classes would be answered for all clips; set"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(wrong, says):
    with pytest.raises(UserError, match=says):
        Loss(**wrong)


def test_unknown_class_weights_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'effective'"):
        class_weights(torch.tensor([1, 2]), "efective")


def cosines(seed: int = 3) -> torch.Tensor:
    return torch.rand(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(seed)) * 1.98 - 0.99


@pytest.mark.parametrize(("margin", "scale"), [(0.2, 30.0), (0.5, 10.0), (0.0, 20.0)])
def test_the_angular_margin_is_that_of_speechbrain(margin, scale):
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    theirs = LogSoftmaxWrapper(AdditiveAngularMargin(margin=margin, scale=scale))
    expected = theirs(cosines()[:, None], LABELS[:, None])
    ours = Loss("aam", margin=margin, scale=scale)(scale * cosines(), ONE_HOT, EVEN)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_angular_margin_has_a_finite_gradient_at_the_ends():
    logits = (30 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).requires_grad_()
    Loss("aam")(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2)).backward()
    assert logits.grad.isfinite().all()


def test_the_margin_costs_and_falls_as_the_angle_falls():
    angles = torch.linspace(0.01, 3.1, 60)
    logits = torch.stack([30 * angles.cos(), torch.zeros_like(angles)], 1)
    target = torch.tensor([[1.0, 0.0]])
    losses = [Loss("aam")(row[None], target, torch.ones(2)).item() for row in logits]
    assert losses == sorted(losses)
    assert losses[30] > F.cross_entropy(logits[30:31], torch.tensor([0])).item() + 1


def test_logit_adjustment_is_that_of_the_paper():
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    expected = F.cross_entropy(LOGITS + 1.5 * prior.log(), LABELS)
    torch.testing.assert_close(Loss(logit_adjustment=1.5)(LOGITS, ONE_HOT, EVEN, prior), expected)
    missing = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
    assert Loss(logit_adjustment=1.0)(LOGITS, ONE_HOT, EVEN, missing).isfinite()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "aam", "label_smoothing": 0.1}, "needs hard labels"),
        ({"margin": 2.0}, "a margin below 1.57"),
        ({"scale": 0.0}, "scale above 0"),
        ({"logit_adjustment": -1.0}, "none below 0"),
    ],
)
def test_wrong_margins_and_adjustments_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        Loss(**wrong)
