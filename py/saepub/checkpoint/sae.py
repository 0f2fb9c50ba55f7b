"""An SAE's forward pass, as saev defines it in eval mode."""

import dataclasses
import typing as tp

from ..kinds import LARGEST, THRESHOLD
from .header import Header

BLOCK_VALUES = 1 << 18
"""How many weights to widen at once: as many as fit in a core's cache."""


@dataclasses.dataclass(frozen=True)
class Sae:
    """An SAE's header and tensors, float32.

    W_enc (d_model, d_sae), b_enc (d_sae,), W_dec (d_sae, d_model), b_dec (d_model,), and for
    batch-top-k activation.threshold ().
    """

    header: Header
    tensors: dict[str, tp.Any]

    def pre_activation(self, x: tp.Any, *, subtract_b_dec: bool = False) -> tp.Any:
        """h_x = x @ W_enc + b_enc.

        Args:
            x: Activations of the model, (n, d_model), float32, or float64 for a result
                without float32 rounding.
            subtract_b_dec: Subtract b_dec from x first, as saev 0.1.0 does. Current saev
                doesn't, for the same files, and that is what we publish.

        Returns:
            (n, d_sae), of x's type.
        """
        if subtract_b_dec:
            x = x - self.tensors["b_dec"]
        return _product(x, self.tensors["W_enc"]) + self.tensors["b_enc"]

    def cut(self, h_x: tp.Any) -> tp.Any:
        """The pre-activation above which a feature fires, (n, 1), or () for all rows."""
        import torch

        if self.header.rule == LARGEST:
            return torch.topk(h_x, self._k(), dim=-1).values[:, -1:]
        if self.header.rule == THRESHOLD:
            return self.tensors["activation.threshold"].clamp(min=0)
        return torch.zeros(())

    def activate(self, h_x: tp.Any) -> tp.Any:
        """f_x, (n, d_sae), from h_x.

        top-k keeps the k largest of a row, even negative ones. In eval mode, batch-top-k is
        a JumpReLU at the threshold from training, or a ReLU if that is not above 0.
        """
        import torch

        if self.header.rule == LARGEST:
            values, i = torch.topk(h_x, self._k(), dim=-1)
            return torch.zeros_like(h_x).scatter(-1, i, values)
        return torch.where(h_x > self.cut(h_x), h_x, torch.zeros_like(h_x))

    def _k(self) -> int:
        """How many features of a row fire, for top-k."""
        assert self.header.top_k is not None, f"{self.header.activation} has no top_k"
        return min(self.header.top_k, self.header.d_sae)

    def encode(self, x: tp.Any) -> tp.Any:
        """Features f_x, (n, d_sae), of activations x, (n, d_model)."""
        return self.activate(self.pre_activation(x))

    def decode(self, f_x: tp.Any) -> tp.Any:
        """x_hat = f_x @ W_dec + b_dec, (n, d_model): the reconstruction from all features."""
        return _product(f_x, self.tensors["W_dec"]) + self.tensors["b_dec"]


def _product(x: tp.Any, weights: tp.Any) -> tp.Any:
    """x @ weights in x's dtype. If that is wider, the weights are widened block by block."""
    import torch

    if x.dtype == weights.dtype:
        return x @ weights
    product = torch.zeros(len(x), weights.shape[1], dtype=x.dtype)
    dim = 0 if weights.stride(0) >= weights.stride(1) else 1
    n_at_once = max(1, BLOCK_VALUES // weights.shape[1 - dim])
    for i in range(0, weights.shape[dim], n_at_once):
        n = min(n_at_once, weights.shape[dim] - i)
        block = weights.narrow(dim, i, n).to(x.dtype)
        if dim == 0:
            product.addmm_(x[:, i : i + n], block)
        else:
            product[:, i : i + n] = x @ block
    return product
