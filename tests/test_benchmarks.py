"""Benchmarks: a ratio of medians over interleaved repeats, written with machine and versions."""

import json

import pytest

from ser import bench_extraction, benchmarks, measuring
from ser.errors import UserError


def test_two_things_are_measured_in_turn_and_compared_by_medians():
    order = []

    def measure(name, values):
        def call():
            order.append(name)
            return values[order.count(name) - 1]

        return call

    ours = measure("ours", [9.0, 1.0, 1.0, 8.0])  # the first is the warm-up
    peer = measure("peer", [9.0, 2.0, 2.0, 2.0])
    row = measuring.compare("x", ours, peer, goal=0.6, repeats=3)
    assert order == ["ours", "peer"] * 4
    assert (row.ours, row.peer, row.ratio, row.met) == (1.0, 2.0, 0.5, True)
    assert not measuring.compare("x", lambda: 1.0, lambda: 1.0, goal=1.5, better="higher", repeats=1).met


def test_the_file_holds_rows_machine_and_versions(home, monkeypatch):
    rows = [measuring.limited("memory, GiB", 1.0, 2.0)]
    monkeypatch.setitem(benchmarks.BENCHMARKS, "startup", lambda: rows)
    path, returned = benchmarks.run("startup")
    written = json.loads(path.read_text())
    assert path == home / "outputs/bench/startup.json"
    assert returned == rows
    assert set(written) == {"machine", "versions", "rows"}
    assert set(written["rows"][0]) == {"what", "ours", "peer", "ratio", "better", "goal", "met"}
    assert "met" in measuring.table(rows)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'training'"):
        benchmarks.run("trainig")


def test_the_data_phase_runs_at_a_small_size(home, capsys):
    benchmarks.data_phase(2_000)
    measured = json.loads(capsys.readouterr().out)
    assert measured["seconds"] > 0
    assert measured["gib"] > 0


def test_batches_of_both_corpora_are_hardly_padded():
    assert bench_extraction.lengths("crema_d", 1000, 0).mean() < bench_extraction.lengths("ravdess", 1000, 0).mean()
    for seconds in (10.0, 400.0):
        assert 0 <= bench_extraction.padded_share(seconds) <= 0.03
