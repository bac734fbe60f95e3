"""Runs commands of ``tools/`` one after another in processes of their own that begin with libraries already imported.

A line of JSON in, ``{"argv": [...], "env": {...}, "cwd": ..., "out": path, "err": path, "ranks": 1}``; the exit status
out. Of several ranks, which find each other as torchrun's do, it is the first that is not 0. With ``"beside": true`` it
is the number of the process, which goes on; ``{"ended": number}`` asks for its exit status, ``None`` before its end.
Importing torch takes two seconds, transformers as long: most of what a small command takes. What is ours is imported
by each command anew; seeds of hashes and what the environment says to Python and to threads are those of the first
process. Nor do they take those libraries down at their end, which would take as long.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading

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
    gc.freeze()  # what is imported here is never looked through again
    for line in sys.stdin:
        job = json.loads(line)
        if "ended" in job:
            number, status = os.waitpid(job["ended"], os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if number else None, flush=True)
            continue
        children = []
        for path in (job["out"], job["err"]):
            open(path, "w").close()
        if job["ranks"] > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            job["env"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(job["ranks"])}
        for rank in range(job["ranks"]):
            if job["ranks"] > 1:
                job["env"] |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(os.fork())
            if not children[-1]:
                begin(job)
        if job["beside"]:
            print(children[0], flush=True)
            continue
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next((status for status in statuses if status), 0), flush=True)


def begin(job: dict) -> None:
    """Be the process that a shell would have started, for five minutes at most."""
    signal.alarm(300)
    if job["beside"]:
        os.setsid()
    numpy.random.seed()
    for path, number in ((os.devnull, 0), (job["out"], 1), (job["err"], 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = job["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
