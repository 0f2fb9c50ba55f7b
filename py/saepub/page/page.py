"""The report page, one self-contained HTML file: each repo's content, and the rendering."""

import base64
import collections
import dataclasses
import hashlib
import pathlib
import re
import typing as tp

from .. import catalog, jsonl, settings, templating
from ..choice import plane
from ..choice.account import EXCLUDED, by_layer
from ..jsonl import BUILTIN, CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from ..text import l0_text, n_of, nmse_text, one_line, web_url
from .panel import Panel, panel

KINDS = {CHOSEN: "c", PINNED: "p", NOT_NEEDED: "n", OFF_FRONTIER: "o", DROPPED: "d"}
"""The CSS class of a run's row and mark, by its fate. A run excluded by hand also has "h"."""

LEGEND = plane.LEGEND | {
    CHOSEN: "chosen",
    PINNED: "pinned by hand",
    NOT_NEEDED: "on the frontier, not needed",
    DROPPED: "dropped",
}
"""The card's labels, except that nothing is published yet."""


class Row(tp.NamedTuple):
    """One run as the page shows it, as plain text without markup."""

    run_id: str
    url: str
    """Its W&B page; empty if the line has no URL that is safe to open."""
    l0: str
    nmse: str
    logged: tuple[str, str] | None
    """L0 and NMSE as training logged them, if `l0` and `nmse` come from elsewhere."""
    date: str
    kind: str
    fate: str
    warnings: list[str]

    @property
    def n_lines(self) -> int:
        """How many lines it takes on paper, at most."""
        texts = [self.fate, *(f"warning: {text}" for text in self.warnings)]
        return max(1 + bool(self.logged), sum(-(-len(t) // FATE_WIDTH) for t in texts))


FATE_WIDTH = 16
"""How many characters fit into the last column on paper."""
PAGE_LINES = 36
"""How many lines of a table fit on a printed page below the plot."""


@dataclasses.dataclass(frozen=True)
class Layer:
    panel: Panel
    count: str
    """Its candidates by fate, and where their numbers come from."""
    rows: list[Row]

    @property
    def has_logged(self) -> bool:
        return any(row.logged for row in self.rows)

    @property
    def is_long(self) -> bool:
        return sum(row.n_lines for row in self.rows) > PAGE_LINES


@dataclasses.dataclass(frozen=True)
class Section:
    """One repo as the page shows it."""

    repo: catalog.Repo
    n_of_fate: collections.Counter[str]
    n_bytes: int
    loaders: list[str]
    pin: list[str]
    """The repo's runs that PIN names now; `exclude` has those that EXCLUDE names."""
    exclude: list[str]
    stops: list[str]
    """What would stop a push."""
    warnings: list[str]
    layers: list[Layer]

    @property
    def n_chosen(self) -> int:
        return self.n_of_fate[CHOSEN] + self.n_of_fate[PINNED]


def section(
    repo: catalog.Repo,
    rows: list[jsonl.Line],
    account: list[jsonl.Line],
    sources: tp.Mapping[int, str],
    stops: list[str],
    warnings: list[str],
) -> Section:
    """Everything that the page shows of one repo.

    Args:
        rows: The lines to publish.
        account: Every candidate with its fate.
        sources: Where the numbers of each layer come from, in words.
        stops: What would stop a push.
        warnings: What to look at before publishing.
    """
    pin, exclude = in_force(account)
    warnings_of = {row["run_id"]: row["warnings"] for row in rows}
    layers = []
    for number, runs in by_layer(account).items():
        drawn = panel(number, runs)
        count = collections.Counter(run["fate"] for run in runs)
        notes = [f"{n_of(len(runs), 'candidate')}: {counts(count)}.", *drawn.notes]
        if source := sources.get(number):
            notes.append(f"{source[0].upper()}{source[1:]}.")
        shown = [_row(run, warnings_of.get(run["run_id"], [])) for run in drawn.runs]
        layers.append(Layer(drawn, " ".join(notes), shown))
    return Section(
        repo=repo,
        n_of_fate=collections.Counter(run["fate"] for run in account),
        n_bytes=sum(row["bytes"] for row in rows),
        loaders=sorted({_loader(row["loader"]) for row in rows}),
        pin=pin,
        exclude=exclude,
        stops=stops,
        warnings=warnings,
        layers=layers,
    )


def counts(n_of_fate: collections.Counter[str]) -> str:
    """How many runs have each fate, in the legend's order, without zeros."""
    return ", ".join(f"{n_of_fate[f]:,} {f}" for f in LEGEND if n_of_fate[f])


def _loader(loader: str) -> str:
    return "the built-in reader" if loader == BUILTIN else one_line(loader)


def in_force(account: list[jsonl.Line]) -> tuple[list[str], list[str]]:
    """The repo's runs that PIN and EXCLUDE name now.

    A repo that was not part of the last dry run still reflects an earlier one's PIN and
    EXCLUDE, so these come from its account as well as from the settings.
    """
    known = {run["run_id"] for run in account}
    pin = [run["run_id"] for run in account if run["fate"] == PINNED]
    exclude = [run["run_id"] for run in account if run["drop"] == EXCLUDED]

    def named(name: str, found: list[str]) -> list[str]:
        named_now = dict.fromkeys(settings.ids(name) + found)
        return [run_id for run_id in named_now if run_id in known]

    return named("PIN", pin), named("EXCLUDE", exclude)


def _row(run: jsonl.Line, warnings: list[str]) -> Row:
    kind, fate = KINDS[run["fate"]], run["fate"]
    if fate == DROPPED:
        fate = f"{DROPPED}: {one_line(run['drop'])}"
        kind += " h" if run["drop"] == EXCLUDED else ""
    logged = run["l0_logged"], run["nmse_logged"]
    is_other = run["numbers"] not in (None, "wandb") and logged != (None, None)
    return Row(
        run_id=run["run_id"],
        url=web_url(run["wandb_url"]),
        l0=_measure(run["l0"], l0_text),
        nmse=_measure(run["nmse"], nmse_text),
        logged=(_measure(logged[0], l0_text), _measure(logged[1], nmse_text))
        if is_other
        else None,
        date=_date(run["created_at"]),
        kind=kind,
        fate=fate,
        warnings=[one_line(text) for text in warnings],
    )


def _measure(value: float | str | None, text: tp.Callable[[float], str]) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return text(value) if abs(value) < 1e6 else f"{value:.3g}"


def _date(created_at: str | None) -> str:
    """The day; the whole text if it doesn't start with a date."""
    if created_at is None:
        return ""
    if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", created_at):
        return created_at[:10]
    return one_line(created_at)


def html(
    sections: list[Section], missing: tp.Sequence[str] = (), *, is_demo: bool
) -> str:
    """The page, as one file without external resources. The same input gives the same bytes.

    Args:
        sections: One per repo.
        missing: Advice on each repo that can't be shown.
        is_demo: Whether they are the demo's.
    """
    env = templating.environment(trim_blocks=True, lstrip_blocks=True, autoescape=True)
    templates_dpath = pathlib.Path(settings.ROOT) / "templates"
    css = (templates_dpath / "report.css").read_text(encoding="utf-8")
    js = (templates_dpath / "report.js").read_text(encoding="utf-8")
    fates = [f for f in LEGEND if any(s.n_of_fate[f] for s in sections)]
    n = settings.get("N")
    text = env.get_template("report.html").render(
        sections=sections,
        missing=missing,
        is_demo=is_demo,
        owners=" and ".join(
            dict.fromkeys(s.repo.repo_id.split("/")[0] for s in sections)
        ),
        legend=[(KINDS[fate], LEGEND[fate]) for fate in fates],
        kinds=KINDS,
        counts=counts,
        n=n if n != settings.default("N") and n.isdecimal() else "",
        # These become part of a command, so anything that isn't an id is left out.
        pin=[i for i in settings.ids("PIN") if jsonl.is_id(i)],
        exclude=[i for i in settings.ids("EXCLUDE") if jsonl.is_id(i)],
        n_runs=sum(s.n_of_fate.total() for s in sections),
        n_chosen=sum(s.n_chosen for s in sections),
        n_bytes=sum(s.n_bytes for s in sections),
        n_stops=sum(len(s.stops) for s in sections),
        n_warnings=sum(len(s.stops) + len(s.warnings) for s in sections),
        css=css,
        js=js,
        css_hash=_csp_hash(css),
        js_hash=_csp_hash(js),
    )
    return str(text)


def _csp_hash(text: str) -> str:
    """The hash by which a content security policy allows an inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
