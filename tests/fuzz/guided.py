"""Fuzz one target with atheris, which goes where new code is reached.

    .venv/bin/pip install atheris==3.0.0    # not pinned: Linux only
    .venv/bin/python tests/fuzz/guided.py checkpoint 600

The spoiling is that of mutate.py; atheris chooses what to spoil further. It ends at the
first finding, and keeps it under build/fuzz/<target>/.
"""

import importlib
import pathlib
import pkgutil
import random
import sys
import tempfile

TESTS = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "py" / "saepub"
sys.path[:0] = [str(TESTS), str(TESTS.parent / "py")]

MAX_BYTES = 100_000


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["saepub"]):
        for found in pkgutil.walk_packages([str(PACKAGE)], "saepub."):
            importlib.import_module(found.name)
    from fuzz.targets import targets
    from kits.lab import Labs

    name, seconds = sys.argv[1:]
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="saepub-fuzz-"))
    # No Hub: those that ask one are for run.py.
    target = targets(Labs(scratch / "labs"), {"HF_ENDPOINT": "http://127.0.0.1:9"})[
        name
    ]
    corpus = scratch / "corpus"
    corpus.mkdir()
    for i, data in enumerate(target.seeds):
        (corpus / str(i)).write_bytes(data)
    out = TESTS.parent / "build/fuzz" / name
    out.mkdir(parents=True, exist_ok=True)

    def spoil(data: bytes, max_bytes: int, seed: int) -> bytes:
        return target.mutate(data, random.Random(seed))[:max_bytes]

    limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-timeout=30"]
    options = [*limits, f"-artifact_prefix={out}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], target.feed, custom_mutator=spoil)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
