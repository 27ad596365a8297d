"""Virtual time: deterministic order, no wall clock, no threads, no silent failure."""

import asyncio
import contextlib
import random
import time

import pytest

from templar_jax.simulate.loop import SimulationError, VirtualClock, VirtualLoop, run_virtual


def test_a_million_seconds_pass_at_once():
    async def main():
        clock = VirtualClock()
        for _ in range(1000):
            await clock.sleep(1000.0)
        return clock.time()

    started = time.perf_counter()
    assert run_virtual(main) == 1_000_000.0
    assert time.perf_counter() - started < 2.0  # measured: 8 ms


def test_the_wall_clock_is_never_read(monkeypatch):
    def forbidden(*args):
        raise AssertionError("the simulation read the wall clock")

    async def main():
        clock = VirtualClock()
        async with asyncio.timeout(50):
            await clock.sleep(5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(clock.sleep(100), 7)
        return clock.time()

    for name in ("time", "monotonic", "sleep", "perf_counter"):
        monkeypatch.setattr(time, name, forbidden)
    result = run_virtual(main)
    monkeypatch.undo()
    assert result == 12.0


def test_ties_fire_in_the_order_they_were_set():
    async def main():
        clock, seen = VirtualClock(), []

        async def sleeper(name, seconds):
            await clock.sleep(seconds)
            seen.append(name)

        await asyncio.gather(*(sleeper(i, 3.0) for i in range(50)), sleeper("early", 1.0), sleeper("late", 4.0))
        return seen

    assert run_virtual(main) == ["early", *range(50), "late"]


def busy(seed):
    """Twelve tasks that exchange messages after random sleeps; the log of everything that happened."""

    async def main():
        clock, log, queue = VirtualClock(), [], asyncio.Queue()

        async def node(name):
            choice = random.Random(f"{seed} {name}")
            for step in range(20):
                await clock.sleep(choice.choice([0.0, 0.5, 0.5, 1.0, choice.random()]))
                await queue.put((name, step))
                log.append((clock.time(), name, *queue.get_nowait()))

        async with asyncio.TaskGroup() as group:
            for name in range(12):
                group.create_task(node(name))
        return log

    return run_virtual(main)


def test_two_runs_give_the_same_log():
    assert busy(1) == busy(1)
    assert busy(1) != busy(2)
    assert len(busy(1)) == 240


def test_spend_runs_inline_and_passes_modelled_time_per_node():
    async def main():
        fast, slow = VirtualClock("fast", speed=2.0), VirtualClock("slow")
        moments = []

        async def work(clock):
            value = await clock.spend("train", 10.0, lambda: moments.append(clock.time()) or clock.node)
            await clock.spend("train", 1.0, lambda: None)
            await clock.spend("seal", -1.0, lambda: None)
            return value, clock.time()

        results = await asyncio.gather(work(fast), work(slow))
        return results, moments, fast.phases, slow.phases

    results, moments, fast, slow = run_virtual(main)
    assert results == [("fast", 5.5), ("slow", 11.0)]
    assert moments == [0.0, 0.0]  # the work sees the moment at which it began
    assert fast == {"train": 5.5, "seal": 0.0}
    assert slow == {"train": 11.0, "seal": 0.0}


def test_a_deadlock_names_the_tasks_and_where_they_wait():
    async def forgotten(event):
        await event.wait()

    async def main():
        await asyncio.gather(asyncio.create_task(forgotten(asyncio.Event()), name="miner-3"))

    with pytest.raises(SimulationError, match=r"deadlock at 0 s.*main at .*miner-3 at locks\.py:\d+"):
        run_virtual(main)


def test_cancelled_timers_neither_move_the_time_nor_hide_a_deadlock():
    async def main():
        asyncio.get_running_loop().call_later(1000.0, print).cancel()
        await asyncio.Event().wait()

    with pytest.raises(SimulationError, match="deadlock at 0 s"):
        run_virtual(main)


def test_the_horizon_ends_endless_polling():
    async def main():
        while True:
            await asyncio.sleep(1.0)

    with pytest.raises(SimulationError, match="horizon of 100 s"):
        run_virtual(main, horizon=100.0)


def test_the_main_exception_is_its_own():
    async def main():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main)


def test_the_main_exception_comes_before_what_its_end_set_off():
    async def stubborn():
        try:
            await asyncio.sleep(1e9)
        finally:
            raise ValueError("while cleaning up")

    async def main():
        asyncio.create_task(stubborn())
        await asyncio.sleep(1.0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main)


def test_a_dropped_task_that_fails_ends_the_run():
    async def node():
        await asyncio.sleep(1.0)
        raise ValueError("node died")

    async def main():
        asyncio.create_task(node(), name="miner-1")
        await asyncio.sleep(1e6)

    with pytest.raises(SimulationError, match="miner-1") as caught:
        run_virtual(main)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_held_task_that_fails_unseen_is_reported_at_the_end():
    kept = []

    async def node():
        raise ValueError("node died")

    async def main():
        kept.append(asyncio.create_task(node(), name="miner-2"))
        await asyncio.sleep(5.0)

    with pytest.raises(SimulationError, match="miner-2 failed and nobody awaited it.*node died"):
        run_virtual(main)


def test_a_task_whose_failure_was_handled_is_no_error():
    async def node():
        raise ValueError("expected")

    async def main():
        task = asyncio.create_task(node())
        await asyncio.sleep(5.0)
        with contextlib.suppress(ValueError):
            await task
        return "fine"

    assert run_virtual(main) == "fine"


def test_an_error_in_a_callback_surfaces():
    async def main():
        asyncio.get_running_loop().call_later(1.0, lambda: [][0])
        await asyncio.sleep(5.0)

    with pytest.raises(SimulationError, match="IndexError"):
        run_virtual(main)


@pytest.mark.parametrize(
    "use",
    [
        lambda: asyncio.to_thread(print),
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.create_subprocess_exec("true"),
    ],
)
def test_the_outside_world_is_refused(use):
    with pytest.raises(SimulationError, match="in a simulation|a simulation has no"):
        run_virtual(use)


def test_a_completion_from_a_thread_is_an_error_even_if_that_thread_swallows_it():
    async def main():
        with contextlib.suppress(SimulationError):
            asyncio.get_running_loop().call_soon_threadsafe(print)
        await asyncio.sleep(1.0)

    with pytest.raises(SimulationError, match="another thread"):
        run_virtual(main)


def test_what_is_left_over_is_cancelled_in_order_and_cleans_up():
    seen = []

    async def node(name):
        try:
            await asyncio.sleep(1e9)
        finally:
            await asyncio.sleep(2.0)  # cleaning up may take time
            seen.append((name, asyncio.get_running_loop().time()))

    async def ticks():
        try:
            while True:
                yield 1
        finally:
            seen.append("generator closed")

    async def main():
        tasks = [asyncio.create_task(node(i)) for i in range(3)]
        generator = ticks()
        await anext(generator)
        await asyncio.sleep(1.0)
        return len(tasks)

    assert run_virtual(main) == 3
    assert [entry for entry in seen if entry != "generator closed"] == [(i, 3.0) for i in range(3)]
    assert "generator closed" in seen


def test_it_does_not_run_inside_another_loop_and_clocks_need_it():
    async def nested():
        run_virtual(main)

    async def main():
        return None

    async def clock():
        VirtualClock()

    with pytest.raises(SimulationError, match="inside another event loop"):
        asyncio.run(nested())
    with pytest.raises(SimulationError, match="needs a VirtualLoop"):
        asyncio.run(clock())


def test_the_time_may_start_anywhere():
    async def main():
        clock = VirtualClock()
        await clock.sleep(0.5)
        return clock.time(), asyncio.get_running_loop().is_running()

    assert run_virtual(main, start=1.7e9) == (1.7e9 + 0.5, True)
    assert not VirtualLoop().is_closed()
