"""What is known of a speaker: equal to a slow reference, for every kind of features, and without any label."""

from dataclasses import replace

import pytest
import torch

from ser.metadata import Clip
from ser.speakers import FEW, EmbeddingMemory, SpeakerPool

SPEAKERS = {"anna": 5, "bert": 3, "cleo": 1}  # clips of each
KINDS = {"frames": -2, "layers": -2, "statistics": None, "sound": -1}  # dimension of time


def clip(name: str, speaker: str, emotion: str = "angry") -> Clip:
    return Clip(
        path=f"{name}.wav", speaker=speaker, emotion=emotion, intensity="", split="train", corpus="demo", clip=name,
        sex="", age="", race="", ethnicity="", statement="", repetition="",
        seconds=1.0, sample_rate=16_000, channels=1,
    )  # fmt: skip


CLIPS = [clip(f"{speaker}{number}", speaker) for speaker, count in SPEAKERS.items() for number in range(count)]
STRANGERS = [clip(f"stranger{number}", "") for number in range(3)]


def values(kind: str, clips=(*CLIPS, *STRANGERS)) -> dict[str, torch.Tensor]:
    """Return random features of each clip, in half precision as a store keeps them, of different lengths."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 9, (len(clips),), generator=generator).tolist()
    shapes = {"frames": lambda t: (t, 4), "layers": lambda t: (2, t, 4), "statistics": lambda t: (2, 4)}
    shapes["sound"] = lambda t: (t,)
    made = [torch.randn(shapes[kind](length), generator=generator) for length in lengths]
    return {one.clip: (value * 3 + 1).half() for one, value in zip(clips, made, strict=True)}


def pool(kind: str, clips=(*CLIPS, *STRANGERS), limit: int | None = None) -> SpeakerPool:
    known = values(kind)
    return SpeakerPool(clips, lambda one: known[one.clip], KINDS[kind], limit)


def reference(kind: str, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation over all frames of some clips, or over the clips where there is no time."""
    known = values(kind)
    frames = []
    for name in names:
        value = known[name].double()
        if kind == "statistics":
            frames.append(value)
        else:
            frames += [value.select(KINDS[kind], place) for place in range(value.shape[KINDS[kind]])]
    every = torch.stack(frames)
    return every.mean(0).float(), every.std(0, unbiased=False).float()


def of_speaker(speaker: str) -> list[str]:
    return [one.clip for one in CLIPS if one.speaker == speaker]


@pytest.mark.parametrize("kind", KINDS)
def test_all_clips_of_the_speaker_are_counted(kind):
    known = pool(kind).of(CLIPS)
    assert known.count.tolist() == [SPEAKERS[one.speaker] for one in CLIPS]
    for row, one in enumerate(CLIPS):
        mean, std = reference(kind, of_speaker(one.speaker))
        torch.testing.assert_close(known.mean[row], mean)
        torch.testing.assert_close(known.std[row], std)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_takes_that_many_clips_and_the_clip_itself_among_them(kind, limit):
    known = values(kind)
    read = []

    def reading(one):
        read.append(one.clip)
        return known[one.clip]

    for one in CLIPS:
        read.clear()
        got = SpeakerPool(CLIPS, reading, KINDS[kind], limit).of([one])
        used = set(read)
        assert got.count.tolist() == [min(limit, SPEAKERS[one.speaker])] == [len(used)]
        assert one.clip in used
        assert used <= set(of_speaker(one.speaker))
        mean, std = reference(kind, sorted(used))
        torch.testing.assert_close(got.mean[0], mean)
        torch.testing.assert_close(got.std[0], std)


def test_a_limit_of_one_leaves_the_clip_alone():
    (count,), (mean,), (std,) = (
        getattr(pool("statistics", limit=1).of(CLIPS[:1]), field) for field in ("count", "mean", "std")
    )
    assert count == 1
    assert torch.equal(mean, values("statistics")["anna0"].float())
    assert (std == 0).all()


def test_a_limit_above_what_there_is_takes_all():
    everything, limited = pool("frames").of(CLIPS), pool("frames", limit=5).of(CLIPS)
    assert torch.equal(limited.mean, everything.mean)
    assert torch.equal(limited.count, everything.count)


@pytest.mark.parametrize("limit", [None, 2, 3])
def test_the_choice_depends_on_the_clip_only(limit):
    forwards = pool("frames", limit=limit).of(CLIPS)
    backwards = pool("frames", limit=limit).of(CLIPS[::-1])
    assert torch.equal(backwards.mean.flip(0), forwards.mean)
    assert torch.equal(backwards.std.flip(0), forwards.std)
    one_by_one = [pool("frames", limit=limit).of([one]).mean[0] for one in CLIPS]
    assert torch.equal(torch.stack(one_by_one), forwards.mean)


def test_different_clips_of_a_speaker_choose_different_company():
    means = {tuple(row.tolist()) for row in pool("statistics", limit=3).of(CLIPS[:5]).mean.flatten(1)}
    assert len(means) > 1


@pytest.mark.parametrize("limit", [None, 2])
def test_a_clip_of_an_unknown_speaker_is_alone(limit):
    known = pool("frames", limit=limit).of(STRANGERS)
    assert known.count.tolist() == [1, 1, 1]
    for row, one in enumerate(STRANGERS):
        mean, std = reference("frames", [one.clip])
        torch.testing.assert_close(known.mean[row], mean)
        torch.testing.assert_close(known.std[row], std)


def test_a_clip_that_is_not_among_those_at_hand_joins_its_speaker():
    newcomer, others = CLIPS[0], CLIPS[1:]
    known = pool("frames", others).of([newcomer])
    mean, std = reference("frames", of_speaker("anna"))
    assert known.count.tolist() == [5]
    torch.testing.assert_close(known.mean[0], mean)
    torch.testing.assert_close(known.std[0], std)
    assert pool("frames", others).of(CLIPS[1:2]).count.tolist() == [4], "and leaves it again"


def test_a_speaker_of_whom_nothing_is_at_hand_has_the_clip_alone():
    known = pool("frames", CLIPS[:5]).of([CLIPS[-1]])
    assert known.count.tolist() == [1]
    torch.testing.assert_close(known.mean[0], reference("frames", ["cleo0"])[0])


@pytest.mark.parametrize("limit", [None, 2, 3])
def test_labels_are_never_used(limit):
    """Neither those of the clips at hand, nor those of the clips that are asked for."""
    emotions = ["happy", "sad", "fear"] * 3
    relabelled = [replace(one, emotion=emotion) for one, emotion in zip(CLIPS, emotions, strict=True)]
    expected = pool("frames", CLIPS, limit).of(CLIPS)
    for at_hand, asked in ((relabelled, relabelled), (relabelled, CLIPS), (CLIPS, relabelled)):
        got = pool("frames", at_hand, limit).of(asked)
        assert torch.equal(got.count, expected.count)
        torch.testing.assert_close(got.mean, expected.mean)
        torch.testing.assert_close(got.std, expected.std)


def test_a_speaker_is_read_once_when_all_clips_are_used():
    known, read = values("frames"), []
    at_hand = SpeakerPool(CLIPS, lambda one: read.append(one.clip) or known[one.clip], -2)
    for _ in range(3):
        at_hand.of(CLIPS)
    assert sorted(read) == sorted(one.clip for one in CLIPS)


def test_sums_are_in_double_precision():
    """An offset that single precision would lose the spread in."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(5000, 2, generator=generator) + 3000
    known = SpeakerPool(CLIPS[:1], lambda one: frames, -2).of(CLIPS[:1])
    torch.testing.assert_close(known.std[0], frames.double().std(0, unbiased=False).float(), rtol=1e-4, atol=0)
    assert known.mean.dtype == known.std.dtype == torch.float32


def test_training_pretends_to_have_few_clips_of_a_speaker():
    many = [clip(f"dora{number}", "dora") for number in range(60)]
    known = {one.clip: torch.randn(4) for one in many}
    at_hand = SpeakerPool(many, lambda one: known[one.clip], None)
    counts = [int(count) for epoch in range(20) for count in at_hand.of(many, f"1/{epoch}/").count]
    assert set(counts) == {few or 60 for few in FEW}
    assert all(counts.count(few or 60) > 0.1 * len(counts) for few in FEW)
    again = at_hand.of(many, "1/3/")
    assert torch.equal(again.mean, at_hand.of(many[::-1], "1/3/").mean.flip(0)), "whatever the batch"
    assert not torch.equal(again.mean, at_hand.of(many, "1/4/").mean)
    assert at_hand.of(many).count.tolist() == [60] * 60


def test_a_memory_knows_the_newest_embeddings_of_those_it_has_met():
    memory = EmbeddingMemory(CLIPS)
    pair, other = CLIPS[:2], CLIPS[2]
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for seed in range(30):
        known = memory.of(pair, first, f"{seed}/")
        for row, count in enumerate(known.count.tolist()):
            assert count in (1, 2)
            torch.testing.assert_close(known.mean[row], first.mean(0) if count == 2 else first[row])
    newer = first + 10
    memory.of(pair, newer.requires_grad_(), "")
    assert not memory.values[pair[0].clip].requires_grad
    known = memory.of([other], torch.tensor([[0.0, 0.0]]), "")
    torch.testing.assert_close(known.mean[0], torch.cat([newer, torch.zeros(1, 2)]).mean(0))
    assert known.count.tolist() == [3]
