"""The activations and objectives that are known: the one place where another is added.

An activation is a row here, with the rule by which its features fire. A rule that none of
these is would need its arithmetic too: `Sae.cut` and `Sae.activate` in checkpoint/sae.py.
"""

import typing as tp

POSITIVE = "positive"
"""A feature fires where its pre-activation is above 0."""
LARGEST = "largest"
"""The top_k largest pre-activations of a token fire."""
THRESHOLD = "threshold"
"""A feature fires where it is above the file's `activation.threshold`, and above 0."""


class Activation(tp.NamedTuple):
    key: str
    """As saev's configs, W&B and lines name it."""
    cls: str
    """As a checkpoint's header names it."""
    title: str
    """As people write it."""
    rule: str
    """In eval mode: POSITIVE, LARGEST or THRESHOLD."""
    params: frozenset[str]
    """What a header's "params" may hold."""


_SHARED = frozenset({"key", "sparsity", "aux"})

ACTIVATIONS = {
    "relu": Activation("relu", "Relu", "ReLU", POSITIVE, _SHARED),
    "topk": Activation("top-k", "TopK", "TopK", LARGEST, _SHARED | {"top_k"}),
    "batchtopk": Activation(
        "batch-top-k",
        "BatchTopK",
        "BatchTopK",
        THRESHOLD,
        _SHARED | {"top_k", "momentum"},
    ),
}
"""By the name that the catalog and the Hub's tags use."""

RULES = {activation.key: activation.rule for activation in ACTIVATIONS.values()}
"""By an activation's key."""

OBJECTIVES = {"matryoshka": "Matryoshka", "vanilla": "Vanilla"}
"""What training asked for, by the catalog's name, and as people write it."""
