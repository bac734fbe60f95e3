"""An encoder inside a model: exactly what should train trains, and updates of low rank merge."""

import pytest
import torch
from encoder_factory import STATES, WHISPER_STATES, WHISPER_WIDTH, noises, padded

from ser.adapting import Adapted, LoraLinear
from ser.errors import UserError
from ser.optim import kept

TOP = {"whisper": WHISPER_STATES - 1, "hubert": STATES - 1, "wavlm": STATES - 1, "wav2vec2": STATES - 1}


def heard(adapted, clips=(9000, 5000, 16_000)):
    """Return inputs of noise as the encoder's front end gives them."""
    return adapted.encoder.front_end(*padded(noises(list(clips))))


def trained(adapted) -> set[str]:
    """Return the names of the parameters that got a gradient other than zero."""
    x, _ = adapted.train()(*heard(adapted))
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (x * weights).sum().backward()
    return {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def wanted(adapted) -> set[str]:
    return {name for name, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", TOP)
def test_frozen_only_the_weights_of_layers_train(sources, family):
    adapted = Adapted(sources[family])
    assert trained(adapted) == {"sum.scores"} == wanted(adapted)
    assert set(kept(adapted)) == {"sum.scores"}


@pytest.mark.parametrize("family", TOP)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_highest_layers_train_and_no_other(sources, family, layers):
    adapted = Adapted(sources[family], tune=layers)
    got, top = trained(adapted), TOP[family]
    blocks = {name.partition("layers.")[2].partition(".")[0] for name in got if "layers." in name}
    assert blocks == {str(top - 1 - n) for n in range(layers)}
    outside = {name for name in got if "layers." not in name} - {"sum.scores"}
    assert all("layer_norm" in name for name in outside), "and the norm after the last"
    assert bool(outside) == (adapted.encoder.final is not None)
    # A bias of the keys moves all scores of a query alike, which a softmax does not see.
    assert {name for name in wanted(adapted) - got if "k_proj.bias" not in name} == set()


@pytest.mark.parametrize("family", TOP)
def test_all_but_the_convolutions_train_and_these_where_asked(sources, family):
    def untrained(**options):
        adapted = Adapted(sources[family], tune=None, **options)
        got = trained(adapted)
        idle = {name for name in wanted(adapted) - got if "k_proj.bias" not in name}
        assert not idle
        return {name for name, _ in adapted.named_parameters()} - wanted(adapted)

    frozen = untrained()
    assert frozen
    assert all(part in name for name in frozen for part in ["conv" if "conv" in name else "embed"])
    left = untrained(convolutions=True)
    assert all("masked_spec_embed" in name or "embed_positions" in name for name in left)


@pytest.mark.parametrize("family", TOP)
def test_low_rank_updates_begin_at_zero_train_alone_and_merge(sources, family):
    plain, adapted = Adapted(sources[family]), Adapted(sources[family], lora=3)
    inputs = heard(plain)
    torch.testing.assert_close(adapted.eval()(*inputs)[0], plain.eval()(*inputs)[0])
    names = wanted(adapted) - {"sum.scores"}
    assert len(names) == 2 * 2 * TOP[family]
    assert all(name.endswith((".down", ".up")) for name in names)
    for module in adapted.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.up, std=0.1)
    assert trained(adapted) == wanted(adapted)
    changed = adapted.eval()(*inputs)[0]
    assert (changed - plain(*inputs)[0]).abs().max() > 0.01
    for module in list(adapted.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    torch.testing.assert_close(adapted(*inputs)[0], changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "shape"), [(1, 1), (2, 2), (None, WHISPER_STATES - 1)])
def test_prompts_train_alone_and_reach_the_frames(sources, depth, shape):
    adapted = Adapted(sources["whisper"], prompts=5, prompt_depth=depth)
    assert adapted.prompts.values.shape == (shape, 5, WHISPER_WIDTH)
    assert trained(adapted) == {"sum.scores", "prompts.values"} == wanted(adapted)
    assert adapted.prompts.values.grad.flatten(1).abs().sum(1).all(), "those of every layer"
    plain = Adapted(sources["whisper"])
    inputs = heard(plain)
    assert (adapted.eval()(*inputs)[0] - plain.eval()(*inputs)[0]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, None])
def test_prompts_begin_as_what_the_encoder_makes_of_silence(sources, depth):
    adapted = Adapted(sources["whisper"], prompts=4, prompt_depth=depth)
    adapted.init_weights()
    states = adapted.encoder.run(*adapted.encoder.front_end(torch.zeros(1, 480_000), torch.tensor([480_000])))
    for own, state in zip(adapted.prompts.values, states, strict=False):
        torch.testing.assert_close(own, state[0, -4:])
    assert len(adapted.prompts.values) == (1 if depth else WHISPER_STATES - 1)


def test_more_prompts_than_the_encoder_hears_frames_are_refused(sources):
    with pytest.raises(UserError, match="prompt/count is 9999; the encoder hears 1500 frames at most"):
        Adapted(sources["whisper"], prompts=9999).init_weights()


@torch.no_grad()
def test_input_prompts_are_frames_in_front_without_a_position(sources):
    """Against the encoder's layers on the joined sequence, by hand."""
    adapted = Adapted(sources["whisper"], layers=[WHISPER_STATES - 1], prompts=4).eval()
    inputs, lengths = heard(adapted, (8000,))
    model = adapted.encoder.model
    first = next(adapted.encoder.run(inputs, lengths))
    x = torch.cat([adapted.prompts.values[0][None], first], 1)
    for layer in model.layers:
        x = layer(x, None)
    torch.testing.assert_close(adapted(inputs, lengths)[0], model.layer_norm(x[:, 4:]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, None])
def test_with_prompts_a_clip_is_the_same_alone_in_a_batch_and_beyond_thirty_seconds(sources, depth):
    adapted = Adapted(sources["whisper"], prompts=6, prompt_depth=depth).eval()
    clips = noises([4800, 700_000, 40_001])
    inputs, lengths = adapted.encoder.front_end(*padded(clips))
    x, frames = adapted(inputs, lengths)
    for row, clip in enumerate(clips):
        alone, count = adapted(*adapted.encoder.front_end(*padded([clip])))
        assert count.tolist() == [frames[row]]
        torch.testing.assert_close(x[row, : frames[row]], alone[0], rtol=1e-3, atol=1e-3)
        assert not x[row, frames[row] :].any()


@torch.no_grad()
@pytest.mark.parametrize("family", TOP)
def test_no_layer_at_all_leaves_what_goes_into_the_first(sources, family):
    adapted = Adapted(sources[family], layers=[0]).eval()
    inputs = heard(adapted)
    torch.testing.assert_close(adapted(*inputs)[0], next(sources[family].load().run(*inputs)))


@torch.no_grad()
@pytest.mark.parametrize("family", TOP)
def test_a_chosen_layer_is_that_state_and_what_is_above_is_gone(sources, family):
    plain = sources[family].load()
    adapted = Adapted(sources[family], layers=[2]).eval()
    inputs, lengths = heard(adapted)
    states = list(plain.run(inputs, lengths))
    torch.testing.assert_close(adapted(inputs, lengths)[0], states[2])
    assert adapted.sum is None
    assert len(adapted.encoder.blocks) == 2
    some = Adapted(sources[family], layers=[0, 2]).eval()
    torch.testing.assert_close(some(inputs, lengths)[0], (states[0] + states[2]) / 2)


@pytest.mark.parametrize("family", TOP)
def test_checkpointing_changes_no_gradient(sources, family):
    grads = []
    for checkpointing in (False, True):
        adapted = Adapted(sources[family], tune=None, checkpointing=checkpointing).eval()
        x, _ = adapted(*heard(adapted))
        x.square().sum().backward()
        grads.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.parametrize("family", TOP)
def test_the_learning_rate_falls_from_layer_to_layer(sources, family):
    adapted = Adapted(sources[family], tune=None, lr_scale=0.5, decay=0.5)
    scales, top = adapted.lr_scales(), TOP[family]
    assert set(scales) == {name for name in wanted(adapted) if name.startswith("encoder.")}
    for name, scale in scales.items():
        if ".layers." in name:
            assert scale == 0.5 * 0.5 ** (top - 1 - int(name.partition(".layers.")[2].partition(".")[0]))
        elif adapted.encoder.final is None or "layer_norm" not in name or "feature_projection" in name:
            assert scale == 0.5 * 0.5**top
        else:
            assert scale == 0.5
    assert Adapted(sources[family], lora=2).lr_scales() == {}


def test_a_frozen_encoder_has_no_dropout_and_a_tuned_one_has(sources):
    frozen, tuned = (Adapted(sources["hubert"], tune=layers).train() for layers in (0, 1))
    inputs = heard(frozen)
    assert torch.equal(frozen(*inputs)[0], frozen(*inputs)[0])
    assert not torch.equal(tuned(*inputs)[0], tuned(*inputs)[0])


def test_it_names_its_encoder(sources):
    facts = Adapted(sources["whisper"], prompts=2, tune=0).facts
    assert facts == Adapted(sources["whisper"], tune=1, layers=[1]).facts, "whatever is made of it"
    assert facts["source"] == sources["whisper"].source
    assert len(facts["weights_sha256"]) == 64
    assert facts["weights_sha256"] != Adapted(sources["hubert"]).facts["weights_sha256"]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("whisper", {"tune": 1, "lora": 4}, "low-rank updates are for frozen layers"),
        ("whisper", {"tune": None, "prompts": 4}, "prompts are for a frozen encoder"),
        ("whisper", {"tune": 9}, "tune/layers is 9; expected 0 to 3"),
        ("whisper", {"tune": 3, "layers": [0, 2]}, "expected 0 to 2"),
        ("whisper", {"layers": [2, 1]}, "in rising order"),
        ("whisper", {"layers": [9]}, "states from 0 to 3"),
        ("whisper", {"layers": []}, "rising order"),
        ("whisper", {"layers": [0], "lora": 2}, "keeps no layer"),
        ("whisper", {"layers": [0], "tune": None}, "keeps no layer"),
        ("whisper", {"prompts": 2, "prompt_depth": 7}, "prompt/depth is 7"),
        ("whisper", {"prompts": -1}, "none below 0"),
        ("whisper", {"decay": 1.5}, "a decay up to 1"),
        ("whisper", {"convolutions": True}, "tune/layers = None"),
        ("hubert", {"prompts": 2}, "takes no prompts"),
    ],
)
def test_what_has_no_meaning_is_refused(sources, family, options, message):
    with pytest.raises(UserError, match=message):
        Adapted(sources[family], **options)


def test_a_linear_layer_without_bias_merges(sources):
    lora = LoraLinear(torch.nn.Linear(5, 7, bias=False), 2, 4.0)
    torch.nn.init.normal_(lora.up)
    x = torch.randn(3, 5)
    torch.testing.assert_close(lora.merged()(x), lora(x))
    assert lora.merged().bias is None
