"""Checkpoints and saevs for tests.

    write(fpath, schema=5, activation="top-k", top_k=4)   a small checkpoint of any schema
    header(schema=3, ...)                                 its first line, as a dict
    weights(d_model, d_sae, ...)                          its state dict, from a seed
    write_raw(fpath, header, archive)                     a file of any two parts
    archive(state) / rezip(archive, edit)                 torch's bytes / with changed members
    write_saev(dpath, fault="")                           a SAEV_DIR whose saev reads all schemas
    run_dir(root, run_id)                                 RUNS_ROOT/<run_id>/checkpoint/sae.pt
    line(...)                                             select's line for what write() writes
    entry(...)                                            a catalog's entry for it

`FILES` is the directory with a real checkpoint of each schema, and `expected.json` with what
today's saev computes from them.
"""

import hashlib
import io
import json
import pathlib
import textwrap
import typing as tp
import zipfile

if tp.TYPE_CHECKING:
    import torch

FILES = pathlib.Path(__file__).parents[1] / "checkpoints"
EXPECTED = json.loads((FILES / "expected.json").read_text())
CLASSES = {"relu": "Relu", "top-k": "TopK", "batch-top-k": "BatchTopK"}


def header(
    schema: int | None | str = 5,
    d_model: int = 8,
    d_sae: int = 32,
    activation: str = "relu",
    top_k: int = 4,
) -> dict:
    """A header as saev wrote it. `schema` "1b" is schema 1's second form."""
    cfg = {"n_reinit_samples": 524288, "remove_parallel_grads": True}
    cfg |= {"normalize_w_dec": True, "seed": 0}
    old = {"d_vit": d_model, "exp_factor": d_sae // d_model} | cfg
    params = {} if activation == "relu" else {"top_k": top_k}
    cls = CLASSES[activation]
    if schema is None:
        return old | {"sparsity_coeff": 4e-4, "ghost_grads": False}
    tail = {"commit": "unknown", "lib": "0.1.0"}
    if schema == 1:
        return {"schema": 1, "cfg": old | params, "cls": cls} | tail
    config = {"cls": cls, "params": params}
    if schema in ("1b", 2):
        head = (
            {"schema": 1, "cls": "SparseAutoencoderConfig"}
            if schema == "1b"
            else {"schema": 2}
        )
        return head | {"cfg": old | {"activation": config}} | tail
    if schema == 3:
        new = {"d_model": d_model, "exp_factor": d_sae // d_model} | cfg
    elif schema == 4:
        new = {"d_model": d_model, "d_sae": d_sae} | cfg
    else:
        new = {"d_model": d_model, "d_sae": d_sae, "reinit_blend": 0.8}
        new |= {"reinit_enc_dec_tranpose": True, "remove_parallel_grads": True}
        new |= {"normalize_w_dec": True}
        config = {"cls": cls, "params": {"key": activation} | params}
        sparsity = ("L1Sparsity", {"key": "l1-sparsity", "coeff": 4e-4})
        if activation != "relu":
            sparsity = ("NoSparsity", {"key": "no-sparsity"})
        config["params"]["sparsity"] = {"cls": sparsity[0], "params": sparsity[1]}
    return {"schema": schema, "cfg": new | {"activation": config}} | tail


def weights(
    d_model: int = 8,
    d_sae: int = 32,
    activation: str = "relu",
    seed: int = 0,
    unit_norm: bool = True,
) -> dict[str, "torch.Tensor"]:
    """A state dict of random weights, decoder rows of unit norm."""
    import torch  # only here: it takes seconds

    rng = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_model, generator=rng)
    if unit_norm:
        W_dec /= W_dec.norm(dim=1, keepdim=True)
    state = {
        "W_dec": W_dec,
        "b_dec": torch.randn(d_model, generator=rng) / 4,
        # Transposed, as today's saev saves it: there it starts as W_dec.T.clone().
        "W_enc": torch.randn(d_sae, d_model, generator=rng).T / d_model**0.5,
        "b_enc": torch.randn(d_sae, generator=rng) / 4,
    }
    state["b_enc"][0] = 0.0  # so that a lost sign shows
    if activation == "batch-top-k":
        state["activation.threshold"] = torch.tensor(0.5)
    return state


def archive(state: object) -> bytes:
    """What torch.save writes for it."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_raw(fpath: pathlib.Path, head: dict | bytes, body: bytes) -> pathlib.Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode() + b"\n"
    fpath.parent.mkdir(parents=True, exist_ok=True)
    fpath.write_bytes(text + body)
    return fpath


def write(
    fpath: pathlib.Path,
    schema: int | None | str = 5,
    d_model: int = 8,
    d_sae: int = 32,
    activation: str = "relu",
    top_k: int = 4,
    seed: int = 0,
    unit_norm: bool = True,
) -> pathlib.Path:
    """Write a complete and valid checkpoint."""
    state = weights(d_model, d_sae, activation, seed, unit_norm)
    return write_raw(
        fpath, header(schema, d_model, d_sae, activation, top_k), archive(state)
    )


def rezip(body: bytes, edit=None, deflate: bool = False) -> bytes:
    """The archive rewritten by Python's zipfile, after its members have gone through `edit`.

    Args:
        edit: Takes and returns {name: bytes}.
        deflate: Compress the members.
    """
    with zipfile.ZipFile(io.BytesIO(body)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members = edit(members) if edit else members
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return buffer.getvalue()


def run_dir(root: pathlib.Path, run_id: str) -> pathlib.Path:
    """The path of that run's checkpoint."""
    return root / run_id / "checkpoint" / "sae.pt"


def line(run_id: str = "aaaaaaaa", activation: str = "relu", **changes: object) -> dict:
    """A line as select passes it on, with `write`'s defaults."""
    config = {"key": activation} | ({} if activation == "relu" else {"top_k": 4})
    expected = {"objective": "matryoshka", "activation": activation}
    return {
        "repo": "tiny",
        "layer": 6,
        "run_id": run_id,
        "commented": False,
        "source": "sweep.py:1",
        "expected": expected | {"d_model": 8, "d_sae": 32},
        "l0": 3.5,
        "nmse": 0.25,
        "numbers": "wandb",
        "aux": None,
        "objective": "matryoshka",
        "n_prefixes": 4,
        "activation": config,
        "d_model": 8,
        "d_sae": 32,
        "train_layer": 6,
        "state": "finished",
        "created_at": None,
        "wandb_url": None,
        "drop": None,
    } | changes


def entry(slug: str = "tiny", **changes: object) -> dict:
    """A repo's entry in the catalog, with `line`'s defaults."""
    return {
        "slug": slug,
        "repo_id": f"lab/{slug}",
        "title": "Tiny SAEs",
        "base_model": "lab/vit",
        "sweep": "sweep.py",
        "variable": "run_ids",
        "objective": "matryoshka",
        "activation": "relu",
        "layers": [6],
        "d_model": 8,
        "d_sae": 32,
    } | changes


def facts(fpath: pathlib.Path) -> dict[str, object]:
    """What preflight adds to a line about the file itself."""
    info = fpath.stat()
    return {
        "checkpoint": str(fpath),
        "bytes": info.st_size,
        "mtime_ns": str(info.st_mtime_ns),
        "sha256": hashlib.sha256(fpath.read_bytes()).hexdigest(),
    }


SAEV = '''
"""A stand-in for saev: its interface, and its reading of every schema but pre-0.1."""
import io
import json
import os
import time
import torch

FAULT = {fault!r}


class Output:
    def __init__(self, f_x, x_hats):
        self.f_x, self.x_hats = f_x, x_hats


class SparseAutoencoder(torch.nn.Module):
    def __init__(self, d_model, d_sae, activation, top_k):
        super().__init__()
        self.kind, self.top_k = activation, top_k
        self.W_dec = torch.nn.Parameter(torch.randn(d_sae, d_model))
        self.b_dec = torch.nn.Parameter(torch.zeros(d_model))
        start = self.W_dec.data.T
        self.W_enc = torch.nn.Parameter(start if FAULT == "tied" else start.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(d_sae))
        self.activation = torch.nn.Module()
        if activation == "BatchTopK":
            self.activation.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, x):
        if FAULT == "forward":
            x = x - self.b_dec
        h = x @ self.W_enc + self.b_enc
        if self.kind == "TopK":
            values, i = torch.topk(h, self.top_k, dim=-1)
            f = torch.zeros_like(h).scatter(-1, i, values)
        elif self.kind == "BatchTopK" and self.training:
            top = torch.topk(h.flatten(), self.top_k * len(h))
            f = torch.zeros(h.numel()).scatter(0, top.indices, top.values)
            f = f.reshape(h.shape)
        else:
            cut = self.activation.threshold if self.kind == "BatchTopK" else 0
            f = torch.where(h > cut, h, torch.zeros_like(h))
        x_hat = f @ self.W_dec + self.b_dec
        if FAULT == "decode":
            x_hat = x_hat * 1.001
        if FAULT == "nan":
            f[0, 0] = torch.nan
        if FAULT == "crash":
            1 / 0
        return Output(f, x_hat[:, None, :])


def load(fpath, *, device="cpu"):
    with open(fpath, "rb") as fd:
        header = json.loads(fd.readline())
        buffer = io.BytesIO(fd.read())
    print("saev prints what it likes")
    if FAULT == "hang":
        print("saev hangs", flush=True)
        time.sleep(60)
    if FAULT == "large" and len(buffer.getvalue()) > 4096:
        raise RuntimeError("too large")
    schema, cfg = header.get("schema"), header.get("cfg", header)
    if FAULT == "kill" and len(buffer.getvalue()) > 8192:
        os.kill(os.getpid(), 9)
    if FAULT == "old" and schema is not None:
        raise TypeError("unexpected keyword argument 'schema'")
    info = cfg.get("activation") or {{"cls": header.get("cls", "Relu"), "params": cfg}}
    d_model = cfg.get("d_model") or cfg["d_vit"]
    d_sae = cfg.get("d_sae") or d_model * cfg["exp_factor"]
    model = SparseAutoencoder(d_model, d_sae, info["cls"], info["params"].get("top_k"))
    state = torch.load(buffer, weights_only=True, map_location=device)
    if FAULT == "sign":
        state["b_enc"][state["b_enc"] == 0] = -0.0
    if FAULT == "forgets":  # in memory that held the right values until it was drawn over
        model.W_dec = torch.nn.Parameter(state.pop("W_dec"))
        torch.nn.init.kaiming_uniform_(model.W_dec)
    model.load_state_dict(state, strict=FAULT != "forgets")
    if FAULT == "half":
        model = model.half()
    if FAULT == "lost":
        del model.b_dec
    return model
'''


def write_saev(dpath: pathlib.Path, fault: str = "") -> pathlib.Path:
    """A SAEV_DIR with a saev in src/ that has today's interface.

    Args:
        dpath: Created if necessary.
        fault: What is wrong with it. When it loads: "tied" (W_enc is a view of W_dec
            transposed), "sign" (0 becomes -0), "half" (float16), "lost" (no b_dec), "old"
            (accepts only files without a schema), "large" (refuses all but tiny files),
            "hang", "kill" (dies of all but tiny files), "forgets" (leaves W_dec as drawn at
            random). When it runs: "forward" (subtracts b_dec from x first), "decode", "nan",
            "crash". "import": it can't be imported.
    """
    package = dpath / "src" / "saev" / "nn"
    package.mkdir(parents=True, exist_ok=True)
    text = textwrap.dedent(SAEV).format(fault=fault)
    if fault == "import":
        text = "import a_package_that_is_not_there\n"
    (package / "__init__.py").write_text(text)
    (package.parent / "__init__.py").write_text('__version__ = "9.9.9"\n')
    return dpath


def metrics(nmse: float) -> dict[str, float]:
    """The metrics.json that today's saev leaves after inference on a shard."""
    return {"normalized_mse": nmse, "sse_recon": nmse * 4e6, "sse_baseline": 4e6}


N_TOKENS = 2**20


def measurement(
    fpath: pathlib.Path, run_id: str, shard: str, l0: float, nmse: float
) -> dict[str, object]:
    """A record of what `measure` found for a checkpoint's very bytes."""
    content = fpath.read_bytes()
    tokens = {"layer": 6, "asked": N_TOKENS, "n_examples": 4096}
    return {
        "run_id": run_id,
        "shard": shard,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "l0": l0,
        "nmse": nmse,
        "n_tokens": N_TOKENS,
        "tokens": tokens | {"of_examples": 50_000, "per_example": 256},
        "sse_recon": nmse * 4e6,
        "sse_baseline": 4e6,
        "n_dead": 7,
        "subtracts_b_dec": False,
        "device": "cpu",
        "versions": {},
        "date": "2026-01-01T00:00:00Z",
    }


def measure(
    records_dpath: pathlib.Path, run_id: str, shard: str, record: dict[str, object]
) -> pathlib.Path:
    """Write a record to a lab's records."""
    fpath = records_dpath / "measured" / f"{run_id}@{shard}.json"
    fpath.parent.mkdir(parents=True, exist_ok=True)
    fpath.write_text(json.dumps(record))
    return fpath
