"""The pickle in a checkpoint: names, shapes and strides of its tensors, without running code.

It may contain only what a state dict of float32 tensors needs. Every opcode is checked before
any is executed, and nothing that the pickle names is imported.
"""

import collections
import io
import math
import pickle
import pickletools
import re
import typing as tp

from ..text import clipped
from .archive import MAX_PICKLE_BYTES
from .header import Refused

OPCODES = frozenset(
    (
        *("PROTO", "GLOBAL", "MARK", "STOP", "REDUCE", "BUILD", "BINPERSID"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    )
)


class Stored(tp.NamedTuple):
    """Where a tensor's values are: a whole member, laid out by the strides."""

    member: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In values. Descending, except for a matrix that was saved transposed."""


class _Storage(tp.NamedTuple):
    member: str
    n_values: int


def tensors(found: dict[str, memoryview]) -> dict[str, Stored]:
    """The state dict's tensors, by name.

    Args:
        found: The archive's members by name, from `archive.members`.

    Raises:
        Refused: The pickle would run code, or is not a state dict of float32 tensors.
    """
    if "data.pkl" not in found:
        raise Refused("its archive has no data.pkl")
    if bytes(found.get("byteorder", b"little")) != b"little":
        raise Refused("its values are not little-endian")
    text = bytes(found["data.pkl"])
    _check_opcodes(text)
    try:
        state = _Unpickler(io.BytesIO(text)).load()
    except Refused:
        raise
    except Exception as err:  # noqa: BLE001, bytes of any kind raise errors of any kind
        raise Refused(f"its pickle is damaged: {type(err).__name__}") from None
    if not isinstance(state, dict):
        raise Refused("it has no state dict")
    for name, stored in state.items():
        if type(name) is not str or not isinstance(stored, Stored):
            raise Refused("its state dict holds something other than named tensors")
    return dict(state)


def check_fills(name: str, stored: Stored, found: dict[str, memoryview]) -> None:
    """Raise Refused unless the tensor uses each value of its member exactly once."""
    n_values = 1
    for stride, size in sorted(zip(stored.strides, stored.shape, strict=True)):
        if size > 1 and stride != n_values:
            raise Refused(f"{name} has strides {stored.strides} for {stored.shape}")
        n_values *= size
    n_bytes = len(found.get(stored.member, b""))
    if n_bytes != 4 * n_values:
        raise Refused(
            f"{name} needs {4 * n_values} bytes, but its member has {n_bytes}"
        )


def _check_opcodes(text: bytes) -> None:
    """Raise Refused if any opcode is one that a state dict doesn't need."""
    try:
        for opcode, arg, _ in pickletools.genops(text):
            if opcode.name == "GLOBAL" and arg not in GLOBALS:
                raise Refused(_why_not(str(arg)))
            if opcode.name not in OPCODES:
                raise Refused(
                    f"its pickle has {opcode.name}, which no state dict needs"
                )
            if opcode.name == "LONG_BINPUT" and int(arg or 0) > MAX_PICKLE_BYTES:
                raise Refused("its pickle is damaged: a memo index is out of bounds")
    except ValueError as err:
        raise Refused(f"its pickle is damaged: {str(err)[:60]!r}") from None


def _why_not(name: str) -> str:
    if re.fullmatch(r"torch \w+Storage", name):
        return f"it holds {name.removeprefix('torch ')[:-7]} values, not float32"
    return f"its pickle would run {name[:60]!r}; nothing of it was run"


def _rebuild(
    storage: tp.Any,
    offset: tp.Any,
    shape: tp.Any,
    strides: tp.Any,
    _needs_grad: object,
    hooks: object,
    metadata: object = None,
) -> Stored:
    numbers = (*shape, *strides, storage.n_values)
    if any(type(n) is not int or n < 0 for n in numbers) or type(offset) is not int:
        raise Refused("a tensor whose shape is not whole numbers")
    if len(shape) != len(strides) or offset != 0 or hooks or metadata:
        raise Refused("a tensor that is part of another")
    if math.prod(shape) != storage.n_values:
        text = clipped(str(shape))
        raise Refused(f"a tensor of shape {text} over {storage.n_values} values")
    return Stored(storage.member, tuple(shape), tuple(strides))


GLOBALS = {
    "collections OrderedDict": collections.OrderedDict,
    "torch._utils _rebuild_tensor_v2": _rebuild,
    "torch FloatStorage": "float32",
}
"""Everything that a pickle may name, and its stand-in here."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> tp.Any:
        return GLOBALS[f"{module} {name}"]

    def persistent_load(self, pid: tp.Any) -> _Storage:
        kind, dtype, key, _location, n_values = pid
        if kind != "storage" or dtype != "float32" or type(key) is not str:
            raise Refused("its pickle refers to something other than float32 values")
        return _Storage(f"data/{key}", n_values)
