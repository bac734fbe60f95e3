"""Confidence intervals that resample speakers, against a plain loop."""

import numpy as np
import pytest

from ser import metrics, stats


def predictions(speakers, clips=12, classes=4, skill=0.6, seed=3):
    """Return speakers, references and answers of made-up predictions; the last class is one speaker's alone."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"s{number:02}" for number in range(speakers)], clips)
    references = rng.integers(0, classes - 1, len(names))
    references[:2] = classes - 1
    answers = np.where(rng.random(len(names)) < skill, references, rng.integers(0, classes, len(names)))
    return names, references, answers


def plain_figures(counts):
    """Return WA, UAR and macro-F1 of one matrix, class by class."""
    recalls, f1s = [], []
    for label in range(len(counts)):
        hits, told, meant = counts[label, label], counts[label].sum(), counts[:, label].sum()
        if told:
            recalls.append(hits / told)
        if told + meant:
            f1s.append(2 * hits / (told + meant))
    clips = [counts[label].sum() for label in range(len(counts))]
    weighted = sum(
        2 * counts[k, k] / (clips[k] + counts[:, k].sum()) * clips[k] for k in range(len(counts)) if clips[k]
    )
    return {
        "wa": counts.trace() / counts.sum(), "uar": np.mean(recalls), "macro_f1": np.mean(f1s),
        "weighted_f1": weighted / counts.sum(),
    }  # fmt: skip


def speaker_intervals(matrices, seed=0):
    """Return the interval of every figure, as scoring makes it."""
    drawn = stats.weighted(matrices, stats.draws(len(matrices), stats.DRAWS, seed)[1:])
    return {name: stats.interval(figure(drawn)) for name, figure in metrics.FIGURES.items()}


def test_one_confusion_matrix_a_speaker():
    names, references, answers = predictions(5)
    order = np.random.default_rng(0).permutation(len(names))
    matrices = stats.speaker_confusions(names[order], references[order], answers[order], 4)
    for matrix, name in zip(matrices, sorted(set(names)), strict=True):
        own = names == name
        np.testing.assert_array_equal(matrix, metrics.confusion(references[own], answers[own], 4))


@pytest.mark.parametrize("seed", [0, 7])
def test_intervals_are_those_of_a_plain_loop_over_the_draws(seed):
    matrices = stats.speaker_confusions(*predictions(9), 4)
    draws = np.random.default_rng(seed).multinomial(9, np.full(9, 1 / 9), size=stats.DRAWS)
    drawn = []
    for times in draws:
        total = sum(matrices[speaker] for speaker, count in enumerate(times) for _ in range(count))
        drawn.append(plain_figures(total))
    intervals = speaker_intervals(matrices, seed)
    for name, (low, high) in intervals.items():
        expected = np.quantile([figures[name] for figures in drawn], [0.025, 0.975])
        np.testing.assert_allclose([low, high], expected, rtol=1e-12)


def test_intervals_hold_the_figure_and_are_plain_numbers():
    matrices = stats.speaker_confusions(*predictions(20), 4)
    figures = metrics.figures(matrices.sum(0))
    for name, interval in speaker_intervals(matrices).items():
        assert interval[0] < figures[name] < interval[1]
        assert all(type(edge) is float for edge in interval)


def test_more_clips_of_the_same_speakers_do_not_narrow_an_interval():
    matrices = stats.speaker_confusions(*predictions(10), 4)
    repeated = speaker_intervals(matrices * 10)
    for name, interval in speaker_intervals(matrices).items():
        assert repeated[name] == pytest.approx(interval)


def test_more_speakers_narrow_an_interval():
    few, many = (speaker_intervals(stats.speaker_confusions(*predictions(count), 4))["wa"] for count in (8, 80))
    assert many[1] - many[0] < 0.6 * (few[1] - few[0])


def test_speakers_that_are_all_alike_leave_no_doubt():
    alike = np.repeat(np.array([[[3, 1], [0, 4]]]), 12, axis=0)
    for low, high in speaker_intervals(alike).values():
        assert low == pytest.approx(high)


def test_the_draws_depend_on_the_seed_alone():
    matrices = stats.speaker_confusions(*predictions(10), 4)
    assert speaker_intervals(matrices, 1) == speaker_intervals(matrices, 1)
    assert speaker_intervals(matrices, 1) != speaker_intervals(matrices, 2)


def test_below_eight_speakers_there_is_no_interval_but_a_reason():
    seven, eight = (stats.speaker_confusions(*predictions(count), 4) for count in (7, 8))
    assert set(stats.paired_intervals(seven, seven).values()) == {None}
    assert None not in stats.paired_intervals(eight, eight).values()
    assert "7 speakers" in stats.too_few_speakers(7)
    assert "pool the folds" in stats.too_few_speakers(7)
    assert stats.too_few_speakers(8) is None


def pair(speakers: int, seed: int = 5):
    """Return the confusion matrices of two systems on the same clips, the second a little better."""
    names, references, answers = predictions(speakers, skill=0.5, seed=seed)
    better = np.where(np.random.default_rng(seed).random(len(names)) < 0.2, references, answers)
    return [stats.speaker_confusions(names, references, one, 4) for one in (answers, better)]


def test_a_paired_interval_is_that_of_a_plain_loop():
    first, second = pair(9)
    draws = np.random.default_rng(0).multinomial(9, np.full(9, 1 / 9), size=stats.DRAWS)
    apart = []
    for draw in draws:
        one, other = ((per_speaker * draw[:, None, None]).sum(0) for per_speaker in (first, second))
        apart.append(plain_figures(other)["uar"] - plain_figures(one)["uar"])
    np.testing.assert_allclose(stats.paired_intervals(first, second)["uar"], np.quantile(apart, [0.025, 0.975]))
    assert stats.paired_intervals(first, first)["uar"] == [0.0, 0.0]
    assert stats.paired_intervals(*pair(7)) == dict.fromkeys(metrics.FIGURES)


def test_pairing_is_narrower_than_the_intervals_of_each():
    first, second = pair(20)
    low, high = stats.paired_intervals(first, second)["wa"]
    alone = speaker_intervals(first)["wa"]
    assert high - low < alone[1] - alone[0]


def test_a_permutation_test_is_that_of_a_plain_loop():
    first, second = pair(4)
    observed = abs(metrics.uar(second.sum(0)) - metrics.uar(first.sum(0)))
    beyond = []
    for number in range(2**4):
        swap = np.array([number >> speaker & 1 for speaker in range(4)], dtype=bool)[:, None, None]
        one, other = np.where(swap, second, first).sum(0), np.where(swap, first, second).sum(0)
        beyond.append(abs(metrics.uar(other) - metrics.uar(one)) >= observed - 1e-12)
    assert stats.permutation_p(first, second)["uar"] == pytest.approx(np.mean(beyond))
    assert stats.permutation_p(first, second)["uar"] >= 2 / 2**4


def test_many_speakers_are_exchanged_at_random_and_agree_with_all_exchanges(monkeypatch):
    first, second = pair(12)
    exact = stats.permutation_p(first, second)
    monkeypatch.setattr(stats, "EXACT_SPEAKERS", 1)
    for name, p in stats.permutation_p(first, second).items():
        assert p == pytest.approx(exact[name], abs=0.04)
    assert stats.permutation_p(first, first)["uar"] == 1.0
    assert stats.permutation_p(*pair(40))["wa"] < 0.01


def test_the_numbers_are_those_that_the_documents_name():
    assert (stats.DRAWS, stats.FEWEST_SPEAKERS, stats.EXACT_SPEAKERS) == (2000, 8, 14)
