"""The demo's repos, layers and runs, always the same."""

import dataclasses
import datetime
import hashlib
import json
import random
import typing as tp

SEED = 17
N_TRAIN, N_HELD_OUT = 1297, 500
"""How many tokens are for training, and how many are held out, as the shard."""
PER_EXAMPLE = 25
"""Tokens per example of the shard."""
N_PREFIXES = 10
"""The number of prefixes of the Matryoshka objective, saev's default."""
LR, SLOW_LR = 5e-3, 1e-3
"""A good learning rate, and one that is too slow for a run to reach the frontier."""
COEFFS = (1e-3, 2.5e-2)
"""The range of L1 coefficients that a ReLU sweep goes over: L0 from about 35 to 7."""
TOP_KS = (2, 48)
"""The range of k that a TopK sweep goes over."""

KEYED = datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)
"""Since this date, an activation's config has a "key", and the widths are d_model and d_sae."""


class Panel(tp.NamedTuple):
    """The runs of one (repo, layer)."""

    layer: int
    created: str
    """The day of the first run. saev has logged eval/normalized_mse since 2025-11-26."""
    n_good: int
    n_slow: int
    misfits: tuple[str, ...] = ()
    """Candidates that can't be released:

    absent: an id that W&B doesn't know, commented out
    dead: an encoder bias so low that no feature fires
    diverged: weights that are all NaN
    old: from before eval/normalized_mse was logged
    running: no metrics and no checkpoint yet
    vanilla: trained without prefixes; the sparsest, so it would be chosen if not dropped
    """
    is_commented: bool = False
    """Whether all of its ids are commented out in the sweep."""


@dataclasses.dataclass(frozen=True)
class Repo:
    slug: str
    name: str
    model: str
    sweep: str
    variable: str
    style: str
    """How the sweep lists ids; see sweeps.py."""
    d_model: int
    d_sae: int
    panels: tuple[Panel, ...]
    activation: str = "relu"
    other_variable: str = ""
    """A dict in the sweep that the catalog doesn't name."""
    annotation: str = ": dict[int, list[str]]"

    @property
    def metadata(self) -> dict[str, tp.Any]:
        """saev's metadata of the shard of held-out activations."""
        return {
            "family": "toy",
            "ckpt": f"random-projection-{self.slug}",
            "layers": [panel.layer for panel in self.panels],
            "content_tokens_per_example": PER_EXAMPLE,
            "cls_token": True,
            "d_model": self.d_model,
            "n_examples": N_HELD_OUT // PER_EXAMPLE,
            "max_tokens_per_shard": 500,
            "dataset": "toy",
            "dtype": "float32",
            "protocol": "2.1",
        }

    @property
    def shard(self) -> str:
        """The shard's name: a hash of the metadata, as in saev."""
        text = json.dumps(self.metadata, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


SWEEPS = "contrib/trait_discovery/sweeps"
REPOS = (
    Repo(
        slug="vits-relu",
        name="SAE_toy_S",
        model="S",
        sweep=f"{SWEEPS}/vits_ade20k_inference.py",
        variable="run_ids",
        style="rows",
        d_model=32,
        d_sae=256,
        panels=(
            Panel(6, "2025-11-27", n_good=8, n_slow=1, misfits=("absent", "old")),
            Panel(8, "2025-11-27", n_good=7, n_slow=1, is_commented=True),
            Panel(11, "2025-11-28", n_good=4, n_slow=4),
        ),
    ),
    Repo(
        slug="vitb-relu",
        name="SAE_toy_B",
        model="B",
        sweep=f"{SWEEPS}/vitb_ade20k_inference.py",
        variable="run_ids",
        style="column",
        d_model=48,
        d_sae=384,
        panels=(
            Panel(10, "2025-12-02", n_good=5, n_slow=3, is_commented=True),
            Panel(11, "2025-12-04", n_good=7, n_slow=1, misfits=("dead",)),
        ),
    ),
    Repo(
        slug="vitl-relu",
        name="SAE_toy_L",
        model="L",
        sweep=f"{SWEEPS}/vitl_ade20k_inference.py",
        variable="matryoshka_run_ids",
        style="column",
        d_model=64,
        d_sae=384,
        panels=(
            Panel(13, "2025-12-08", n_good=8, n_slow=1, misfits=("vanilla",)),
            Panel(23, "2025-12-11", n_good=7, n_slow=2, misfits=("running",)),
        ),
        other_variable="vanilla_run_ids",
    ),
    Repo(
        slug="vitl-topk",
        name="SAE_toy_TopK_L",
        model="L",
        sweep=f"{SWEEPS}/003_auxk/inference.py",
        variable="in1k_run_ids",
        style="one line",
        d_model=64,
        d_sae=256,
        panels=(
            Panel(13, "2025-12-12", n_good=6, n_slow=3),
            Panel(23, "2025-12-16", n_good=8, n_slow=1, misfits=("diverged",)),
        ),
        activation="topk",
        other_variable="fishvista_run_ids",
        annotation="",
    ),
)


@dataclasses.dataclass(frozen=True)
class Run:
    repo: Repo
    layer: int
    run_id: str
    created_at: datetime.datetime
    is_commented: bool
    sparsity: float
    """The L1 coefficient (ReLU) or k (TopK)."""
    lr: float = LR
    misfit: str = ""

    @property
    def n_prefixes(self) -> int:
        return 1 if self.misfit == "vanilla" else N_PREFIXES

    @property
    def has_checkpoint(self) -> bool:
        return self.misfit not in ("absent", "running")

    @property
    def config(self) -> dict[str, tp.Any]:
        """The run's config in W&B, in the form of its date."""
        if self.created_at < KEYED:
            widths = {"exp_factor": self.repo.d_sae // self.repo.d_model}
        else:
            widths = {"d_sae": self.repo.d_sae}
        return {
            "train_data": {
                "layer": self.layer,
                "shards": "shards/toy-train",
                "metadata": self.repo.metadata | {"n_examples": N_TRAIN},
            },
            "val_data": {"layer": self.layer, "shards": f"shards/{self.repo.shard}"},
            "sae": {
                "d_model": self.repo.d_model,
                **widths,
                "activation": self._activation(),
                "remove_parallel_grads": True,
                "normalize_w_dec": True,
            },
            "objective": {"n_prefixes": N_PREFIXES} if self.n_prefixes > 1 else {},
            "lr": self.lr,
        }

    def _activation(self) -> dict[str, tp.Any]:
        is_relu = self.repo.activation == "relu"
        if self.created_at < KEYED:
            return {} if is_relu else {"top_k": self.sparsity}
        if is_relu:
            l1 = {"key": "l1-sparsity", "coeff": self.sparsity}
            return {"key": "relu", "sparsity": l1, "aux": {"key": "no-aux"}}
        return {
            "key": "top-k",
            "top_k": self.sparsity,
            "sparsity": {"key": "no-sparsity"},
            "aux": {"key": "auxk", "k_aux": 512, "alpha": 1 / 32},
        }


def all_runs() -> list[Run]:
    """Every candidate of the demo, in the order of its sweep files, always the same."""
    rng = random.Random(SEED)
    return [
        run
        for repo in REPOS
        for panel in repo.panels
        for run in _runs(repo, panel, rng)
    ]


def runs_of(repo: Repo, layer: int | None = None) -> list[Run]:
    """The candidates of a repo, or of one layer of it."""
    runs = [run for run in all_runs() if run.repo == repo]
    return [run for run in runs if layer is None or run.layer == layer]


def _runs(repo: Repo, panel: Panel, rng: random.Random) -> list[Run]:
    lo, hi = COEFFS if repo.activation == "relu" else TOP_KS
    middle = (lo * hi) ** 0.5
    made = [(sparsity, LR, "") for sparsity in spread(lo, hi, panel.n_good)]
    # A slow run ends denser and worse than a good one of the same coefficient or k: off the
    # frontier, as long as it isn't the sparsest of all.
    made += [(sparsity, SLOW_LR, "") for sparsity in spread(middle, hi, panel.n_slow)]
    made += [
        (4 * hi if misfit == "vanilla" else middle, LR, misfit)
        for misfit in panel.misfits
    ]
    rng.shuffle(made)
    first = datetime.datetime.fromisoformat(panel.created).replace(tzinfo=datetime.UTC)
    runs = []
    for i, (sparsity, lr, misfit) in enumerate(made):
        created_at = first + datetime.timedelta(hours=3 * i, minutes=rng.randrange(60))
        if misfit == "old":
            created_at -= datetime.timedelta(days=45)
        run = Run(
            repo=repo,
            layer=panel.layer,
            run_id=new_id(rng),
            created_at=created_at,
            is_commented=panel.is_commented or misfit == "absent" or i % 5 in (1, 2),
            sparsity=sparsity if repo.activation == "relu" else round(sparsity),
            lr=lr,
            misfit=misfit,
        )
        runs.append(run)
    return runs


def spread(lo: float, hi: float, n: int) -> list[float]:
    """`n` values from `lo` to `hi`, evenly spaced on a log scale; the middle for n = 1."""
    if n == 1:
        return [(lo * hi) ** 0.5]
    return [lo * (hi / lo) ** (i / (n - 1)) for i in range(n)]


def new_id(rng: random.Random) -> str:
    """A run id in W&B's form."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8))


COLLECTION = (
    "The demo: sparse autoencoders of toy activations, small but really trained"
)


def catalog() -> dict[str, tp.Any]:
    return {
        "lab": {
            "license": "mit",
            "contact": "nobody (this is a demo)",
            "tags": ["demo"],
            "tokens": "patch",
            "entity": "demo-lab",
            "project": "demo",
        },
        "collections": [
            {"namespace": "demo-lab", "title": COLLECTION},
            {"slug": "demo-lab/sae-v-67ab8c4fdf179d117db28195"},
        ],
        "repos": [_entry(repo) for repo in REPOS],
    }


def _entry(repo: Repo) -> dict[str, tp.Any]:
    kind = "TopK SAEs" if repo.activation == "topk" else "SAEs"
    return {
        "slug": repo.slug,
        "repo_id": f"demo-lab/{repo.name}",
        "title": f"{kind} for the demo's toy model {repo.model}",
        "base_model": f"demo-lab/toy-{repo.model.lower()}",
        "sweep": repo.sweep,
        "variable": repo.variable,
        "objective": "matryoshka",
        "activation": repo.activation,
        "layers": [panel.layer for panel in repo.panels],
        "shard": repo.shard,
        "d_model": repo.d_model,
        "d_sae": repo.d_sae,
    }
