"""A corpus of your own: any CSV with a path and an emotion a row, better with a speaker too."""

from pathlib import Path

from ser.errors import UserError, nearest
from ser.files import read_csv
from ser.labels import ALIASES, EMOTIONS

__all__ = ["read_clips"]

OPTIONAL = ("speaker", "sex", "age", "race", "ethnicity", "intensity", "statement", "repetition")


def read_clips(table: Path) -> dict[str, dict[str, str]]:
    """Read a table of clips: clip -> fields of ``metadata.Clip``, ``path`` relative to the table's folder.

    Needed columns: ``path`` and ``emotion`` (of ``labels.EMOTIONS``, or another word for one of them). Known
    columns: ``speaker``, ``sex``, ``age``, ``race``, ``ethnicity``, ``intensity``, ``statement``, ``repetition``;
    others are passed over. The name of a clip is its path without the ending, slashes as underscores.

    Raises:
        UserError: not a table, an unknown emotion, a path that climbs out of the folder, a clip twice, no row.
    """
    if table.suffix.lower() != ".csv":
        raise UserError(f"{table}: expected a CSV with the columns path and emotion, better with speaker too")
    clips: dict[str, dict[str, str]] = {}
    for line, row in read_csv(table, ("path", "emotion")):
        path = row["path"].strip()
        parts = path.split("/")
        if not parts[-1] or path.startswith("/") or ".." in parts:
            raise UserError(f"{table}: line {line}: path '{path}'; expected one below the folder of the table")
        word = row["emotion"].strip().lower()
        emotion = ALIASES.get(word, word)
        if emotion not in EMOTIONS:
            hint = nearest(word, [*EMOTIONS, *ALIASES])
            raise UserError(f"{table}: line {line}: emotion '{row['emotion']}' is unknown{hint}")
        parts[-1] = parts[-1].rpartition(".")[0] or parts[-1]
        name = "_".join(part for part in parts if part not in ("", "."))
        if name in clips:
            raise UserError(f"{table}: line {line}: clip '{name}' stands twice; keep one row of each clip")
        fields = dict.fromkeys(OPTIONAL, "") | {"clip": name, "emotion": emotion, "path": path}
        for column in OPTIONAL:
            if column in row:
                fields[column] = row[column].strip()
        clips[name] = fields
    if not clips:
        raise UserError(f"{table}: no row below the header; expected a row a clip")
    return clips
