"""Imports run one way: stages → rooms → catalog → ground."""

import ast
import itertools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PY = ROOT / "py"
LOOPBACK = ("loopback_hub", "loopback_wandb")

GROUND = {
    "",
    "cli",
    "digests",
    "files",
    "jsonl",
    "kinds",
    "machine",
    "measured",
    "retry",
    "places",
    "settings",
    "text",
}
ABOVE_GROUND = {"catalog", "templating", "witnesses"}
AMONG_ROOMS = {
    ("release", "choice"),
    ("release", "hub"),
    ("page", "choice"),
    ("sweep", "tracking"),
    ("activations", "checkpoint"),
}
NO_CATALOG = {"hub", "checkpoint", "slurm", "numbers"}


READ_THE_ENVIRONMENT = {
    "saepub/settings.py": "resolves every setting",
    "saepub/cli.py": "masks secrets in errors",
    "saepub/hub/client.py": "configures huggingface_hub, and names a faulty proxy",
    "saepub/tracking/runs.py": "configures wandb",
    "saepub/choice/plane.py": "configures matplotlib",
    "saepub/checkpoint/saev.py": "runs git without a hook's variables",
    "saepub/slurm/tasks.py": "gives tasks an environment without secrets",
    "saepub/stages/rehearse.py": "gives the command another Hub and token",
    "saepub/stages/doctor.py": "NO_COLOR",
}
"""The only modules that may use os.environ, and what for."""


def room(name: str) -> str:
    """The room of a module; "" for the package itself. A loopback server is one room."""
    package, _, rest = name.partition(".")
    return package if package in LOOPBACK else rest.partition(".")[0]


def imports(fpath: pathlib.Path) -> set[str]:
    """Every module of ours that a file imports, by its full name."""
    names = imported(fpath, PY)
    return {name for name in names if name.partition(".")[0] in ("saepub", *LOOPBACK)}


def imported(fpath: pathlib.Path, root: pathlib.Path) -> set[str]:
    """Every module that a file imports, by its full name; those below `root` by their own."""
    package = ".".join(fpath.relative_to(root).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(fpath.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parts if node.level else []), node.module or ""]).strip(
                "."
            )
            for alias in node.names:
                below = root / base.replace(".", "/") / alias.name
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                names.add(f"{base}.{alias.name}" if is_module else base)
    return names


def is_allowed(here: str, there: str) -> bool:
    if here in LOOPBACK:
        return there == here
    if there in LOOPBACK:
        return (here, there) == ("stages", "loopback_hub")
    if here == there:
        return here != "stages"
    if there in GROUND:
        return True
    if here in GROUND or there == "stages":
        return False
    if there in ABOVE_GROUND:
        return here not in NO_CATALOG
    if here in ("stages", "doctor"):
        return True
    return (here, there) in AMONG_ROOMS


def test_imports_run_one_way():
    broken = []
    for fpath in sorted(PY.rglob("*.py")):
        name = ".".join(fpath.relative_to(PY).with_suffix("").parts)
        here = room(name)
        if fpath.name == "__init__.py" and fpath.parent.name == "stages":
            continue
        for there in sorted(imports(fpath)):
            if not is_allowed(here, room(there)):
                broken.append(f"{name} → {there}")
    assert not broken, "\n".join(broken)


def test_settings_come_from_settings():
    found = {
        str(fpath.relative_to(PY))
        for fpath in PY.rglob("*.py")
        for node in ast.walk(ast.parse(fpath.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        if node.attr in ("environ", "environb", "getenv", "getenvb")
    }
    assert found == set(READ_THE_ENVIRONMENT)


def test_no_two_modules_import_each_other():
    graph = {
        ".".join(f.relative_to(PY).with_suffix("").parts): imports(f)
        for f in PY.rglob("*.py")
    }
    pairs = itertools.combinations(sorted(graph), 2)
    assert not [(a, b) for a, b in pairs if b in graph[a] and a in graph[b]]


def test_no_test_imports_a_test_and_bench_imports_no_tests():
    """What tests share is in tests/kits/; what they share with bench is in py/."""
    tests = ROOT / "tests"
    ours = {f.stem for f in tests.iterdir() if f.is_dir() or f.suffix == ".py"}
    broken = []
    for dpath, taboo in ((tests, "test_"), (ROOT / "bench", ("tests", *ours))):
        for fpath in sorted(dpath.rglob("*.py")):
            names = {name.split(".")[0] for name in imported(fpath, dpath)}
            broken += [
                f"{fpath.relative_to(ROOT)} → {name}"
                for name in sorted(names)
                if name.startswith(taboo)
            ]
    assert not broken, "\n".join(broken)
