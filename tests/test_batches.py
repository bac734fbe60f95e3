"""From clips to batches: reading, cropping, padding, and what is known of the speakers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser import audio, batches
from ser.errors import UserError
from ser.metadata import Clip, Table

LABELS = ("angry", "happy", "sad")


def clip(name, emotion="angry", seconds=1.0):
    return Clip(
        path=f"{name}.wav", speaker="s1", emotion=emotion, intensity="", split="train", corpus="demo", clip=name,
        sex="", age="", race="", ethnicity="", statement="", repetition="",
        seconds=seconds, sample_rate=16_000, channels=1,
    )  # fmt: skip


LAYER = 500  # what a source adds to the numbers of each further layer


class Counting:
    """A source of clips whose frames count upwards; each clip's first number and length are told.

    ``kind`` is sound [N], frames [T, 4], layers [3, T, 4], whose layers lie 500 apart, or statistics [3, 4], all of
    whose numbers are the first.
    """

    def __init__(self, kind="sound", **clips):
        self.kind = kind
        self.time_axis = {"sound": -1, "statistics": None}.get(kind, -2)
        self.clips = clips
        self.reads = []

    def length(self, clip):
        return self.clips[clip.clip][1]

    def read(self, clip):
        self.reads.append(clip.clip)
        first, length = self.clips[clip.clip]
        if self.kind == "statistics":
            return torch.full((3, 4), first).half()
        value = torch.arange(first, first + length).half()
        if self.kind == "sound":
            return value
        value = value[:, None].expand(-1, 4)
        return value if self.kind == "frames" else torch.stack([value + LAYER * layer for layer in range(3)])


CLIPS = [clip("a"), clip("b", "sad"), clip("c", "happy")]
SPANS = [(100, 50), (200, 7), (300, 20)]  # first number and length of each
timed = pytest.mark.parametrize("kind", ["sound", "frames", "layers"])


def reader(kind="sound", **options):
    spans = dict(zip("abc", SPANS, strict=True))
    return batches.ClipReader(Counting(kind, **spans), LABELS, **options)


def numbers(inputs, lengths, kind):
    """Return the counting numbers [B, T] of a batch, seen to be the same in all features and layers."""
    if kind == "sound":
        return inputs
    if kind == "layers":
        inside = (torch.arange(inputs.shape[2]) < lengths[:, None])[:, None, :, None]
        above = LAYER * torch.arange(3)[:, None, None] * inside
        assert torch.equal(inputs, inputs[:, :1] + above)
        inputs = inputs[:, 0]
    assert torch.equal(inputs, inputs[..., :1].expand(-1, -1, 4))
    return inputs[..., 0]


# Crops and whole clips


@timed
@pytest.mark.parametrize("epoch", range(3))
def test_a_crop_is_a_stretch_of_the_clip_and_a_short_clip_is_repeated(kind, epoch):
    batch = reader(kind).crops(CLIPS, 20, seed=1, epoch=epoch)
    assert batch.inputs.shape == {"sound": (3, 20), "frames": (3, 20, 4), "layers": (3, 3, 20, 4)}[kind]
    assert batch.inputs.dtype == torch.float32
    assert batch.lengths.tolist() == [20, 20, 20]
    assert batch.lengths.dtype == torch.long
    assert batch.names == ["a", "b", "c"]
    for row, (first, length) in zip(numbers(batch.inputs, batch.lengths, kind), SPANS, strict=True):
        place = int(row[0]) - first
        stretch = torch.arange(place, place + 20)
        assert 0 <= place < length
        assert torch.equal(row, first + (stretch if length >= 20 else stretch % length))


def test_a_crop_is_the_same_stretch_of_frames_and_of_layers():
    frames, layers = (reader(kind).crops(CLIPS, 12, seed=3, epoch=1).inputs for kind in ("frames", "layers"))
    assert torch.equal(layers[:, 0], frames)


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


@timed
def test_whole_clips_are_padded_with_zeros_to_the_longest(kind):
    batch = reader(kind).whole(CLIPS)
    assert batch.lengths.tolist() == [50, 7, 20]
    assert batch.inputs.shape == {"sound": (3, 50), "frames": (3, 50, 4), "layers": (3, 3, 50, 4)}[kind]
    assert batch.inputs.dtype == torch.float32
    for row, (first, length) in zip(numbers(batch.inputs, batch.lengths, kind), SPANS, strict=True):
        assert torch.equal(row[:length], torch.arange(first, first + length).float())
        assert (row[length:] == 0).all()


def test_statistics_have_no_time_and_stay_whole_in_crops_too():
    source = reader("statistics")
    for batch in (source.whole(CLIPS), source.crops(CLIPS, 20, seed=1, epoch=0)):
        assert torch.equal(batch.inputs, torch.tensor([100.0, 200.0, 300.0])[:, None, None].expand(3, 3, 4))
        assert batch.inputs.dtype == torch.float32
        assert batch.lengths.tolist() == [50, 7, 20]  # the frames that they are of
        assert batch.names == ["a", "b", "c"]


# What is known of the speakers


@pytest.mark.parametrize("kind", ["sound", "frames", "layers", "statistics"])
def test_a_batch_brings_the_statistics_of_its_clips_speakers(kind):
    enrolled = [replace(one, speaker=speaker) for one, speaker in zip(CLIPS, ("s1", "s2", "s1"), strict=True)]
    source = reader(kind, enrolled=enrolled)
    spread = {"sound": (), "frames": (4,), "layers": (3, 4), "statistics": (3, 4)}[kind]
    pair = torch.cat([torch.arange(100.0, 150.0), torch.arange(300.0, 320.0)])
    lone = torch.arange(200.0, 207.0)
    if kind == "statistics":
        pair, lone = torch.tensor([100.0, 300.0]), torch.tensor([200.0])
    rows = torch.stack([pair.mean(), lone.mean(), pair.mean()])
    above = LAYER * torch.arange(3.0)[:, None] if kind == "layers" else torch.zeros(spread)
    for batch in (source.whole(enrolled), source.whole(enrolled[:3])):
        known = batch.speakers
        assert known.count.tolist() == [2, 1, 2]
        torch.testing.assert_close(known.mean, rows.view(3, *[1] * len(spread)) + above.expand(spread))
        deviations = torch.stack([part.std(unbiased=False) for part in (pair, lone, pair)])
        torch.testing.assert_close(known.std, deviations.view(3, *[1] * len(spread)).expand(3, *spread))


def test_the_statistics_of_a_clip_do_not_depend_on_its_batch():
    enrolled = [replace(one, speaker=speaker) for one, speaker in zip(CLIPS, ("s1", "s2", "s1"), strict=True)]
    together = reader("frames", enrolled=enrolled).whole(enrolled).speakers
    for row, one in enumerate(enrolled):
        alone = reader("frames", enrolled=enrolled).whole([one]).speakers
        assert torch.equal(alone.mean[0], together.mean[row])
        assert torch.equal(alone.std[0], together.std[row])


def test_the_limit_of_clips_a_speaker_is_kept():
    assert reader("statistics", enrolled=CLIPS, limit=2).whole(CLIPS).speakers.count.tolist() == [2, 2, 2]
    assert reader("statistics", enrolled=CLIPS).whole(CLIPS).speakers.count.tolist() == [3, 3, 3]


def test_without_enrolled_clips_a_batch_knows_no_speakers():
    assert reader().whole(CLIPS).speakers is None
    assert reader().crops(CLIPS, 20, seed=1, epoch=0).speakers is None


# Targets, devices, memory


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
    assert moved.speakers is None


def test_what_is_known_of_the_speakers_moves_with_a_batch():
    known = reader("frames", enrolled=CLIPS).whole(CLIPS).to(torch.device("meta")).speakers
    assert {known.count.device.type, known.mean.device.type, known.std.device.type} == {"meta"}


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


def test_corpora_whose_features_are_of_different_weights_do_not_join():
    one, other = SimpleNamespace(time_axis=-2, made_with={"weights": 1}), SimpleNamespace(time_axis=-2, made_with={})
    assert batches.Joined({"a": one, "b": one}).made_with == {"weights": 1}
    with pytest.raises(UserError, match="features of a and b: made with different weights"):
        batches.Joined({"a": one, "b": other})


def test_a_sound_source_reads_files_at_16_khz_and_knows_their_length(tmp_path):
    sound = np.sin(np.arange(8000) / 20).astype(np.float32) / 2
    audio.write(tmp_path / "a.wav", sound)
    audio.write(tmp_path / "b.wav", sound, sample_rate=8000)
    source = batches.SoundSource(Table("demo", Path(tmp_path), (), 0))
    assert source.time_axis == -1
    for name, seconds in (("a", 0.5), ("b", 1.0)):
        one = clip(name, seconds=seconds)
        assert source.read(one).shape == (source.length(one),) == (round(seconds * 16_000),)
    np.testing.assert_allclose(source.read(clip("a")).numpy(), sound, atol=1e-4)


class Damaged(Counting):
    """One of its clips cannot be read."""

    def read(self, clip):
        if clip.clip == "b":
            raise UserError("b: damaged")
        return super().read(clip)


def test_a_clip_that_cannot_be_read_is_skipped_also_where_it_tells_of_its_speaker(capsys):
    source = Damaged("frames", **dict(zip("abc", SPANS, strict=True)))
    reader = batches.ClipReader(source, LABELS, enrolled=CLIPS, skip=True)
    batch = reader.whole(reader.readable(CLIPS))
    assert batch.names == ["a", "c"]
    assert batch.speakers.count.tolist() == [2, 2]
    assert capsys.readouterr().err == "skipped: b: damaged\n"
    with pytest.raises(UserError, match="b: damaged"):
        batches.ClipReader(source, LABELS, enrolled=CLIPS).whole(CLIPS[:1])


def test_a_label_that_the_model_does_not_know_is_named():
    with pytest.raises(UserError, match=r"clip 'x' is labelled 'calm', which the model does not know.*just cross RUN"):
        batches.check_labels([*CLIPS, clip("x", "calm")], LABELS)
