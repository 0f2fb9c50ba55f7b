"""Lines in, lines out: a line that can't be used is named, and shown."""

import io

import pytest

from saepub import jsonl
from saepub.cli import UserError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"layer": 6', "stdin:2: not JSON: "),
        (b"[6]", "stdin:2: not JSON: not a JSON object: [6]"),
        (b'{"run_id": "a"}', 'stdin:2: no "layer": {"run_id": "a"}'),
        (b'{"layer": true}', '"layer" is true, not a layer: {"layer": true}'),
        (b'{"layer": NaN}', "stdin:2: not JSON: "),
    ],
)
def test_a_line_that_cannot_be_used_is_shown(text, told):
    with pytest.raises(UserError) as caught:
        list(jsonl.read("layer", fd=io.BytesIO(b'{"layer": 1}\n' + text)))
    assert told in str(caught.value)
    assert str(caught.value).endswith(text.decode())


def test_what_is_shown_of_a_line_is_short_and_harmless():
    text = b'{"layer": "\x1b[31m' + b"x" * 1000
    with pytest.raises(UserError) as caught:
        list(jsonl.read("layer", fd=io.BytesIO(text)))
    assert len(str(caught.value)) < 250 and "\x1b" not in str(caught.value)


def test_half_a_character_is_written_as_something_that_can_be_read():
    text = jsonl.dumps({"source": "\ud800"})
    assert jsonl.loads(text.encode()) == {"source": "?"}
