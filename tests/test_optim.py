"""Which parameters decay, and the learning rate at known points."""

import math

import pytest
import torch
from torch import nn

from ser.errors import UserError
from ser.optim import EMA, AdamW, WarmupCosine, kept


def model():
    """A model with a matrix, a convolution, biases, normalisation scales and a frozen layer."""
    torch.manual_seed(1)
    layers = nn.ModuleDict(
        {"linear": nn.Linear(3, 4), "conv": nn.Conv1d(2, 3, 3), "norm": nn.BatchNorm1d(4), "frozen": nn.Linear(2, 2)}
    )
    layers["frozen"].requires_grad_(False)
    return layers


def test_only_weight_matrices_decay():
    """With zero gradients a step of AdamW is the decay alone."""
    layers = model()
    before = {name: parameter.clone() for name, parameter in layers.named_parameters()}
    optimiser = AdamW(lr=0.1, weight_decay=0.5).build(layers)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    shrunk = {"linear.weight", "conv.weight"}
    for name, parameter in layers.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in shrunk else 1.0
        torch.testing.assert_close(parameter, before[name] * factor, msg=name)


def test_a_gain_with_further_dimensions_of_one_does_not_decay():
    """HuBERT's position convolution has a gain [1, 1, K] of its weight norm."""
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
    gain = layer.parametrizations.weight.original0
    assert gain.shape == (1, 1, 3)
    (free,) = [g for g in AdamW(weight_decay=0.5).build(layer).param_groups if g["weight_decay"] == 0]
    assert any(parameter is gain for parameter in free["params"])


def test_every_trained_parameter_is_in_the_optimiser_once_and_no_frozen_one():
    layers = model()
    held = [id(p) for group in AdamW().build(layers).param_groups for p in group["params"]]
    trained = [id(p) for p in layers.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trained)


def test_the_settings_reach_the_optimiser():
    optimiser = AdamW(lr=0.02, beta1=0.8, beta2=0.95).build(model())
    assert {group["lr"] for group in optimiser.param_groups} == {0.02}
    assert {group["betas"] for group in optimiser.param_groups} == {(0.8, 0.95)}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.05),  # the first step of twenty already learns
        (9, 0.5),
        (19, 1.0),  # the peak
        (20, 1.0),
        (65, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),  # a quarter down the cosine
        (110, 0.55),  # half-way between peak and end
        (200, 0.1),
        (300, 0.1),  # past the end it stays
    ],
)
def test_warm_up_and_cosine_at_known_points(step, factor):
    assert WarmupCosine(warmup=0.1, final=0.1).factor(step, 200) == pytest.approx(factor)


def test_the_rate_rises_and_then_falls():
    factors = [WarmupCosine(warmup=0.25, final=0.0).factor(step, 40) for step in range(41)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == 1
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_without_warm_up_the_first_step_is_the_peak():
    assert WarmupCosine(warmup=0.0).factor(0, 100) == 1


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_a_run_of_a_few_steps_learns_in_each(steps, warmup):
    factors = [WarmupCosine(warmup).factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
def test_a_warm_up_that_is_no_share_of_the_steps_is_refused(warmup):
    with pytest.raises(UserError, match=r"WarmupCosine\.warmup is .*expected a share"):
        WarmupCosine(warmup=warmup)


def test_parameters_with_a_scale_learn_that_much_slower():
    layers = model()
    optimiser = AdamW(lr=0.1, weight_decay=0.0).build(layers, {"linear.weight": 0.5, "linear.bias": 0.1})
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    named = dict(layers.named_parameters())
    assert rates[id(named["linear.weight"])] == 0.05
    assert rates[id(named["linear.bias"])] == pytest.approx(0.01)
    assert rates[id(named["conv.weight"])] == 0.1
    assert all(group["lr"] == pytest.approx(0.1 * group["scale"]) for group in optimiser.param_groups)


def test_what_is_kept_of_a_model_is_what_it_learns():
    names = set(kept(model()))
    assert not any(name.startswith("frozen") for name in names)
    assert {"linear.weight", "norm.running_mean", "norm.num_batches_tracked"} <= names


def test_the_average_follows_as_by_hand_and_answers_only_inside():
    layers = model()
    average, expected = EMA(layers, 0.9), layers["linear"].weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            layers["linear"].weight.add_(1.0)
            layers["norm"].running_mean.add_(2.0)
            layers["norm"].num_batches_tracked.add_(1)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layers["linear"].weight.detach()
    torch.testing.assert_close(average.values["linear.weight"], expected)
    assert int(average.values["norm.num_batches_tracked"]) == 30
    now = {name: value.clone() for name, value in layers.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(layers["linear"].weight, expected)
        assert layers["norm"].running_mean[0] < now["norm.running_mean"][0]
    assert all(torch.equal(now[name], value) for name, value in layers.state_dict().items())


def test_the_model_comes_back_when_answering_fails():
    layers = model()
    average, now = EMA(layers, 0.5), layers["linear"].weight.detach().clone()
    average.values["linear.weight"] += 1
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert torch.equal(layers["linear"].weight, now)


def test_an_average_goes_on_where_it_was():
    one, other = (EMA(model(), 0.9) for _ in range(2))
    for _ in range(3):
        one.values["linear.weight"].add_(1)
        one.update()
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert other.steps == 3
    assert all(torch.equal(other.values[name], value) for name, value in one.values.items())
