"""The plan at full size: both corpora, every model, cross-corpus, cross-validation, ensembles, delivery.

Members of ensembles and what is delivered are named here, before any figure is known: nothing is chosen on a test
part. Hours and memory are estimates for one H100 (arithmetic at 60 TFLOP/s, and time to read and to start), none of
them measured.
"""

from collections.abc import Iterator

from ser.files import corpus_folder
from ser.plan_runner import Step

__all__ = ["full_plan"]

FRAMES = "hubert_large_ll60k 'encoder/keep = \"frames\"' 'encoder/layers = [12]'"
STORES = {  # what is extracted: hours on RAVDESS and CREMA-D, GiB
    "logmel80": ("logmel80", 0.1, 0.2, 1),
    "hubert": ("hubert_large_ll60k", 0.1, 0.2, 8),
    "hubert-frames": (FRAMES, 0.1, 0.2, 8),
    "whisper": ("whisper_large_v3", 0.1, 0.3, 8),
}
MODELS = {  # what they read ("" is sound), hours of six folds of RAVDESS, and of CREMA-D's one split; GiB
    "ecapa": ("logmel80", 0.5, 0.2, 3),
    "ecapa_aam": ("logmel80", 0.5, 0.2, 3),
    "stats_probe_hubert": ("hubert", 0.4, 0.3, 4),
    "stats_probe_whisper": ("whisper", 0.6, 0.5, 6),
    "hubert_attn": ("hubert-frames", 0.5, 0.3, 4),
    "hubert_attn_finetune": ("", 1.2, 0.8, 24),
    "whisper_prompt": ("", 1.0, 0.8, 24),
    "whisper_deep_prompt": ("", 1.0, 0.8, 24),
    "whisper_attn_lora": ("", 1.2, 1.0, 24),
}
TOGETHER = ("stats_probe_whisper", "hubert_attn_finetune", "whisper_attn_lora")  # the ensembles
ACROSS = ("ecapa", "stats_probe_whisper", "hubert_attn")  # whose features can be adapted, too
DELIVERED = ("ecapa", "hubert_attn_finetune", "whisper_prompt")
IN_FOLDS = ("stats_probe_whisper", "hubert_attn")  # CREMA-D's kfold5


def full_plan() -> list[Step]:
    """Return the steps in order. A corpus that is prepared already, from wherever, is not downloaded."""
    parts = (data("ravdess"), data("crema_d"), ravdess(), crema_d(), together())
    return [*(step for part in parts for step in part), Step("summary", ("summary",), 0.1, 1)]


def data(corpus: str) -> Iterator[Step]:
    """Yield recordings, table, splits and features of a corpus."""
    before: tuple[str, ...] = ()
    if not (corpus_folder(corpus) / "local.json").is_file():
        yield Step(f"{corpus}-download", (f"download {corpus}",), 0.3, 0)
        before = (f"{corpus}-download",)
    yield Step(f"{corpus}-prepare", (f"prepare {corpus}",), 0.1, 0, before)
    for name, (features, small, large, gib) in STORES.items():
        hours = small if corpus == "ravdess" else large
        command = f"extract {corpus} {features}"
        yield Step(f"{corpus}-extract-{name}", (command,), hours, gib, (f"{corpus}-prepare",))
    for name in ("hubert", "whisper"):
        yield Step(f"{corpus}-layers-{name}", (f"probe {corpus} {STORES[name][0]}",), 0.3, 1, reads(corpus, name))


def reads(corpus: str, store: str) -> tuple[str, ...]:
    """Return the step that makes what a model reads."""
    return (f"{corpus}-extract-{store}" if store else f"{corpus}-prepare",)


def ravdess() -> Iterator[Step]:
    """Yield the six folds of every model, with and without normalisation by speaker, their ensemble, and fold 1."""
    for model, (store, hours, _, gib) in MODELS.items():
        yield Step(f"ravdess-{model}", (f"cv ravdess_{model}",), hours, gib, reads("ravdess", store))
    by_speaker = "cv ravdess_stats_probe_whisper 'stats/normalisation = \"speaker\"'"
    yield Step("ravdess-by-speaker", (by_speaker,), 0.6, 2, reads("ravdess", "whisper"))
    yield ensemble("ravdess")
    for model in DELIVERED:  # the folds are trained by now: this finds fold 1 again
        commands = (f"train ravdess_{model}", "report last", "export last")
        yield Step(f"ravdess-{model}-fold1", commands, 0.2, 8, (f"ravdess-{model}",))


def crema_d() -> Iterator[Step]:
    """Yield every model on the fixed split, labels of another source, five folds, and an ensemble."""
    for model, (store, _, hours, gib) in MODELS.items():
        more = ("export last",) if model in DELIVERED else ()
        commands = (f"train crema_d_{model}", "eval last", "report last", *more)
        yield Step(f"crema_d-{model}", commands, hours, gib, reads("crema_d", store))
    votes = "train crema_d_hubert_attn 'labels/source = \"voice_soft\"'"
    frames = reads("crema_d", "hubert-frames")
    yield Step("crema_d-votes", (votes, "eval last", "labels=intended eval last"), 0.4, 4, frames)
    yield ensemble("crema_d")
    for model in IN_FOLDS:
        store, _, hours, gib = MODELS[model]
        folds = f"cv crema_d_{model} 'split/scheme = \"kfold5\"'"
        yield Step(f"crema_d-{model}-kfold5", (folds,), 5 * hours, gib, reads("crema_d", store))


def ensemble(corpus: str) -> Step:
    """Return the step that scores three models as one."""
    runs = " ".join(f"@{corpus}-{model}" for model in TOGETHER)
    return Step(f"{corpus}-ensemble", (f"ensemble {runs}",), 0.1, 1)


def together() -> Iterator[Step]:
    """Yield training on both corpora, and models on the corpus that they do not know, as it is and adapted."""
    frames = (*reads("crema_d", "hubert-frames"), *reads("ravdess", "hubert-frames"))
    both = "train crema_d_hubert_attn 'data/extra = [\"ravdess\"]'"
    yield Step("both-hubert_attn", (both, "eval last"), 0.4, 4, frames)
    for model in ACROSS:
        for corpus, other in (("crema_d", "ravdess"), ("ravdess", "crema_d")):
            commands = (f"train {corpus}_{model}", f"cross last {other}", f"adapt=1 cross last {other}")
            after = (f"{corpus}-{model}", *reads(other, MODELS[model][0]))
            yield Step(f"across-{corpus}-{model}", commands, 0.1, 8, after)
