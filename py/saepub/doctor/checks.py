"""doctor's checks. Each yields (level, text) and leaves no files behind."""

import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as tp

from .. import catalog, jsonl, places, settings
from ..checkpoint import header as checkpoint_header
from ..cli import UserError
from ..text import human, n_of
from .run import BAD, NETWORK_SECONDS, OK, TODO, Check, asking_a_server

Found = tp.Iterator[tuple[str, str]]

LOW_BYTES = 10**9

RELU = {"cls": "Relu", "params": {}}
HEADERS: dict[str, dict[str, tp.Any]] = {
    "none": {"d_vit": 4, "exp_factor": 2},
    "1": {"schema": 1, "cfg": {"d_model": 4, "exp_factor": 2, "activation": RELU}},
    "2": {"schema": 2, "cfg": {"d_model": 4, "exp_factor": 2, "activation": RELU}},
    "3": {"schema": 3, "cfg": {"d_model": 4, "exp_factor": 2, "activation": RELU}},
    "4": {"schema": 4, "cfg": {"d_model": 4, "d_sae": 8, "activation": RELU}},
    "5": {"schema": 5, "cfg": {"d_model": 4, "d_sae": 8, "activation": RELU}},
}
"""A minimal header of each schema."""


def is_demo() -> bool:
    return settings.is_demo_fpath(pathlib.Path(settings.get("CATALOG")))


# ---- this machine ----------------------------------------------------------------------------


def python() -> Found:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 11):  # noqa: UP036, whatever python3 is may run this
        yield OK, f"{version}, {sys.executable}"
    else:
        yield BAD, f"{version} is too old; set PYTHON to 3.11 or later, then make setup"


def jq() -> Found:
    if not shutil.which("jq"):
        yield BAD, "not installed; apt install jq, brew install jq or conda install jq"
        return
    version = _first_line(["jq", "--version"]).removeprefix("jq-")
    # classify is an executable jq filter, so this shows whether jq and env support it.
    done = subprocess.run(
        [os.path.join(settings.ROOT, "bin", "classify")], stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        yield OK, version
    else:
        yield BAD, f"{version} can't run bin/classify; install jq 1.6 or later"


def make() -> Found:
    versions = {}
    for name in ("make", "gmake"):
        if shutil.which(name):
            text = _first_line([name, "--version"])
            found = re.search(r"GNU Make (\d+)\.(\d+)", text)
            versions[name] = (int(found[1]), int(found[2])) if found else (0, 0)
    for name, version in versions.items():
        if version >= (4, 3):
            alias = "" if name == "make" else f", as {name}"
            yield OK, f"{version[0]}.{version[1]}{alias}"
            return
    advice = (
        "apt install make, brew install make (then type gmake) or conda install make"
    )
    yield BAD, f"no GNU make 4.3 or later; {advice}"


def _first_line(argv: list[str]) -> str:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    return done.stdout.partition("\n")[0]


def packages() -> Found:
    fpath = os.path.join(settings.ROOT, "requirements.txt")
    with open(fpath, encoding="utf-8") as fd:
        pins = dict(re.findall(r"^([\w.-]+)==(\S+)", fd.read(), re.MULTILINE))
    missing, other = [], []
    for name, pin in pins.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.partition("+")[0] != pin:
            other.append(f"{name} {version} (pinned: {pin})")
    advice = "make setup; if that does nothing, delete .venv first"
    if missing:
        yield BAD, f"not installed: {', '.join(missing)}; {advice}"
    if other:
        yield TODO, f"not the tested version: {', '.join(other)}; {advice}"
    if not missing and not other:
        yield OK, f"all {len(pins)} as pinned in requirements.txt"


# ---- data ------------------------------------------------------------------------------------


def catalog_() -> Found:
    fpath = pathlib.Path(settings.get("CATALOG"))
    if is_demo() and not fpath.exists():
        yield TODO, "no data is set, so a demo will be used; make dry-run creates it"
        return
    cat, problems = catalog.read(fpath)
    for text in problems:
        yield BAD, text
    if cat is None:
        return
    n_layers = sum(len(repo.layers) for repo in cat.repos)
    n_repos = n_of(len(cat.repos), "repo")
    yield OK, f"{cat.fpath}: {n_repos}, {n_of(n_layers, 'layer')}"
    for repo in cat.repos:
        yield from _repo(cat, repo)


def _repo(cat: catalog.Catalog, repo: catalog.Repo) -> Found:
    """Whether one repo is ready: its ids, runs root, checkpoints and shard."""
    try:
        lines = _lines(cat, repo)
        root = places.runs_root({"repo": repo.slug, "expected": repo.expected})
    except UserError as err:
        yield BAD, str(err)
        return
    n_there = sum(places.checkpoint_fpath(line).is_file() for line in lines)
    text = f"{repo.slug}: {n_of(len(lines), 'candidate')}"
    if repo.wandb is not None:
        text = f"{repo.slug}: W&B lists the candidates"
    elif not root.is_dir():
        advice = "check RUNS_ROOT, or runs_root in the catalog"
        yield BAD, f"{repo.slug}: {root}: no such directory; {advice}"
        return
    elif not n_there:
        where = places.checkpoint_fpath(lines[0])
        yield BAD, f"{text}, but none has a checkpoint; the first would be {where}"
        return
    else:
        text += f", {n_there:,} with a checkpoint under {root}"
    yield OK, text
    if repo.license is None:
        yield TODO, f'{repo.slug}: no "license", so the card will have none'
    if repo.shard is not None:
        yield from _shard(repo)


def _shard(repo: catalog.Repo) -> Found:
    try:
        root = places.shards_root({"repo": repo.slug, "expected": repo.expected})
    except UserError as err:
        yield TODO, f"{err}; make measure needs it"
        return
    if not (root / str(repo.shard)).is_dir():
        where = f"{root}/{repo.shard}: no such directory"
        yield TODO, f"{repo.slug}: {where}; make measure needs it"


def _lines(cat: catalog.Catalog, repo: catalog.Repo) -> list[jsonl.Line]:
    """A line for each of a repo's candidates; none if a server would have to be asked."""
    from ..sweep import sources

    if repo.wandb is not None:
        return []
    return [
        {"repo": repo.slug, "run_id": c.run_id, "expected": repo.expected}
        for c in sources.candidates(cat, repo).candidates
    ]


def saev() -> Found:
    from ..checkpoint import saev as saev_loader

    available = saev_loader.available()
    reads: list[str] = []
    refuses: list[str] = []
    for schema, raw in HEADERS.items():
        header = checkpoint_header.parse(json.dumps(raw).encode())
        (refuses if available.why_not(header) else reads).append(schema)
    where = "SAEV_DIR" if available.is_checkout else "installed"
    text = f"{available.label} ({where}) loads checkpoints"
    if not refuses:
        yield OK, f"{text} of every schema"
        return
    newer = (
        "a newer checkout" if available.is_checkout else "SAEV_DIR set to a checkout"
    )
    loads = [
        "without a schema (from before July 2025)" if s == "none" else f"of schema {s}"
        for s in reads
    ]
    text += f" {' and '.join(loads) or 'of no schema'} only;"
    text += f" those of schema {', '.join(refuses)} need {newer}"
    yield OK if is_demo() else TODO, text


def runs() -> Found:
    if is_demo() and not pathlib.Path(settings.get("RUNS_ROOT")).is_dir():
        yield TODO, "no demo yet; make dry-run creates it"
        return
    chosen = _chosen()
    missing = [r["run_id"] for r in chosen if not places.checkpoint_fpath(r).is_file()]
    n_there = len(chosen) - len(missing)
    text = f"{n_there} of {n_of(len(chosen), 'chosen checkpoint')} found"
    if missing:
        advice = f'make dry-run EXCLUDE="{" ".join(missing)}"'
        yield BAD, f"{text}; to continue without the others: {advice}"
    elif chosen:
        yield OK, text
    else:
        yield OK, "no runs are chosen yet; make dry-run chooses them"


def _chosen() -> list[jsonl.Line]:
    """What the last dry run chose."""
    build = settings.build_dpath()
    return [
        row
        for repo in catalog.load().repos
        if (fpath := build / repo.slug / "selected.jsonl").exists()
        for row in jsonl.read_file(fpath, "repo", "run_id", "expected")
    ]


def disk() -> Found:
    settings.check_made("BUILD", settings.get("BUILD"))
    build = settings.build_dpath().absolute()
    at = next(dpath for dpath in (build, *build.parents) if dpath.is_dir())
    free = shutil.disk_usage(at).free
    text = f"{human(free)} free under {build}{_kind(at)}"
    if not os.access(at, os.W_OK):
        yield BAD, f"can't write to {at}; set BUILD to a writable directory"
        return
    if free < LOW_BYTES:
        yield TODO, f"{text}; a rehearsal keeps a copy of every checkpoint"
    else:
        yield OK, text
    source = _a_checkpoint()
    if source is None:
        return
    target = at / f".doctor.{os.getpid()}"
    try:
        os.link(source.resolve(), target)
    except OSError as err:
        text = f"stages will have symlinks into the runs root{_kind(source)}: {err.strerror}"
    else:
        target.unlink()
        text = f"stages will have hard links into the runs root{_kind(source)}"
    yield OK, text


def _a_checkpoint() -> pathlib.Path | None:
    """Any candidate's checkpoint; None if there is none."""
    with contextlib.suppress(UserError):
        cat = catalog.load()
        for line in (line for repo in cat.repos for line in _lines(cat, repo)):
            if (fpath := places.checkpoint_fpath(line)).is_file():
                return fpath
    return None


def _kind(path: pathlib.Path) -> str:
    """The type of a path's file system, in brackets; "" if it is unknown."""
    try:
        mounts = pathlib.Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return ""
    kind, longest = "", 0
    for mount in mounts.splitlines():
        _, point, name, *_ = mount.split(" ")
        point = point.replace("\\040", " ")
        if path.resolve().is_relative_to(point) and len(point) >= longest:
            kind, longest = f" ({name})", len(point)
    return kind


# ---- servers ---------------------------------------------------------------------------------


def wandb() -> Found:
    snapshot = settings.get("METRICS_SNAPSHOT")
    if is_demo():
        yield OK, "the demo needs no key: it has a snapshot"
    elif snapshot and os.path.isfile(snapshot):
        yield OK, f"no key needed: METRICS_SNAPSHOT={snapshot}"
    elif snapshot:
        yield BAD, f"{snapshot}: no such file; check METRICS_SNAPSHOT"
    else:
        from ..tracking import runs as wandb_runs

        repos = catalog.load().repos
        lines = [{"repo": repo.slug, "expected": repo.expected} for repo in repos]
        for entity, project in dict.fromkeys(map(places.project, lines)):
            with asking_a_server():
                # Not a run's id, but asking for it shows whether the key works.
                wandb_runs.fetch(entity, project, ["doctor"])
            yield OK, f"the key has access to {entity}/{project}"


def hub() -> Found:
    if is_demo():
        yield OK, "the demo can only be rehearsed; make rehearse needs no token"
        return
    if not settings.get("HF_TOKEN"):
        yield TODO, settings.NO_TOKEN
        return
    from ..hub import rights as hub_rights

    cat = catalog.load()
    repos: dict[str, list[str]] = {c.namespace: [] for c in cat.collections}
    for repo in cat.repos:
        repos.setdefault(repo.repo_id.partition("/")[0], []).append(repo.repo_id)
    collections = {c.namespace for c in cat.collections}
    for namespace, repo_ids in sorted(repos.items()):
        # It prints a lack of rights to collections on stderr.
        with contextlib.redirect_stderr(io.StringIO()) as err, asking_a_server():
            problems = hub_rights.problems(repo_ids, collections & {namespace})
        found = problems or err.getvalue().splitlines()
        for text in found:
            yield TODO, text
        if not found:
            yield OK, f"HF_TOKEN can write to {namespace}"
        elif namespace not in found[0]:
            return  # the same for every namespace


NO_ANSWER = f"no answer within {NETWORK_SECONDS} s; check the network"
CHECKS = (
    Check("python", python),
    Check("jq", jq),
    Check("make", make),
    Check("packages", packages),
    Check("catalog", catalog_),
    Check("saev", saev),
    Check("runs", runs),
    Check("disk", disk),
    Check(
        "W&B", wandb, BAD, f"{NO_ANSWER} and WANDB_BASE_URL, or set METRICS_SNAPSHOT"
    ),
    Check("Hub", hub, TODO, f"{NO_ANSWER} and HF_ENDPOINT"),
)
