"""Ways to spoil input: bytes, JSON Lines, Python source. Each takes bytes and a random.Random."""

import copy
import json
import pathlib
import random
import typing as tp

from kits.hostile_text import texts

RAW = (b"NaN", b"Infinity", b"-0", b"1e999", b"-1e-999", b"9" * 5000, b'"\\ud800"')
RAW += (b'"\\udc80\\u0000"', b'{"a":1,"a":2}', b"[" * 3000 + b"]" * 3000, b"'x'", b"")
"""What json.dumps does not write, by what stands for it: "@0" and so on."""

VALUES: tuple[tp.Any, ...] = (
    *(None, True, False, 0, 1, -1, 6, 7, 0.0, -0.5, 1.5, 1e308, -1e308, 5e-324),
    *(2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**40, -(2**63)),
    *("", " ", "NaN", "Infinity", "-Infinity", "nan", "6", "tiny", "relu", "top-k"),
    *("2026-01-10T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31", "x" * 300),
    *([], {}, [[]], [None], {"": None}, {"key": "relu"}, {"value": 1}, {"top_k": 4}),
    *texts(pathlib.Path("/nowhere/ran")).values(),
    *(f"@{i}" for i in range(len(RAW))),
)

BYTES = (
    b"\0",
    b"\n",
    b"\r",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"}",
)
BYTES += (
    b"[",
    b"]",
    b",",
    b":",
    b"#",
    b"'",
    b"\x1b[2J",
    b"\xc2\x9b",
    b" ",
    b"\t",
    b"\x0c",
)

PYTHON = (
    *(
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        ",",
        ":",
        "=",
        "#",
        "# '",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
    ),
    *(
        "\n",
        "\r",
        "\r\n",
        "\x0c",
        "\t",
        "    ",
        "\0",
        "\ufeff",
        "é",
        "𝐱",
        "run_ids",
        "6",
        "0x6",
    ),
    *(
        "-6",
        "6.0",
        "1_0",
        "0o6",
        "True",
        "None",
        "*",
        "**",
        "->",
        ":=",
        "if 1:",
        "def f():",
    ),
    *(
        "lambda: 0",
        "dict[int, list[str]]",
        "f'{1}'",
        "b'aaaa'",
        "r'\\'",
        "'a' 'b'",
        "'\\x41'",
    ),
    *(
        "# -*- coding: utf-7 -*-\n",
        "# coding: rot13\n",
        "# 7: ['bbbb0000']\n",
        "# 'bbbb0000',",
    ),
    *(
        "[" * 300,
        "(" * 3000,
        "-" * 3000,
        "9" * 5000,
        "a." * 3000,
        "'" + "a" * 300 + "'",
    ),
    *("await x", "match x:", "async def", "@x", "type X = int", "import os", "exit()"),
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(data) + 1)
        j = min(len(data), i + rng.choice((1, 1, 2, 8, 64)))
        middle = rng.choice(
            (b"", rng.choice(BYTES), rng.randbytes(j - i), 2 * data[i:j])
        )
        data = data[:i] + middle + data[j:]
    return data


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """Mostly still JSON Lines, with something else in one place or more."""
    if rng.random() < 0.1:
        return of_bytes(data, rng)
    rows = data.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not rows:
            break
        i = rng.randrange(len(rows))
        action = rng.random()
        if action < 0.85:
            rows[i] = of_json(rows[i], rng)
        elif action < 0.9:
            rows.insert(i, rng.choice(rows))
        elif action < 0.95:
            del rows[i]
        else:
            rows[i] = rng.choice((b"", b" ", b"\xff", b"null", b"[]", b"{}", b"5"))
    return b"\n".join(rows) + rng.choice((b"\n", b"", b"\r\n", b"\n\n"))


def of_json(text: bytes, rng: random.Random) -> bytes:
    """A JSON value with another in one place or more; of bytes where it isn't JSON, or is
    nested deeper than Python copies and writes what it has read."""
    try:
        value = json.loads(text)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            _edit(value, rng)
        spoiled = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    except (ValueError, RecursionError):
        return of_bytes(text, rng)
    text = spoiled.encode("utf-8", "surrogatepass")
    for i, raw in enumerate(RAW):
        text = text.replace(b'"@%d"' % i, raw)
    return text


def _edit(value: tp.Any, rng: random.Random) -> None:
    """Change one thing in an object or list, at any depth."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            value = inner
            continue
        action = rng.random()
        if action < 0.75:
            value[key] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.85:
            del value[key]
        elif action < 0.95:
            value[key] = copy.deepcopy(value[rng.choice(keys)])
        elif isinstance(value, dict):
            value[str(rng.choice(VALUES))[:80]] = copy.deepcopy(rng.choice(VALUES))
        else:
            value.insert(key, copy.deepcopy(rng.choice(VALUES)))
        return


def of_python(data: bytes, rng: random.Random) -> bytes:
    """Source with tokens put in, taken out or changed for others, and lines moved about."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        i = rng.randrange(len(text) + 1)
        action = rng.random()
        if action < 0.5:
            text = text[:i] + rng.choice(PYTHON) + text[i:]
        elif action < 0.7:
            text = text[:i] + rng.choice(PYTHON) + text[i + rng.choice((1, 3, 10)) :]
        else:
            rows = text.splitlines(keepends=True) or [""]
            j, k = rng.randrange(len(rows)), rng.randrange(len(rows))
            rows[j] = rng.choice(("# " + rows[j], rows[k], "", rows[j] + rows[k]))
            text = "".join(rows)
    return text.encode("utf-8", "surrogatepass")


def of_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """A header that says something else, or damage anywhere in the file."""
    head, _, body = data.partition(b"\n")
    if rng.random() < 0.5:
        return of_json(head, rng) + b"\n" + body
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    damaged = bytearray(data)
    # torch pads its members, so most of a small file is where nothing is read.
    marks = [i for mark in (b"PK", b"\x80\x02") for i in _all(damaged, mark)]
    for _ in range(rng.choice((1, 2, 8))):
        i = rng.choice(marks) + rng.randrange(80) if marks else 0
        damaged[min(i, len(damaged) - 1)] = rng.choice((0, 0xFF, rng.randrange(256)))
    return bytes(damaged)


def _all(data: bytearray, mark: bytes) -> tp.Iterator[int]:
    i = data.find(mark)
    while i >= 0:
        yield i
        i = data.find(mark, i + 1)
