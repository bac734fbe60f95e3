"""Building blocks that respect where each clip ends, against loops over single clips."""

import math
import weakref

import pytest
import torch
from torch.nn import functional as F

from ser.errors import UserError
from ser.interfaces import Classifier, normalised_by_speaker
from ser.layers import (
    NORMALISATIONS,
    AttentiveStatistics,
    CosineHead,
    InputNorm,
    LayerSum,
    Prompts,
    RunningNorm,
    SpeakerStatistics,
    attended_mean_std,
    clip_mask,
    masked_mean_std,
    pad_reflect,
)

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
    std = masked_mean_std(torch.full((1, 6, 2), 7.0), torch.tensor([6]), std_floor=0.25)[1]
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


# Normalisation by speaker


def fitted(size: int | tuple[int, ...], prior: float = 1.0) -> InputNorm:
    """Return a normalisation by speaker with random statistics of a corpus."""
    generator = torch.Generator().manual_seed(5)
    norm = InputNorm(size, "speaker", prior)
    norm.fit([torch.randn(*norm.mean.shape, generator=generator) * 2 + 3 for _ in range(50)])
    return norm


def some_speakers(clips: int, *size: int) -> SpeakerStatistics:
    """Return random statistics of the speakers of some clips."""
    generator = torch.Generator().manual_seed(6)
    count = torch.tensor([1.0, 2.0, 7.0, 40.0, 1000.0])[:clips]
    return SpeakerStatistics(
        count, torch.randn(clips, *size, generator=generator), torch.rand(clips, *size, generator=generator)
    )


@pytest.mark.parametrize("prior", [0.5, 1.0, 10.0])
def test_a_speaker_is_drawn_towards_the_corpus_as_by_hand(prior):
    """Clips of the speaker, and as many as the prior says that are spread like the corpus, in one heap."""
    clips, batch = clips_of(LENGTHS, 4, after=math.nan)
    norm, speakers = fitted(4, prior), some_speakers(5, 4)
    out = norm(batch, LENGTHS, speakers)
    for row, clip in enumerate(clips):
        count = float(speakers.count[row])
        for feature in range(4):
            mean, std = float(speakers.mean[row, feature]), float(speakers.std[row, feature])
            corpus_mean, corpus_std = float(norm.mean[feature]), float(norm.std[feature])
            both = (count * mean + prior * corpus_mean) / (count + prior)
            squares = (count * (std**2 + mean**2) + prior * (corpus_std**2 + corpus_mean**2)) / (count + prior)
            expected = (clip[:, feature] - both) / math.sqrt(squares - both**2)
            torch.testing.assert_close(out[row, : len(clip), feature], expected, rtol=1e-4, atol=1e-5)
        assert (out[row, len(clip) :] == 0).all()


def test_statistics_are_normalised_by_speaker_like_frames():
    norm, speakers = fitted((3, 4)), some_speakers(5, 3, 4)
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(7))
    flat = fitted(12)
    flat.mean.copy_(norm.mean.flatten())
    flat.std.copy_(norm.std.flatten())
    as_frames = SpeakerStatistics(speakers.count, speakers.mean.flatten(1), speakers.std.flatten(1))
    expected = flat.standardised(x.flatten(1)[:, None], as_frames)[:, 0]
    torch.testing.assert_close(norm.standardised(x, speakers).flatten(1), expected)


def test_a_speaker_of_many_clips_is_standardised_by_their_own_statistics():
    frames = torch.randn(4000, 4, generator=torch.Generator().manual_seed(8)) * 3 + 7
    speakers = SpeakerStatistics(torch.tensor([1e9]), frames.mean(0)[None], frames.std(0, unbiased=False)[None])
    out = fitted(4)(frames[None], torch.tensor([4000]), speakers)[0]
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)


def test_a_speaker_of_whom_nothing_is_known_is_standardised_like_the_corpus():
    norm, (_, batch) = fitted(4), clips_of(LENGTHS, 4, after=0.0)
    nothing = SpeakerStatistics(torch.zeros(5), torch.full((5, 4), 100.0), torch.full((5, 4), 50.0))
    torch.testing.assert_close(norm.standardised(batch, nothing), norm.standardised(batch))


def test_a_large_prior_is_the_corpus():
    speakers, (_, batch) = some_speakers(5, 4), clips_of(LENGTHS, 4, after=0.0)
    norm = fitted(4, prior=1e9)
    torch.testing.assert_close(norm.standardised(batch, speakers), norm.standardised(batch), rtol=1e-4, atol=1e-4)


def test_without_speakers_the_corpus_normalises():
    norm, corpus = fitted(4), InputNorm(4)
    corpus.load_state_dict(norm.state_dict())
    _, batch = clips_of(LENGTHS, 4, after=math.nan)
    assert torch.equal(norm(batch, LENGTHS), corpus(batch, LENGTHS))


@pytest.mark.parametrize("kind", ["corpus", "clip", "none"])
def test_the_other_normalisations_do_not_look_at_speakers(kind):
    _, batch = clips_of(LENGTHS, 4, after=math.nan)
    norm = InputNorm(4, kind)
    assert torch.equal(norm(batch, LENGTHS, some_speakers(5, 4)), norm(batch, LENGTHS))


def test_a_clip_is_normalised_by_its_speaker_alone_as_in_any_batch():
    norm, speakers, (clips, batch) = fitted(4), some_speakers(5, 4), clips_of(LENGTHS, 4, after=math.nan)
    together = norm(batch, LENGTHS, speakers)
    for row, clip in enumerate(clips):
        own = SpeakerStatistics(speakers.count[row, None], speakers.mean[row, None], speakers.std[row, None])
        torch.testing.assert_close(norm(clip[None], LENGTHS[row, None], own)[0], together[row, : len(clip)])


def test_a_feature_that_never_varies_stays_finite():
    norm = InputNorm(2, "speaker", prior=0.0)
    norm.fit([torch.zeros(3, 2)])
    constant = SpeakerStatistics(torch.tensor([3.0]), torch.full((1, 2), 5.0), torch.zeros(1, 2))
    assert (norm.standardised(torch.full((1, 4, 2), 5.0), constant) == 0).all()


@pytest.mark.parametrize("kind", NORMALISATIONS)
@pytest.mark.parametrize("at", ["inputs", "embedding"])
def test_a_model_tells_what_it_normalises_by_speaker(kind, at):
    model = Classifier()
    model.norm, model.speakers_at = InputNorm(4, kind), at
    assert normalised_by_speaker(model) == (at if kind == "speaker" else "")


def test_what_is_known_of_speakers_moves_to_a_device():
    moved = some_speakers(3, 4).to(torch.device("meta"))
    assert {part.device.type for part in (moved.count, moved.mean, moved.std)} == {"meta"}


# The weighted sum of layers


def layer_sum(layers: int) -> LayerSum:
    """Return one whose weights are not equal."""
    module = LayerSum(layers)
    module.scores.data = torch.linspace(-1, 2, layers)
    return module


def test_the_weights_begin_equal_and_are_a_softmax():
    assert torch.equal(LayerSum(4).weights, torch.full((4,), 0.25))
    module = layer_sum(5)
    scores = module.scores.tolist()
    total = sum(math.exp(score) for score in scores)
    torch.testing.assert_close(module.weights, torch.tensor([math.exp(score) / total for score in scores]))
    torch.testing.assert_close(module.weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("size", [(6,), (9, 6)], ids=["statistics", "frames"])
def test_layers_are_added_by_their_weights_whether_stacked_or_one_by_one(size):
    module = layer_sum(4)
    states = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(9))
    expected = sum(module.weights[layer] * states[:, layer] for layer in range(4))
    torch.testing.assert_close(module(states), expected)
    torch.testing.assert_close(module(states.unbind(1)), expected)
    torch.testing.assert_close(module(state for state in states.unbind(1)), expected)
    torch.testing.assert_close(LayerSum(4)(states), states.mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_keeps_the_precision_of_the_states(dtype):
    states = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(9)).to(dtype)
    module = layer_sum(3)
    stacked, streamed = module(states), module(iter(states.unbind(1)))
    assert stacked.dtype == streamed.dtype == dtype
    torch.testing.assert_close(stacked, streamed)


@pytest.mark.parametrize("streamed", [False, True])
def test_weights_and_states_get_their_gradients(streamed):
    module = layer_sum(3)
    states = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(9), requires_grad=True)
    given = torch.randn(2, 5, generator=torch.Generator().manual_seed(10))
    (module(iter(states.unbind(1)) if streamed else states) * given).sum().backward()
    weights = module.weights.detach()
    torch.testing.assert_close(states.grad, weights[None, :, None] * given[:, None])
    of_weights = (states.detach() * given[:, None]).sum((0, 2))
    torch.testing.assert_close(module.scores.grad, weights * (of_weights - (weights * of_weights).sum()))


@pytest.mark.parametrize("given", [3, 5])
def test_another_number_of_layers_is_refused(given):
    states = torch.zeros(2, given, 6)
    for form in (states, iter(states.unbind(1))):
        with pytest.raises((ValueError, RuntimeError)):
            layer_sum(4)(form)


@torch.no_grad()
def test_states_that_come_one_by_one_need_not_exist_at_once():
    made: list[weakref.ref] = []
    alive: list[int] = []

    def states():
        for _ in range(20):
            state = torch.ones(2, 6)
            made.append(weakref.ref(state))
            alive.append(sum(one() is not None for one in made))
            yield state

    torch.testing.assert_close(LayerSum(20)(states()), torch.ones(2, 6))
    assert len(made) == 20
    assert max(alive) <= 3


# Attentive statistics


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_attended_statistics_are_those_of_a_loop(time, one_for_all):
    clips, batch = clips_of(LENGTHS, 4, 99.0)
    scores = torch.randn(*batch.shape[:2], 1 if one_for_all else 4, generator=torch.Generator().manual_seed(2)) * 3
    turned = (batch, scores) if time == 1 else (batch.transpose(1, 2), scores.transpose(1, 2))
    means, stds = attended_mean_std(*turned, LENGTHS, time)
    for row, clip in enumerate(clips):
        share = scores[row, : len(clip)].double().softmax(0)
        mean = (share * clip.double()).sum(0)
        std = ((share * clip.double().square()).sum(0) - mean.square()).clamp_min(1e-12).sqrt()
        torch.testing.assert_close(means[row].double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stds[row].double(), std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attended_statistics_do_not_cancel_in_half_precision(dtype):
    """A large mean and a small deviation: the difference of squares would be nothing, or negative."""
    x = (100 + 0.5 * torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(1))).to(dtype)
    mean, std = attended_mean_std(x, torch.zeros_like(x), torch.tensor([400, 400]))
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(std, x.float().std(1, unbiased=False), rtol=1e-4, atol=1e-4)


def test_attentive_statistics_are_those_of_speechbrain():
    """Its convolutions of length 1 with our weights; its batch norm, which is fresh, all but the identity."""
    from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling

    torch.manual_seed(1)
    ours, theirs = AttentiveStatistics(6, 5), AttentiveStatisticsPooling(6, attention_channels=5).eval()
    theirs.tdnn.activation, theirs.tdnn.norm = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        joined = torch.cat([ours.frame.weight, ours.clip.weight], 1)
        theirs.tdnn.conv.conv.weight.copy_(joined[..., None])
        theirs.tdnn.conv.conv.bias.copy_(ours.frame.bias)
        theirs.conv.conv.weight.copy_(ours.score.weight[..., None])
        theirs.conv.conv.bias.copy_(ours.score.bias)
    x, lengths = torch.randn(3, 20, 6) * 2 + 1, torch.tensor([20, 10, 5])
    expected = theirs(x.transpose(1, 2), lengths / 20).squeeze(2)
    torch.testing.assert_close(ours(x, lengths), expected, rtol=1e-5, atol=1e-5)


def test_attentive_statistics_of_one_frame_have_a_finite_gradient():
    pool = AttentiveStatistics(3, 4)
    x = torch.randn(2, 5, 3, requires_grad=True)
    pool(x, torch.tensor([1, 5])).sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[0, 1:].any()


# Heads, prompts and norms of embeddings


def test_a_cosine_head_sees_directions_only():
    head = CosineHead(5, 3, scale=20.0)
    x = torch.randn(4, 5)
    expected = 20 * F.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)


def test_a_cosine_head_keeps_its_precision_under_autocast():
    head, x = CosineHead(16, 3, scale=30.0), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), head(x.clone()))
        half = head(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, head(x))


def test_prompts_stand_in_front_are_replaced_and_then_left():
    prompts = Prompts(2, 4, depth=2)
    x = torch.randn(3, 5, 4)
    first = prompts.insert(0, x)
    assert torch.equal(first[:, 2:], x)
    assert torch.equal(first[1, :2], prompts.values[0])
    second = prompts.insert(1, first)
    assert torch.equal(second[:, 2:], x)
    assert torch.equal(second[2, :2], prompts.values[1])
    assert prompts.insert(2, second) is second


def test_a_running_norm_follows_the_embeddings_and_normalises_each_alone():
    norm = RunningNorm(4).train()
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([1.0, 2.0, 0.1, 5.0])
    for _ in range(300):
        norm(torch.randn(16, 4, generator=generator) * spread + 3)
    torch.testing.assert_close(norm.std, spread, rtol=0.2, atol=0.02)
    torch.testing.assert_close(norm.mean, torch.full((4,), 3.0), rtol=0.2, atol=0.2)
    x = torch.randn(3, 4)
    together = norm(x)  # in training too: the batch does not enter its own answer but through what is remembered
    torch.testing.assert_close(together, (x - norm.mean) / norm.std)
    norm.eval()
    before = norm.mean.clone()
    torch.testing.assert_close(norm(x)[1], norm(x[1:2])[0])
    assert torch.equal(norm.mean, before)


def test_a_running_norms_first_batches_count_alike():
    norm, batches = RunningNorm(2).train(), [torch.randn(10, 2) + n for n in range(4)]
    for batch in batches:
        norm(batch)
    every = torch.cat(batches)
    torch.testing.assert_close(norm.mean, every.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.std, every.std(0, unbiased=False), rtol=1e-4, atol=1e-4)


def test_a_running_norm_by_speaker_draws_towards_what_runs_along():
    norm = RunningNorm(3, "speaker", prior=2.0).eval()
    norm.mean.fill_(1.0)
    x = torch.randn(2, 3)
    known = SpeakerStatistics(torch.tensor([0.0, 2.0]), torch.full((2, 3), 5.0), torch.ones(2, 3))
    out = norm(x, known)
    torch.testing.assert_close(out[0], x[0] - 1)
    torch.testing.assert_close(out[1], (x[1] - 3) / (0.5 * (1 + 0.5 * 16) + 0.5) ** 0.5)
    assert torch.equal(RunningNorm(3, "none").train()(x), x)


@pytest.mark.parametrize("kind", ["corpus", "clip", "none", "speaker"])
def test_frames_of_several_layers_are_normalised_like_each_alone(kind):
    norm = InputNorm((3, 4), kind)
    norm.fit([torch.randn(9, 3, 4) * 2 + 1])
    x, lengths = torch.randn(5, 9, 3, 4), LENGTHS
    together = norm(x, lengths)
    for layer in range(3):
        single = InputNorm(4, kind)
        single.mean, single.std = norm.mean[layer], norm.std[layer]
        torch.testing.assert_close(together[:, :, layer], single(x[:, :, layer], lengths))


def test_a_first_batch_of_one_clip_leaves_the_deviation_as_it_is():
    norm = RunningNorm(3).train()
    first = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    norm(first).sum().backward()
    assert norm.std.tolist() == [1.0, 1.0, 1.0]
    assert first.grad.abs().max() <= 1.0
