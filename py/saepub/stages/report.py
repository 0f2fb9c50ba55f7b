"""report: write one page with plots and tables of every candidate, to choose by eye."""

from .. import catalog, jsonl, numbers, settings
from ..choice.account import by_layer, warnings
from ..cli import UserError, parser
from ..files import write_aside
from ..jsonl import CHOSEN, PINNED
from ..page import page
from ..release import staged
from ..text import human, n_of, say


def main(argv: list[str]) -> None:
    p = parser(
        "Write one page with every candidate of each repo, to choose by eye.",
        "make dry-run REPO=vitl-topk && bin/report vitl-topk",
    )
    p.add_argument("slugs", nargs="+", metavar="SLUG", help="a repo of the catalog")
    p.add_argument(
        "--others",
        action="store_true",
        help="also every other repo that has a complete dry run",
    )
    p.add_argument(
        "--partial",
        action="store_true",
        help="leave out repos whose dry run failed: the page and a final error name them",
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="where to write it (default: report.html in the build directory)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    wanted = {cat.get(slug).slug for slug in args.slugs}
    slugs = [repo.slug for repo in cat.repos]
    optional = [
        slug for slug in slugs if args.partial or (args.others and slug not in wanted)
    ]
    whole = set(filter(is_whole, optional))
    missing = [slug for slug in slugs if args.partial and slug in wanted - whole]
    shown = whole | (wanted - set(missing))
    repos = [repo for repo in cat.repos if repo.slug in shown]
    if not repos:
        raise UserError(
            f"{', '.join(missing)}: nothing to show; what to do is said above"
        )
    out_fpath = args.out or settings.build_dpath() / "report.html"
    is_demo = settings.is_demo_fpath(cat.fpath)
    html = page.html(
        [section(repo) for repo in repos],
        [advice(slug) for slug in missing],
        is_demo=is_demo,
    )
    with write_aside(out_fpath) as fd:
        fd.write(html)
    n_repos = n_of(len(repos), "repo")
    say(f"report: {out_fpath}: {n_repos}, {human(len(html.encode()))}")
    if missing:
        raise UserError(
            f"{', '.join(missing)}: can't be released yet; {out_fpath} shows the others,"
            " and what to do"
        )


def advice(slug: str) -> str:
    """What to do about a repo whose dry run has failed."""
    fpath = settings.build_dpath() / slug / "settled.jsonl"
    if fpath.is_file():
        lines = jsonl.read_file(fpath, "repo", "layer", "expected", "shard", "drop")
        if lacking := [line for line in lines if numbers.is_lacking(line["drop"])]:
            return numbers.advice(lacking)
    return f"{slug}: its dry run failed; to see why: make dry-run REPO={slug}"


def section(repo: catalog.Repo) -> page.Section:
    rows, account = read(repo.slug)
    layers = by_layer(account)
    texts = warnings(rows, account)
    for layer, runs in layers.items():
        if n := sum(numbers.is_lacking(run["drop"]) for run in runs):
            texts.append(
                f"layer {layer}: {n_of(n, 'run')} dropped for lack of numbers;"
                " to measure them: make measure"
            )
    sources = {layer: numbers.describe(runs) for layer, runs in layers.items()}
    return page.section(repo, rows, account, sources, staged.not_loaded(rows), texts)


def is_whole(slug: str) -> bool:
    """Whether the repo's last dry run completed."""
    dpath = settings.build_dpath() / slug
    try:
        read(slug)
        ended = (dpath / "summary.txt").stat().st_mtime_ns
    except (UserError, OSError):
        return False
    # Once a dry run has failed, summary.txt is older than what it depends on.
    return all(f.stat().st_mtime_ns <= ended for f in dpath.glob("*.jsonl"))


def read(slug: str) -> tuple[list[jsonl.Line], list[jsonl.Line]]:
    """A dry run's results: the lines to publish, and every candidate with its fate.

    Raises:
        UserError: There are none, or the two files are from different dry runs.
    """
    dpath = settings.build_dpath() / slug
    hint = f"run: make dry-run REPO={slug}"
    of_rows = "layer run_id l0 aux bytes loader warnings"
    of_account = (
        "layer run_id l0 nmse numbers n_tokens l0_logged nmse_logged created_at wandb_url"
        " drop fate"
    )
    rows_fpath, account_fpath = dpath / "rendered.jsonl", dpath / "account.jsonl"
    for fpath in (rows_fpath, account_fpath):
        if not fpath.is_file():
            raise UserError(f"{fpath}: missing; {hint}")
    rows = jsonl.read_file(rows_fpath, *of_rows.split(), is_chosen=True)
    account = jsonl.read_file(account_fpath, *of_account.split())
    chosen = {run["run_id"] for run in account if run["fate"] in (CHOSEN, PINNED)}
    if chosen != {row["run_id"] for row in rows}:
        raise UserError(
            f"{dpath}: rendered.jsonl and account.jsonl don't match; {hint}"
        )
    return sorted(rows, key=lambda row: (row["layer"], row["l0"])), account
