"""Trying again: the one loop around whatever asks a server, and how long it is to wait."""

import datetime
import email.utils
import re
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


RESETS = ("RateLimit-Reset", "X-RateLimit-Reset")
REMAINING = ("RateLimit-Remaining", "X-RateLimit-Remaining")
EPOCH = 1e9
"""Of a reset, a number beyond it is a time, in seconds since 1970, and no wait."""


def asked_by(headers: tp.Mapping[str, str]) -> float | None:
    """The seconds that the answer of a server that is busy asks us to wait; None where it
    names none. Of several it is the longest.

    The Hub says `RateLimit: "api";r=0;t=12`. Others say it as earlier drafts of that header
    had it (`limit=9, remaining=0, reset=12`; `RateLimit-Reset: 12`), or in Retry-After, as
    seconds or as a date.
    """
    found = _of_rate_limit(headers.get("RateLimit") or "")
    if not any((headers.get(name) or "0").strip() != "0" for name in REMAINING):
        found += [_seconds(headers.get(name) or "") for name in RESETS]
    found.append(_seconds(headers.get("Retry-After") or ""))
    return max((seconds for seconds in found if seconds is not None), default=None)


def _of_rate_limit(text: str) -> list[float | None]:
    """The wait of each quota that is used up."""
    items = [text] if "reset" in text else text.split(",")
    found: list[float | None] = []
    for item in items:
        params = dict(re.findall(r"(\w+)\s*=\s*(\d+)", item))
        left = params.get("r", params.get("remaining", "0"))
        if int(left) == 0:
            found.append(_seconds(params.get("t", params.get("reset", ""))))
    return found


def _seconds(text: str) -> float | None:
    now = datetime.datetime.now(datetime.UTC)
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        seconds = float(text)
        return max(seconds - now.timestamp(), 0.0) if seconds > EPOCH else seconds
    try:
        date = email.utils.parsedate_to_datetime(text)
        return max((date - now).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
