"""The crash test itself: it kills, it compares, and it would notice."""

import json

import pytest
from conftest import command, one_error_line

from ser import crashing
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
    monkeypatch.setattr(crashing, "EXTRACT", ("-c", STORE))
    monkeypatch.setattr(crashing, "outputs_folder", lambda: home / "outputs")
    works = crashing.endure
    calls = []

    def only_extraction(name, *rest):
        calls.append(name)
        return works(name, *rest) if name == "extraction" else {"kills": 0, "runs": 0, "different": 0}

    monkeypatch.setattr(crashing, "endure", only_extraction)
    result = crashing.crash_test(kills=6, seed=3)
    assert calls == ["training", "training in two processes", "extraction"]
    assert result["extraction"]["kills"] >= 2
    assert result["extraction"]["different"] == 0
    assert json.loads((home / "outputs/crash-test.json").read_text()) == result


def test_a_difference_of_one_byte_is_noticed(tmp_path):
    (tmp_path / "store").mkdir()
    path = tmp_path / "store/a.npy"
    path.write_bytes(b"abc")
    before = crashing.store_state(tmp_path)
    path.write_bytes(b"abd")
    assert crashing.store_state(tmp_path) != before


def test_no_kills_are_refused(home):
    with pytest.raises(UserError, match="expected 1 or more"):
        crashing.crash_test(0)
    assert "0 kills" in one_error_line(command("crash_test.py", "--kills", "0", home=home))
