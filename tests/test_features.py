"""The feature store: made once, whole after any interruption, and never mixed with another kind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_factory import make_corpus, prepare_corpus, synthetic_sound

from ser import audio, config
from ser.corpora import corpus
from ser.errors import UserError
from ser.extraction import extract
from ser.features import Features, FeatureStore
from ser.files import PROJECT
from ser.mel import LogMel
from ser.metadata import Table, read_table
from ser.preparing import clips_of


def features(bands: int = 80, **options) -> Features:
    """Return features like those of ``gin/features/logmel80.gin``."""
    return Features("logmel80", LogMel(bands), **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, Table]:
    """Return a home with eight clips of one RAVDESS actor and their features, and the table of them."""
    folder = tmp_path_factory.mktemp("features")
    raw = make_corpus(folder, "ravdess", ["01"], per_class=1, seconds=0.2)
    clips, missing = clips_of(corpus("ravdess"), raw, allow_missing=True)
    table = Table("ravdess", raw, tuple(clips), missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        assert extract(table, features(), progress=False) == {"made": 8, "remade": 0, "kept": 0}
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


def test_the_stored_features_are_log_mel_of_the_clip(table, store):
    reader = FeatureStore("ravdess", features())
    front_end = LogMel(80)
    for clip in table.clips:
        sound = torch.from_numpy(audio.read(table.sound(clip)))
        expected, frames = front_end(sound[None], torch.tensor([len(sound)]))
        stored = reader.read(clip)
        assert stored.dtype == torch.float16
        assert stored.shape == (int(frames), 80)
        assert reader.length(clip) == int(frames) == len(sound) // 160 + 1
        torch.testing.assert_close(stored.float(), expected[0], rtol=1e-3, atol=1e-3)


def test_single_precision_is_kept_when_asked_for(table):
    extract(table, features(dtype="float32"), progress=False)
    clip = table.clips[0]
    sound = torch.from_numpy(audio.read(table.sound(clip)))
    expected, _ = LogMel(80)(sound[None], torch.tensor([len(sound)]))
    stored = FeatureStore("ravdess", features(dtype="float32")).read(clip)
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, expected[0], rtol=1e-5, atol=1e-5)


def test_any_rate_and_any_container_are_extracted(home):
    raw = home / "raw"
    audio.write(raw / "03-01-01-01-01-01-01.flac", synthetic_sound("a", "sad", 1.0))
    audio.write(raw / "03-01-02-01-01-01-01.wav", np.repeat(synthetic_sound("a", "sad", 1.0), 3), 48000)
    clips, _ = clips_of(corpus("ravdess"), raw, allow_missing=True)
    extract(Table("ravdess", raw, tuple(clips), 0), features(), progress=False)
    store = FeatureStore("ravdess", features())
    assert store.length(clips[0]) == store.length(clips[1]) == store.read(clips[1]).shape[0]


def test_the_index_says_how_the_store_was_made(table, store):
    index = json.loads((store / "index.json").read_text())
    assert index["complete"] is True
    assert index["spec"]["front_end"]["bands"] == 80
    assert index["spec"]["dtype"] == "float16"
    assert (index["corpus"], index["clips"]) == ("ravdess", 8)
    assert index["versions"]["torch"]
    assert list(index["files"]) == sorted(clip.clip for clip in table.clips)
    assert sorted(content(store)) == sorted([*(f"{name}.npy" for name in index["files"]), "index.json"])


def test_extracting_again_keeps_everything(table, store):
    before = content(store)
    times = {path: path.stat().st_mtime_ns for path in store.glob("*.npy")}
    assert extract(table, features(), progress=False) == {"made": 0, "remade": 0, "kept": 8}
    assert content(store) == before
    assert {path: path.stat().st_mtime_ns for path in store.glob("*.npy")} == times


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
    assert extract(table, features(), progress=False) == {"made": 0, "remade": 5, "kept": 3}
    assert content(store) == before


def test_a_lost_index_is_made_again(table, store):
    before = content(store)
    (store / "index.json").unlink()
    extract(table, features(), progress=False)
    assert content(store) == before


def test_a_damaged_index_gives_one_line_that_names_it(table, store):
    (store / "index.json").write_text('{"spec": ')
    for use in (lambda: extract(table, features(), progress=False), lambda: FeatureStore("ravdess", features())):
        with pytest.raises(UserError, match=r"index\.json: not valid JSON"):
            use()


def test_sound_that_has_changed_since_is_heard_again(table, store):
    before = content(store)
    longer, same_size = table.clips[1], table.clips[4]
    audio.write(table.sound(longer), synthetic_sound("other", "angry", 0.4))
    old = audio.read(table.sound(same_size))
    size = table.sound(same_size).stat().st_size
    audio.write(table.sound(same_size), old[::-1].copy())
    assert table.sound(same_size).stat().st_size == size
    assert extract(table, features(), progress=False)["kept"] == 6
    after = content(store)
    changed = {name for name in after if name.endswith(".npy") and after[name] != before[name]}
    assert changed == {f"{longer.clip}.npy", f"{same_size.clip}.npy"}


def test_clips_that_arrive_later_are_added(table, home):
    extract(replace(table, clips=table.clips[:3]), features(), progress=False)
    assert extract(table, features(), progress=False) == {"made": 5, "remade": 0, "kept": 3}
    later = content(home / "data/ravdess/feats/logmel80")
    for path in (home / "data/ravdess/feats/logmel80").iterdir():
        path.unlink()
    extract(table, features(), progress=False)
    assert content(home / "data/ravdess/feats/logmel80") == later


def test_an_interrupted_store_is_refused_until_it_is_finished_then_like_any_other(table, store):
    """What a kill leaves: an index of the beginning, a journal cut short, a file without its line, a part of one."""
    before = content(store)
    index = json.loads(before["index.json"])
    names = list(index["files"])
    entries = [json.dumps({"clip": name, **index["files"][name]}) for name in names[:4]]
    (store / "index.json").write_text(json.dumps(index | {"complete": False, "files": {}}))
    (store / "journal.jsonl").write_text("\n".join([*entries[:3], entries[3][:30]]))
    (store / f".{names[5]}.npy.tmp").write_bytes(b"\x93NUMPY")
    for name in names[5:]:
        (store / f"{name}.npy").unlink()
    with pytest.raises(UserError, match="extraction was interrupted; go on with: just extract ravdess logmel80"):
        FeatureStore("ravdess", features())
    assert extract(table, features(), progress=False)["kept"] == 3
    assert content(store) == before


@pytest.mark.parametrize("other", [{"bands": 40}, {"dtype": "float32"}])
def test_a_store_made_otherwise_is_refused_and_left_alone(table, store, other):
    before = content(store)
    for use in (
        lambda: extract(table, features(**other), progress=False),
        lambda: FeatureStore("ravdess", features(**other)),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert f"{store}: made otherwise" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert all(str(value) in str(caught.value) for value in other.values())
    assert content(store) == before


def test_another_hop_or_window_is_another_kind(table, store):
    for front_end in (LogMel(80, hop_ms=8.0), LogMel(80, window_ms=32.0), LogMel(80, floor=1e-6)):
        with pytest.raises(UserError, match="made otherwise"):
            FeatureStore("ravdess", Features("logmel80", front_end))


def test_unreadable_sound_gives_one_line_and_the_rest_goes_on_once_it_is_mended(table, home):
    path = table.sound(table.clips[5])
    good = path.read_bytes()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError) as caught:
        extract(table, features(), progress=False)
    assert str(caught.value) == f"{path}: is a git-lfs pointer, not sound; fetch the real files with: git lfs pull"
    folder = home / "data/ravdess/feats/logmel80"
    assert not list(folder.glob(".*"))
    path.write_bytes(good)
    counts = extract(table, features(), progress=False)
    assert sum(counts.values()) == 8
    resumed = content(folder)
    for file in folder.iterdir():
        file.unlink()
    extract(table, features(), progress=False)
    assert content(folder) == resumed


def test_reading_a_store_that_is_not_there_says_which_command_makes_it(home):
    with pytest.raises(UserError, match="not extracted yet; run: just extract ravdess logmel80"):
        FeatureStore("ravdess", features())


def test_reading_a_damaged_file_or_an_unknown_clip_says_which_and_what_to_do(table, store):
    reader = FeatureStore("ravdess", features())
    deleted, truncated, shorter = table.clips[:3]
    (store / f"{deleted.clip}.npy").unlink()
    path = store / f"{truncated.clip}.npy"
    path.write_bytes(path.read_bytes()[:-100])
    np.save(store / f"{shorter.clip}.npy", np.zeros((3, 80), dtype=np.float16))
    for clip in (deleted, truncated, shorter):
        with pytest.raises(UserError) as caught:
            reader.read(clip)
        assert str(store / f"{clip.clip}.npy") in str(caught.value)
        assert "just extract ravdess logmel80" in str(caught.value)
    with pytest.raises(UserError, match="no features of clip 'unheard'"):
        reader.read(replace(deleted, clip="unheard"))


def test_a_pickle_in_place_of_features_is_not_loaded(table, store):
    np.save(store / f"{table.clips[0].clip}.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        FeatureStore("ravdess", features()).read(table.clips[0])


def test_a_type_that_cannot_be_stored_is_refused():
    with pytest.raises(UserError, match="'bfloat16'; expected float16 or float32"):
        features(dtype="bfloat16")


def test_stored_frames_pass_through_and_sound_goes_through_the_front_end():
    cached, fresh = features(), features(cached=False)
    assert cached.input_rate == 100
    assert fresh.input_rate == 16000
    sound, lengths = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)), torch.tensor([4000, 2500])
    frames, counts = fresh.frames(sound, lengths)
    expected, expected_counts = LogMel(80)(sound, lengths)
    assert torch.equal(frames, expected)
    assert torch.equal(counts, expected_counts)
    assert all(ours is theirs for ours, theirs in zip(cached.frames(frames, counts), (frames, counts), strict=True))


def test_killed_in_the_middle_and_run_again_it_ends_like_an_uninterrupted_run(home):
    prepare_corpus(home, "ravdess", speakers=["01", "02", "03"], per_class=8, seconds=0.3)
    table, folder = read_table("ravdess"), home / "data/ravdess/feats/logmel80"
    dice = random.Random(20)
    for attempt in range(2):  # the second kill hits a run that resumes
        at = len(list(folder.glob("*.npy"))) + dice.randrange(1, len(table.clips) // 4)
        running = subprocess.Popen(
            [sys.executable, str(PROJECT / "tools/extract.py"), "ravdess", "logmel80"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while len(list(folder.glob("*.npy"))) < at and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.003))
        os.killpg(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, attempt
        assert json.loads((folder / "index.json").read_text())["complete"] is False
        assert at <= len(list(folder.glob("*.npy"))) < len(table.clips)
    counts = extract(table, config.load_features("logmel80"), progress=False)
    assert counts["kept"] > 0
    assert sum(counts.values()) == len(table.clips)
    resumed = content(folder)
    for file in folder.iterdir():
        file.unlink()
    extract(table, config.load_features("logmel80"), progress=False)
    assert content(folder) == resumed
