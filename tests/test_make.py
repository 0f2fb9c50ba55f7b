"""The real make on a fresh copy of the tree, over the demo."""

import json
import os
import re
import shutil

import pytest

from kits.programs import rows_of, text_of
from kits.tree import JOINTS, SLUGS, Tree, fresh

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory, demo):
    """A tree in which `make dry-run` has run once. Not to be changed."""
    return fresh(tmp_path_factory.mktemp("made"), demo, "dry-run")


@pytest.fixture
def tree(made, tmp_path):
    """A tree of the test's own in which `make dry-run` has run once."""
    dpath = tmp_path / "tree"
    shutil.copytree(made.dpath, dpath, symlinks=True)
    return Tree(dpath)


def all_of(slug: str, first: str) -> set[str]:
    names = [*JOINTS[JOINTS.index(first) :], "summary"]
    return {f"{slug}/{name}" for name in names}


def test_help_is_the_default_and_lists_each_target_in_a_line(made):
    done = made.make()
    assert done.out == made.make("help").out
    for target in ("dry-run", "release", "rehearse", "plan", "verify", "test"):
        assert re.search(rf"^{target} +\w", done.out, re.MULTILINE)


def test_dry_run_tells_what_each_repo_would_publish(made):
    for slug in SLUGS:
        section = made.out.split(f"({slug})\n")[1].split("\n\ndemo-lab/")[0]
        rows = made.read(f"{slug}/rendered.jsonl")
        assert f"{len(rows) + 5} files" in section
        table = re.findall(
            r"^  (\S+) +(\d+) +(?:\d+ +)?([\d.]+) +(\S+)  (layer_\S+)$", section, re.M
        )
        assert [row[0] for row in table] == [row["run_id"] for row in rows]
        assert table == sorted(table, key=lambda t: (int(t[1]), float(t[2])))
        for name in ("stage", "stage/README.md", "stage/pareto.png"):
            assert f"{made.dpath}/build/{slug}/{name}" in section.replace(
                "  build", f"  {made.dpath}/build"
            )
    assert "This is the demo" in made.out


def test_every_candidate_is_accounted_for(made):
    for slug in SLUGS:
        section = made.out.split(f"({slug})\n")[1]
        counts = re.search(
            r"(\d+) candidates = (\d+) chosen \+ (\d+) off the frontier"
            r" \+ (\d+) on it but not needed \+ (\d+) dropped",
            section,
        )
        n, *parts = map(int, counts.groups())
        assert n == sum(parts) == len(made.read(f"{slug}/candidates.jsonl"))
        for run in made.read(f"{slug}/account.jsonl"):
            assert run["run_id"] in section


def test_the_demos_misfits_show_their_reasons(made):
    for reason in ("not Matryoshka", "a dead SAE", "no NMSE", "not in W&B"):
        assert f"dropped, {reason}" in made.out or reason in made.out


def test_nothing_was_sent_and_no_token_asked(made):
    assert not (made.dpath / "build/hub").exists()
    assert not list((made.dpath / "records").glob("*/release.json"))


def test_a_second_run_redoes_nothing(tree):
    assert tree.redone("dry-run") == set()


def test_touching_a_sweep_redoes_its_repo_alone(tree):
    catalog = json.loads((tree.dpath / "build/demo/catalog.json").read_text())
    sweep = next(r["sweep"] for r in catalog["repos"] if r["slug"] == "vitl-topk")
    os.utime(tree.dpath / "build/demo/saev" / sweep)
    assert tree.redone("dry-run") == all_of("vitl-topk", "candidates")


def test_a_change_in_the_catalog_redoes_that_repo_alone(tree):
    fpath = tree.dpath / "build/demo/catalog.json"
    catalog = json.loads(fpath.read_text())
    catalog["repos"][0]["title"] = "Another title"
    fpath.write_text(json.dumps(catalog))
    slug = catalog["repos"][0]["slug"]
    # W&B isn't asked again just because words on the card changed.
    assert tree.redone("dry-run") == all_of(slug, "rendered")
    catalog["repos"][0]["d_sae"] += 1
    fpath.write_text(json.dumps(catalog))
    tree.make("dry-run", code=2)
    assert tree.read(f"{slug}/candidates.jsonl")[0]["expected"]["d_sae"] % 2
    catalog["repos"][0]["d_sae"] -= 1
    fpath.write_text(json.dumps(catalog))
    tree.make("dry-run")
    card = (tree.dpath / f"build/{slug}/stage/README.md").read_text()
    assert "# Another title" in card


def test_a_setting_redoes_what_depends_on_it(tree):
    redone = tree.redone("dry-run", "N=3")
    assert redone == set().union(*(all_of(slug, "selected") for slug in SLUGS))
    for slug in SLUGS:
        layers = [row["layer"] for row in tree.read(f"{slug}/selected.jsonl")]
        assert max(map(layers.count, layers)) == 3
    assert tree.redone("dry-run", "N=3") == set()


def test_exclude_and_pin_change_the_choice(tree):
    account = tree.read("vitl-topk/account.jsonl")
    chosen = next(r["run_id"] for r in account if r["fate"] == "chosen")
    off = next(r["run_id"] for r in account if r["fate"] == "off the frontier")
    done = tree.make("dry-run", "REPO=vitl-topk", f"EXCLUDE={chosen}", f"PIN={off}")
    ids = [row["run_id"] for row in tree.read("vitl-topk/rendered.jsonl")]
    assert chosen not in ids and off in ids
    assert "dropped, excluded by hand" in done.out and "pinned" in done.out
    assert not (tree.dpath / f"build/vitl-topk/stage/layer_13/{chosen}").exists()


@pytest.mark.parametrize("setting", ["PIN=nosuchid", "EXCLUDE=nosuchid"])
def test_an_unknown_id_in_pin_or_exclude_stops_it(tree, setting):
    done = tree.make("dry-run", setting, code=None)
    assert done.code != 0
    assert (
        f"{setting.replace(chr(61), chr(32))}: not a candidate of any repo" in done.err
    )


def test_four_jobs_give_the_same_stages(made, tmp_path, demo):
    other = fresh(tmp_path / "j4", demo)
    other.make("-j4", "dry-run")
    for slug in SLUGS:
        a, b = (t.dpath / f"build/{slug}/stage" for t in (made, other))
        files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
        assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_a_stage_removed_by_hand_is_made_again(tree):
    shutil.rmtree(tree.dpath / "build/vits-relu/stage")
    tree.make("dry-run", "REPO=vits-relu")
    assert (tree.dpath / "build/vits-relu/stage/README.md").exists()


@pytest.mark.parametrize(
    ("program", "signal"),
    [
        ("extract-ids", "KILL"),
        ("select", "TERM"),
        ("preflight", "INT"),
        ("render", "KILL"),
    ],
)
def test_a_killed_stage_leaves_nothing_that_is_trusted(tree, program, signal):
    fpath = tree.dpath / "bin" / program
    real = fpath.read_bytes()
    # Prints half a line, then kills make, the shell and itself.
    fpath.write_text(
        f'#!/bin/sh\nprintf \'{{"repo": "vits-\'\nmake=$(ps -o ppid= -p $PPID)\n'
        f"kill -{signal} $make $PPID $$\nsleep 5\n"
    )
    fpath.chmod(0o755)
    done = tree.make("dry-run", "REPO=vits-relu", "N=4", "SAEV_DIR=build/demo/saev/.",
                     "RUNS_ROOT=build/demo/runs/.", "CATALOG=build/demo/catalog.json",
                     "METRICS_SNAPSHOT=build/demo/snapshot.jsonl", code=None)  # fmt: skip
    assert done.code != 0
    fpath.write_bytes(real)
    tree.make("dry-run", "REPO=vits-relu", "N=4")
    for name in JOINTS:
        assert tree.read(f"vits-relu/{name}.jsonl"), name


def test_a_wrong_repo_is_one_line(made):
    done = made.make("dry-run", "REPO=vitl-tpk", code=2)
    assert 'has no repo "vitl-tpk"; did you mean vitl-topk?' in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY"])
def test_a_secret_on_the_command_line_is_refused(made, name):
    done = made.make("dry-run", f"{name}=hf_canary", code=2)
    assert "export it instead" in done.err and "hf_canary" not in done.err


def test_a_layer_without_numbers_fails_with_what_measures_them(tree):
    fpath = tree.dpath / "build/demo/snapshot.jsonl"
    rows = rows_of(fpath.read_text())
    of_repo = {row["run_id"] for row in tree.read("vits-relu/candidates.jsonl")}
    for row in rows:
        if row["name"] in of_repo:
            row["summary"].pop("eval/normalized_mse", None)
    fpath.write_text(text_of(rows))
    done = tree.make("dry-run", "REPO=vits-relu vitl-topk", code=2)
    told = r"vits-relu layers 6, 8, 11: no numbers for \d+ runs; .*make measure REPO=vits-relu"
    assert re.search(told, done.err)
    *_, last, _ = done.err.splitlines()
    assert last == (
        "report: vits-relu: can't be released yet; build/report.html shows the others, and"
        " what to do"
    )
    page = (tree.dpath / "build/report.html").read_text()
    assert re.search(f"Not shown: {told}", page)
    assert 'id="repo-vitl-topk"' in page and 'id="repo-vits-relu"' not in page


def test_settings_in_dotenv_reach_make_and_stages_and_the_environment_wins(tree):
    (tree.dpath / ".env").write_text("# mine\nexport N=3\n")
    tree.make("dry-run", "REPO=vits-relu")
    layers = [row["layer"] for row in tree.read("vits-relu/selected.jsonl")]
    assert max(map(layers.count, layers)) == 3
    tree.make("dry-run", "REPO=vits-relu", N=2)
    layers = [row["layer"] for row in tree.read("vits-relu/selected.jsonl")]
    assert max(map(layers.count, layers)) == 2


def test_a_hub_token_in_dotenv_is_refused_by_line(tree):
    (tree.dpath / ".env").write_text("N=3\nHF_TOKEN=hf_canary\n")
    done = tree.make("dry-run", code=2)
    assert ".env:2: HF_TOKEN is read from the environment only" in done.err
    assert "hf_canary" not in done.out + done.err


def test_a_wandb_key_in_dotenv_is_not_written_under_build(tree):
    (tree.dpath / ".env").write_text("WANDB_API_KEY=canary0123\n")
    tree.make("dry-run")
    assert tree.run("grep", "-rl", "canary0123", "build").code == 1
