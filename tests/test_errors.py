"""Mistakes that a user can fix: one line on stderr, exit status 2."""

import os
import subprocess
import sys

import pytest
import torch

from ser.errors import (
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    EXIT_USER,
    LESS_MEMORY,
    Interrupted,
    UserError,
    nearest,
    some,
    tool,
)


def test_nearest_proposes_the_closest_name():
    assert nearest("ravdes", ["crema_d", "demo", "ravdess"]) == "; did you mean 'ravdess'?"


def test_nearest_finds_a_name_by_its_end_or_beginning_but_proposes_no_other_word():
    assert nearest("lr", ["seed", "train/lr", "train/loss"]) == "; did you mean 'train/lr'?"
    assert nearest("wavlm", ["hubert_large", "wavlm_large"]) == "; did you mean 'wavlm_large'?"
    for word, known in (("excited", "disgusted"), ("iemocap", "demo"), ("tune/lora", "train/loss")):
        assert "did you mean" not in nearest(word, [known])


def test_nearest_lists_what_is_known_where_nothing_is_close():
    hint = nearest("xyz", ["ravdess", "demo"])
    assert "demo, ravdess" in hint
    assert "did you mean" not in hint


def test_nearest_shortens_a_long_list_and_says_how_much_is_left_out():
    hint = nearest("zzzzzz", [f"a{number:02}" for number in range(40)])
    assert "a00" in hint
    assert "a39" not in hint
    assert "28 more" in hint


def test_nearest_says_nothing_where_nothing_is_known():
    assert nearest("x", []) == ""


@pytest.mark.parametrize(
    ("count", "limit", "text"),
    [(0, 3, ""), (1, 3, "0"), (3, 3, "0, 1, 2"), (4, 3, "0, 1, 2 and 1 more"), (10, 2, "0, 1 and 8 more")],
)
def test_some_names_a_few_and_counts_the_rest(count, limit, text):
    assert some((number for number in range(count)), limit) == text


@pytest.mark.parametrize(
    ("outcome", "status", "stderr"),
    [
        (None, None, ""),
        (0, 0, ""),
        (3, 3, ""),
        (UserError("data/x.csv: line 3: fix it"), 2, "error: data/x.csv: line 3: fix it\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            PermissionError(13, "Permission denied", "/x"),
            2,
            "error: /x: Permission denied; give yourself permission to read (or write) it\n",
        ),
        (
            OSError(36, "File name too long", "x" * 300),
            2,
            f"error: {'x' * 100}...: File name too long; expected a shorter name\n",
        ),
        (
            RuntimeError("The following operation failed.\nCUDA out of memory. Tried to allocate 2 GiB.\nx"),
            2,
            f"error: CUDA out of memory. Tried to allocate 2 GiB; {LESS_MEMORY}\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            2,
            f"error: CUDA out of memory. Tried to allocate 2 GiB; {LESS_MEMORY}\n",
        ),
    ],
)
def test_tool_turns_every_ending_into_a_status(outcome, status, stderr, capsys):
    def main():
        """Say what the tool does."""
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    wrapped = tool(main)
    with pytest.raises(SystemExit) as ended:
        wrapped()
    assert ended.value.code == status
    captured = capsys.readouterr()
    assert captured.err == stderr
    assert captured.out == ""
    assert wrapped.__doc__ == "Say what the tool does."


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_interruption_ends_with_its_status_and_is_said_once(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)

    def main():
        raise Interrupted("stopped at step 3", EXIT_REQUEUE)

    with pytest.raises(SystemExit) as ended:
        tool(main)()
    assert ended.value.code == EXIT_REQUEUE == 75
    assert capsys.readouterr().out == ("stopped at step 3\n" if rank == "0" else "")


def test_statuses_are_those_that_shells_expect():
    assert (EXIT_USER, EXIT_INTERRUPTED) == (2, 130)


def test_tool_leaves_an_unforeseen_error_with_its_traceback():
    def main():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        tool(main)()


@pytest.mark.parametrize("lines", [3, 50_000], ids=["less than a buffer", "more than a buffer"])
def test_tool_is_silent_where_the_reader_of_its_output_went_away(lines):
    """As in `just summary | head -1`: neither traceback nor "Exception ignored" on stderr."""
    code = f"""
from ser.errors import tool

@tool
def main():
    for line in range({lines}):
        print("line", line)

main()
"""
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=buffered, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
