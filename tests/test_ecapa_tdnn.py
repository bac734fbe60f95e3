"""ECAPA-TDNN: SpeechBrain's answer for one clip, the same answer in every batch."""

import pytest
import torch

from ser.ecapa_tdnn import EcapaTdnn, attentive_statistics
from ser.errors import UserError
from ser.layers import CosineHead

LABELS = ("angry", "happy", "sad")


@pytest.fixture(scope="module")
def model() -> EcapaTdnn:
    """Return a small model whose batch norms have seen something, so that they are not the identity."""
    torch.manual_seed(0)
    model = EcapaTdnn(LABELS, bands=20, channels=32, embedding=16, attention_channels=8, normalisation="none")
    for _ in range(3):
        model(torch.randn(8, 60, 20) + 0.3, torch.full((8,), 60))
    return model.eval()


@torch.no_grad()
def test_an_unpadded_clip_comes_out_as_speechbrain_gives_it(model):
    x = torch.randn(2, 77, 20)
    ours = model.embed(x, torch.tensor([77, 77]))
    torch.testing.assert_close(ours, model.ecapa(x).squeeze(1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_speechbrain_itself_is_not_batch_invariant(model):
    """The reason for our own way through the layers; should this fail one day, ours can go."""
    x = torch.randn(1, 51, 20)
    short = x[:, :25]
    padded = torch.cat([short, torch.zeros(1, 26, 20)], dim=1)
    alone, batch = model.ecapa(short), model.ecapa(torch.cat([padded, x]), lengths=torch.tensor([25 / 51, 1.0]))
    assert (batch[0] - alone[0]).abs().max() > 1e-2 * alone.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(251, 501, 100), (30, 31, 32), (6, 500, 9), (40, 40, 40)])
def test_a_clip_has_the_same_logits_alone_and_in_any_batch(model, lengths):
    frames = max(lengths) + 3
    x = torch.randn(len(lengths), frames, 20) * 10  # what lies after a clip's end is garbage
    together = model(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_padding_gets_none(model):
    model.train()
    x = torch.randn(4, 50, 20, requires_grad=True)
    model(x, torch.tensor([50, 40, 30, 20])).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    for row, length in enumerate((50, 40, 30, 20)):
        assert not x.grad[row, length:].any()
        assert x.grad[row, :length].abs().sum(1).all()
    model.eval()


def test_overfits_sixteen_clips():
    torch.manual_seed(0)
    model = EcapaTdnn(LABELS, bands=20, channels=32, embedding=32, normalisation="none")
    x, lengths, classes = torch.randn(16, 40, 20), torch.full((16,), 40), torch.arange(16) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x, lengths), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (model.eval()(x, lengths).argmax(1) == classes).float().mean() > 0.9


@torch.no_grad()
def test_bfloat16_stays_close(model):
    x, lengths = torch.randn(3, 80, 20), torch.tensor([80, 60, 33])
    whole = model(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, lengths).float()
    assert (half - whole).abs().max() < 0.5 * (whole - whole.roll(1, 0)).abs().amax(1).min(), "clips stay apart"


@pytest.mark.parametrize("context", [True, False])
def test_attentive_statistics_are_those_of_speechbrain_where_its_lengths_are_exact(context):
    from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling

    torch.manual_seed(1)
    pool = AttentiveStatisticsPooling(12, attention_channels=7, global_context=context)
    pool(torch.randn(8, 12, 30) + 1)  # its batch norm has seen something
    x = torch.randn(3, 12, 40) * 2 + 1
    with torch.no_grad():
        expected = pool.eval()(x, torch.tensor([1.0, 0.5, 0.125]))
        ours = attentive_statistics(pool, x, torch.tensor([40, 20, 5]))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def small(**options) -> EcapaTdnn:
    torch.manual_seed(0)
    return EcapaTdnn(LABELS, bands=20, channels=32, embedding=16, attention_channels=8, **options)


@torch.no_grad()
@pytest.mark.parametrize("normalisation", ["corpus", "clip", "speaker"])
def test_with_a_cosine_head_a_clip_has_the_same_logits_in_any_batch(normalisation):
    model = small(normalisation=normalisation, head="cosine", scale=15.0).eval()
    assert isinstance(model.head[-1], CosineHead)
    assert model.cosine_scale == 15.0
    lengths = torch.tensor([60, 31, 90])
    x = torch.randn(3, 90, 20)
    together = model(x, lengths)
    assert together.abs().max() <= 15.0
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[row], model(x[row : row + 1, :length], lengths[row : row + 1])[0])


def test_an_unknown_head_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        small(head="cosin")


@pytest.mark.parametrize("where", ["file", "folder", "name"])
def test_it_begins_with_a_speaker_model(home, where):
    donor = small()
    folder = home / "data/encoders/someone/speakers"
    folder.mkdir(parents=True)
    path = folder / "embedding_model.ckpt"
    torch.save(donor.ecapa.state_dict(), path)
    torch.manual_seed(7)
    start = {"file": str(path), "folder": str(folder), "name": "someone/speakers"}[where]
    model = EcapaTdnn(LABELS, bands=20, channels=32, embedding=16, attention_channels=8, start=start)
    assert not torch.equal(model.ecapa.state_dict()["fc.conv.weight"], donor.ecapa.state_dict()["fc.conv.weight"])
    model.init_weights()  # only a fresh run looks for it
    for name, value in donor.ecapa.state_dict().items():
        assert torch.equal(model.ecapa.state_dict()[name], value)


def test_a_speaker_model_of_other_sizes_damaged_or_absent_is_one_line(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = home / "embedding_model.ckpt"
    torch.save(EcapaTdnn(LABELS, bands=20, channels=64, embedding=16).ecapa.state_dict(), path)
    messages = {"not the weights of such a network": str(path), "neither at hand nor": "no/such"}
    for says, start in messages.items():
        with pytest.raises(UserError, match=says) as caught:
            small(start=start).init_weights()
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not the weights of such a network"):
        small(start=str(path)).init_weights()
