"""ECAPA-TDNN: SpeechBrain's answer for one clip, the same answer in every batch."""

import pytest
import torch

from ser.ecapa_tdnn import EcapaTdnn

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
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, lengths).float()
    assert (half - model(x, lengths)).abs().max() < 0.1
