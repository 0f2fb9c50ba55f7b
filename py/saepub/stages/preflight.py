"""preflight: check every chosen checkpoint before it is staged.

checkpoint/check.py checks the file, witnesses.py compares it with what W&B and the catalog say.
"""

import collections
import contextlib
import dataclasses
import pathlib
import typing as tp

import numpy as np

from .. import checkpoint, files, jsonl, machine, numbers, places, settings, witnesses
from ..activations import shards
from ..checkpoint import check as checkpoint_check
from ..checkpoint import probe as checkpoint_probe
from ..checkpoint import saev as saev_loader
from ..cli import UserError, parser
from ..slurm import executor, pool, tasks
from ..slurm.work import Part
from ..text import n_of, progress, say

ALSO = ("numbers", "l0_logged", "nmse_logged", "shard", "state", "n_dead")
"""Optional keys of a line."""

N_NAMED = 8
"""The most run ids in a suggested command."""


class Result(tp.NamedTuple):
    line: jsonl.Line
    reason: str = ""
    """Why the run can't be released; "" if it can."""
    lost: str = ""
    """How the executor's task that should have checked it ended."""


def main(argv: list[str]) -> int | None:
    p = parser(
        "Check the runs' checkpoints against header, W&B and catalog; add hash, loader, ….",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify"
        " | bin/settle | bin/select | bin/preflight"
        " | jq -c '[.run_id, .sha256, .warnings]'",
    )
    p.add_argument(
        "--jobs",
        metavar="N",
        help="files at once, or with EXECUTOR how many tasks share the runs (default: JOBS,"
        f" else by cores and memory; on Slurm one for every {executor.N_LINES} runs, at most"
        f" {executor.N_TASKS})",
    )
    args = p.parse_args(argv)
    settings.load()
    kind, at_once = executor.kind(), executor.n_jobs(args.jobs)
    given = list(jsonl.read(*witnesses.KEYS, also=ALSO, is_chosen=True))
    if not given:
        return 0
    places.check_runs_root(given)
    settings.claim("BUILD")
    store_real_inputs(given)
    results = check_all(given, kind, at_once)
    lost = [(jsonl.name_of(r.line), r.lost) for r in results if r.lost]
    results = check_together([r for r in results if not r.lost])
    report(results)
    executor.fail_on_lost(lost)
    if any(r.reason for r in results):
        return 1
    for r in results:
        jsonl.write(r.line)
    return 0


def check_all(given: list[jsonl.Line], kind: str, at_once: int | None) -> list[Result]:
    """Each line's result, in the lines' order.

    Args:
        at_once: How many processes or tasks share them; None to decide automatically.

    Raises:
        SetupError: No line can be checked.
    """
    parts = [
        Part(
            (line, str(fpath), probes_dpath(line)),
            [fpath, checkpoint_probe.inputs_fpath(probes_dpath(line), line["layer"])],
        )
        for line in given
        for fpath in [places.checkpoint_fpath(line)]
    ]
    n_bytes = memory_bytes(given)
    if kind:
        identity, env = saev_loader.identity(), saev_loader.environment()
        needs = tasks.Needs(n_bytes)
        outcomes = executor.run(
            check, parts, needs, at_once, depends_on=identity, env=env
        )
    else:
        saev_loader.available()  # before the fork, since importing it takes seconds
        # Under make -j, one of several works, on all cores, while the others prepare.
        told = f"preflight: {given[0]['repo']}: waiting until another repo's files are checked"
        with files.turn(settings.build_dpath() / ".preflight.lock", told):
            n_jobs = min(machine.n_at_once(n_bytes, at_once), len(parts))
            checked = pool.each(check, parts, n_jobs)
            outcomes = list(progress(checked, len(given), "preflight"))
    return [
        Result(outcome.result or line, outcome.reason, outcome.lost)
        for line, outcome in zip(given, outcomes, strict=True)
    ]


def check(line: jsonl.Line, fpath: str, probes_dpath: str) -> jsonl.Line:
    """Check a run's checkpoint and add what it is.

    The file is read from disk once. Besides the arguments, the result depends only on SAEV_DIR.

    Args:
        line: Has `witnesses.KEYS`.
        fpath: Its checkpoint.
        probes_dpath: Where the run's probe goes, and where real activations for it may be.

    Returns:
        The line with checkpoint, bytes, mtime_ns, sha256, schema, activation_config,
        loader, saev, probe and warnings.

    Raises:
        UserError: Why this run can't be released.
        SetupError: saev can't be imported, so no run can be checked.
    """
    checkpoint_check.prepare()
    with checkpoint.File(fpath) as file:
        if conflicts := witnesses.conflicts(line, vars(file.header)):
            raise UserError(f"at odds: {conflicts}")
        file.read()
        x = checkpoint_probe.inputs(probes_dpath, line["layer"], file.header.d_model)
        loaded = checkpoint_check.check_weights(file, x)
    probe_fpath = pathlib.Path(probes_dpath).absolute() / f"{line['run_id']}.npz"
    checkpoint_probe.write(loaded.probe, file.sha256, probe_fpath)
    return line | {
        "checkpoint": file.fpath,
        "bytes": file.n_bytes,
        "mtime_ns": str(file.mtime_ns),
        "sha256": file.sha256,
        "schema": file.header.schema,
        "activation_config": file.header.activation_config,
        "loader": loaded.loader,
        "saev": dataclasses.asdict(loaded.source),
        "probe": str(probe_fpath),
        "warnings": witnesses.warnings(line, file.mtime_ns / 1e9) + loaded.warnings,
    }


def probes_dpath(line: jsonl.Line) -> str:
    """The directory for the probes of a repo's checkpoints, which render publishes."""
    return str(settings.build_dpath().absolute() / line["repo"] / "probes")


def store_real_inputs(given: list[jsonl.Line]) -> None:
    """Store a few real activations for the probes of each measured layer, if its shard still
    exists. Otherwise those stored earlier stay in use."""
    panels = {(line["repo"], line["layer"]): line for line in given}
    for (slug, layer), line in panels.items():
        kind, _, name = (line.get("numbers") or "").partition(":")
        if kind != "measured":
            continue
        with contextlib.suppress(UserError, OSError):
            shard = shards.find(places.shards_root(line) / name, slug, layer)
            x = shards.few(shard, checkpoint_probe.N_TOKENS)
            if np.isfinite(x).all() and len(x):
                checkpoint_probe.write_inputs(probes_dpath(line), layer, x)


def check_together(results: list[Result]) -> list[Result]:
    """The results, with a reason for each run whose file is another run's too or whose numbers
    are not its file's, and with warnings if measured and logged numbers differ."""
    ids: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for line in (r.line for r in results if not r.reason):
        ids[line["sha256"]][line["run_id"]] = None
    found = []
    for r in results:
        line, reason = r.line, r.reason
        if not reason and len(of_file := ids[line["sha256"]]) > 1:
            names = " ".join(i for i in of_file if i != line["run_id"])
            reason = f"the same file as {names} (sha256 {line['sha256'][:12]}…)"
        if not reason:
            try:
                warnings = line["warnings"] + numbers.warnings(line)
                line, reason = line | {"warnings": warnings}, numbers.refusal(line)
            except UserError as err:
                reason = str(err)
        found.append(Result(line, reason))
    return found


def report(results: list[Result]) -> None:
    """Print warnings, what saev did not load, every reason, and the command to go on."""
    for r in results:
        for warning in [] if r.reason else r.line["warnings"]:
            say(f"preflight: warning: {jsonl.name_of(r.line)}: {warning}")
    checked = [r.line for r in results if not r.reason]
    if builtin := [line for line in checked if line["loader"] == jsonl.BUILTIN]:
        advice = "set SAEV_DIR to load them with saev"
        if saev_loader.checkout_src():
            advice = "the saev in SAEV_DIR can't load them"
        schemas = sorted({str(line["schema"] or "none") for line in builtin})
        say(
            f"preflight: {n_of(len(builtin), 'checkpoint')} (schema"
            f" {', '.join(schemas)}) checked only by the built-in reader; {advice}"
        )
    failed = [r for r in results if r.reason]
    for r in failed:
        say(f"preflight: {jsonl.name_of(r.line)}: {r.reason}")
    if failed:
        say(f"preflight: to continue without them: {without(failed)}")


def without(failed: list[Result]) -> str:
    """The command for a dry run without the failed runs."""
    excluded = settings.ids("EXCLUDE")
    ids = [*filter(jsonl.is_id, excluded), *(r.line["run_id"] for r in failed)]
    ids = list(dict.fromkeys(ids))
    slugs = {r.line["repo"] for r in failed}
    repo = f" REPO={slugs.pop()}" if len(slugs) == 1 else ""
    text = " ".join(ids)
    if len(ids) > N_NAMED:
        fpath = settings.build_dpath() / "refused.txt"
        with files.write_aside(fpath) as fd:
            fd.write(text + "\n")
        text = f"$(cat {fpath})"
    return f'make dry-run{repo} EXCLUDE="{text}"'


def memory_bytes(given: list[jsonl.Line]) -> int:
    """The memory for checking one file at a time, by the largest, with gaps in the heap as large
    as one more copy of it."""
    n_most = 0
    for line in given:
        with contextlib.suppress(OSError):
            n_most = max(n_most, places.checkpoint_fpath(line).stat().st_size)
    return (checkpoint_check.COPIES + 1) * n_most + machine.TORCH_BYTES
