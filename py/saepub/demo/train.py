"""How the demo's SAEs are trained, written and measured.

The activations are sums of a few known directions, some common and most rare, through a
mild nonlinearity; other directions for each (repo, layer). Training is saev's in small:
datapoint init, Matryoshka objective, Adam, decoder rows of unit norm.
"""

import itertools
import json
import math
import pathlib
import typing as tp
import zlib

import numpy as np
import saev.nn
import torch
from torch import Tensor

from .table import N_HELD_OUT, N_TRAIN, Repo, Run

N_DIRECTIONS = 64
N_STEPS = 80
BATCH = 64
REINIT_BLEND = 0.8
"""The share of a sample in an initial weight, the rest being noise; saev's default."""
ENC_SCALE, ENC_BIAS = 0.3, -0.3
"""Encoders start small and with a negative bias: so few steps couldn't correct a large start."""

# One thread, because sums over several threads depend on their number.
torch.set_num_threads(1)


class TopK(saev.nn.SparseAutoencoder):  # type: ignore[misc]  # saev has no types
    """An SAE that keeps each token's k largest features, as in current saev.

    saev 0.1.0 has only ReLU.
    """

    top_k: int


def encode(sae: saev.nn.SparseAutoencoder, x: Tensor) -> Tensor:
    """f_x, float32 of shape (n, d_sae), of activations x of shape (n, d_model).

    As in current saev's forward. 0.1.0's subtracts b_dec from x, which is zero for ReLU here.
    """
    h_x = x @ sae.W_enc + sae.b_enc
    if not isinstance(sae, TopK):
        return torch.relu(h_x)
    values, idxs = h_x.topk(sae.top_k, dim=-1)
    return torch.zeros_like(h_x).scatter(-1, idxs, values)


class Activations(tp.NamedTuple):
    """The activations of one (repo, layer), float32."""

    train: Tensor
    """(1297, d_model)"""
    held_out: Tensor
    """(500, d_model)"""


def activations(slug: str, layer: int, d_model: int) -> Activations:
    """Activations of one (repo, layer), always the same.

    They are centered and scaled by the training rows, so that an SAE needs no b_dec.
    """
    rng = np.random.default_rng(seed_of(f"{slug}/layer_{layer}.npy"))
    directions = rng.normal(size=(N_DIRECTIONS, d_model)) / N_DIRECTIONS**0.5
    n_tokens = N_TRAIN + N_HELD_OUT
    # As of features of language and images, the r-th is active in a 1/r share of the tokens.
    share = 1 / np.arange(1, N_DIRECTIONS + 1)
    is_active = rng.random((n_tokens, N_DIRECTIONS)) < share
    strengths = is_active * rng.exponential(size=is_active.shape)
    acts = np.tanh(strengths @ directions)
    acts = (acts - acts[:N_TRAIN].mean(axis=0)) / acts[:N_TRAIN].std()
    acts = acts.astype(np.float32)
    rows = torch.from_numpy(acts)
    return Activations(rows[:N_TRAIN], rows[N_TRAIN:])


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def train_and_dump(
    run: Run, x: Tensor, fpath: pathlib.Path
) -> saev.nn.SparseAutoencoder:
    """Train the run's SAE on the rows of `x`, float32 of shape (n, d_model), and write it."""
    sae = train(run, x)
    with torch.no_grad():
        if run.misfit == "dead":
            sae.b_enc.fill_(-1000)
        if run.misfit == "diverged":
            for param in sae.parameters():
                param.fill_(math.nan)
    fpath.parent.mkdir(parents=True)
    if isinstance(sae, TopK):
        dump_schema5(fpath, sae)
    else:
        saev.nn.dump(str(fpath), sae)
    return sae


def train(run: Run, x: Tensor) -> saev.nn.SparseAutoencoder:
    """saev's training in small: mean squared error averaged over prefixes, plus L1."""
    rng = torch.Generator().manual_seed(seed_of(run.run_id))
    sae = new_sae(run, x, rng)
    params = [param for param in sae.parameters() if param.requires_grad]
    optimizer = torch.optim.Adam(params, lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    for _ in range(N_STEPS):
        batch = x[torch.randint(len(x), (BATCH,), generator=rng)]
        f_x = encode(sae, batch)
        prefixes = sample_prefixes(sae.cfg.d_sae, run.n_prefixes, rng)
        mse = prefix_mse(sae, f_x, batch, prefixes)
        loss = mse + sae.cfg.sparsity_coeff * f_x.abs().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        sae.remove_parallel_grads()
        optimizer.step()
        schedule.step()
        sae.normalize_w_dec()
    return sae


def new_sae(run: Run, x: Tensor, rng: torch.Generator) -> saev.nn.SparseAutoencoder:
    """An SAE whose features start from samples of `x`."""
    is_topk = run.repo.activation == "topk"
    cfg = saev.nn.config.SparseAutoencoder(
        d_vit=run.repo.d_model,
        exp_factor=run.repo.d_sae // run.repo.d_model,
        sparsity_coeff=0.0 if is_topk else run.sparsity,
        n_reinit_samples=0,
    )
    sae = TopK(cfg) if is_topk else saev.nn.SparseAutoencoder(cfg)
    if isinstance(sae, TopK):
        sae.top_k = int(run.sparsity)
    else:
        # saev 0.1.0 subtracts b_dec before encoding, later versions don't. With a b_dec of
        # zero, which centered activations allow, both compute the same L0 and NMSE.
        sae.b_dec.requires_grad_(False)
    samples = x[torch.randperm(len(x), generator=rng)[: cfg.d_sae]]
    noise = torch.randn(samples.shape, generator=rng)
    with torch.no_grad():
        sae.W_dec.copy_(REINIT_BLEND * samples + (1 - REINIT_BLEND) * noise)
        sae.normalize_w_dec()
        sae.W_enc.copy_(ENC_SCALE * sae.W_dec.T)
        sae.b_enc.fill_(ENC_BIAS)
    return sae


def sample_prefixes(d_sae: int, n_prefixes: int, rng: torch.Generator) -> list[int]:
    """Ascending prefix lengths, short ones more likely; the last is d_sae.

    A length l has the weight l^-1/2 - (l + 1)^-1/2, a Pareto distribution, as in
    "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (arXiv 2503.17547).
    """
    if n_prefixes == 1:
        return [d_sae]
    lengths = torch.arange(1, d_sae)
    weights = lengths**-0.5 - (lengths + 1) ** -0.5
    picked = torch.multinomial(weights, n_prefixes - 1, generator=rng)
    return sorted(lengths[picked].tolist()) + [d_sae]


def prefix_mse(
    sae: saev.nn.SparseAutoencoder, f_x: Tensor, x: Tensor, prefixes: list[int]
) -> Tensor:
    """Mean squared error of the reconstructions by each prefix, averaged over prefixes.

    Args:
        f_x: Features, float32 of shape (n, d_sae).
        x: The activations, float32 of shape (n, d_model).
        prefixes: Ascending lengths; a prefix of length l is the first l features.
    """
    sizes = np.diff(prefixes, prepend=0).tolist()
    blocks = [
        f_block @ W_block
        for f_block, W_block in zip(
            torch.split(f_x, sizes, dim=1), sae.W_dec.split(sizes), strict=True
        )
    ]
    x_hats = torch.stack(list(itertools.accumulate(blocks))) + sae.b_dec
    return torch.nn.functional.mse_loss(x_hats, x.expand_as(x_hats))


def dump_schema5(fpath: pathlib.Path, sae: TopK) -> None:
    """Write a TopK SAE as current saev does: a header of schema 5, and the tensors."""
    activation = {
        "key": "top-k",
        "top_k": sae.top_k,
        "sparsity": {"cls": "NoSparsity", "params": {"key": "no-sparsity"}},
        # Revives features after millions of tokens without firing, so never in the demo.
        "aux": {
            "cls": "AuxK",
            "params": {"key": "auxk", "k_aux": 512, "alpha": 1 / 32},
        },
    }
    cfg = {
        "d_model": sae.cfg.d_vit,
        "d_sae": sae.cfg.d_sae,
        "activation": {"cls": "TopK", "params": activation},
        "reinit_blend": REINIT_BLEND,
        "reinit_enc_dec_tranpose": True,  # saev's spelling
        "remove_parallel_grads": True,
        "normalize_w_dec": True,
    }
    header = {"schema": 5, "cfg": cfg, "commit": "unknown", "lib": "0.1.0"}
    tensors = sae.state_dict()
    with open(fpath, "wb") as fd:
        fd.write(json.dumps(header, separators=(",", ":")).encode() + b"\n")
        names = ("W_dec", "b_dec", "W_enc", "b_enc")
        torch.save({name: tensors[name] for name in names}, fd)


def dump_shard(dpath: pathlib.Path, repo: Repo, held_out: dict[int, Tensor]) -> None:
    """Write held-out activations as saev caches them, each example after a [CLS] token.

    Args:
        held_out: By layer, float32 of shape (500, d_model).
    """
    meta = repo.metadata
    shape = (meta["n_examples"], -1, repo.d_model)
    content = torch.stack([x.reshape(shape) for x in held_out.values()], dim=1)
    cls = content.mean(dim=2, keepdim=True)
    acts = torch.cat([cls, content], dim=2).contiguous().numpy()
    dpath.mkdir(parents=True, exist_ok=True)
    n_examples = meta["n_examples"] // 2
    listed = []
    for i, part in enumerate((acts[:n_examples], acts[n_examples:])):
        name = f"acts{i:06}.bin"
        (dpath / name).write_bytes(part.tobytes())
        listed.append({"name": name, "n_examples": len(part)})
    (dpath / "metadata.json").write_text(json.dumps(meta, indent=2) + "\n")
    (dpath / "shards.json").write_text(json.dumps(listed, indent=2) + "\n")


@torch.no_grad()
def measure(
    sae: saev.nn.SparseAutoencoder, x: Tensor, n_prefixes: int
) -> dict[str, tp.Any]:
    """The W&B summary of a trained SAE.

    L0 is the mean number of non-zero features per token. NMSE is the full-prefix
    reconstruction's sum of squared errors divided by the sum of squared deviations from the
    mean, in float64. `eval/mse`, which is not NMSE, averages over prefixes.

    Args:
        x: Held-out activations, float32 of shape (n, d_model).
        n_prefixes: How many prefixes the run's objective has.
    """
    f_x = encode(sae, x)
    x64 = x.double()
    sse = ((sae.decode(f_x).double() - x64) ** 2).sum()
    sse_baseline = ((x64 - x64.mean(dim=0)) ** 2).sum()
    rng = torch.Generator().manual_seed(0)
    prefixes = sample_prefixes(sae.cfg.d_sae, n_prefixes, rng)
    summary = {
        "eval/l0": (f_x != 0).sum(dim=1).double().mean().item(),
        "eval/normalized_mse": (sse / sse_baseline).item(),
        "eval/mse": prefix_mse(sae, f_x, x, prefixes).item(),
        "eval/n_dead": int(((f_x != 0).sum(dim=0) == 0).sum()),
    }
    # W&B sends numbers that JSON lacks as strings.
    return {key: "NaN" if math.isnan(v) else v for key, v in summary.items()}
