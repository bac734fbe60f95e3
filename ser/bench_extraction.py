"""``just bench extraction``: features of pretrained encoders against transformers' own ways to the same.

What is compared runs in a process of its own, kept alive and measured in turn, so that neither profits from the
other's settings. Weights are random, of the real shape; sound is noise of the corpora's lengths.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ser import audio
from ser.measuring import Row, compare, limited

__all__ = ["LARGE", "extraction", "make_encoders"]

CLIPS = 16
# Mean and standard deviation of the lengths, shortest and longest, seconds.
LENGTHS = {"crema_d": (2.54, 0.51, 1.27, 5.0), "ravdess": (3.70, 0.34, 2.94, 5.27)}
LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
}  # fmt: skip


def extraction() -> list[Row]:
    """Measure speed against transformers' pipeline and padding to 30 s, overhead, padding and memory."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_encoders(home)
        natural = [lengths(corpus, CLIPS // 2, seed=1) for corpus in LENGTHS]
        make_clips(home / "clips", np.concatenate(natural))
        make_clips(home / "words", np.random.default_rng(2).uniform(2, 5, 16))
        with workers(home, "pipeline", "large float32", "large bf16", "bare") as (peer, ours, half, bare):
            rows = [
                compare("HuBERT-Large, clips/s against pipeline, float32", ours, peer, 1.7, "higher", repeats=3),
                compare("bare forward on padded batches, clips/s", ours, bare, 0.9, "higher", repeats=3),
            ]
            if has_bf16():
                what = "HuBERT-Large in bf16, clips/s against pipeline in float32"
                rows.append(compare(what, half, peer, 3.0, "higher", repeats=3))
        with workers(home, "padded", "whisper float32") as (peer, ours):
            what = "Whisper-tiny on 2-5 s, clips/s against padding to 30 s"
            rows.append(compare(what, ours, peer, 6.0, "higher", repeats=5))
        for seconds in (10.0, 400.0):
            what = f"padded share of both corpora's frames, batches of {seconds:.0f} s"
            rows.append(limited(what, padded_share(seconds), 0.03))
        few, many = (peak_memory(home, count) for count in (500, 5000))
        rows.append(limited("peak memory, GiB: 5000 clips against 500 (and a tenth)", many, few * 1.1))
    return rows


def has_bf16() -> bool:
    """Say whether this CPU multiplies bfloat16 natively."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.split()


def lengths(corpus: str, count: int, seed: int) -> np.ndarray:
    """Return lengths in seconds like those of a corpus."""
    mean, sd, shortest, longest = LENGTHS[corpus]
    return np.random.default_rng(seed).normal(mean, sd, count).clip(shortest, longest)


def make_encoders(home: Path) -> None:
    """Save random encoders: HuBERT-Large's and Whisper-tiny's shape, and a very small Whisper."""
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    HubertModel(HubertConfig(**LARGE)).save_pretrained(home / "large")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(home / "large")
    heads: dict[str, Any] = {"encoder_attention_heads": 6, "d_model": 384, "encoder_ffn_dim": 1536}
    for name, settings in (("whisper", heads | {"encoder_layers": 4}), ("tiny", heads | {"encoder_layers": 1})):
        WhisperEncoder(WhisperConfig(**settings)).save_pretrained(home / name)


def make_clips(folder: Path, seconds: np.ndarray) -> None:
    """Write clips of noise, and a table of them."""
    for number, length in enumerate(seconds):
        sound = 0.1 * np.random.default_rng(number).standard_normal(round(length * audio.SAMPLE_RATE))
        audio.write(folder / f"c{number:04d}.wav", sound.clip(-1, 1).astype(np.float32))


def table_of(folder: Path) -> Any:
    """Return the table of the clips of a folder."""
    from ser.metadata import Clip, Table

    same: dict[str, Any] = dict.fromkeys((field.name for field in fields(Clip)), "")
    same |= {"corpus": "demo", "emotion": "neutral", "sample_rate": audio.SAMPLE_RATE, "channels": 1}
    clips = []
    for path in sorted(folder.glob("*.wav")):
        own = {"path": path.name, "clip": path.stem, "seconds": audio.header(path).seconds}
        clips.append(Clip(**(same | own)))
    return Table("demo", folder, tuple(clips), 0)


def features_of(home: Path, name: str, precision: str, last: int, width: int) -> Any:
    """Return features that keep the frames of an encoder's last layer."""
    from ser.encoders import EncoderFeatures, Pretrained
    from ser.features import Features

    encoder = Pretrained(str(home / name), width, last + 1, precision=precision)
    return Features(name, EncoderFeatures(encoder, "frames", [last]))


@contextmanager
def workers(home: Path, *kinds: str) -> Iterator[list[Callable[[], float]]]:
    """Start a process for each kind and yield functions that let it work once and return its clips per second."""
    code = "import sys; from ser.bench_extraction import serve; serve(sys.argv[1], sys.argv[2])"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"SER_HOME": str(home / kind.replace(" ", "_"))},
        )
        for kind in kinds
    ]  # fmt: skip

    def once(process: subprocess.Popen) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    try:
        yield [lambda process=process: once(process) for process in started]  # type: ignore[misc]
    finally:
        for process in started:
            process.kill()
            process.wait()


def serve(folder: str, kind: str) -> None:
    """Be one of the ``workers``: do the work at each line of standard input and print clips per second."""
    import warnings

    warnings.filterwarnings("ignore")
    work, count = WORK[kind.split()[0]](Path(folder), kind)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(count / (time.perf_counter() - started), flush=True)


Job = tuple[Callable[[], object], int]


def extracting(home: Path, kind: str) -> Job:
    """Extract the clips' features into a new store."""
    from ser.extraction import extract
    from ser.features import store_folder

    name, precision = kind.split(" ")
    shape = {"large": (24, 1024), "whisper": (4, 384)}[name]
    features = features_of(home, name, precision, *shape)
    table = table_of(home / {"large": "clips", "whisper": "words"}[name])

    def work() -> None:
        shutil.rmtree(store_folder("demo", features), ignore_errors=True)
        extract(table, features, progress=False)

    return work, len(table.clips)


def bare(home: Path, kind: str) -> Job:
    """Run the encoder over the same batches, padded before."""
    import torch

    from ser import dist
    from ser.extraction import decoded, plan

    features = features_of(home, "large", "float32", 24, 1024)
    table = table_of(home / "clips")
    ready = [decoded(table, batch)[:2] for batch in plan(table, features)]
    dist.keep_freed_memory()

    @torch.inference_mode()
    def work() -> None:
        for sound, sizes in ready:
            features.front_end(sound, sizes)

    return work, len(table.clips)


def pipeline(home: Path, kind: str) -> Job:
    """Run transformers' pipeline over the files, one by one."""
    from transformers import HubertModel, Wav2Vec2FeatureExtractor, logging
    from transformers import pipeline as build

    logging.set_verbosity_error()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(home / "large")
    model = HubertModel.from_pretrained(home / "large").eval()
    run: Any = build("feature-extraction", model=model, tokenizer=extractor)  # type: ignore[call-overload]
    paths = sorted((home / "clips").glob("*.wav"))

    def work() -> None:
        for path in paths:
            run(audio.read(path))

    return work, len(paths)


def padded(home: Path, kind: str) -> Job:
    """Run transformers' Whisper encoder over the files, eight at a time, padded to 30 s as it demands."""
    import torch
    from transformers import WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    extractor, encoder = WhisperFeatureExtractor(), WhisperEncoder.from_pretrained(home / "whisper").eval()
    paths = sorted((home / "words").glob("*.wav"))

    @torch.inference_mode()
    def work() -> None:
        for start in range(0, len(paths), 8):
            sound = [audio.read(path) for path in paths[start : start + 8]]
            encoder(extractor(sound, sampling_rate=16000, return_tensors="pt").input_features)

    return work, len(paths)


WORK = {
    "pipeline": pipeline, "large": extracting, "bare": bare, "whisper": extracting, "padded": padded,
}  # fmt: skip


def padded_share(seconds: float) -> float:
    """Return the share of padding in the batches of both corpora's lengths (8882 clips), for a budget a batch."""
    from ser.samplers import bucketed

    seconds_each = np.concatenate([lengths("crema_d", 7442, seed=3), lengths("ravdess", 1440, seed=4)])
    samples = (seconds_each * audio.SAMPLE_RATE).astype(int).tolist()
    batches = bucketed(samples, round(seconds * audio.SAMPLE_RATE))
    whole = sum(max(samples[row] for row in rows) * len(rows) for rows in batches)
    return 1 - sum(samples) / whole


def peak_memory(home: Path, count: int) -> float:
    """Return the peak memory in GiB of extracting ``count`` short clips with a very small encoder."""
    make_clips(home / f"many{count}", np.random.default_rng(5).uniform(0.2, 0.5, count))
    code = "import sys; from ser.bench_extraction import many; many(sys.argv[1], int(sys.argv[2]))"
    environment = os.environ | {"SER_HOME": str(home / f"memory{count}")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home), str(count)], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout.splitlines()[-1])


def many(folder: str, count: int) -> None:
    """Extract many clips and print this process's peak memory in GiB."""
    from ser import dist
    from ser.extraction import extract

    home = Path(folder)
    extract(table_of(home / f"many{count}"), features_of(home, "tiny", "float32", 1, 384), progress=False)
    print(dist.peak_gib())
