"""What doctor looks at. Each check yields (level, text) and leaves no trace behind."""

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

from .. import catalog, jsonl, settings
from ..checkpoint import header as checkpoint_header
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
"""The least that each schema's header can be."""


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
    # classify is a jq program that runs itself: what it needs of jq and env shows here.
    done = subprocess.run(
        [os.path.join(settings.ROOT, "bin", "classify")], stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        yield OK, version
    else:
        yield BAD, f"{version} does not run bin/classify; install jq 1.6 or later"


def make() -> Found:
    versions = {}
    for name in ("make", "gmake"):
        if shutil.which(name):
            found = re.search(
                r"GNU Make (\d+)\.(\d+)", _first_line([name, "--version"])
            )
            versions[name] = (int(found[1]), int(found[2])) if found else (0, 0)
    for name, version in versions.items():
        if version >= (4, 3):
            yield (
                OK,
                ".".join(map(str, version))
                + (f", as {name}" if name != "make" else ""),
            )
            return
    yield (
        BAD,
        "no GNU make 4.3 or later; apt install make, brew install make (then type"
        " gmake) or conda install make",
    )


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
    mend = "make setup; if that does nothing, delete .venv first"
    if missing:
        yield BAD, f"not installed: {', '.join(missing)}; {mend}"
    if other:
        yield TODO, f"not the tested version: {', '.join(other)}; {mend}"
    if not missing and not other:
        yield OK, f"all {len(pins)} as requirements.txt pins them"


# ---- data ------------------------------------------------------------------------------------


def catalog_() -> Found:
    if is_demo() and not pathlib.Path(settings.get("CATALOG")).exists():
        yield TODO, "no data is named, so there will be a demo; make dry-run makes it"
        return
    cat = catalog.load()
    n_layers = sum(len(repo.layers) for repo in cat.repos)
    saev_dir = settings.get("SAEV_DIR")
    missing = [
        repo.sweep
        for repo in cat.repos
        if repo.sweep and not os.path.isfile(os.path.join(saev_dir, repo.sweep))
    ]
    if missing and not saev_dir:
        yield BAD, "SAEV_DIR is not set: the saev checkout with the sweep files"
    elif missing:
        more = f", nor {len(missing) - 1} other sweeps" if len(missing) > 1 else ""
        yield BAD, f"SAEV_DIR={saev_dir} has no {missing[0]}{more}"
    else:
        yield (
            OK,
            f"{cat.fpath}: {n_of(len(cat.repos), 'repo')},"
            f" {n_of(n_layers, 'layer')}; every sweep is there",
        )


def saev() -> Found:
    from ..checkpoint import saev as saev_loader

    at_hand = saev_loader.at_hand()
    reads, refuses = [], []
    for schema, raw in HEADERS.items():
        header = checkpoint_header.parse(json.dumps(raw).encode())
        (refuses if at_hand.why_not(header) else reads).append(schema)
    where = "SAEV_DIR" if at_hand.is_checkout else "installed"
    text = f"{at_hand.label} ({where}) reads schema {', '.join(reads) or '(not one)'}"
    if refuses:
        mend = (
            "use a newer checkout"
            if at_hand.is_checkout
            else "set SAEV_DIR to a checkout"
        )
        text += f", not {', '.join(refuses)}; to release such, {mend}"
    yield TODO if refuses and not is_demo() else OK, text


def runs() -> Found:
    runs_root = pathlib.Path(settings.get("RUNS_ROOT"))
    if not runs_root.is_dir():
        if is_demo():
            yield TODO, "no demo yet; make dry-run makes it"
        else:
            yield BAD, f"{runs_root}: no such directory; RUNS_ROOT names it"
        return
    chosen = [
        row["run_id"]
        for repo in catalog.load().repos
        if (fpath := settings.build_dpath() / repo.slug / "selected.jsonl").exists()
        for row in jsonl.read_file(fpath, "run_id")
    ]
    missing = [i for i in chosen if not _checkpoint(runs_root, i).is_file()]
    n_there = len(chosen) - len(missing)
    text = f"{runs_root}: {n_there} of {n_of(len(chosen), 'chosen checkpoint')} there"
    if missing:
        yield (
            BAD,
            f'{text}; to go on without: make dry-run EXCLUDE="{" ".join(missing)}"',
        )
    elif chosen:
        yield OK, text
    else:
        yield OK, f"{runs_root}: there; nothing is chosen yet, make dry-run does"


def _checkpoint(runs_root: pathlib.Path, run_id: str) -> pathlib.Path:
    return runs_root / run_id / "checkpoint" / "sae.pt"


def disk() -> Found:
    build = settings.build_dpath().absolute()
    at = next(dpath for dpath in (build, *build.parents) if dpath.is_dir())
    free = shutil.disk_usage(at).free
    text = f"{human(free)} free under {build}{_kind(at)}"
    if not os.access(at, os.W_OK):
        yield BAD, f"can't write to {at}; set BUILD to a directory where you may"
        return
    if free < LOW_BYTES:
        yield TODO, f"{text}; a rehearsal keeps a copy of every checkpoint"
    else:
        yield OK, text
    runs_root = pathlib.Path(settings.get("RUNS_ROOT"))
    source = next(runs_root.glob("*/checkpoint/sae.pt"), None)
    if source is None:
        return
    target = at / f".doctor.{os.getpid()}"
    try:
        os.link(source.resolve(), target)
    except OSError as err:
        text = (
            f"a stage will hold symlinks into RUNS_ROOT{_kind(source)}: {err.strerror}"
        )
    else:
        target.unlink()
        text = f"a stage will hold hard links into RUNS_ROOT{_kind(source)}"
    yield OK, text


def _kind(path: pathlib.Path) -> str:
    """The kind of file system that a path is on, in brackets; "" where that can't be told."""
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
        yield BAD, f"{snapshot}: no such file; METRICS_SNAPSHOT names it"
    else:
        from ..tracking import runs as wandb_runs

        with asking_a_server():
            wandb_runs.fetch(["doctor"])  # no run's id, but the project is asked for it
        project = f"{settings.get('WANDB_ENTITY')}/{settings.get('WANDB_PROJECT')}"
        yield OK, f"the key opens {project}"


def hub() -> Found:
    if is_demo():
        yield (
            OK,
            "the demo is released to this machine only; make rehearse needs no token",
        )
        return
    if not os.environ.get("HF_TOKEN"):
        yield (
            TODO,
            "HF_TOKEN is not set; to release, make a token that may write, export it",
        )
        return
    from ..hub import rights as hub_rights

    cat = catalog.load()
    repos: dict[str, list[str]] = {c.namespace: [] for c in cat.collections}
    for repo in cat.repos:
        repos.setdefault(repo.repo_id.partition("/")[0], []).append(repo.repo_id)
    collections = {c.namespace for c in cat.collections}
    for namespace, repo_ids in sorted(repos.items()):
        # What it tells besides, on stderr, is of rights on collections.
        with contextlib.redirect_stderr(io.StringIO()) as told, asking_a_server():
            problems = hub_rights.problems(repo_ids, collections & {namespace})
        found = problems or told.getvalue().splitlines()
        for text in found:
            yield TODO, text
        if not found:
            yield OK, f"HF_TOKEN may write to {namespace}"
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
