"""report: write one page to choose by eye from, every candidate of each repo in its plane."""

import base64
import collections
import dataclasses
import hashlib
import pathlib
import re
import typing as tp
import urllib.parse

from .. import catalog, jsonl, settings
from ..choice import account as choice_account
from ..cli import UserError, parser
from ..files import write_aside
from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from ..page import panel as report_panel
from ..text import human, l0_text, n_of, nmse_text, one_line, say

BY_HAND = "excluded by hand"
"""The reason that classify gives where EXCLUDE names a run."""


class Row(tp.NamedTuple):
    """One run as the page shows it. All texts, none of them markup."""

    run_id: str
    url: str
    """Of its W&B page; empty where the line has none that a browser should open."""
    l0: str
    nmse: str
    date: str
    fate: str
    why: str
    """Why it was dropped."""
    command: str
    """What changes its fate; empty where nothing on a command line does."""
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Section:
    """One repo as the page shows it."""

    repo: catalog.Repo
    n_runs: int
    n_of_fate: collections.Counter
    n_bytes: int
    loaders: list[str]
    pin: list[str]
    exclude: list[str]
    warnings: list[str]
    panels: list[tuple[report_panel.Panel, collections.Counter, list[Row]]]

    @property
    def n_chosen(self) -> int:
        return self.n_of_fate[CHOSEN] + self.n_of_fate[PINNED]


def main(argv: list[str]) -> None:
    p = parser(
        "Write one page to choose by eye from: every candidate of each repo.",
        "make dry-run REPO=vitl-topk && bin/report vitl-topk",
    )
    p.add_argument("slugs", nargs="+", metavar="SLUG", help="a repo of the catalog")
    p.add_argument(
        "--others",
        action="store_true",
        help="with each other repo that a dry run has left whole",
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="where to write it (report.html in the build directory)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    repos = [cat.get(slug) for slug in dict.fromkeys(args.slugs)]
    if args.others:
        repos = [repo for repo in cat.repos if repo in repos or is_whole(repo.slug)]
    out_fpath = args.out or settings.build_dpath() / "report.html"
    html = page([section(repo, *read(repo.slug)) for repo in repos])
    with write_aside(out_fpath) as fd:
        fd.write(html)
    n_repos = n_of(len(repos), "repo")
    say(f"report: {out_fpath}: {n_repos}, {human(len(html.encode()))}")


def is_whole(slug: str) -> bool:
    """Whether a dry run of the repo has ended, and none since has failed."""
    try:
        read(slug)
    except UserError:
        return False
    return (settings.build_dpath() / slug / "summary.txt").is_file()


def read(slug: str) -> tuple[list[jsonl.Line], list[jsonl.Line]]:
    """What a dry run left behind: the lines to publish, and every candidate with its fate.

    Raises:
        UserError: There was none, or the two files are not of the same one.
    """
    dpath = settings.build_dpath() / slug
    mend = f"run: make dry-run REPO={slug}"
    files = {
        dpath / "rendered.jsonl": "layer run_id l0 bytes loader warnings",
        dpath / "account.jsonl": "layer run_id l0 nmse created_at wandb_url drop fate",
    }
    for fpath in files:
        if not fpath.is_file():
            raise UserError(f"{fpath}: not there; {mend}")
    rows, account = [jsonl.read_file(f, *keys.split()) for f, keys in files.items()]
    chosen = {run["run_id"] for run in account if run["fate"] in (CHOSEN, PINNED)}
    if chosen != {row["run_id"] for row in rows}:
        raise UserError(
            f"{dpath}: rendered.jsonl and account.jsonl tell of two choices; {mend}"
        )
    return sorted(rows, key=lambda row: (row["layer"], row["l0"])), account


def section(
    repo: catalog.Repo, rows: list[jsonl.Line], account: list[jsonl.Line]
) -> Section:
    """All that the page says of one repo."""
    pin, exclude = in_force(account)
    warnings = {row["run_id"]: row["warnings"] for row in rows}
    by_layer = collections.defaultdict(list)
    for run in account:
        by_layer[run["layer"]].append(run)
    panels = []
    for layer, runs in sorted(by_layer.items()):
        panel = report_panel.panel(layer, runs)
        shown = [
            _row(
                run,
                command(repo.slug, run, pin, exclude),
                warnings.get(run["run_id"], []),
            )
            for run in panel.runs
        ]
        panels.append((panel, collections.Counter(run["fate"] for run in runs), shown))
    return Section(
        repo=repo,
        n_runs=len(account),
        n_of_fate=collections.Counter(run["fate"] for run in account),
        n_bytes=sum(row["bytes"] for row in rows),
        loaders=sorted({_loader(row["loader"]) for row in rows}),
        pin=pin,
        exclude=exclude,
        warnings=choice_account.warnings(rows, account),
        panels=panels,
    )


def _loader(loader: str) -> str:
    return "the built-in reader" if loader == "builtin" else one_line(loader)


def in_force(account: list[jsonl.Line]) -> tuple[list[str], list[str]]:
    """The repo's runs that PIN and EXCLUDE name now.

    A repo that was not part of the last dry run still stands as an earlier one's PIN and
    EXCLUDE had it, so its account is asked besides the settings.
    """
    known = {run["run_id"] for run in account}
    pin = [run["run_id"] for run in account if run["fate"] == PINNED]
    exclude = [run["run_id"] for run in account if run["drop"] == BY_HAND]

    def named(name: str, found: list[str]) -> list[str]:
        ids = settings.ids(name)
        return [run_id for run_id in dict.fromkeys(ids + found) if run_id in known]

    return named("PIN", pin), named("EXCLUDE", exclude)


def command(slug: str, run: jsonl.Line, pin: list[str], exclude: list[str]) -> str:
    """The command that changes this run's fate and nothing else; "" where none does.

    Args:
        slug: The repo's.
        run: A line of the account.
        pin: The repo's runs that PIN names.
        exclude: The repo's runs that EXCLUDE names.
    """
    run_id, fate = run["run_id"], run["fate"]
    if fate == DROPPED and run["drop"] != BY_HAND:
        return ""
    # A run that is in for being pinned, or out for being excluded, only has to be unnamed.
    pin = [other for other in pin if other != run_id]
    exclude = [other for other in exclude if other != run_id]
    if fate == CHOSEN:
        exclude.append(run_id)
    elif fate in (NOT_NEEDED, OFF_FRONTIER):
        pin.append(run_id)
    words = ["make dry-run", f"REPO={slug}"]
    if (n := settings.get("N")) != settings.default("N") and n.isdecimal():
        words.append(f"N={n}")
    for name, ids in (("PIN", pin), ("EXCLUDE", exclude)):
        # An empty one takes back what the environment or .env names.
        if ids or settings.get(name):
            words.append(f'{name}="{" ".join(ids)}"')
    return " ".join(words)


def _row(run: jsonl.Line, changing: str, warnings: list[str]) -> Row:
    return Row(
        run_id=run["run_id"],
        url=web_url(run["wandb_url"]),
        l0=_measure(run["l0"], l0_text),
        nmse=_measure(run["nmse"], nmse_text),
        date=_date(run["created_at"]),
        fate=run["fate"],
        why=one_line(run["drop"]) if run["fate"] == DROPPED else "",
        command=changing,
        warnings=[one_line(text) for text in warnings],
    )


def _measure(value: float | str | None, text: tp.Callable[[float], str]) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return text(value) if abs(value) < 1e6 else f"{value:.3g}"


def _date(created_at: str | None) -> str:
    """The day; the whole text where it doesn't start with one."""
    if created_at is None:
        return ""
    if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", created_at):
        return created_at[:10]
    return one_line(created_at)


def web_url(text: str | None) -> str:
    """`text` if it is an address that is fit for a link, else nothing."""
    if text is None or not text.isascii() or not text.isprintable():
        return ""
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        return ""
    return text if parts.scheme in ("http", "https") and parts.netloc else ""


def page(sections: list[Section]) -> str:
    """The page: one file that asks for nothing else. The same input gives the same bytes."""
    import jinja2  # slow to import

    templates_dpath = pathlib.Path(settings.ROOT) / "templates"
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dpath),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    env.filters |= {"human": human, "n_of": n_of}
    css = (templates_dpath / "report.css").read_text(encoding="utf-8")
    js = (templates_dpath / "report.js").read_text(encoding="utf-8")
    return env.get_template("report.html").render(
        sections=sections,
        n_runs=sum(s.n_runs for s in sections),
        n_chosen=sum(s.n_chosen for s in sections),
        n_bytes=sum(s.n_bytes for s in sections),
        n_warnings=sum(len(s.warnings) for s in sections),
        css=css,
        js=js,
        css_hash=_csp_hash(css),
        js_hash=_csp_hash(js),
    )


def _csp_hash(text: str) -> str:
    """What a content security policy names a text by that may stand in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
