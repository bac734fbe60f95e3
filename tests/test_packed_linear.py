"""Packed linear layers against torch's own, with and without what packs them."""

import copy

import pytest
import torch
from encoder_factory import KINDS, assert_near, noises, padded, wave_model, whisper_model
from torch import nn
from torch.nn import functional as F

from ser import packed_linear
from ser.packed_linear import PackedLinear, can_pack, pack
from ser.wave_encoders import WaveEncoder
from ser.whisper_encoder import WhisperEncoder

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture
def packs(request, monkeypatch):
    """Let this torch pack weights, or be one that cannot."""
    if request.param and not can_pack(torch.zeros(2, 2)):
        pytest.skip("this torch packs no weights")
    if not request.param:
        monkeypatch.setattr(packed_linear, "can_pack", lambda weight: False)
    return request.param


def linear(ins=48, outs=80, bias=True):
    torch.manual_seed(1)
    return nn.Linear(ins, outs, bias=bias).requires_grad_(False)


with_and_without = pytest.mark.parametrize("packs", [True, False], indirect=True)


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_a_packed_layer_is_the_layer(packs, dtype, bias, gelu):
    layer = linear(bias=bias)
    exact = copy.deepcopy(layer)
    layer = layer.to(dtype)
    packed = PackedLinear(layer.weight, layer.bias, gelu)
    for shape in ((1, 48), (7, 48), (600, 48), (2, 5, 48), (2, 3, 5, 48), (48,), (0, 48), (2, 0, 48)):
        x = torch.randn(shape).to(dtype)
        wanted = layer(x)
        wanted = F.gelu(wanted) if gelu else wanted
        ours = packed(x)
        assert ours.dtype == dtype
        assert_near(ours, wanted, DTYPES[dtype])
        wanted = exact(x.float())
        assert_near(ours.float(), F.gelu(wanted) if gelu else wanted, 2 * DTYPES[dtype])


@with_and_without
def test_the_input_may_be_any_view(packs):
    layer = linear()
    packed = PackedLinear(layer.weight, layer.bias)
    for x in (torch.randn(9, 70)[:, :48], torch.randn(48, 9).T, torch.randn(9, 2, 48)[:, 0], torch.randn(18, 48)[::2]):
        assert not x.is_contiguous()
        assert_near(packed(x), layer(x), 1e-5)


@with_and_without
def test_the_weight_may_be_any_view(packs):
    weight, x = torch.randn(80, 3, 16), torch.randn(9, 32)
    for view in (weight[:, :2].flatten(1), weight.transpose(1, 2)[:, :, :2].flatten(1), torch.randn(32, 80).T):
        assert_near(PackedLinear(view)(x), F.linear(x, view), 1e-5)


@with_and_without
def test_a_packed_layer_holds_nothing_that_trains_or_is_saved(packs):
    layer = nn.Linear(48, 80)
    packed = PackedLinear(layer.weight, layer.bias)
    assert not list(packed.parameters())
    assert not packed.state_dict()
    assert not packed(torch.randn(2, 48)).requires_grad


@pytest.mark.parametrize("packs", [True], indirect=True)
def test_a_packed_layer_keeps_no_second_copy_of_its_weight(packs):
    layer = linear()
    packed = PackedLinear(layer.weight, layer.bias)
    assert packed.packed is not None
    assert packed.weight.numel() == 0


def test_half_precision_and_other_devices_are_not_packed():
    assert not can_pack(torch.zeros(2, 2, dtype=torch.float16))
    assert not can_pack(torch.zeros(2, 2, dtype=torch.float64))
    assert not can_pack(torch.zeros(2, 2, device="meta"))


@with_and_without
def test_what_cannot_be_packed_still_computes(packs):
    layer = linear().double()
    x = torch.randn(3, 48).double()
    torch.testing.assert_close(PackedLinear(layer.weight, layer.bias, gelu=True)(x), F.gelu(layer(x)))


@with_and_without
def test_pack_finds_layers_at_every_depth(packs):
    model = nn.Sequential(linear(), nn.ReLU(), nn.ModuleDict({"deep": nn.Sequential(linear(80, 20))}))
    x = torch.randn(5, 48)
    wanted = model[2]["deep"](model[1](model[0](x)))
    pack(model)
    kinds = [type(module) for module in model.modules()]
    assert (nn.Linear not in kinds) == packs
    assert_near(model[2]["deep"](model[1](model[0](x))), wanted, 1e-5)


def encoders():
    for family, norm in KINDS:
        yield f"{family}-{norm}", lambda family=family, norm=norm: WaveEncoder(wave_model(family, norm), True)
    yield "relu", lambda: WaveEncoder(wave_model("hubert", "layer", hidden_act="relu"), True)
    yield "gelu_new", lambda: WaveEncoder(wave_model("wavlm", "group", hidden_act="gelu_new"), True)
    yield "whisper", lambda: WhisperEncoder(whisper_model().encoder)
    yield "whisper-relu", lambda: WhisperEncoder(whisper_model(activation_function="relu").encoder)


@with_and_without
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in encoders()])
@torch.no_grad()
def test_a_packed_encoder_gives_the_same_states(packs, make):
    encoder = make()
    batch = padded(noises([9000, 4321, 800]))
    wanted = list(encoder.states(*batch))
    linears = sum(type(module) is nn.Linear for module in encoder.modules())
    for _ in range(2):  # packing once more changes nothing
        encoder.pack()
        for state, other in zip(encoder.states(*batch), wanted, strict=True):
            assert_near(state, other, 1e-5)
    if packs:
        assert not any(type(module) is nn.Linear for module in encoder.modules())
        assert sum(type(module) is PackedLinear for module in encoder.modules()) == linears
