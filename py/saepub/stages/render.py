"""render: write the files besides checkpoints into a repo's stage: the model card, the manifest,
the plot, check.npz and config.json."""

import pathlib
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UserError, parser
from ..files import write_aside
from ..release import card, manifest, staged


def main(argv: list[str]) -> None:
    p = parser(
        "Write README.md, manifest.jsonl, pareto.png, check.npz and config.json into each"
        " repo's stage.",
        "bin/render --account build/vitl-topk/account.jsonl"
        " < build/vitl-topk/staged.jsonl",
    )
    p.add_argument(
        "--account",
        metavar="FILE",
        help="all candidates, from select, for the plot and the card",
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
        "repo layer run_id l0 nmse numbers objective d_model d_sae created_at activation"
        " activation_config bytes sha256 schema loader path probe"
    )
    also = "aux n_dead n_tokens l0_logged nmse_logged wandb_url saev"
    rows = jsonl.read(*keys.split(), also=also.split(), is_chosen=True)
    return sorted(rows, key=lambda row: (row["repo"], row["layer"], row["l0"]))


def read_account(fpath: str, rows: list[jsonl.Line]) -> list[jsonl.Line]:
    """Every candidate with its fate.

    Raises:
        UserError: It doesn't match the choice on stdin.
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
            f"{fpath}: not the same choice as on stdin (different:"
            f" {' '.join(sorted(run_id for _, run_id in differ))}); run select again"
        )
    return account


def render(
    repo: catalog.Repo,
    dpath: pathlib.Path,
    rows: list[jsonl.Line],
    account: list[jsonl.Line],
) -> dict[str, dict[str, tp.Any]]:
    """Write the documents into the stage `dpath`. The same input gives the same bytes.

    Returns:
        Their sizes and hashes by name, which push and verify check.
    """
    from ..release import plot

    if not dpath.is_dir():
        raise UserError(f"{dpath}: no stage; run bin/stage before bin/render")
    check = write_check(dpath / "check.npz", rows)
    plotted = account or [row | {"fate": jsonl.CHOSEN} for row in rows]
    plot.pareto(dpath / "pareto.png", repo.repo_id, plotted)
    texts = {
        "manifest.jsonl": manifest.text(rows),
        "config.json": manifest.config(repo.base_model, rows),
        "README.md": card.text(repo, rows, account, check),
    }
    for name, text in texts.items():
        with write_aside(dpath / name) as fd:
            fd.write(text)
    return {name: staged.document(dpath / name) for name in staged.DOCUMENTS}


def write_check(fpath: pathlib.Path, rows: list[jsonl.Line]) -> card.Check:
    """Write preflight's probes into one file.

    Raises:
        UserError: A probe is missing.
    """
    from ..checkpoint import bundle, probe

    try:
        probes = {
            (row["layer"], row["run_id"]): probe.read(row["probe"], row["sha256"])
            for row in rows
        }
    except UserError as err:
        raise UserError(f"{err}; make recheck REPO={rows[0]['repo']}") from None
    bundle.write(fpath, probes)
    real = {layer for (layer, _), p in probes.items() if not probe.is_random(p.x)}
    return card.Check(bundle.n_tokens(probes), tuple(sorted(real)))
