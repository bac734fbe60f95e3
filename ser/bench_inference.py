"""``just bench inference``: delivered models against transformers' pipeline of the same shapes; random weights."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser import audio
from ser.bench_extraction import LARGE
from ser.labels import label_set
from ser.measuring import Row, compare, limited, timed, timed_python

__all__ = ["inference"]

LABELS = label_set("crema_d")
SECONDS = 3.0  # of a clip
CLIPS = 16
WHISPER: dict[str, Any] = {"d_model": 384, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "encoder_layers": 4}
MINUTE, HOUR = 60, 3600  # seconds
PEER = """
import sys
import soundfile
from transformers import pipeline
sound, rate = soundfile.read(sys.argv[2], dtype="float32")
print(pipeline("audio-classification", model=sys.argv[1])({"raw": sound, "sampling_rate": rate})[0])
"""
PEAK = """
import sys
from ser.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
from ser import dist
print(dist.peak_gib(), file=sys.stderr)
"""


def inference() -> list[Row]:
    """Measure latency by format, throughput and the first answer against transformers, and memory over an hour."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        whisper, hubert = whisper_prompt(home), hubert_attn(home)
        delivered = home / "export"
        deliver(whisper, delivered)
        rows = [*latency(whisper, home), *throughput("Whisper-prompt", whisper, home / "whisper-peer", 5.0)]
        rows += [*throughput("HuBERT-Large inside HuBERT-attn", hubert, home / "hubert-peer", 1.2)]
        clip = home / "clip.wav"
        write_noise(clip, SECONDS)
        ours = timed_python("-c", "from ser.cli import main; main()", "predict", delivered, clip)
        peer = timed_python("-c", PEER, home / "whisper-peer", clip)
        what = "from the start of the process to the first answer, s, Whisper-tiny"
        rows.append(compare(what, ours, peer, 0.5, repeats=5))
        minute, hour = (peak_of(delivered, home / f"{length}.wav", length) for length in (MINUTE, HOUR))
        rows.append(limited("peak memory, GiB: an hour in windows against a minute and a tenth", hour, minute * 1.1))
    return rows


def whisper_prompt(home: Path) -> Any:
    """Return Whisper-prompt of Whisper-tiny's shape, and save transformers' classifier of that shape."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification
    from transformers.models.whisper.modeling_whisper import WhisperEncoder
    from transformers.utils import logging

    from ser.adapting import Adapted
    from ser.encoders import Pretrained
    from ser.pipeline import Pipeline
    from ser.whisper_prompt import WhisperPrompt

    logging.disable_progress_bar()
    torch.manual_seed(0)
    settings = WhisperConfig(**WHISPER, num_labels=len(LABELS))  # type: ignore[call-arg]
    WhisperForAudioClassification(settings).save_pretrained(home / "whisper-peer")
    WhisperFeatureExtractor().save_pretrained(home / "whisper-peer")
    WhisperEncoder(settings).save_pretrained(home / "whisper")
    adapted = Adapted(Pretrained(str(home / "whisper"), 384, 5), prompts=16, prompt_depth=None)
    return Pipeline(adapted.encoder.front_end, WhisperPrompt(LABELS, adapted))


def hubert_attn(home: Path) -> Any:
    """Return HuBERT-attn with an encoder of HuBERT-Large's shape, and save transformers' classifier of that shape."""
    from transformers import HubertConfig, HubertForSequenceClassification, HubertModel, Wav2Vec2FeatureExtractor

    from ser.adapting import Adapted
    from ser.encoders import Pretrained
    from ser.hubert_attn import HubertAttn
    from ser.pipeline import Pipeline

    settings = HubertConfig(**LARGE, num_labels=len(LABELS))  # type: ignore[call-arg]
    HubertForSequenceClassification(settings).save_pretrained(home / "hubert-peer")
    HubertModel(settings).save_pretrained(home / "hubert")
    for name in ("hubert-peer", "hubert"):
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(home / name)
    adapted = Adapted(Pretrained(str(home / "hubert"), 1024, 25))
    return Pipeline(adapted.encoder.front_end, HubertAttn(LABELS, 1024, encoder=adapted))


def latency(pipeline: Any, home: Path) -> list[Row]:
    """Time one clip in every format against the eager model."""
    import torch

    from ser import exporting

    sound = torch.from_numpy(noise(SECONDS, 0))[None]
    lengths = torch.tensor([sound.shape[1]])

    def answering(answer: Callable[..., Any]) -> Callable[[], float]:
        def once() -> None:
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                answer(sound, lengths)

        return timed(once)

    eager = answering(pipeline)
    formats: dict[str, Callable[..., Any]] = {
        "TorchScript": exporting.script, "int8": exporting.int8, "ONNX": exporting.onnx
    }  # fmt: skip
    rows = []
    for name, make in formats.items():
        made = make(pipeline, home / name)
        what = f"Whisper-prompt, a clip of {SECONDS:.0f} s: {name} against eager, s"
        rows.append(compare(what, answering(made), eager, 1.1, repeats=25))
    return rows


def throughput(name: str, pipeline: Any, peer: Path, goal: float) -> list[Row]:
    """Compare clips a second with transformers' pipeline, given one by one as it does by default, and in batches."""
    from transformers import pipeline as theirs

    from ser.inference import Predictor

    model = Predictor(pipeline.pack(), {"labels": LABELS, "by_speaker": False}, "0" * 64)  # as a run is loaded
    clips = [noise(SECONDS, seed) for seed in range(CLIPS)]
    classify: Any = theirs("audio-classification", model=str(peer))

    def ours() -> float:
        started = time.perf_counter()
        model.answers([("", 0.0, clip) for clip in clips], 0.0)
        return CLIPS / (time.perf_counter() - started)

    def pipeline_of(size: int) -> Callable[[], float]:
        def once() -> float:
            started = time.perf_counter()
            classify([{"raw": clip, "sampling_rate": audio.SAMPLE_RATE} for clip in clips], batch_size=size)
            return CLIPS / (time.perf_counter() - started)

        return once

    return [
        compare(f"{name}, clips/s against pipeline(batch_size={size})", ours, pipeline_of(size), goal, "higher", 5)
        for size in (1, 8)
    ]


def deliver(pipeline: Any, folder: Path) -> None:
    """Write an export of a pipeline that was never trained."""
    from ser import exporting

    folder.mkdir()
    exporting.script(pipeline, folder / "model.ts")
    exporting.write_index(folder, pipeline, {"run": "bench"})


def peak_of(model: Path, recording: Path, seconds: float) -> float:
    """Return the peak memory, GiB, of a process that answers a recording in windows; the median of three."""
    write_noise(recording, seconds)
    command: Sequence[str] = [sys.executable, "-c", PEAK, "predict", str(model), str(recording), "--window", "3"]
    peaks = []
    for _ in range(3 if seconds <= MINUTE else 1):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(float(done.stderr.splitlines()[-1]))
    return statistics.median(peaks)


def noise(seconds: float, seed: int) -> np.ndarray:
    """Return noise float32 [N] at 16 kHz."""
    generator = np.random.default_rng(seed)
    return 0.1 * generator.standard_normal(round(seconds * audio.SAMPLE_RATE), dtype=np.float32)


def write_noise(path: Path, seconds: float) -> None:
    """Write noise as a file."""
    audio.write(path, noise(seconds, 1).clip(-1, 1))
