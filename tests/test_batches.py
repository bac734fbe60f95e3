"""From clips to batches: cropping, padding, which clips go together, and reading ahead."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser import audio, batches
from ser.errors import UserError
from ser.metadata import Clip, Table

LABELS = ("angry", "happy", "sad")
quick = settings(deadline=None, database=None, max_examples=100)


def clip(name, emotion="angry", seconds=1.0):
    return Clip(
        path=f"{name}.wav", speaker="s1", emotion=emotion, intensity="", split="train", corpus="demo", clip=name,
        sex="", age="", race="", ethnicity="", statement="", repetition="",
        seconds=seconds, sample_rate=16_000, channels=1,
    )  # fmt: skip


class Counting:
    """A source of clips whose frames count upwards; each clip's first number and length are told."""

    def __init__(self, size=None, **clips):
        self.size = size
        self.clips = clips
        self.reads = []

    def length(self, clip):
        return self.clips[clip.clip][1]

    def read(self, clip):
        self.reads.append(clip.clip)
        first, length = self.clips[clip.clip]
        value = torch.arange(first, first + length).half()
        return value if self.size is None else value[:, None].expand(-1, self.size)


CLIPS = [clip("a"), clip("b", "sad"), clip("c", "happy")]


def reader(size=None):
    return batches.ClipReader(Counting(size, a=(100, 50), b=(200, 7), c=(300, 20)), LABELS)


# Crops and whole clips


@pytest.mark.parametrize("size", [None, 4], ids=["sound", "features"])
@pytest.mark.parametrize("epoch", range(3))
def test_a_crop_is_a_stretch_of_the_clip_and_a_short_clip_is_repeated(size, epoch):
    batch = reader(size).crops(CLIPS, 20, seed=1, epoch=epoch)
    assert batch.inputs.shape == (3, 20) + (() if size is None else (4,))
    assert batch.inputs.dtype == torch.float32
    assert batch.lengths.tolist() == [20, 20, 20]
    assert batch.lengths.dtype == torch.long
    assert batch.names == ["a", "b", "c"]
    first_feature = batch.inputs if size is None else batch.inputs[..., 0]
    for row, (first, length) in zip(first_feature, [(100, 50), (200, 7), (300, 20)], strict=True):
        place = int(row[0]) - first
        stretch = torch.arange(place, place + 20)
        assert 0 <= place < length
        assert torch.equal(row, first + (stretch if length >= 20 else stretch % length))


def test_a_clip_of_exactly_the_length_is_taken_whole():
    crop = reader().crops([CLIPS[2]], 20, seed=1, epoch=0)
    assert torch.equal(crop.inputs[0], torch.arange(300.0, 320.0))


def test_crops_begin_everywhere_over_the_epochs():
    source = reader()
    starts = {int(source.crops([CLIPS[0]], 45, seed=1, epoch=epoch).inputs[0, 0]) for epoch in range(100)}
    assert starts == set(range(100, 106))


def test_a_crop_depends_on_seed_epoch_and_clip_only():
    whole = reader().crops(CLIPS, 10, seed=1, epoch=3).inputs
    assert torch.equal(reader().crops(CLIPS[::-1], 10, seed=1, epoch=3).inputs, whole.flip(0))
    assert torch.equal(reader().crops(CLIPS[1:2], 10, seed=1, epoch=3).inputs[0], whole[1])
    assert not torch.equal(reader().crops(CLIPS, 10, seed=1, epoch=4).inputs, whole)
    assert not torch.equal(reader().crops(CLIPS, 10, seed=2, epoch=3).inputs, whole)


@pytest.mark.parametrize("size", [None, 4], ids=["sound", "features"])
def test_whole_clips_are_padded_with_zeros_to_the_longest(size):
    batch = reader(size).whole(CLIPS)
    assert batch.lengths.tolist() == [50, 7, 20]
    assert batch.inputs.dtype == torch.float32
    first_feature = batch.inputs if size is None else batch.inputs[..., 0]
    assert first_feature.shape == (3, 50)
    for row, (first, length) in zip(first_feature, [(100, 50), (200, 7), (300, 20)], strict=True):
        assert torch.equal(row[:length], torch.arange(first, first + length).float())
        assert (row[length:] == 0).all()


def test_targets_are_one_hot_and_zero_for_an_unknown_emotion():
    targets = batches.one_hot([*CLIPS, clip("d", "calm")], LABELS)
    assert targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert torch.equal(reader().whole(CLIPS).targets, targets[:3])


def test_check_labels_names_the_clip_and_the_way_to_score_it():
    batches.check_labels(CLIPS, LABELS)
    with pytest.raises(UserError, match=r"clip 'd' is labelled 'calm'.*just cross RUN demo"):
        batches.check_labels([*CLIPS, clip("d", "calm")], LABELS)


def test_a_batch_moves_to_a_device_whole():
    batch = reader().whole(CLIPS)
    moved = batch.to(torch.device("meta"))
    assert {moved.inputs.device.type, moved.lengths.device.type, moved.targets.device.type} == {"meta"}
    assert moved.clips == batch.clips


@pytest.mark.parametrize(("room", "reads"), [(1 << 20, 3), (50 * 2, 5), (0, 6)])
def test_clips_are_kept_in_memory_as_far_as_there_is_room(monkeypatch, room, reads):
    monkeypatch.setattr(batches, "CACHE_BYTES", room)
    source = reader()
    first = source.whole(CLIPS)
    assert torch.equal(source.whole(CLIPS).inputs, first.inputs)
    assert len(source.source.reads) == reads


def test_changing_a_batch_does_not_change_the_kept_clip():
    source = batches.ClipReader(Counting(a=(100, 50)), LABELS)
    source.source.read = lambda clip: torch.ones(50)  # float32 already, so nothing is converted on the way
    source.crops([CLIPS[0]], 50, 1, 0).inputs.zero_()
    source.whole([CLIPS[0]]).inputs.zero_()
    assert (source.whole([CLIPS[0]]).inputs == 1).all()


def test_a_sound_source_reads_files_at_16_khz_and_knows_their_length(tmp_path):
    sound = np.sin(np.arange(8000) / 20).astype(np.float32) / 2
    audio.write(tmp_path / "a.wav", sound)
    audio.write(tmp_path / "b.wav", sound, sample_rate=8000)
    source = batches.SoundSource(Table("demo", Path(tmp_path), (), 0))
    for name, seconds in (("a", 0.5), ("b", 1.0)):
        one = clip(name, seconds=seconds)
        assert source.read(one).shape == (source.length(one),) == (round(seconds * 16_000),)
    np.testing.assert_allclose(source.read(clip("a")).numpy(), sound, atol=1e-4)


# Which clips go together


@quick
@given(count=st.integers(1, 200), batch_size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_shuffled_covers_every_clip_once_in_even_batches(count, batch_size, seed, epoch):
    order = batches.shuffled(count, batch_size, seed, epoch)
    sizes = [len(rows) for rows in order]
    assert sorted(np.concatenate(order).tolist()) == list(range(count))
    assert min(sizes) >= min(batch_size, count)  # no small rest, which batch norm could not take
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == max(1, count // batch_size)
    if count >= 2 and batch_size >= 3:
        assert min(sizes) >= 2  # a single clip has no batch statistics


def test_shuffled_depends_on_seed_and_epoch():
    def flat(seed, epoch):
        return np.concatenate(batches.shuffled(50, 8, seed, epoch)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert len({tuple(flat(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert flat(0, 0) != list(range(50))


@quick
@given(lengths=st.lists(st.integers(1, 60), max_size=60), budget=st.integers(1, 300))
def test_bucketed_partitions_the_clips_within_the_budget(lengths, budget):
    order = batches.bucketed(lengths, budget)
    assert sorted(index for rows in order for index in rows) == list(range(len(lengths)))
    for rows in order:
        assert len(rows) == 1 or max(lengths[index] for index in rows) * len(rows) <= budget
    flat = [lengths[index] for rows in order for index in rows]
    assert flat == sorted(flat, reverse=True)
    for rows in order[:-1]:
        assert max(lengths[index] for index in rows) * (len(rows) + 1) > budget, "the next clip would have fitted"


# Reading ahead


def test_prefetch_yields_everything_in_order():
    assert list(batches.prefetch(range(50))) == list(range(50))
    assert list(batches.prefetch([])) == []


def test_prefetch_makes_the_next_item_while_the_first_is_used():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    ahead = batches.prefetch(items())
    assert next(ahead) == 1
    assert second.wait(10)
    assert list(ahead) == [2]


@pytest.mark.parametrize("error", [UserError("a.wav: damaged"), KeyError("x")])
def test_prefetch_passes_an_error_on_after_the_items_before_it(error):
    def items():
        yield 1
        yield 2
        raise error

    got = []
    with pytest.raises(type(error)) as raised:
        got.extend(item for item in batches.prefetch(items()) if got.append(item))
    assert got == [1, 2]
    assert raised.value is error


def test_prefetch_stops_its_thread_when_abandoned():
    before, made = threading.active_count(), []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    for item in batches.prefetch(endless(), depth=2):
        if item == 3:
            break
    assert threading.active_count() == before
    assert len(made) <= 4 + 2 + 1  # used, ready, and the one in the hand
