"""The emotion vocabulary, each corpus's label set, and what is shared between corpora."""

from collections.abc import Sequence

from ser.errors import UserError, nearest, some

__all__ = ["ALIASES", "CALM_POLICIES", "EMOTIONS", "LABEL_SETS", "label_set", "shared_labels"]

# Every label set is a subset of these, in this order.
EMOTIONS = ("angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised")

SIX = ("angry", "disgust", "fearful", "happy", "neutral", "sad")
# `custom` may hold any of the vocabulary; a class that does not occur has no weight and no recall.
LABEL_SETS = {"crema_d": SIX, "custom": EMOTIONS, "demo": SIX, "emodb": SIX, "ravdess": EMOTIONS}

# Other words for the same emotions, as tables of other people's corpora have them.
ALIASES = {
    "anger": "angry", "ang": "angry", "calmness": "calm", "disgusted": "disgust", "dis": "disgust", "fear": "fearful",
    "fea": "fearful", "afraid": "fearful", "happiness": "happy", "hap": "happy", "joy": "happy", "neu": "neutral",
    "sadness": "sad", "surprise": "surprised", "sur": "surprised",
}  # fmt: skip

# What calm means to a corpus or model that does not know it: `neutral` counts it as neutral,
# `leave_out` drops calm clips and calm answers.
CALM_POLICIES = ("neutral", "leave_out")


def label_set(corpus: str, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the emotions of ``corpus`` in the order of the model's outputs.

    Args:
        corpus: its name.
        classes: those of its emotions that are wanted, in any order; None for all.

    Raises:
        UserError: no such corpus, an emotion that it does not have, or less than two.
    """
    if corpus not in LABEL_SETS:
        raise UserError(f"corpus '{corpus}' is unknown{nearest(corpus, LABEL_SETS)}")
    known = LABEL_SETS[corpus]
    if classes is None:
        return known
    for label in classes:
        if label not in known:
            raise UserError(f"labels/classes names '{label}', which {corpus} does not have{nearest(label, known)}")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UserError(f"labels/classes is [{', '.join(classes)}]; expected two or more, each once")
    return tuple(label for label in known if label in classes)


def shared_labels(
    model: tuple[str, ...], corpus: tuple[str, ...], calm: str = "neutral"
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the labels that a model and a corpus share, and the mapping of each side's labels to them.

    A label that the mapping does not hold is outside the comparison: clips of it are left out, and a
    model's answer with it is an error in the strict figure.

    Args:
        model: labels of the model's outputs.
        corpus: labels of the corpus it is scored on.
        calm: one of ``CALM_POLICIES``; applies where only one side knows calm.

    Raises:
        UserError: an unknown policy, or fewer than two shared labels.
    """
    if calm not in CALM_POLICIES:
        raise UserError(f"calm policy '{calm}' is unknown{nearest(calm, CALM_POLICIES)}")
    shared = tuple(label for label in EMOTIONS if label in model and label in corpus)
    mapping = {label: label for label in shared}
    if ("calm" in model) != ("calm" in corpus) and calm == "neutral" and "neutral" in shared:
        mapping["calm"] = "neutral"
    if len(shared) < 2:
        raise UserError(f"model knows {some(model)}, corpus has {some(corpus)}: fewer than two shared labels")
    return shared, mapping
