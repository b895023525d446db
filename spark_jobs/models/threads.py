"""Blocks of work on all processors of this machine: what a fit or an evaluation does, some rows at a time.

numpy, scipy and BLAS let other threads run while they compute, so threads are enough, and what they read lies in memory
once.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

MOST_THREADS = 8
"""Each works on a block of its own, and more blocks are more memory."""

Block = TypeVar("Block")
Result = TypeVar("Result")
First = TypeVar("First")
Second = TypeVar("Second")

_this_thread = threading.local()


def thread_count() -> int:
    """How many blocks are worked on at once: one for each processor that this process may use."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def kernel_threads() -> int:
    """How many threads a compiled kernel may have: one within a block, else as many as there are blocks at once. To be
    told to the kernel: left to itself OpenMP asks OMP_NUM_THREADS, and in a task that is 1."""
    return 1 if getattr(_this_thread, "works_on_a_block", False) else thread_count()


def by_blocks(
    work: Callable[[Block], Result], blocks: Iterable[Block], *, threads: int | None = None
) -> Iterator[Result]:
    """`work(block)` of each block, in the order of the blocks.

    No number of threads (default: `thread_count`) changes a bit: each block is worked on alone, with one BLAS thread.
    At most `threads` + 1 blocks or results are held at once. An error of a block comes at its place, and no block is
    begun after those that were held then. What a block does by blocks itself has no threads of its own.
    """
    count = threads or thread_count()
    if getattr(_this_thread, "works_on_a_block", False):
        yield from map(work, blocks)
        return
    with threadpool_limits(1, "blas"):
        if count == 1:
            yield from map(work, blocks)
            return
        under_way = deque[Future[Result]]()
        with ThreadPoolExecutor(count, initializer=_begin_blocks) as pool:
            try:
                for block in blocks:
                    under_way.append(pool.submit(work, block))
                    if len(under_way) > count:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for rest in under_way:
                    rest.cancel()


def side_by_side(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """What two pieces of work give that do not need one another, each on a thread. Raises what the first one raised,
    else what the second one did; neither runs any more by then."""
    made: list[Any] = list(by_blocks(lambda work: work(), (first, second)))
    return made[0], made[1]


def ranges(count: int, step: int) -> list[slice]:
    """0..count in pieces of at most `step`, in order."""
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _begin_blocks() -> None:
    _this_thread.works_on_a_block = True
