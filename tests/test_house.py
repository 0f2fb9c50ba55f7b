"""Imports run one way: stages → rooms → catalog → ground."""

import ast
import itertools
import pathlib

PY = pathlib.Path(__file__).resolve().parents[1] / "py"

GROUND = {
    "",
    "cli",
    "digests",
    "files",
    "jsonl",
    "kinds",
    "machine",
    "measured",
    "patience",
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
NO_CATALOG = {"hub", "checkpoint", "slurm", "numbers", "loopback_hub"}


def room(name: str) -> str:
    """The room of a module; "" for the package itself."""
    return name.removeprefix("saepub").lstrip(".").partition(".")[0]


def imports(fpath: pathlib.Path) -> set[str]:
    """Every module of ours that a file imports, by its full name."""
    package = ".".join(fpath.relative_to(PY).parts[:-1])
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
                below = PY / base.replace(".", "/") / alias.name
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                names.add(f"{base}.{alias.name}" if is_module else base)
    return {
        name for name in names if name.partition(".")[0] in ("saepub", "loopback_hub")
    }


def is_allowed(here: str, there: str) -> bool:
    if here == "loopback_hub":
        return there == "loopback_hub"
    if there == "loopback_hub":
        return here == "stages"
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
        here = "loopback_hub" if name.startswith("loopback_hub") else room(name)
        if fpath.name == "__init__.py" and fpath.parent.name == "stages":
            continue
        for there in sorted(imports(fpath)):
            to = "loopback_hub" if there.startswith("loopback_hub") else room(there)
            if not is_allowed(here, to):
                broken.append(f"{name} → {there}")
    assert not broken, "\n".join(broken)


def test_no_two_modules_import_each_other():
    graph = {
        ".".join(f.relative_to(PY).with_suffix("").parts): imports(f)
        for f in PY.rglob("*.py")
    }
    pairs = itertools.combinations(sorted(graph), 2)
    assert not [(a, b) for a, b in pairs if b in graph[a] and a in graph[b]]
