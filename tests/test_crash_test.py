"""The crash test itself: it kills, it compares, and it would notice."""

import json
import random
from contextlib import nullcontext

import pytest
import torch
from conftest import command, one_error_line

from ser import checkpoints, crash_test
from ser.errors import UserError

# What extraction does, in half a second: files appear one by one and whole, and those that are there are kept.
STORE = """
import os, time
from pathlib import Path
folder = Path(os.environ["SER_HOME"], "data/demo/feats/numbers")
folder.mkdir(parents=True, exist_ok=True)
for number in range(25):
    path = folder / f"{number}.npy"
    if not path.exists():
        time.sleep(0.02)
        path.with_suffix(".new").write_text(str(number))
        path.with_suffix(".new").rename(path)
"""


def test_a_work_is_killed_and_ends_the_same(home, monkeypatch):
    monkeypatch.setattr(crash_test, "EXTRACT", ("-c", STORE))
    monkeypatch.setattr(crash_test, "prepared_demo", nullcontext)
    monkeypatch.setattr(crash_test, "outputs_folder", lambda: home / "outputs")
    works = crash_test.endure
    calls = []

    def only_extraction(name, *rest):
        calls.append(name)
        return works(name, *rest) if name == "extraction" else {"kills": 0, "runs": 0, "different": 0}

    monkeypatch.setattr(crash_test, "endure", only_extraction)
    result = crash_test.crash_test(kills=6, seed=3)
    assert calls == ["training", "training in two processes", "extraction"]
    assert result["extraction"]["kills"] >= 2
    assert result["extraction"]["different"] == 0
    assert json.loads((home / "outputs/crash-test.json").read_text()) == result


def test_a_work_that_ends_otherwise_is_noticed(home):
    work = ("-c", STORE + "\n(folder / 'who.npy').write_text(str(os.getpid()))\n")
    found = crash_test.endure("numbers", work, home / "data/demo/feats", crash_test.store_state, 2, random.Random(1))
    assert found["different"] >= 1


def test_the_state_of_a_run_is_its_weights_and_its_log_but_not_its_times(tmp_path):
    def state(weight: float, loss: float, seconds: float) -> str:
        folder = tmp_path / f"{weight}-{loss}-{seconds}" / "run"
        folder.mkdir(parents=True)
        (folder / "run.gin").write_text("")
        for name in ("best", "last"):
            content = {"model": {"w": torch.full((3,), weight)}, "state": {"step": 1, "train_seconds": seconds}}
            checkpoints.save(folder / "checkpoints" / f"{name}.pt", content)
        line = {"step": 1, "train/loss": loss, "speed/hours": seconds}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
        return crash_test.run_state(folder.parent)

    assert state(1.0, 2.0, 3.0) == state(1.0, 2.0, 4.0)
    assert state(1.0, 2.0, 3.5) != state(1.0, 2.5, 3.5)
    assert state(1.0, 2.0, 3.25) != state(1.5, 2.0, 3.25)


def test_a_difference_of_one_byte_is_noticed(tmp_path):
    (tmp_path / "store").mkdir()
    path = tmp_path / "store/a.npy"
    path.write_bytes(b"abc")
    before = crash_test.store_state(tmp_path)
    path.write_bytes(b"abd")
    assert crash_test.store_state(tmp_path) != before


def test_no_kills_are_refused(home):
    with pytest.raises(UserError, match="expected 1 or more"):
        crash_test.crash_test(0)
    assert "0 kills" in one_error_line(command("crash_test.py", "--kills", "0", home=home))
