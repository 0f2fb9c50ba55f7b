"""Trying again: the one loop around whatever asks a server."""

import time
import typing as tp

Result = tp.TypeVar("Result")


def patiently(
    call: tp.Callable[[], Result],
    pauses: tp.Iterable[float],
    may_pass: tp.Callable[[Exception], bool],
    asked: tp.Callable[[Exception], float | None] = lambda err: None,
    tell: tp.Callable[[Exception, float], None] = lambda err, seconds: None,
) -> Result:
    """`call()`, and again after each of `pauses` while it fails in passing.

    Args:
        pauses: Seconds to wait after each try but the last.
        may_pass: Whether another try may mend an error.
        asked: Seconds that the server asked us to wait; a longer wait than ours is kept.
        tell: Told of each error that another try follows, and of the wait before it.

    Raises:
        The last try's own error, or the first that no other try would mend.
    """
    for pause in pauses:
        try:
            return call()
        except Exception as err:
            if not may_pass(err):
                raise
            seconds = max(pause, asked(err) or 0)
            tell(err, seconds)
        time.sleep(seconds)
    return call()
