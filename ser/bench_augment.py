"""Benchmark: our operations against torch-audiomentations (whole batches) and audiomentations (clip by clip)."""

import importlib
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from typing import Any

from ser.errors import UserError
from ser.measuring import Row, compare, timed

__all__ = ["augment"]

CLIPS, SECONDS = 32, 4


def augment() -> list[Row]:
    """Time each operation on 32 clips of 4 s, every clip changed, against the same of both libraries.

    Raises:
        UserError: the libraries are not installed.
    """
    try:
        for library in ("audiomentations", "torch_audiomentations"):
            importlib.import_module(library)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: .venv/bin/pip install -e '.[bench]'") from error
    from ser import dist

    dist.keep_freed_memory()  # as in training
    warnings.simplefilter("ignore")  # of the peers
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ours, peers in pairs(Path(folder)):
            for library, peer in peers.items():
                rows.append(compare(f"{name} against {library}, s", ours, peer, 1.0, repeats=9))
                print(f"{rows[-1].what}: {rows[-1].ratio:.2f}", flush=True)
    for library in ("torch-audiomentations", "audiomentations"):
        ratios = [row.ratio for row in rows if f"against {library}," in row.what]
        mean = exp(statistics.mean(map(log, ratios)))
        rows.append(Row(f"geometric mean against {library}", mean, 1.0, mean, "lower", 0.5, mean <= 0.5))
    return rows


def pairs(folder: Path) -> Iterator[tuple[str, Callable[[], float], dict[str, Callable[[], float]]]]:
    """Yield each operation's name, a timed call of it, and of what each library has instead."""
    import torch

    from ser import augment_sound, augment_surroundings
    from ser.audio import SAMPLE_RATE
    from ser.augment import ClipRandom
    from ser.augment_demo import recorded

    sound = 0.1 * torch.randn(CLIPS, SECONDS * SAMPLE_RATE, generator=torch.Generator().manual_seed(1))
    lengths = torch.full((CLIPS,), sound.shape[1])
    names = [f"clip{number}" for number in range(CLIPS)]
    noise, rooms = recorded(folder)
    single, batched = (importlib.import_module(name) for name in ("audiomentations", "torch_audiomentations"))
    counter = iter(range(10**9))

    def ours(name: str, *settings: Any) -> Callable[[], float]:
        module = augment_sound if name in augment_sound.__all__ else augment_surroundings
        operation = getattr(module, name)(*settings, probability=1.0)
        return timed(lambda: operation(sound, lengths, ClipRandom(1, next(counter), 0, names)))

    def of_batches(name: str, **settings: Any) -> Callable[[], float]:
        transform = getattr(batched, name)(
            **settings, p=1.0, p_mode="per_example", sample_rate=SAMPLE_RATE, output_type="dict"
        )
        return timed(lambda: transform(sound[:, None]))

    def of_clips(name: str, **settings: Any) -> Callable[[], float]:
        transform, clips = getattr(single, name)(**settings, p=1.0), list(sound.numpy())
        return timed(lambda: [transform(clip, sample_rate=SAMPLE_RATE) for clip in clips])

    wide = {"min_bandwidth_fraction": 1.67, "max_bandwidth_fraction": 1.68}
    for name, operation, batch, clip in [
        ("Gain", ours("Gain", -6.0, 6.0),
         of_batches("Gain", min_gain_in_db=-6.0, max_gain_in_db=6.0),
         of_clips("Gain", min_gain_db=-6.0, max_gain_db=6.0)),
        ("Polarity", ours("Polarity"), of_batches("PolarityInversion"), of_clips("PolarityInversion")),
        ("Shift", ours("Shift", 0.1),
         of_batches("Shift", min_shift=-0.1, max_shift=0.1, shift_unit="fraction", rollover=False),
         of_clips("Shift", min_shift=-0.1, max_shift=0.1, rollover=False)),
        ("Noise, white", ours("Noise", 5.0, 30.0),
         of_batches("AddColoredNoise", min_snr_in_db=5.0, max_snr_in_db=30.0, min_f_decay=0.0, max_f_decay=0.0),
         of_clips("AddGaussianSNR", min_snr_db=5.0, max_snr_db=30.0)),
        ("Noise, coloured", ours("Noise", 5.0, 30.0, 0.0, 2.0),
         of_batches("AddColoredNoise", min_snr_in_db=5.0, max_snr_in_db=30.0, min_f_decay=-2.0, max_f_decay=0.0),
         of_clips("AddColorNoise", min_snr_db=5.0, max_snr_db=30.0, min_f_decay=-6.0, max_f_decay=0.0)),
        # What torch-audiomentations reads from files needs an older torchaudio.
        ("BackgroundNoise", ours("BackgroundNoise", str(noise), 5.0, 30.0), None,
         of_clips("AddBackgroundNoise", sounds_path=str(noise), min_snr_db=5.0, max_snr_db=30.0)),
        ("RecordedRooms", ours("RecordedRooms", str(rooms)), None,
         of_clips("ApplyImpulseResponse", ir_path=str(rooms))),
        ("LowPass", ours("LowPass", 1500.0, 6000.0),
         of_batches("LowPassFilter", min_cutoff_freq=1500.0, max_cutoff_freq=6000.0),
         of_clips("LowPassFilter", min_cutoff_freq=1500.0, max_cutoff_freq=6000.0, min_rolloff=24, max_rolloff=24)),
        ("Band", ours("Band", 300.0, 3400.0),
         of_batches("BandPassFilter", min_center_frequency=1850.0, max_center_frequency=1851.0, **wide),
         of_clips("BandPassFilter", min_center_freq=1850.0, max_center_freq=1851.0, min_rolloff=24, max_rolloff=24,
                  **wide)),
        ("Pitch", ours("Pitch", 2),
         of_batches("PitchShift", min_transpose_semitones=-2.0, max_transpose_semitones=2.0),
         of_clips("PitchShift", min_semitones=-2.0, max_semitones=2.0)),
        ("Clipping", ours("Clipping"), None, of_clips("ClippingDistortion")),
    ]:  # fmt: skip
        peers = {"torch-audiomentations": batch, "audiomentations": clip}
        yield name, operation, {library: peer for library, peer in peers.items() if peer is not None}
