"""Values formatted for people, and text made safe for a terminal."""

import contextlib
import re
import sys
import time
import typing as tp


def printable(text: str) -> str:
    """`text` as one line, without control or bidirectional characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def say(text: str) -> None:
    """Print to stderr, for people. stdout is for data only."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    print(text, file=sys.stderr, flush=True)


def timestamp(text: object) -> float | None:
    """An ISO 8601 date as seconds since the epoch, UTC unless it has a zone; None if invalid."""
    import datetime  # slow to import, and few stages need it

    try:
        date = datetime.datetime.fromisoformat(tp.cast(str, text))
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp()


def plural(noun: str) -> str:
    """`plural("patch")` is "patches"."""
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def n_of(n: int, noun: str) -> str:
    """`n_of(2, "file")` is "2 files"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def layers_text(layers: tp.Collection[int]) -> str:
    """`layers_text({8, 6})` is "layers 6, 8"."""
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {', '.join(map(str, sorted(layers)))}"


def human(n_bytes: int) -> str:
    """A number of bytes in decimal units, as the Hub shows it."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    size, units = float(n_bytes), ["kB", "MB", "GB", "TB"]
    size /= 1000
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if size >= 1000 else f"{size:.3g} {units[0]}"


def one_line(text: object) -> str:
    """Text from outside as one printable line."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]


def clipped(text: str, n_most: int = 60) -> str:
    """`text`, or its beginning followed by "..." if it is longer than `n_most`."""
    return text if len(text) <= n_most else text[: n_most - 3] + "..."


def excerpt(text: bytes) -> str:
    """The beginning of a line, to identify it in a message."""
    return clipped(printable(text.decode("utf-8", "replace").strip()), 80)


WEB_URL = re.compile(r"https?://[\w.:/?=&%~-]+", re.ASCII)


def web_url(text: str | None) -> str:
    """`text` if it is a web address that is safe in a link on a page or a card, else ""."""
    return text if text and WEB_URL.fullmatch(text) else ""


def l0_text(l0: float) -> str:
    """L0 as tables show it: one decimal."""
    return f"{l0:.1f}"


def nmse_text(nmse: float) -> str:
    """NMSE as tables show it: three significant digits."""
    return f"{nmse:#.3g}".rstrip(".")


SECONDS_BETWEEN = 15
"""How often progress is printed when stderr is not a terminal."""

Item = tp.TypeVar("Item")


def progress(items: tp.Iterable[Item], n_items: int, label: str) -> tp.Iterator[Item]:
    """Yield `items`, one for each run, and show progress on stderr, with the time left.

    Args:
        items: What to yield.
        n_items: How many there will be.
        label: The work under way, such as "preflight".
    """
    with meter(n_items, label, "run") as count:
        for item in items:
            yield item
            count(1)


@contextlib.contextmanager
def meter(
    n_items: int, label: str, unit: str
) -> tp.Iterator[tp.Callable[[int], object]]:
    """`progress` for items in batches, which are called `unit`: yields a function to call with
    each batch's size."""
    from tqdm import tqdm  # slow to import

    if sys.stderr.isatty():
        with tqdm(
            desc=label,
            total=n_items,
            unit=unit,
            unit_scale=n_items > 10**6,
            dynamic_ncols=True,
        ) as bar:
            yield bar.update
        return
    start = printed = time.monotonic()
    i = 0

    def count(n_more: int) -> None:
        nonlocal i, printed
        i += n_more
        now = time.monotonic()
        if now - printed >= SECONDS_BETWEEN and i < n_items:
            left = tqdm.format_interval((now - start) / i * (n_items - i))
            say(f"{label}: {i:,} of {n_of(n_items, unit)}, {left} left")
            printed = now

    yield count
