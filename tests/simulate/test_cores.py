"""Threads that share cores in turns, against cases worked by hand and against general properties."""

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lsam_hpc.simulate.cores import SLICE, TICK, Cores, Thread
from lsam_hpc.simulate.fluid import Fluid

MS = 1e-3


class Watched(Thread):
    """Records which threads have a core."""

    def __init__(self, running, *words):
        super().__init__(*words)
        self.running = running

    def start(self):
        self.running.add(self)
        super().start()

    def stop(self):
        self.running.discard(self)
        super().stop()

    def sleep(self):
        self.running.discard(self)
        super().sleep()


class Node:
    """A node whose threads wake at given times, work and sleep again."""

    def __init__(self, cores, work=0.0):
        self.env = simpy.Environment()
        use = np.ones((1, 1, 1))
        self.fluid = Fluid(
            self.env, use, 0 * use, weights=np.ones(1), capacity=np.array([float(cores)]), core=np.array([np.inf])
        )
        self.cores, self.ends, self.running = Cores(self.env, cores, work), {}, set()

    def thread(self, waker=None):
        return Watched(self.running, self.env, self.fluid, 0, self.cores, waker)

    def work(self, name, thread, at, milliseconds):
        def process():
            yield self.env.timeout(at * MS)
            yield from thread.work(0, milliseconds * MS)
            self.ends[name] = self.env.now / MS
            thread.sleep()

        return self.env.process(process())

    def run(self):
        self.env.run()
        return self.ends


def test_two_threads_take_turns_at_ticks():
    assert (SLICE, TICK) == (0.7 * MS, 4 * MS)
    node = Node(1)
    for name in "ab":
        node.work(name, node.thread(), 0, 10)
    # a: 0-4, 8-12, 16-18; b: 4-8, 12-16, 18-20.
    assert node.run() == pytest.approx({"a": 18, "b": 20})


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        (0, 6.5, {"b": 7.5, "a": 21}),  # the slice of a is over: at once
        (0, 0.5, {"b": 5, "a": 21}),  # within the slice: at the next tick
        (3.5, 3.6, {"b": 9, "a": 24.5}),  # the next tick is within the slice too: at the one after
    ],
)
def test_a_waking_thread_preempts_one_whose_slice_is_over(first, second, ends):
    node = Node(1)
    node.work("a", node.thread(), first, 20)
    node.work("b", node.thread(), second, 1)
    assert node.run() == pytest.approx(ends)


def test_slices_grow_with_the_cores():
    # On two cores a slice is 1.4 ms: 1 ms after its start a thread is not preempted.
    node = Node(2)
    first = node.thread()
    node.work("a", first, 0, 20)
    node.work("b", node.thread(), 0, 20)
    node.work("c", node.thread(first), 1, 1)
    assert node.run() == pytest.approx({"c": 5, "a": 21, "b": 20})


def test_a_woken_thread_takes_an_idle_core_or_that_of_its_waker():
    node = Node(2)
    one, other = node.thread(), node.thread()
    node.work("a", one, 0, 30)
    node.work("b", other, 0, 30)
    node.work("a's", node.thread(one), 5, 2)
    node.work("b's", node.thread(other), 12.5, 3)
    node.work("late", node.thread(one), 35, 1)
    # Each preempts its own training thread and not the other's; at 35 ms both cores are idle.
    assert node.run() == pytest.approx({"a's": 7, "b's": 15.5, "a": 32, "b": 33, "late": 36})


def test_work_that_follows_at_once_stays_in_the_same_slice():
    node = Node(1)
    thread, ends = node.thread(), []

    def process():
        for _ in range(4):
            yield from thread.work(0, 3 * MS)
            ends.append(node.env.now / MS)
        thread.sleep()

    node.env.process(process())
    node.work("b", node.thread(), 1, 1)  # the slice of a is over: b runs, and a again from 2 ms
    node.run()
    assert ends == pytest.approx([4, 7, 10, 13])


def test_a_free_core_takes_from_the_longest_queue():
    node = Node(2)
    one = node.thread()
    node.work("a", one, 0, 6)
    node.work("b", node.thread(), 0, 2)
    node.work("c", node.thread(one), 1, 4)
    # c waits for a's core, within a's slice; at 2 ms b's is free.
    assert node.run() == pytest.approx({"b": 2, "a": 6, "c": 6})


def test_turns_of_long_steps_are_short_only_while_an_exchange_waits():
    node = Node(1, work=20 * 20 * MS)
    one = node.thread()
    node.work("a", one, 0, 50)
    node.work("b", node.thread(), 0, 50)
    # Turns of 20 ms, and of 4 from 25 ms, when a's exchange queues up behind a, to 42 ms, when it is done.
    # a: 0-20, 25-28, 36-40, 60-80, 100-103; b: 20-25, 32-36, 42-60, 80-100, 103-106; exchange: 28-32, 40-42.
    node.work("exchange", node.thread(one), 25, 6)
    assert node.run() == pytest.approx({"exchange": 42, "a": 103, "b": 106})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 15)), min_size=1, max_size=8))
def test_no_core_idles_while_a_thread_waits(count, pieces):
    node = Node(count)
    for name, (at, milliseconds) in enumerate(pieces):
        node.work(name, node.thread(), at, milliseconds)
    while node.env.peek() < np.inf:
        at = node.env.now
        if node.env.peek() > at + 1e-12:  # all callbacks of this moment have run
            awake = sum(begin * MS <= at and name not in node.ends for name, (begin, _) in enumerate(pieces))
            assert len(node.running) == min(count, awake)
        node.env.step()
    assert len(node.ends) == len(pieces)
    assert all(node.ends[name] >= at + alone - 1e-9 for name, (at, alone) in enumerate(pieces))
