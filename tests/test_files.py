"""Paths, and files that are written whole or not at all."""

import errno
import json
import os
import subprocess
import sys

import pytest

from ser import files
from ser.errors import UserError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own for data/ and outputs/."""
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    return tmp_path


def make_run(home, name):
    folder = home / "outputs" / name
    folder.mkdir(parents=True)
    (folder / "run.gin").write_text("seed = 1\n")
    return folder


# Where things lie


def test_everything_lies_under_ser_home(home):
    assert files.data_folder() == home / "data"
    assert files.corpus_folder("ravdess") == home / "data" / "ravdess"
    assert files.outputs_folder() == home / "outputs"


@pytest.mark.parametrize("value", [None, ""])
def test_without_ser_home_everything_lies_in_the_checkout(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("SER_HOME", raising=False)
    else:
        monkeypatch.setenv("SER_HOME", value)
    assert files.data_folder() == files.PROJECT / "data"
    assert (files.PROJECT / "pyproject.toml").is_file()


def test_a_run_is_found_by_name_path_and_last(home, monkeypatch):
    folder = make_run(home, "demo_ecapa-s1-abc123")
    (home / "outputs" / "last").write_text("demo_ecapa-s1-abc123\n")
    monkeypatch.chdir(home)
    for run in ("demo_ecapa-s1-abc123", str(folder), "outputs/demo_ecapa-s1-abc123", "last"):
        assert files.run_folder(run) == folder


def test_a_run_outside_the_outputs_is_found_by_its_path(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "run.gin").write_text("")
    assert files.run_folder(str(elsewhere)) == elsewhere


def test_the_current_folder_may_be_the_run(home, monkeypatch):
    folder = make_run(home, "demo_ecapa-s1-abc123")
    monkeypatch.chdir(folder)
    assert files.run_folder(".").resolve() == folder


def test_an_unknown_run_is_answered_with_the_nearest_name(home):
    make_run(home, "demo_ecapa-s1-abc123")
    make_run(home, "ravdess_ecapa-s1-def456")
    (home / "outputs" / "bench").mkdir()  # not a run
    with pytest.raises(UserError, match=r"demo_ecapa-s1-abc12: .*did you mean 'demo_ecapa-s1-abc123'\?"):
        files.run_folder("demo_ecapa-s1-abc12")


def test_a_folder_without_run_gin_is_not_a_run(home):
    (home / "outputs" / "bench").mkdir(parents=True)
    with pytest.raises(UserError, match=r"bench: .*run\.gin"):
        files.run_folder("bench")


def test_last_before_any_run_says_how_to_make_one(home):
    with pytest.raises(UserError, match="just train"):
        files.run_folder("last")


def test_last_naming_a_removed_run_says_which_and_proposes_another(home):
    make_run(home, "demo_ecapa-s1-abc123")
    (home / "outputs" / "last").write_text("demo_ecapa-s2-abc123\n")
    with pytest.raises(UserError) as raised:
        files.run_folder("last")
    assert "demo_ecapa-s2-abc123" in str(raised.value)
    assert "did you mean 'last'" not in str(raised.value)


# Writing


def test_hidden_files_and_what_macos_packs_beside_are_passed_over(tmp_path):
    for name in ("b/a.wav", "a.wav", "._a.wav", "__MACOSX/a.wav", ".git/a.wav", "b/.hidden/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert files.files_in(tmp_path) == [tmp_path / "a.wav", tmp_path / "b/a.wav"]


def test_write_atomically_makes_the_folder_and_leaves_nothing_but_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    files.write_atomically(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    seen = []

    def write(file):
        file.write(b"n")
        file.flush()
        seen.append(path.read_text())
        file.write(b"ew")

    files.write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("failure", [ZeroDivisionError("bug"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_leaves_the_old_file_alone(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(file):
        file.write(b"half")
        raise failure

    with pytest.raises(type(failure)):
        files.write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get
)
def test_a_disk_that_takes_nothing_is_a_users_matter(tmp_path, number):
    path = tmp_path / "file.txt"

    def write(file):
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError) as raised:
        files.write_atomically(path, write)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed_is_named(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match="outputs"):
        files.write_text(tmp_path / "outputs" / "x.json", "{}")
    assert (tmp_path / "outputs").read_text() == "a file"


def test_a_full_disk_keeps_the_previous_file(tmp_path):
    """A limit on file sizes stands in for the full disk; Python ignores SIGXFSZ and gets EFBIG."""
    path = tmp_path / "log.json"
    path.write_text("old")
    code = """
import resource, sys
from pathlib import Path
from ser.errors import tool
from ser.files import write_text

@tool
def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    write_text(Path(sys.argv[1]), "x" * 100_000)

main()
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: no space left")
    assert done.stderr.count("\n") == 1
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_append_line_adds_to_the_end(tmp_path):
    path = tmp_path / "log.jsonl"
    files.append_line(path, '{"step": 1}')
    files.append_line(path, '{"text": "Zoë"}')
    assert path.read_bytes() == '{"step": 1}\n{"text": "Zoë"}\n'.encode()


# JSON


def test_json_round_trip(tmp_path):
    value = {"wa": 0.1 + 0.2, "ci95": {"uar": None}, "labels": ["angry", "fröhlich"], "n": 3}
    files.write_json(tmp_path / "m.json", value)
    assert files.read_json(tmp_path / "m.json") == value
    assert json.loads((tmp_path / "m.json").read_bytes()) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_other_readers_cannot_parse(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "m.json", {"wa": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"wa": 0.', b"\xff\xfe\x00", b"version https://git-lfs"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json: not valid JSON"):
        files.read_json(path)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.json: no such file"):
        files.read_json(tmp_path / "metrics.json")


# CSV


def read_csv(path, content, columns=("clip", "fold")):
    path.write_bytes(content)
    return list(files.read_csv(path, columns))


def test_csv_round_trip_keeps_commas_quotes_breaks_and_letters(tmp_path):
    rows = [
        {"clip": "a,b", "fold": 'say "x"'},
        {"clip": "two\nlines", "fold": ""},
        {"clip": "Zoë 日本", "fold": " spaces "},
    ]
    files.write_csv(tmp_path / "t.csv", ["clip", "fold"], rows)
    assert [row for _, row in files.read_csv(tmp_path / "t.csv", ["clip", "fold"])] == rows


def test_csv_is_written_with_header_and_lf(tmp_path):
    files.write_csv(tmp_path / "t.csv", ["clip", "fold"], [{"clip": "a", "fold": 1}, {"clip": "b", "fold": 2}])
    assert (tmp_path / "t.csv").read_bytes() == b"clip,fold\na,1\nb,2\n"


@pytest.mark.parametrize(
    "content",
    [
        b"clip,fold\na,1\nb,2\n",
        b"clip,fold\r\na,1\r\nb,2\r\n",
        b"\xef\xbb\xbfclip,fold\na,1\nb,2",
        b"fold,clip\n1,a\n2,b\n",
    ],
    ids=["LF", "CRLF", "BOM and no last LF", "other order"],
)
def test_csv_is_read_from_any_editor(tmp_path, content):
    rows = read_csv(tmp_path / "t.csv", content)
    assert rows == [(2, {"clip": "a", "fold": "1"}), (3, {"clip": "b", "fold": "2"})]


def test_csv_may_hold_more_columns(tmp_path):
    assert read_csv(tmp_path / "t.csv", b"clip,note,fold\na,hm,1\n") == [(2, {"clip": "a", "note": "hm", "fold": "1"})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["line 1", "'clip', 'fold'"]),
        (b"clip,Fold\na,1\n", ["line 1", "'fold'", "clip,fold"]),
        (b"clip,fold\na,1\nb\n", ["line 3", "2 fields"]),
        (b"clip,fold\na,1\nb,2,3\n", ["line 3", "2 fields"]),
        (b"clip,fold\n" + b"a,1\n" * 3000 + b"Zo\xeb,2\n", ["line 3002", "UTF-8"]),
        (b'clip,fold\na,1\nb,"2\nc,3\nd,4\n', ["not a CSV file"]),
    ],
    ids=["empty", "wrong header", "short row", "long row", "latin-1", "quote never closed"],
)
def test_a_malformed_csv_file_is_refused_with_file_and_line(tmp_path, content, says):
    path = tmp_path / "t.csv"
    with pytest.raises(UserError) as raised:
        read_csv(path, content)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in says:
        assert part in message


def test_a_missing_csv_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv: no such file"):
        list(files.read_csv(tmp_path / "t.csv", ["clip"]))


# Locks

LOCKER = """
import sys, time
from pathlib import Path
from ser.errors import tool
from ser.files import locked

@tool
def main():
    with locked(Path(sys.argv[1]), "busy: wait for it"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))

main()
"""


def lock_elsewhere(path):
    return subprocess.run([sys.executable, "-c", LOCKER, str(path), "0"], capture_output=True, text=True)


def test_a_lock_refuses_a_second_process_and_ends_with_its_block(tmp_path):
    path = tmp_path / "run" / ".lock"
    with files.locked(path, "busy"):
        refused = lock_elsewhere(path)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", "error: busy: wait for it\n")
    assert lock_elsewhere(path).stdout == "held\n"


def test_a_lock_ends_with_the_process_that_held_it(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(path), "60"], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="busy"), files.locked(path, "busy"):
                pass
        finally:
            holder.kill()
    with files.locked(path, "busy"):
        assert path.exists()
