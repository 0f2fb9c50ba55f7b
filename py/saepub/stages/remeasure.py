"""remeasure: L0 and NMSE of the very files that would be published, on cached activations."""

import dataclasses
import itertools
import pathlib
import sys
import typing as tp

from .. import checkpoint, jsonl, machine, settings
from ..activations import shards
from ..checkpoint import check as preflight_check
from ..checkpoint import saev as saev_loader
from ..checkpoint.sae import Sae
from ..cli import UsageError, UserError, parser, report
from ..jsonl import Line
from ..release import staged
from ..slurm import executor
from ..text import human, n_of, progress, say

KEYS = (
    *("repo", "layer", "run_id", "checkpoint", "d_model", "l0", "nmse"),
    *("sha256", "bytes", "mtime_ns"),
)

AT_ONCE = 8
"""How many SAEs share one pass over the activations. All of them lie in memory."""

BATCH_BYTES = 2**27
"""How large one batch's features may be, float32. About three times that is in use."""

TOLERANCE = 0.02
"""How far from the card's number, relative to it, is worth a warning."""

SAME = 1e-12
"""Activations whose variance is below this part of their square are all one, to float32."""


class Measured(tp.NamedTuple):
    l0: float
    nmse: float


def main(argv: list[str]) -> None:
    p = parser(
        "Measure L0 and NMSE of checked checkpoints on activations of your own.",
        "bin/remeasure --shards build/demo/shards < build/vits-relu/checked.jsonl"
        " | jq -c '{run_id, l0, l0_measured}'",
    )
    p.add_argument(
        "--shards",
        type=pathlib.Path,
        metavar="DIR",
        help="activations: <slug>/layer_<N>.npy, layer_<N>.npy or the shards of saev"
        " (their content tokens, without [CLS]) in a directory, or one .npy file",
    )
    p.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="tokens at once, of saev's shards whole examples (default: as many as have"
        f" {human(BATCH_BYTES)} of features)",
    )
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"with EXECUTOR, the tasks that share the lines, up to {AT_ONCE} of a layer"
        " at once (default: JOBS, else as cores and memory allow; of a Slurm array one for"
        f" every {executor.N_LINES} lines, {executor.N_TASKS} at most)",
    )
    args = p.parse_args(argv)
    if args.shards is None:
        raise UsageError("say where activations are: --shards DIR")
    if args.batch is not None and args.batch < 1:
        raise UsageError(f"--batch is {args.batch}; it takes 1 or more")
    settings.load()
    kind, n_tasks = executor.kind(), executor.n_jobs(args.jobs)
    rows = list(jsonl.read(*KEYS))
    if not rows:
        return
    sources = find_shards(args.shards, rows)
    groups = [
        of_layer[start : start + AT_ONCE]
        for of_layer in (list(found) for _, found in itertools.groupby(rows, _layer_of))
        for start in range(0, len(of_layer), AT_ONCE)
    ]
    n_off = 0
    if kind:
        measured = measure_apart(groups, sources, args.shards, args.batch, n_tasks)
    else:
        measured = (remeasure(g, sources[_layer_of(g[0])], args.batch) for g in groups)
    for group in measured:
        for row in group:
            jsonl.write(row)
            n_off += warn(row)
        sys.stdout.flush()
    n_off_text = f"{n_off} off the card's numbers by more than {TOLERANCE:.0%}"
    say(f"remeasure: {n_of(len(rows), 'checkpoint')}, {n_off_text}")


def _layer_of(row: Line) -> tuple[str, int]:
    return row["repo"], row["layer"]


def find_shards(
    shards_fpath: pathlib.Path, rows: list[Line]
) -> dict[tuple[str, int], shards.Shard]:
    """The activations for each (repo, layer), which may take hours: so all are looked at first.

    Raises:
        UserError: Some are missing or don't fit their SAEs, or a checkpoint has changed.
    """
    layers = {_layer_of(row): row["d_model"] for row in rows}
    is_file = shards_fpath.is_file()
    if is_file and len(layers) > 1:
        raise UsageError(
            f"{shards_fpath}: one file is one layer's activations, and the lines are of"
            f" {len(layers)} layers; name a directory"
        )
    problems = []
    found: dict[tuple[str, int], shards.Shard] = {}
    for (slug, layer), d_model in layers.items():
        try:
            if is_file:
                source: shards.Shard = shards.Npy(shards_fpath)
            else:
                source = shards.find(shards_fpath, slug, layer)
            if source.d_model != d_model or source.n_tokens == 0:
                raise UserError(
                    f"{source.fpath}: {n_of(source.n_tokens, 'token')} of width"
                    f" {source.d_model}, where {slug} layer {layer} takes width {d_model}"
                )
            found[slug, layer] = source
        except (UserError, OSError) as err:
            problems.append(str(err))
    for row in rows:
        try:
            staged.check_unchanged(row["checkpoint"], row)
        except UserError as err:
            problems.append(str(err))
    report(problems, "nothing was measured")
    return found


def measure_apart(
    groups: list[list[Line]],
    sources: dict[tuple[str, int], shards.Shard],
    shards_fpath: pathlib.Path,
    n_batch: int | None,
    n_tasks: int | None,
) -> list[list[Line]]:
    """`remeasure` of each group by the EXECUTOR, and without what it did before.

    Raises:
        UserError: A group could not be measured.
    """
    parts = []
    for group in groups:
        fpaths = [pathlib.Path(row["checkpoint"]) for row in group]
        fpaths += sources[_layer_of(group[0])].fpaths
        args = (group, str(shards_fpath.absolute()), n_batch)
        parts.append(executor.Part(args, fpaths, len(group)))
    outcomes = executor.run(
        measure_lines,
        parts,
        executor.Needs(memory_bytes(groups, n_batch)),
        n_tasks,
        depends_on=saev_loader.identity(),
        env=saev_loader.environment(),
    )
    lost = [
        (jsonl.name_of(row), outcome.lost)
        for group, outcome in zip(groups, outcomes, strict=True)
        for row in group
        if outcome.lost
    ]
    executor.tell_lost(lost, [o.reason for o in outcomes if o.reason])
    return [outcome.result for outcome in outcomes]


def measure_lines(
    rows: list[Line], shards_fpath: str, n_batch: int | None
) -> list[Line]:
    """`remeasure`, as a task calls it."""
    (source,) = find_shards(pathlib.Path(shards_fpath), rows).values()
    return remeasure(rows, source, n_batch)


def memory_bytes(groups: list[list[Line]], n_batch: int | None) -> int:
    """About the most memory that one group at a time takes."""
    rows = [row for group in groups for row in group]
    n_most = max(row["bytes"] for row in rows)
    d_sae = max(row["bytes"] // (8 * row["d_model"]) for row in rows)
    features = max(BATCH_BYTES, 4 * d_sae * (n_batch or 0))
    n_saes = max(len(group) for group in groups) + 2  # copies while one is read
    return n_saes * n_most + 4 * features + machine.TORCH_BYTES


def remeasure(
    rows: list[Line], source: shards.Shard, n_batch: int | None
) -> list[Line]:
    """Lines of one (repo, layer) with `l0_measured`, `nmse_measured` and `n_tokens`.

    Raises:
        UserError: A checkpoint can't be read or isn't the line's, or the activations have
            no NMSE.
    """
    saes = [_sae(row) for row in rows]
    d_sae = max(sae.header.d_sae for sae, _ in saes)
    n_batch = n_batch or max(1, BATCH_BYTES // (4 * d_sae))
    label = f"remeasure {rows[0]['repo']} layer {rows[0]['layer']}"
    batches = progress(source.batches(n_batch), source.n_batches(n_batch), label)
    try:
        measured = measure(saes, batches)
    except ValueError as err:
        raise UserError(f"{source.fpath}: {err}") from None
    return [
        row
        | {
            "l0_measured": m.l0,
            "nmse_measured": m.nmse,
            "n_tokens": source.n_tokens,
        }
        for row, m in zip(rows, measured, strict=True)
    ]


def _sae(row: Line) -> tuple[Sae, bool]:
    """A line's SAE, and whether its b_dec is to be taken from x first."""
    with checkpoint.File(row["checkpoint"]) as file:
        file.read()
        if file.sha256 != row["sha256"]:
            raise UserError(
                f"{file.fpath}: not the file that preflight read, which had sha256"
                f" {row['sha256']}: make recheck REPO={row['repo']}"
            )
        if file.header.d_model != row["d_model"]:
            raise UserError(f"{file.fpath}: its d_model is {file.header.d_model}")
        return file.sae(), _takes_b_dec(
            file, row.get("loader", preflight_check.BUILTIN)
        )


def _takes_b_dec(file: checkpoint.File, loader: str) -> bool:
    """Whether the loader that a line names takes b_dec from x before it encodes.

    saev 0.1.0 did, and it reads files without a schema only.

    Raises:
        UserError: That loader is not at hand to be asked.
    """
    if file.header.schema is not None or loader == preflight_check.BUILTIN:
        return False
    import torch

    saev = saev_loader.at_hand()
    if saev.label != loader:
        raise UserError(
            f"{file.fpath}: preflight loaded it with {loader}, and {saev.label} is at hand;"
            " set SAEV_DIR as it was then"
        )
    model = saev.load(file.loader_fpath())
    _, _, takes_b_dec = saev.run(model, torch.zeros(1, file.header.d_model))
    return takes_b_dec


def measure(saes: list[tuple[Sae, bool]], batches: tp.Iterable) -> list[Measured]:
    """L0 and NMSE of SAEs over the same activations, which are read once.

    L0 is the mean count of non-zero features a token. NMSE is the sum of squared errors of
    the full-prefix reconstruction, over the sum of squares of the activations about their
    mean. The SAEs compute in float32, as they do for those who use them; sums are float64.

    The sum about the mean comes from the same pass, as sum x^2 - (sum x)^2 / n. Most of it
    cancels where the mean is large, which float64 affords: a mean of 1000 standard
    deviations leaves 10 digits.

    Args:
        saes: SAEs of one d_model, each with whether its b_dec is taken from x first.
        batches: numpy arrays, float32 of shape (n, d_model).

    Raises:
        ValueError: An activation or a reconstruction is not finite, or the activations are
            all the same.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    saes = [(_on(sae, device), takes_b_dec) for sae, takes_b_dec in saes]
    n_fired, errors = [0] * len(saes), [0.0] * len(saes)
    n_tokens, sums, squares = 0, 0.0, 0.0
    with torch.inference_mode():
        for batch in batches:
            x = torch.from_numpy(batch).to(device)
            x64 = x.double()
            sums = sums + x64.sum(dim=0)
            squares += x64.square().sum().item()
            n_tokens += len(x)
            if not squares < float("inf"):  # NaN is not
                raise ValueError(f"NaN or infinite among its first {n_tokens} tokens")
            for i, (sae, takes_b_dec) in enumerate(saes):
                f_x = sae.activate(sae.pre_activation(x, subtract_b_dec=takes_b_dec))
                n_fired[i] += int(torch.count_nonzero(f_x))
                errors[i] += (sae.decode(f_x).double() - x64).square().sum().item()
    about_mean = squares - (sums.square().sum() / n_tokens).item()
    if about_mean < SAME * squares:
        raise ValueError("all activations are the same, and so have no NMSE")
    if not sum(errors) < float("inf"):
        raise ValueError("an SAE reconstructs it with values that are not finite")
    return [
        Measured(n / n_tokens, error / about_mean)
        for n, error in zip(n_fired, errors, strict=True)
    ]


def _on(sae: Sae, device: str) -> Sae:
    tensors = {name: tensor.to(device) for name, tensor in sae.tensors.items()}
    return dataclasses.replace(sae, tensors=tensors)


def warn(row: Line) -> bool:
    """Tell where what was measured differs from the card's numbers; whether it does."""
    off = []
    for key, name in (("l0", "L0"), ("nmse", "NMSE")):
        card, measured = row[key], row[f"{key}_measured"]
        if type(card) not in (int, float):  # a line that could not be published
            continue
        if abs(measured - card) > TOLERANCE * abs(card):
            off.append(f"{name} is {measured:.5g}, the card says {card:.5g}")
    if off:
        name = f"{row['repo']} layer {row['layer']} {row['run_id']}"
        say(f"remeasure: warning: {name}: {'; '.join(off)}")
    return bool(off)
