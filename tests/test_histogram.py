"""Class histograms: every clip is counted once in every grouping, and the advice follows the counts."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser import config, histogram
from ser.corpora import corpus_named
from ser.errors import UserError
from ser.labels import label_set
from ser.losses import class_weights
from ser.metadata import Clip, Table


def table_of(*clips: tuple[str, str, str], corpus_name: str = "demo") -> Table:
    """Return a table of clips of (speaker, emotion, part)."""
    rows = []
    for number, (speaker, emotion, part) in enumerate(clips):
        fields = corpus_named(corpus_name).parse(f"{speaker}_{emotion}_t1_r1")
        rows.append(
            Clip(
                path=f"{number}.wav", split=part, corpus=corpus_name, age="", race="", ethnicity="", seconds=1.0,
                sample_rate=16000, channels=1, **{**fields, "clip": str(number)},
            )
        )  # fmt: skip
    return Table(corpus_name, Path("raw"), tuple(rows), 0)


SMALL = table_of(
    ("s02", "angry", "train"), ("s02", "sad", "train"), ("s02", "sad", "train"), ("s01", "sad", "test"),
    ("s01", "happy", "test"), ("s03", "happy", "val"),
)  # fmt: skip


def test_counts_by_each_grouping_are_exact_and_in_order():
    # angry, disgust, fearful, happy, neutral, sad
    assert histogram.counts_by(SMALL, "part") == {
        "train": [1, 0, 0, 0, 0, 2], "val": [0, 0, 0, 1, 0, 0], "test": [0, 0, 0, 1, 0, 1],
    }  # fmt: skip
    assert list(histogram.counts_by(SMALL, "part")) == ["train", "val", "test"]
    assert histogram.counts_by(SMALL, "sex") == {"female": [1, 0, 0, 0, 0, 2], "male": [0, 0, 0, 2, 0, 1]}
    assert histogram.counts_by(SMALL, "speaker") == {
        "s01": [0, 0, 0, 1, 0, 1], "s02": [1, 0, 0, 0, 0, 2], "s03": [0, 0, 0, 1, 0, 0],
    }  # fmt: skip


@pytest.mark.parametrize("grouping", histogram.GROUPINGS)
def test_every_clip_is_counted_even_where_it_has_no_part(grouping):
    table = table_of(("s01", "sad", ""), ("s01", "sad", "train"), ("s02", "angry", ""))
    counted = sum(sum(values) for values in histogram.counts_by(table, grouping).values())
    assert counted == len(table.clips)


def test_the_text_shows_classes_groups_and_totals():
    lines = histogram.text(SMALL).splitlines()
    assert "6 clips" in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert [*label_set("demo"), "all"] == lines[1].split()
    for name, counts in {
        "all": "1 0 0 2 0 3 6", "train": "1 0 0 0 0 2 3", "male": "0 0 0 2 0 1 3", "s03": "0 0 0 1 0 0 1",
    }.items():  # fmt: skip
        assert rows[name] == counts.split()


def test_the_csv_holds_every_count_and_the_picture_is_a_png(tmp_path):
    histogram.write(SMALL, tmp_path / "h.csv", tmp_path / "h.png")
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["grouping", "group", *label_set("demo")]
    assert {(row["grouping"], row["group"]) for row in rows} == {
        ("part", "train"), ("part", "val"), ("part", "test"), ("sex", "female"), ("sex", "male"),
        ("speaker", "s01"), ("speaker", "s02"), ("speaker", "s03"),
    }  # fmt: skip
    for grouping in ("part", "sex", "speaker"):
        assert sum(int(row["sad"]) for row in rows if row["grouping"] == grouping) == 3
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.csv", "h.png"]


def test_the_weights_shown_are_those_of_the_training_part():
    clips = [("s01", "angry", "train")] * 3 + [("s01", "sad", "train"), ("s02", "angry", "test")]
    used = class_weights(torch.tensor([3, 0, 0, 0, 0, 1]), "inverse")
    (line,) = [line for line in histogram.text(table_of(*clips)).splitlines() if line.startswith("inverse weight")]
    assert [float(word) for word in line.split()[2:]] == pytest.approx(used.tolist(), abs=5e-4)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([100, 100, 100], "imbalance 1.00: nearly balanced"),
        ([150, 100, 0], "imbalance 1.50: nearly balanced"),
        ([192, 96, 192], "'inverse'"),
        ([600, 100, 300], "'focal'"),
        ([500, 100], "'effective'"),
    ],
)
def test_the_advice_follows_the_imbalance_of_the_classes_present(counts, says):
    assert says in histogram.advice(np.array(counts))


def test_class_counts_come_in_the_order_of_the_label_set():
    clips = [SimpleNamespace(emotion=emotion) for emotion in ("sad", "sad", "angry", "sad")]
    counts = dict(zip(label_set("ravdess"), histogram.class_counts(clips, "ravdess"), strict=True))
    assert counts == dict.fromkeys(label_set("ravdess"), 0) | {"sad": 3, "angry": 1}


def test_parts_and_classes_are_those_of_a_protocol(prepared, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(prepared))
    protocol = config.load_protocol("ravdess", ["split/fold = 2", "labels/classes = ['angry', 'neutral', 'sad']"])
    table = histogram.by_protocol(protocol)
    counted = histogram.counts_by(table, "part")
    for part in ("train", "val", "test"):
        assert counted[part] == histogram.class_counts(protocol.part(part), "ravdess")
    assert sum(map(sum, counted.values())) == len(table.clips) < len(protocol.table.clips)
    assert "by part (ravdess emobox6 fold 2)" in histogram.text(table, protocol.describe())
    with pytest.raises(UserError, match="data/extra: a histogram is of one corpus"):
        histogram.by_protocol(config.load_protocol("ravdess", ["data/extra = ['crema_d']"]))
    with pytest.raises(UserError, match="did you mean 'emobox6'"):
        histogram.by_protocol(config.load_protocol("ravdess", ["split/scheme = 'emobx6'"]))
    monkeypatch.setattr(histogram, "split_path", lambda *_: prepared / "nothing")  # as before the split is made
    assert {clip.split for clip in histogram.by_protocol(protocol).clips} == {""}
