"""A loaded model answers: files, samples, long recordings in windows, and speakers it has met.

It needs torch, numpy and soundfile; torchaudio joins where sound is not at 16 kHz.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser import audio, dist
from ser.audio import SAMPLE_RATE
from ser.enrolment import Enrolment
from ser.errors import UserError, nearest
from ser.export_index import FEWEST_SAMPLES, MOST_SAMPLES
from ser.samplers import bucketed

__all__ = ["Item", "Prediction", "Predictor"]

BATCH_SECONDS = {"cpu": 10.0, "cuda": 400.0}  # padded sound of a batch: more gains a CPU nothing
SILENCE = -60.0  # dB of full scale, root mean square: quieter than any room that is spoken in
AHEAD = 32  # files that are read before the first of them is answered, so that those of like length go together


@dataclass(frozen=True)
class Prediction:
    """The answer to one clip, or to one window of a recording.

    Attributes:
        source: the file, as it was named.
        start, end: of the sound that was heard, seconds.
        label: the most probable emotion; None where its probability is below the threshold, or a window is silent.
        probabilities: of each emotion, in the model's order, of sum 1.
        speaker: by whose statistics the model normalised; empty for none.
    """

    source: str
    start: float
    end: float
    label: str | None
    probabilities: dict[str, float]
    speaker: str = ""


@dataclass(frozen=True)
class Item:
    """A sound file to be answered.

    Attributes:
        path: of the file.
        name: what it is called in answers and messages.
        speaker: who speaks, where that is known.
    """

    path: Path
    name: str
    speaker: str = ""


class Predictor:
    """A loaded model.

    Args:
        model: TorchScript of an export, or a ``pipeline.Pipeline``.
        index: ``export.json``, or what is like it of a run.
        identity: SHA-256 of the model's weights, by which its speakers are known.
        device: that it is on.
        one_by_one: answer each clip alone: a model that rounds by the range of a batch.
        speakers: folder of enrolled speakers, see ``enrolment.speakers_folder``.
        sha256: of ``export.json``, which pins the version; empty for a run.

    Attributes:
        labels: the emotions, in the order of the probabilities.
        by_speaker: whether it can normalise by a speaker's statistics.
    """

    def __init__(
        self,
        model: Any,
        index: dict[str, Any],
        identity: str,
        device: str = "cpu",
        one_by_one: bool = False,
        speakers: Path | None = None,
        sha256: str = "",
    ):
        self.model = model
        self.sha256 = sha256
        self.index = index
        self.device = torch.device(device)
        self.labels: tuple[str, ...] = tuple(index["labels"])
        self.by_speaker: bool = index["by_speaker"]
        self.room = 0.0 if one_by_one else BATCH_SECONDS.get(self.device.type, 64.0) * SAMPLE_RATE
        self.enrolment = Enrolment(identity, speakers)

    def predict(
        self, sound: str | Path | np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE, threshold: float = 0.0
    ) -> Prediction:
        """Answer one clip of 0.05 to 30 s.

        Args:
            sound: a file that libsndfile reads, or samples [N] or [N, channels]: float in [-1, 1], or whole numbers
                that fill their type.
            sample_rate: of samples, Hz; a file knows its own.
            threshold: probability below which there is no label.

        Raises:
            UserError: not sound, too short, too long, or holding NaN or infinity.
        """
        if isinstance(sound, str | Path):
            return next(self.predict_files([Item(Path(sound), str(sound))], threshold))
        samples = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
        if samples.dtype.kind == "i":  # as soundfile and scipy read them when asked to
            samples = samples / -float(np.iinfo(samples.dtype).min)
        elif samples.dtype.kind == "u":  # silence lies in the middle, as in a WAV file of 8 bits
            middle = float(np.iinfo(samples.dtype).max // 2 + 1)
            samples = (samples - middle) / middle
        elif samples.dtype.kind != "f":
            raise UserError(f"sound of {samples.dtype}: expected samples that are float or whole numbers")
        samples = np.ascontiguousarray(samples[:, None] if samples.ndim == 1 else samples, dtype=np.float32)
        if samples.ndim != 2 or not samples.size or not np.isfinite(samples).all():
            raise UserError(f"sound of shape {list(samples.shape)}: expected finite samples [N] or [N, channels]")
        if sample_rate < 1 or sample_rate != int(sample_rate):
            raise UserError(f"sample_rate is {sample_rate}; expected a whole number of Hz above 0")
        clip = fitting("sound", audio.to_mono_16k(samples, sample_rate))
        return self.answers([("", 0.0, clip)], threshold)[0]

    def predict_files(
        self,
        items: Sequence[Item],
        threshold: float = 0.0,
        failed: Callable[[Item, UserError], None] | None = None,
        learn: bool = True,
    ) -> Iterator[Prediction]:
        """Yield the answers to files, in their order; those of like length are answered together.

        Args:
            items: the files. One with a speaker is taken into the speaker's statistics first, and answered by them.
            threshold: probability below which there is no label.
            failed: told of a file that cannot be answered, which is then left out; without it that is an error.
            learn: keep what the files tell of their speakers.

        Raises:
            UserError: a file that is not sound, too short or too long; or, before any file, a speaker where the model
                does not normalise by speaker, whose name cannot be one, or who is not enrolled and shall not be.
        """
        for name in sorted({item.speaker for item in items if item.speaker}):
            if learn:
                self.check_speaker(name)
            else:
                self.known(name)
        for first in range(0, len(items), AHEAD):
            clips: list[tuple[Item, np.ndarray]] = []
            for item in items[first : first + AHEAD]:
                try:
                    clips.append((item, self.read(item)))
                except UserError as error:
                    if failed is None:
                        raise
                    failed(item, error)
            alone = [(item.name, 0.0, clip) for item, clip in clips if not item.speaker]
            together = iter(self.answers(alone, threshold))
            for item, clip in clips:
                yield self.of_speaker(item, clip, threshold, learn) if item.speaker else next(together)

    def timeline(
        self, item: Item, window: float, hop: float, threshold: float = 0.0, silence: float = SILENCE
    ) -> Iterator[Prediction]:
        """Yield the answers to windows of a recording of any length, each as a file of its own would be answered.

        The recording is read as it is needed, so an hour takes the memory of a minute.

        Args:
            item: the recording.
            window: seconds that an answer hears, 0.05 to 30; the last may be shorter.
            hop: seconds from the beginning of one window to that of the next, at most ``window``.
            threshold: probability below which there is no label.
            silence: level below which a window has no label, root mean square in dB of full scale.

        Raises:
            UserError: not sound, or a window or hop out of range.
        """
        self.check_windows(window, hop)
        exists(item)
        speaker = (self.known(item.speaker),) if item.speaker else ()
        size = max(1, int(self.room / (window * SAMPLE_RATE)))
        waiting: list[tuple[str, float, np.ndarray]] = []

        def told() -> Iterator[Prediction]:
            answers = self.answers(waiting, threshold, item.speaker, *speaker)
            for answer, (_, _, clip) in zip(answers, waiting, strict=True):
                loud = float(np.mean(np.square(clip, dtype=np.float64))) >= 10 ** (silence / 10)
                yield answer if loud else replace(answer, label=None)

        with named(item):
            for start, clip in audio.windows(item.path, window, hop):
                if len(clip) >= FEWEST_SAMPLES:
                    waiting.append((item.name, start, clip))
                elif not start:
                    fitting(item.name, clip)  # raises: there is no more of it
                if len(waiting) == size:
                    yield from told()
                    waiting = []
        yield from told()

    def check_windows(self, window: float, hop: float) -> None:
        """Raise a UserError for windows that cannot be answered, or leave gaps."""
        if not FEWEST_SAMPLES <= window * SAMPLE_RATE <= MOST_SAMPLES:
            raise UserError(
                f"window is {window:g} s; expected {FEWEST_SAMPLES / SAMPLE_RATE} to {MOST_SAMPLES / SAMPLE_RATE:g} s"
            )
        if not 0 < hop <= window:
            raise UserError(f"hop is {hop:g} s; expected above 0 and at most the window of {window:g} s")

    def enrol(self, name: str, items: Sequence[Item]) -> int:
        """Take files into a speaker's statistics, all or none; return how many clips of theirs are known now.

        Raises:
            UserError: as ``predict_files``.
        """
        self.check_speaker(name)
        moments = [self.moments(clip) for clip in (self.read(item) for item in items)]
        return self.enrolment.add(name, moments).clips

    def read(self, item: Item) -> np.ndarray:
        """Return a file's sound float32 [N] at 16 kHz; too long a one is not even decoded."""
        exists(item)
        with named(item):
            long = audio.header(item.path).seconds
            if round(long * SAMPLE_RATE) > MOST_SAMPLES + SAMPLE_RATE:  # the header of an MP3 only estimates
                raise too_long(item.name, long)
            return fitting(item.name, audio.read(item.path))

    def answers(
        self,
        clips: Sequence[tuple[str, float, np.ndarray]],
        threshold: float,
        speaker: str = "",
        known: tuple[float, np.ndarray, np.ndarray] | None = None,
    ) -> list[Prediction]:
        """Return the answers to clips (name, start in seconds, sound [N]), in their order.

        Args:
            clips: at most a few minutes in all.
            threshold: probability below which there is no label.
            speaker: of all of them.
            known: count, mean and deviation of that speaker's clips.
        """
        sounds = [torch.from_numpy(sound) for _, _, sound in clips]

        def work(rows: Sequence[int]) -> list[list[float]]:
            heard = [sounds[row] for row in rows]
            return self.run(pad_sequence(heard, True), torch.tensor([len(sound) for sound in heard]), known).tolist()

        probabilities: dict[int, list[float]] = {}
        batches = bucketed([len(sound) for sound in sounds], round(self.room), similar=0.0)
        for rows, made in dist.as_memory_allows(batches, work):
            probabilities |= zip(rows, made, strict=True)
        return [
            self.prediction(name, start, len(clip) / SAMPLE_RATE, probabilities[row], threshold, speaker)
            for row, (name, start, clip) in enumerate(clips)
        ]

    def prediction(
        self, name: str, start: float, seconds: float, probabilities: list[float], threshold: float, speaker: str
    ) -> Prediction:
        """Put an answer into words."""
        best = int(np.argmax(probabilities))
        label = self.labels[best] if probabilities[best] >= threshold else None
        named = dict(zip(self.labels, probabilities, strict=True))
        return Prediction(name, round(start, 3), round(start + seconds, 3), label, named, speaker)

    def of_speaker(self, item: Item, clip: np.ndarray, threshold: float, learn: bool) -> Prediction:
        """Answer a clip by its speaker's statistics, the clip among them."""
        moments = self.moments(clip)
        if learn:
            speaker = self.enrolment.add(item.speaker, [moments])
        else:
            speaker = self.enrolment.read(item.speaker)
            speaker.add(*moments)
        known = float(speaker.clips), np.asarray(speaker.mean), speaker.std
        return self.answers([(item.name, 0.0, clip)], threshold, item.speaker, known)[0]

    def known(self, name: str) -> tuple[float, np.ndarray, np.ndarray]:
        """Return count, mean and deviation of an enrolled speaker's clips.

        Raises:
            UserError: not enrolled.
        """
        self.check_speaker(name)
        speaker = self.enrolment.read(name)
        if not speaker.clips:
            names = self.enrolment.names
            raise UserError(
                f"speaker '{name}' is not enrolled{nearest(name, names)}; let the model hear them first: "
                "ser enrol MODEL NAME FILE..."
            )
        return float(speaker.clips), np.asarray(speaker.mean), speaker.std

    def check_speaker(self, name: str) -> None:
        """Raise a UserError for a name that cannot be one, a damaged file, or a model that cannot use either."""
        self.enrolment.read(name)
        if not self.by_speaker:
            raise UserError(
                f"speaker '{name}': this model does not normalise by speaker; train one that does, as with "
                "'stats/normalisation = \"speaker\"', or leave the speaker out"
            )

    @torch.inference_mode()
    def run(
        self, sound: Tensor, lengths: Tensor, known: tuple[float, np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """Return probabilities [B, C] of sound [B, N] and its lengths [B]; ``known`` is of the speaker of all."""
        sound, lengths = sound.to(self.device), lengths.to(self.device)
        with torch.jit.optimized_execution(False):  # else the first answers wait for a compiler that gains nothing
            if known is None:
                out = self.model(sound, lengths)
            else:
                count, mean, std = (torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in known)
                rows = len(sound)
                each = (count.expand(rows), mean.expand(rows, *mean.shape), std.expand(rows, *std.shape))
                out = self.model.known(sound, lengths, *each)
        return out.cpu().numpy()

    @torch.inference_mode()
    def moments(self, clip: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return what a clip [N] tells of its speaker, see ``pipeline.Pipeline.moments``."""
        sound, lengths = torch.from_numpy(clip)[None].to(self.device), torch.tensor([len(clip)], device=self.device)
        with torch.jit.optimized_execution(False):
            items, mean, squares = self.model.moments(sound, lengths)
        return float(items[0]), mean[0].cpu().numpy(), squares[0].cpu().numpy()


def exists(item: Item) -> None:
    """Raise a UserError where there is no such file."""
    try:
        item.path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{item.name}: no such file") from error
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{item.name}: cannot be opened ({error.strerror})") from error


@contextmanager
def named(item: Item) -> Iterator[None]:
    """Let errors name a file as the user did."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(item.path), item.name)) from error


def fitting(name: str, clip: np.ndarray) -> np.ndarray:
    """Return a clip [N] at 16 kHz of a length that a model takes.

    Raises:
        UserError: too short or too long.
    """
    if len(clip) > MOST_SAMPLES:
        raise too_long(name, len(clip) / SAMPLE_RATE)
    if len(clip) < FEWEST_SAMPLES:
        seconds = len(clip) / SAMPLE_RATE
        raise UserError(f"{name}: {seconds:.3f} s of sound, expected at least {FEWEST_SAMPLES / SAMPLE_RATE} s")
    return clip


def too_long(name: str, seconds: float) -> UserError:
    """Say that a clip is too long, and what to do."""
    long = f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    limit = MOST_SAMPLES / SAMPLE_RATE
    return UserError(
        f"{name}: {long} of sound, expected at most {limit:g} s; cut it, or predict it in windows: --window 5"
    )
