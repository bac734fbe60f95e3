"""Speakers that a model knows: statistics equal to those of all clips at once, kept safely, of one model alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser.enrolment import Enrolment, Speaker
from ser.errors import UserError

ME, OTHER = "a" * 64, "b" * 64


def moments(frames: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return what a clip of frames [T, F] tells, in single precision as a model does."""
    mean = frames.mean(0)
    return float(len(frames)), mean.astype(np.float32), np.square(frames - mean).sum(0).astype(np.float32)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_a_speaker_met_clip_by_clip_ends_with_the_statistics_of_all(lengths, seed):
    random = np.random.default_rng(seed)
    clips = [random.normal(3, 2, (length, 5)) for length in lengths]
    speaker = Speaker()
    for number, clip in enumerate(clips, start=1):
        speaker.add(*moments(clip))
        so_far = np.concatenate(clips[:number])
        assert speaker.clips == number
        np.testing.assert_allclose(speaker.mean, so_far.mean(0), rtol=1e-5)
        np.testing.assert_allclose(speaker.std, so_far.std(0), rtol=1e-4, atol=1e-6)


def test_what_is_kept_is_read_back_and_added_to(tmp_path):
    clips = [moments(np.random.default_rng(seed).normal(size=(9, 4))) for seed in range(3)]
    known = Enrolment(ME, tmp_path)
    assert known.names == []
    assert known.read("anna").clips == 0
    known.add("anna", clips[:1])
    again = Enrolment(ME, tmp_path).add("anna", clips[1:])
    whole = Speaker()
    for clip in clips:
        whole.add(*clip)
    assert again.clips == 3
    assert known.names == ["anna"]
    np.testing.assert_allclose(again.mean, whole.mean)
    np.testing.assert_allclose(again.squares, whole.squares)


def test_two_that_add_at_once_lose_nothing(tmp_path):
    clips = [moments(np.random.default_rng(seed).normal(size=(5, 3))) for seed in range(40)]
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda clip: Enrolment(ME, tmp_path).add("anna", [clip]), clips))
    assert Enrolment(ME, tmp_path).read("anna").clips == 40


def test_speakers_of_another_model_are_not_seen_and_not_believed(tmp_path):
    mine, other = Enrolment(ME, tmp_path), Enrolment(OTHER, tmp_path)
    mine.add("anna", [moments(np.ones((3, 2)))])
    assert other.names == []
    other.folder.mkdir()
    mine.path("anna").rename(other.path("anna"))
    with pytest.raises(UserError, match="belongs to another model"):
        other.read("anna")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x04pickle"])
def test_a_damaged_file_is_named(tmp_path, content):
    known = Enrolment(ME, tmp_path)
    known.folder.mkdir(parents=True)
    known.path("anna").write_bytes(content)
    with pytest.raises(UserError, match=r"anna\.npz: damaged; remove it and enrol 'anna' again"):
        known.read("anna")


@pytest.mark.parametrize("name", ["", "../anna", "a/b", ".hidden", "x" * 65, "anna\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="expected letters"):
        Enrolment(ME, tmp_path).path(name)
