"""Which clips go together, and in which order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.samplers import bucketed, shuffled

quick = settings(deadline=None, database=None, max_examples=100)


@quick
@given(count=st.integers(1, 200), batch_size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_shuffled_covers_every_clip_once_in_even_batches(count, batch_size, seed, epoch):
    order = shuffled(count, batch_size, seed, epoch)
    sizes = [len(rows) for rows in order]
    assert sorted(np.concatenate(order).tolist()) == list(range(count))
    assert min(sizes) >= min(batch_size, count)  # no small rest, which batch norm could not take
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == max(1, count // batch_size)
    if count >= 2 and batch_size >= 3:
        assert min(sizes) >= 2  # a single clip has no batch statistics


def test_shuffled_depends_on_seed_and_epoch():
    def flat(seed, epoch):
        return np.concatenate(shuffled(50, 8, seed, epoch)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert len({tuple(flat(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert flat(0, 0) != list(range(50))


@quick
@given(lengths=st.lists(st.integers(1, 60), max_size=60), budget=st.integers(1, 300))
def test_bucketed_partitions_the_clips_within_the_budget(lengths, budget):
    order = bucketed(lengths, budget)
    assert sorted(index for rows in order for index in rows) == list(range(len(lengths)))
    for rows in order:
        assert len(rows) == 1 or max(lengths[index] for index in rows) * len(rows) <= budget
    flat = [lengths[index] for rows in order for index in rows]
    assert flat == sorted(flat, reverse=True)
    for rows, following in pairwise(order):
        longest = max(lengths[index] for index in rows)
        assert min(lengths[index] for index in rows) >= 0.95 * longest
        too_short = lengths[following[0]] < 0.95 * longest
        assert too_short or longest * (len(rows) + 1) > budget, "the next clip would have fitted"


@pytest.mark.parametrize("budget", [10, 400], ids=["CPU", "GPU"])
def test_batches_of_crema_d_like_clips_are_hardly_padded(budget):
    """Lengths between 1.3 and 5 seconds, most of them near 2.5; budgets are those of extraction."""
    seconds = np.random.default_rng(8).lognormal(np.log(2.5), 0.2, 2000).clip(1.3, 5.0)
    lengths = (seconds * 16_000).astype(int).tolist()
    order = bucketed(lengths, budget * 16_000)
    padded = sum(lengths[rows[0]] * len(rows) for rows in order)
    assert 1 - sum(lengths) / padded <= 0.03
    assert len(order) < 2 * sum(lengths) / (budget * 16_000) + 1, "each batch is about as full as the budget allows"


def test_a_budget_of_nothing_makes_each_clip_a_batch_of_its_own():
    assert bucketed([3, 9, 5], 0) == [[1], [2], [0]]


def test_clips_of_equal_length_keep_their_order():
    assert bucketed([4, 4, 4, 4, 4], 8) == [[0, 1], [2, 3], [4]]


def test_with_lengths_batches_are_alike_and_every_clip_comes_once():
    lengths = np.random.default_rng(1).integers(10, 1000, 400)

    def padding(batches):
        whole = sum(lengths[rows].max() * len(rows) for rows in batches)
        return 1 - lengths.sum() / whole

    plain, alike = shuffled(400, 8, 1, 0), shuffled(400, 8, 1, 0, lengths=lengths)
    assert sorted(np.concatenate(alike).tolist()) == list(range(400))
    assert padding(alike) < 0.15 < 0.35 < padding(plain)
    assert [len(rows) for rows in alike] == [8] * 50
    means = [lengths[rows].mean() for rows in alike]
    assert abs(np.corrcoef(means, range(50))[0, 1]) < 0.4, "no order by length is left among the batches"
    again, other = (shuffled(400, 8, 1, epoch, lengths=lengths) for epoch in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(alike, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(alike, other, strict=True))


def test_with_shares_rare_clips_come_oftener():
    shares = np.array([0.5] + [0.5 / 999] * 999)
    rows = np.concatenate(shuffled(1000, 10, 1, 0, shares=shares.tolist()))
    assert len(rows) == 1000
    assert 400 < (rows % 1000 == 0).sum() < 600


@pytest.mark.parametrize("lengths", [None, [5, 9, 5, 7]])
def test_with_shares_repeats_are_told_apart(lengths):
    batches = shuffled(4, 2, 1, 3, lengths, [0.7, 0.1, 0.1, 0.1])
    rows = np.concatenate(batches).tolist()
    assert len(rows) == len(set(rows)) == 4
    for row in rows:
        assert row < 4 or row - 4 in rows, "the repeats of a clip are numbered without gaps"
