"""Extraction: the features of a corpus into their store, once, by any number of processes, through any interruption.

Clips of similar length go through the front end together. Threads read and decode the next batches while one is
computed, and files are written while the next one is. Which clips form a batch depends on the whole corpus
alone (but where memory does not hold it), so an interrupted extraction ends with the same content as an uninterrupted
one.
"""

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ser import audio, dist
from ser.errors import UserError
from ser.features import Features, check_spec, store_folder
from ser.files import append_line, locked, mark_of, read_json, read_lines, write_atomically, write_json
from ser.metadata import Clip, Table
from ser.progress import progress_bar
from ser.read_ahead import map_ahead, prefetch
from ser.samplers import bucketed

__all__ = ["decoded", "extract", "plan", "stored"]

PACKAGES = ("torch", "torchaudio", "transformers", "soundfile")
MADE_WITH = "made_with.json"
HALF_MAX = 65504.0  # largest float16


def extract(table: Table, features: Features, progress: bool = True) -> dict[str, int]:
    """Make the features of every clip of ``table`` that the store lacks, and see that the others are whole.

    Killed at any moment and started again, it ends with the same files as an uninterrupted run. The processes of a
    ``dist.process_group`` share the batches.

    Returns:
        ``{"made": ..., "remade": ..., "kept": ...}``; remade files were damaged, foreign, or of changed sound.

    Raises:
        UserError: unreadable sound, an encoder that cannot be loaded, a store made otherwise, or another
            extraction at work in it.
    """
    folder = store_folder(table.corpus, features)
    busy = f"{folder}: another process is extracting these features; wait for it or stop it"
    lock = locked(folder.with_name(f".{folder.name}.lock"), busy) if dist.is_main() else nullcontext()
    with lock:
        if dist.is_main():
            open_store(folder, table, features)
        dist.barrier()
        counts = extract_share(folder, table, features, progress and dist.is_main())
        counts = dict(zip(counts, dist.summed(counts.values()), strict=True))
        if dist.is_main():
            close_store(folder, table)
        dist.barrier()  # torchrun would end the main process if another ended badly now
    return counts


def plan(table: Table, features: Features) -> list[list[Clip]]:
    """Return the batches of a corpus, longest clips first."""
    lengths = [round(clip.seconds * audio.SAMPLE_RATE) for clip in table.clips]
    budget = round(features.front_end.batch_seconds * audio.SAMPLE_RATE)
    return [[table.clips[row] for row in rows] for rows in bucketed(lengths, budget)]


def extract_share(folder: Path, table: Table, features: Features, progress: bool) -> dict[str, int]:
    """Check and make the files of this process's batches, every ``world_size``-th one."""
    index, ending = read_json(folder / "index.json"), features.front_end.ending
    features.front_end.settle(index["spec"]["front_end"])
    known = index["files"]
    share = plan(table, features)[dist.rank() :: dist.world_size()]
    clips = [clip for batch in share for clip in batch]
    whole = {
        clip.clip
        for clip in progress_bar(clips, "check", len(clips), shown=progress)
        if is_whole(folder / f"{clip.clip}{ending}", table.sound_path(clip), known.get(clip.clip))
    }
    todo = [batch for batch in share if any(clip.clip not in whole for clip in batch)]
    made = [clip.clip for clip in clips if clip.clip not in whole]
    remade = sum(name in known or (folder / f"{name}{ending}").exists() for name in made)
    if todo:
        check_made_with(folder, index, features)
        journal = folder / f"journal-{dist.rank()}.jsonl"
        with progress_bar(None, f"extract {table.corpus} {features.store}", len(clips), shown=progress) as bar:
            bar.update(len(clips) - sum(map(len, todo)))
            for files in prefetch(compute(table, features, todo), depth=1):
                for name, frames, content, source in files:
                    if name not in whole:  # a batch is made whole, so that each clip comes out the same
                        put(folder / f"{name}{ending}", content)
                        entry = {"clip": name, "frames": frames, "crc32": zlib.crc32(content), "source_crc32": source}
                        append_line(journal, json.dumps(entry))
                bar.update(len(files))
    return {"made": len(made) - remade, "remade": remade, "kept": len(whole)}


File = tuple[str, int, bytes, int]  # clip, frames, content, checksum of its sound file


def compute(table: Table, features: Features, batches: Sequence[Sequence[Clip]]) -> Iterator[list[File]]:
    """Yield the files of each batch, ready to be written."""
    device = dist.device()
    if device.type == "cpu":
        dist.keep_freed_memory()
    front_end = features.front_end.to(device)
    for batch, (sound, lengths, sources) in zip(batches, map_ahead(partial(decoded, table), batches), strict=True):
        files = []
        work = partial(answers, front_end, sound, lengths, device)
        made = [each for _, part in dist.as_memory_allows([range(len(batch))], work) for each in part]
        for clip, (value, count), source in zip(batch, made, sources, strict=True):
            value = value if features.front_end.kind == "statistics" else value[..., :count, :]
            if not torch.isfinite(value).all():
                raise UserError(
                    f"{table.sound_path(clip)}: its features are not finite; "
                    "compute in 'encoder/precision = \"float32\"'"
                )
            files.append((clip.clip, count, content_of(stored(value, features), features.front_end.ending), source))
        yield files


def answers(
    front_end: torch.nn.Module, sound: torch.Tensor, lengths: torch.Tensor, device: torch.device, rows: Sequence[int]
) -> list[tuple[torch.Tensor, int]]:
    """Return what a front end makes of some clips of a batch, and of how many frames."""
    own = lengths[rows]
    with torch.inference_mode():
        values, frames = front_end(sound[rows, : own.max()].to(device, non_blocking=True), own.to(device))
        return list(zip(values.cpu(), frames.tolist(), strict=True))


def stored(values: torch.Tensor, features: Features) -> torch.Tensor:
    """Return values in the type that the store keeps; what half precision cannot hold is cut off."""
    if features.dtype == "float32":
        return values
    return values.clamp(-HALF_MAX, HALF_MAX).half()


def content_of(value: torch.Tensor, ending: str) -> bytes:
    """Return the bytes of a file that holds one tensor."""
    buffer = io.BytesIO()
    if ending == ".pt":
        torch.save(value.clone(), buffer)  # without the rest of the batch, which a view would bring along
    else:
        np.save(buffer, value.numpy())
    return buffer.getvalue()


def decoded(table: Table, batch: Sequence[Clip]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return a batch's padded sound [B, N], its lengths long [B] and the checksums of its files."""
    paths = [table.sound_path(clip) for clip in batch]
    sounds = [torch.from_numpy(audio.read(path)) for path in paths]
    lengths = torch.tensor([len(sound) for sound in sounds])
    return pad_sequence(sounds, batch_first=True), lengths, [zlib.crc32(path.read_bytes()) for path in paths]


def open_store(folder: Path, table: Table, features: Features) -> None:
    """Begin a store or open one again; one that was made otherwise is refused.

    Raises:
        UserError: see ``check_spec``.
    """
    path = folder / "index.json"
    index: dict[str, Any] = {"files": {}}
    if path.is_file():
        index = read_json(path)
        check_spec(folder, index, features)
    else:
        spec = features.spec
        if spec["front_end"].get("precision") == "auto":
            spec["front_end"]["precision"] = features.front_end.resolved(dist.device())
        index["spec"] = spec
    made = read_journals(folder)
    write_index(folder, table, index, index["files"] | made, complete=False, anew=bool(made))
    for journal in folder.glob("journal-*.jsonl"):  # of an earlier extraction, and now in the index
        journal.unlink()


def close_store(folder: Path, table: Table) -> None:
    """Join what the processes have written down and remove what only an unfinished store needs."""
    index = read_json(folder / "index.json")
    if (folder / MADE_WITH).is_file():
        index["made_with"] = read_json(folder / MADE_WITH)
    made = read_journals(folder)
    files = {}
    for clip in table.clips:
        if (entry := made.get(clip.clip) or index["files"].get(clip.clip)) is not None:
            files[clip.clip] = entry | {"source": mark_of(table.sound_path(clip))}
    write_index(folder, table, index, files, complete=True, anew=bool(made))
    for left in [*folder.glob("journal-*.jsonl"), *folder.glob(".*.tmp"), folder / MADE_WITH]:
        left.unlink(missing_ok=True)


def check_made_with(folder: Path, index: dict[str, Any], features: Features) -> None:
    """Raise a UserError where the front end is not the one that made the other files of the store.

    A new store records it: the first process in a file, the end of the extraction in the index.
    """
    path, now = folder / MADE_WITH, features.front_end.made_with
    before = index["made_with"] or (read_json(path) if path.is_file() else None)
    if before is None:
        write_json(path, now)
    elif before != now:
        raise UserError(
            f"{folder}: made with other weights: {json.dumps(before)}; now: {json.dumps(now)}; "
            "bring the old weights back, or remove the folder"
        )


def read_journals(folder: Path) -> dict[str, dict]:
    """Return what the journals of an unfinished store say about each file."""
    known: dict[str, dict] = {}
    for journal in sorted(folder.glob("journal-*.jsonl")):
        known |= {entry.pop("clip"): entry for entry in read_lines(journal) if "clip" in entry}
    return known


def is_whole(path: Path, source: Path, entry: dict | None) -> bool:
    """Say whether a clip's file is the one that the store wrote, from the sound that is there now."""
    if entry is None:
        return False
    try:
        if source.is_file() and zlib.crc32(source.read_bytes()) != entry["source_crc32"]:
            return False
        return zlib.crc32(path.read_bytes()) == entry["crc32"]
    except (OSError, KeyError, TypeError):  # gone, or an entry that is not of this store
        return False


def put(path: Path, content: bytes) -> None:
    """Write a file whole, without waiting for the disk: the checksum tells whether it arrived."""
    write_atomically(path, lambda file: file.write(content), wait=False)


def write_index(
    folder: Path, table: Table, index: dict[str, Any], files: dict[str, dict], complete: bool, anew: bool
) -> None:
    """Write ``index.json``: how the store was made, of which clips, and each file's checksum.

    Versions are those that made its files; where some are made ``anew`` by others, those of before stay beside them.
    """
    names = sorted(clip.clip for clip in table.clips)
    versions = {package: version(package) for package in PACKAGES}
    before = index.get("versions", versions)
    if not anew:
        versions = before
    earlier = [known for known in index.get("earlier_versions", []) if known != versions]
    if before != versions and before not in earlier:
        earlier.append(before)
    write_json(
        folder / "index.json",
        {
            "spec": index["spec"],
            "made_with": index.get("made_with", {}),
            "complete": complete,
            "corpus": table.corpus,
            "versions": versions,
            "earlier_versions": earlier,
            "clips": len(names),
            "clips_sha256": sha256("".join(f"{name}\n" for name in names).encode()).hexdigest(),
            "files": {name: files[name] for name in sorted(files)},
        },
    )
