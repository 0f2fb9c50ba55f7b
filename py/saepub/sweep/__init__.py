"""The candidates that a lab's sweep lists: run ids by layer, from Python that is never run,
from files, or from W&B."""

import typing as tp


class Candidate(tp.NamedTuple):
    """A run id that a source lists."""

    layer: int
    run_id: str
    commented: bool
    source: str
    """Where it is listed: "path:line"."""
