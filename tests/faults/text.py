"""Faults: text that means to do harm. test_hostile.py puts more of it into every place."""

import json

from faults.rows import Row
from kits import checkpoints as util
from kits.hostile_text import texts
from kits.lab import SELECTION, Lab, Labs
from kits.programs import Done

ONE = 'run_ids = {6: ["aaaaaaaa"]}\n'
CHANGES = (
    'run_ids[6] = ["bbbbbbbb"]',
    'run_ids[6].append("bbbbbbbb")',
    "for ids in run_ids.values(): ids.clear()",
    "add_more(run_ids)",
)
"""Statements after `ONE` that change, or may change, what it says."""


def in_sweep(name: str):
    """As a run's id."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        lab.sweep[6].append(texts(lab.mark)[name])
        return ran_nothing(lab, lab.stages("extract-ids"))

    return bring


def as_sweep(text: str, **entry: object):
    """A sweep file of these lines, with run aaaaaaaa under layer 6."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        lab.entry |= entry
        lab.write()
        (lab.saev_dir / "sweep.py").write_text(text)
        return lab.program("bin/extract-ids", "tiny")

    return bring


def in_record(*path: str, name: str):
    """In what W&B has of a run; another run of its layer is good."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        inner = lab.run("bbbbbbbb", l0=9, nmse=0.1)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = texts(lab.mark)[name]
        return ran_nothing(lab, lab.stages(*SELECTION))

    return bring


def in_header(*path: str, name: str, steps: tuple[str, ...] = ()):
    """In a checkpoint's header."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        inner = head = util.header()
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = texts(lab.mark)[name]
        util.write_raw(lab.fpath(), head, util.archive(util.weights()))
        lab.touch("aaaaaaaa")
        seen = ran_nothing(lab, lab.stages(*SELECTION, "preflight", *steps))
        if steps:
            assert seen.code == 0, seen.err
            card = (lab.stage_dpath / "README.md").read_text()
            assert "49" not in card.split("## Use")[0], "the card obeyed it"
        return seen

    return bring


def in_catalog(key: str, text: str):
    """In the catalog, which make reads too."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        lab.entry[key] = text.format(mark=lab.mark)
        return ran_nothing(lab, lab.make(lab.build / "tiny" / "candidates.jsonl"))

    return bring


def in_setting(setting: str, text: str, *goal: str):
    def bring(labs: Labs) -> Done:
        lab = labs.copy()
        value = text.format(mark=lab.mark)
        if goal:
            goals = [lab.build / name for name in goal]
            return ran_nothing(lab, lab.make(*goals, f"{setting}={value}"))
        return ran_nothing(lab, lab.stages(*SELECTION, **{setting: value}))

    return bring


def in_path(labs: Labs) -> Done:
    """On a line that somebody wrote by hand, where a checkpoint goes in its repo."""
    made = labs.made
    line = json.loads(
        (made.build / "tiny" / "staged.jsonl").read_text().splitlines()[0]
    )
    line["path"] = "../../../escaped"
    return made.program("bin/render", stdin=json.dumps(line) + "\n")


def ran_nothing(lab: Lab, seen: Done) -> Done:
    assert not lab.mark.exists(), "it was run"
    assert not list(lab.dpath.parent.glob("escaped*")), "it left its directory"
    return seen


ROWS = [
    Row("run id with ../ in a sweep", "is not a run id", in_sweep("parent")),
    Row("run id with a shell command in a sweep", "is not a run id", in_sweep("shell")),
    *(
        Row(
            f"sweep that changes its variable: {text}",
            "sweep.py:2: ",
            as_sweep(f"{ONE}{text}\n"),
        )
        for text in CHANGES
    ),
    Row(
        "sweep with quoted words in a comment",
        'not taken for a run id: # the "best" so far',
        as_sweep('run_ids = {6: ["aaaaaaaa"]}  # the "best" so far\n'),
        0,
    ),
    Row(
        "sweep whose keys are tuples",
        'set the layer\'s index in it with "layer_at" in the catalog (1 for 6)',
        as_sweep('run_ids = {(256, 6): ["aaaaaaaa"]}\n'),
    ),
    Row(
        "sweep in newer Python than the one at hand",
        "if a newer one can, set PYTHON to it",
        as_sweep("if run_ids = {}:\n"),
    ),
    Row("run id of two lines in a sweep", "is not a run id", in_sweep("newline")),
    Row(
        "run id with escape codes in a sweep",
        "is not a run id",
        in_sweep("escape codes"),
    ),
    Row(
        "escape codes in W&B's activation",
        'wrong activation: "\\u001b]0;owned\\u0007\\u001b[2J',
        in_record("config", "sae", "activation", "key", name="escape codes"),
        0,
    ),
    Row(
        "text back to front in W&B's activation",
        '1 wrong activation: "?gnp.tset?"',
        in_record("config", "sae", "activation", "key", name="back to front"),
        0,
    ),
    Row(
        "HTML in W&B's L0",
        "1 no L0 in W&B",
        in_record("summary", "eval/l0", name="html"),
        0,
    ),
    Row(
        "shell command in W&B's layer",
        "layer null, not 6",
        in_record("config", "train_data", "layer", name="shell"),
        0,
    ),
    Row(
        "template in a header, as an activation",
        'activation "{{ 7 * 7 }}{% if 1 %}{{ cycler.__init__.',
        in_header("cfg", "activation", "cls", name="jinja"),
    ),
    Row(
        "template in a header, as a loss",
        'its sparsity is "{{ 7 * 7 }}{% if 1 %}',
        in_header("cfg", "activation", "params", "sparsity", name="jinja"),
    ),
    Row(
        "template in a header, where saev allows text",
        '"path": "layer_6/aaaaaaaa/sae.pt"',
        in_header("lib", name="jinja", steps=("stage", "render")),
        0,
    ),
    Row(
        "command of make's in the catalog, as a slug",
        "not a slug",
        in_catalog("slug", "$(shell touch {mark})"),
        2,
    ),
    Row(
        "rule of make's in the catalog, as a sweep",
        "not one line of text",
        in_catalog("sweep", "x\nSHELL := touch {mark}\n"),
        2,
    ),
    Row(
        "NMSE_SHARD with ../",
        "not a shard's name",
        in_setting("NMSE_SHARD", "../../escaped"),
    ),
    Row(
        "shell command in EXCLUDE",
        "not a candidate of any repo",
        in_setting("EXCLUDE", "`touch {mark}`", "known-ids"),
        2,
    ),
    Row(
        "path with ../ on a line by hand", '"path" is "../../../escaped", not', in_path
    ),
]
