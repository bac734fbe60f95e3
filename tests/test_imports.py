"""Modules import only modules above them, gin enters by one door, nothing heavy is imported too early."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

import ser
from ser import config
from ser.files import PROJECT

(FLOORS,) = [block for block in ser.__doc__.split("\n\n") if block.startswith("ground ")]
MODULES = re.findall(r"\w+", re.sub(r"^\w+ ", "", FLOORS, flags=re.MULTILINE))


def imported(module: str) -> set[str]:
    """Return the names of the modules that a module imports anywhere in its file, modules without ``ser.``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PROJECT / "ser" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "ser"):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix("ser.") for name in names}


def test_the_list_of_modules_is_complete():
    files = {path.stem for path in (PROJECT / "ser").glob("*.py")} - {"__init__"}
    assert files == set(MODULES)
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_above_it(module):
    below = set(MODULES[MODULES.index(module) :])
    assert not imported(module) & below


def used_elsewhere() -> Iterator[tuple[str, str, str]]:
    """Yield file, module and name of what a file of ours takes from a module."""
    for path in [*(PROJECT / "ser").glob("*.py"), *(PROJECT / "tools").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        whole = {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ser."):
                yield from ((path.name, node.module.removeprefix("ser."), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module == "ser":
                whole |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in MODULES}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
                yield path.name, whole[node.value.id], node.attr


def test_what_another_module_uses_is_public():
    public = {module: set(getattr(import_module(f"ser.{module}"), "__all__", ())) for module in MODULES}
    assert not {use for use in used_elsewhere() if public[use[1]] and use[2] not in public[use[1]] | {"__all__"}}


def refuses(*functions: ast.AST) -> bool:
    """Say whether some of the functions raise a ``UserError`` of their own."""
    raised = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Raise)]
    return any("UserError" in ast.unparse(node) for node in raised)


def undocumented(name: str, node: ast.AST) -> list[str]:
    """Return what of a public class or function refuses a user's input and does not say so."""
    told = re.compile("rais", re.IGNORECASE)
    if not isinstance(node, ast.ClassDef):
        return [name] if refuses(node) and not told.search(ast.get_docstring(node) or "") else []
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    making = [part for part in functions if part.name in ("__init__", "__post_init__")]
    own = [name] if refuses(*making) and not told.search(ast.get_docstring(node) or "") else []
    public = [part for part in functions if not part.name.startswith("_")]
    return own + [label for part in public for label in undocumented(f"{name}.{part.name}", part)]


@pytest.mark.parametrize("module", MODULES)
def test_public_names_say_what_they_refuse(module):
    public = set(getattr(import_module(f"ser.{module}"), "__all__", ()))
    tree = ast.parse((PROJECT / "ser" / f"{module}.py").read_text())
    named = {getattr(node, "name", ""): node for node in tree.body}
    assert not [label for name in sorted(public & named.keys()) for label in undocumented(name, named[name])]


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module):
    assert len((PROJECT / "ser" / f"{module}.py").read_text().splitlines()) <= 450


def test_only_config_imports_gin():
    assert [module for module in MODULES if any(name.split(".")[0] == "gin" for name in imported(module))] == ["config"]


def test_there_is_no_package_file_in_the_gin_folder():  # P26: it would shadow the library
    assert not list((PROJECT / "gin").rglob("*.py"))


def test_registered_names_are_unique_and_take_no_keyword_rest():  # P1, P19
    config.register_modules()
    short = config.short_names()
    assert len(short) == len(set(short))
    for name, public in config.registered.items():
        kinds = [parameter.kind for parameter in inspect.signature(public).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, name


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist_and_are_documented(module):
    module = import_module(f"ser.{module}")
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, f"{module}.{name}"


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


def parsed(module: str) -> ast.Module:
    return ast.parse((PROJECT / "ser" / f"{module}.py").read_text())


def test_wandb_is_met_in_tracking_alone_and_asked_for_nothing_that_sends_files():
    texts = {path.stem: path.read_text() for folder in ("ser", "tools") for path in (PROJECT / folder).glob("*.py")}
    imports = {
        (module, ast.unparse(node))
        for module, text in texts.items()
        if "wandb" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {line for line in imports if re.search(r"\bwandb\b", line[1])} == {("tracking", "import wandb")}
    asked: dict[str, set[str]] = {"wandb": set(), "run": set()}
    for node in ast.walk(parsed("tracking")):
        if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value).removeprefix("self.")) in asked:
            asked[owner].add(node.attr)
    assert asked["wandb"] == {"init", "Settings", "Image"}
    assert asked["run"] == {"define_metric", "dir", "finish", "log"}
    sending = r"\.(?:Audio|Artifact|log_artifact|link_artifact|log_code|log_model)\b"
    assert not [module for module, text in texts.items() if re.search(sending, text)]


IN_PARTS = {  # the modules and functions that open a file to write it other than by ser/files.py, and why they may
    ("benchmarks", "data_phase"): "a table in a folder that goes with the benchmark",
    ("exporting", "onnx"): "in a folder that gets its name once it is whole",
    ("exporting", "pt2"): "in a folder that gets its name once it is whole",
    ("fetching", "receive"): "a .part file, which gets its name once it is whole",
    ("launching", "opened"): "the log of a training",
    ("plan_runner", "advance"): "the log of a step",
    ("plan_runner", "execute"): "the log of a step",
}
WRITERS = {  # functions that write what they are given: where among their arguments the file or its path stands
    "np.save": 0, "np.savetxt": 0, "np.savez": 0, "np.savez_compressed": 0, "soundfile.write": 0, "torch.save": 1,
    "torch.jit.save": 1, "torch.export.save": 1, "torch.onnx.export": 2, "torchaudio.save": 0,
}  # fmt: skip
METHODS = ("savefig", "tofile")  # whose first argument is the file or its path


def calls_by_function(tree: ast.AST, function: str = "", handed: frozenset = frozenset()) -> Iterator[tuple]:
    """Yield each call, the function of a module that it stands in, and what inner functions are handed there."""
    for node in ast.iter_child_nodes(tree):
        outer, known = function, handed
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            if function:
                known = handed | {argument.arg for argument in node.args.args}
            elif isinstance(node, ast.FunctionDef):
                outer = node.name
        if isinstance(node, ast.Call):
            yield node, outer, known
        yield from calls_by_function(node, outer, known)


def mode_of(call: ast.Call, place: int) -> str:
    """Return the mode of a call that opens a file; one that is computed counts as writing."""
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[place : place + 1]
    return "r" if not given else given[0].value if isinstance(given[0], ast.Constant) else "w"


def written_in_parts(tree: ast.Module) -> set[str]:
    """Return the functions that open a path to write it, or let a library do so; a buffer in memory is no path."""
    buffers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in ("io.BytesIO()", "io.StringIO()")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for call, function, handed in calls_by_function(tree):
        name = ast.unparse(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in ("open", "io.open", "os.fdopen", "gzip.open", "bz2.open", "zipfile.ZipFile", "tarfile.open"):
            writes = bool(set(mode_of(call, 1)) & set("wxa+"))
        elif method == "open":
            mode = mode_of(call, 0) if call.keywords or isinstance((*call.args, None)[0], ast.Constant) else "r"
            writes = set(mode) <= set("rwxabt+") and bool(set(mode) & set("wxa+"))
        elif method in ("write_text", "write_bytes"):
            writes = name.rpartition(".")[0] != "files"
        elif name in WRITERS or method in METHODS:
            place = WRITERS.get(name, 0)
            target = ast.unparse(call.args[place]) if len(call.args) > place else "a keyword"
            writes = target not in buffers | handed
        else:
            continue
        if writes:
            found.add(function)
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if module != "files"])
def test_files_are_written_whole(module):
    assert written_in_parts(parsed(module)) == {function for owner, function in IN_PARTS if owner == module}


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("open(path, 'w')", True), ("open(path, mode='ab')", True), ("open(path, how)", True), ("open(path)", False),
        ("open(path, 'rb')", False), ("path.open('x')", True), ("path.open()", False), ("zipped.open(entry)", False),
        ("path.write_text('')", True), ("(path / 'a').write_bytes(b'')", True), ("write_text(path, '')", False),
        ("files.write_text(path, '')", False), ("np.save(path, x)", True), ("np.savez(path, x=x)", True),
        ("torch.save(x, path)", True), ("buffer = io.BytesIO(); torch.save(x, buffer)", False),
        ("soundfile.write(path, x, 16000)", True), ("figure.savefig(path)", True),
        ("write_atomically(path, lambda file: soundfile.write(file, x, 16000))", False),
    ],
)  # fmt: skip
def test_what_writes_in_parts_is_seen(line, seen):
    assert bool(written_in_parts(ast.parse(f"def function(path):\n    {line}"))) == seen
