"""doctor: show what is ready for a dry run and a release, and how to fix the rest."""

import os
import sys

from .. import settings
from ..cli import UserError, parser, scrub
from ..doctor.run import BAD, OK, TODO, Finding, examine

COLORS = {OK: "32", TODO: "33", BAD: "31"}


def main(argv: list[str]) -> int:
    from ..doctor import checks as doctor_checks

    p = parser(
        "Show what is ready for a dry run and a release, and how to fix the rest.",
        "bin/doctor",
    )
    p.parse_args(argv)
    worst = OK
    try:
        settings.load()
    except UserError as err:
        worst = BAD
        show(Finding(BAD, "settings", str(err)))
    for finding in examine(doctor_checks.CHECKS):
        show(finding)
        worst = BAD if finding.level == BAD else worst
    return 1 if worst == BAD else 0


def show(finding: Finding) -> None:
    mark = f"{finding.level:<4}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        mark = f"\x1b[{COLORS[finding.level]}m{mark}\x1b[0m"
    text = "".join(c if c.isprintable() else " " for c in scrub(finding.text))
    print(f"{mark}  {finding.what:<8}  {text}", flush=True)
