"""Prompts, weights of layers and an MLP on a frozen Whisper encoder."""

import io

import pytest
import torch
from encoder_factory import WHISPER_STATES, noises, padded

from ser.adapting import Adapted
from ser.encoders import EncoderFeatures, Pretrained
from ser.errors import UserError
from ser.layers import SpeakerStatistics
from ser.optim import kept
from ser.whisper_prompt import WhisperPrompt

LABELS = ("angry", "happy", "sad")


def make(sources, normalisation: str = "corpus", combine: str = "sum", **options) -> WhisperPrompt:
    torch.manual_seed(0)
    encoder = Adapted(sources["whisper"], **{"prompts": 4, "prompt_depth": None} | options)
    model = WhisperPrompt(LABELS, encoder, combine, hidden=16, normalisation=normalisation)
    for seed in range(2):
        model.train()(*hear(model, noises([9000, 12_000, 7000, 8000], seed)))
    return model.eval()


def hear(model, clips):
    return model.encoder.encoder.front_end(*padded(clips))


@torch.no_grad()
@pytest.mark.parametrize(("depth", "combine"), [(1, "sum"), (None, "sum"), (None, "join")])
def test_a_clip_has_the_same_answer_alone_and_in_any_batch(sources, depth, combine):
    model = make(sources, prompt_depth=depth, combine=combine)
    clips = noises([4800, 33_333, 16_000, 530_000])
    together = model(*hear(model, clips))
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row], model(*hear(model, [clip]))[0], rtol=1e-3, atol=1e-3)


def test_gradients_reach_prompts_layer_weights_and_head_alone(sources):
    model = make(sources).train()
    for parameter in model.parameters():
        parameter.grad = None
    model(*hear(model, noises([9000, 6000]))).square().sum().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert {name for name in got if not name.startswith("head.")} == {"encoder.prompts.values", "encoder.sum.scores"}
    assert got == {name for name, p in model.named_parameters() if p.requires_grad}


def test_joined_layers_are_pooled_as_the_statistics_probe_stores_them(sources):
    model = make(sources, combine="join", prompts=0, prompt_depth=1)
    clips = noises([9000, 6000])
    front_end = EncoderFeatures(sources["whisper"])
    front_end.packs = False
    stored, _ = front_end(*padded(clips))
    torch.testing.assert_close(model.embed(*hear(model, clips)), stored.flatten(1), rtol=1e-4, atol=1e-4)
    assert "encoder.sum.scores" not in dict(model.named_parameters())


def test_joined_layers_teach_the_prompts_too(sources):
    model = make(sources, combine="join").train()
    model(*hear(model, noises([9000, 6000]))).square().sum().backward()
    assert model.encoder.prompts.values.grad.abs().sum() > 0


def test_another_way_to_combine_is_refused(sources):
    with pytest.raises(UserError, match="prompted/combine is 'joined'; did you mean 'join'"):
        make(sources, combine="joined")


def test_what_is_kept_of_a_large_encoder_is_small():
    """Of Whisper-medium's width: prompts at every layer, weights of 25 layers and the head."""
    from transformers import WhisperConfig
    from transformers.models.whisper import modeling_whisper

    from ser.whisper_encoder import WhisperEncoder

    shape = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 64}
    with torch.device("meta"):
        network = modeling_whisper.WhisperEncoder(WhisperConfig(**shape))
    big = WhisperEncoder(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrained, "load", lambda self: big)
        patch.setattr("ser.adapting.fingerprint", lambda encoder: "0" * 64)
        model = WhisperPrompt(LABELS, Adapted(Pretrained("big", 1024, 25), prompts=16, prompt_depth=None))
    buffer = io.BytesIO()
    torch.save(kept(model), buffer)
    assert buffer.getbuffer().nbytes < 5e6
    assert sum(p.numel() for p in model.parameters()) > 1e8


def test_overfits_sixteen_clips(sources):
    torch.manual_seed(0)
    model = make(sources)
    clips = noises([6400] * 16)
    inputs, lengths = hear(model, clips)
    classes = torch.arange(16) % 3
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    model.train()
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(inputs, lengths), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(inputs, lengths).argmax(1) == classes).float().mean() > 0.9


def test_the_same_seed_gives_the_same_model_and_answers(sources):
    one, other = (make(sources) for _ in range(2))
    inputs = hear(one, noises([8000, 5000]))
    assert torch.equal(one(*inputs), other(*inputs))


@torch.no_grad()
def test_bfloat16_stays_close(sources):
    model = make(sources)
    inputs = hear(model, noises([16_000, 9000]))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*inputs)
    assert (half.float() - model(*inputs)).abs().max() < 0.05


@torch.no_grad()
def test_by_speaker_a_shift_that_all_their_clips_share_is_gone(sources):
    model = make(sources, "speaker")
    embedding = model.embed(*hear(model, noises([8000, 9000, 7000])))
    shift = torch.randn(embedding.shape[1])

    def answer(x):
        return model.classify(
            x, SpeakerStatistics(torch.full((3,), 1e9), x.mean(0).expand_as(x), x.std(0).expand_as(x))
        )

    torch.testing.assert_close(answer(embedding), answer(embedding + shift), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model.classify(embedding), model.classify(embedding + shift), atol=1e-2)


def test_a_linear_head_and_a_single_layer_are_possible(sources):
    model = WhisperPrompt(LABELS, Adapted(sources["whisper"], layers=[WHISPER_STATES - 1]), hidden=0)
    assert model(*hear(model, noises([8000]))).shape == (1, 3)
    assert [type(module).__name__ for module in model.head] == ["Dropout", "Linear"]
