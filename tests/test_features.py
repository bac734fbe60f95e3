"""The feature store as it is read: what is in it, and one line with the command wherever it cannot be."""

import io
import json
import os
import pickle
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_error_line
from corpus_factory import make_corpus

from ser import config
from ser.batches import SoundSource, open_source
from ser.corpora import corpus_named
from ser.encoders import EncoderFeatures, Pretrained
from ser.errors import UserError
from ser.extraction import extract
from ser.features import Features, FeatureStore, store_folder
from ser.interfaces import FrontEnd
from ser.mel import LogMel
from ser.metadata import Clip, Table
from ser.preparing import clips_of

KINDS = {"frames": (2,), "layers": (3, 2), "statistics": (3, 4)}  # shape of a clip's features without time


class Pieces(FrontEnd):
    """What every piece of 10 ms is on average and at most, in the shapes that encoders give."""

    ending = ".pt"
    rate = 100.0

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.shape = {"frames": (2,), "layers": (3, 2), "statistics": (3, 4)}[kind]
        self.suffix = f"-{kind}"
        self.options = f" 'pieces/kind = \"{kind}\"'"

    @property
    def spec(self) -> dict[str, str]:
        return {"kind": "pieces", "keep": self.kind}

    def forward(self, sound: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = sound[:, : sound.shape[1] // 160 * 160].unflatten(1, (-1, 160))
        values = torch.stack([pieces.mean(2), pieces.abs().amax(2)], 2)
        if self.kind != "frames":
            values = torch.stack([values, values + 1, values + 2], 1)
        if self.kind == "statistics":
            values = torch.cat([values.mean(2), values.std(2)], 2)
        return values, lengths // 160


def log_mel(bands: int = 80, **options) -> Features:
    """Return features like those of ``gin/features/logmel80.gin``."""
    return Features("logmel80", LogMel(bands), **options)


def pieces(kind: str = "frames", **options) -> Features:
    return Features("hubert_base", Pieces(kind), **options)


def encoded(keep: str = "statistics", layers: list[int] | None = None, precision: str = "auto") -> Features:
    """Return features of an encoder that is not there; nothing here needs it."""
    return Features(
        "hubert_base", EncoderFeatures(Pretrained("nobody/nothing", 768, 13, precision=precision), keep, layers)
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, Table]:
    """Return a home with eight clips of one RAVDESS actor and stores of them, and the table."""
    folder = tmp_path_factory.mktemp("features")
    raw = make_corpus(folder, "ravdess", ["01"], per_class=1, seconds=0.2)
    clips, missing = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    table = Table("ravdess", raw, tuple(clips), missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        for features in (log_mel(), *map(pieces, KINDS)):
            extract(table, features, progress=False)
    return folder, table


@pytest.fixture
def table(original, home) -> Table:
    """Return the table; the stores are this test's own."""
    shutil.copytree(original[0] / "data", home / "data")
    return original[1]


@pytest.fixture
def store(table, home) -> Path:
    """Return the folder of the log-mel store, which this test may spoil."""
    return home / "data/ravdess/feats/logmel80"


def one_line(use) -> str:
    """Return the message of a user's mistake, seen to be one line of plain text."""
    with pytest.raises(UserError) as caught:
        use()
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


# What is in it


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_read_as_it_was_stored(table, kind):
    features = pieces(kind)
    reader = FeatureStore("ravdess", features)
    for clip in table.clips:
        value = reader.read(clip)
        shape = list(value.shape)
        assert value.dtype == torch.float16
        assert reader.length(clip) == round(clip.seconds * 16_000) // 160
        if reader.time_axis is not None:
            assert shape.pop(reader.time_axis) == reader.length(clip)
        assert tuple(shape) == KINDS[kind]


def test_time_is_where_the_kind_says_and_sound_is_nothing_but_time():
    assert [pieces(kind).time_axis for kind in KINDS] == [-2, -2, None]
    assert [pieces(kind, cached=False).time_axis for kind in KINDS] == [-1, -1, -1]
    assert [encoded(*choice).time_axis for choice in (("frames", [3]), ("frames", [3, 5]), ("statistics",))] == [
        -2, -2, None,
    ]  # fmt: skip
    assert log_mel().time_axis == -2


def test_stored_frames_pass_through_and_sound_goes_through_the_front_end():
    cached, fresh = log_mel(), log_mel(cached=False)
    assert cached.input_rate == 100
    assert fresh.input_rate == 16000
    sound, lengths = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)), torch.tensor([4000, 2500])
    frames, counts = fresh.frames(sound, lengths)
    expected, expected_counts = LogMel(80)(sound, lengths)
    assert torch.equal(frames, expected)
    assert torch.equal(counts, expected_counts)
    assert all(ours is theirs for ours, theirs in zip(cached.frames(frames, counts), (frames, counts), strict=True))


def test_inputs_come_from_the_store_or_from_sound(table):
    assert isinstance(open_source(pieces(), table), FeatureStore)
    fresh = open_source(pieces(cached=False), table)
    assert isinstance(fresh, SoundSource)
    assert fresh.read(table.clips[0]).shape == (fresh.length(table.clips[0]),)


# Names and commands


@pytest.mark.parametrize(
    ("choice", "store", "options"),
    [
        ((), "hubert_base-statistics", ""),
        (("statistics", [4, 5]), "hubert_base-statistics-4-5", " 'encoder/layers = [4, 5]'"),
        (("frames", [9]), "hubert_base-frames-9", " 'encoder/keep = \"frames\"' 'encoder/layers = [9]'"),
        (("frames",), "hubert_base-frames", " 'encoder/keep = \"frames\"'"),
    ],
)
def test_what_is_kept_of_an_encoder_is_in_the_name_of_the_store_and_in_the_command(home, choice, store, options):
    features = encoded(*choice)
    command = f"just extract crema_d hubert_base{options}"
    assert features.command("crema_d") == command
    folder = home / "data/crema_d/feats" / store
    assert store_folder("crema_d", features) == folder
    message = one_line(lambda: FeatureStore("crema_d", features))
    assert message == f"{folder}: these features are not extracted yet; run: {command}"
    _, _, _, name, *overrides = shlex.split(command)
    assert config.load_features(name, overrides).store == store, "the command makes the very same store"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("hubert_base", ['encoder/precision = "bf16"', 'encoder/revision = "v1"', "encoder/layers = [3]"]),
        ("logmel80", ["mel/bands = 40", 'Features.dtype = "float32"']),
    ],
)
def test_the_command_repeats_what_is_not_usual(name, overrides):
    asked = config.load_features(name, overrides)
    _, _, _, again, *words = shlex.split(asked.command("ravdess"))
    assert config.load_features(again, words).spec == asked.spec
    named = config.load_features(name, [*overrides, 'Features.name = "mine"'])
    assert named.command("ravdess").startswith("just extract ravdess EXP, with the experiment")


def test_a_plain_front_end_needs_no_overrides(home):
    with pytest.raises(UserError, match=r"not extracted yet; run: just extract ravdess logmel80$"):
        FeatureStore("ravdess", log_mel())


@pytest.mark.parametrize("name", ["", "a/b", "/a"])
def test_a_name_that_is_no_plain_folder_is_refused(name):
    assert "expected the plain name of a folder" in one_line(lambda: Features(name, LogMel(80)))


def test_a_type_that_cannot_be_stored_is_refused():
    with pytest.raises(UserError, match="'bfloat16'; expected float16 or float32"):
        log_mel(dtype="bfloat16")


# Stores that are not to be read


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_store_is_refused_with_the_command_that_goes_on(table, home, kind):
    path = home / f"data/ravdess/feats/hubert_base-{kind}/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    message = one_line(lambda: FeatureStore("ravdess", pieces(kind)))
    command = f"just extract ravdess hubert_base 'pieces/kind = \"{kind}\"'"
    assert message == f"{path.parent}: extraction was interrupted; go on with: {command}"


def test_a_damaged_index_gives_one_line_that_names_it(store):
    (store / "index.json").write_text('{"spec": ')
    assert f"{store / 'index.json'}: not valid JSON" in one_line(lambda: FeatureStore("ravdess", log_mel()))


@pytest.mark.parametrize("other", [{"bands": 40}, {"dtype": "float32"}])
def test_a_store_made_otherwise_is_refused(store, other):
    message = one_line(lambda: FeatureStore("ravdess", log_mel(**other)))
    assert f"{store}: made otherwise" in message
    assert all(str(value) in message for value in other.values())


def test_another_hop_or_window_is_another_kind(store):
    for front_end in (LogMel(80, hop_ms=8.0), LogMel(80, window_ms=32.0), LogMel(80, floor=1e-6)):
        with pytest.raises(UserError, match="made otherwise"):
            FeatureStore("ravdess", Features("logmel80", front_end))


@pytest.mark.parametrize("made", ["float32", "bf16"])
def test_precision_left_open_reads_any_store_and_a_precision_asked_for_only_its_own(home, made):
    folder = store_folder("ravdess", encoded())
    folder.mkdir(parents=True)
    index = {"spec": encoded(precision=made).spec, "complete": True, "files": {}}
    (folder / "index.json").write_text(json.dumps(index))
    for precision in ("auto", made):
        assert FeatureStore("ravdess", encoded(precision=precision)).files == {}
    for precision in {"float32", "bf16", "fp16"} - {made}:
        message = one_line(lambda asked=precision: FeatureStore("ravdess", encoded(precision=asked)))
        assert f"{folder}: made otherwise" in message
        assert f'precision: "{made}", now' in message
        assert f'now "{precision}"' in message


def test_an_experiment_names_the_features_that_it_reads(run_here, home):
    assert config.load_features("ravdess_hubert_attn_tiny").store == "whisper_tiny_en-frames"
    copies = config.load_features("ravdess_stats_probe_copies", ["encoder/copies = ['gain 6']"]).copies
    assert [copy.front_end.how for copy in copies] == ["gain 6"]
    with pytest.raises(UserError, match="features 'logmel' are unknown; did you mean 'logmel80'"):
        config.load_features("logmel")
    done = run_here("extract.py", "ravdess", "ravdess_hubert_attn_finetune_tiny")
    assert "hears sound itself, there is nothing to extract" in one_error_line(done)


@pytest.mark.parametrize("other", [{"source": "somebody/else"}, {"revision": "v2"}])
def test_another_encoder_or_revision_is_another_kind(home, other):
    folder = store_folder("ravdess", encoded())
    folder.mkdir(parents=True)
    spec = encoded().spec
    spec["front_end"] |= {"precision": "float32"} | other
    (folder / "index.json").write_text(json.dumps({"spec": spec, "complete": True, "files": {}}))
    assert "made otherwise" in one_line(lambda: FeatureStore("ravdess", encoded()))


# Files that are not to be read


def test_reading_a_damaged_file_or_an_unknown_clip_says_which_and_what_to_do(table, store):
    reader = FeatureStore("ravdess", log_mel())
    deleted, truncated, shorter = table.clips[:3]
    (store / f"{deleted.clip}.npy").unlink()
    path = store / f"{truncated.clip}.npy"
    path.write_bytes(path.read_bytes()[:-100])
    np.save(store / f"{shorter.clip}.npy", np.zeros((3, 80), dtype=np.float16))
    for clip in (deleted, truncated, shorter):
        message = one_line(lambda clip=clip: reader.read(clip))
        assert message.startswith(f"{store / clip.clip}.npy: damaged or gone")
        assert message.endswith("make it again: just extract ravdess logmel80")
    assert "no features of clip 'unheard'" in one_line(lambda: reader.read(replace(deleted, clip="unheard")))


def test_a_pickle_in_place_of_features_is_not_loaded(table, store):
    np.save(store / f"{table.clips[0].clip}.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        FeatureStore("ravdess", log_mel()).read(table.clips[0])


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: str):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


class KeptTogether:
    """A class that no loader knows."""


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


SPOILT = {
    "gone": lambda good, trap: None,
    "empty": lambda good, trap: b"",
    "garbage": lambda good, trap: b"garbage",
    "cut short": lambda good, trap: good[: len(good) // 2],
    "a dictionary": lambda good, trap: saved({"values": torch.zeros(3, 2)}),
    "a list": lambda good, trap: saved([torch.zeros(3, 2)]),
    "a number": lambda good, trap: saved(torch.tensor(1.0)),
    "of another length": lambda good, trap: saved(torch.zeros(3, 2)),
    "an object": lambda good, trap: saved(KeptTogether()),
    "a pickle": lambda good, trap: pickle.dumps(Trap(trap)),
    "a pickle in torch's wrapping": lambda good, trap: saved(Trap(trap)),
}


def spoil(home: Path, clip: Clip, how: str, trap: Path) -> Path:
    """Spoil a clip's file and return its path."""
    path = home / f"data/ravdess/feats/hubert_base-frames/{clip.clip}.pt"
    content = SPOILT[how](path.read_bytes(), str(trap))
    path.unlink() if content is None else path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_spoilt_file_of_an_encoder_gives_one_line_and_nothing_in_it_runs(table, home, tmp_path, how):
    clip, trap = table.clips[2], tmp_path / "sprung"
    reader = FeatureStore("ravdess", pieces())
    path = spoil(home, clip, how, trap)
    message = one_line(lambda: reader.read(clip))
    assert message.startswith(f"{path}: damaged or gone")
    assert message.endswith("make it again: just extract ravdess hubert_base 'pieces/kind = \"frames\"'")
    assert not trap.exists()
    assert reader.read(table.clips[3]).shape[0] == reader.length(table.clips[3])


@pytest.mark.parametrize("how", ["garbage", "a pickle", "a pickle in torch's wrapping", "an object"])
def test_nobody_is_told_to_let_a_foreign_file_run(table, home, tmp_path, how):
    """torch advises to load it without protection, in a warning or in the error."""
    clip = table.clips[2]
    spoil(home, clip, how, tmp_path / "sprung")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        message = one_line(lambda: FeatureStore("ravdess", pieces()).read(clip))
    assert "weights_only" not in message
    assert "trust" not in message
    assert not warned, "which would be a second line"


@pytest.mark.parametrize("content", ["[]", "{}", "7"])
def test_an_index_of_another_make_gives_one_line(table, home, content):
    (home / "data/ravdess/feats/logmel80").mkdir(parents=True, exist_ok=True)
    (home / "data/ravdess/feats/logmel80/index.json").write_text(content)
    with pytest.raises(UserError, match="made otherwise"):
        FeatureStore("ravdess", Features("logmel80", LogMel(80)))


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_another_shape_are_not_taken_for_features(table, home, kind):
    clip = table.clips[0]
    path = home / f"data/ravdess/feats/hubert_base-{kind}/{clip.clip}.pt"
    whole = torch.load(path, weights_only=True)
    for foreign in (torch.zeros(7), whole[..., :1], whole[None]):
        torch.save(foreign.clone(), path)
        assert "it holds" in one_line(lambda: FeatureStore("ravdess", pieces(kind)).read(clip))
