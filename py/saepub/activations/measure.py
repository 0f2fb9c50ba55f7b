"""L0 and NMSE of many SAEs in one pass over activations.

L0 is the mean number of non-zero features per token. NMSE is the sum of squared errors of the
full-prefix reconstruction divided by the sum of squared deviations of the activations from their
mean. The SAEs compute as they do for their users: in eval mode, in float32 without TF32. Sums
are float64.

Most of the time goes into the two products with an SAE's weights. The features, which take the
most memory, share one buffer that is updated in place. If few features fire, as they should, the
second product uses only those, which saves nearly half of the work.
"""

import dataclasses
import math
import queue
import threading
import typing as tp

import numpy as np

from .. import machine
from ..checkpoint.sae import Sae
from ..kinds import LARGEST

BATCH_BYTES = {"cpu": 2**26, "cuda": 2**28}
"""The size of a batch's features, float32, at most. About three times that is in use. A GPU
takes less time for a small batch than it takes to tell it what to do."""

READ_TOKENS = 4096
"""How many tokens to read at once."""

SPARSE = {"cpu": 1 / 32, "cuda": 1 / 64}
"""If a smaller fraction of the features fires, reconstructing from only those is faster."""

SAME = 1e-12
"""Activations whose variance is below this fraction of their mean square are constant, up to
float32 rounding."""

SHARE = 0.8
"""The fraction of the free memory that we use."""


GPU_READERS = 4
"""How many threads read and check SAEs for a GPU, which would wait long for one."""

CUDA_BYTES = 1_000_000_000
"""The host memory of CUDA's libraries and of page-locked activations: 0.8 GB on an H200 with CUDA
13, and some more to be safe."""


class Measured(tp.NamedTuple):
    """The results for one SAE."""

    l0: float
    nmse: float
    sse_recon: float
    sse_baseline: float
    n_dead: int
    """Features that were zero for every token."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.sse_recon)


class Partial(tp.NamedTuple):
    """One SAE's sums so far: enough to resume and get the same result, bit for bit.

    They are arrays, as stored in a file.
    """

    n_tokens: np.ndarray
    """How many tokens they are of."""
    total: np.ndarray
    """Sum of x, float64 of shape (d_model,)."""
    squares: np.ndarray
    """Sum of x^2."""
    sse: np.ndarray
    n_fired: np.ndarray
    has_fired: np.ndarray
    is_sparse: np.ndarray
    """See `Sums`."""


class Unfit(ValueError):
    """Activations without an NMSE: none, not finite, or all the same."""


Keep = tp.Callable[[tp.Callable[[], list[Partial | None]]], object]


def device() -> str:
    """Where to measure: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """That device's name, for the record: a GPU's model, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if device() == "cuda" else "cpu"


def on_device(sae: Sae) -> Sae:
    """The SAE with its tensors where it will be measured, so that a GPU's are not in host memory."""
    where = device()
    tensors = {name: tensor.to(where) for name, tensor in sae.tensors.items()}
    return dataclasses.replace(sae, tensors=tensors)


def n_readers() -> int:
    """How many threads should read SAEs; on a CPU one, which needs the memory of the fewest."""
    return min(GPU_READERS, machine.n_cores()) if device() == "cuda" else 1


def batch_tokens(d_sae: int) -> int:
    """How many tokens to compute at once."""
    return max(1, BATCH_BYTES[device()] // (4 * d_sae))


def n_done(begun: tp.Iterable[Partial | None]) -> int:
    """The token from which all SAEs of a pass resume."""
    return min(int(partial.n_tokens) if partial else 0 for partial in begun)


def batch_bytes(where: str, d_model: int, d_sae: int) -> int:
    """About how much memory a pass takes besides its SAEs: features and activations."""
    return 3 * max(BATCH_BYTES[where], 4 * d_sae) + 4 * READ_TOKENS * 4 * d_model


def n_fit(n_bytes: int, d_model: int, d_sae: int) -> int:
    """How many SAEs can share a pass in memory, which is the GPU's if there is one.

    Args:
        n_bytes: The size of the largest checkpoint, which is in memory twice while being read.
        d_model: Width of the activations.
        d_sae: The largest number of features.
    """
    where = device()
    besides = batch_bytes(where, d_model, d_sae)
    if where == "cuda":
        import torch

        free = torch.cuda.mem_get_info()[0]
    else:
        free = machine.free_bytes()
        besides += machine.TORCH_BYTES + 2 * n_bytes
    return max(1, int((SHARE * free - besides) // n_bytes))


def memory_bytes(
    n_saes: int, n_bytes: int, d_model: int, d_sae: int, n_gpus: int = 0
) -> int:
    """The memory of a process in which `n_saes` share a pass. Arguments as for `n_fit`.

    The measured peak resident set on CPUs, for tasks of 1, 2 and 4 SAEs of 1024 × 16384, is
    0.65 to 0.78 of this; if few features fire and then suddenly half of them, which takes the
    most, 0.88 to 0.96. With GPUs it would be less, but torch may turn out not to use them.
    """
    n_at_once, cuda = (GPU_READERS, CUDA_BYTES) if n_gpus else (1, 0)
    besides = batch_bytes("cpu", d_model, d_sae) + machine.TORCH_BYTES + cuda
    return (n_saes + 2 * n_at_once) * n_bytes + besides


def measure(
    saes: tp.Sequence[tuple[Sae, bool]],
    batches: tp.Iterable[np.ndarray],
    count: tp.Callable[[int], object] = lambda _: None,
    *,
    n_batch: int | None = None,
    begun: tp.Sequence[Partial | None] = (),
    keep: Keep = lambda _: None,
) -> list[Measured]:
    """Measure SAEs on the same activations, which are read once, while the SAEs compute.

    Args:
        saes: SAEs of one d_model, each with whether to subtract its b_dec from x first.
        batches: Activations, float32 of shape (n, d_model), from token `n_done(begun)` on.
        count: Called with the number of tokens measured since its last call.
        n_batch: How many tokens to compute at once; by default as many as have BATCH_BYTES of
            features.
        begun: Each SAE's sums from an interrupted pass on the same batches, or None.
        keep: Called after each batch with a function that returns each SAE's sums so far;
            None for one that had got further before.

    Raises:
        Unfit: The activations have no NMSE.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    where = device()
    begun = begun or [None] * len(saes)
    sums = [
        Sums(on_device(sae), where, subtracts, partial)
        for (sae, subtracts), partial in zip(saes, begun, strict=True)
    ]
    d_sae = max(sae.header.d_sae for sae, _ in saes)
    n_batch = n_batch or batch_tokens(d_sae)
    features = torch.empty(n_batch * d_sae, device=where)
    about_mean = AboutMean(where, begun)
    with torch.inference_mode():
        for read in _ahead(batches, where):
            for x in read.split(n_batch):
                x64 = x.double()
                for one in sums:
                    if one.n_tokens == about_mean.n_tokens:
                        one.add(x, x64, features)
                about_mean.add(x64)
            count(len(read))
            about_mean.check()
            keep(lambda: [one.partial(about_mean) for one in sums])
    sse_baseline = about_mean.sse()
    return [one.measured(sse_baseline) for one in sums]


class AboutMean:
    """The sums of the activations themselves.

    The sum of squared deviations comes from the same pass, as sum x^2 - (sum x)^2 / n. With a
    large mean most of it cancels, but float64 suffices: a mean of 1000 standard deviations
    leaves 10 digits.
    """

    def __init__(self, where: str, begun: tp.Sequence[Partial | None]):
        import torch

        self.n_tokens = n_done(begun)
        self.total = torch.zeros((), dtype=torch.float64, device=where)
        self.squares = torch.zeros((), dtype=torch.float64, device=where)
        for partial in begun if self.n_tokens else ():
            if partial and partial.n_tokens == self.n_tokens:
                self.total = torch.from_numpy(partial.total).to(where)
                self.squares = torch.from_numpy(partial.squares).to(where)

    def add(self, x64: tp.Any) -> None:
        self.total = self.total + x64.sum(dim=0)
        self.squares = self.squares + x64.square().sum()
        self.n_tokens += len(x64)

    def check(self) -> None:
        if not math.isfinite(self.squares.item()):
            raise Unfit(f"NaN or infinite values in the first {self.n_tokens} tokens")

    def sse(self) -> float:
        """The sum of squared deviations from the mean."""
        if not self.n_tokens:
            raise Unfit("there are none")
        sse = (self.squares - self.total.square().sum() / self.n_tokens).item()
        if sse <= SAME * self.squares.item():
            raise Unfit("all activations are the same, and so have no NMSE")
        return float(sse)


class Sums:
    """One SAE, on its device, and its sums so far."""

    def __init__(
        self, sae: Sae, where: str, subtracts_b_dec: bool, begun: Partial | None
    ):
        import torch

        self.sae = sae
        self.subtracts_b_dec = subtracts_b_dec
        self.sparse_below = SPARSE[where]
        self.sse = torch.zeros((), dtype=torch.float64, device=where)
        self.n_fired = torch.zeros((), dtype=torch.int64, device=where)
        self.has_fired = torch.zeros(sae.header.d_sae, dtype=torch.bool, device=where)
        threshold = sae.tensors.get("activation.threshold")
        self.cut = 0.0 if threshold is None else max(0.0, float(threshold))
        self.is_sparse = False
        """Whether few features fired in the last batch, so probably few will in the next."""
        self.n_tokens = 0
        if begun:
            self.n_tokens, self.is_sparse = int(begun.n_tokens), bool(begun.is_sparse)
            for name in ("sse", "n_fired", "has_fired"):
                setattr(self, name, torch.from_numpy(getattr(begun, name)).to(where))

    def add(self, x: tp.Any, x64: tp.Any, features: tp.Any) -> None:
        """Measure one batch.

        Args:
            x: Activations, (n, d_model), float32.
            x64: The same in float64.
            features: A buffer of at least n * d_sae values.
        """
        import torch

        self.n_tokens += len(x)
        sae, tensors = self.sae, self.sae.tensors
        h_x = features[: len(x) * sae.header.d_sae].view(len(x), -1)
        x = x - tensors["b_dec"] if self.subtracts_b_dec else x
        torch.addmm(tensors["b_enc"], x, tensors["W_enc"], out=h_x)
        if sae.header.rule == LARGEST:
            k = min(sae.header.top_k or 0, sae.header.d_sae)
            values, which = torch.topk(h_x, k, dim=-1, sorted=False)
            self.n_fired += torch.count_nonzero(values)  # even negative ones
            self.has_fired[which[values != 0]] = True
            if k < self.sparse_below * sae.header.d_sae:
                x_hat = self._from_few(values, which, None)
            else:
                x_hat = self._product(h_x.zero_().scatter_(-1, which, values))
        else:
            # In place: h_x becomes f_x. NaN stays NaN, and is reported.
            torch.threshold_(h_x, self.cut, 0.0)
            x_hat = self._from_fired(h_x) if self.is_sparse else self._from_all(h_x)
        self.sse += (x_hat.double() - x64).square_().sum()

    def _from_all(self, f_x: tp.Any) -> tp.Any:
        """x_hat from all features; counts them."""
        import torch

        n_fired = torch.count_nonzero(f_x)
        self.is_sparse = int(n_fired) < self.sparse_below * f_x.numel()
        self.n_fired += n_fired
        self.has_fired |= f_x.amax(dim=0) != 0
        return self._product(f_x)

    def _product(self, f_x: tp.Any) -> tp.Any:
        import torch

        return torch.addmm(self.sae.tensors["b_dec"], f_x, self.sae.tensors["W_dec"])

    def _from_fired(self, f_x: tp.Any) -> tp.Any:
        """x_hat from the features that aren't zero; counts them."""
        import torch

        n, d_sae = f_x.shape
        flat = f_x.view(-1)
        at = flat.nonzero().view(-1)
        self.is_sparse = len(at) < self.sparse_below * len(flat)
        starts = torch.searchsorted(at, torch.arange(n, device=at.device) * d_sae)
        values, which = flat[at], at.remainder_(d_sae)
        self.n_fired += len(which)
        self.has_fired[which] = True
        return self._from_few(values, which, starts)

    def _from_few(self, values: tp.Any, which: tp.Any, starts: tp.Any) -> tp.Any:
        """x_hat from some features.

        Args:
            values: Their values, (n, k); or, with `starts`, those of all tokens in one row.
            which: Their indices, of the same shape.
            starts: Where each token's values begin, (n,).
        """
        import torch

        x_hat = torch.nn.functional.embedding_bag(
            which,
            self.sae.tensors["W_dec"],
            starts,
            mode="sum",
            per_sample_weights=values,
        )
        return x_hat.add_(self.sae.tensors["b_dec"])

    def partial(self, about_mean: AboutMean) -> Partial | None:
        """Its sums so far; None if the others in the pass haven't caught up with it yet."""
        if self.n_tokens != about_mean.n_tokens:
            return None
        return Partial(
            n_tokens=np.array(self.n_tokens),
            total=about_mean.total.cpu().numpy(),
            squares=about_mean.squares.cpu().numpy(),
            sse=self.sse.cpu().numpy(),
            n_fired=self.n_fired.cpu().numpy(),
            has_fired=self.has_fired.cpu().numpy(),
            is_sparse=np.array(self.is_sparse),
        )

    def measured(self, sse_baseline: float) -> Measured:
        sse = self.sse.item()
        return Measured(
            l0=self.n_fired.item() / self.n_tokens,
            nmse=sse / sse_baseline,
            sse_recon=sse,
            sse_baseline=sse_baseline,
            n_dead=int((~self.has_fired).sum()),
        )


def _ahead(batches: tp.Iterable[np.ndarray], where: str) -> tp.Iterator[tp.Any]:
    """Each batch as a tensor on the device, while the next ones are read and copied there.

    Raises:
        Exception: Whatever reading raises.
    """
    import torch

    is_gpu = where == "cuda"
    cuda: tp.Any = torch.cuda
    stream: tp.Any = cuda.Stream() if is_gpu else None
    ready: queue.Queue[tp.Any] = queue.Queue(maxsize=2)
    is_over = threading.Event()

    def put(item: object) -> bool:
        while not is_over.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                x = torch.from_numpy(batch)
                if is_gpu:
                    with cuda.stream(stream):
                        x = x.pin_memory().to(where, non_blocking=True)
                    stream.synchronize()
                if not put(x):
                    return
            put(None)
        except BaseException as err:  # noqa: BLE001, raised again by the consumer
            put(err)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if is_gpu:
                item.record_stream(cuda.current_stream())
            yield item
    finally:
        is_over.set()
        thread.join()
