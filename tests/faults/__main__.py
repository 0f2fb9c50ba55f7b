"""The table of faults: one row per fault, each brought about for real. `make faults` prints it.

The rows are in weights.py, files.py, text.py, machine.py, told.py and hub.py;
test_faults.py makes a test of each.
"""

import pathlib
import re
import sys
import tempfile
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "py"), str(ROOT / "tests")]

from faults import files as faults_files
from faults import hub as faults_hub
from faults import machine as faults_machine
from faults import text as faults_text
from faults import told as faults_told
from faults import weights as faults_weights
from faults.rows import N_KBYTES, SECONDS, NotHere, Row
from kits.lab import Labs
from kits.programs import Done

TABLE = {
    "Weights and numbers that are not what they claim": faults_weights.ROWS,
    "Checkpoints that are broken, or made to do harm": faults_files.ROWS,
    "Text that means to do harm": faults_text.ROWS,
    "Machines without room or rights, two at once, clocks that jump": faults_machine.ROWS,
    "What is told, and what others tell": faults_told.ROWS,
    "Hubs that are, or answer, otherwise than a release needs": faults_hub.ROWS,
}
ROWS = [row for rows in TABLE.values() for row in rows]


def problems(row: Row, seen: Done) -> list[str]:
    """Everything wrong with what was seen when the row's fault was brought about."""
    told = seen.err.splitlines()
    found = []
    if seen.code != row.code:
        found.append(f"exit {seen.code}")
    if not any(row.says in line for line in told + seen.out.splitlines()):
        found.append("does not say so")
    for mark in ("Traceback", "internal error", "Exception ignored"):
        if mark in seen.err:
            found.append(mark)
    if not all(line.isprintable() for line in told):
        found.append("control characters")
    if row.is_file:
        if sum("sae.pt: " in line for line in told) != 1 or len(told) > 2:
            found.append(f"{len(told)} lines")
        if seen.seconds > SECONDS:
            found.append(f"{seen.seconds:.1f} s")
        if seen.n_kbytes > N_KBYTES:
            found.append(f"{seen.n_kbytes} kB")
    return found


def shown(row: Row, seen: Done, dpath: pathlib.Path) -> str:
    """The line that the table shows of what was seen."""
    told = [*seen.err.splitlines(), *seen.out.splitlines()]
    line = next((line for line in told if row.says in line), " / ".join(told[:2]))
    line = re.sub(rf"{re.escape(str(dpath))}/lab\d+/", "", line)
    text = f"exit {seen.code}: {' '.join(line.split())}"
    if row.is_file:
        text += f" ({seen.seconds:.1f} s, {seen.n_kbytes / 1000:.0f} MB)"
    return text


def main() -> int:
    n_failed, not_tried = 0, []
    with tempfile.TemporaryDirectory(prefix="saepub-faults-") as scratch:
        labs = Labs(pathlib.Path(scratch).resolve())
        for title, rows in TABLE.items():
            print(f"\n{title}\n", flush=True)
            for row in rows:
                verdict, text = tried(row, labs)
                n_failed += verdict == "FAIL"
                not_tried += [row.fault] if verdict == "-" else []
                print(f"{verdict:4}  {row.fault}")
                print(f"        expected  exit {row.code}: {row.says}")
                print(f"        seen      {textwrap.shorten(text, 150)}", flush=True)
    n_rows = sum(map(len, TABLE.values()))
    print(f"\n{n_rows} faults, {n_failed} not as expected, {len(not_tried)} not tried")
    return 1 if n_failed else 0


def tried(row: Row, labs: Labs) -> tuple[str, str]:
    """Bring the fault about: "ok", "FAIL" or "-" (can't be, here), and what was seen."""
    try:
        seen = row.bring(labs)
    except NotHere as why:
        return "-", f"not tried: {why}"
    except AssertionError as err:
        return "FAIL", str(err)
    found = problems(row, seen)
    text = shown(row, seen, labs.dpath)
    return ("FAIL", f"{', '.join(found)}; {text}") if found else ("ok", text)


if __name__ == "__main__":
    sys.exit(main())
