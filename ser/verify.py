"""See that raw recordings are whole before anything is built on them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ser import audio, custom
from ser.corpora import Corpus, Fields, Official
from ser.errors import UserError, some
from ser.files import files_in
from ser.progress import cores, progress_bar

__all__ = ["Found", "Report", "check", "find_sound", "foreign_clips", "missing_clips", "table"]

VIDEO_SUFFIXES = (".mp4", ".avi", ".flv", ".mov", ".mkv")
SILENT = 1e-4  # peak, relative to full scale: -80 dB
CLIPPED = 0.999  # of full scale; this many samples in a row of at least...
CLIPPED_RUN = 4  # ...samples count as clipping
OFFSET = 0.01  # mean, relative to full scale, that counts as a DC offset


@dataclass
class Found:
    """The files of a raw folder, sorted by what they are.

    Attributes:
        clips: clip name -> file.
        fields: clip name -> what its name, or the table of a custom corpus, tells.
        left_out: what a file is (song, video) -> how many were left out.
        unmatched: sound files whose name no grammar matches.
        doubled: files that repeat a clip already found, byte for byte.
    """

    clips: dict[str, Path] = field(default_factory=dict)
    fields: dict[str, Fields] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)
    unmatched: list[Path] = field(default_factory=list)
    doubled: list[Path] = field(default_factory=list)


def find_sound(corpus: Corpus, raw: Path) -> Found:
    """Walk a raw folder and match every sound file with the corpus's grammar.

    Raises:
        UserError: no such folder, no clip in it, or two different files of one clip.
    """
    if corpus.name == "custom":
        listed = custom.read_clips(raw)
        return Found({name: raw.parent / clip["path"] for name, clip in listed.items()}, listed)
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; expected the raw recordings of {corpus.title}")
    found = Found()
    for path in files_in(raw):
        kind = corpus.left_out(path.stem)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.left_out[kind or "video"] += 1
        elif path.suffix.lower() not in audio.SOUND_SUFFIXES:
            continue
        elif kind:
            found.left_out[kind] += 1
        elif (fields := corpus.parse(path.stem)) is None:
            found.unmatched.append(path)
        elif (first := found.clips.setdefault(fields["clip"], path)) is not path:
            if first.read_bytes() != path.read_bytes():
                raise UserError(f"{path}: a second file of clip '{fields['clip']}', beside {first}; keep one of them")
            found.doubled.append(path)
        else:
            found.fields[fields["clip"]] = fields
    if not found.clips:
        other = f" (but {some(found.unmatched, 3)})" if found.unmatched else ""
        example = next(iter(corpus.official()), "03a01Wa")
        raise UserError(f"{raw}: no sound file of {corpus.title} here{other}; expected names such as {example}.wav")
    return found


@dataclass(frozen=True)
class Finding:
    """What one file turned out to be; ``error`` is empty where it could be read."""

    clip: str
    error: str = ""
    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    subtype: str = ""
    content: str = ""  # hash of the decoded samples
    compared: bool = False  # with the checksum of the official file
    flags: tuple[str, ...] = ()


def check_file(clip: str, path: Path, official: Official) -> Finding:
    """Decode one file whole and look for what makes sound worthless or odd."""
    try:
        sound, info = audio.inspect(path)
    except UserError as error:
        return Finding(clip, error=str(error))
    flags = []
    compared = bool(official.sha256) and path.suffix.lower() == ".wav"
    if compared:
        data = path.read_bytes()
        if len(data) != official.size or hashlib.sha256(data).hexdigest() != official.sha256:
            flags.append("not the official file (checksum)")
    if np.abs(sound).max() < SILENT:
        flags.append("silent")
    if longest_run(np.abs(sound).max(axis=1) >= CLIPPED) >= CLIPPED_RUN:
        flags.append("clipped")
    if abs(float(sound.mean())) > OFFSET:
        flags.append("DC offset")
    if info.sample_rate < audio.SAMPLE_RATE:
        flags.append(f"rate below {audio.SAMPLE_RATE} Hz")
    if info.channels > 1:
        flags.append("stereo" if info.channels == 2 else f"{info.channels} channels")
    content = hashlib.blake2b(np.ascontiguousarray(sound).tobytes(), digest_size=16).hexdigest()
    return Finding(
        clip, "", info.seconds, info.sample_rate, info.channels, info.subtype, content, compared, tuple(flags)
    )


def longest_run(mask: np.ndarray) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@dataclass
class Report:
    """The outcome of ``check``: what was found, what is wrong (``errors``) and what is merely odd (``notes``)."""

    corpus: str
    raw: Path
    official: int
    found: Found
    findings: dict[str, Finding]
    missing: list[str]
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound_hashes(self) -> dict[str, str]:
        """Clip -> hash of its decoded samples."""
        return {clip: finding.content for clip, finding in self.findings.items() if finding.content}

    def as_dict(self) -> dict:
        """Return the report as JSON for ``data/<corpus>/verify.json``."""
        good = [finding for finding in self.findings.values() if not finding.error]
        return {
            "corpus": self.corpus,
            "ok": not self.errors,
            "clips": len(self.findings),
            "official": self.official,
            "missing": self.missing,
            "left_out": dict(self.found.left_out),
            "hours": round(sum(finding.seconds for finding in good) / 3600, 4),
            "sample_rates": dict(Counter(str(finding.sample_rate) for finding in good)),
            "channels": dict(Counter(str(finding.channels) for finding in good)),
            "checksums": sum(finding.compared for finding in good),
            "errors": self.errors,
            "notes": self.notes,
            "flags": {finding.clip: list(finding.flags) for finding in good if finding.flags},
        }


def check(corpus: Corpus, raw: Path, allow_missing: bool = False, progress: bool = True) -> Report:
    """Verify the recordings in ``raw`` against the grammar and the official list, over all cores.

    Args:
        corpus: what they should be.
        raw: the folder, searched in depth.
        allow_missing: count missing clips among the notes, not the errors.
        progress: show a bar on stderr.

    Raises:
        UserError: as ``find_sound``.
    """
    found = find_sound(corpus, raw)
    official = corpus.official()
    workers = cores()
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(
            check_file,
            found.clips.keys(),
            found.clips.values(),
            [official.get(clip, Official()) for clip in found.clips],
            chunksize=16,
        )
        bar = progress_bar(jobs, f"verify {corpus.name}", len(found.clips), shown=progress)
        findings = {finding.clip: finding for finding in bar}
    _, missing = missing_clips(corpus, found)
    report = Report(corpus.name, raw, len(official) or corpus.expected or len(findings), found, findings, missing)
    judge(report, corpus, allow_missing)
    return report


def judge(report: Report, corpus: Corpus, allow_missing: bool) -> None:
    """Sort what was found into errors and notes."""
    findings = report.findings.values()
    report.errors += [finding.error for finding in findings if finding.error]
    report.errors += [
        f"{path}: no grammar of {corpus.title} matches this name; rename it or move it away"
        for path in report.found.unmatched
    ]
    if foreign := foreign_clips(corpus, report.found):
        report.errors.append(
            f"{len(foreign)} clips are not on the official list of {corpus.title}: {some(foreign)}; move them away"
        )
    if corpus.expected and len(report.findings) != corpus.expected:
        text = f"{len(report.findings)} clips, expected {corpus.expected} of {corpus.title}"
        if allow_missing:
            report.notes.append(text)
        else:
            report.errors.append(f"{text}; bring the others, or go on: just allow_missing=1 verify {corpus.name}")
    if unknown := sum(not fields["speaker"] for fields in report.found.fields.values()):
        report.notes.append(f"{unknown} clips without a speaker: no speaker-independent figure can be made with them")
    if report.missing:
        text = f"{len(report.missing)} of {report.official} clips are missing: {some(report.missing)}"
        if allow_missing:
            report.notes.append(text)
        else:
            report.errors.append(f"{text}; bring them, or go on without: just allow_missing=1 verify {corpus.name}")
    if converted := [f.clip for f in findings if corpus.sample_rate not in (0, f.sample_rate) and not f.error]:
        report.notes.append(
            f"not at the {corpus.sample_rate} Hz of the official files: {len(converted)} clips, kept: {some(converted)}"
        )
    if report.found.doubled:
        report.notes.append(f"{len(report.found.doubled)} files repeat another byte for byte and are left out")
    by_flag: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for flag in finding.flags:
            by_flag[flag].append(finding.clip)
    report.notes += [f"{flag}: {len(clips)} clips, kept: {some(clips)}" for flag, clips in sorted(by_flag.items())]
    report.notes += [f"identical sound, kept: {some(group)}" for group in duplicates(findings)]
    odd = {clip: why for clip, why in corpus.known_odd.items() if clip in report.findings}
    report.notes += [f"known: {clip}: {why}" for clip, why in sorted(odd.items())]


def missing_clips(corpus: Corpus, found: Found) -> tuple[int, list[str]]:
    """Return how many official clips are not there, and their names where a list is published."""
    names = [clip for clip in corpus.official() if clip not in found.clips]
    return len(names) or max(0, corpus.expected - len(found.clips)), names


def foreign_clips(corpus: Corpus, found: Found) -> list[str]:
    """Return the clips that are not on a corpus's official list, where it has one."""
    official = corpus.official()
    return [clip for clip in found.clips if official and clip not in official]


def duplicates(findings: Iterable[Finding]) -> list[list[str]]:
    """Return the groups of clips whose decoded samples are the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.content:
            groups[finding.content].append(finding.clip)
    return sorted(sorted(clips) for clips in groups.values() if len(clips) > 1)


def table(report: Report, limit: int = 20) -> str:
    """Return the report for people: counts, then notes, then the first errors."""
    facts = report.as_dict()
    seconds = sorted(finding.seconds for finding in report.findings.values() if not finding.error)
    span = f", {seconds[0]:.2f} to {seconds[-1]:.2f} s" if seconds else ""
    rows = {
        "folder": report.raw,
        "clips": f"{facts['clips']} of {report.official}",
        "sound": f"{facts['hours']:.2f} h{span}",
        "rates": ", ".join(f"{rate} Hz: {count}" for rate, count in facts["sample_rates"].items()),
        "channels": ", ".join(f"{channels}: {count}" for channels, count in facts["channels"].items()),
        "checksums": f"{facts['checksums']} files compared with the official ones"
        if facts["checksums"]
        else "none compared",
        "left out": ", ".join(f"{kind}: {count}" for kind, count in facts["left_out"].items()) or "nothing",
    }
    lines = [f"{name:<10}{value}" for name, value in rows.items()]
    lines += [f"note      {note}" for note in report.notes]
    lines += [f"ERROR     {error}" for error in report.errors[:limit]]
    if len(report.errors) > limit:
        lines.append(f"          and {len(report.errors) - limit} more errors")
    return "\n".join(lines)
