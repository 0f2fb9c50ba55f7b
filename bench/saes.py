"""What measuring SAEs costs, compared with the two matrix products that it can't do without."""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from .measure import MB, ROOT, measure, table

D_SAE, N_TOKENS = 16384, 4096
CANDIDATES = {384: 58, 768: 64, 1024: 65 + 36}
"""How many runs the catalog's sweeps list, by d_model."""
N_LAYERS = {384: 6, 768: 6, 1024: 6}
"""Layers to read; the two repos of ViT-L share theirs."""
FULL = 2**20

PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import bench.saes as bench
from saepub.activations import measure
import numpy as np
saes = [(bench.sae("relu", 1024, 64, i), False) for i in range(int(sys.argv[2]))]
x = np.arange(4096, dtype=np.float32)[:, None] * np.ones((4096, 1024), np.float32)
measure.measure(saes, [x])
"""


def saes() -> None:
    import numpy as np
    import torch

    from saepub.activations import measure as engine

    is_gpu = engine.device() == "cuda"
    # On a GPU, several share a pass, or reading would take most of the time.
    n_tokens, n_saes = (2**17, 8) if is_gpu else (N_TOKENS, 1)
    rows, rate = [], {}
    for d_model in CANDIDATES:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n_tokens, d_model), np.float32)
        batches = np.split(x, n_tokens // engine.READ_TOKENS)
        on_device = torch.from_numpy(x).to(engine.device())
        for activation, l0 in (("relu", 64), ("relu", 2048), ("top-k", 64)):
            one = engine.on_device(sae(activation, d_model, l0))
            plain, ours = [], []
            for _ in range(3):
                plain.append(_seconds(lambda: _products(on_device, one)))  # noqa: B023
                pairs = [(one, False)] * n_saes
                ours.append(_seconds(lambda: engine.measure(pairs, batches)))  # noqa: B023
            wall_plain, cpu_plain = _best(plain)
            wall, cpu = (seconds / n_saes for seconds in _best(ours))
            ratio = wall_plain / wall if is_gpu else cpu_plain / cpu
            n_flops = 4 * d_model * D_SAE * n_tokens
            if activation == "relu" and l0 == 64:
                rate[d_model] = n_flops / wall
            rows.append(
                (
                    d_model,
                    f"{activation}, L0 {l0}",
                    f"{wall_plain:.2f} s",
                    f"{wall:.2f} s",
                    f"{n_flops / wall / 1e12:.2f}",
                    f"{cpu_plain:.2f} s",
                    f"{cpu:.2f} s",
                    f"{ratio:.2f}",
                )
            )
    title = f"Measuring one SAE of {D_SAE} features on {n_tokens:,} tokens"
    head = ("d_model", "SAE", "torch.matmul", "measure", "TFLOP/s", "torch.matmul, CPU")
    head += ("measure, CPU", f"ratio of {'wall' if is_gpu else 'CPU'}; goal 0.8")
    table(f"{title}, on {engine.device_name()}", rows, head)
    if is_gpu:
        _passes(engine)
    _all_candidates(rate, engine.device_name(), torch.get_num_threads())
    _memory(engine)


def _passes(engine) -> None:
    """Passes of several SAEs over a shard, compared with reading it, from disk and from memory."""
    from saepub.activations import shards

    n_tokens = 2**18
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        shard = shards.SaevShards(_shard(pathlib.Path(name), n_tokens), 23)
        examples = shards.sample(shard.n_examples, shard.per_example, n_tokens)

        def batches(forget: bool):
            for fpath in shard.fpaths if forget else ():
                with open(fpath, "rb") as fd:
                    os.posix_fadvise(fd.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return shards.batches(shard, examples, engine.READ_TOKENS)

        def read(forget: bool) -> None:
            for _ in engine._ahead(batches(forget), engine.device()):
                pass

        def row(what: str, do) -> tuple[str, float]:
            return what, _best([_seconds(do) for _ in range(3)])[0]

        one = engine.on_device(sae("relu", 1024, 64))
        rows = [
            row("only read, from disk", lambda: read(forget=True)),
            row("only read, from memory", lambda: read(forget=False)),
        ]
        for n in (1, 4, 16, 36):
            pairs = [(one, False)] * n
            rows.append(
                row(f"{n} SAEs", lambda: engine.measure(pairs, batches(False)))  # noqa: B023
            )
    disk = rows[0][1]
    table(
        f"A pass over {n_tokens:,} tokens of width 1024",
        [(what, f"{wall:.2f} s", f"{disk / wall:.2f}") for what, wall in rows],
        ("what", "wall", "reading from this disk would be"),
    )


def _shard(dpath: pathlib.Path, n_tokens: int) -> pathlib.Path:
    """A shard as saev writes it, with one layer, 23, of width 1024; 256 tokens an example."""
    import numpy as np

    n, rng = n_tokens // 256, np.random.default_rng(0)
    with open(dpath / "acts000000.bin", "wb") as fd:
        for _ in range(n):
            fd.write(rng.standard_normal((257, 1024), np.float32).tobytes())
        fd.flush()
        os.fsync(fd.fileno())
    listed = [{"name": "acts000000.bin", "n_examples": n}]
    (dpath / "shards.json").write_text(json.dumps(listed))
    meta = {"layers": [23], "dtype": "float32", "cls_token": True, "n_examples": n}
    meta |= {"content_tokens_per_example": 256, "d_model": 1024}
    (dpath / "metadata.json").write_text(json.dumps(meta))
    return dpath


def _all_candidates(rate: dict[int, float], device: str, n_threads: int) -> None:
    """All candidates at full size, calculated from what was measured here."""
    n_flops = {d: 4 * d * D_SAE * FULL * n for d, n in CANDIDATES.items()}
    n_bytes = sum(4 * d * FULL * N_LAYERS[d] for d in CANDIDATES)
    here = sum(n_flops[d] / rate[d] for d in CANDIDATES)
    if device == "cpu":
        of_16 = here * n_threads / 16
        rows = [
            (f"{n_threads} cores, this machine", _hours(here)),
            ("16 cores, at the same speed per core", _hours(of_16)),
            ("an array of 16 nodes of 16 cores", _hours(of_16 / 16)),
        ]
    else:
        rows = [(device, _hours(here))]
    reading = f"reading {n_bytes / 1e9:.0f} GB at 1 GB/s, meanwhile"
    rows.append((reading, _hours(n_bytes / 1e9)))
    n = sum(CANDIDATES.values())
    table(
        f"All {n} candidates on {FULL:,} tokens, calculated", rows, ("where", "takes")
    )


def _memory(engine) -> None:
    """A pass's peak memory, next to what is requested for it."""
    rows = []
    for n_saes in (1, 8):
        cost = measure([sys.executable, "-c", PEAK, ROOT, n_saes])
        n_bytes = 8 * 1024 * D_SAE
        is_gpu = engine.device() == "cuda"
        asked = engine.memory_bytes(n_saes, n_bytes, 1024, D_SAE, int(is_gpu))
        rows.append(
            (
                n_saes,
                f"{cost.rss / MB:.0f} MB",
                f"{asked / MB:.0f} MB",
                f"{cost.rss / asked:.2f}",
            )
        )
    head = ("SAEs in a pass", "peak memory", "requested", "of that")
    table("Memory of a pass, d_model 1024", rows, head)


def sae(activation: str, d_model: int, l0: int, seed: int = 0):
    """A random SAE with `l0` features that fire for a token of standard normal values."""
    import torch

    from saepub.checkpoint import header
    from saepub.checkpoint.sae import Sae

    cls, params = ("TopK", {"top_k": l0}) if activation == "top-k" else ("Relu", {})
    cfg = {"d_model": d_model, "d_sae": D_SAE}
    cfg |= {"activation": {"cls": cls, "params": params}}
    head = header.parse(json.dumps({"schema": 4, "cfg": cfg}).encode())
    rng = torch.Generator().manual_seed(seed)
    bias = statistics.NormalDist().inv_cdf(l0 / D_SAE)
    tensors = {
        # A transposed view, as in a checkpoint.
        "W_enc": torch.randn(D_SAE, d_model, generator=rng).T / d_model**0.5,
        "b_enc": torch.full((D_SAE,), bias),
        "W_dec": torch.randn(D_SAE, d_model, generator=rng) / d_model**0.5,
        "b_dec": torch.zeros(d_model),
    }
    return Sae(head, tensors)


def _products(x, one) -> None:
    import torch

    with torch.inference_mode():
        for batch in x.split(1024):
            h_x = torch.matmul(batch, one.tensors["W_enc"])
            torch.matmul(h_x, one.tensors["W_dec"])


def _seconds(do) -> tuple[float, float]:
    """Wall and CPU seconds; CPU depends less on other work on the machine."""
    import torch

    start, cpu = time.perf_counter(), time.process_time()
    do()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def _best(costs: list[tuple[float, float]]) -> tuple[float, float]:
    walls, cpus = zip(*costs, strict=True)
    return min(walls), min(cpus)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
