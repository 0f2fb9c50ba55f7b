"""render: write the model card, the manifest and the plot into each repo's stage."""

import pathlib

from .. import catalog, jsonl, settings, templating
from ..cli import UserError, parser
from ..files import write_aside
from ..kinds import ACTIVATIONS, OBJECTIVES
from ..release import staged


def main(argv: list[str]) -> None:
    p = parser(
        "Write the model card, manifest.jsonl and pareto.png into each repo's stage.",
        "bin/render --account build/vitl-topk/account.jsonl"
        " < build/vitl-topk/staged.jsonl",
    )
    p.add_argument(
        "--account",
        metavar="FILE",
        help="all candidates, from select, to plot (else only the lines given)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    rows = read_rows()
    account = read_account(args.account, rows) if args.account else []
    for slug, of_repo in staged.by_repo(rows).items():
        runs = [run for run in account if run["repo"] == slug]
        with staged.lock(slug):
            documents = render(cat.get(slug), staged.dpath_of(slug), of_repo, runs)
        for row in of_repo:
            jsonl.write(row | {"documents": documents})


def read_rows() -> list[jsonl.Line]:
    keys = (
        "repo layer run_id l0 nmse numbers objective d_model d_sae created_at"
        " activation_config bytes sha256 schema loader path"
    )
    rows = list(jsonl.read(*keys.split()))
    return sorted(rows, key=lambda row: (row["repo"], row["layer"], row["l0"]))


def read_account(fpath: str, rows: list[jsonl.Line]) -> list[jsonl.Line]:
    """Every candidate with its fate.

    Raises:
        UserError: Its choice is not the one on stdin.
    """
    account = jsonl.read_file(fpath, "repo", "layer", "run_id", "l0", "nmse", "fate")
    published = {(row["repo"], row["run_id"]) for row in rows}
    chosen = {
        (run["repo"], run["run_id"])
        for run in account
        if run["fate"] in (jsonl.CHOSEN, jsonl.PINNED)
    }
    slugs = {row["repo"] for row in rows}
    differ = published ^ {key for key in chosen if key[0] in slugs}
    if differ:
        raise UserError(
            f"{fpath}: tells of another choice than the lines do"
            f" ({' '.join(sorted(run_id for _, run_id in differ))}); run select again"
        )
    return account


def render(
    repo: catalog.Repo,
    dpath: pathlib.Path,
    rows: list[jsonl.Line],
    account: list[jsonl.Line],
) -> dict[str, dict]:
    """Write the three documents into the stage `dpath`. The same input gives the same bytes.

    Returns:
        Their sizes and hashes by name, which push and verify hold the repo to.
    """
    from ..release import plot

    if not dpath.is_dir():
        raise UserError(f"{dpath}: no stage; run bin/stage before bin/render")
    plotted = account or [row | {"fate": jsonl.CHOSEN} for row in rows]
    plot.pareto(dpath / "pareto.png", repo.repo_id, plotted)
    with write_aside(dpath / "manifest.jsonl") as fd:
        fd.write(staged.manifest(rows))
    with write_aside(dpath / "README.md") as fd:
        fd.write(card(repo, rows, account))
    return {name: staged.document(dpath / name) for name in staged.DOCUMENTS}


def card(repo: catalog.Repo, rows: list[jsonl.Line], account: list[jsonl.Line]) -> str:
    """The model card. Text in it comes from the catalog and from checked values only."""
    env = templating.environment()
    last = [row for row in rows if row["layer"] == rows[-1]["layer"]]
    loaders = sorted({row["loader"] for row in rows} - {"builtin"})
    return env.get_template("card.md").render(
        repo=repo,
        rows=rows,
        example=last[len(last) // 2],
        n_checkpoints=len(rows),
        n_pinned=sum(run["fate"] == jsonl.PINNED for run in account),
        n_builtin=sum(row["loader"] == "builtin" for row in rows),
        loaders=" and ".join(loaders),
        activation_tag=repo.activation[0],
        activation_name=" and ".join(
            ACTIVATIONS[name].title for name in repo.activation
        ),
        objective_name=OBJECTIVES[repo.objective],
    )
