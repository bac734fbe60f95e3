"""Whisper's encoder: transformers' states at thirty seconds, the same states in every batch at any length."""

import math
import os
from pathlib import Path

import pytest
import torch
from encoder_factory import (
    WHISPER_STATES,
    WHISPER_WIDTH,
    assert_invariant,
    assert_near,
    assert_nothing_above_is_computed,
    noises,
    padded,
    states_of,
    whisper_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.whisper_encoder import WhisperEncoder

FULL = 480_000  # samples of 30 s
FORMS = ("plain", "packed", "bfloat16")
WEIGHTS = Path(os.environ.get("SER_REAL_DATA", "")).resolve().parent / "weights" / "whisper_tiny_en_encoder"


@pytest.fixture(scope="module")
def peer():
    return whisper_model().encoder


@pytest.fixture(scope="module")
def encoder(peer):
    return WhisperEncoder(peer)


@pytest.fixture(scope="module")
def encoders(encoder):
    packed, half = WhisperEncoder(whisper_model().encoder), WhisperEncoder(whisper_model().encoder).bfloat16()
    packed.pack()
    half.pack()
    return dict(zip(FORMS, (encoder, packed, half), strict=True))


def mel_of(encoder, sound, lengths):
    """Return the mel within 30 s as transformers wants it, [B, bands, 3000]."""
    return encoder.front_end(sound, lengths)[0][:, :3000].transpose(1, 2)


def peer_states(model, mel):
    out = model(mel, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


@torch.no_grad()
def test_thirty_seconds_are_those_of_transformers(encoder, peer):
    from transformers import WhisperFeatureExtractor

    assert (encoder.state_count, encoder.width, len(encoder.blocks)) == (
        WHISPER_STATES,
        WHISPER_WIDTH,
        WHISPER_STATES - 1,
    )
    sound, lengths = padded(noises([FULL]))
    ours = list(encoder.states(sound, lengths))
    extract = WhisperFeatureExtractor()
    theirs = extract(sound[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    for mel, relative in ((mel_of(encoder, sound, lengths), 1e-5), (theirs, 1e-4)):
        wanted = peer_states(peer, mel)
        assert len(ours) == len(wanted) == WHISPER_STATES
        for state, other in zip(ours, wanted, strict=True):
            assert state.shape == (1, 1500, WHISPER_WIDTH)
            assert_near(state, other, relative)


@torch.no_grad()
def test_thirty_seconds_with_128_bands_are_those_of_transformers():
    peer = whisper_model(128).encoder
    encoder = WhisperEncoder(peer)
    sound, lengths = padded(noises([FULL - 1]))
    for state, wanted in zip(
        encoder.states(sound, lengths), peer_states(peer, mel_of(encoder, sound, lengths)), strict=True
    ):
        assert_near(state, wanted, 1e-5)


@pytest.mark.skipif(
    "SER_REAL_DATA" not in os.environ or not WEIGHTS.is_dir(), reason="needs Whisper's weights beside $SER_REAL_DATA"
)
@torch.no_grad()
def test_thirty_seconds_with_the_real_weights_are_those_of_transformers():
    from safetensors.torch import load_file
    from transformers import WhisperConfig
    from transformers.models.whisper import modeling_whisper

    from ser.encoders import Pretrained

    ours = Pretrained(str(WEIGHTS), width=384, states=5).load()
    peer = modeling_whisper.WhisperEncoder(WhisperConfig.from_pretrained(WEIGHTS)).float().eval()
    weights = {
        name.split("encoder.")[-1]: weight.float() for name, weight in load_file(WEIGHTS / "model.safetensors").items()
    }
    peer.load_state_dict(weights)
    time = torch.arange(FULL) / 16_000
    hum = torch.sin(2 * math.pi * 150 * time + 3 * torch.sin(2 * math.pi * 3 * time)) * torch.sin(2 * math.pi * time)
    sound, lengths = padded([0.1 * hum + 0.01 * noises([FULL])[0]])
    wanted = peer_states(peer, mel_of(ours, sound, lengths))
    for state, other in zip(ours.states(sound, lengths), wanted, strict=True):
        assert_near(state, other, 1e-5)
    ours.pack()
    for state, other in zip(ours.states(sound, lengths), wanted, strict=True):
        assert_near(state, other, 2e-4)  # transformers' own float32 is 1e-4 from float64: the last norm magnifies it


@torch.no_grad()
def test_a_short_clip_is_what_the_layers_make_of_its_own_frames(encoder, peer):
    """What goes into the layers is transformers' for the clip within 30 s of silence, less that silence."""
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor()
    for length in (800, 9999, 16_160, 479_361):
        sound, lengths = padded(noises([length]))
        mel = extract(sound[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        x = peer(mel, output_hidden_states=True).hidden_states[0][:, : math.ceil(length / 320)]
        wanted = [x]
        for layer in peer.layers:
            wanted.append(layer(wanted[-1], None))
        wanted[-1] = peer.layer_norm(wanted[-1])
        for state, other in zip(encoder.states(sound, lengths), wanted, strict=True):
            assert_near(state, other, 1e-4)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, database=None, max_examples=12, derandomize=True)
@given(lengths=st.lists(st.integers(800, 24_000), min_size=1, max_size=4))
@torch.no_grad()
def test_a_clip_has_the_same_states_alone_and_in_any_batch(encoders, form, lengths):
    assert_invariant(encoders[form], noises(lengths), 0.03 if form == "bfloat16" else 1e-4)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_batch_may_mix_short_clips_with_those_beyond_thirty_seconds(encoders, form):
    assert_invariant(encoders[form], noises([800, 500_001, 16_003, 479_999]), 0.03 if form == "bfloat16" else 1e-4)


@torch.no_grad()
def test_packing_and_bfloat16_stay_close(encoders):
    plain, packed, half = (states_of(encoders[form], noises([16_000, 8000, 800])) for form in FORMS)
    for wanted, same, close in zip(plain, packed, half, strict=True):
        assert_near(same, wanted, 1e-5)
        assert close.dtype == torch.bfloat16
        assert (close.float() - wanted).square().mean().sqrt() < 0.03 * wanted.square().mean().sqrt()


@pytest.mark.parametrize(
    ("length", "windows"),
    [
        (FULL + 1, [1502, 1499]),  # frames of the mel; equal up to two, not 30 s and a sliver
        (700_123, [2188, 2188]),
        (2 * FULL, [3000, 3000]),
        (2 * FULL + 5, [2002, 2002, 1997]),
    ],
)
@torch.no_grad()
def test_a_clip_beyond_thirty_seconds_is_that_of_its_windows(encoder, length, windows):
    sound, lengths = padded(noises([length]))
    ours = list(encoder.states(sound, lengths, last=1))
    mel, counts = encoder.front_end(sound, lengths)
    assert counts.tolist() == [sum(windows) + 2]
    pieces, start = [], 0
    for size in windows:  # each followed by the first frames of the next
        piece = mel[:, start : start + size + 2]
        pieces.append(list(encoder.run(piece, torch.tensor([size + 2]), last=1)))
        start += size
    frames = math.ceil(length / 320)
    assert encoder.frames(lengths).tolist() == [frames]
    assert len(ours) == 2
    for state, *parts in zip(ours, *pieces, strict=True):
        assert state.shape == (1, frames, WHISPER_WIDTH)
        assert_near(state, torch.cat(parts, 1), 1e-4)


def test_frames_are_counted_without_reading_the_sound(encoder):
    lengths = torch.tensor([1, 319, 320, 321, 800, FULL - 1, FULL, FULL + 1, 1_000_000])
    assert encoder.frames(lengths).tolist() == [1, 1, 1, 2, 3, 1500, 1500, 1501, 3125]


@torch.no_grad()
def test_room_beyond_the_longest_clip_changes_nothing(encoder):
    sound, lengths = padded(noises([5000, 2000]))
    wide = torch.cat([sound, torch.full((2, 777), math.nan)], 1)
    for state, wanted in zip(encoder.states(wide, lengths), encoder.states(sound, lengths), strict=True):
        assert_near(state, wanted, 1e-5)


def test_training_mode_drops_no_layer():
    encoder = WhisperEncoder(whisper_model(encoder_layerdrop=0.5, mask_time_prob=0.5, apply_spec_augment=True).encoder)
    clips = noises([9000, 4000])
    calm = states_of(encoder.eval(), clips)
    encoder.train()
    for _ in range(2):
        for state, wanted in zip(states_of(encoder, clips), calm, strict=True):
            assert torch.equal(state, wanted)


@pytest.mark.parametrize(("name", "first"), [("dropout", 0), ("attention_dropout", 1), ("activation_dropout", 1)])
def test_dropout_works_in_training_mode(name, first):
    """Fine-tuning wants it; from state ``first`` on, two passes differ."""
    none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    encoder = WhisperEncoder(whisper_model(**(none | {name: 0.3})).encoder).train()
    one, other = (states_of(encoder, noises([9000, 4000])) for _ in range(2))
    assert [torch.equal(*pair) for pair in zip(one, other, strict=True)] == [n < first for n in range(WHISPER_STATES)]


@torch.no_grad()
def test_nothing_above_the_last_wanted_state_is_computed(encoder):
    assert_nothing_above_is_computed(encoder)


@pytest.mark.parametrize("lengths", [[4000, 2001], [FULL + 320, 2001]])
@pytest.mark.parametrize("after", [0.0, math.nan])
def test_every_weight_gets_a_gradient_and_padding_gets_none(lengths, after):
    encoder = WhisperEncoder(whisper_model().encoder).train()
    sound, lengths = padded(noises(lengths), after)
    sound.requires_grad_()
    sum(state.square().sum() for state in encoder.states(sound, lengths)).backward()
    assert [n for n, weight in encoder.named_parameters() if weight.grad is None] == ["model.embed_positions.weight"]
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters() if weight.grad is not None)
    assert encoder.model.conv1.weight.grad.any()
    assert all(block.fc1.weight.grad.any() and block.self_attn.q_proj.weight.grad.any() for block in encoder.blocks)
    assert sound.grad.isfinite().all()
    assert sound.grad[1, :2001].any()
    assert not sound.grad[1, 2001:].any()


@torch.no_grad()
def test_silence_gives_finite_states(encoder):
    sound, lengths = padded([*noises([4000]), torch.zeros(3000)])
    assert all(state.isfinite().all() for state in encoder.states(sound, lengths))


@pytest.mark.parametrize("length", [1, 319, 320, 321, 800, 5123, FULL - 1, FULL, FULL + 1, 700_001])
def test_a_frame_is_twenty_milliseconds_begun(encoder, length):
    assert encoder.frames(torch.tensor([length])).tolist() == [math.ceil(length / 320)]
