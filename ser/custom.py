"""A corpus of your own: any CSV with a path and an emotion a row, better with a speaker too."""

import unicodedata
from pathlib import Path

from ser.errors import UserError
from ser.files import read_csv
from ser.labels import ALIASES, EMOTIONS

__all__ = ["read_clips"]

OPTIONAL = ("speaker", "sex", "age", "race", "ethnicity", "intensity", "statement", "repetition")
LONGEST_NAME = 200  # bytes; names of files have room for 255, endings of features included


def read_clips(table: Path) -> dict[str, dict[str, str]]:
    """Read a table of clips: clip -> fields of ``metadata.Clip``, ``path`` relative to the table's folder.

    Needed columns: ``path`` and ``emotion`` (of ``labels.EMOTIONS``, or another word for one of them). Known
    columns: ``speaker``, ``sex``, ``age``, ``race``, ``ethnicity``, ``intensity``, ``statement``, ``repetition``;
    others are passed over, and capitals and spaces in a column's name. The name of a clip is its path without the
    ending, slashes as underscores.

    Raises:
        UserError: not a table, an unknown emotion, a path that climbs out of the folder, a clip twice, two files of one
            name, a speaker in two spellings, no row.
    """
    if table.suffix.lower() != ".csv":
        raise UserError(f"{table}: expected a CSV with the columns path and emotion, better with speaker too")
    clips: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    spellings: dict[str, tuple[str, int]] = {}
    for line, row in read_csv(table, ("path", "emotion"), folded=True):
        where = f"{table}: line {line}"
        path = row["path"].strip()
        parts = path.split("/")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
            raise UserError(f"{where}: path {path!r} holds a control character; expected the name of a file")
        if not parts[-1] or path.startswith("/") or ".." in parts:
            raise UserError(f"{where}: path '{path}'; expected one below the folder of the table")
        word = row["emotion"].strip().lower()
        emotion = ALIASES.get(word, word)
        if emotion not in EMOTIONS:
            raise UserError(
                f"{where}: emotion '{row['emotion']}' is none of {', '.join(EMOTIONS)}; rename it, or leave the row out"
            )
        parts[-1] = parts[-1].rpartition(".")[0] or parts[-1]
        name = "_".join(part for part in parts if part not in ("", "."))
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"{where}: path '{path[:60]}...' is too long to name a clip; use shorter folders")
        if name in clips:
            first = clips[name]["path"]
            if first == path:
                raise UserError(f"{where}: clip '{name}' appears twice; keep one row of each clip")
            raise UserError(f"{where}: '{path}' and '{first}' (line {lines[name]}) have one name, {name}; rename one")
        fields = dict.fromkeys(OPTIONAL, "") | {"clip": name, "emotion": emotion, "path": path}
        for column in OPTIONAL:
            if column in row:
                fields[column] = row[column].strip()
        # One person under two names would be on both sides of a split.
        seen = (character for character in fields["speaker"] if unicodedata.category(character) != "Cf")
        speaker = fields["speaker"] = " ".join(unicodedata.normalize("NFC", "".join(seen)).split())
        known, before = spellings.setdefault(speaker.casefold(), (speaker, line))
        if known != speaker:
            raise UserError(
                f"{where}: speaker '{speaker}' is '{known}' in line {before}; write each speaker in one way"
            )
        clips[name], lines[name] = fields, line
    if not clips:
        raise UserError(f"{table}: no row below the header; expected a row a clip")
    return clips
