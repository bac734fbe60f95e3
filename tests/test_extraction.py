"""Extraction: every clip once, whole after any interruption, the same by any number of processes, never mixed."""

import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, Beside, command
from corpus_factory import make_corpus, prepare_corpus, synthetic_sound

from ser import audio, config, encoders
from ser.batches import open_source
from ser.corpora import corpus_named
from ser.encoders import EncoderFeatures, Pretrained
from ser.errors import UserError
from ser.extraction import extract
from ser.features import Features, FeatureStore, store_folder
from ser.files import write_json
from ser.mel import LogMel
from ser.metadata import Table, read_table
from ser.preparing import clips_of

WIDTH, STATES = 16, 3  # of the small encoder


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """Compute on the CPU, here and in processes that a test starts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def log_mel(bands: int = 80, **options) -> Features:
    """Return features like those of ``gin/features/logmel80.gin``."""
    return Features("logmel80", LogMel(bands), **options)


def encoded(source: Path, keep: str = "statistics", layers: list[int] | None = None, **options) -> Features:
    """Return features of the small encoder, like those of ``gin/features/whisper_tiny.gin``."""
    pretrained = Pretrained(str(source), WIDTH, STATES, **options)
    return Features("whisper_tiny", EncoderFeatures(pretrained, keep, layers))


def save_encoder(folder: Path, seed: int, width: int = WIDTH, states: int = STATES, spoilt: bool = False) -> Path:
    """Save a small Whisper of random weights; a spoilt one holds a NaN."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(seed)
    settings = WhisperConfig(
        d_model=width, encoder_layers=states - 1, encoder_attention_heads=2, encoder_ffn_dim=4 * width,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, vocab_size=8, max_target_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(settings)
    if spoilt:
        model.encoder.layers[0].fc1.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Return the folder of a small encoder."""
    return save_encoder(tmp_path_factory.mktemp("encoder"), seed=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, Table]:
    """Return a home with eight clips of one RAVDESS actor and their log-mel features, and the table of them."""
    folder = tmp_path_factory.mktemp("extraction")
    raw = make_corpus(folder, "ravdess", ["01"], per_class=1, seconds=0.2)
    clips, missing = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    table = Table("ravdess", raw, tuple(clips), missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        assert extract(table, log_mel(), progress=False) == {"made": 8, "remade": 0, "kept": 0}
    return folder, table


@pytest.fixture
def table(original, home) -> Table:
    """Return a table whose sound this test may change."""
    folder, table = original
    shutil.copytree(folder / "raw", home / "raw")
    return replace(table, raw=home / table.raw.relative_to(folder))


@pytest.fixture
def store(original, table, home) -> Path:
    """Return the folder of a whole store that this test may change."""
    folder, _ = original
    shutil.copytree(folder / "data", home / "data")
    return home / "data/ravdess/feats/logmel80"


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def index_of(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def one_line(use: Callable[[], object]) -> str:
    """Return the message of a user's mistake, seen to be one line."""
    with pytest.raises(UserError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is made


def test_the_stored_features_are_log_mel_of_the_clip(table, store):
    reader = FeatureStore("ravdess", log_mel())
    front_end = LogMel(80)
    for clip in table.clips:
        sound = torch.from_numpy(audio.read(table.sound_path(clip)))
        expected, frames = front_end(sound[None], torch.tensor([len(sound)]))
        stored = reader.read(clip)
        assert stored.dtype == torch.float16
        assert stored.shape == (int(frames), 80)
        assert reader.length(clip) == int(frames) == len(sound) // 160 + 1
        torch.testing.assert_close(stored.float(), expected[0], rtol=1e-3, atol=1e-3)


def test_single_precision_is_kept_when_asked_for(table):
    extract(table, log_mel(dtype="float32"), progress=False)
    clip = table.clips[0]
    sound = torch.from_numpy(audio.read(table.sound_path(clip)))
    expected, _ = LogMel(80)(sound[None], torch.tensor([len(sound)]))
    stored = FeatureStore("ravdess", log_mel(dtype="float32")).read(clip)
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, expected[0], rtol=1e-5, atol=1e-5)


def test_any_rate_and_any_container_are_extracted(home):
    raw = home / "raw"
    audio.write(raw / "03-01-01-01-01-01-01.flac", synthetic_sound("a", "sad", 1.0))
    audio.write(raw / "03-01-02-01-01-01-01.wav", np.repeat(synthetic_sound("a", "sad", 1.0), 3), 48000)
    clips, _ = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    extract(Table("ravdess", raw, tuple(clips), 0), log_mel(), progress=False)
    reader = FeatureStore("ravdess", log_mel())
    assert reader.length(clips[0]) == reader.length(clips[1]) == reader.read(clips[1]).shape[0]


LENGTHS = (1.0, 0.97, 0.955, 0.4, 0.39, 0.385, 0.08, 0.077)  # seconds; near enough for three batches


@pytest.fixture
def uneven(home, monkeypatch) -> Table:
    """Return a table of clips of many lengths; an encoder on the CPU gets them in batches of up to three."""
    monkeypatch.setattr(encoders, "BATCH_SECONDS", {"cpu": 3.0})
    raw = home / "raw"
    for number, seconds in enumerate(LENGTHS, start=1):
        name = f"03-01-0{number}-01-01-01-01"
        audio.write(raw / f"{name}.wav", synthetic_sound(name, "sad", 1.2)[: round(seconds * 16_000)])
    clips, missing = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    return Table("ravdess", raw, tuple(clips), missing)


def states_of(source: Path, sound: torch.Tensor) -> list[torch.Tensor]:
    """Return the states [T, D] of one clip, alone and in single precision."""
    network = Pretrained(str(source), WIDTH, STATES).load()
    with torch.no_grad():
        return [state[0] for state in network.states(sound[None], torch.tensor([len(sound)]))]


@pytest.mark.parametrize(
    ("keep", "layers", "shape"),
    [
        ("statistics", None, (3, 32)),
        ("statistics", [1], (1, 32)),
        ("frames", [1], (16,)),
        ("frames", [0, 2], (2, 16)),
        ("frames", None, (3, 16)),
    ],
)
def test_what_is_kept_of_an_encoder_is_that_of_each_clip_alone(uneven, encoder, keep, layers, shape):
    features = encoded(encoder, keep, layers)
    extract(uneven, features, progress=False)
    reader = FeatureStore("ravdess", features)
    for clip in uneven.clips:
        states = states_of(encoder, torch.from_numpy(audio.read(uneven.sound_path(clip))))
        chosen = states if layers is None else [states[layer] for layer in layers]
        if keep == "statistics":
            values = [state.double().numpy() for state in chosen]
            expected = torch.tensor(np.array([np.concatenate([value.mean(0), value.std(0)]) for value in values]))
        else:
            expected = chosen[0] if len(chosen) == 1 else torch.stack(chosen)
        stored = reader.read(clip)
        assert stored.dtype == torch.float16
        assert reader.length(clip) == len(states[0])
        without_time = list(stored.shape)
        if reader.time_axis is not None:
            assert without_time.pop(reader.time_axis) == len(states[0])
        assert tuple(without_time) == shape
        torch.testing.assert_close(stored.float(), expected.float(), rtol=2e-3, atol=2e-3)


def test_half_the_precision_gives_nearly_the_same(uneven, encoder):
    exact, rough = encoded(encoder), encoded(encoder, precision="bf16")
    rough.name = "rough"
    for features in (exact, rough):
        extract(uneven, features, progress=False)
    assert index_of(store_folder("ravdess", rough))["spec"]["front_end"]["precision"] == "bf16"
    for clip in uneven.clips:
        values = [FeatureStore("ravdess", features).read(clip).float() for features in (exact, rough)]
        torch.testing.assert_close(*values, rtol=0.05, atol=0.05)
        assert not torch.equal(*values)


def test_a_file_holds_its_own_clip_and_not_the_rest_of_the_batch(uneven, encoder):
    features = encoded(encoder, "frames")
    extract(uneven, features, progress=False)
    folder = store_folder("ravdess", features)
    for clip in uneven.clips:
        value = torch.load(folder / f"{clip.clip}.pt", weights_only=True)
        assert value.untyped_storage().nbytes() == value.numel() * 2
        assert (folder / f"{clip.clip}.pt").stat().st_size < value.numel() * 2 + 3000


@pytest.mark.parametrize("keep", ["statistics", "frames"])
@pytest.mark.parametrize("fits", [1, 2])
def test_a_batch_that_memory_does_not_hold_is_computed_in_parts(uneven, encoder, monkeypatch, keep, fits):
    whole, parts = encoded(encoder, keep), encoded(encoder, keep)
    parts.name = "parts"
    extract(uneven, whole, progress=False)
    forward, sizes = EncoderFeatures.forward, []

    def small(self, sound, lengths):
        sizes.append(len(lengths))
        if len(lengths) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, sound, lengths)

    monkeypatch.setattr(EncoderFeatures, "forward", small)
    extract(uneven, parts, progress=False)
    assert max(sizes) == 3
    assert min(sizes) == 1
    for clip in uneven.clips:
        values = [FeatureStore("ravdess", features).read(clip) for features in (whole, parts)]
        torch.testing.assert_close(*values, rtol=2e-3, atol=1e-3)


def test_memory_that_does_not_hold_one_clip_ends_the_extraction(uneven, encoder, monkeypatch):
    def full(self, sound, lengths):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(EncoderFeatures, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        extract(uneven, encoded(encoder), progress=False)


class Loud(LogMel):
    """Gives one value everywhere."""

    def __init__(self, value: float):
        super().__init__(4)
        self.value = value

    def forward(self, sound: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, frames = super().forward(sound, lengths)
        return torch.full_like(values, self.value), frames


@pytest.mark.parametrize(
    ("value", "dtype", "kept"),
    [
        (1e6, "float16", 65504.0), (-1e6, "float16", -65504.0), (65519.0, "float16", 65504.0), (1.5, "float16", 1.5),
        (1e6, "float32", 1e6),
    ],
)  # fmt: skip
def test_what_half_precision_cannot_hold_is_cut_off(table, value, dtype, kept):
    features = Features("loud", Loud(value), dtype=dtype)
    extract(table, features, progress=False)
    assert FeatureStore("ravdess", features).read(table.clips[0]).unique().tolist() == [kept]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_in_any_type(table, value, dtype):
    message = one_line(lambda: extract(table, Features("loud", Loud(value), dtype=dtype), progress=False))
    assert "its features are not finite" in message


@pytest.mark.parametrize("keep", ["statistics", "frames"])
def test_an_encoder_that_gives_nan_is_refused_with_the_clip_and_a_way_out(table, home, keep):
    source = save_encoder(home / "spoilt", seed=1, spoilt=True)
    message = one_line(lambda: extract(table, encoded(source, keep), progress=False))
    assert message.startswith(str(table.raw))
    assert "its features are not finite; compute in 'encoder/precision = \"float32\"'" in message
    folder = store_folder("ravdess", encoded(source, keep))
    assert not list(folder.glob("*.pt"))
    assert index_of(folder)["complete"] is False


# What the index says


def test_the_index_says_how_the_store_was_made(table, store):
    index = index_of(store)
    assert index["complete"] is True
    assert index["spec"]["front_end"]["bands"] == 80
    assert index["spec"]["dtype"] == "float16"
    assert (index["corpus"], index["clips"]) == ("ravdess", 8)
    assert index["versions"]["torch"]
    assert index["versions"]["transformers"]
    assert list(index["files"]) == sorted(clip.clip for clip in table.clips)
    assert sorted(content(store)) == sorted([*(f"{name}.npy" for name in index["files"]), "index.json"])


def test_the_index_of_an_encoder_says_which_weights_and_in_which_precision(table, encoder):
    features = encoded(encoder, "frames", [1, 2])
    extract(table, features, progress=False)
    folder = store_folder("ravdess", features)
    assert folder.name == "whisper_tiny-frames-1-2"
    index = index_of(folder)
    front_end = index["spec"]["front_end"]
    assert (front_end["source"], front_end["revision"]) == (str(encoder), "main")
    assert (front_end["keep"], front_end["layers"]) == ("frames", [1, 2])
    assert front_end["precision"] == "float32", "what 'auto' comes to on a CPU"
    assert len(index["made_with"]["weights_sha256"]) == 64
    assert sorted(content(folder)) == sorted([*(f"{name}.pt" for name in index["files"]), "index.json"])


def test_another_precision_than_the_store_was_made_in_is_refused(table, encoder):
    extract(table, encoded(encoder), progress=False)
    folder = store_folder("ravdess", encoded(encoder))
    before = content(folder)
    for use in (lambda f: extract(table, f, progress=False), lambda f: FeatureStore("ravdess", f)):
        message = one_line(lambda use=use: use(encoded(encoder, precision="bf16")))
        assert f"{folder}: made otherwise" in message
        assert 'precision: "float32", now "bf16"' in message
    for precision in ("auto", "float32"):
        features = encoded(encoder, precision=precision)
        assert extract(table, features, progress=False) == {"made": 0, "remade": 0, "kept": 8}
        assert FeatureStore("ravdess", features).read(table.clips[0]).shape == (3, 32)
    assert content(folder) == before


def test_a_precision_left_open_goes_on_in_the_one_that_the_store_was_begun_in(table, encoder):
    """A store that was begun elsewhere, as on a GPU, is never finished in another precision."""
    features = encoded(encoder, precision="bf16")
    extract(table, features, progress=False)
    folder = store_folder("ravdess", features)
    before = content(folder)
    (folder / f"{table.clips[3].clip}.pt").unlink()
    assert extract(table, encoded(encoder), progress=False) == {"made": 0, "remade": 1, "kept": 7}
    assert content(folder) == before


# What is made again


def test_extracting_again_keeps_everything(table, store):
    before = content(store)
    times = {path: path.stat().st_mtime_ns for path in store.glob("*.npy")}
    assert extract(table, log_mel(), progress=False) == {"made": 0, "remade": 0, "kept": 8}
    assert content(store) == before
    assert {path: path.stat().st_mtime_ns for path in store.glob("*.npy")} == times


def test_a_whole_store_is_verified_without_its_encoder(table, encoder, home):
    source = shutil.copytree(encoder, home / "encoder")
    extract(table, encoded(source), progress=False)
    before = content(store_folder("ravdess", encoded(source)))
    shutil.rmtree(source)
    assert extract(table, encoded(source), progress=False) == {"made": 0, "remade": 0, "kept": 8}
    assert content(store_folder("ravdess", encoded(source))) == before


def test_damaged_files_are_found_and_made_again_to_the_same_bytes(table, store):
    before = content(store)
    deleted, truncated, garbage, flipped, emptied, *_ = sorted(store.glob("*.npy"))
    deleted.unlink()
    truncated.write_bytes(truncated.read_bytes()[:500])
    garbage.write_bytes(b"garbage")
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    emptied.write_bytes(b"")
    assert extract(table, log_mel(), progress=False) == {"made": 0, "remade": 5, "kept": 3}
    assert content(store) == before


@pytest.mark.parametrize(("keep", "layers"), [("statistics", None), ("frames", [1]), ("frames", [0, 2])])
def test_damaged_files_of_an_encoder_are_made_again_to_the_same_bytes(uneven, encoder, keep, layers):
    """Although a clip goes through the encoder in a batch, whose other clips may be whole."""
    features = encoded(encoder, keep, layers)
    extract(uneven, features, progress=False)
    folder = store_folder("ravdess", features)
    before = content(folder)
    deleted, truncated, foreign, flipped, replaced, *_, other = sorted(folder.glob("*.pt"))
    times = other.stat().st_mtime_ns
    deleted.unlink()
    truncated.write_bytes(truncated.read_bytes()[:700])
    foreign.write_bytes(other.read_bytes())
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    torch.save({"values": torch.zeros(3)}, replaced)
    assert extract(uneven, encoded(encoder, keep, layers), progress=False) == {"made": 0, "remade": 5, "kept": 3}
    assert content(folder) == before
    assert other.stat().st_mtime_ns == times, "what is whole is left alone"


def test_a_lost_index_is_made_again(table, store):
    before = content(store)
    (store / "index.json").unlink()
    extract(table, log_mel(), progress=False)
    assert content(store) == before


def test_a_damaged_index_gives_one_line_that_names_it(table, store):
    (store / "index.json").write_text('{"spec": ')
    assert f"{store / 'index.json'}: not valid JSON" in one_line(lambda: extract(table, log_mel(), progress=False))


def test_sound_that_has_changed_since_is_heard_again(table, store):
    before = content(store)
    longer, same_size = table.clips[1], table.clips[4]
    audio.write(table.sound_path(longer), synthetic_sound("other", "angry", 0.4))
    old = audio.read(table.sound_path(same_size))
    size = table.sound_path(same_size).stat().st_size
    audio.write(table.sound_path(same_size), old[::-1].copy())
    assert table.sound_path(same_size).stat().st_size == size
    assert extract(table, log_mel(), progress=False)["kept"] == 6
    after = content(store)
    changed = {name for name in after if name.endswith(".npy") and after[name] != before[name]}
    assert changed == {f"{longer.clip}.npy", f"{same_size.clip}.npy"}


def test_clips_that_arrive_later_are_added(table, home):
    extract(replace(table, clips=table.clips[:3]), log_mel(), progress=False)
    assert extract(table, log_mel(), progress=False) == {"made": 5, "remade": 0, "kept": 3}
    later = content(home / "data/ravdess/feats/logmel80")
    for path in (home / "data/ravdess/feats/logmel80").iterdir():
        path.unlink()
    extract(table, log_mel(), progress=False)
    assert content(home / "data/ravdess/feats/logmel80") == later


# Interrupted, or made otherwise


def interrupt(folder: Path) -> list[str]:
    """Make a store look as it does before its end; return the lines that journals hold then."""
    index = index_of(folder)
    (folder / "index.json").write_text(json.dumps(index | {"complete": False, "files": {}}))
    return [json.dumps({"clip": name, **entry}) for name, entry in index["files"].items()]


def test_an_interrupted_store_is_refused_until_it_is_finished_then_like_any_other(table, store):
    """What a kill leaves: an index of the beginning, journals cut short, a file without its line, a part of one."""
    before = content(store)
    names = list(index_of(store)["files"])
    lines = interrupt(store)
    (store / "journal-0.jsonl").write_text("\n".join([*lines[:2], lines[3][:30]]))
    (store / "journal-3.jsonl").write_text(f"{lines[2]}\n[1]\nnull\n{{}}\n")
    (store / f".{names[5]}.npy.tmp").write_bytes(b"\x93NUMPY")
    for name in names[5:]:
        (store / f"{name}.npy").unlink()
    with pytest.raises(UserError, match="extraction was interrupted; go on with: just extract ravdess logmel80"):
        FeatureStore("ravdess", log_mel())
    assert extract(table, log_mel(), progress=False) == {"made": 3, "remade": 2, "kept": 3}
    assert content(store) == before


def test_journals_of_more_processes_do_not_outlive_what_one_process_makes_again(table, store):
    """Two processes were stopped, then a clip's sound changed, and one process went on."""
    lines = interrupt(store)
    (store / "journal-1.jsonl").write_text("".join(f"{line}\n" for line in lines))
    clip = table.clips[3]
    audio.write(table.sound_path(clip), synthetic_sound("other", "angry", 0.3))
    assert extract(table, log_mel(), progress=False) == {"made": 0, "remade": 1, "kept": 7}
    after = content(store)
    assert extract(table, log_mel(), progress=False) == {"made": 0, "remade": 0, "kept": 8}
    assert content(store) == after
    assert FeatureStore("ravdess", log_mel()).read(clip).shape == (FeatureStore("ravdess", log_mel()).length(clip), 80)


@pytest.mark.parametrize("other", [{"bands": 40}, {"dtype": "float32"}])
def test_a_store_made_otherwise_is_refused_and_left_alone(table, store, other):
    before = content(store)
    message = one_line(lambda: extract(table, log_mel(**other), progress=False))
    assert f"{store}: made otherwise" in message
    assert all(str(value) in message for value in other.values())
    assert content(store) == before


def test_unreadable_sound_gives_one_line_and_the_rest_goes_on_once_it_is_mended(table, home):
    path = table.sound_path(table.clips[5])
    good = path.read_bytes()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError) as caught:
        extract(table, log_mel(), progress=False)
    assert str(caught.value) == f"{path}: is a git-lfs pointer, not sound; fetch the real files with: git lfs pull"
    folder = home / "data/ravdess/feats/logmel80"
    assert not list(folder.glob(".*"))
    path.write_bytes(good)
    counts = extract(table, log_mel(), progress=False)
    assert sum(counts.values()) == 8
    resumed = content(folder)
    for file in folder.iterdir():
        file.unlink()
    extract(table, log_mel(), progress=False)
    assert content(folder) == resumed


@pytest.mark.parametrize("moment", ["after the end", "before the end"])
def test_other_weights_under_the_same_name_are_refused(uneven, encoder, home, moment):
    source, others = shutil.copytree(encoder, home / "encoder"), save_encoder(home / "others", seed=2)
    folder = store_folder("ravdess", encoded(source))
    extract(uneven, encoded(source), progress=False)
    whole = content(folder)
    shortest = min(uneven.clips, key=lambda clip: clip.seconds)
    if moment == "after the end":
        (folder / f"{shortest.clip}.pt").unlink()
    else:
        shutil.rmtree(folder)
        sound, date = uneven.sound_path(shortest).read_bytes(), uneven.sound_path(shortest).stat().st_mtime_ns
        uneven.sound_path(shortest).write_bytes(b"not sound")
        assert str(uneven.sound_path(shortest)) in one_line(lambda: extract(uneven, encoded(source), progress=False))
        uneven.sound_path(shortest).write_bytes(sound)
        os.utime(uneven.sound_path(shortest), ns=(date, date))
        assert list(folder.glob("*.pt"))
    old = (source / "model.safetensors").read_bytes()
    shutil.copy(others / "model.safetensors", source)
    message = one_line(lambda: extract(uneven, encoded(source), progress=False))
    assert message.startswith(f"{folder}: made with other weights: ")
    assert json.loads(whole["index.json"])["made_with"]["weights_sha256"] in message
    assert all(file.read_bytes() == whole[file.name] for file in folder.glob("*.pt"))
    (source / "model.safetensors").write_bytes(old)
    extract(uneven, encoded(source), progress=False)
    assert content(folder) == whole


def test_sound_that_was_replaced_is_noticed_before_its_old_features_are_used(table):
    features = log_mel()
    extract(table, features, progress=False)
    first, second = (table.sound_path(clip) for clip in table.clips[:2])
    os.utime(first, ns=(1, 1))  # as a copy of the recordings would be
    open_source(features, table)
    old = first.read_bytes()
    first.write_bytes(second.read_bytes())
    message = one_line(lambda: open_source(features, table))
    assert message.startswith(f"{first}: has changed since its features were extracted; run again: just extract")
    first.unlink()  # without sound the features still serve
    open_source(features, table)
    first.mkdir()
    open_source(features, table)
    first.rmdir()
    first.write_bytes(old)
    open_source(features, table)


def test_versions_are_those_that_made_the_files(table):
    features = log_mel()
    extract(table, features, progress=False)
    folder = store_folder("ravdess", features)
    now = index_of(folder)["versions"]
    old = now | {"torch": "1.0.0"}
    write_json(folder / "index.json", index_of(folder) | {"versions": old})
    assert extract(table, features, progress=False)["made"] == 0
    assert (index_of(folder)["versions"], index_of(folder)["earlier_versions"]) == (old, [])
    (folder / f"{table.clips[0].clip}.npy").unlink()
    extract(table, features, progress=False)
    assert (index_of(folder)["versions"], index_of(folder)["earlier_versions"]) == (now, [old])


# Real processes: killed, several at once, one too many


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, dict[str, list[str]], dict[str, dict[str, bytes]]]:
    """Return a home with 240 clips, the arguments of two extractions, and what each store holds uninterrupted.

    The encoder is wide enough for a kill to hit the middle.
    """
    folder = tmp_path_factory.mktemp("many")
    source = save_encoder(tmp_path_factory.mktemp("wide"), seed=3, width=128, states=5)
    arguments = {
        "logmel80": ["logmel80"],
        "whisper_tiny-statistics": [
            "whisper_tiny", f"encoder/source = '{source}'", "encoder/width = 128", "encoder/states = 5",
        ],
    }  # fmt: skip
    whole = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        prepare_corpus(folder, "ravdess", speakers=["01", "02", "03", "04"], per_class=8, seconds=0.6)
        for name, (features, *overrides) in arguments.items():
            extract(read_table("ravdess"), config.load_features(features, overrides), progress=False)
            whole[name] = content(folder / "data/ravdess/feats" / name)
        shutil.rmtree(folder / "data/ravdess/feats")
    return folder, arguments, whole


@pytest.fixture
def work(many, home) -> Path:
    """Return a home with the same 240 clips and no features."""
    shutil.copytree(many[0] / "data", home / "data")
    return home


TWO = (str(PROJECT / "tools/launch.py"), "2")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts ``tools/extract.py`` of RAVDESS; what still runs at the end is killed."""
    begun, beside = [], []

    def begin(arguments: list[str], *launcher: str) -> subprocess.Popen | Beside:
        if not launcher:
            beside.append(Beside("extract.py", "ravdess", *arguments))
            return beside[-1]
        tool = [sys.executable, *launcher, str(PROJECT / "tools/extract.py"), "ravdess", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        begun.append(subprocess.Popen(tool, **pipes))
        return begun[-1]

    yield begin
    for process in beside:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for process in begun:
        if process.poll() is None:
            for pid in [process.pid, *children(process.pid)]:
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()  # unread: workers that outlive it hold the other end


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(stat.parent.name))
        except OSError:  # it has ended
            continue
    return found


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait until something has happened while a process runs."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def journalled(folder: Path) -> list[str]:
    """Return the clips of all whole lines in the journals of a store."""
    lines = itertools.chain(*(path.read_text().split("\n")[:-1] for path in folder.glob("journal-*.jsonl")))
    return [json.loads(line)["clip"] for line in lines]


def test_killed_in_the_middle_and_run_again_it_ends_like_an_uninterrupted_run(many, work, start):
    """Killed alone, as when memory runs out, so that its workers notice only later, and run again at once."""
    _, arguments, whole = many
    name = "whisper_tiny-statistics"
    folder, clips = work / "data/ravdess/feats" / name, len(whole[name]) - 1
    dice = random.Random(20)
    for _ in range(2):  # the second kill hits a run that resumes
        at = len(list(folder.glob("*.pt"))) + dice.randrange(1, clips // 4)
        running = start(arguments[name])
        wait_until(lambda at=at: len(list(folder.glob("*.pt"))) >= at, running)
        time.sleep(dice.uniform(0, 0.003))
        running.kill()
        assert running.wait() == -signal.SIGKILL
        assert index_of(folder)["complete"] is False
        assert at <= len(list(folder.glob("*.pt"))) < clips
    features, *overrides = arguments[name]
    counts = extract(read_table("ravdess"), config.load_features(features, overrides), progress=False)
    assert counts["kept"] >= at - 2
    assert counts["made"] > 0
    assert sum(counts.values()) == clips
    assert content(folder) == whole[name]


def test_two_processes_make_what_one_makes_and_nothing_twice(many, work):
    _, arguments, whole = many
    name = "whisper_tiny-statistics"
    folder = work / "data/ravdess/feats" / name
    done = command("extract.py", "ravdess", *arguments[name], home=work, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: 240 made, 0 remade, 0 kept\n"
    assert content(folder) == whole[name]


def test_one_of_two_processes_killed_and_both_run_again_they_end_like_an_uninterrupted_run(many, work, start):
    _, arguments, whole = many
    folder = work / "data/ravdess/feats/logmel80"
    running = start(arguments["logmel80"], *TWO)
    wait_until((folder / "journal-1.jsonl").exists, running)
    for pid in children(running.pid):
        if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert running.wait(timeout=120) != 0
    assert index_of(folder)["complete"] is False
    done = journalled(folder)
    assert 0 < len(done) <= 240, "all of them where the kill came late"
    assert len(done) == len(set(done)), "no clip is made by both"
    again = command("extract.py", "ravdess", *arguments["logmel80"], home=work, ranks=2)
    assert again.returncode == 0, again.stderr
    place, _, counts = again.stdout.rstrip("\n").rpartition(": ")
    made, remade, kept = (int(part.split()[0]) for part in counts.split(", "))
    assert place == str(folder)
    assert kept == len(done)
    assert remade <= 2, "files whose line the kill prevented"
    assert made + remade + kept == 240
    assert content(folder) == whole["logmel80"]


def test_a_second_extraction_of_the_same_features_is_refused_and_the_first_goes_on(
    many, work, start, monkeypatch, capfd
):
    _, arguments, whole = many
    folder = work / "data/ravdess/feats/logmel80"
    first = start(arguments["logmel80"])
    wait_until((folder / "index.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # held in the middle
    monkeypatch.setattr(sys, "argv", ["extract.py", "ravdess", "logmel80"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / "tools/extract.py"), run_name="__main__")
    first.send_signal(signal.SIGCONT)
    assert ended.value.code == 2
    refusal = f"error: {folder}: another process is extracting these features; wait for it or stop it\n"
    assert capfd.readouterr() == ("", refusal)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (0, "")
    assert out == f"{folder}: 240 made, 0 remade, 0 kept\n"
    assert content(folder) == whole["logmel80"]
