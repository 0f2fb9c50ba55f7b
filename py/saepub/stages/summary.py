"""summary: tell a person what each repo would publish, and where every candidate went."""

import collections
import sys

from .. import catalog, jsonl, settings
from ..choice.account import left_out, warnings
from ..cli import parser
from ..text import human, l0_text, n_of, nmse_text


def main(argv: list[str]) -> None:
    p = parser(
        "Tell what each repo would publish and where every candidate went.",
        "bin/summary --account build/vitl-topk/account.jsonl"
        " < build/vitl-topk/rendered.jsonl",
    )
    p.add_argument("--account", metavar="FILE", required=True, help="from select")
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    keys = "repo layer run_id l0 nmse nmse_source bytes path loader warnings"
    rows = list(jsonl.read(*keys.split()))
    keys = "repo layer run_id l0 nmse drop fate"
    account = jsonl.read_file(args.account, *keys.split())
    by_repo = collections.defaultdict(list)
    for row in sorted(rows, key=lambda r: (r["layer"], r["l0"])):
        by_repo[row["repo"]].append(row)
    for slug, published in by_repo.items():
        runs = [run for run in account if run["repo"] == slug]
        sys.stdout.write(summary(cat.get(slug), published, runs))


def summary(
    repo: catalog.Repo, rows: list[jsonl.Line], account: list[jsonl.Line]
) -> str:
    dpath = settings.build_dpath() / repo.slug / "stage"
    extra = [f for f in sorted(dpath.iterdir()) if f.is_file()]
    n_bytes = sum(row["bytes"] for row in rows) + sum(f.stat().st_size for f in extra)
    n_files = len(rows) + len(extra)
    out = [
        f"{repo.repo_id} ({repo.slug})",
        f"  would publish {n_of(n_files, 'file')}, {human(n_bytes)}:"
        f" {n_of(len(rows), 'checkpoint')} and {', '.join(f.name for f in extra)}",
        "",
        *("  " + text for text in table(rows)),
        "",
        *("  " + text for text in left_out(account)),
        *("  " + text for text in sources(rows)),
        *("  warning: " + text for text in warnings(rows, account)),
        "",
        f"  staged  {dpath}",
        f"  card    {dpath / 'README.md'}",
        f"  plot    {dpath / 'pareto.png'}",
        "",
    ]
    return "\n".join(out) + "\n"


def table(rows: list[jsonl.Line]) -> list[str]:
    """Run ID, Layer, L0, NMSE, Path in aligned columns, by layer, then L0."""
    cells = [("Run ID", "Layer", "L0", "NMSE", "Path")] + [
        (
            row["run_id"],
            str(row["layer"]),
            l0_text(row["l0"]),
            nmse_text(row["nmse"]),
            row["path"],
        )
        for row in rows
    ]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"{run_id:<{width[0]}}  {layer:>{width[1]}}  {l0:>{width[2]}}"
        f"  {nmse:>{width[3]}}  {path}"
        for run_id, layer, l0, nmse, path in cells
    ]


def sources(rows: list[jsonl.Line]) -> list[str]:
    """Where NMSE was taken from, where not W&B; what no saev has loaded."""
    out = []
    disk = collections.Counter(
        (row["layer"], row["nmse_source"])
        for row in rows
        if row["nmse_source"] != "wandb"
    )
    for (layer, source), n in sorted(disk.items()):
        out.append(f"layer {layer}: NMSE of {n_of(n, 'run')} from {source}")
    n_builtin = sum(row["loader"] == "builtin" for row in rows)
    if n_builtin:
        out.append(
            f"{n_of(n_builtin, 'file')} checked by the built-in reader;"
            f" set SAEV_DIR to load them with saev"
        )
    return out
