"""Fuzz the stages: spoiled input must end in an exit code and a line, and nowhere else.

    make fuzz SECONDS_EACH=600
    python tests/fuzz/run.py --cases 300 select stage

What breaks a promise is kept under build/fuzz/<target>/, and told.
"""

import argparse
import collections
import hashlib
import itertools
import pathlib
import random
import re
import sys
import tempfile
import time
import traceback

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "py")]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("names", nargs="*", metavar="TARGET", help="only these")
    p.add_argument("--seconds", type=float, default=0, help="for each target")
    p.add_argument(
        "--cases", type=int, default=0, help="for each; a tenth of slow ones"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=pathlib.Path, default=TESTS.parent / "build/fuzz")
    args = p.parse_args()
    from fuzz.targets import targets
    from kits.in_process import Watch
    from kits.lab import Labs
    from loopback_hub import LoopbackHub

    n_found = 0
    with tempfile.TemporaryDirectory(prefix="saepub-fuzz-") as scratch:
        dpath = pathlib.Path(scratch).resolve()
        user = {"name": "sam", "orgs": ["lab"], "role": "write"}
        with LoopbackHub(dpath / "hub", tokens={"hf_fuzz": user}) as hub:
            env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_fuzz"}
            env |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(dpath / "hub")}
            Watch.hub_dpath = dpath / "hub"
            every = targets(Labs(dpath / "labs"), env)
            for name in args.names or every:
                n_found += fuzz(name, every[name], args)
    return 1 if n_found else 0


def fuzz(name: str, target, args: argparse.Namespace) -> int:
    """Feed a target until its time is up or its cases are done; how many kinds of finding."""
    rng = random.Random(f"{args.seed} {name}")
    start, n_cases = time.monotonic(), 0
    n_most = args.cases // 10 if target.is_slow else args.cases
    kinds: collections.Counter[str] = collections.Counter()
    for data in itertools.chain(target.seeds, spoiled(target, rng)):
        is_over = (
            n_cases >= n_most if args.cases else time.monotonic() - start > args.seconds
        )
        if is_over and n_cases >= len(target.seeds):
            break
        n_cases += 1
        try:
            target.feed(data)
        except Exception as err:
            kind = f"{type(err).__name__}: {str(err)[:400]}"
            where = traceback.extract_tb(err.__traceback__)[-1]
            about = re.sub(r"[\d'\"].*", "", str(err))
            key = f"{type(err).__name__} {where.name}:{where.lineno} {about[:60]}"
            kinds[key] += 1
            if kinds[key] == 1:
                fpath = keep(args.out / name, data)
                print(f"{name}: {fpath}: {kind}", flush=True)
    seconds = time.monotonic() - start
    print(
        f"{name}: {n_cases} cases in {seconds:.0f} s, {len(kinds)} findings", flush=True
    )
    return len(kinds)


def spoiled(target, rng: random.Random):
    while True:
        data = rng.choice(target.seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = target.mutate(data, rng)
        yield data


def keep(dpath: pathlib.Path, data: bytes) -> pathlib.Path:
    dpath.mkdir(parents=True, exist_ok=True)
    fpath = dpath / hashlib.sha256(data).hexdigest()[:16]
    fpath.write_bytes(data)
    return fpath


if __name__ == "__main__":
    sys.exit(main())
