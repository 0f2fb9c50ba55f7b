"""What jq must not change: jq 1.6 has 53 bits for a number, and neither NaN nor infinity."""

from .programs import rows_of, run_program

MAX_WHOLE = 2**53


def check(text: str, where: object) -> int:
    """Check that jq gives lines back unchanged; returns how many there were.

    Raises:
        AssertionError: It doesn't, or a number on a line is over 2^53.
    """
    rows = rows_of(text)
    for i, row in enumerate(rows, start=1):
        for path, value in numbers(row):
            assert abs(value) <= MAX_WHOLE, f"{where}:{i}: {path} is {value}"
    done = run_program("jq", "-c", ".", stdin=text)
    assert done.code == 0, done.err
    assert done.rows == rows, f"{where}: jq changes a line"
    return len(rows)


def numbers(value: object, path: str = ""):
    """Every number in a value, with its path."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from numbers(below, f"{path}.{key}")
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from numbers(below, f"{path}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value
