"""HuBERT, wav2vec 2.0 and WavLM: transformers' states for one clip, the same states in every batch."""

import math

import pytest
import torch
from encoder_factory import (
    KINDS,
    MODELS,
    STATES,
    WIDTH,
    assert_invariant,
    assert_near,
    assert_nothing_above_is_computed,
    noises,
    padded,
    states_of,
    wave_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.errors import UserError
from ser.wave_encoders import WaveEncoder

every_kind = pytest.mark.parametrize(("family", "norm"), KINDS)
SECONDS = st.lists(st.floats(0.05, 1.5), min_size=1, max_size=4)
few = settings(deadline=None, database=None, max_examples=12, derandomize=True)


@pytest.fixture(scope="module")
def encoders():
    """Return every family in both forms, unpacked and packed, without and with normalisation of the sound."""
    found = {}
    for family, norm in KINDS:
        for packed in (False, True):
            found[family, norm, packed] = WaveEncoder(wave_model(family, norm), normalise=norm == "group").eval()
            if packed:
                found[family, norm, packed].pack()
    return found


def peer_states(model, sound, **options):
    """Return what transformers' own way through the same weights gives for clips of equal length."""
    out = model(sound, output_hidden_states=True, **options)
    return [*out.hidden_states[:-1], out.last_hidden_state]


@every_kind
@torch.no_grad()
def test_one_clip_alone_is_that_of_transformers(family, norm):
    model = wave_model(family, norm)
    encoder = WaveEncoder(model, normalise=False)
    assert (encoder.state_count, encoder.width, len(encoder.blocks)) == (STATES, WIDTH, STATES - 1)
    for length in (400, 800, 8000, 24_017):
        clips = noises([length])
        ours, peer = states_of(encoder, clips), peer_states(model, clips[0][None])
        assert len(ours) == len(peer) == STATES
        for state, wanted in zip(ours, peer, strict=True):
            assert_near(state, wanted, 1e-5)


@pytest.mark.parametrize(
    ("family", "norm", "options"),
    [
        ("hubert", "group", {"feat_proj_layer_norm": False}),
        ("hubert", "layer", {"conv_bias": False}),
        ("wav2vec2", "group", {"do_stable_layer_norm": True}),
        ("wav2vec2", "layer", {"do_stable_layer_norm": False}),
        ("wav2vec2", "layer", {"adapter_attn_dim": 8}),
        ("wav2vec2", "layer", {"hidden_act": "relu"}),
        ("hubert", "group", {"num_conv_pos_embeddings": 15}),
        ("wavlm", "layer", {"conv_kernel": [10, 3, 3, 3, 3, 3, 3]}),
        ("wavlm", "group", {"num_buckets": 8, "max_bucket_distance": 20}),
    ],
)
@torch.no_grad()
def test_rarer_forms_are_those_of_transformers_too(family, norm, options):
    model = wave_model(family, norm, **options)
    encoder = WaveEncoder(model, normalise=False)
    clips = noises([8123])
    wanted = peer_states(model, clips[0][None])
    for packed in (False, True):
        for state, peer in zip(states_of(encoder, clips), wanted, strict=True):
            assert_near(state, peer, 1e-5)
        assert_invariant(encoder, noises([8123, 3000, 900]), 1e-4)
        if not packed:
            encoder.pack()


@pytest.mark.parametrize("packed", [False, True])
@every_kind
@few
@given(seconds=SECONDS)
@torch.no_grad()
def test_a_clip_has_the_same_states_alone_and_in_any_batch(encoders, family, norm, packed, seconds):
    assert_invariant(encoders[family, norm, packed], noises([int(s * 16_000) for s in seconds]), 1e-4)


@pytest.mark.parametrize("packed", [False, True])
@every_kind
@torch.no_grad()
def test_bfloat16_stays_close_and_batch_invariant(encoders, family, norm, packed):
    encoder = WaveEncoder(wave_model(family, norm), normalise=norm == "group").bfloat16()
    if packed:
        encoder.pack()
    clips = noises([16_000, 8000, 3000, 800])
    half, full = states_of(encoder, clips), states_of(encoders[family, norm, False], clips)
    for state, wanted in zip(half, full, strict=True):
        assert state.dtype == torch.bfloat16
        assert (state.float() - wanted).square().mean().sqrt() < 0.03 * wanted.square().mean().sqrt()
    assert_invariant(encoder, clips, 0.03)


@every_kind
def test_frames_are_those_of_transformers(encoders, family, norm):
    encoder = encoders[family, norm, False]
    lengths = torch.tensor([400, 401, 719, 720, 799, 800, 16_000, 24_001, 480_000])
    assert torch.equal(encoder.frames(lengths), encoder.model._get_feat_extract_output_lengths(lengths))
    assert encoder.frames(torch.tensor([0, 1, 9, 10, 399, 400])).tolist() == [0, 0, 0, 0, 0, 1]


@every_kind
@torch.no_grad()
def test_a_clip_too_short_for_a_frame_harms_nobody(encoders, family, norm):
    encoder = encoders[family, norm, False]
    for state, alone in zip(
        states_of(encoder, noises([4000, 300, 5])), states_of(encoder, noises([4000])), strict=True
    ):
        assert_near(state[:1], alone, 1e-4)
        assert not state[1:].any()


@every_kind
@torch.no_grad()
def test_room_beyond_the_longest_clip_changes_nothing(encoders, family, norm):
    clips = noises([5000, 2000])
    sound, lengths = padded(clips)
    wide = torch.cat([sound, torch.full((2, 777), math.nan)], 1)
    encoder = encoders[family, norm, False]
    for state, wanted in zip(encoder.states(wide, lengths), encoder.states(sound, lengths), strict=True):
        assert_near(state, wanted, 1e-5)


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_transformers_itself_leaks_padding_through_group_norm(family):
    """The reason for our own group norm; should this fail one day, ours can go."""
    model = wave_model(family, "group")
    encoder = WaveEncoder(model, normalise=False)
    short, long = noises([6000, 16_000])
    sound, lengths = padded([short, long])
    mask = (torch.arange(16_000) < lengths[:, None]).long()
    count = int(encoder.frames(lengths)[0])
    alone = peer_states(model, short[None])[-1][0]
    leaking = peer_states(model, sound, attention_mask=mask)[-1][0, :count]
    assert (leaking - alone).abs().max() > 1e-2 * alone.abs().max()
    assert_near(states_of(encoder, [short, long])[-1][0, :count], alone, 1e-4)


@every_kind
def test_training_mode_masks_and_drops_nothing(family, norm):
    still = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    model = wave_model(
        family, norm, mask_time_prob=0.5, mask_time_length=2, mask_feature_prob=0.5, layerdrop=0.5, **still
    )
    encoder = WaveEncoder(model, normalise=True).eval()
    clips = noises([9000, 4000])
    calm = states_of(encoder, clips)
    encoder.train()
    for _ in range(2):
        for state, wanted in zip(states_of(encoder, clips), calm, strict=True):
            assert torch.equal(state, wanted)


@pytest.mark.parametrize(
    ("name", "first"),
    [("feat_proj_dropout", 0), ("hidden_dropout", 0), ("attention_dropout", 1), ("activation_dropout", 1)],
)
@every_kind
def test_dropout_works_in_training_mode(family, norm, name, first):
    """Fine-tuning wants it; from state ``first`` on, two passes differ."""
    none = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    encoder = WaveEncoder(wave_model(family, norm, **(none | {name: 0.3})), normalise=True).train()
    one, other = (states_of(encoder, noises([9000, 4000])) for _ in range(2))
    assert [torch.equal(*pair) for pair in zip(one, other, strict=True)] == [n < first for n in range(STATES)]


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ("wav2vec2", {"add_adapter": True}, "add_adapter"),
        ("wavlm", {"add_adapter": True}, "add_adapter"),
        ("hubert", {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "160 samples; choose one with 320"),
        ("wav2vec2", {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, "640 samples; choose one with 320"),
    ],
)
def test_a_variant_that_cannot_be_run_is_refused_in_one_line(family, options, says):
    with pytest.raises(UserError, match=says) as caught:
        WaveEncoder(wave_model(family, "group", **options), normalise=True)
    assert "\n" not in str(caught.value)


@every_kind
@torch.no_grad()
def test_nothing_above_the_last_wanted_state_is_computed(encoders, family, norm):
    assert_nothing_above_is_computed(encoders[family, norm, False])


@every_kind
def test_every_weight_gets_the_gradient_that_transformers_gives_it(family, norm):
    model = wave_model(family, norm)
    clips = noises([4000])
    grads = []
    for states in (states_of(WaveEncoder(model, normalise=False), clips), peer_states(model, clips[0][None])):
        model.zero_grad(set_to_none=True)
        sum((k + 1) * state.square().mean() for k, state in enumerate(states)).backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
    ours, peer = grads
    assert [name for name, grad in ours.items() if grad is None] == ["masked_spec_embed"]
    for name, grad in ours.items():
        if grad is not None:
            assert grad.any(), name
            # The bias of the keys shifts all scores alike: its true gradient is zero, what there is is rounding.
            slack = 1e-5 if name.endswith("k_proj.bias") else 1e-4 * peer[name].abs().max().item()
            torch.testing.assert_close(grad, peer[name], rtol=0, atol=slack, msg=name)


@every_kind
def test_padding_gets_no_gradient(family, norm):
    encoder = WaveEncoder(wave_model(family, norm), normalise=True).train()
    sound, lengths = padded(noises([4000, 2000]))
    sound.requires_grad_()
    sum(state.square().sum() for state in encoder.states(sound, lengths)).backward()
    assert sound.grad.isfinite().all()
    assert sound.grad[1, :2000].any()
    assert not sound.grad[1, 2000:].any()


@every_kind
def test_what_lies_after_a_clip_gives_no_gradient(family, norm):
    grads = []
    for after in (0.0, math.nan):
        encoder = WaveEncoder(wave_model(family, norm), normalise=True)
        sum(state.square().sum() for state in states_of(encoder, noises([4000, 2000]), after)).backward()
        grads.append({name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None})
    assert all(torch.equal(grads[0][name], grad) for name, grad in grads[1].items())


@every_kind
def test_gradients_of_a_silent_clip_are_finite(family, norm):
    encoder = WaveEncoder(wave_model(family, norm), normalise=True)
    sound, lengths = padded([*noises([4000]), torch.zeros(3000)])
    states = list(encoder.states(sound, lengths))
    assert all(state.isfinite().all() for state in states)
    sum(state.square().sum() for state in states).backward()
    bad = [
        n for n, weight in encoder.named_parameters() if weight.grad is not None and not weight.grad.isfinite().all()
    ]
    assert not bad


@every_kind
@torch.no_grad()
def test_normalised_sound_is_that_of_transformers(family, norm):
    from transformers import Wav2Vec2FeatureExtractor

    model = wave_model(family, norm)
    encoder = WaveEncoder(model, normalise=True)
    clips = noises([8000, 3000, 801])
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for row, clip in enumerate(clips):
        wanted = peer_states(model, extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_values)
        for state, peer in zip(states_of(encoder, clips), wanted, strict=True):
            assert_near(state[row, : peer.shape[1]], peer[0], 1e-4)


@torch.no_grad()
def test_normalised_sound_knows_neither_gain_nor_offset():
    plain, normal = (WaveEncoder(wave_model("hubert", "layer"), normalise=on) for on in (False, True))
    clips = noises([8000, 3000])
    changed = [4 * clip + 0.1 for clip in clips]
    assert_near(states_of(normal, changed)[-1], states_of(normal, clips)[-1], 1e-3)
    off = (states_of(plain, changed)[-1] - states_of(plain, clips)[-1]).abs().max()
    assert off > 0.01 * states_of(plain, clips)[-1].abs().max()
