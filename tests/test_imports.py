"""The house keeps its order: rooms import only rooms above them, gin enters by one door, nothing heavy too early."""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module

import pytest

import ser
from ser import config
from ser.files import PROJECT

(FLOORS,) = [block for block in ser.__doc__.split("\n\n") if block.startswith("ground ")]
ROOMS = re.findall(r"\w+", re.sub(r"^\w+ ", "", FLOORS, flags=re.MULTILINE))


def imported(room: str) -> set[str]:
    """Return the names of the modules that a room imports anywhere in its file, rooms without ``ser.``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PROJECT / "ser" / f"{room}.py").read_text())):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "ser"):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix("ser.") for name in names}


def test_the_list_of_rooms_is_complete():
    files = {path.stem for path in (PROJECT / "ser").glob("*.py")} - {"__init__"}
    assert files == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it(room):
    below = set(ROOMS[ROOMS.index(room) :])
    assert not imported(room) & below


@pytest.mark.parametrize("room", ROOMS)
def test_files_stay_small(room):
    assert len((PROJECT / "ser" / f"{room}.py").read_text().splitlines()) <= 450


def test_only_config_imports_gin():
    assert [room for room in ROOMS if any(name.split(".")[0] == "gin" for name in imported(room))] == ["config"]


def test_there_is_no_package_file_in_the_gin_folder():  # P26: it would shadow the library
    assert not list((PROJECT / "gin").rglob("*.py"))


def test_registered_names_are_unique_and_take_no_keyword_rest():  # P1, P19
    config.register_rooms()
    short = config.short_names()
    assert len(short) == len(set(short))
    for name, public in config.registered.items():
        kinds = [parameter.kind for parameter in inspect.signature(public).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, name


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist_and_are_documented(room):
    module = import_module(f"ser.{room}")
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, f"{room}.{name}"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ser", ("torch", "numpy", "gin")),
        ("import ser.cli", ("torch", "numpy", "gin")),
        (
            "import ser.evaluation, ser.ecapa_tdnn",
            ("wandb", "transformers", "speechbrain", "sklearn", "gin", "matplotlib"),
        ),
    ],
)
def test_imports_cost_nothing_that_is_not_used(code, absent):
    check = f"{code}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"
