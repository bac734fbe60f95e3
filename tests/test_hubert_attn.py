"""Bi-LSTM and attentive statistics on stored frames, of one layer or several, and with an encoder inside."""

import pytest
import torch
from encoder_factory import noises, padded
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ser.adapting import Adapted
from ser.errors import UserError
from ser.hubert_attn import HubertAttn, recurrent
from ser.interfaces import Classifier
from ser.layers import SpeakerStatistics
from ser.optim import kept

LABELS = ("angry", "happy", "sad")
SMALL = {"hidden": 8, "attention": 8}
FAMILIES = ("whisper", "hubert", "wavlm", "wav2vec2")
SHORTEST, LONGEST = 4800, 480_000  # samples: 0.3 s and 30 s


def stored(layers: int = 1, **options) -> HubertAttn:
    torch.manual_seed(0)
    model = HubertAttn(LABELS, 6, layers, **SMALL | options)
    model.norm.fit(torch.randn(40, *model.input_shape) * 3 + 1 for _ in range(3))
    if model.sum is not None:
        torch.nn.init.normal_(model.sum.scores)
    return model.eval()


def inside(source, **options) -> HubertAttn:
    torch.manual_seed(0)
    model = HubertAttn(LABELS, source.width, encoder=Adapted(source, **options), **SMALL)
    model.train()
    for seed in range(2):  # the norm of embeddings has seen something
        model(*hear(model, noises([9000, 12_000, 7000, 8000], seed)))
    return model.eval()


def hear(model: Classifier, clips):
    """Return inputs and lengths of clips of sound, as the encoder's front end gives them."""
    return model.encoder.encoder.front_end(*padded(clips))


def frames_of(lengths, layers: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (6,) if layers == 1 else (layers, 6)
    return [torch.randn(length, *shape, generator=generator) * 3 + 1 for length in lengths]


def batch_of(clips, after: float = 0.0):
    """Return frames as a batch [B, T, D] or [B, L, T, D], with ``after`` behind each end, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    x = pad_sequence(clips, batch_first=True, padding_value=after)
    return (x if x.dim() == 3 else x.transpose(1, 2)), lengths


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("normalisation", ["corpus", "clip", "none", "speaker"])
@pytest.mark.parametrize(("lstm_layers", "attention"), [(0, 8), (2, 8), (1, 0)])
def test_stored_frames_of_a_clip_have_the_same_answer_alone_and_in_any_batch(
    layers, normalisation, lstm_layers, attention
):
    model = stored(layers, normalisation=normalisation, lstm_layers=lstm_layers, attention=attention)
    clips = frames_of((50, 3, 1, 49, 20), layers)
    shape = (5, *model.embedding_norm.mean.shape)
    speakers = SpeakerStatistics(torch.ones(5), torch.randn(shape), torch.rand(shape) + 0.5)
    x, lengths = batch_of(clips, after=7.0)
    together = model(x, lengths, speakers)
    for row, clip in enumerate(clips):
        own = SpeakerStatistics(*(value[row : row + 1] for value in (speakers.count, speakers.mean, speakers.std)))
        torch.testing.assert_close(together[row], model(*batch_of([clip]), own)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_sound_of_a_clip_has_the_same_answer_alone_and_in_any_batch(sources, family):
    model = inside(sources[family])
    clips = noises([SHORTEST, 33_333, 16_000])
    together = model(*hear(model, clips))
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row], model(*hear(model, [clip]))[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["whisper", "hubert"])
def test_clips_of_up_to_thirty_seconds_are_answered(sources, family):
    model = inside(sources[family])
    logits = model(*hear(model, noises([LONGEST, SHORTEST])))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_the_lstm_is_that_of_torch_over_packed_clips(layers, training):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(6, 4, layers, batch_first=True, bidirectional=True).train(training)
    x, lengths = torch.randn(5, 30, 6), torch.tensor([12, 1, 28, 28, 3])
    weights = torch.randn(5, 30, 8)

    def packed(x):
        clips = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(lstm(clips)[0], batch_first=True, total_length=30)[0]

    def results(run):
        own = x.clone().requires_grad_()
        out = run(own)
        return out, *torch.autograd.grad((out * weights).sum(), [own, *lstm.parameters()])

    for own, reference in zip(results(lambda x: recurrent(lstm, x, lengths)), results(packed), strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_every_parameter_of_the_stored_form_gets_a_gradient_and_padding_none(layers):
    model = stored(layers).train()
    x, lengths = batch_of(frames_of((20, 12, 5), layers))
    x.requires_grad_()
    model(x, lengths).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    for row, length in enumerate(lengths.tolist()):
        assert not x.grad[row, ..., length:, :].any()


@pytest.mark.parametrize(
    ("options", "inner"),
    [({}, set()), ({"lora": 2}, {".down", ".up"}), ({"tune": 1}, {"layers.2."}), ({"tune": None}, {""})],
    ids=["frozen", "lora", "top", "all"],
)
def test_gradients_reach_what_should_train_and_nothing_else(sources, options, inner):
    model = inside(sources["hubert"], **options).train()
    for parameter in model.parameters():
        parameter.grad = None
    torch.nn.init.normal_(model.head.weight)
    model(*hear(model, noises([9000, 6000]))).square().sum().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    outer = {name for name, _ in model.named_parameters() if not name.startswith("encoder.encoder.")}
    assert outer <= got
    for name in got - outer:
        assert any(part in name for part in inner) or (options == {"tune": 1} and "encoder.layer_norm" in name)
    assert bool(got - outer) == bool(options)
    assert set(kept(model)) == got | {name for name, _ in model.named_buffers() if name in model.state_dict()}


@pytest.mark.parametrize("layers", [1, 3])
def test_overfits_sixteen_clips(layers):
    torch.manual_seed(0)
    model = HubertAttn(LABELS, 6, layers, hidden=16, attention=16)
    x, lengths = batch_of(frames_of([12] * 16, layers))
    classes = torch.arange(16) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(x, lengths), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(x, lengths).argmax(1) == classes).all()


def test_the_same_seed_gives_the_same_model_and_answers(sources):
    one, other = (inside(sources["whisper"], lora=2) for _ in range(2))
    inputs = hear(one, noises([8000, 5000]))
    assert torch.equal(one(*inputs), other(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_close(sources, family):
    model = inside(sources[family])
    inputs = hear(model, noises([16_000, 9000]))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*inputs)
    assert (half.float() - model(*inputs)).abs().max() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("family", ["whisper", "hubert"])
def test_pooled_statistics_are_normalised_by_speaker(sources, family):
    torch.manual_seed(0)
    model = HubertAttn(
        LABELS, sources[family].width, encoder=Adapted(sources[family]), normalisation="speaker", **SMALL
    )
    inputs = hear(model.eval(), noises([8000, 9000]))
    embedding = model.embed(*inputs)
    known = SpeakerStatistics(torch.full((2,), 1e9), embedding, torch.ones_like(embedding))
    torch.testing.assert_close(model(*inputs, known), model.head.bias.expand(2, -1), rtol=1e-4, atol=1e-4)
    assert (model(*inputs) - model.head.bias).abs().max() > 0.01


def test_wrong_sizes_are_refused(sources):
    with pytest.raises(UserError, match="its encoder gives"):
        HubertAttn(LABELS, 7, encoder=Adapted(sources["whisper"]))
    with pytest.raises(UserError, match="too small"):
        HubertAttn(LABELS, 7, hidden=0)
    with pytest.raises(UserError, match="an embedding has no time"):
        HubertAttn(LABELS, sources["whisper"].width, encoder=Adapted(sources["whisper"]), normalisation="clip")


def test_an_exported_lstm_begins_with_what_cudnn_takes(monkeypatch):
    begun, run = [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda x, begin, *rest: begun.extend(begin) or run(x, begin, *rest))
    recurrent(torch.nn.LSTM(3, 4, bidirectional=True, batch_first=True), torch.randn(2, 5, 3), torch.tensor([5, 3]))
    assert len(begun) == 4
    assert all(state.is_contiguous() for state in begun)
