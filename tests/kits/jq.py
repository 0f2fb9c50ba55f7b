"""What jq must not change: 1.6 holds a number in 53 bits, and has no word for what isn't one."""

import json
import subprocess

MAX_WHOLE = 2**53


def check(text: str, where: object) -> int:
    """Hold lines to it, and give how many there were.

    Raises:
        AssertionError: A number on a line is over 2^53, or jq gives back another line.
    """
    lines = [json.loads(line) for line in text.splitlines()]
    for i, line in enumerate(lines, start=1):
        for path, value in numbers(line):
            assert abs(value) <= MAX_WHOLE, f"{where}:{i}: {path} is {value}"
    done = subprocess.run(["jq", "-c", "."], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    back = [json.loads(line) for line in done.stdout.splitlines()]
    assert back == lines, f"{where}: jq gives back other lines"
    return len(lines)


def numbers(value: object, path: str = ""):
    """Every number in it, with where it stands."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from numbers(below, f"{path}.{key}")
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from numbers(below, f"{path}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value
