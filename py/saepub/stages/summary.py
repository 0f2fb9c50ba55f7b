"""summary: print what each repo would publish, and what became of every candidate."""

import sys
import typing as tp

from .. import catalog, jsonl, settings
from ..choice.account import aux_of, by_layer, left_out, warnings
from ..cli import parser
from ..numbers import advice, describe, is_lacking
from ..release import staged
from ..text import human, l0_text, n_of, nmse_text


def main(argv: list[str]) -> None:
    p = parser(
        "Print what each repo would publish and what became of every candidate.",
        "bin/summary --account build/vitl-topk/account.jsonl"
        " < build/vitl-topk/rendered.jsonl",
    )
    p.add_argument("--account", metavar="FILE", required=True, help="from select")
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    keys = "repo layer run_id l0 nmse numbers activation aux bytes path loader saev warnings"
    rows = list(jsonl.read(*keys.split(), is_chosen=True))
    keys = "repo layer run_id l0 nmse numbers n_tokens drop fate"
    account = jsonl.read_file(args.account, *keys.split())
    rows.sort(key=lambda row: (row["layer"], row["l0"]))
    for slug, published in staged.by_repo(rows).items():
        runs = [run for run in account if run["repo"] == slug]
        sys.stdout.write(summary(cat.get(slug), published, runs))


def summary(
    repo: catalog.Repo, rows: list[jsonl.Line], account: list[jsonl.Line]
) -> str:
    dpath = staged.dpath_of(repo.slug)
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
        *("  " + text for text in sources(rows, account)),
        *("  warning: " + text for text in warnings(rows, account)),
        "",
        f"  staged  {dpath}",
        f"  card    {dpath / 'README.md'}",
        f"  plot    {dpath / 'pareto.png'}",
        "",
    ]
    return "\n".join(out) + "\n"


def table(rows: list[jsonl.Line]) -> list[str]:
    """Run ID, Layer, k, Aux, L0, NMSE, Path in aligned columns, by layer, then L0.

    k only if a run has one, Aux only if the runs differ in it.
    """
    columns: dict[str, tp.Callable[[jsonl.Line], str]] = {
        "Run ID": lambda row: row["run_id"],
        "Layer": lambda row: str(row["layer"]),
        "k": lambda row: str((row["activation"] or {}).get("top_k") or ""),
        "Aux": lambda row: row["aux"] or "",
        "L0": lambda row: l0_text(row["l0"]),
        "NMSE": lambda row: nmse_text(row["nmse"]),
        "Path": lambda row: row["path"],
    }
    if not any(columns["k"](row) for row in rows):
        del columns["k"]
    if len(aux_of(rows)) < 2:
        del columns["Aux"]
    cells = [list(columns), *([of(row) for of in columns.values()] for row in rows)]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = {"Run ID", "Aux", "Path"}
    return [
        "  ".join(
            f"{cell:<{w}}" if name in texts else f"{cell:>{w}}"
            for name, cell, w in zip(columns, row, width, strict=True)
        ).rstrip()
        for row in cells
    ]


def sources(rows: list[jsonl.Line], account: list[jsonl.Line]) -> list[str]:
    """Where the numbers of each layer come from; how many files saev has not loaded."""
    layers = by_layer(account)
    out = [f"layer {layer}: {describe(runs)}" for layer, runs in layers.items()]
    if lacking := [run for run in account if is_lacking(run["drop"])]:
        from ..activations import estimate  # numpy: slow to import

        out.append(advice(lacking, estimate.of(lacking)))
    n_builtin = sum(row["loader"] == jsonl.BUILTIN for row in rows)
    if n_builtin:
        out.append(
            f"{n_of(n_builtin, 'file')} checked only by the built-in reader;"
            " set SAEV_DIR to load them with saev"
        )
    return out
