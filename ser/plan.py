"""The plan at full size: both corpora, every model, cross-corpus, cross-validation, ensembles, delivery.

Members of ensembles and what is delivered are named here, before any figure is known: nothing is chosen on a test
part. Hours and memory are estimates for one H100 (arithmetic at 60 TFLOP/s, and time to read and to start), none of
them measured.
"""

from collections.abc import Iterator

from ser.files import corpus_folder
from ser.planning import Step

__all__ = ["full_plan"]

FRAMES = "hubert_large_ll60k 'encoder/keep = \"frames\"' 'encoder/layers = [12]'"
STORES = {  # what is extracted: hours on RAVDESS and CREMA-D, GiB
    "logmel80": ("logmel80", 0.1, 0.2, 1),
    "hubert": ("hubert_large_ll60k", 0.1, 0.2, 8),
    "hubert-frames": (FRAMES, 0.1, 0.2, 8),
    "whisper": ("whisper_large_v3", 0.1, 0.3, 8),
}
MODELS = {  # hours of six folds of RAVDESS, and of CREMA-D's one split; GiB
    "ecapa": (0.5, 0.2, 3),
    "stats_probe_hubert": (0.4, 0.3, 2),
    "stats_probe_whisper": (0.6, 0.5, 2),
    "hubert_attn": (0.5, 0.3, 4),
    "hubert_attn_finetune": (1.2, 0.8, 24),
    "whisper_prompt": (1.0, 0.8, 24),
    "whisper_deep_prompt": (1.0, 0.8, 24),
    "whisper_attn_lora": (1.2, 1.0, 24),
}
TOGETHER = ("stats_probe_whisper", "hubert_attn_finetune", "whisper_attn_lora")  # the ensembles
ACROSS = ("ecapa", "stats_probe_whisper", "hubert_attn")  # whose features can be adapted, too
DELIVERED = ("ecapa", "hubert_attn_finetune", "whisper_prompt")
AT_LARGE = ("stats_probe_whisper", "hubert_attn")  # five folds of CREMA-D


def full_plan() -> list[Step]:
    """Return the steps in order; each needs only what comes before it."""
    return [
        *data("ravdess"),
        *data("crema_d"),
        *ravdess(),
        *crema_d(),
        *across(),
        Step("summary", ("summary",), 0.1, 1),
    ]


def data(corpus: str) -> Iterator[Step]:
    """Yield recordings, table, splits and features of a corpus."""
    known = corpus_folder(corpus) / "local.json"
    yield Step(f"{corpus}-download", (f"download {corpus}",), 0.3, 0, unless=known)
    yield Step(f"{corpus}-prepare", (f"prepare {corpus}",), 0.1, 0)
    for name, (features, small, large, gib) in STORES.items():
        hours = small if corpus == "ravdess" else large
        yield Step(f"{corpus}-extract-{name}", (f"extract {corpus} {features}",), hours, gib)
    for name in ("hubert", "whisper"):
        yield Step(f"{corpus}-layers-{name}", (f"probe {corpus} {STORES[name][0]}",), 0.3, 1)


def ravdess() -> Iterator[Step]:
    """Yield the six folds of every model, with and without normalisation by speaker, and their ensemble."""
    for model, (hours, _, gib) in MODELS.items():
        yield Step(f"ravdess-{model}", (f"cv ravdess_{model}",), hours, gib)
    by_speaker = "'stats/normalisation = \"speaker\"'"
    yield Step("ravdess-by-speaker", (f"cv ravdess_stats_probe_whisper {by_speaker}",), 0.6, 2)
    yield together("ravdess")
    for model in DELIVERED:  # the folds are trained by now: this finds fold 1 again
        yield Step(f"ravdess-{model}-fold1", (f"train ravdess_{model}", "report last", "export last"), 0.2, 8)


def crema_d() -> Iterator[Step]:
    """Yield every model on the fixed split, labels of another source, five folds, and ensembles."""
    for model, (_, hours, gib) in MODELS.items():
        more = ("export last",) if model in DELIVERED else ()
        commands = (f"train crema_d_{model}", "eval last", "report last", *more)
        yield Step(f"crema_d-{model}", commands, hours, gib)
    votes = "train crema_d_hubert_attn 'labels/source = \"voice_soft\"'"
    yield Step("crema_d-votes", (votes, "eval last", "labels=intended eval last"), 0.4, 4)
    both = "train crema_d_hubert_attn 'data/extra = [\"ravdess\"]'"
    yield Step("crema_d-with-ravdess", (both, "eval last"), 0.4, 4)
    yield together("crema_d")
    for model in AT_LARGE:
        folds = f"cv crema_d_{model} 'split/scheme = \"kfold5\"' 'split/fold = 1'"
        yield Step(f"crema_d-{model}-kfold5", (folds,), 5 * MODELS[model][1], MODELS[model][2])


def together(corpus: str) -> Step:
    """Return the step that scores three models as one."""
    runs = " ".join(f"@{corpus}-{model}" for model in TOGETHER)
    return Step(f"{corpus}-ensemble", (f"ensemble {runs}",), 0.1, 1)


def across() -> Iterator[Step]:
    """Yield each corpus's models on the other corpus, as it is and adapted without its labels."""
    for model in ACROSS:
        for corpus, other in (("crema_d", "ravdess"), ("ravdess", "crema_d")):
            commands = (f"train {corpus}_{model}", f"cross last {other}", f"adapt=1 cross last {other}")
            yield Step(f"{corpus}-{model}-across", commands, 0.1, 8)
