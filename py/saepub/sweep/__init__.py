"""What a lab's sweep lists: the ids of its runs, by layer, from Python that nobody runs or
from files."""

import typing as tp


class Candidate(tp.NamedTuple):
    """A run id that a source lists."""

    layer: int
    run_id: str
    commented: bool
    source: str
    """Where it stands: "path:line"."""
