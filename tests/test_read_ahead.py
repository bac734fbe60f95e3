"""What is made ahead comes in order, errors in their turn, and nothing is left running."""

import threading

import pytest

from ser.errors import UserError
from ser.read_ahead import map_ahead, prefetch


def test_prefetch_yields_everything_in_order():
    assert list(prefetch(range(50))) == list(range(50))
    assert list(prefetch([])) == []


def test_prefetch_makes_the_next_item_while_the_first_is_used():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    ahead = prefetch(items())
    assert next(ahead) == 1
    assert second.wait(10)
    assert list(ahead) == [2]


@pytest.mark.parametrize("error", [UserError("a.wav: damaged"), KeyError("x")])
def test_prefetch_passes_an_error_on_after_the_items_before_it(error):
    def items():
        yield 1
        yield 2
        raise error

    got = []
    with pytest.raises(type(error)) as raised:
        got.extend(item for item in prefetch(items()) if got.append(item))
    assert got == [1, 2]
    assert raised.value is error


def test_prefetch_stops_its_thread_when_abandoned():
    before, made = threading.active_count(), []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    for item in prefetch(endless(), depth=2):
        if item == 3:
            break
    assert threading.active_count() == before
    assert len(made) <= 4 + 2 + 1  # used, ready, and the one in the hand


# Working on the items that come next


def test_ahead_keeps_the_order_and_works_on_what_comes_next():
    started = []

    def work(number: int) -> int:
        started.append(number)
        return number * number

    answers = map_ahead(work, range(20))
    assert next(answers) == 0
    assert len(started) > 1
    assert [0, *answers] == [number * number for number in range(20)]
    assert sorted(started) == list(range(20))


def test_ahead_reads_only_a_few_items_beforehand():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    answers = map_ahead(lambda number: number, items())
    next(answers)
    assert len(taken) < 20
    answers.close()


def test_ahead_raises_an_error_in_its_turn():
    def work(number: int) -> int:
        if number == 3:
            raise UserError("the third")
        return number

    answers = map_ahead(work, range(10))
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="the third"):
        next(answers)
