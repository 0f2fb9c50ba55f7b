"""The known activations and objectives: the one place to add another.

An activation is a row here, with the rule by which its features fire. A new rule needs its
arithmetic too: `Sae.cut` and `Sae.activate` in checkpoint/sae.py.
"""

import typing as tp

POSITIVE = "positive"
"""A feature fires if its pre-activation is above 0."""
LARGEST = "largest"
"""The top_k largest pre-activations of a token fire."""
THRESHOLD = "threshold"
"""A feature fires if its pre-activation is above the file's `activation.threshold` and 0."""


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
    """The keys that a header's "params" may have."""


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
"""Each training objective by the catalog's name, and as people write it."""
