"""Which clips train, validate and test a run: corpus, scheme, fold and label source in one object."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ser import splits
from ser.errors import UserError, nearest
from ser.labels import label_set
from ser.metadata import Clip, Table, read_table

__all__ = ["LABEL_SOURCES", "Protocol"]

LABEL_SOURCES = ("intended",)  # intended: the emotion that the file name tells, which the actor was asked for


@dataclass(frozen=True)
class Protocol:
    """The data side of an experiment.

    Attributes:
        corpus: its name.
        scheme: one of the corpus's split schemes.
        fold: fold k tests and fold k + 1 validates; None for a fixed scheme.
        label_source: one of ``LABEL_SOURCES``.
    """

    corpus: str
    scheme: str
    fold: int | None = None
    label_source: str = "intended"

    def __post_init__(self) -> None:
        label_set(self.corpus)
        if self.label_source not in LABEL_SOURCES:
            raise UserError(
                f"labels/source '{self.label_source}' is unknown{nearest(self.label_source, LABEL_SOURCES)}"
            )

    @cached_property
    def table(self) -> Table:
        """The clips at hand."""
        return read_table(self.corpus)

    @cached_property
    def split(self) -> splits.Split:
        """The split as it lies on disk."""
        return splits.read_split(self.corpus, self.scheme)

    @cached_property
    def parts(self) -> dict[str, list[Clip]]:
        """The clips at hand by part, checked for leaking speakers."""
        where = str(splits.split_path(self.corpus, self.scheme))
        clips = self.table.clips  # first: a corpus that is not prepared says so
        parts = splits.parts_of(self.split, self.fold)
        return splits.select(clips, parts, where, self.split.speaker_independent)

    def part(self, name: str) -> list[Clip]:
        """Return the clips of one part.

        Raises:
            UserError: an unknown part, or one of which no clip is at hand.
        """
        if name not in splits.PARTS:
            raise UserError(f"part '{name}' is unknown{nearest(name, splits.PARTS)}")
        if not self.parts[name]:
            at_hand = ", ".join(f"{part} {len(clips)}" for part, clips in self.parts.items())
            raise UserError(
                f"{self.describe()}: no clip of part '{name}' is at hand ({at_hand}); "
                "choose another: just part=val eval RUN"
            )
        return self.parts[name]

    def class_counts(self, clips: Sequence[Clip]) -> list[int]:
        """Count ``clips`` by class, in the order of the model's outputs."""
        return splits.class_counts(clips, self.corpus)

    def describe(self) -> str:
        """Return one phrase such as ``ravdess emobox6 fold 1``."""
        return f"{self.corpus} {self.scheme}" + (f" fold {self.fold}" if self.fold is not None else "")
