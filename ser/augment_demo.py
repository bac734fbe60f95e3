"""What each operation of augmentation does to one recording: sounds to listen to, a picture to look at."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ser import audio, demo, plots
from ser.audio import SAMPLE_RATE
from ser.augment import ClipRandom, Operation
from ser.augment_features import Mixup, SoundMixup, SpecAugment
from ser.augment_sound import Clipping, Gain, Pitch, Polarity, Shift, Speed
from ser.augment_surroundings import BackgroundNoise, Band, LowPass, Noise, RecordedRooms, Reverb
from ser.files import outputs_folder
from ser.mel import LogMel

__all__ = ["augment_demo", "recorded"]

CLIP, NEIGHBOUR = "s01_happy_t1_r1", "s02_sad_t2_r1"  # of the built-in corpus


def augment_demo(sound: Path | None = None, seed: int = 0) -> list[Path]:
    """Apply every operation, for sure and with its own defaults; return the files, the picture first.

    Args:
        sound: a recording; one of the built-in corpus without it.
        seed: of what the operations draw.

    Raises:
        UserError: a file that cannot be read.
    """
    clip = demo.synthesise(CLIP) if sound is None else audio.read(sound)
    neighbour = np.resize(demo.synthesise(NEIGHBOUR), clip.shape)
    x, front_end = torch.from_numpy(np.stack([neighbour, clip])), LogMel()
    lengths = torch.full((2,), len(clip))
    folder = outputs_folder() / "augment-demo"
    written, pictures = [], {"before": mel(front_end, x)}
    audio.write(folder / "before.wav", clip)
    with tempfile.TemporaryDirectory() as made:
        for number, (name, operation) in enumerate(operations(Path(made)).items()):
            random = ClipRandom(seed, 0, number, [NEIGHBOUR, CLIP])
            if "sound" in operation.kind:
                changed = applied(operation, x, lengths, random)
                pictures[name] = mel(front_end, changed)
                written.append(folder / f"{name}.wav")
                audio.write(written[-1], changed[1].clamp(-1, 1).numpy())
            else:
                frames, counts = front_end(x, lengths)
                pictures[name] = applied(operation, frames, counts, random)[1].numpy()
    picture = folder / "operations.png"
    plots.spectrograms(
        picture, pictures, len(clip) / SAMPLE_RATE, f"augmentation of {CLIP if sound is None else sound.name}"
    )
    return [picture, folder / "before.wav", *written]


def operations(folder: Path) -> dict[str, Operation]:
    """Return every operation by its name; recorded noise and rooms are made up in ``folder``."""
    noise, rooms = recorded(folder)
    every = [
        Noise(10.0, 10.0, probability=1.0),
        Noise(10.0, 10.0, 1.0, 2.0, probability=1.0),
        BackgroundNoise(str(noise), 10.0, 10.0, probability=1.0),
        Reverb(probability=1.0),
        RecordedRooms(str(rooms), probability=1.0),
        Band(probability=1.0),
        LowPass(probability=1.0),
        Gain(probability=1.0),
        Polarity(probability=1.0),
        Shift(0.2, probability=1.0),
        Speed(probability=1.0),
        Pitch(4, probability=1.0),
        Clipping(probability=1.0),
        SoundMixup(4.0, probability=1.0),
        SpecAugment(probability=1.0),
        Mixup(4.0, probability=1.0),
    ]
    names = [type(operation).__name__ for operation in every]
    names[1] = "NoiseColoured"
    return dict(zip(names, every, strict=True))


def recorded(folder: Path) -> tuple[Path, Path]:
    """Make up a folder of noise, people who talk at once, and one of rooms, an answer that dies away."""
    noise, rooms = folder / "noise", folder / "rooms"
    names = [f"s{speaker:02d}_neutral_t{1 + speaker % 2}_r1" for speaker in range(3, 11)]
    babble = np.sum([np.resize(demo.synthesise(name), 48_000) for name in names], axis=0)
    audio.write(noise / "babble.wav", babble / np.abs(babble).max())
    fading = np.random.default_rng(0).standard_normal(8000) * np.exp(-np.arange(8000) / 1200)
    audio.write(rooms / "room.wav", np.concatenate([[0.99], 0.05 * fading]).clip(-1, 1))
    return noise, rooms


def applied(operation: Operation, x: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
    """Return what an operation makes of a batch."""
    if operation.kind.startswith("mix_"):
        return operation(x, lengths, torch.eye(len(x)), random)[0]
    return operation(x, lengths, random)


def mel(front_end: LogMel, sound: Tensor) -> np.ndarray:
    """Return the log-mel [T, D] of the second clip of two."""
    return front_end(sound[1:], torch.tensor([sound.shape[1]]))[0][0].numpy()
