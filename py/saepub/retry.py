"""The one retry loop around calls to a server, and how long the server asks us to wait."""

import datetime
import email.utils
import re
import time
import typing as tp

Result = tp.TypeVar("Result")


def call(
    function: tp.Callable[[], Result],
    pauses: tp.Iterable[float],
    is_transient: tp.Callable[[Exception], bool],
    requested_wait: tp.Callable[[Exception], float | None] = lambda err: None,
    notify: tp.Callable[[Exception, float], None] = lambda err, seconds: None,
) -> Result:
    """`function()`, retried after each of `pauses` while its error is transient.

    Args:
        pauses: Seconds to wait after each attempt but the last.
        is_transient: Whether another attempt may succeed after an error.
        requested_wait: Seconds that the server asked us to wait, which win over a shorter
            pause; None if it asked for none.
        notify: Called with each error before a retry, and with the seconds until then.

    Raises:
        The last attempt's error, or the first that is not transient.
    """
    for pause in pauses:
        try:
            return function()
        except Exception as err:
            if not is_transient(err):
                raise
            seconds = max(pause, requested_wait(err) or 0)
            notify(err, seconds)
        time.sleep(seconds)
    return function()


RESETS = ("RateLimit-Reset", "X-RateLimit-Reset")
REMAINING = ("RateLimit-Remaining", "X-RateLimit-Remaining")
EPOCH = 1e9
"""A reset above this is a time, in seconds since 1970; below, it is a wait."""


def requested_wait(headers: tp.Mapping[str, str]) -> float | None:
    """The seconds that a busy server asks us to wait, the longest if it names several; None if
    it names none.

    The Hub sends `RateLimit: "api";r=0;t=12`. Other servers use earlier drafts of that header
    (`limit=9, remaining=0, reset=12`; `RateLimit-Reset: 12`), or Retry-After, as seconds or a
    date.
    """
    found = _of_rate_limit(headers.get("RateLimit") or "")
    if not any((headers.get(name) or "0").strip() != "0" for name in REMAINING):
        found += [_seconds(headers.get(name) or "") for name in RESETS]
    found.append(_seconds(headers.get("Retry-After") or ""))
    return max((seconds for seconds in found if seconds is not None), default=None)


def _of_rate_limit(text: str) -> list[float | None]:
    """The wait for each quota that is used up."""
    items = [text] if "reset" in text else text.split(",")
    found: list[float | None] = []
    for item in items:
        params: dict[str, str] = dict(re.findall(r"(\w+)\s*=\s*(\d+)", item))
        remaining = params.get("r", params.get("remaining", "0"))
        if int(remaining) == 0:
            found.append(_seconds(params.get("t", params.get("reset", ""))))
    return found


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _seconds(text: str) -> float | None:
    now = _now()
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        seconds = float(text)
        return max(seconds - now.timestamp(), 0.0) if seconds > EPOCH else seconds
    try:
        date = email.utils.parsedate_to_datetime(text)
        return max((date - now).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
