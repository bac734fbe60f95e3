"""From verified recordings to rows of the metadata table."""

from pathlib import Path
from typing import Any

from ser import audio, verify
from ser.corpora import Corpus, demographics
from ser.errors import UserError, some
from ser.metadata import COLUMNS, Clip
from ser.schemes import FEWEST, make_split

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
    if foreign := verify.foreign_clips(corpus, found):
        raise UserError(f"{found.clips[foreign[0]]}: not on the official list of {corpus.title}; move it away")
    missing, named = verify.missing_clips(corpus, found)
    if missing and not allow_missing:
        raise UserError(
            f"{raw}: {missing} of {len(corpus.official()) or corpus.expected} clips are missing"
            f"{': ' + some(named) if named else ''}; "
            f"bring them, or go on without: just allow_missing=1 metadata {corpus.name}"
        )
    speakers = demographics(raw) if corpus.name == "crema_d" else {}
    few = len({fields["speaker"] or name for name, fields in found.fields.items()}) < FEWEST
    # A table too small to be split can still be scored on.
    parts = {} if few else make_split(corpus.name, "holdout", list(found.fields.values())).of
    folder = raw.parent if raw.is_file() else raw
    clips = []
    for name, path in sorted(found.clips.items()):
        if not is_text(path):
            raise UserError(f"{str(path)!r}: the name is not UTF-8; rename the folder or the file")
        info = audio.header(path)
        fields = found.fields[name]
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | fields | speakers.get(fields["speaker"], {})
        row |= {"path": path.relative_to(folder).as_posix(), "corpus": corpus.name, "split": parts.get(name, "")}
        row |= {"seconds": info.seconds, "sample_rate": info.sample_rate, "channels": info.channels}
        clips.append(Clip(**row))
    return clips, missing


def is_text(path: Path) -> bool:
    """Say whether a path can be written down: names from old archives may be of another encoding."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False
