"""From verified recordings to rows of the metadata table."""

from pathlib import Path
from typing import Any

from ser import audio, verify
from ser.corpora import Corpus, demographics
from ser.errors import UserError, some
from ser.metadata import COLUMNS, Clip
from ser.schemes import make_split

__all__ = ["clips_of"]


def clips_of(corpus: Corpus, raw: Path, allow_missing: bool = False) -> tuple[list[Clip], int]:
    """Return the clips in a raw folder, and how many official clips are not there.

    Only headers are read; ``verify.check`` decodes the sound.

    Raises:
        UserError: no recordings, two files of one clip, a name that no grammar matches, an unreadable header,
            or missing clips without ``allow_missing``.
    """
    found = verify.find_sound(corpus, raw)
    if found.unmatched:
        raise UserError(
            f"{found.unmatched[0]}: no grammar of {corpus.title} matches this name "
            f"({len(found.unmatched)} such files); rename or move them away"
        )
    official = corpus.official()
    if foreign := [clip for clip in found.clips if clip not in official]:
        raise UserError(f"{found.clips[foreign[0]]}: not on the official list of {corpus.title}; move it away")
    missing = [clip for clip in official if clip not in found.clips]
    if missing and not allow_missing:
        raise UserError(
            f"{raw}: {len(missing)} of {len(official)} clips are missing: {some(missing)}; "
            f"bring them, or go on without: just allow_missing=1 metadata {corpus.name}"
        )
    speakers = demographics(raw)
    parts = make_split(corpus.name, "holdout").of
    clips = []
    for name, path in sorted(found.clips.items()):
        info = audio.header(path)
        fields = corpus.parse(path.stem) or {}
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | fields | speakers.get(fields["speaker"], {})
        row |= {"path": path.relative_to(raw).as_posix(), "corpus": corpus.name, "split": parts.get(name, "")}
        row |= {"seconds": info.seconds, "sample_rate": info.sample_rate, "channels": info.channels}
        clips.append(Clip(**row))
    return clips, len(missing)
