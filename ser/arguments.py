"""Arguments that several tools take."""

import argparse
from pathlib import Path
from typing import Any

from ser.labels import LABEL_SETS

__all__ = ["add_corpus", "add_raw", "add_run"]


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
