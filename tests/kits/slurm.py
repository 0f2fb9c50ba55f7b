"""Slurm's commands as a site may have wrapped them: scripts, with no cluster behind them.

sbatch runs the array at once, on this machine; squeue and scancel print what they are told to.
Each logs its arguments and environment.
"""

import json
import os
import pathlib
import shutil
import sys

PROGRAM = """#!{python}
import json, os, pathlib, re, subprocess, sys
here = pathlib.Path({dpath!r})
name = pathlib.Path(sys.argv[0]).name
with open(here / "calls", "a") as fd:
    fd.write(json.dumps([name, sys.argv[1:], dict(os.environ)]) + "\\n")
if name == "sbatch" and not (here / "sbatch.idle").exists():
    text = pathlib.Path(sys.argv[-1]).read_text()
    last = int(re.search(r"--array=0-(\\d+)", text)[1])
    for i in range(last + 1):
        ids = dict(SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID={job_id!r}, SLURM_ARRAY_TASK_ID=str(i))
        subprocess.Popen(["/bin/bash", sys.argv[-1]], env=os.environ | ids,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
says = here / f"{{name}}.says"
code, out, err = json.loads(says.read_text()) if says.exists() else (0, "", "")
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Site:
    """A directory for PATH with sbatch, squeue and scancel, and nothing else of Slurm."""

    JOB_ID = "4711"

    def __init__(self, dpath: pathlib.Path):
        self.dpath, self.bin = dpath, dpath / "bin"
        self.bin.mkdir(parents=True)
        for name in ("sbatch", "squeue", "scancel"):
            fpath = self.bin / name
            fpath.write_text(
                PROGRAM.format(
                    python=sys.executable, dpath=str(dpath), job_id=self.JOB_ID
                )
            )
            fpath.chmod(0o755)
        for name in ("bash", "env"):
            (self.bin / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        self.say("sbatch", f"{self.JOB_ID}\n")

    def say(self, program: str, out: str = "", err: str = "", code: int = 0) -> None:
        """What a program prints from now on, and its exit code."""
        (self.dpath / f"{program}.says").write_text(json.dumps([code, out, err]))

    def idle(self) -> None:
        """From now on sbatch accepts jobs that never start."""
        (self.dpath / "sbatch.idle").touch()

    def calls(self, program: str) -> list[tuple[list[str], dict[str, str]]]:
        """The arguments and the environment of each call so far."""
        fpath = self.dpath / "calls"
        rows = fpath.read_text().splitlines() if fpath.exists() else []
        return [
            (argv, env) for name, argv, env in map(json.loads, rows) if name == program
        ]

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": os.fspath(self.bin), "EXECUTOR": "slurm"}
