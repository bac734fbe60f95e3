"""Arguments that several tools take."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from ser.errors import UserError, closest
from ser.files import PROJECT
from ser.labels import LABEL_SETS

__all__ = ["Parser", "add_corpus", "add_raw", "add_run"]


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser whose errors are one line, as all of ours."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError that says what is wrong, and what was probably meant."""
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0]
        word = unknown.lstrip("-").partition("=")[0]
        hint = f"see: {self.prog} --help"
        if word in variables() and not unknown.startswith("-"):
            hint = f"variables come before the recipe: just {unknown} ..."
        elif word and self._subparsers is None:  # the options of commands are not known here
            close = closest(f"--{word}", [name for name in self._option_string_actions if name.startswith("--")])
            hint = f"did you mean '{close}'?" if close else hint
        raise UserError(f"{message}; {hint}")


def variables() -> list[str]:
    """Return the variables that recipes know, in a checkout."""
    path = PROJECT / "Justfile"
    return re.findall(r"^(?:export )?(\w+) := \"", path.read_text(), re.MULTILINE) if path.is_file() else []


def add_corpus(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add CORPUS."""
    *names, last = LABEL_SETS
    parser.add_argument("corpus", help=f"{', '.join(names)} or {last}", **options)


def add_run(parser: argparse.ArgumentParser, name: str = "run", **options: Any) -> None:
    """Add RUN."""
    parser.add_argument(name, help="name of a run in outputs/, a path, or last", **options)


def add_raw(parser: argparse.ArgumentParser) -> None:
    """Add --raw and --allow-missing."""
    parser.add_argument(
        "--raw",
        type=lambda text: Path(text).expanduser(),
        help="folder with the recordings (custom: its CSV); remembered from the last time by default",
    )
    parser.add_argument("--allow-missing", action="store_true", help="go on although official clips are not there")
