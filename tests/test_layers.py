"""Building blocks that respect where each clip ends, against loops over single clips."""

import math

import pytest
import torch
from torch.nn import functional as F

from ser.errors import UserError
from ser.layers import NORMALISATIONS, InputNorm, clip_mask, masked_mean_std, pad_reflect

LENGTHS = torch.tensor([9, 5, 1, 7, 2])


def clips_of(lengths, size, after):
    """Return random clips [T, size] and the batch [B, T, size] with ``after`` behind each clip's end."""
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(int(length), size, generator=generator) * 3 + 1 for length in lengths]
    batch = torch.full((len(clips), int(max(lengths)), size), after)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
    return clips, batch


def test_clip_mask_is_true_inside_each_clip():
    assert clip_mask(torch.tensor([3, 0, 1]), 3).tolist() == [[True] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize("padding", [0, 1, 2, 4])
def test_pad_reflect_is_that_of_each_clip_alone(padding):
    clips, batch = clips_of(LENGTHS, 3, after=math.nan)
    padded = pad_reflect(batch.transpose(1, 2), LENGTHS, padding)
    assert padded.shape == (5, 3, 9 + 2 * padding)
    for clip, row in zip(clips, padded, strict=True):
        end = len(clip) - 1
        places = [min(j, end) for j in range(padding, 0, -1)]
        places += [*range(end + 1), *(max(end - j, 0) for j in range(1, padding + 1))]
        assert torch.equal(row[:, : len(places)], clip[places].T)
        if len(clip) > padding:
            assert torch.equal(row[:, : len(places)], F.pad(clip.T[None], (padding, padding), mode="reflect")[0])


@pytest.mark.parametrize("after", [0.0, 1e6, math.nan])
def test_masked_mean_std_is_that_of_each_clip_alone(after):
    clips, batch = clips_of(LENGTHS, 4, after)
    mean, std = masked_mean_std(batch, LENGTHS)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(mean[row], clip.mean(0))
        torch.testing.assert_close(std[row], clip.std(0, unbiased=False).clamp_min(1e-5))


def test_masked_std_of_a_constant_clip_is_the_smallest():
    std = masked_mean_std(torch.full((1, 6, 2), 7.0), torch.tensor([6]), smallest=0.25)[1]
    assert std.tolist() == [[0.25, 0.25]]


def test_masked_std_has_a_finite_gradient_at_a_constant_clip():
    x = torch.full((1, 6, 2), 7.0, requires_grad=True)
    masked_mean_std(x, torch.tensor([6]))[1].sum().backward()
    assert x.grad.isfinite().all()


def test_input_norm_fits_mean_and_deviation_of_all_frames():
    clips = [clip + 100 for clip in clips_of(LENGTHS, 4, 0.0)[0]]  # an offset that float32 sums would lose digits to
    norm = InputNorm(4)
    norm.fit(iter(clips))
    every = torch.cat(clips).double()
    torch.testing.assert_close(norm.mean, every.mean(0).float())
    torch.testing.assert_close(norm.std, every.std(0, unbiased=False).float())


def test_input_norm_of_a_corpus_gives_zero_mean_and_unit_variance():
    clips, batch = clips_of(LENGTHS, 4, after=math.nan)
    norm = InputNorm(4)
    norm.fit(clips)
    inside = norm(batch, LENGTHS)[clip_mask(LENGTHS, 9)]
    torch.testing.assert_close(inside.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(0, unbiased=False), torch.ones(4))


def test_input_norm_survives_half_precision_and_a_constant_feature():
    norm = InputNorm(2)
    norm.fit([torch.tensor([[1.0, 5.0], [3.0, 5.0]]).half()])
    out = norm(torch.tensor([[[2.0, 5.0]]]), torch.tensor([1]))
    assert out.tolist() == [[[0.0, 0.0]]]


def test_input_norm_of_a_clip_takes_its_own_mean_and_so_its_channel():
    clips, batch = clips_of(LENGTHS, 4, after=math.nan)
    norm = InputNorm(4, "clip")
    out = norm(batch, LENGTHS)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(out[row, : len(clip)], clip - clip.mean(0))
    torch.testing.assert_close(norm(batch + 5, LENGTHS), out)


def test_input_norm_none_changes_nothing_inside():
    clips, batch = clips_of(LENGTHS, 4, after=math.nan)
    out = InputNorm(4, "none")(batch, LENGTHS)
    for row, clip in enumerate(clips):
        assert torch.equal(out[row, : len(clip)], clip)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_input_norm_leaves_zeros_after_each_end(kind):
    clips, batch = clips_of(LENGTHS, 4, after=math.nan)
    norm = InputNorm(4, kind)
    norm.fit(clips)
    assert (norm(batch, LENGTHS)[~clip_mask(LENGTHS, 9)] == 0).all()


def test_input_norm_keeps_its_statistics_in_the_weights():
    norm, copy = InputNorm(4), InputNorm(4)
    norm.fit(clips_of(LENGTHS, 4, 0.0)[0])
    copy.load_state_dict(norm.state_dict())
    assert torch.equal(copy.mean, norm.mean)
    assert torch.equal(copy.std, norm.std)
    assert not list(norm.parameters())


def test_an_unknown_normalisation_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'corpos' is unknown; did you mean 'corpus'"):
        InputNorm(4, "corpos")
