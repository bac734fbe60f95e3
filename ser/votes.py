"""What CREMA-D's raters heard: their votes for each clip, and the labels that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.errors import UserError
from ser.files import corpus_folder, read_csv, write_csv
from ser.labels import label_set

__all__ = ["LABEL_SOURCES", "Votes", "plurality", "read_votes", "store_votes", "stored_votes"]

# intended: the emotion of the file name, which the actor was asked for
# voice: the plurality of the raters who only heard the clip; a tie has no label, its clip is left out
# multimodal: the plurality of the raters who heard and saw it; ties as above
# voice_soft: trained on the distribution of the votes on the voice, scored as `voice`
LABEL_SOURCES = ("intended", "voice", "multimodal", "voice_soft")

LETTERS = {"angry": "A", "disgust": "D", "fearful": "F", "happy": "H", "neutral": "N", "sad": "S"}
MODALITIES = {"1": "voice", "3": "multimodal"}  # first digit of a row's id in tabulatedVotes.csv; 2 is the face
LABELS = label_set("crema_d")
COLUMNS = ("clip", *(f"{kind}_{label}" for kind in MODALITIES.values() for label in LABELS))


@dataclass(frozen=True)
class Votes:
    """Votes for one clip, counted in the order of the corpus's labels.

    Attributes:
        voice: of the raters who only heard it, int [C].
        multimodal: of the raters who heard and saw it, int [C].
    """

    voice: tuple[int, ...]
    multimodal: tuple[int, ...]


def plurality(counts: Sequence[int]) -> str:
    """Return the label with the most votes, or an empty text where there is a tie."""
    most = max(counts)
    winners = [label for label, count in zip(LABELS, counts, strict=True) if count == most]
    return winners[0] if len(winners) == 1 and most > 0 else ""


def find_votes(raw: Path) -> Path | None:
    """Return ``tabulatedVotes.csv`` in a raw folder, the one above, or its ``processedResults``; None without it."""
    folders = (raw, raw.parent, raw / "processedResults", raw.parent / "processedResults")
    return next((path for folder in folders if (path := folder / "tabulatedVotes.csv").is_file()), None)


def read_votes(path: Path) -> dict[str, Votes]:
    """Read CREMA-D's ``tabulatedVotes.csv``: clip -> votes.

    Raises:
        UserError: not that table, a count that is not a number, or a clip without one of the two modalities.
    """
    counts: dict[str, dict[str, tuple[int, ...]]] = {}
    for line, row in read_csv(path, ("", *LETTERS.values(), "fileName")):
        kind = MODALITIES.get(row[""][:1])
        if kind is None:
            continue
        try:
            counts.setdefault(row["fileName"], {})[kind] = tuple(int(row[LETTERS[label]]) for label in LABELS)
        except ValueError as error:
            raise UserError(f"{path}: line {line}: votes must be whole numbers ({error})") from error
        if sum(counts[row["fileName"]][kind]) < 1:
            raise UserError(f"{path}: line {line}: clip '{row['fileName']}' has no vote at all; expected some")
    for clip, kinds in counts.items():
        if len(kinds) < len(MODALITIES):
            raise UserError(f"{path}: clip '{clip}' lacks votes on the voice alone or on voice and face")
    return {clip: Votes(**kinds) for clip, kinds in counts.items()}


def store_votes(corpus: str, raw: Path) -> int:
    """Keep the votes that lie beside the sound in ``data/<corpus>/votes.csv``; return for how many clips."""
    source = find_votes(raw)
    if source is None:
        return 0
    votes = read_votes(source)
    rows = [
        dict(zip(COLUMNS, (clip, *votes[clip].voice, *votes[clip].multimodal), strict=True)) for clip in sorted(votes)
    ]
    write_csv(corpus_folder(corpus) / "votes.csv", COLUMNS, rows)
    return len(votes)


def stored_votes(corpus: str) -> dict[str, Votes]:
    """Return clip -> votes as ``store_votes`` kept them, or an empty dictionary.

    Raises:
        UserError: the file is damaged.
    """
    path = corpus_folder(corpus) / "votes.csv"
    if not path.is_file():
        return {}
    votes = {}
    for line, row in read_csv(path, COLUMNS):
        try:
            numbers = [int(row[column]) for column in COLUMNS[1:]]
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; make it again: just metadata {corpus}") from error
        votes[row["clip"]] = Votes(tuple(numbers[: len(LABELS)]), tuple(numbers[len(LABELS) :]))
    return votes
