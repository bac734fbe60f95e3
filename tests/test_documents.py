"""The documents keep their word: what they tell a reader to type exists, its settings load, and tables name what is."""

import re
import shlex
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from conftest import PROJECT

from ser import config, splits
from ser.errors import UserError
from ser.labels import LABEL_SETS

LOADING = ("train", "cv", "show", "dry-run", "ablate")  # recipes whose first argument is an experiment
SCRIPTS = ("tools/demo.sh", "tools/results.sh")
TOLD = ("README.md", "CONTRIBUTING.md", *(f"data/{corpus}/README.md" for corpus in LABEL_SETS))


@cache
def recipes() -> dict[str, tuple[list[str], str]]:
    """Return what each recipe of the Justfile takes, and the commands it gives."""
    parts = re.split(r"^([a-z][\w-]*)((?: [*+]?\w+)*):(?: .*)?$", (PROJECT / "Justfile").read_text(), flags=re.M)
    return {
        name: (taken.split(), body) for name, taken, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


@cache
def variables() -> set[str]:
    """Return the variables of the Justfile."""
    return set(re.findall(r"^(?:export )?(\w+) :=", (PROJECT / "Justfile").read_text(), re.M))


@cache
def options(recipe: str) -> str:
    """Return the source of what takes a recipe's options, or nothing."""
    tools = re.findall(r"tools \}\}/(\w+\.py)", recipes()[recipe][1])
    sources = [PROJECT / "tools" / tool for tool in tools if tool != "launch.py"]
    if "/ser' predict" in recipes()[recipe][1]:
        sources = [PROJECT / "ser/predict_command.py"]
    text = "".join(path.read_text() for path in sources)
    return text + ((PROJECT / "ser/arguments.py").read_text() if "add_raw(" in text else "")


def stands_for_another(word: str) -> bool:
    """Say whether a word stands for something else: ``RUN``, ``<run>``, ``$name``, ``...``."""
    return bool(re.fullmatch(r"[A-Z][A-Z_]*", word) or re.search(r"[$<…]|\.\.\.", word))


def has_open_value(binding: str) -> bool:
    """Say whether a binding's value stands for another: ``seed = N``."""
    return bool(re.search(r"[$<…]|\.\.\.|= *[A-Z]+$", binding))


def commands(line: str) -> list[list[str]]:
    """Return the words of each command of a shell line; comments are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|()"):
            found.append([])
        elif found[-1] or word not in ("do", "then", "else", "!"):
            found[-1].append(word)
    return [words for words in found if words]


def blocks_of(document: str, language: str) -> list[str]:
    """Return what stands in a document between fences of a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (PROJECT / document).read_text(), re.M | re.S)
    return [block for known, block in blocks if known == language]


def shell(document: str) -> list[list[str]]:
    """Return the commands of a document's ``sh`` blocks."""
    lines = [line for block in blocks_of(document, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines for words in commands(line)]


def in_passing(document: str) -> list[list[str]]:
    """Return the ``just`` commands that a document's text mentions."""
    text = re.sub(r"^```.*?^```", "", (PROJECT / document).read_text(), flags=re.M | re.S)
    return [words for span in re.findall(r"`(just [^`]+)`", text) for words in commands(span.replace("\n", " "))]


def script(document: str) -> list[list[str]]:
    """Return the ``just`` commands that a script gives by its ``run`` and ``train``, and those that it advises."""
    text = (PROJECT / document).read_text()
    arrays = {name: shlex.split(words) for name, words in re.findall(r"^ *(\w+)=\((.*)\)$", text, re.M)}
    found = [commands(re.split(r"\s{3,}", line.strip())[0])[0] for line in re.findall(r"^  just .*", text, re.M)]
    for line in re.findall(r"^.*\b(?:run|train) .*", re.sub(r"^  just .*", "", text, flags=re.M), re.M):
        if line.lstrip().startswith("#"):
            continue
        for first, *words in commands(line):
            if first in ("run", "train") and words:
                known = [arrays.get(word[2:-4], [word]) if word.endswith("[@]}") else [word] for word in words]
                found.append(["just", *(["train"] if first == "train" else []), *chain.from_iterable(known)])
    return found


def fault(words: list[str]) -> str:
    """Say what is wrong with a command, or nothing."""
    program = Path(words[0]).name
    gone = [word for word in words if re.fullmatch(r"tools/\w+\.\w+", word) and not (PROJECT / word).is_file()]
    if gone:
        return f"no {gone[0]}"
    if program == "ser":
        source = "".join((PROJECT / "ser" / name).read_text() for name in ("cli.py", "predict_command.py"))
        known = re.findall(r"add_parser\(\s*\"(\w+)\"", source)
        return "" if words[1] in known else f"no command '{words[1]}' of ser"
    return fault_of_recipe(words[1:]) if program == "just" else ""


def fault_of_recipe(words: list[str]) -> str:
    """Say what is wrong with what follows ``just``, or nothing."""
    while words and (words[0].startswith("$") or re.match(r"\w+=", words[0])):
        name = words.pop(0).partition("=")[0]
        if not name.startswith("$") and name not in variables():
            return f"no variable '{name}'"
    if not words:
        return ""
    recipe, *given = words
    if recipe not in recipes():
        return f"no recipe '{recipe}'"
    taken, source = recipes()[recipe][0], options(recipe)
    unknown = [word for word in given if word.startswith("--") and source and f'"{word}"' not in source]
    if unknown:
        return f"no option {unknown[0]}"
    if not given or "..." in given:
        return ""
    needed = [name for name in taken if not name.startswith("*")]
    if len(given) < len(needed) or (len(given) > len(taken) and not any(name[0] in "*+" for name in taken)):
        return f"takes {' '.join(taken) or 'nothing'}"
    return fault_of_arguments(recipe, given)


def fault_of_arguments(recipe: str, given: list[str]) -> str:
    """Say which corpus, features, experiment or binding of a command do not exist."""
    plain, common = [], []
    rest = iter(given)
    for word in rest:
        if word == "--common":
            common.append(next(rest))
        elif word.startswith("--"):
            next(rest, "")
        else:
            plain.append(word)
    for name, word in zip(recipes()[recipe][0], plain, strict=False):
        if name == "CORPUS" and not stands_for_another(word) and word not in LABEL_SETS:
            return f"no corpus '{word}'"
    try:
        if recipe in ("extract", "probe") and len(plain) > 1 and not stands_for_another(plain[1]):
            config.load_features(plain[1], [binding for binding in plain[2:] if not has_open_value(binding)])
        if recipe in LOADING and plain and not stands_for_another(plain[0]) and not plain[0].endswith(".gin"):
            changes = [change.split(";") for change in plain[1:]] if recipe == "ablate" else [plain[1:]]
            for change in changes or [[]]:
                own = [binding.strip() for binding in (*common, *change) if not has_open_value(binding)]
                config.load(plain[0], own)
    except UserError as error:
        return str(error)
    return ""


def faults(found: list[list[str]]) -> list[str]:
    return [f"{shlex.join(words)}: {reason}" for words in found if (reason := fault(list(words)))]


@pytest.mark.parametrize("document", [*TOLD, "RESULTS.md"])
def test_commands_of_a_document_exist_and_their_settings_load(document):
    told = document in TOLD  # commands in the text of RESULTS.md are of the commits that it names
    found = [*shell(document), *(in_passing(document) if told else [])]
    assert found or document in ("CONTRIBUTING.md", "data/demo/README.md")
    wrong = faults(found)
    assert not wrong


@pytest.mark.parametrize("document", SCRIPTS)
def test_commands_of_a_script_exist_and_their_settings_load(document):
    found = script(document)
    assert len(found) > 10
    wrong = faults(found)
    assert not wrong


def test_commands_that_gin_files_and_the_justfile_name_exist_and_their_settings_load():
    text = "\n".join(path.read_text() for path in (PROJECT / "gin").rglob("*.gin"))
    own = re.findall(r"^# (just .*)", text, re.M) + re.findall(r"^#.*`(just [^`]*)`", text, re.M)
    listed = re.findall(r"^#.*?: +(just .*)", (PROJECT / "Justfile").read_text(), re.M)
    assert len(own) > 30
    assert len(listed) > 10
    wrong = faults([words for line in (*own, *", ".join(listed).split(", ")) for words in commands(line)])
    assert not wrong


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("just trian demo_ecapa", "no recipe 'trian'"),
        ("just parts=val eval last", "no variable 'parts'"),
        ("just prepare demo && just extract demo logmel", "features 'logmel' are unknown"),
        ("just extract dem logmel80", "no corpus 'dem'"),
        ("just extract ravdess whisper_tiny_en 'encoder/keeps = \"frames\"'", "no file defines 'encoder/keeps'"),
        ("just jobs=2 train demo_ecap; just summary", "experiment 'demo_ecap' is not in gin/exp/"),
        ("just train demo_ecapa 'train/epoch = 3'  # a comment", "no file defines 'train/epoch'"),
        ("just ablate demo_ecapa 'seed = 2' 'train/lr = 1e-3; train/los = 3'", "no file defines 'train/los'"),
        ("just ablate demo_ecapa 'seed = 2' --common 'train/lrs = 1'", "no file defines 'train/lrs'"),
        ("just plan --lists", "no option --lists"),
        ("just compare RUN", "takes FIRST SECOND"),
        ("ser predicts MODEL -", "no command 'predicts' of ser"),
        (".venv/bin/python tools/trains.py EXP", "no tools/trains.py"),
    ],
)
def test_what_is_wrong_with_a_command_is_found(line, reason):
    (found,) = faults(commands(line))
    assert reason in found


def table(first: str) -> list[list[str]]:
    """Return the cells of README's table whose first column has this head, without its heads."""
    tables = re.findall(r"(?:^\|.*\n)+", (PROJECT / "README.md").read_text(), re.M)
    (rows,) = [rows for rows in tables if rows.startswith(f"| {first} |")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()[2:]]


def named(cells: list[str]) -> list[str]:
    """Return the first word of each piece of code in some cells."""
    return [name for cell in cells for name in re.findall(r"`([\w-]+)", cell)]


def stems(folder: str) -> set[str]:
    return {path.stem for path in (PROJECT / folder).iterdir()}


def test_readme_names_every_recipe():
    assert set(named([row[1] for row in table("phase")])) == recipes().keys() - {"default"}


def test_readme_names_every_file_of_features_and_augmentation():
    assert set(named([row[0] for row in table("features")])) == stems("gin/features")
    assert set(named([row[0] for row in table("file")])) == stems("gin/augment")


def test_readme_names_every_experiment_and_only_models_that_exist():
    own = [re.sub("^(ravdess|crema_d)_", "", name) for name in stems("gin/exp") if name.startswith(("rav", "cre"))]
    assert set(named([row[0] for row in table("experiment")])) == set(own)
    assert set(named([row[0] for row in table("model")])) <= stems("ser")


def test_readme_names_schemes_that_exist():
    titles = {"RAVDESS": ["ravdess"], "CREMA-D": ["crema_d"]}
    for corpus, schemes, _ in table("corpus"):
        for known in titles.get(corpus, ["ravdess", "crema_d"]):
            assert set(named([schemes])) <= set(splits.schemes(known)), corpus


def test_settings_that_readme_names_exist():
    text = (PROJECT / "README.md").read_text()
    experiments = (
        "ravdess_ecapa",
        "ravdess_stats_probe",
        "ravdess_hubert_attn_finetune_tiny",
        "ravdess_whisper_prompt",
    )
    macros = {b.key for name in experiments for b in config.load(name).bindings if not b.parameter}
    rooms = {macro.partition("/")[0] for macro in macros}
    spoken = [name for name in re.findall(r"`(\w+/\w+)`", text) if name.partition("/")[0] in rooms]
    assert len(spoken) > 15
    unknown = set(spoken) - macros
    assert not unknown

    def loads(experiment: str, binding: str) -> bool:
        try:
            return bool(config.load(experiment, [binding]))
        except UserError:
            return False

    bindings = [one for span in re.findall(r"`('[^`]+')`", text) for one in shlex.split(span)]
    assert len(bindings) > 5
    refused = [one for one in bindings if not any(loads(experiment, one) for experiment in experiments)]
    assert not refused


def test_gin_files_that_readme_shows_are_built_and_set_nothing_in_vain(tmp_path):
    blocks = blocks_of("README.md", "")
    whole = [block for block in blocks if "include 'gin/" in block]
    rest = [block for block in blocks if re.search(r"^[\w.]+ = ", block, re.M) and block not in whole]
    assert whole
    start = (PROJECT / "gin/exp/ravdess_ecapa.gin").read_text().replace("augment/light", "augment/none")
    for block in (*whole, *(start + block for block in rest)):
        (tmp_path / "own.gin").write_text(block)
        shown = config.show(config.load(str(tmp_path / "own.gin")))
        assert re.search(r"^unused.*\n  none$", shown, re.M), block


def test_links_between_documents_lead_somewhere():
    for document in (*TOLD, "RESULTS.md", "CHANGELOG.md"):
        path = PROJECT / document
        links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
        broken = [link for link in links if not (path.parent / link).exists()]
        assert not broken, document
