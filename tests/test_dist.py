"""Seeding, the device, and processes that work together."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from ser import dist

TOGETHER = """
import time
from pathlib import Path
from ser import dist
with dist.process_group(dist.A_WEEK):
    for time_of_meeting in ("first", "second"):
        rank, place = dist.rank(), Path({place!r} + time_of_meeting)
        assert dist.world_size() == 2
        assert dist.is_main() == (rank == 0)
        if rank == 0:
            time.sleep(0.3)
            place.write_text("here")
        dist.barrier()
        assert place.read_text() == "here", "the barrier waits for the slowest"
        print(rank, dist.summed([rank, 10 + rank, 2**40]))
"""


FAILING = """
import time
from ser import dist, errors

errors.HEARD_ONCE = 1.0

@errors.tool
def main():
    with dist.process_group():
        dist.barrier()
        started = time.monotonic()
        if dist.rank() == 1:
            raise errors.UserError("b.wav: damaged")
        try:
            dist.barrier()
        finally:
            print(time.monotonic() - started)

main()
"""


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_alone_is_the_main_one_and_waits_for_nobody(alone):
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    with dist.process_group():
        assert not torch.distributed.is_initialized()
        dist.barrier()
        assert dist.summed({"a": 1, "b": 2}.values()) == [1, 2]


def test_rank_and_number_of_processes_are_those_of_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (1, 2, False)


@pytest.mark.parametrize(
    ("engine", "supported", "chosen"),
    [("none", ["none", "qnnpack"], "qnnpack"), ("none", ["none"], "none"), ("x86", ["qnnpack", "x86"], "x86")],
)
def test_int8_finds_an_engine_where_torch_has_chosen_none(monkeypatch, engine, supported, chosen):
    quantized = SimpleNamespace(engine=engine, supported_engines=supported)
    monkeypatch.setattr(torch.backends, "quantized", quantized)
    dist.choose_int8_engine()
    assert quantized.engine == chosen


def test_two_processes_wait_for_each_other_and_add_up(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(place=str(tmp_path / "mark")))
    done = command(script, ranks=2)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == 2 * [f"0 [1, 21, {2**41}]"] + 2 * [f"1 [1, 21, {2**41}]"]


def test_what_one_process_has_to_say_is_waited_for_by_the_others(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = command(script, ranks=2)
    assert done.returncode == 2
    assert done.stderr.startswith("error: b.wav: damaged\nerror: the processes of this run cannot reach each other")
    assert float(done.stdout) > 0.9, "else its launcher would end the second before that has spoken"


def test_the_device_is_the_process_s_own_gpu_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dist.device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")  # as SpeechBrain leaves it
    assert dist.device() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert dist.device() == torch.device("cuda", 0)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5])
def test_a_seed_makes_every_generator_repeat(seed):
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    dist.seed_everything(seed)
    first = draws()
    assert draws() != first
    dist.seed_everything(seed)
    assert draws() == first
    dist.seed_everything(seed + 1)
    assert draws() != first


@pytest.mark.parametrize("knows", [True, False])
def test_freed_memory_is_kept_where_the_c_library_knows_how(monkeypatch, knows):
    asked = []
    library = SimpleNamespace(mallopt=lambda *what: asked.append(what)) if knows else SimpleNamespace()
    monkeypatch.setattr(dist.ctypes, "CDLL", lambda _: library)
    dist.keep_freed_memory()
    assert asked == ([(-4, 0), (-1, 2**31 - 1)] if knows else [])


@given(sizes=st.lists(st.integers(1, 9), max_size=6), fits=st.integers(1, 9))
def test_what_memory_does_not_hold_is_halved_and_comes_in_order(sizes, fits):
    numbers = itertools.count()
    batches = [[next(numbers) for _ in range(size)] for size in sizes]

    def work(batch):
        if len(batch) > fits:
            kind = torch.OutOfMemoryError if len(batch) % 2 else RuntimeError  # as of TorchScript
            raise kind("The following operation failed.\nCUDA out of memory. Tried to allocate 2 GiB.")
        return [number + 0.5 for number in batch]

    made = list(dist.as_memory_allows(batches, work))
    assert [number for batch, _ in made for number in batch] == list(range(sum(sizes)))
    assert all(out == [number + 0.5 for number in batch] for batch, out in made)
    assert all(2 * len(batch) + 1 > fits or any(len(whole) == len(batch) for whole in batches) for batch, _ in made)


def test_memory_that_does_not_hold_one_item_is_an_error():
    def work(batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        list(dist.as_memory_allows([[1, 2, 3]], work))


def test_another_error_is_no_matter_of_memory():
    tried = []

    def work(batch):
        tried.append(batch)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(dist.as_memory_allows([[1, 2, 3]], work))
    assert len(tried) == 1
