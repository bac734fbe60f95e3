"""``ser predict``, ``ser info`` and ``ser enrol``: from arguments to answers."""

import argparse
import glob
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ser.errors import EXIT_USER, UserError
from ser.files import files_in, read_csv, write_atomically
from ser.prediction_formats import FORMATS, format_predictions
from ser.progress import progress_bar

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the three commands to ``ser``."""
    predict_parser = commands.add_parser(
        "predict", help="emotions of sound files, folders, tables of files, or standard input",
        description="Prints the emotion of each sound, with the probability of every one. MODEL is an export (just "
        "export RUN), a run, or a URL that just publish wrote. A file that cannot be answered is named on standard "
        "error, the others are answered, and the exit status is then 2.",
    )  # fmt: skip
    model_arguments(predict_parser)
    predict_parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="sound that libsndfile reads, a folder of it, a pattern in quotes, a .csv with the column path and "
        "perhaps speaker, or - for sound on standard input",
    )  # fmt: skip
    predict_parser.add_argument(
        "--format", choices=tuple(FORMATS), help="default: table on a terminal, jsonl elsewhere"
    )
    predict_parser.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all")
    predict_parser.add_argument("--threshold", type=float, default=0.0, metavar="P", help="no label below it")
    predict_parser.add_argument("--window", type=float, metavar="SECONDS", help="a timeline: answer windows so long")
    predict_parser.add_argument("--hop", type=float, metavar="SECONDS", help="between windows; default: the window")
    predict_parser.add_argument(
        "--silence", type=float, metavar="DB", help="no label for windows below this level, dB of full scale; default: "
        "-60",
    )  # fmt: skip
    predict_parser.add_argument("--speaker", default="", metavar="NAME", help="who speaks in all files")
    predict_parser.add_argument("--frozen", action="store_true", help="do not add the files to their speakers")
    enrol_parser = commands.add_parser(
        "enrol", help="let a model know a speaker, from sound without labels",
        description="Stores the statistics of a speaker's clips, for models that normalise by speaker.",
    )  # fmt: skip
    model_arguments(enrol_parser)
    enrol_parser.add_argument("name", metavar="NAME")
    enrol_parser.add_argument("files", nargs="+", metavar="FILE", help="as for ser predict")
    info_parser = commands.add_parser("info", help="what a model is: labels, sizes of its files, checksum, speakers")
    model_arguments(info_parser)
    info_parser.add_argument("--json", action="store_true", help="as JSON")
    predict_parser.set_defaults(run=predict)
    enrol_parser.set_defaults(run=enrol)
    info_parser.set_defaults(run=info)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which model, and how it is to be loaded."""
    parser.add_argument("model", metavar="MODEL", help="an export, a run, or a URL")
    parser.add_argument("--variant", default="exact", help="exact, half (for GPUs) or int8 (small, for CPUs)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--sha256", default="", help="of export.json, as ser info prints it: refuse another version")
    parser.add_argument("--revision", default="", help="branch, tag or commit of hf://")
    parser.add_argument("--speakers", type=Path, metavar="FOLDER", help="of enrolled speakers; default: the user's")


def loaded(arguments: argparse.Namespace) -> Any:
    """Return the ``inference.Predictor`` that the arguments name."""
    from ser.loading import load

    return load(
        arguments.model, variant=arguments.variant, device=arguments.device, sha256=arguments.sha256,
        revision=arguments.revision, speakers=arguments.speakers,
    )  # fmt: skip


def predict(arguments: argparse.Namespace) -> int:
    """Answer files, and return the exit status."""
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is {arguments.threshold:g}; expected a probability, 0 to 1")
    if arguments.hop is not None and arguments.window is None:
        raise UserError("--hop needs --window")
    if arguments.silence is not None and arguments.window is None:
        raise UserError("--silence needs --window: whole files are answered however quiet they are")
    if arguments.silence is not None and not arguments.silence <= 0:
        raise UserError(f"--silence is {arguments.silence:g}; expected dB of full scale, 0 or below")
    if arguments.hop is None:
        arguments.hop = arguments.window
    form = arguments.format or ("table" if sys.stdout.isatty() and arguments.output is None else "jsonl")
    with ExitStack() as stack:
        items = found(arguments.files, arguments.speaker, stack)
        if form == "audacity" and len(items) > 1:
            raise UserError(f"--format audacity labels one recording, not {len(items)}; call it once for each")
        model = loaded(arguments)
        if arguments.window is not None:
            model.check_windows(arguments.window, arguments.hop)
        if not model.by_speaker and not arguments.speaker and any(item.speaker for item in items):
            print("speakers of the table are not used: this model does not normalise by speaker", file=sys.stderr)
            items = [replace(item, speaker="") for item in items]
        if arguments.window is not None:
            for name in sorted({item.speaker for item in items if item.speaker}):
                model.known(name)
        failures: list[str] = []

        def failed(item: Any, error: UserError) -> None:
            failures.append(item.name)
            print(f"error: {error}", file=sys.stderr)

        answers = answered(model, items, arguments, failed)
        lines = format_predictions(answers, model.labels, form)
        if arguments.output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is not UTF-8 is printed as it lies on the disk
                sys.stdout.reconfigure(errors="surrogateescape")
            for line in lines:
                print(line, flush=True)
        else:
            write_lines(arguments.output, lines, lambda: len(failures) == len(items))
    if failures and len(items) > 1:
        print(f"{len(failures)} of {len(items)} files were not answered", file=sys.stderr)
    return EXIT_USER if failures else 0


def write_lines(path: Path, lines: Iterable[str], nothing: Callable[[], bool]) -> None:
    """Write lines, whole or not at all; and not where it turns out after the last that ``nothing`` is in them."""

    def write(file: IO[bytes]) -> None:
        file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in lines)
        if nothing():
            raise NothingAnswered

    with suppress(NothingAnswered):
        write_atomically(path, write)


class NothingAnswered(Exception):
    """No file was answered."""


def answered(model: Any, items: list[Any], arguments: argparse.Namespace, failed: Any) -> Iterator[Any]:
    """Yield the answers to all files, with a bar where there is a terminal to show it on."""
    if arguments.window is None:
        answers = model.predict_files(items, arguments.threshold, failed, learn=not arguments.frozen)
        yield from bar(answers, len(items), "clip")
        return
    for item in items:
        try:
            quiet = {} if arguments.silence is None else {"silence": arguments.silence}
            answers = model.timeline(item, arguments.window, arguments.hop, arguments.threshold, **quiet)
            yield from bar(answers, None, "window")
        except UserError as error:
            failed(item, error)


def bar(answers: Iterable[Any], total: int | None, unit: str) -> Iterable[Any]:
    """Return the answers with a progress bar, if standard error is a terminal and the answers go elsewhere."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return answers
    return progress_bar(answers, "predict", total, unit)


def enrol(arguments: argparse.Namespace) -> int:
    """Take files into a speaker's statistics."""
    with ExitStack() as stack:
        items = found(arguments.files, "", stack)
        if others := sorted({item.speaker for item in items} - {"", arguments.name}):
            raise UserError(
                f"the table's speaker {others[0]} is not {arguments.name}; enrol each with a table of its own"
            )
        model = loaded(arguments)
        clips = model.enrol(arguments.name, items)
    print(f"{arguments.name}: {clips} clips known, in {model.enrolment.path(arguments.name)}")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Print what a model is."""
    model = loaded(arguments)
    facts = {key: value for key, value in model.index.items() if key != "files"}
    facts |= {"sha256": model.sha256} if model.sha256 else {}
    facts |= {"identity": model.enrolment.identity, "speakers": model.enrolment.names}
    files = {name: entry["bytes"] for name, entry in model.index.get("files", {}).items()}
    if arguments.json:
        print(json.dumps(facts | {"files": files}, indent=2))
        return 0
    lines = [f"{key:<16}{in_words(value)}" for key, value in facts.items() if value not in ([], "")]
    lines += [f"  {name:<20}{size / 2**20:8.2f} MiB" for name, size in files.items()]
    print("\n".join(lines))
    return 0


def in_words(value: Any) -> str:
    """Return a value of an index for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def found(names: list[str], speaker: str, stack: ExitStack) -> list[Any]:
    """Return the files that the arguments name, as ``inference.Item``.

    Args:
        names: files, folders, patterns, tables, or ``-``.
        speaker: of all of them, unless a table says otherwise.
        stack: removes what standard input was copied to.

    Raises:
        UserError: nothing there.
    """
    from ser.inference import Item

    items: list[Item] = []
    for name in names:
        path = Path(name)
        if name == "-":
            copy = tempfile.NamedTemporaryFile(prefix="ser-", suffix=".sound")  # noqa: SIM115 - the stack closes it
            stack.enter_context(copy)
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            items.append(Item(Path(copy.name), "-", speaker))
        elif os.path.isdir(name):  # pathlib's own raises for a folder that may not be entered
            inside = [file for file in files_in(path) if file.suffix.lower() in endings()]
            if not inside:
                raise UserError(f"{name}: no sound file in this folder")
            items += [Item(file, str(file), speaker) for file in inside]
        elif path.suffix.lower() == ".csv":
            items += listed(path, speaker)
        elif os.path.exists(name) or not glob.has_magic(name):
            items.append(Item(path, name, speaker))
        elif matches := sorted(glob.glob(name, recursive=True)):
            items += [Item(Path(match), match, speaker) for match in matches]
        else:
            raise UserError(f"{name}: no file matches this pattern")
    return items


def listed(path: Path, speaker: str) -> list[Any]:
    """Return the files of a table with the column path, relative to the table, and perhaps speaker."""
    from ser.inference import Item

    items = []
    for number, row in read_csv(path, ("path",), folded=True):
        if not row["path"]:
            raise UserError(f"{path}: line {number}: no path; expected a sound file")
        items.append(Item(path.parent / row["path"], row["path"], row.get("speaker", "").strip() or speaker))
    if not items:
        raise UserError(f"{path}: lists no file")
    return items


def endings() -> set[str]:
    """Return the endings of sound files that libsndfile reads."""
    import soundfile

    return {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".mp3", ".opus", ".oga", ".snd"}
