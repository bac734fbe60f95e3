"""The files of ``gin/``: experiments by their names, with what they say of themselves, and what files include."""

from pathlib import Path

from ser.errors import UserError, nearest, some
from ser.files import PROJECT, outputs_folder

__all__ = ["experiments", "experiments_table", "find_experiment", "find_include"]


def experiments() -> list[str]:
    """Return the names of the files in ``gin/exp/``."""
    return sorted(path.stem for path in (PROJECT / "gin/exp").glob("*.gin"))


def experiments_table() -> str:
    """Return each experiment of ``gin/exp/`` and what its file says of time and UAR, a line each."""
    paths = [PROJECT / "gin/exp" / f"{name}.gin" for name in experiments()]
    said = [[line for line in path.read_text().splitlines() if line.startswith("# ")] for path in paths]
    width = max(len(path.stem) for path in paths)
    return "\n".join(
        f"{path.stem:<{width}}  {''.join(lines[1:2])[2:]}" for path, lines in zip(paths, said, strict=True)
    )


def find_experiment(experiment: str) -> Path:
    """Return the gin file that an EXP argument names.

    Raises:
        UserError: no such experiment; the nearest name is given.
    """
    named = PROJECT / "gin/exp" / f"{experiment}.gin"
    if named.is_file():
        return named
    if experiment.endswith(".gin"):
        if Path(experiment).is_file():
            return Path(experiment)
        raise UserError(f"{experiment}: no such file")
    if experiment == "last" or (outputs_folder() / experiment / "run.gin").is_file():
        raise UserError(
            f"'{experiment}' is a run, not an experiment of gin/exp/; go on with it: just resume {experiment}"
        )
    if Path(f"{experiment}.gin").is_file():
        raise UserError(f"'{experiment}' is not in gin/exp/; for the file that lies here: {experiment}.gin")
    longer = [name for name in experiments() if name.startswith(f"{experiment}_")]
    hint = f"; those that begin so: {some(longer, 12)}" if len(longer) > 1 else nearest(experiment, experiments())
    raise UserError(f"experiment '{experiment}' is not in gin/exp/{hint}")


def find_include(name: str, where: str) -> Path:
    """Return an included file; includes are relative to the checkout, wherever the command runs.

    Raises:
        UserError: no such file of gin.
    """
    path = PROJECT / name
    if not path.is_file():
        known = (str(file.relative_to(PROJECT)) for file in (PROJECT / "gin").rglob("*.gin"))
        raise UserError(f"{where}: no file '{name}'{nearest(name, known)}")
    return path
