"""Which clips train, validate and test a run, and by which labels: corpus, scheme, fold and label source in one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ser import splits
from ser.errors import UserError, nearest, some
from ser.labels import CALM_POLICIES, label_set, shared_labels
from ser.metadata import Clip, Table, read_table, sound_facts
from ser.votes import LABEL_SOURCES, Votes, plurality, stored_votes

__all__ = ["Protocol"]


@dataclass(frozen=True)
class Protocol:
    """The data side of an experiment.

    Attributes:
        corpus: its name.
        scheme: one of the corpus's split schemes.
        fold: fold k tests and fold k + 1 validates; None for a fixed scheme.
        label_source: one of ``votes.LABEL_SOURCES``; all but ``intended`` need CREMA-D's votes.
        drop: clips to leave out, such as those that are known to be odd.
        extra: other corpora all of whose clips train along, by their intended emotions: those that are classes here,
            and calm as ``calm`` says. Figures carry the tag ``extra-<corpus>``.
        classes: the emotions to tell apart; None for all of the corpus. Clips of others are neither trained on nor
            scored. Figures carry the tag ``classes-<number>``.
        calm: one of ``labels.CALM_POLICIES``: what calm is where it is no class of its own.

    Raises:
        UserError: an unknown label source or class, or another corpus that is named twice.
    """

    corpus: str
    scheme: str
    fold: int | None = None
    label_source: str = "intended"
    drop: Sequence[str] = ()
    extra: Sequence[str] = ()
    classes: Sequence[str] | None = None
    calm: str = CALM_POLICIES[0]

    def __post_init__(self) -> None:
        shared_labels(self.labels, label_set(self.corpus), self.calm)  # raises
        if self.label_source not in LABEL_SOURCES:
            raise UserError(
                f"labels/source '{self.label_source}' is unknown{nearest(self.label_source, LABEL_SOURCES)}"
            )

        for corpus in self.extra:
            label_set(corpus)
            if corpus == self.corpus or list(self.extra).count(corpus) > 1:
                raise UserError(f"data/extra names {corpus}, which trains already; name each other corpus once")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the model's outputs."""
        return label_set(self.corpus, self.classes)

    @cached_property
    def class_of(self) -> dict[str, str]:
        """The class that an emotion of the corpus counts as; those that it does not hold are left out."""
        return shared_labels(self.labels, label_set(self.corpus), self.calm)[1]

    @cached_property
    def table(self) -> Table:
        """The clips at hand, without those that are dropped.

        Raises:
            UserError: as ``metadata.read_table``, or clips to drop that are not at hand.
        """
        table = read_table(self.corpus)
        unknown = set(self.drop) - {clip.clip for clip in table.clips}
        if unknown:
            raise UserError(f"Protocol.drop names clips that are not at hand: {some(sorted(unknown))}")
        return replace(table, clips=tuple(clip for clip in table.clips if clip.clip not in self.drop))

    @cached_property
    def split(self) -> splits.Split:
        """The split as it lies on disk."""
        return splits.read_split(self.corpus, self.scheme)

    @property
    def tags(self) -> list[str]:
        """What a reader must know of every figure made with this protocol."""
        tags = [] if self.split.speaker_independent else ["speaker-dependent"]
        every = label_set(self.corpus)
        tags += [] if self.labels == every else [f"classes-{len(self.labels)}"]
        calm = any(clip.emotion == "calm" for table in self.tables.values() for clip in table.clips)
        if calm and "calm" not in self.labels and "neutral" in self.labels:
            tags.append("calm-left-out" if self.calm == "leave_out" else "calm-as-neutral")
        return tags if all(clip.speaker for clip in self.table.clips) else [*tags, "speakers-unknown"]

    @property
    def speaker_independent(self) -> bool:
        """Whether it is known that no speaker is in two parts."""
        return self.split.speaker_independent and all(clip.speaker for clip in self.table.clips)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The clips at hand of this corpus and of those that train along."""
        return {self.corpus: self.table} | {corpus: read_table(corpus) for corpus in self.extra}

    @cached_property
    def extra_clips(self) -> list[Clip]:
        """Clips of other corpora that train along; their speakers are named after their corpus, too.

        Raises:
            UserError: two corpora have clips of one name.
        """
        clips = []
        for corpus in self.extra:
            _, mapping = shared_labels(self.labels, label_set(corpus), self.calm)
            known = (clip for clip in self.tables[corpus].clips if clip.emotion in mapping)
            clips += [
                replace(clip, emotion=mapping[clip.emotion], speaker=clip.speaker and f"{corpus}:{clip.speaker}")
                for clip in known
            ]
        count = Counter(clip.clip for clip in [*self.table.clips, *clips])
        if twice := sorted(name for name, times in count.items() if times > 1):
            raise UserError(f"data/extra: clips of the same name in two corpora: {some(twice)}; rename them")
        return clips

    @cached_property
    def votes(self) -> dict[str, Votes]:
        """The raters' votes for the clips at hand; empty where the corpus or this machine has none."""
        return stored_votes(self.corpus)

    @cached_property
    def members(self) -> dict[str, list[Clip]]:
        """The clips at hand by part, whether the label source labels them or not.

        Raises:
            UserError: a speaker or a recording in two parts.
        """
        where = str(splits.split_path(self.corpus, self.scheme))
        clips = self.table.clips  # first: a corpus that is not prepared says so
        part_of = splits.parts_of(self.split, self.fold)
        members = splits.select(clips, part_of, where, self.split.speaker_independent)
        members["train"] = [*members["train"], *self.extra_clips]
        if self.split.speaker_independent:
            remedy = "leave one of them out ('Protocol.drop = [\"NAME\"]'), or its corpus (data/extra)"
            splits.check_same_sound(members, where, remedy)
        return members

    @cached_property
    def parts(self) -> dict[str, list[Clip]]:
        """The labelled clips at hand by part."""
        return {part: self.labelled(members, part) for part, members in self.members.items()}

    def labelled(self, clips: Sequence[Clip], part: str) -> list[Clip]:
        """Return clips with the class that the label source gives them, without those it gives none.

        A clip on which the raters tie has no hard label; it still trains where targets are soft.
        """
        own = [clip for clip in clips if clip.corpus == self.corpus]
        others = [clip for clip in clips if clip.corpus != self.corpus]
        if self.label_source != "intended":
            self.check_votes(own)
            own = [replace(clip, emotion=plurality(self.counts(clip))) for clip in own]
        soft = self.label_source == "voice_soft" and part == "train"
        kept = [clip for clip in own if clip.emotion in self.class_of or (soft and self.is_tie(clip))]
        return [*(replace(clip, emotion=self.class_of.get(clip.emotion, "")) for clip in kept), *others]

    def is_tie(self, clip: Clip) -> bool:
        """Say whether raters were at odds on a clip, with a class among the emotions that most of them heard."""
        counts = dict(zip(label_set(self.corpus), self.counts(clip), strict=True))
        return not clip.emotion and any(counts[label] == max(counts.values()) > 0 for label in self.labels)

    def check_votes(self, clips: Sequence[Clip]) -> None:
        """Raise a UserError where votes are needed and not at hand."""
        if self.corpus != "crema_d":
            raise UserError(f"labels/source '{self.label_source}': {self.corpus} has no votes; only CREMA-D has")
        without = [clip.clip for clip in clips if clip.clip not in self.votes]
        if without:
            raise UserError(
                f"labels/source '{self.label_source}' needs the votes of {len(without)} clips ({some(without, 2)}); "
                f"put CREMA-D's tabulatedVotes.csv beside the sound and run: just metadata {self.corpus}"
            )

    def counts(self, clip: Clip) -> tuple[int, ...]:
        """Return the votes for a clip that the label source goes by, int [C]."""
        votes = self.votes[clip.clip]
        return votes.multimodal if self.label_source == "multimodal" else votes.voice

    def soft_target(self, clip: Clip) -> list[float] | None:
        """Return the distribution [C] that a clip trains on, or None for one-hot of its class."""
        if self.label_source != "voice_soft" or clip.corpus != self.corpus:
            return None
        counts = [
            count
            for label, count in zip(label_set(self.corpus), self.counts(clip), strict=True)
            if label in self.labels
        ]
        return [count / sum(counts) for count in counts]

    def part(self, name: str) -> list[Clip]:
        """Return the clips of one part.

        Raises:
            UserError: an unknown part, or one of which no clip is at hand.
        """
        if name not in splits.PARTS:
            raise UserError(f"part '{name}' is unknown{nearest(name, splits.PARTS)}")
        if not self.parts[name]:
            at_hand = ", ".join(f"{part} {len(clips)}" for part, clips in self.parts.items())
            fold = "" if self.fold is None else f" 'split/fold = {self.fold}'"
            raise UserError(
                f"{self.describe()}: no clip of part '{name}' is at hand ({at_hand}); "
                f"see what is there: just histogram {self.corpus} 'split/scheme = \"{self.scheme}\"'{fold}, "
                "or choose another part: just part=val eval RUN"
            )
        return self.parts[name]

    def sound(self) -> dict[str, dict[str, str | None]]:
        """Return the ``metadata.sound_facts`` of what trains and validates, by corpus."""
        clips = [*self.parts["train"], *self.parts["val"]]
        return {
            corpus: sound_facts(table, [clip for clip in clips if clip.corpus == corpus])
            for corpus, table in self.tables.items()
        }

    def evaluation_name(self, part: str) -> str:
        """Name the evaluation of a part, see ``splits.evaluation_name``."""
        return splits.evaluation_name(self.corpus, self.scheme, part)

    def describe(self) -> str:
        """Return one phrase such as ``ravdess emobox6 fold 1``."""
        fold = f" fold {self.fold}" if self.fold is not None else ""
        return f"{self.corpus} {self.scheme}{fold}{''.join(f' and {corpus}' for corpus in self.extra)}"
