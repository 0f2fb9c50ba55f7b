"""preflight: check every chosen checkpoint before anything is made of it.

What is checked of one run: preflight_check.py. Here: many at once, and what they say together.
"""

import collections
import contextlib
import signal
import typing as tp

from .. import jsonl, machine, numbers, places, settings
from ..checkpoint import check as preflight_check
from ..checkpoint import saev as saev_loader
from ..cli import SetupError, UserError, parser
from ..slurm import executor
from ..text import n_of, progress, say

if tp.TYPE_CHECKING:
    import concurrent.futures

COPIES = 4
"""Copies of a file in memory while saev loads it: ours, its bytes, its state dict, its model."""


class Result(tp.NamedTuple):
    line: jsonl.Line
    reason: str = ""
    """Why the run can't be released; "" if it can."""
    lost: str = ""
    """How the task of an executor ended that should have checked it."""


def main(argv: list[str]) -> int | None:
    p = parser(
        "Check the runs' checkpoints against header, W&B and catalog; add what they are.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify"
        " | bin/settle | bin/select | bin/preflight | jq -c '[.run_id, .sha256, .warnings]'",
    )
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="files at once, or with EXECUTOR the tasks that share the lines"
        " (default: JOBS, else as cores and memory allow; of a Slurm array one for"
        f" every {executor.N_LINES} lines, {executor.N_TASKS} at most)",
    )
    args = p.parse_args(argv)
    settings.load()
    kind, at_once = executor.kind(), executor.n_jobs(args.jobs)
    given = list(jsonl.read(*preflight_check.KEYS))
    if not given:
        return 0
    for root in dict.fromkeys(places.runs_root(line) for line in given):
        if not root.is_dir():
            raise UserError(
                f"RUNS_ROOT {root}: no such directory; export it or write it in .env"
            )
    if kind:
        results = check_apart(given, at_once)
    else:
        at_once = min(at_once or n_jobs(given), len(given))
        checked = check_all(given, at_once)
        results = list(progress(checked, len(given), "preflight"))
    lost = [(jsonl.name_of(r.line), r.lost) for r in results if r.lost]
    results = as_measured(same_files([r for r in results if not r.lost]))
    report(results)
    executor.tell_lost(lost)
    if any(r.reason for r in results):
        return 1
    for r in results:
        jsonl.write(r.line)


def check_all(given: list[jsonl.Line], n_jobs: int) -> tp.Iterator[Result]:
    """Each line's result, in the lines' order.

    Raises:
        SetupError: No line can be checked.
    """
    from concurrent.futures.process import BrokenProcessPool  # slow to import

    saev_loader.at_hand()  # before the fork, since to import it takes seconds
    with workers(n_jobs) as pool:
        checked = [pool.submit(check_one, line) for line in given]
        for line, future in zip(given, checked, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield check_alone(line)


@contextlib.contextmanager
def workers(n_jobs: int) -> tp.Iterator["concurrent.futures.Executor"]:
    """Processes, forked with all that this one has imported."""
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(
        n_jobs, context, initializer=_start_worker
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once; the parent tells
    machine.keep_freed_memory()
    import torch

    # Most of the time goes into what one thread does: hashing and copying.
    torch.set_num_threads(1)


def check_one(line: jsonl.Line) -> Result:
    """`preflight_check.check` with its refusal as a value."""
    try:
        fpath = places.checkpoint_fpath(line)
        return Result(preflight_check.check(line, fpath, probes_dpath(line)))
    except SetupError:
        raise
    except UserError as err:
        return Result(line, str(err))
    except MemoryError:
        return Result(line, "not enough memory to load it; try --jobs 1")


def check_alone(line: jsonl.Line) -> Result:
    """A line whose process died, or stood beside one that did, in one of its own."""
    from concurrent.futures.process import BrokenProcessPool

    with workers(1) as pool:
        try:
            return pool.submit(check_one, line).result()
        except BrokenProcessPool:
            why = "the process that checked it died; was it out of memory?"
            return Result(line, why)


def check_apart(given: list[jsonl.Line], n_tasks: int | None) -> list[Result]:
    """As `check_all`, by the EXECUTOR, and without what it did before.

    Raises:
        UserError: No line can be checked.
    """
    parts = [
        executor.Part((line, str(fpath), probes_dpath(line)), [fpath])
        for line in given
        for fpath in [places.checkpoint_fpath(line)]
    ]
    outcomes = executor.run(
        preflight_check.check,
        parts,
        executor.Needs(memory_bytes(given)),
        n_tasks,
        depends_on=saev_loader.identity(),
        env=saev_loader.environment(),
    )
    return [
        Result(outcome.result or line, outcome.reason, outcome.lost)
        for line, outcome in zip(given, outcomes, strict=True)
    ]


def probes_dpath(line: jsonl.Line) -> str:
    """Where the probes of a repo's checkpoints go, which render publishes."""
    return str(settings.build_dpath().absolute() / line["repo"] / "probes")


def as_measured(results: list[Result]) -> list[Result]:
    """The results, with a reason for each run whose numbers are not of its file, and with
    warnings where what was measured is not what training logged."""
    found = []
    for r in results:
        if not r.reason:
            try:
                told = r.line["warnings"] + numbers.warnings(r.line)
                r = Result(r.line | {"warnings": told}, numbers.refusal(r.line))
            except UserError as err:
                r = Result(r.line, str(err))
        found.append(r)
    return found


def same_files(results: list[Result]) -> list[Result]:
    """The results, with a reason for each run whose file is another run's too."""
    ids: dict[str, list[str]] = collections.defaultdict(list)
    for r in results:
        if not r.reason:
            ids[r.line["sha256"]].append(r.line["run_id"])
    found = []
    for r in results:
        others = [] if r.reason else ids[r.line["sha256"]]
        if len(set(others)) > 1:
            names = " ".join(i for i in others if i != r.line["run_id"])
            sha256 = r.line["sha256"][:12]
            r = Result(r.line, f"the very file of {names} (sha256 {sha256}…)")
        found.append(r)
    return found


def report(results: list[Result]) -> None:
    """Tell warnings, what saev did not load, and every reason with the command around it."""
    for r in results:
        for warning in [] if r.reason else r.line["warnings"]:
            say(f"preflight: warning: {jsonl.name_of(r.line)}: {warning}")
    builtin = [
        r.line
        for r in results
        if not r.reason and r.line["loader"] == preflight_check.BUILTIN
    ]
    if builtin:
        mend = "set SAEV_DIR to load them with saev"
        if saev_loader.checkout_src():
            mend = "the saev in SAEV_DIR does not load them"
        schemas = sorted({str(line["schema"] or "none") for line in builtin})
        say(
            f"preflight: {n_of(len(builtin), 'checkpoint')} (schema"
            f" {', '.join(schemas)}) checked by the built-in reader; {mend}"
        )
    failed = [r for r in results if r.reason]
    for r in failed:
        say(f"preflight: {jsonl.name_of(r.line)}: {r.reason}")
    if failed:
        say(f"preflight: to go on without: {without(failed)}")


def without(failed: list[Result]) -> str:
    """The command that releases without the failed runs."""
    excluded = settings.ids("EXCLUDE")
    ids = [*filter(jsonl.is_id, excluded), *(r.line["run_id"] for r in failed)]
    slugs = {r.line["repo"] for r in failed}
    repo = f" REPO={slugs.pop()}" if len(slugs) == 1 else ""
    return f'make dry-run{repo} EXCLUDE="{" ".join(dict.fromkeys(ids))}"'


def n_jobs(given: list[jsonl.Line]) -> int:
    """As many files at once as there are cores, and memory for."""
    return machine.n_fit(memory_bytes(given))


def memory_bytes(given: list[jsonl.Line]) -> int:
    """The most memory that one file at a time takes."""
    n_most = 0
    for line in given:
        with contextlib.suppress(OSError):
            n_most = max(n_most, places.checkpoint_fpath(line).stat().st_size)
    return COPIES * n_most + machine.TORCH_BYTES
