"""Runs commands of ``tools/`` one after another in processes of their own that begin with libraries already imported.

A line of JSON in, ``{"argv": [...], "env": {...}, "cwd": ..., "out": path, "err": path}``; the exit status out.
Importing torch takes two seconds, transformers as long: most of what a small command takes. What is ours is imported
by each command anew; seeds of hashes and what the environment says to Python and to threads are those of the first
process.
"""

import json
import os
import runpy
import signal
import sys

import gin  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import numpy
import sklearn.linear_model
import sklearn.model_selection  # noqa: F401
import soundfile  # noqa: F401
import speechbrain.lobes.models.ECAPA_TDNN  # noqa: F401
import torch  # noqa: F401
import torchaudio  # noqa: F401
from transformers.models.whisper import modeling_whisper  # noqa: F401

os.fsync = lambda _: None  # as in conftest.py


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            begin(job)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def begin(job: dict) -> None:
    """Be the process that a shell would have started, for five minutes at most."""
    signal.alarm(300)
    numpy.random.seed()
    for path, number in ((os.devnull, 0), (job["out"], 1), (job["err"], 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = job["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
