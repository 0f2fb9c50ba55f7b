"""A release of full-size checkpoints, compared with the plain way of doing it by hand."""

import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from .measure import MB, ROOT, Cost, measure, table

N_FILES, D_MODEL, D_SAE = 20, 1024, 16384

PLAIN = """
import hashlib, pathlib, shutil, sys, tempfile
import saev.nn
from huggingface_hub import HfApi, hf_hub_download
runs, repo_id = sorted(pathlib.Path(sys.argv[1]).iterdir()), "lab/plain"
api = HfApi()
api.create_repo(repo_id, exist_ok=True)
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as name:
    for run in runs:
        source = run / "checkpoint/sae.pt"
        saev.nn.load(str(source))
        target = pathlib.Path(name) / "layer_13" / run.name / "sae.pt"
        target.parent.mkdir(parents=True)
        shutil.copy2(source, target)
        with open(target, "rb") as fd:
            hashlib.file_digest(fd, "sha256").hexdigest()
    commit = api.upload_folder(repo_id=repo_id, folder_path=name).oid
    path = f"layer_13/{runs[0].name}/sae.pt"
    got = hf_hub_download(repo_id, path, revision=commit, cache_dir=pathlib.Path(name) / "cache")
    saev.nn.load(got)
"""

LOAD = """
import hashlib, pathlib, sys
import saev.nn
for run in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    fpath = run / "checkpoint/sae.pt"
    with open(fpath, "rb") as fd:
        hashlib.file_digest(fd, "sha256").hexdigest()
    saev.nn.load(str(fpath))
"""

TORCH = "import saev.nn"

SERVE = """
import sys
from loopback_hub import LoopbackHub
tokens = {"hf_bench": {"name": "lab", "orgs": [], "role": "write"}}
with LoopbackHub(sys.argv[1], tokens=tokens) as hub:
    print(hub.endpoint, flush=True)
    sys.stdin.read()
"""


def release() -> None:
    rows, further = [], []
    few, n_bytes = _both_ways(N_FILES)
    for transport, (plain, ours, stages) in few.items():
        costs = [("plain", plain), ("`make release`", ours), *stages]
        rows += [_row(f"{transport}, {w}", c, plain, n_bytes) for w, c in costs]
    one = n_bytes / N_FILES
    head = (
        "way",
        "wall",
        "of plain",
        "CPU",
        "read / data",
        "written / data",
        f"peak, in checkpoints of {one / MB:.0f} MB",
    )
    title = f"Release {N_FILES} checkpoints of {one / MB:.0f} MB"
    table(title, rows, head)
    # What doesn't depend on the number of files, such as importing torch, cancels out.
    many, more_bytes = _both_ways(2 * N_FILES, with_stages=False)
    gb = (more_bytes - n_bytes) / 1e9
    for transport in few:
        plain, ours = (
            [(m.wall - f.wall) / gb, (m.cpu - f.cpu) / gb]
            for f, m in zip(few[transport][:2], many[transport][:2], strict=True)
        )
        seen = [f"{seconds:.2f} s" for seconds in (*plain, *ours)]
        further.append((transport, *seen, f"{ours[0] / plain[0]:.2f}"))
    head = (
        "transport",
        "plain, wall",
        "CPU",
        "`make release`, wall",
        "CPU",
        "of plain",
    )
    table(
        f"Each further GB, from {N_FILES} to {2 * N_FILES} checkpoints", further, head
    )


def _both_ways(
    n_files: int, with_stages: bool = True
) -> tuple[dict[str, tuple[Cost, Cost, list[tuple[str, Cost]]]], int]:
    """By transport, what the plain way, a release and its stages cost; the bytes of all files."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        dpath = pathlib.Path(name)
        n_bytes = _make_runs(dpath, n_files)
        costs = {}
        for transport, env in (("LFS", {"HF_HUB_DISABLE_XET": 1}), ("Xet", {})):
            plain = _against_hub(dpath, env, _plain)
            ours = _against_hub(dpath, env, _ours)
            stages = _against_hub(dpath, env, _stages) if with_stages else []
            costs[transport] = plain, ours, stages
        return costs, n_bytes


def preflight() -> None:
    """preflight compared with plain hashing and loading of the same files by the same saev."""
    saev_dir = os.environ.get("SAEV_DIR", "")
    env: dict[str, object] = {"SAEV_DIR": saev_dir}
    if saev_dir:
        env["PYTHONPATH"] = pathlib.Path(saev_dir).absolute() / "src"
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        dpath = pathlib.Path(name)
        one = _make_runs(dpath, N_FILES) / N_FILES
        ours = env | {"SAEPUB_BUILD": dpath / "build", "RUNS_ROOT": dpath / "runs"}
        load = [sys.executable, "-c", LOAD, dpath / "runs"]
        torch = measure([sys.executable, "-c", TORCH], **env)
        measure(load, **env)  # so that everything is in the page cache
        rows, plain = [], measure(load, **env)
        for what, cost in (
            ("sha256 and saev.nn.load()", plain),
            ("preflight --jobs 1", _preflight(dpath, ours, "--jobs", 1)),
            ("preflight", _preflight(dpath, ours)),
        ):
            rows.append(
                (
                    what,
                    f"{cost.wall:.1f} s",
                    f"{cost.cpu:.1f} s",
                    f"{(cost.cpu - torch.cpu) / N_FILES:.2f} s",
                    f"{cost.cpu / plain.cpu:.2f}",
                    f"{(cost.rss - torch.rss) / one:.1f}",
                )
            )
    saev = saev_dir or "the installed saev"
    table(
        f"Check {N_FILES} checkpoints of {one / MB:.0f} MB, with {saev}",
        rows,
        (
            "way",
            "wall",
            "CPU",
            "per file, without imports",
            "of plain",
            "peak, besides torch",
        ),
    )


def _preflight(dpath: pathlib.Path, env: dict, *argv: object) -> Cost:
    with open(dpath / "lines.jsonl") as fd:
        return measure([ROOT / "bin/preflight", *argv], stdin=fd, **env)


def _row(what: str, cost: Cost, plain: Cost, n_bytes: int) -> tuple:
    return (
        what,
        f"{cost.wall:.1f} s",
        f"{cost.wall / plain.wall:.2f}",
        f"{cost.cpu:.1f} s",
        f"{cost.rchar / n_bytes:.2f}",
        f"{cost.wchar / n_bytes:.2f}",
        f"{cost.rss / (n_bytes / N_FILES):.1f}",
    )


def _against_hub(dpath: pathlib.Path, env: dict, way):
    """Run one way against a loopback Hub that is empty and has a process of its own."""
    hub_dpath = dpath / "hub"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, hub_dpath],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "py")},
        text=True,
    )
    try:
        env = env | {
            "HF_ENDPOINT": server.stdout.readline().strip(),
            "HF_TOKEN": "hf_bench",
            "HF_HOME": dpath / "hf",
            "HF_HUB_DISABLE_PROGRESS_BARS": 1,
        }
        return way(dpath, env)
    finally:
        server.stdin.close()
        server.wait()
        for leftover in ("hub", "hf", "build"):
            shutil.rmtree(dpath / leftover, ignore_errors=True)


def _plain(dpath: pathlib.Path, env: dict) -> Cost:
    return measure([sys.executable, "-c", PLAIN, dpath / "runs", dpath], **env)


def _ours(dpath: pathlib.Path, env: dict) -> Cost:
    return measure(["make", "release"], **env | _settings(dpath))


def _stages(dpath: pathlib.Path, env: dict) -> list[tuple[str, Cost]]:
    """What the heavy stages cost, one after another."""
    costs = []
    fpath = dpath / "lines.jsonl"
    for stage in ("preflight", "stage", "render", "push", "verify"):
        out = dpath / f"{stage}.jsonl"
        with open(fpath) as fd_in, open(out, "w") as fd_out:
            program = [ROOT / "bin" / stage]
            cost = measure(program, fd_in, fd_out, **env | _settings(dpath))
        costs.append((stage, cost))
        fpath = out
    return costs


def _settings(dpath: pathlib.Path) -> dict[str, object]:
    return {
        "SAEPUB_BUILD": dpath / "build",
        "RECORDS": dpath / "records",
        "CATALOG": dpath / "catalog.json",
        "METRICS_SNAPSHOT": dpath / "snapshot.jsonl",
        "RUNS_ROOT": dpath / "runs",
        "SAEV_DIR": "",
        "N": 2 * N_FILES,
    }


def _make_runs(dpath: pathlib.Path, n_files: int) -> int:
    """Write checkpoints as saev 0.1.0 does, and lines and a catalog for them; the bytes of all."""
    import torch

    header = {"d_vit": D_MODEL, "exp_factor": D_SAE // D_MODEL, "sparsity_coeff": 4e-4}
    header |= {
        "n_reinit_samples": 1,
        "ghost_grads": False,
        "remove_parallel_grads": True,
    }
    header |= {"normalize_w_dec": True, "seed": 0}
    torch.manual_seed(0)
    n_bytes = 0
    records = []
    for i in range(n_files):
        w_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL), dim=1)
        state = {
            "W_enc": torch.randn(D_MODEL, D_SAE) / D_MODEL**0.5,
            "b_enc": torch.zeros(D_SAE),
            "W_dec": w_dec,
            "b_dec": torch.zeros(D_MODEL),
        }
        fpath = dpath / f"runs/run{i:02d}/checkpoint/sae.pt"
        fpath.parent.mkdir(parents=True)
        with open(fpath, "wb") as fd:
            fd.write(json.dumps(header).encode() + b"\n")
            torch.save(state, fd)
        n_bytes += fpath.stat().st_size
        config = {
            "sae": {
                "d_model": D_MODEL,
                "d_sae": D_SAE,
                "activation": {"key": "relu"},
            },
            "objective": {"n_prefixes": 10},
            "train_data": {"layer": 13},
        }
        summary = {"eval/l0": 4 * 1.2**i, "eval/normalized_mse": 1 / (i + 2)}
        now = datetime.datetime.now(datetime.UTC).isoformat()
        record = {"name": f"run{i:02d}", "state": "finished", "createdAt": now}
        records.append(record | {"config": config, "summary": summary})
    (dpath / "snapshot.jsonl").write_text("\n".join(map(json.dumps, records)))
    repo = {"slug": "bench", "repo_id": "lab/bench", "title": "SAE", "layers": [13]}
    repo |= {"base_model": "lab/vit", "run_ids": {"13": [r["name"] for r in records]}}
    repo |= {"objective": "matryoshka", "activation": "relu"}
    repo |= {"d_model": D_MODEL, "d_sae": D_SAE}
    (dpath / "catalog.json").write_text(json.dumps({"repos": [repo]}))
    select = "bin/extract-ids bench | bin/fetch-metrics | bin/facts | bin/classify"
    select += " | bin/settle | bin/select"
    with open(dpath / "lines.jsonl", "w") as fd:
        measure(["bash", "-o", "pipefail", "-c", select], None, fd, **_settings(dpath))
    return n_bytes
