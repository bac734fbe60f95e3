"""The table of benchmarks, ours against what a user would pick instead: one ``bench_*`` module each, or here."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ser.bench_augment import augment
from ser.bench_extraction import extraction
from ser.bench_inference import inference
from ser.bench_models import models
from ser.bench_training import training
from ser.environment import environment
from ser.errors import UserError, nearest
from ser.files import outputs_folder, write_json
from ser.measuring import Row, compare, limited, timed_python

__all__ = ["BENCHMARKS", "run"]


def startup() -> list[Row]:
    """Time ``--help`` of our commands against importing torch."""

    torch = timed_python("-c", "import torch")
    ser = "from ser.cli import main; main()"
    return [
        compare("tools/train.py --help against import torch, s", timed_python("tools/train.py", "--help"), torch, 1.0),
        compare("ser --help against import torch, s", timed_python("-c", ser, "--help"), torch, 1.0),
    ]


DATA_SIZES = (10_000, 100_000, 1_000_000)  # clips of the synthetic tables
DATA_SECONDS, DATA_GIB = 30.0, 2.0  # allowed for the largest


def data() -> list[Row]:
    """Time table, splits, leak check and histogram of synthetic corpora, each in a process of its own.

    The peer of the first two rows is what is allowed; that of the last is growth in proportion to the clips.
    """
    code = "from ser.benchmarks import data_phase; import sys; data_phase(int(sys.argv[1]))"
    measured = []
    for size in DATA_SIZES:
        done = subprocess.run([sys.executable, "-c", code, str(size)], check=True, capture_output=True, text=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{size:>9,} clips: {measured[-1]['seconds']:.1f} s, {measured[-1]['gib']:.2f} GiB")
    (_, middle, last), (_, fewer, more) = measured, DATA_SIZES
    grown = (last["seconds"] / middle["seconds"]) / (more / fewer)
    return [
        limited("table, splits, leak check, histogram of 1 000 000 clips, s", last["seconds"], DATA_SECONDS),
        limited("the same: peak memory, GiB", last["gib"], DATA_GIB),
        limited("growth from 100 000 to 1 000 000 clips, in tens", grown, 1.2),
    ]


def data_phase(size: int) -> None:
    """Take a synthetic corpus of ``size`` clips through phase 1, sound apart, and print seconds and peak memory."""

    from ser import custom, histogram, metadata, schemes, splits
    from ser.labels import EMOTIONS

    with tempfile.TemporaryDirectory() as home:
        os.environ["SER_HOME"] = home
        source = Path(home) / "table.csv"
        lines = (f"s{i % 2000}/c{i}.wav,{EMOTIONS[i * 7 % 8]},s{i % 2000},{'fm'[i % 2]}\n" for i in range(size))
        source.write_text("path,emotion,speaker,sex\n" + "".join(lines))
        started = time.perf_counter()
        fields = custom.read_clips(source)
        sound: dict[str, Any] = {"corpus": "custom", "split": "", "seconds": 2.0, "sample_rate": 16_000, "channels": 1}
        table = [metadata.Clip(**(clip | sound)) for clip in fields.values()]
        metadata.write_table("custom", table)
        metadata.remember_raw("custom", source, 0)
        for scheme in ("holdout", "kfold5"):
            splits.write_split(schemes.make_split("custom", scheme, list(fields.values())))
        del fields, table
        read = metadata.read_table("custom")
        splits.select(read.clips, splits.parts_of(splits.read_split("custom", "holdout"), None), "holdout")
        histogram.text(read)
        seconds = time.perf_counter() - started
    from ser import dist  # now, so that torch weighs nothing above

    print(json.dumps({"seconds": seconds, "gib": dist.peak_gib()}))


BENCHMARKS = {
    "augment": augment,
    "data": data,
    "extraction": extraction,
    "inference": inference,
    "models": models,
    "startup": startup,
    "training": training,
}


def run(name: str) -> tuple[Path, list[Row]]:
    """Run a benchmark and write ``outputs/bench/<name>.json``.

    Raises:
        UserError: no such benchmark.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark '{name}' is unknown{nearest(name, BENCHMARKS)}")
    rows = BENCHMARKS[name]()
    about: dict[str, Any] = environment()
    path = outputs_folder() / "bench" / f"{name}.json"
    machine = {"node": platform.machine(), **about["machine"]}
    versions = {"python": about["python"], **about["packages"]}
    write_json(path, {"machine": machine, "versions": versions, "rows": [asdict(row) for row in rows]})
    return path, rows
