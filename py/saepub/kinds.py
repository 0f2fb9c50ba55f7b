"""The activations and objectives that are known: the one place where another is added."""

import typing as tp


class Activation(tp.NamedTuple):
    key: str
    """As saev's configs, W&B and lines name it."""
    cls: str
    """As a checkpoint's header names it."""
    title: str
    """As people write it."""
    params: frozenset[str]
    """What a header's "params" may hold."""


_SHARED = frozenset({"key", "sparsity", "aux"})

ACTIVATIONS = {
    "relu": Activation("relu", "Relu", "ReLU", _SHARED),
    "topk": Activation("top-k", "TopK", "TopK", _SHARED | {"top_k"}),
    "batchtopk": Activation(
        "batch-top-k", "BatchTopK", "BatchTopK", _SHARED | {"top_k", "momentum"}
    ),
}
"""By the name that the catalog and the Hub's tags use."""

OBJECTIVES = {"matryoshka": "Matryoshka", "vanilla": "Vanilla"}
"""What training asked for, by the catalog's name, and as people write it."""
