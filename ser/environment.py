"""What a run ran on: versions, machine, and the revision of the code."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ser.errors import UserError
from ser.files import PROJECT, read_json
from ser.progress import cores

__all__ = ["PACKAGES", "commits", "environment", "installed", "revision_of", "short"]

CODE = ("ser", "tools", "gin", "Justfile", "setup.py")  # what figures depend on
PACKAGES = (
    "ser-toolkit", "torch", "torchaudio", "transformers", "speechbrain", "gin-config",
    "numpy", "soundfile", "scikit-learn", "wandb",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return versions, machine, git revision, and what of ``CODE`` was changed since or is new."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "cores": cores(), "device": device_name()},
        "git": {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", "--", *CODE)},
    }


def commits(run: Path) -> list[str]:
    """Return the git commits of the code that trained a run, each once; empty where none is known.

    One that ends in ``+`` is of code that was changed since, or that had files of its own beside it.
    """
    try:
        revisions = [session["git"] for session in read_json(run / "environment.json")["sessions"]]
        return sorted({revision_of(git) for git in revisions if git["commit"]})
    except (UserError, KeyError, TypeError):
        return []


def revision_of(git: dict[str, Any]) -> str:
    """Return a session's commit, with a ``+`` where the code was not as committed, or nobody could tell."""
    unknown = "changed" in git and git["changed"] is None
    return f"{git['commit']}{'+' if unknown or git.get('changed') or git.get('diff') else ''}"  # earlier: a diff


def short(commit: str) -> str:
    """Return a commit as people write it, still with the ``+`` of changed code."""
    return f"{commit[:7]}{'+' if commit.endswith('+') else ''}"


def installed(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name() -> str:
    """Return the GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git(*arguments: str) -> str | None:
    """Return git's answer about the checkout, or None outside one."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
