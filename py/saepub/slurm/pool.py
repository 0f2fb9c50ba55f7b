"""Runs parts without an EXECUTOR, in processes forked from this one."""

import contextlib
import typing as tp

from ..cli import end_on_interrupt, interrupts_held
from .work import Function, Outcome, Part, outcome_of

if tp.TYPE_CHECKING:
    import concurrent.futures


def each(function: Function, parts: list[Part], n_jobs: int) -> tp.Iterator[Outcome]:
    """The outcome of each part, in the parts' order.

    If a process dies, only the part that it was working on is lost.

    Args:
        function: Called as function(*part.args) by a process.

    Raises:
        SetupError: The function raises it.
    """
    from concurrent.futures.process import BrokenProcessPool  # slow to import

    with _pool(n_jobs) as pool:
        with interrupts_held():  # until each process has set its own handler
            futures = [pool.submit(outcome_of, function, part.args) for part in parts]
        for part, future in zip(parts, futures, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield _alone(function, part)


def _alone(function: Function, part: Part) -> Outcome:
    """Redo a part, whose process or a neighbor's died, in a separate process."""
    from concurrent.futures.process import BrokenProcessPool

    with _pool(1) as pool:
        try:
            with interrupts_held():
                future = pool.submit(outcome_of, function, part.args)
            return future.result()
        except BrokenProcessPool:
            why = "the process that checked it died; was it out of memory?"
            return Outcome(reason=why)


@contextlib.contextmanager
def _pool(n_jobs: int) -> tp.Iterator["concurrent.futures.Executor"]:
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(
        n_jobs, context, initializer=end_on_interrupt
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    # Wait, because a pool that is still closing when Python exits prints a traceback.
    pool.shutdown()
