"""A delivered model answers as the run does, alone, in batches and in windows, and refuses what it cannot."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import PROJECT
from scipy.signal import resample_poly

import ser
from ser import audio, exporting, inference, runs
from ser.errors import UserError
from ser.export_index import INDEX
from ser.files import sha256_of
from ser.inference import Item, Prediction
from ser.loading import load
from ser.metadata import read_table
from ser.predictions import read_predictions


@pytest.fixture
def model(delivered, monkeypatch, tmp_path):
    """Return the delivered model; its speakers are kept with the test."""
    monkeypatch.setenv("SER_HOME", str(delivered))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return load(delivered / "outputs/small/export")


@pytest.fixture
def export(delivered, tmp_path):
    """Return a copy of the export that a test may spoil."""
    shutil.copytree(delivered / "outputs/small/export", tmp_path / "export")
    return tmp_path / "export"


@pytest.fixture
def clips(delivered, monkeypatch) -> list:
    """Return sound files of the built-in corpus, of several speakers and lengths."""
    monkeypatch.setenv("SER_HOME", str(delivered))
    table = read_table("demo")
    return [table.sound_path(clip) for clip in table.clips[:40]]


def probabilities(prediction: Prediction) -> np.ndarray:
    return np.array(list(prediction.probabilities.values()))


def test_a_file_and_its_samples_get_the_answer_of_the_run(model, clips):
    pipeline = exporting.pipeline_of(runs.load_trained("small"))
    sound = audio.read(clips[0])
    with torch.no_grad():
        wanted = pipeline(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))[0].numpy()
    for given in (clips[0], str(clips[0]), sound, torch.from_numpy(sound), np.stack([sound, sound], 1)):
        answer = model.predict(given)
        np.testing.assert_allclose(probabilities(answer), wanted, atol=1e-5)
        assert answer.label == model.labels[wanted.argmax()]
        assert (answer.start, answer.end) == (0.0, round(len(sound) / 16_000, 3))
    assert ser.load is load


def test_another_rate_is_resampled(model, clips):
    narrow = resample_poly(audio.read(clips[0]), 1, 2)  # nothing at the edge of the band, where filters differ
    sound, faster = (resample_poly(narrow, times, 1) for times in (2, 4))
    answer = model.predict(faster, sample_rate=32_000)
    assert answer.end == pytest.approx(len(sound) / 16_000, abs=0.001)
    wanted = probabilities(model.predict(sound))
    np.testing.assert_allclose(probabilities(answer), wanted, atol=0.02)
    slower = probabilities(model.predict(faster))
    assert np.abs(slower - wanted).max() > 2 * np.abs(probabilities(answer) - wanted).max(), "as if nothing were done"


def test_many_files_are_answered_in_their_order_as_alone(model, clips):
    answers = list(model.predict_files([Item(path, path.name) for path in clips]))
    assert [answer.source for answer in answers] == [path.name for path in clips]
    for path, answer in zip(clips, answers, strict=True):
        np.testing.assert_allclose(probabilities(answer), probabilities(model.predict(path)), atol=1e-5)


def test_int8_answers_one_by_one_so_that_batches_change_nothing(delivered, clips):
    model = load(delivered / "outputs/small/export", variant="int8")
    together = list(model.predict_files([Item(path, path.name) for path in clips[:6]]))
    for path, answer in zip(clips, together, strict=False):
        np.testing.assert_array_equal(probabilities(answer), probabilities(model.predict(path)))


def test_below_the_threshold_there_is_no_label(model, clips):
    highest = max(model.predict(clips[0]).probabilities.values())
    assert model.predict(clips[0], threshold=highest - 1e-3).label
    assert model.predict(clips[0], threshold=highest + 1e-3).label is None


def test_a_run_answers_as_its_export(model, clips):
    run = load("small")
    assert (run.labels, run.by_speaker) == (model.labels, model.by_speaker)
    assert run.enrolment.identity == model.enrolment.identity
    np.testing.assert_allclose(probabilities(run.predict(clips[3])), probabilities(model.predict(clips[3])), atol=1e-5)


def test_a_timeline_is_the_answers_to_windows_as_files_of_their_own(model, clips, tmp_path):
    sound = np.concatenate([audio.read(path) for path in clips[:8]])
    for rate in (16_000, 22_050):
        audio.write(tmp_path / "long.wav", np.resize(sound, round(4.3 * rate)), rate)
        whole, _ = audio.inspect(tmp_path / "long.wav")
        answers = list(model.timeline(Item(tmp_path / "long.wav", "long"), window=1.0, hop=0.4))
        assert [answer.start for answer in answers] == pytest.approx([0.4 * n for n in range(len(answers))], abs=1e-3)
        assert answers[-1].end == pytest.approx(4.3, abs=0.001)
        for answer in answers:
            first = round(answer.start * rate)
            window = whole[first : first + rate]
            assert answer.end == pytest.approx(min(answer.start + 1.0, 4.3), abs=0.001)
            np.testing.assert_allclose(probabilities(answer), probabilities(model.predict(window, rate)), atol=1e-5)


@pytest.mark.parametrize(("window", "hop"), [(0.01, 0.01), (31, 1), (1, 0), (1, 1.5), (float("nan"), 1)])
def test_windows_out_of_range_are_refused(model, clips, window, hop):
    with pytest.raises(UserError, match=r"window is|hop is"):
        list(model.timeline(Item(clips[0], "clip"), window, hop))


def test_speakers_who_are_known_are_normalised_as_in_evaluation(model, delivered):
    """All clips of a part, enrolled, give the predictions of ``just eval``."""
    (folder,) = (delivered / "outputs/small/eval").iterdir()
    wanted = read_predictions(folder / "predictions.csv").tempered(runs.load_trained("small").temperature)
    table = read_table("demo")
    clips = {clip.clip: clip for clip in table.clips}
    items = [Item(table.sound_path(clips[name]), name, clips[name].speaker) for name in wanted.clips]
    for speaker in {item.speaker for item in items}:
        own = [item for item in items if item.speaker == speaker]
        assert model.enrol(speaker, own) == len(own)
    sums = {name: model.enrolment.read(name).clips for name in model.enrolment.names}
    alone = np.stack([probabilities(answer) for answer in model.predict_files([Item(i.path, i.name) for i in items])])
    known = np.stack([
        model.run(
            torch.from_numpy(sound)[None], torch.tensor([len(sound)]), model.known(item.speaker)
        )[0] for item in items for sound in [audio.read(item.path)]
    ])  # fmt: skip
    np.testing.assert_allclose(known, wanted.probabilities, atol=0.01)  # the store is in half precision
    assert np.abs(alone - known).max() > 0.02
    assert sums == {name: model.enrolment.read(name).clips for name in model.enrolment.names}


def test_a_speakers_clips_are_learned_one_after_the_other_unless_frozen(model, clips):
    items = [Item(path, path.name, "anna") for path in clips[:3]]
    first, _, third = model.predict_files(items)
    assert (first.speaker, third.speaker) == ("anna", "anna")
    assert model.enrolment.read("anna").clips == 3
    (again,) = model.predict_files(items[:1], learn=False)
    assert model.enrolment.read("anna").clips == 3
    assert again.probabilities != first.probabilities, "more is known of her"
    with pytest.raises(UserError, match=r"speaker 'ann' is not enrolled; did you mean 'anna'\?"):
        list(model.timeline(Item(clips[0], "clip", "ann"), 0.5, 0.5))
    assert next(model.timeline(Item(clips[0], "clip", "anna"), 0.5, 0.5)).speaker == "anna"


def test_a_model_that_does_not_know_speakers_says_so(model, clips):
    model.by_speaker = False
    with pytest.raises(UserError, match="does not normalise by speaker"):
        list(model.predict_files([Item(clips[0], "clip", "anna")]))


SPOILED = {
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), r"its SHA-256 is not that of the index"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:1000]), r"1000 bytes, expected \d+: cut short"),
    "gone": (lambda path: path.unlink(), "gone, though the index names it"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_model_file_that_is_not_the_indexs_is_refused(export, how):
    spoil, message = SPOILED[how]
    spoil(export / "model.ts")
    with pytest.raises(UserError, match=message):
        load(export)


def resigned(export, content: bytes) -> None:
    """Put other bytes in the place of the model, and into the index that they belong there."""
    (export / "model.ts").write_bytes(content)
    index = json.loads((export / INDEX).read_text())
    index["files"]["model.ts"] = {"sha256": sha256_of(export / "model.ts"), "bytes": len(content)}
    (export / INDEX).write_text(json.dumps(index))


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (open, (str(PROJECT / "tests/evil"), "w"))


@pytest.mark.parametrize("kind", ["pickle", "checkpoint", "text"])
def test_a_pickle_that_poses_as_a_model_is_refused_and_never_run(export, kind):
    import io
    import pickle

    buffer = io.BytesIO()
    if kind == "checkpoint":
        torch.save({"model": Evil()}, buffer)
    content = {"pickle": pickle.dumps(Evil()), "checkpoint": buffer.getvalue(), "text": b"hello"}[kind]
    resigned(export, content)
    with pytest.raises(UserError, match="not TorchScript that can be loaded on cpu"):
        load(export)
    assert not (PROJECT / "tests/evil").exists()


def test_an_export_of_a_newer_version_says_to_upgrade(export):
    index = json.loads((export / INDEX).read_text()) | {"format": 99, "ser": "9.9"}
    (export / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"format 99, made by ser 9\.9; .*update ser"):
        load(export)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"format": 1}', '{"format": 1, "files": {"../x": {"sha256": "", "bytes": 1}}}', "{"]
)
def test_an_index_that_is_none_is_refused(export, content):
    (export / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"not the index of an export|damaged|not valid JSON"):
        load(export)


def test_a_version_can_be_pinned(export):
    pin = sha256_of(export / INDEX)
    assert load(export, sha256=pin).sha256 == pin
    with pytest.raises(UserError, match=r"expected 0{64}: another version"):
        load(export, sha256="0" * 64)


def test_what_is_no_model_is_said_plainly(export, delivered, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(delivered))
    with pytest.raises(UserError, match=r"variant 'int4' is unknown; did you mean 'int8'"):
        load(export, variant="int4")
    with pytest.raises(UserError, match="is a file; expected the folder"):
        load(export / "model.ts")
    with pytest.raises(UserError, match="no run of this name"):
        load("nothing")
    with pytest.raises(UserError, match="is a run; a variant or a checksum is of an export"):
        load("small", variant="int8")
    with pytest.raises(UserError, match=r"holds no model_half\.ts"):
        load(export, variant="half")
    (export / INDEX).unlink()
    with pytest.raises(UserError, match=f"lacks {INDEX}"):
        load(export)
    with pytest.raises(UserError, match="device 'quantum' is not at hand"):
        load(delivered / "outputs/small/export", device="quantum")


def bad_sounds(folder) -> dict:
    """Write sound files that cannot be answered; name -> what is said of it."""
    import soundfile

    good = np.sin(np.arange(16_000) / 9).astype(np.float32) * 0.3
    soundfile.write(folder / "empty.wav", good[:0], 16_000)
    soundfile.write(folder / "short.wav", good[:300], 16_000)
    soundfile.write(folder / "nan.wav", np.where(good > 0.29, np.nan, good), 16_000, "FLOAT")
    soundfile.write(folder / "long.flac", np.zeros(31 * 16_000, np.float32), 16_000)
    soundfile.write(folder / "whole.wav", good, 16_000)
    (folder / "cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:9000])
    (folder / "zero.wav").write_bytes(b"")
    (folder / "text.wav").write_text("hello, this is no sound")
    (folder / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (folder / "dir.wav").mkdir()
    return {
        "empty.wav": "empty", "short.wav": "expected at least 0.05 s", "nan.wav": "NaN",
        "long.flac": "31.0 s of sound, expected at most 30 s; cut it, or predict it in windows: --window 5",
        "cut.wav": "truncated",
        "zero.wav": "empty file", "text.wav": "not a sound file", "lfs.wav": "git-lfs pointer",
        "dir.wav": "is a folder", "gone.wav": "no such file",
    }  # fmt: skip


def test_each_broken_sound_is_named_and_the_others_are_answered(model, tmp_path):
    said = bad_sounds(tmp_path)
    failures = {}
    items = [Item(tmp_path / name, name) for name in ["whole.wav", *said, "whole.wav"]]
    answers = list(model.predict_files(items, failed=lambda item, error: failures.update({item.name: str(error)})))
    assert [answer.source for answer in answers] == ["whole.wav", "whole.wav"]
    assert set(failures) == set(said)
    for name, text in said.items():
        assert text in failures[name], (name, failures[name])
        with pytest.raises(UserError, match=re.escape(text)):
            model.predict(tmp_path / name)


def test_a_pause_has_no_emotion(model, tmp_path):
    speech = np.random.default_rng(0).standard_normal(16_000) / 10
    levels = (1.0, 0.0, 0.005, 1.0)  # -20 dB, nothing, -66 dB, -20 dB
    soundfile.write(tmp_path / "pauses.wav", np.concatenate([level * speech for level in levels]), 16_000, "FLOAT")
    item = Item(tmp_path / "pauses.wav", "pauses")
    answers = list(model.timeline(item, 1.0, 1.0))
    assert [answer.label is None for answer in answers] == [False, True, True, False]
    assert sum(answers[1].probabilities.values()) == pytest.approx(1)
    assert [answer.label is None for answer in model.timeline(item, 1.0, 1.0, silence=-70)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["empty.wav", "short.wav", "nan.wav", "cut.wav", "text.wav", "gone.wav"])
def test_a_broken_recording_has_no_timeline(model, tmp_path, name):
    said = bad_sounds(tmp_path)
    with pytest.raises(UserError, match=re.escape(said[name])):
        list(model.timeline(Item(tmp_path / name, name), 0.5, 0.5))


def test_the_timeline_of_a_cut_mp3_ends_where_its_sound_ends(model, clips, tmp_path):
    import soundfile

    sound = np.resize(np.concatenate([audio.read(path) for path in clips[:8]]), 10 * 16_000)
    soundfile.write(tmp_path / "whole.mp3", sound, 16_000)
    content = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    heard = len(audio.read(tmp_path / "cut.mp3")) / 16_000
    assert 3 < heard < 7
    answers = list(model.timeline(Item(tmp_path / "cut.mp3", "cut"), 1.0, 1.0))
    assert answers[-1].end == pytest.approx(heard, abs=0.05)
    assert len({tuple(answer.probabilities.values()) for answer in answers}) == len(answers)


def test_a_recording_cut_short_is_an_error_after_what_was_heard(model, clips, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).normal(size=64_000) / 9, 16_000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"^cut: (truncated|the sound is damaged)"):
        list(model.timeline(Item(tmp_path / "cut.flac", "cut"), 0.5, 0.5))


def test_sound_from_a_pipe_may_announce_more_than_it_has(model, tmp_path):
    audio.write(tmp_path / "pipe.wav", np.sin(np.arange(16_000) / 9) * 0.3)
    content = bytearray((tmp_path / "pipe.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (0x7FFFF000).to_bytes(4, "little")
    (tmp_path / "pipe.wav").write_bytes(content)
    assert model.predict(tmp_path / "pipe.wav").end == 1.0


def test_whole_numbers_fill_their_type(model, clips):
    sound = audio.read(clips[0])
    whole = np.round(sound * 32_768).clip(-32_768, 32_767).astype(np.int16)
    np.testing.assert_allclose(
        probabilities(model.predict(whole)), probabilities(model.predict(whole / 32_768)), atol=1e-6
    )
    eight_bits = (np.round(sound * 128).clip(-128, 127) + 128).astype(np.uint8)
    np.testing.assert_allclose(
        probabilities(model.predict(eight_bits)), probabilities(model.predict((eight_bits - 128.0) / 128)), atol=1e-6
    )
    backwards = probabilities(model.predict(sound[::-1].copy()))
    np.testing.assert_array_equal(probabilities(model.predict(sound[::-1])), backwards)
    assert model.predict(torch.from_numpy(sound).requires_grad_()).label == model.predict(sound).label
    for rate in (0, -1, 16_000.5):
        with pytest.raises(UserError, match="sample_rate is"):
            model.predict(sound, sample_rate=rate)


def test_ten_hours_are_refused_by_their_header_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "decode", lambda path: pytest.fail("it was decoded"))
    monkeypatch.setattr(inference.audio, "header", lambda path: audio.SoundInfo(36_000, 16_000, 1, "PCM_16"))
    (tmp_path / "day.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"600 min of sound, expected at most 30 s"):
        model.predict(tmp_path / "day.wav")


NONE = [
    np.zeros(0), np.zeros((2, 3, 4)), np.full(16_000, np.inf), np.zeros(100), np.zeros(16_000, bool),
    np.zeros(16_000, complex), np.array(["a"] * 16_000),
]  # fmt: skip


@pytest.mark.parametrize("sound", NONE)
def test_samples_that_are_no_clip_are_refused(model, sound):
    with pytest.raises(UserError, match="expected"):
        model.predict(sound)
