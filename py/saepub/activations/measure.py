"""L0 and NMSE of many SAEs in one pass over activations.

L0 is the mean count of non-zero features a token. NMSE is the sum of squared errors of the
full-prefix reconstruction over the sum of squares of the activations about their mean. The
SAEs compute as they do for those who use them: in eval mode, in float32 without TF32. Sums
are float64.

What an SAE costs is the two products with its weights. Of the features, which take the most
memory, there is one buffer, changed in place; and where few of them fire, as they should,
the second product takes only those, which spares nearly half of the work.
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

BATCH_BYTES = 2**26
"""How large one batch's features may be, float32. About three times that is in use."""

READ_TOKENS = 4096
"""How many tokens are read at once."""

SPARSE = 1 / 32
"""Where a smaller part of the features fires, reconstructing from those alone is faster."""

SAME = 1e-12
"""Activations whose variance is below this part of their square are all one, to float32."""

SHARE = 0.8
"""How much of the memory that is free is taken."""


CUDA_BYTES = 3_000_000_000
"""What CUDA's libraries take of the host's memory besides, at most. Not measured: no GPU was
at hand. Too much costs nothing on a node with GPUs; too little ends the task."""


class Measured(tp.NamedTuple):
    """What was found of one SAE."""

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
    """What has been added up of one SAE: enough to go on from to the very same sums.

    Arrays, for that is what a file holds.
    """

    n_tokens: np.ndarray
    """After how many."""
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
    """Activations that have no NMSE: not finite, or all the same."""


Keep = tp.Callable[[tp.Callable[[], list[Partial | None]]], object]


def device() -> str:
    """Where SAEs are measured: "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """That device's name, for the record: a GPU's model, or "cpu"."""
    import torch

    is_gpu = torch.cuda.is_available()
    return torch.cuda.get_device_name() if is_gpu else "cpu"


def batch_tokens(d_sae: int) -> int:
    """How many tokens are computed at once."""
    return max(1, BATCH_BYTES // (4 * d_sae))


def n_done(begun: tp.Iterable[Partial | None]) -> int:
    """The token from which all SAEs of a pass go on."""
    return min(int(partial.n_tokens) if partial else 0 for partial in begun)


def batch_bytes(d_model: int, d_sae: int) -> int:
    """About what a pass takes besides its SAEs: features, what fires, what was read."""
    return 3 * max(BATCH_BYTES, 4 * d_sae) + 4 * READ_TOKENS * 4 * d_model


def n_fit(n_bytes: int, d_model: int, d_sae: int) -> int:
    """How many SAEs may share a pass: as many as memory allows, the GPU's where there is one.

    Args:
        n_bytes: The largest checkpoint. One that is being read is in memory twice.
        d_model: Width of the activations.
        d_sae: The most features of one.
    """
    besides = batch_bytes(d_model, d_sae) + machine.TORCH_BYTES
    if device() == "cuda":
        import torch

        free, besides = torch.cuda.mem_get_info()[0], besides - machine.TORCH_BYTES
    else:
        free, besides = machine.free_bytes(), besides + 2 * n_bytes
    return max(1, int((SHARE * free - besides) // n_bytes))


def memory_bytes(
    n_saes: int, n_bytes: int, d_model: int, d_sae: int, n_gpus: int = 0
) -> int:
    """The memory that a process takes in which `n_saes` share a pass. Arguments as `n_fit`.

    Measured on CPUs, as the peak resident set of tasks of 1, 2 and 4 SAEs of 1024 × 16384:
    0.65 to 0.78 of this. Where few features fired and then, all at once, half of them,
    which takes the most: 0.88 and 0.92.
    """
    besides = batch_bytes(d_model, d_sae) + machine.TORCH_BYTES
    besides += CUDA_BYTES if n_gpus else 0
    return (n_saes + 2) * n_bytes + besides


def measure(
    saes: tp.Sequence[tuple[Sae, bool]],
    batches: tp.Iterable[np.ndarray],
    tell: tp.Callable[[int], object] = lambda _: None,
    *,
    n_batch: int | None = None,
    begun: tp.Sequence[Partial | None] = (),
    keep: Keep = lambda _: None,
) -> list[Measured]:
    """Measure SAEs on the same activations, which are read once, while the SAEs compute.

    Args:
        saes: SAEs of one d_model, each with whether its b_dec is taken from x first.
        batches: Activations, float32 of shape (n, d_model), from `n_done(begun)` on.
        tell: Called with the number of tokens that have been measured since it was last.
        n_batch: Tokens that are computed at once; by default as many as have BATCH_BYTES of
            features.
        begun: How far each SAE got before, on the same batches; None where it did not.
        keep: Called after each batch with what gives how far each SAE has got; None where it
            was further before.

    Raises:
        Unfit: The activations have no NMSE.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    where = device()
    begun = begun or [None] * len(saes)
    sums = [
        Sums(sae, where, subtracts, partial)
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
                for of_one in sums:
                    if of_one.n_tokens == about_mean.n_tokens:
                        of_one.add(x, x64, features)
                about_mean.add(x64)
            tell(len(read))
            about_mean.check()
            keep(lambda: [of_one.partial(about_mean) for of_one in sums])
    sse_baseline = about_mean.sse()
    return [of_one.measured(sse_baseline) for of_one in sums]


class AboutMean:
    """What has been added up of the activations themselves.

    The sum of squares about the mean comes from the same pass as all else, as
    sum x^2 - (sum x)^2 / n. Most of it cancels where the mean is large, which float64
    affords: a mean of 1000 standard deviations leaves 10 digits.
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
            raise Unfit(f"NaN or infinite among its first {self.n_tokens} tokens")

    def sse(self) -> float:
        """Sum of squares about the mean."""
        if not self.n_tokens:
            raise Unfit("there are none")
        sse = (self.squares - self.total.square().sum() / self.n_tokens).item()
        if sse <= SAME * self.squares.item():
            raise Unfit("all activations are the same, and so have no NMSE")
        return float(sse)


class Sums:
    """One SAE on its device, and what has been added up of it so far."""

    def __init__(
        self, sae: Sae, where: str, subtracts_b_dec: bool, begun: Partial | None
    ):
        import torch

        of = {name: tensor.to(where) for name, tensor in sae.tensors.items()}
        self.sae = dataclasses.replace(sae, tensors=of)
        self.subtracts_b_dec = subtracts_b_dec
        self.sse = torch.zeros((), dtype=torch.float64, device=where)
        self.n_fired = torch.zeros((), dtype=torch.int64, device=where)
        self.has_fired = torch.zeros(sae.header.d_sae, dtype=torch.bool, device=where)
        threshold = sae.tensors.get("activation.threshold")
        self.cut = 0.0 if threshold is None else max(0.0, float(threshold))
        self.is_sparse = False
        """Whether few features fired of the last batch; so will be the next."""
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
            features: Memory for n * d_sae values or more.
        """
        import torch

        self.n_tokens += len(x)
        sae, of = self.sae, self.sae.tensors
        h_x = features[: len(x) * sae.header.d_sae].view(len(x), -1)
        x = x - of["b_dec"] if self.subtracts_b_dec else x
        torch.addmm(of["b_enc"], x, of["W_enc"], out=h_x)
        if sae.header.rule == LARGEST:
            k = min(sae.header.top_k or 0, sae.header.d_sae)
            values, which = torch.topk(h_x, k, dim=-1, sorted=False)
            if k < SPARSE * sae.header.d_sae:
                x_hat = self._from_few(values, which, None)
            else:
                self.has_fired[which[values != 0]] = True  # negative ones too
                x_hat = self._from_all(h_x.zero_().scatter_(-1, which, values))
        else:
            # In place: h_x becomes f_x. NaN stays NaN, to be told.
            torch.threshold_(h_x, self.cut, 0.0)
            x_hat = self._from_fired(h_x) if self.is_sparse else self._from_all(h_x)
        self.sse += (x_hat.double() - x64).square_().sum()

    def _from_few(self, values: tp.Any, which: tp.Any, starts: tp.Any) -> tp.Any:
        """x_hat from the features that may not be zero, which are noted.

        Args:
            values: Theirs, (n, k); or, with `starts`, those of all tokens in one row.
            which: Their indices, of the same shape.
            starts: Where each token's begin, (n,).
        """
        import torch

        of = self.sae.tensors
        self.n_fired += torch.count_nonzero(values)
        self.has_fired[which[values != 0]] = True
        x_hat = torch.nn.functional.embedding_bag(
            which, of["W_dec"], starts, mode="sum", per_sample_weights=values
        )
        return x_hat.add_(of["b_dec"])

    def _from_fired(self, f_x: tp.Any) -> tp.Any:
        import torch

        n, d_sae = f_x.shape
        flat = f_x.view(-1)
        at = flat.nonzero().view(-1)
        self.is_sparse = len(at) < SPARSE * len(flat)
        starts = torch.searchsorted(at, torch.arange(n, device=at.device) * d_sae)
        return self._from_few(flat[at], at.remainder_(d_sae), starts)

    def _from_all(self, f_x: tp.Any) -> tp.Any:
        import torch

        of = self.sae.tensors
        n_fired = torch.count_nonzero(f_x)
        self.is_sparse = int(n_fired) < SPARSE * f_x.numel()
        self.n_fired += n_fired
        self.has_fired |= f_x.amax(dim=0) != 0
        return torch.addmm(of["b_dec"], f_x, of["W_dec"])

    def partial(self, about_mean: AboutMean) -> Partial | None:
        """How far it has got; None where the others of its pass have yet to catch up."""
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
        except BaseException as err:  # noqa: BLE001, raised again where it is waited for
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
