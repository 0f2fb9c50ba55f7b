"""Faults: checkpoints that are broken, or made to do harm."""

import dataclasses
import functools
import json
import os
import pickle

import torch

from faults.rows import Measured, Row, measured
from kits import checkpoints as util
from kits.lab import Lab, Labs
from kits.programs import text_of

HEAD = json.dumps(util.header()).encode() + b"\n"
WIDE = 2**23
MEMO = b"r\xff\xff\xff\x7f"
"""LONG_BINPUT: keep it in the 2^31st place."""


@functools.cache
def refused(labs: Labs) -> tuple[Lab, Measured]:
    """One preflight over all of `FILES` and a good run, with a saev that would run a pickle.

    What all of them take together is more than any of them takes.
    """
    lab = labs.new()
    fpath = lab.saev_dir / "src/saev/nn/__init__.py"
    text = fpath.read_text()
    assert "weights_only=True" in text
    fpath.write_text(text.replace("weights_only=True", "weights_only=False"))
    util.write(lab.fpath("good"))
    lines = [util.line("good")]
    for i, (_, _, make) in enumerate(FILES):
        lab.fpath().parent.mkdir(parents=True)
        content = make(lab)
        if content is not None:
            lab.fpath().write_bytes(content)
        (lab.runs_root / "aaaaaaaa").rename(lab.runs_root / f"file{i}")
        lines.append(util.line(f"file{i}"))
    seen = measured(lab, "bin/preflight", stdin=text_of(lines))
    assert seen.out == "", "it was passed on"
    assert "good" not in seen.err, "it cost another run, too"
    assert "to continue without them: make dry-run" in seen.err
    return lab, seen


def hostile(i: int):
    """What preflight says about one of `FILES`."""

    def bring(labs: Labs) -> Measured:
        lab, seen = refused(labs)
        assert not lab.mark.exists(), "it ran code"
        told = [line for line in seen.err.splitlines() if f" file{i}: " in line]
        return dataclasses.replace(seen, err="\n".join(told))

    return bring


def wide(make, d_model: int, d_sae: int):
    """One run of these widths, on which catalog and W&B agree."""

    def bring(labs: Labs) -> Measured:
        lab = labs.new()
        lab.fpath().parent.mkdir(parents=True)
        lab.fpath().write_bytes(make(lab))
        line = util.line(d_model=d_model, d_sae=d_sae)
        line["expected"] |= {"d_model": d_model, "d_sae": d_sae}
        stdin = json.dumps(line) + "\n"
        return measured(lab, "bin/preflight", stdin=stdin)

    return bring


def good(lab: Lab | None = None) -> bytes:
    return HEAD + util.archive(util.weights())


class Call:
    """Pickles as a call, which unpickling makes."""

    def __init__(self, *call):
        self.call, *self.args = call

    def __reduce__(self):
        return self.call, tuple(self.args)


def touch(lab: Lab) -> Call:
    return Call(os.system, f"touch {lab.mark}")


def pickle_alone(lab: Lab) -> bytes:
    return HEAD + util.archive(touch(lab))


def pickle_in_tensor(lab: Lab) -> bytes:
    return HEAD + util.archive(util.weights() | {"b_dec": touch(lab)})


def pickle_as_key(lab: Lab) -> bytes:
    evil = Call(eval, f"open({str(lab.mark)!r}, 'w')")
    return HEAD + util.archive({evil.call: 1, "W_enc": evil})


def pickle_of_old_torch(lab: Lab) -> bytes:
    return HEAD + pickle.dumps(touch(lab))


def bomb(lab: Lab) -> bytes:
    """64 MB of zeros as some 64 kB of zip; a real one only has more."""
    zeros = {"archive/data/0": bytes(1 << 26)}
    body = util.archive(util.weights())
    return HEAD + util.rezip(body, lambda members: members | zeros, deflate=True)


def bomb_in_header(lab: Lab) -> None:
    """A header of 1 GB without a newline, most of it a hole in the file."""
    with open(lab.fpath(), "wb") as fd:
        fd.write(b'{"schema": "')
        fd.truncate(1 << 30)


def tail_of_a_terabyte(lab: Lab) -> None:
    with open(lab.fpath(), "wb") as fd:
        fd.write(good())
        fd.truncate(1 << 40)


def with_pickle(old: bytes, new: bytes):
    """Good weights, except for what their pickle says in one place."""

    def edit(members: dict) -> dict:
        text = members["archive/data.pkl"]
        assert old in text, "torch writes another pickle by now"
        return members | {"archive/data.pkl": text.replace(old, new, 1)}

    return lambda lab: HEAD + util.rezip(util.archive(util.weights()), edit)


def claim(n_rows: int):
    """W_dec's shape, (32, 8), with another number of rows."""
    size = n_rows.to_bytes(9, "little", signed=True)
    return with_pickle(b"K\x20K\x08\x86", b"\x8a\x09" + size + b"K\x08\x86")


def wide_header(lab: Lab) -> bytes:
    return json.dumps(util.header(d_model=WIDE, d_sae=WIDE)).encode() + b"\n"


def cut(sixteenth: int):
    return lambda lab: good()[: len(good()) * sixteenth // 16]


def flipped(name: str, d_model: int = 8, d_sae: int = 32):
    """One byte in the middle of a tensor's values is changed."""

    def make(lab: Lab) -> bytes:
        state = util.weights(d_model, d_sae)
        head = json.dumps(util.header(d_model=d_model, d_sae=d_sae)).encode() + b"\n"
        content = bytearray(head + util.archive(state))
        stored = state[name].T if name == "W_enc" else state[name]
        values = stored.contiguous().numpy().tobytes()
        content[content.index(values) + len(values) // 2] ^= 0x40
        return bytes(content)

    return make


def nested(lab: Lab) -> bytes:
    return b"[" * 500_000 + b"\n" + util.archive(util.weights())


K_AUX = {"cls": "AuxK", "params": {"k_aux": -1}}


def deep(n: int):
    """A good header, with something nested deeply where saev never looks."""
    return lambda lab: in_header(json.loads("[" * n + "]" * n))


def loss(name: str, value: object):
    return lambda lab: in_header(value, name)


def in_header(value: object, name: str = "aux") -> bytes:
    head = util.header()
    head["cfg"]["activation"]["params"][name] = value
    return json.dumps(head).encode() + b"\n" + util.archive(util.weights())


def lone_surrogate(lab: Lab) -> bytes:
    return b'{"schema": "\\ud800\\u001b[2J"}\n' + util.archive(util.weights())


def half(lab: Lab) -> bytes:
    state = util.weights()
    state["W_dec"] = state["W_dec"].to(torch.float16)
    return HEAD + util.archive(state)


def place(make):
    """Something other than a file in the checkpoint's place."""

    def put(lab: Lab) -> None:
        make(lab.fpath())

    return put


CUT = {0: "an empty file", 1: "no header line"}

FILES = (
    ("pickle that runs a command", "would run 'posix system'", pickle_alone),
    (
        "pickle that runs a command, among tensors",
        "would run 'posix system'",
        pickle_in_tensor,
    ),
    (
        "pickle that opens a file, as a key",
        "would run '__builtin__ eval'",
        pickle_as_key,
    ),
    (
        "pickle of a torch before 1.6",
        "not an archive of torch 1.6 or later",
        pickle_of_old_torch,
    ),
    (
        "pickle with a memo of 2^31 places",
        "a memo index is out of bounds",
        with_pickle(b"q\x00", MEMO),
    ),
    ("zip bomb", "compressed, which torch never does", bomb),
    ("header of 1 GB without a newline", "no header line in the first", bomb_in_header),
    ("header nested 500,000 deep", "its header is nested too deep", nested),
    ("header nested 900 deep", "its header is nested too deep", deep(900)),
    ("header nested 100 deep", "its header is nested too deep", deep(100)),
    ("header with an aux of no kind", "its aux ", loss("aux", {"cls": "Other"})),
    ("header with a list as sparsity", "its sparsity is [1]", loss("sparsity", [1])),
    ("header with a k_aux that is none", "k_aux is ", loss("aux", K_AUX)),
    ("header with escape codes", "is not one that saev writes", lone_surrogate),
    (
        "tensor that claims 2^60 values",
        "a tensor of shape (1152921504606846976, 8)",
        claim(2**60),
    ),
    ("tensor that claims -1 values", "a tensor whose shape is not", claim(-1)),
    ("tensor of another type", "Half values, not float32", half),
    (
        "1 TB of nothing behind the weights",
        "1.1 TB, but an SAE of",
        tail_of_a_terabyte,
    ),
    ("empty file", "an empty file", lambda lab: b""),
    ("directory", "a directory, not a file", place(os.mkdir)),
    ("FIFO that nobody writes to", "a pipe, socket or device", place(os.mkfifo)),
    (
        "symlink to /dev/zero",
        "a pipe, socket or device",
        place(lambda fpath: fpath.symlink_to("/dev/zero")),
    ),
    (
        "symlink to itself",
        "Too many levels of symbolic links",
        place(lambda fpath: fpath.symlink_to(fpath.name)),
    ),
    ("no file", "No such file or directory", lambda lab: None),
    *((f"file cut off at {i}/16", CUT.get(i, "truncated"), cut(i)) for i in range(16)),
    *(
        (f"flipped byte in {name}", "does not match its checksum", flipped(name))
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    ),
)

ROWS = [
    *(
        Row(fault, says, hostile(i), is_file=True)
        for i, (fault, says, _) in enumerate(FILES)
    ),
    Row(
        "header that claims 2^46 weights, and W&B and catalog too",
        "no torch archive after the header",
        wide(wide_header, WIDE, WIDE),
        is_file=True,
    ),
    Row(
        "flipped byte in a file of 134 MB",
        "does not match its checksum",
        wide(flipped("W_dec", 1024, 16384), 1024, 16384),
        is_file=True,
    ),
]
