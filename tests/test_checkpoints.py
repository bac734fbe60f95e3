"""Checkpoints survive failures, and reading one runs no code of its own."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from ser import checkpoints
from ser.errors import UserError


def content(value=1.0):
    return {
        "model": {"weight": torch.full((3, 2), value), "counts": torch.arange(4)},
        "epoch": 7,
        "labels": ["angry", "sad"],
        "best": {"uar": 0.5, "note": None},
    }


@pytest.fixture
def path(tmp_path):
    """A checkpoint on disk."""
    checkpoints.save(tmp_path / "best.pt", content())
    return tmp_path / "best.pt"


class Trap:
    """Makes a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def refused(path):
    """Return the message with which a file is refused: one line that names it."""
    with pytest.raises(UserError) as raised:
        checkpoints.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_round_trip(path):
    loaded = checkpoints.load(path)
    for name, tensor in content()["model"].items():
        assert torch.equal(loaded["model"][name], tensor)
        assert loaded["model"][name].dtype == tensor.dtype
    assert {name: loaded[name] for name in ("epoch", "labels", "best")} == {
        name: content()[name] for name in ("epoch", "labels", "best")
    }


def test_saving_again_replaces_and_leaves_nothing_else(path):
    checkpoints.save(path, content(2.0))
    assert (checkpoints.load(path)["model"]["weight"] == 2).all()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a whole checkpoint" in refused(path)


@pytest.mark.parametrize("text", ["hello\n", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"])
def test_a_text_file_is_refused(path, text):
    path.write_text(text)
    assert "not a whole checkpoint" in refused(path)


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path):
    assert "just train" in refused(tmp_path / "best.pt")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [torch.zeros(3), [1, 2], {"state_dict": {"weight": torch.zeros(2)}}, {"format": "pt", "weight": torch.zeros(2)}],
    ids=["tensor", "list", "other keys", "another kind of format"],
)
def test_what_another_program_saved_is_refused(path, foreign):
    torch.save(foreign, path)
    assert "not a checkpoint of ser" in refused(path)


def test_a_newer_format_asks_for_an_update(path):
    torch.save({"format": checkpoints.FORMAT + 1, **content()}, path)
    message = refused(path)
    assert str(checkpoints.FORMAT + 1) in message
    assert "update ser" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_is_refused_without_running_it(path, tmp_path, write):
    target = tmp_path / "made-by-the-pickle"
    write({"format": checkpoints.FORMAT, "model": Trap(target)}, path)
    refused(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert target.exists(), "the trap itself must work"


def test_a_full_disk_keeps_the_previous_checkpoint(path):
    """A limit on file sizes stands in for the full disk."""
    before = path.read_bytes()
    code = """
import resource, sys
from pathlib import Path
import torch
from ser import checkpoints
from ser.errors import tool

@tool
def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoints.save(Path(sys.argv[1]), {"model": torch.zeros(100_000)})

main()
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: no space left")
    assert "previous file is kept" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Weights into a model


def test_weights_are_told_apart_also_at_the_same_step():
    state = {"epoch": 3, "step": 30}
    one, other = ({"model": {"w": torch.full((2,), value)}, "state": state} for value in (1.0, 1.5))
    assert checkpoints.is_of(checkpoints.identity(one), one)
    assert not checkpoints.is_of(checkpoints.identity(one), other)
    assert checkpoints.is_of(state, one)  # what an earlier version of ser wrote down
    for foreign in (None, [], {}, {"epoch": 3}, state | {"step": 31}, state | {"crc32": 1}):
        assert not checkpoints.is_of(foreign, one)


def test_restore_puts_every_tensor_in_its_place(path):
    source, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    source(torch.randn(8, 3))
    checkpoints.restore(target, source.state_dict(), path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (nn.Sequential(nn.Linear(3, 4)), "lacks 1.bias, 1.weight"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)), "has foreign 2.bias, 2.weight"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), "differs in shape at 1.bias, 1.weight"),
    ],
    ids=["missing", "foreign", "resized"],
)
def test_restore_names_what_does_not_fit_and_changes_nothing(path, other, says):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as raised:
        checkpoints.restore(model, other.state_dict(), path)
    assert str(raised.value).startswith(f"{path}: ")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_restore_names_all_three_at_once_and_not_every_tensor(path):
    model, other = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 5))
    weights = {f"extra{number}": torch.zeros(1) for number in range(9)} | {"0.bias": other[0].bias}
    with pytest.raises(UserError) as raised:
        checkpoints.restore(model, weights, path)
    message = str(raised.value)
    for part in ("lacks 0.weight", "has foreign extra0, extra1, extra2 and 6 more", "differs in shape at 0.bias"):
        assert part in message
