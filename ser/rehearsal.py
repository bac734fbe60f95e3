"""A dry run of a plan: corpora of real names and made-up sound, and encoders a thousand times smaller than the real.

What a rehearsal prints as figures means nothing; that every step goes through is all it shows.
"""

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np

from ser import audio, config, metadata, schemes
from ser.corpora import corpus_named
from ser.files import corpus_folder, write_csv, write_json
from ser.labels import EMOTIONS, label_set

__all__ = ["FEWEST", "clip_names", "close", "make_corpus", "overrides", "prepare", "synthetic_sound"]

# Speakers of both sexes such that every part and every fold of every scheme of the corpus gets at least one
# (``test_splits.py`` holds this).
FEWEST = {
    "crema_d": (
        "1001", "1002", "1005", "1009", "1019", "1021", "1022", "1033", "1034", "1054", "1060", "1082",
    ),
    "demo": ("s01", "s02", "s03", "s04", "s08", "s09", "s10", "s11", "s12", "s13", "s23", "s24"),
    "ravdess": ("01", "02", "03", "04", "06", "07", "08", "09", "10", "11", "15", "17", "20", "24"),
}  # fmt: skip
FOLDERS = {"crema_d": "", "demo": "{}", "ravdess": "Actor_{}"}  # where a speaker's clips lie
FINISHED = "finished"
WIDTH, STATES = 32, 4  # of the small encoders
SMALL = {  # in place of what an experiment says, where it says it
    "encoder/width": WIDTH, "encoder/states": STATES, "encoder/layers": [2], "ecapa/channels": 32,
    "train/epochs": 1, "track/wandb": "off",
}  # fmt: skip


def prepare(home: Path) -> None:
    """Make recordings and encoders in a folder that then serves as ``$SER_HOME``.

    What an interrupted rehearsal has left there stays; one that went through says nothing of today's code, and goes.
    """
    if (home / FINISHED).is_file():
        shutil.rmtree(home)
    if not (home / "raw").is_dir():
        part = home / "unfinished"
        shutil.rmtree(part, ignore_errors=True)
        for corpus in ("crema_d", "ravdess"):
            make_corpus(part, corpus)
        make_votes(part / "raw/crema_d")
        make_encoders(home / "data/encoders")
        (part / "raw").rename(home / "raw")  # last: what is there is whole
        part.rmdir()
    for corpus in ("crema_d", "ravdess"):
        if not (corpus_folder(corpus) / "local.json").is_file():  # the step `prepare` then counts what is missing
            metadata.remember_raw(corpus, home / "raw" / corpus, missing=0)


def close(home: Path) -> None:
    """Say that a rehearsal went through: the next begins anew."""
    (home / FINISHED).touch()


def overrides(words: Sequence[str]) -> list[str]:
    """Return what makes a command small: recipe, experiment (or corpus and features), overrides of its own."""
    recipe, *arguments = words
    if recipe not in ("train", "cv"):
        given = {word.partition("=")[0].strip() for word in arguments}
        known = set() if "logmel80" in arguments else {"encoder/width", "encoder/states", *given}
    else:
        settings = config.load(arguments[0])
        known = {key for key in SMALL if settings.macro(key) is not None}
    return [f"{key} = {value!r}" for key, value in SMALL.items() if key in known]


def make_votes(raw: Path) -> None:
    """Write a ``tabulatedVotes.csv`` beside CREMA-D's clips: eight of ten raters hear what was meant."""
    labels = label_set("crema_d")
    rows = []
    for clip in clip_names("crema_d"):
        fields = corpus_named("crema_d").parse(clip)
        assert fields is not None
        meant = labels.index(fields["emotion"])
        counts = [8 * (place == meant) + 2 * (place == (meant + 1) % len(labels)) for place in range(len(labels))]
        letters = dict(zip("ADFHNS", counts, strict=True))  # the table's columns, in the order of the labels
        rows += [{"": f"{kind}00001", **letters, "fileName": clip} for kind in (1, 3)]
    write_csv(raw / "tabulatedVotes.csv", ("", *"ADFHNS", "fileName"), rows)


def make_encoders(folder: Path) -> None:
    """Save a HuBERT and a Whisper with random weights under the names of the large ones."""
    from transformers import HubertConfig, HubertModel, WhisperConfig, WhisperModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    hubert = HubertConfig(
        hidden_size=WIDTH, num_hidden_layers=STATES - 1, num_attention_heads=2, intermediate_size=64,
        conv_dim=[32] * 7, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    whisper = WhisperConfig(
        num_mel_bins=128, d_model=WIDTH, encoder_layers=STATES - 1, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=60, max_target_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    for source, model, kind in (
        ("facebook/hubert-large-ll60k", HubertModel(hubert), "Wav2Vec2FeatureExtractor"),
        ("openai/whisper-large-v3", WhisperModel(whisper), "WhisperFeatureExtractor"),
    ):
        model.save_pretrained(folder / source)
        hears = {"feature_extractor_type": kind, "feature_size": 1, "do_normalize": True, "sampling_rate": 16_000}
        write_json(folder / source / "preprocessor_config.json", hears)
    logging.enable_progress_bar()


def make_corpus(
    home: Path,
    corpus: str,
    speakers: Sequence[str] | None = None,
    per_class: int = 2,
    seconds: float = 0.6,
    suffix: str = ".wav",
) -> Path:
    """Write ``per_class`` clips of each emotion of each speaker into ``home/raw/<corpus>``; return that folder.

    Files lie as in the official distribution: CREMA-D flat, RAVDESS in ``Actor_01``, the demo corpus in ``s01``.

    Args:
        home: folder for ``raw/``.
        corpus: crema_d, ravdess or demo.
        speakers: ``FEWEST[corpus]`` by default, which reaches every part of every scheme.
        per_class: clips of each emotion of each speaker, spread over statements, intensities and repetitions.
        seconds: mean length; clips differ by up to a tenth of it.
        suffix: ``.wav`` or ``.flac``.
    """
    raw = home / "raw" / corpus
    for name in clip_names(corpus, speakers, per_class):
        fields = corpus_named(corpus).parse(name)
        assert fields is not None
        folder = raw / FOLDERS[corpus].format(fields["speaker"])
        audio.write(folder / f"{name}{suffix}", synthetic_sound(name, fields["emotion"], seconds))
    return raw


def clip_names(corpus: str, speakers: Sequence[str] | None = None, per_class: int = 2) -> list[str]:
    """Return the official names that ``make_corpus`` writes."""
    groups = names_by_speaker_and_emotion(corpus)
    wanted = FEWEST[corpus] if speakers is None else speakers
    chosen = []
    for (speaker, _), names in groups.items():
        if speaker in wanted:
            count = min(per_class, len(names))
            chosen += [names[index * len(names) // count] for index in range(count)]
    return chosen


def synthetic_sound(name: str, emotion: str, seconds: float = 0.6) -> np.ndarray:
    """Return the sound of one clip, float32 [N] at 16 kHz, peak below 0.9.

    A chord that its emotion chooses, over noise: a small model can learn it. It depends on nothing but the clip's
    name and length.
    """
    dice = np.random.default_rng(crc32(name.encode()))
    moments = np.arange(round(seconds * dice.uniform(0.9, 1.1) * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
    lowest = 200 * 1.45 ** EMOTIONS.index(emotion) * dice.uniform(0.95, 1.05)  # Hz
    tones = sum(np.sin(2 * np.pi * lowest * ratio * moments + dice.uniform(0, 6)) for ratio in (1, 1.5, 2.5))
    noise = dice.standard_normal(len(moments)).clip(-3, 3)
    return (dice.uniform(0.5, 1) * (0.2 * tones + 0.05 * noise)).astype(np.float32)


@cache
def names_by_speaker_and_emotion(corpus: str) -> dict[tuple[str, str], list[str]]:
    """Return the official clip names of each speaker and emotion, sorted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for clip in schemes.official_clips(corpus):
        groups.setdefault((clip["speaker"], clip["emotion"]), []).append(clip["clip"])
    return {key: sorted(groups[key]) for key in sorted(groups)}
