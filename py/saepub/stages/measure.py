"""measure: L0 and NMSE of every candidate, from its own checkpoint, on its layer's shard.

Results are written to records/measured/ after each pass, and the sums of an unfinished pass to
build/, so rerunning the command at any time resumes: a run that was measured on these bytes, this
shard and these tokens is not measured again.
"""

import collections
import contextlib
import functools
import math
import pathlib
import re
import typing as tp

from .. import jsonl, measured, numbers, places, settings
from ..activations import estimate, passes, remake
from ..activations import measure as engine
from ..activations.passes import Found, Job, Source
from ..cli import UserError, fail_on, parser
from ..jsonl import Line
from ..slurm import executor, tasks
from ..slurm.work import Part
from ..text import meter, n_of, say

KEYS = ("repo", "layer", "run_id", "expected", "l0", "nmse", "d_model", "shard", "drop")

PASSES_A_TASK = 3
"""How many passes each of an executor's tasks gets, so that all end at about the same time."""

Todo = dict[Source, list[int]]
"""The indices of the lines to measure, by their activations."""


def main(argv: list[str]) -> None:
    p = parser(
        "Measure L0 and NMSE of every run that isn't dropped, on its layer's shard.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify"
        " | bin/measure | jq -c '[.run_id, .l0, .nmse, .numbers]'",
    )
    p.add_argument(
        "--shards",
        type=pathlib.Path,
        metavar="DIR",
        help="activations to use instead of SHARDS_ROOT: a directory with <shard>/,"
        " <slug>/layer_<N>.npy or layer_<N>.npy, a saev shard (its content tokens, without"
        " [CLS]), or an .npy file; records are kept only for the runs' own shard",
    )
    p.add_argument(
        "--jobs",
        metavar="N",
        help="with EXECUTOR, how many tasks share the runs (default: JOBS, else by cores and"
        f" memory; on Slurm at most {executor.N_TASKS})",
    )
    args = p.parse_args(argv)
    settings.load()
    kind, n_tasks = executor.kind(), executor.n_jobs(args.jobs)
    lines = list(jsonl.read(*KEYS))
    asked = find_sources(lines, args.shards)
    found = dict(look_up(lines, asked))
    todo = {
        source: left
        for source, of in asked.items()
        if (left := [i for i in of if not found[i].record])
    }
    check_shards(lines, todo)
    n_before = sum(bool(one.record) for one in found.values())
    if n_before:
        say(f"measure: {n_of(n_before, 'run')} already measured")
    if todo:
        do = functools.partial(apart, kind, n_tasks) if kind else here
        found |= dict(measure(lines, todo, do))
        n_measured = sum(one.is_new for one in found.values())
        say(f"measure: {n_of(n_measured, 'run')} measured")
    n_failed = print_problems(lines, found)
    for i, line in enumerate(lines):
        record = found[i].record if i in found else None
        jsonl.write(with_numbers(line, record) if record else line)
    if n_failed:
        raise UserError(
            f"{n_of(n_failed, 'run')} could not be measured; the other results are kept"
        )


def with_numbers(line: Line, record: measured.Record) -> Line:
    """A line with the measured numbers, and the logged ones under other keys."""
    own = {key: getattr(record, key) for key in ("l0", "nmse", "n_tokens", "n_dead")}
    return line | numbers.logged(line) | own | {"numbers": f"measured:{record.shard}"}


# ---- what to measure, on which activations ---------------------------------------------------


def find_sources(lines: list[Line], shards_dpath: pathlib.Path | None) -> Todo:
    """The lines to measure, by their activations, whether or not these exist.

    Args:
        lines: All lines. Dropped ones are skipped, except for those without numbers, and so
            are layers that LAYERS doesn't name.
        shards_dpath: The --shards option.

    Raises:
        UserError: It is unknown which shard to measure a layer on, or where that is.
    """
    n_asked = tp.cast(int, settings.number("TOKENS"))
    layers = settings.ids("LAYERS")
    if unknown := set(layers) - {str(line["layer"]) for line in lines}:
        raise UserError(f"LAYERS: no run of layer {' '.join(sorted(unknown))}")
    panels: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
    for i, line in enumerate(lines):
        is_wanted = line["drop"] is None or numbers.is_lacking(line["drop"])
        if is_wanted and (not layers or str(line["layer"]) in layers):
            panels[line["repo"], line["layer"]].append(i)
    found: Todo = collections.defaultdict(list)
    problems = []
    for (slug, layer), of_panel in panels.items():
        here = [lines[i] for i in of_panel]
        try:
            source = find_source(here, slug, layer, n_asked, shards_dpath)
        except UserError as err:
            problems.append(str(err))
        else:
            found[source] += of_panel
    fail_on(problems, "nothing was measured")
    return dict(sorted(found.items()))


def find_source(
    lines: list[Line],
    slug: str,
    layer: int,
    n_asked: int,
    shards_dpath: pathlib.Path | None,
) -> Source:
    """The activations of one (repo, layer), whether or not they exist."""
    expected = lines[0]["expected"]
    shard = numbers.shard_of(expected, (line["shard"] for line in lines))
    root = shards_dpath or places.shards_root(lines[0])
    if shard and (shards_dpath is None or (root / shard).exists()):
        return Source(str(root / shard), "", shard, layer, n_asked, is_kept=True)
    if shards_dpath is None:
        raise UserError(
            f'{slug} layer {layer}: W&B names no shard; write "shard" in the catalog, or use'
            " --shards DIR"
        )
    root = root.resolve()
    is_kept = root.name == shard
    name = re.sub(r"[^A-Za-z0-9_-]", "-", root.stem)[:64]
    return Source(str(root), slug, name, layer, n_asked, is_kept)


def look_up(lines: list[Line], asked: Todo) -> tp.Iterator[tuple[int, Found]]:
    """Each line's index with its valid record, if any."""
    for source, of in asked.items():
        try:
            shard = source.open()
        except (UserError, OSError):  # reported later, for lines without a record
            shard = None
        for i, job in zip(of, jobs_of(lines, of), strict=True):
            record, problem = passes.record_of(source, shard, job)
            if problem:
                say(f"measure: {problem}: measuring it again")
            yield i, Found(record)


def check_shards(lines: list[Line], todo: Todo) -> None:
    """Check all activations before starting work that may take hours.

    Raises:
        UserError: Some don't exist, or don't fit their runs.
    """
    problems = []
    missing: dict[str, list[Source]] = collections.defaultdict(list)
    for source, of in todo.items():
        if not pathlib.Path(source.fpath).exists():
            missing[source.fpath].append(source)
            continue
        try:
            shard = source.open()
            n_tokens = shard.n_examples * shard.per_example
            for line in (lines[i] for i in of):
                if n_tokens and line["d_model"] in (None, shard.d_model):
                    continue
                raise UserError(
                    f"{shard.fpath}: {n_of(n_tokens, 'token')} of width {shard.d_model},"
                    f" but {line['repo']} layer {source.layer} needs width"
                    f" {line['d_model']}"
                )
        except (UserError, OSError) as err:
            problems.append(str(err))
    for where, sources in missing.items():
        here = [lines[i] for source in sources for i in todo[source]]
        known = [x[remake.METADATA] for x in here if x.get(remake.METADATA)]
        layers = {source.layer for source in sources}
        problems.append(remake.instructions(where, layers, known[0] if known else {}))
    fail_on(problems, "nothing was measured")


# ---- measuring -------------------------------------------------------------------------------

Do = tp.Callable[[list[Line], Todo], tp.Iterator[tuple[int, Found]]]


def measure(lines: list[Line], todo: Todo, do: Do) -> tp.Iterator[tuple[int, Found]]:
    """Measure lines with `do`. Layers that another `measure` works on wait until it ends."""
    waiting = dict(todo)
    while waiting:
        with contextlib.ExitStack() as stack:
            claimed = [
                source
                for source in waiting
                if stack.enter_context(passes.claimed(source))
            ]
            if not claimed:
                claimed = [next(iter(waiting))]
                told = f"measure: waiting for another measure of {claimed[0].name}"
                stack.enter_context(passes.claimed(claimed[0], told))
            left: Todo = {}
            for source in claimed:
                mine = {source: waiting.pop(source)}
                for i, found in look_up(lines, mine):
                    measured.tidy(lines[i]["run_id"], source.shard)
                    if found.record:  # by another process meanwhile
                        yield i, found
                    else:
                        left.setdefault(source, []).append(i)
            yield from do(lines, left)


def here(lines: list[Line], todo: Todo) -> tp.Iterator[tuple[int, Found]]:
    """Measure in this process, with as many runs per pass as fit in memory."""
    if engine.device() == "cpu" and estimate.has_gpu():
        say("measure: there is a GPU, but torch can't use it, so measuring on CPUs")
    n_all = sum(len(of) * passes.n_tokens(source) for source, of in todo.items())
    with meter(n_all, "measure", "token") as count:
        for source, of in todo.items():
            for batch in batched(of, passes.n_fit(source, jobs_of(lines, of))):
                jobs = jobs_of(lines, batch)
                n_runs = len(jobs)
                try:
                    found = passes.run(source, jobs, lambda n: count(n * n_runs))  # noqa: B023
                except UserError as err:
                    found = [Found(None, str(err))] * n_runs
                yield from zip(batch, found, strict=True)


def apart(
    kind: str, n_tasks: int | None, lines: list[Line], todo: Todo
) -> tp.Iterator[tuple[int, Found]]:
    """Measure with the EXECUTOR, whose tasks write each pass's records when it ends."""
    n_todo = sum(map(len, todo.values()))
    n_shared = n_tasks or (executor.N_TASKS if kind == tasks.SLURM else 1)
    n_at_once = math.ceil(n_todo / (n_shared * PASSES_A_TASK))
    shared = [(s, batch) for s, of in todo.items() for batch in batched(of, n_at_once)]
    n_gpus = settings.number("SLURM_GPUS") or 0
    parts, n_bytes = [], 0
    for source, batch in shared:
        jobs = jobs_of(lines, batch)
        fpaths = [pathlib.Path(job.checkpoint_fpath) for job in jobs]
        parts.append(Part((source, jobs), fpaths, len(batch)))
        n_bytes = max(n_bytes, passes.memory_bytes(source, jobs, n_gpus))
    n_cpus = settings.number("SLURM_CPUS")
    needs = tasks.Needs(n_bytes, n_cpus, n_gpus)
    outcomes = executor.run(
        passes.as_task, parts, needs, n_tasks, env=environment(n_cpus)
    )
    for (source, batch), outcome in zip(shared, outcomes, strict=True):
        why = outcome.reason or f"not done: {outcome.lost}"
        found = [Found(None, why)] * len(batch)
        if outcome.result:
            found = passes.from_task(source, outcome.result)
        yield from zip(batch, found, strict=True)


def environment(n_cpus: int | None) -> dict[str, str]:
    """A task's environment: where records go, and its cores."""
    env = {
        settings.in_environment("BUILD"): str(settings.build_dpath().absolute()),
        "RECORDS": str(settings.records_dpath().absolute()),
    }
    return env | ({"OMP_NUM_THREADS": str(n_cpus)} if n_cpus else {})


def batched(items: list[int], n: int) -> list[list[int]]:
    """The items in lists of up to `n`."""
    return [items[start : start + n] for start in range(0, len(items), n)]


def jobs_of(lines: list[Line], indices: tp.Iterable[int]) -> list[Job]:
    return [
        Job(lines[i]["run_id"], str(places.checkpoint_fpath(lines[i]))) for i in indices
    ]


def print_problems(lines: list[Line], found: dict[int, Found]) -> int:
    """Print why runs have no numbers, and warnings; return how many runs failed."""
    n_failed = 0
    subtract = []
    for i, one in found.items():
        if one.record is None:
            say(f"measure: {jsonl.name_of(lines[i])}: {one.why}")
            n_failed += not one.has_diverged
        elif one.record.subtracts_b_dec:
            subtract.append(lines[i]["run_id"])
    if subtract:
        say(
            f"measure: {n_of(len(subtract), 'run')} measured with b_dec subtracted from x, as"
            " in the saev that trained them; current saev doesn't do that:"
            f" {' '.join(subtract)}"
        )
    return n_failed
