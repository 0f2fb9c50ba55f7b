"""For tests of what reaches the Hub: a staged repo, a Hub to push it to, and the stages.

Stages are the real programs over the real client. Starting Python with torch hundreds of times
would take minutes, so a process imports what is slow, and each run is a fork of it, in which
`time.sleep` takes a hundredth of its time. All tests share one `Hub`, emptied for each of them,
because the client reads the Hub's address while it is imported.
"""

import functools
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import threading
import typing as tp

from kits import forks
from kits.programs import (
    FORKS,
    ROOT,
    Done,
    bare_env,
    python_argv,
    rows_of,
    run_program,
    text_of,
)
from loopback_hub import Drop, Fault, LoopbackHub

TRANSPORTS = ("xet", "lfs")
WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
SCOPED, NARROW = "hf_scoped", "hf_narrow"
LAB = "demo-lab"


def scoped(**permissions: list[str]) -> dict:
    """The user of a fine-grained token, with permissions by namespace."""
    return {"name": "sam", "orgs": [LAB], "role": "fineGrained", "scoped": permissions}


TOKENS = {
    WRITER: {"name": "sam", "orgs": [LAB], "role": "write"},
    READER: {"name": "sam", "orgs": [LAB], "role": "read"},
    STRANGER: {"name": "eve", "orgs": [], "role": "write"},
    SCOPED: scoped(**{LAB: ["repo.write"]}),
    NARROW: scoped(sam=["repo.write", "collection.write"]),
}

SAE_V = "67ab8c4fdf179d117db28195"
SLUG, OTHER = "vitb-relu", "vits-relu"
VARIANTS = {SLUG: {"few": 2, "more": 4}, OTHER: {"other": 2, "many": 25}}
"""What is staged for the tests: by name, how many checkpoints per layer at most."""

WRITES = (
    *("create_repo", "preupload", "lfs_batch", "lfs_put", "lfs_verify", "xet_token"),
    *("commit", "collection_create", "collection_add"),
)
"""Kinds of requests that change something."""


# ---- stages -----------------------------------------------------------------------------------


class Running:
    """A stage that has been started; `pid` may be killed."""

    def __init__(self, parent: "Parent", pid: int, dpath: pathlib.Path):
        self._parent, self.pid, self._dpath = parent, pid, dpath

    def wait(self) -> Done:
        code = self._parent.ask({"wait": self.pid})
        out, err = self._dpath / "out", self._dpath / "err"
        told = "" if err.is_symlink() else err.read_text(errors="replace")
        return Done(code, out.read_text(), told)


class Parent:
    """A process that forks stages."""

    def __init__(self, env: dict[str, str], modules: tuple[str, ...]):
        path = f"{ROOT / 'tests'}:{env['PYTHONPATH']}".split(":")
        # One with torch is a fork itself, of a process that has it.
        venv = os.environ[FORKS] if "torch" in modules else sys.prefix
        code = f"sys.path[:0] = {path}; import saepub; from kits import release; release.serve(sys.argv[1:])"
        self._process = subprocess.Popen(
            [*python_argv(venv, code), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=bare_env(**env),
            text=True,
        )
        self._lock = threading.Lock()

    def ask(self, request: dict):
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


LIGHT = (
    "saepub.stages.plan",
    "saepub.stages.push",
    "saepub.stages.collect",
    "hf_xet",
    "yaml",
)
HEAVY = (*LIGHT, "saepub.stages.verify", "torch", "beartype", "jaxtyping", "einops")
HEAVY += ("matplotlib.figure",)
NEED_HEAVY = ("preflight", "render", "verify")


class Stages:
    """Runs stages."""

    def __init__(self, env: dict[str, str], *path: pathlib.Path):
        """
        Args:
            env: What the Hub's client must find when it is imported.
            path: Where Python looks for packages first.
        """
        python_path = ":".join(map(str, (*path, ROOT / "py")))
        self._env, self._parents = env | {"PYTHONPATH": python_path}, {}

    def start(
        self, dpath: pathlib.Path, name: str, *argv: str, stdin: str, env: dict
    ) -> Running:
        """Start a stage with its streams in `dpath`; TTY in `env` names a terminal for stderr."""
        dpath.mkdir(parents=True)
        (dpath / "in").write_text(stdin)
        if "TTY" in env:
            (dpath / "err").symlink_to(env["TTY"])
        key = (env.get("HF_HUB_DISABLE_XET", ""), name in NEED_HEAVY)
        if key not in self._parents:
            own = {"HF_HUB_DISABLE_XET": key[0]} if key[0] else {}
            modules = HEAVY if name in NEED_HEAVY else LIGHT
            self._parents[key] = Parent(self._env | own, modules)
        parent = self._parents[key]
        request = {"dpath": str(dpath), "argv": [name, *argv], "env": env}
        return Running(parent, parent.ask(request), dpath)

    def close(self) -> None:
        for parent in self._parents.values():
            parent.close()


def serve(modules: list[str]) -> None:
    """Fork a stage for each request on stdin."""
    import time

    given = dict(os.environ)
    forks.load(modules)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds / 100)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            env = request["env"]
            if _of_client(env) == _of_client(given):
                # What `saepub.hub` set while it was imported.
                env |= {
                    k: v
                    for k, v in os.environ.items()
                    if k not in given and k.startswith("HF_")
                }
            else:
                forks.forget("huggingface_hub", "saepub")
            _run(pathlib.Path(request["dpath"]), request["argv"], env)
        print(answer, flush=True)


def _of_client(env: dict[str, str]) -> dict[str, str]:
    """The settings that the client, and `saepub.hub`, read while they are imported."""
    return {k: v for k, v in env.items() if k[:3] in ("HF_", "TTY") and k != "HF_TOKEN"}


def _run(dpath: pathlib.Path, argv: list[str], env: dict) -> None:
    import atexit
    import signal

    signal.alarm(100)  # ends what hangs
    for fd, name in enumerate(("in", "out", "err")):
        flags = os.O_WRONLY | os.O_CREAT if fd else os.O_RDONLY
        os.dup2(os.open(dpath / name, flags, 0o644), fd)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, "rww"[fd]) for fd in range(3))
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv
    from saepub import cli

    try:
        cli.main(argv[0])
    except SystemExit as end:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(end.code)
    os._exit(99)


# ---- staged repos -----------------------------------------------------------------------------


def make(dpath: pathlib.Path, demo: pathlib.Path, stages: Stages) -> None:
    """Make `VARIANTS` under `dpath`, stages and lines, from the demo by the real pipe."""
    settings = demo_settings(demo)

    def run(name: str, *argv: object, stdin: str = "", build: str = "") -> str:
        streams = dpath / "streams" / str(len(list(dpath.glob("streams/*"))))
        env = bare_env(BUILD=dpath / (build or "build"), **settings)
        argv = [str(arg) for arg in argv]
        done = stages.start(streams, name, *argv, stdin=stdin, env=env).wait()
        assert done.code == 0, done.err
        return done.out

    for slug, variants in VARIANTS.items():
        lines = run("fetch-metrics", stdin=run("extract-ids", slug))
        for name in ("facts", "classify"):
            lines = run_program(ROOT / "bin" / name, stdin=lines).out
        lines = run("settle", stdin=lines)
        n_most = max(variants.values())
        checked = run("select", "-n", n_most, stdin=lines)
        checked = run("preflight", "--jobs", 1, stdin=checked)
        for name, n in variants.items():
            chosen = run("select", "-n", n, stdin=checked)
            staged = run("stage", stdin=chosen, build=name)
            rendered = run("render", stdin=staged, build=name)
            (dpath / name / "rendered.jsonl").write_text(rendered)


def demo_settings(demo: pathlib.Path) -> dict[str, str]:
    return {
        "SAEV_DIR": f"{demo}/saev",
        "RUNS_ROOT": f"{demo}/runs",
        "METRICS_SNAPSHOT": f"{demo}/snapshot.jsonl",
        "CATALOG": f"{demo}/catalog.json",
    }


# ---- a world ----------------------------------------------------------------------------------


class Hub(LoopbackHub):
    """A Hub for many tests."""

    @functools.cached_property
    def ca_fpath(self) -> pathlib.Path:
        """One certificate: the client would read this machine's hundreds, twice in each process."""
        (one, *_) = ssl.create_default_context().get_ca_certs(binary_form=True)
        fpath = self.store.dpath / "ca.pem"
        fpath.write_text(ssl.DER_cert_to_PEM_cert(one))
        return fpath

    def empty(self) -> None:
        """Make it as it was at first, with `TOKENS`."""
        for fault in self.faults:
            if hasattr(fault, "release"):
                fault.release.set()
        self.faults.clear()
        with self._idle:  # a request that a test gave up on may still be running
            self._idle.wait_for(lambda: self._n_busy == 0)
        self.store.repos.clear()
        self.store.moved.clear()
        shutil.rmtree(self.store.dpath / "models", ignore_errors=True)
        self.shelf.all.clear()
        self.shelf.save()
        self.tokens = dict(TOKENS)
        self.requests.clear()
        # What the client has cached of repos that are gone.
        shutil.rmtree(self.store.dpath / "client", ignore_errors=True)

    def held(self, repo_id: str) -> dict[str, tuple[int, str]]:
        """The size and sha256 by path of a repo's files, except for the Hub's own."""
        files = self.files(repo_id)
        return {path: of for path, of in files.items() if path != ".gitattributes"}


def files_of(rows: list[dict]) -> dict[str, tuple[int, str]]:
    """The size and sha256 by path of all files that render's lines name."""
    files = {row["path"]: row for row in rows} | rows[0]["documents"]
    return {path: (of["bytes"], of["sha256"]) for path, of in files.items()}


class World:
    """A build directory with staged repos, a catalog, a Hub, and the stages to run."""

    def __init__(self, dpath, made, demo, stages: Stages, hub: LoopbackHub):
        self.dpath, self.made, self.stages, self.hub = dpath, made, stages, hub
        self.build, self.records = dpath / "build", dpath / "records"
        self.catalog = json.loads((demo / "catalog.json").read_text())
        self.repo_ids = {r["slug"]: r["repo_id"] for r in self.catalog["repos"]}
        self.repo_id = self.repo_ids[SLUG]
        self.rows: dict[str, list[dict]] = {}
        self.env = bare_env(
            **demo_settings(demo),
            BUILD=self.build,
            RECORDS=self.records,
            HOME=dpath / "home",
            TMPDIR=dpath / "tmp",
            HF_TOKEN=WRITER,
            AGAIN="make release",
            **client_settings(hub),
        )
        self._n_runs = 0
        (dpath / "tmp").mkdir()
        self.sae_v = hub.add_collection(LAB, "sae-v", collection_id=SAE_V)
        self.set_catalog()
        self.use("few")

    def over(self, transport: str) -> "World":
        """Over "lfs" from now on, or "xet", which is the default."""
        self.transport = transport
        self.env |= {"HF_HUB_DISABLE_XET": "1"} if transport == "lfs" else {}
        return self

    def set_catalog(self, **changes: object) -> None:
        self.catalog |= changes
        (self.dpath / "catalog.json").write_text(json.dumps(self.catalog))
        self.env["CATALOG"] = str(self.dpath / "catalog.json")

    def use(self, name: str) -> None:
        """Put the variant of that name into the build directory."""
        rows = rows_of((self.made / name / "rendered.jsonl").read_text())
        slug = rows[0]["repo"]
        shutil.rmtree(self.build / slug, ignore_errors=True)
        shutil.copytree(self.made / name / slug / "stage", self.build / slug / "stage")
        self.rows[slug] = rows

    def stage(self, slug: str = SLUG) -> pathlib.Path:
        return self.build / slug / "stage"

    def lines(self, *slugs: str) -> str:
        rows = [row for slug in slugs or (SLUG,) for row in self.rows[slug]]
        return text_of(rows)

    def start(self, name: str, *argv: str, stdin: str = "", **env: object) -> Running:
        self._n_runs += 1
        env = self.env | {k: str(v) for k, v in env.items()}
        env = {k: v for k, v in env.items() if v != ""}
        dpath = self.dpath / f"run{self._n_runs}"
        return self.stages.start(dpath, name, *argv, stdin=stdin, env=env)

    def run(self, name: str, *argv: str, stdin: str = "", **env: object) -> Done:
        return self.start(name, *argv, stdin=stdin, **env).wait()

    def pipe(self, *names: str, stdin: str | None = None, **env: object) -> list[Done]:
        """Run stages one after the other, each on the output of the one before."""
        text = self.lines() if stdin is None else stdin
        all_done = []
        for name in names:
            all_done.append(self.run(name, stdin=text, **env))
            text = all_done[-1].out
        return all_done

    def push(self, *slugs: str, **env: object) -> Done:
        """plan, then push."""
        plan, push = self.pipe("plan", "push", stdin=self.lines(*slugs), **env)
        assert plan.code == 0, plan.err
        return push

    def release(self, *slugs: str, **env: object) -> Done:
        """A whole release; `err` has what all stages printed."""
        names = ("plan", "push", "verify", "collect")
        done = self.pipe(*names, stdin=self.lines(*slugs), **env)
        code = max(d.code for d in done)
        return Done(code, done[-1].out, "".join(d.err for d in done))

    def expected(self, slug: str = SLUG) -> dict[str, tuple[int, str]]:
        """What the repo must hold: size and sha256 by path."""
        return files_of(self.rows[slug])

    def held(self, slug: str = SLUG) -> dict[str, tuple[int, str]]:
        return self.hub.held(self.repo_ids[slug])

    def titles(self, slug: str = SLUG) -> list[str]:
        """The repo's commits, newest first."""
        return [commit["title"] for commit in self.hub.commits(self.repo_ids[slug])]

    def kinds(self) -> list[str]:
        """The kinds of requests since the last call."""
        kinds = [kind for _, kind in self.hub.requests]
        self.hub.requests.clear()
        return kinds

    def commit_elsewhere(self, files: dict[str, bytes | None], slug: str = SLUG) -> str:
        """Make somebody else's commit, where None removes a file; its id."""
        repo = self.hub.store.repos[self.repo_ids[slug]]
        tree = dict(repo.head["files"])
        for path, content in files.items():
            tree.pop(path, None)
            if content is not None:
                tree[path] = repo.add_regular(content)
        return repo.add_commit(tree, "Somebody else's", "", "eve")["id"]


def client_settings(hub: Hub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(hub.store.dpath / "client"),
        "SSL_CERT_FILE": str(hub.ca_fpath),
        # The Xet library waits by itself, in Rust.
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms",
    }


# ---- faults besides those of kits.hub ---------------------------------------------------------


class Meanwhile(Fault):
    """Does something at the first request of a kind, before or after its work is done."""

    def __init__(self, kind: str, do: tp.Callable[[], object], when: str = "before"):
        self.kind, self.do, self.when = kind, do, when
        self.is_done = False

    def _at(self, when: str, kind: str) -> None:
        if (when, kind) == (self.when, self.kind) and not self.is_done:
            self.is_done = True
            self.do()

    def before(self, kind, request) -> None:
        self._at("before", kind)

    def after(self, kind, request) -> None:
        self._at("after", kind)


class Hold(Meanwhile):
    """Holds such a request until `release` is set, and then drops it."""

    def __init__(self, kind: str, when: str = "before"):
        super().__init__(kind, self._hold, when)
        self.reached, self.release = threading.Event(), threading.Event()

    def _hold(self) -> None:
        self.reached.set()
        self.release.wait(60)
        raise Drop


class Answer(Fault):
    """Changes the answers to requests of a kind."""

    def __init__(self, kind: str, change: tp.Callable):
        self.kind, self.change = kind, change

    def before(self, kind, request) -> None:
        if kind != self.kind:
            return
        send = request._send

        def changed(response):
            if response.status == 200:
                self.change(response)
            send(response)

        request._send = changed


class Headers(Fault):
    """No fault: records the Authorization header of every request."""

    def __init__(self):
        self.seen: list[str | None] = []

    def before(self, kind, request) -> None:
        self.seen.append(request.headers.get("Authorization"))
