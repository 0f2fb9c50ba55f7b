"""docs writes one section of one page of saev's documentation, and no other byte."""

import hashlib
import json
import pathlib
import re
import subprocess

import pytest

from kits import checkpoints as util
from kits import reader
from kits.hub import Client
from kits.lab import Lab
from kits.programs import Done, text_of
from loopback_hub import LoopbackHub
from saepub import places
from saepub.release import docs_page
from saepub.release import record as record_of
from saepub.stages import docs

PAGE = """\
# Inference

1. Download a checkpoint.
2. Load it.

## Download a Checkpoint

Take one from the collection:

```sh
## Download a Checkpoint
wget https://huggingface.co/lab/old/resolve/main/sae.pt
```

#### A note

It is large.

## Get the Code

Clone it.
"""
BEFORE, AFTER = PAGE.split("\n## Get the Code")

BY_HAND = """\
### Multi-checkpoint repos

Several checkpoints by layer:

```python
### Multi-checkpoint repos
path = hf_hub_download("lab/old", "layer_23/dead/sae.pt")
```

#### Available

- [lab/old](https://huggingface.co/lab/old)
"""
TOKEN = "hf_test"

REPOS = {
    "vits-relu": {6: ["aaaa", "bbbb"], 11: ["dddd", "cccc", "eeee"]},
    "vitl-topk": {13: ["ffff"]},
    "never-released": {1: ["gggg"]},
}


@pytest.fixture
def lab(tmp_path):
    """A catalog of three repos, and a checkout of saev."""
    lab = Lab(tmp_path)
    repos = [util.entry(slug, layers=list(of)) for slug, of in REPOS.items()]
    lab.catalog = {"repos": repos}
    lab.write()
    page_fpath(lab).parent.mkdir(parents=True)
    page_fpath(lab).write_bytes(PAGE.encode())
    return lab


@pytest.fixture
def released(lab):
    release(lab, "vits-relu", "vitl-topk")
    return lab


def page_fpath(lab: Lab) -> pathlib.Path:
    return lab.saev_dir / places.DOCS_PAGE


def page_text(lab: Lab) -> str:
    return page_fpath(lab).read_bytes().decode()


def run(lab: Lab, *argv: str, code: int = 0, **env: object) -> Done:
    writes = (page_fpath(lab).resolve().parent,)
    return lab.call("docs", argv=argv, code=code, writes=writes, **env)


def stage(lab: Lab, slug: str) -> tuple[pathlib.Path, list[dict]]:
    """What a repo holds, and its lines as verify sees them."""
    dpath, rows = lab.build / slug / "stage", []
    for layer, run_ids in REPOS[slug].items():
        for i, run_id in enumerate(run_ids):
            path = f"layer_{layer}/{run_id}/sae.pt"
            row = util.facts(util.write(dpath / path, seed=layer * 10 + i))
            row |= {"run_id": run_id, "layer": layer, "l0": 2.0**i, "nmse": 0.5**i}
            row |= {"path": path, "repo": slug, "loader": "builtin", "commit": "c" * 40}
            rows.append(row)
    keys = ("run_id", "layer", "l0", "nmse", "path", "sha256")
    manifest = text_of([{key: row[key] for key in keys} for row in rows])
    (dpath / "manifest.jsonl").write_text(manifest)
    (dpath / "README.md").write_text(f"---\nlicense: mit\n---\n# {slug}\n")
    documents = {
        f.name: {"bytes": f.stat().st_size, "sha256": "0" * 64}
        for f in (dpath / "README.md", dpath / "manifest.jsonl")
    }
    return dpath, [row | {"documents": documents} for row in rows]


def release(lab: Lab, *slugs: str) -> None:
    for slug in slugs:
        _, rows = stage(lab, slug)
        record = record_of.from_lines(f"lab/{slug}", rows)
        verified = {"loaded": rows[0]["path"], "loader": "builtin", "extra": []}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECORDS", str(lab.records_dpath))
            record_of.write(record, verified, 1.0, "https://hub")


# ---- where the section goes ------------------------------------------------------------------


def test_section_ends_the_part_under_its_heading_and_touches_nothing_else(released):
    done = run(released)
    assert not done.out
    text = page_text(released)
    before, after = (
        text.index(docs_page.START),
        text.index(docs_page.END) + len(docs_page.END),
    )
    assert text[:before] == BEFORE + "\n"
    assert text[after:] == "\n\n## Get the Code" + AFTER


def test_a_second_run_changes_no_byte(released):
    run(released)
    once = page_text(released)
    done = run(released)
    assert page_text(released) == once and "up to date" in done.err
    assert run(released, "--dry-run").out == ""


def test_a_later_release_rewrites_the_section_in_its_place(lab):
    release(lab, "vitl-topk")
    run(lab)
    assert "vits-relu" not in page_text(lab)
    outside = (
        page_text(lab).partition(docs_page.START)[0],
        page_text(lab).partition(docs_page.END)[2],
    )
    release(lab, "vits-relu")
    run(lab)
    assert "vits-relu" in page_text(lab) and page_text(lab).count(docs_page.START) == 1
    assert (
        page_text(lab).partition(docs_page.START)[0],
        page_text(lab).partition(docs_page.END)[2],
    ) == outside


@pytest.mark.parametrize(
    "page",
    (
        PAGE.replace("\n", "\r\n"),
        PAGE.split("\n## Get the Code")[0],
        PAGE.split("\n\n## Get the Code")[0],
        PAGE.replace("large.\n\n##", "large.\n##"),
        PAGE.replace("large.\n\n", "large.  \n\n\n\n"),
        PAGE.replace("## Get the Code", "# Get the Code"),
        PAGE.replace("## Download a", "## Download a ").replace(
            "int\n\n", "int ##\n\n"
        ),
        PAGE.replace("```", "~~~~").replace("wget", "```\n# wget"),
        PAGE.replace("It is", "This `## Get` is\n    ## indented\n```a`b```\nIt is"),
        "## Download a Checkpoint",
        "\ufeff" + PAGE + "\tü\u2028\x0c",
    ),
)
def test_every_other_byte_of_any_page_stays(page):
    text = docs_page.with_section(page, f"{docs_page.START}\nbody\n{docs_page.END}")
    newline = "\r\n" if "\r\n" in page else "\n"
    section = f"{docs_page.START}{newline}body{newline}{docs_page.END}"
    around = (newline + section + newline, 2 * newline + section)
    assert page in [text.replace(inserted, "", 1) for inserted in around]
    assert (
        docs_page.with_section(text, f"{docs_page.START}\nbody\n{docs_page.END}")
        == text
    )
    before, _, after = text.partition(section)
    assert "large." not in after and "Get the Code" not in before.replace("`", "")
    assert after == "" or after.startswith(newline)


@pytest.mark.parametrize("newline", ("\n", "\r\n"))
@pytest.mark.parametrize("where", ("It is large.\n\n", "collection:\n\n"))
def test_what_was_written_by_hand_gives_its_place_once(where, newline):
    last = "### Others\n\nElsewhere.\n\n" if where.startswith("coll") else ""
    before, after = PAGE.split(where)
    page = (before + where + BY_HAND + "\n" + last + after).replace("\n", newline)
    page += f"# Elsewhere{newline}{BY_HAND}"  # of another part
    text = docs_page.with_section(page, f"{docs_page.START}\nbody\n{docs_page.END}")
    by_hand = BY_HAND.replace("\n", newline)
    section = f"{docs_page.START}\nbody\n{docs_page.END}\n".replace("\n", newline)
    assert text == page.replace(by_hand, section, 1)
    assert (
        docs_page.with_section(text, f"{docs_page.START}\nbody\n{docs_page.END}")
        == text
    )


def test_what_is_replaced_is_told_and_shown_before(released):
    page_fpath(released).write_text(
        PAGE.replace("It is large.\n", f"It is large.\n\n{BY_HAND}")
    )
    old = page_text(released)
    done = run(released, DRY_RUN="1")
    assert "inference.md:19: takes the place of what was written by hand" in done.err
    assert "\n-path = hf_hub_download(" in done.out and page_text(released) == old
    run(released)
    assert "layer_23/dead" not in page_text(released) and docs_page.START in page_text(
        released
    )
    assert "by hand" not in run(released).err


def test_a_page_without_the_heading_is_refused_and_left(released):
    page_fpath(released).write_text(
        "# Inference\n\n```\n## Download a Checkpoint\n```\n"
    )
    old = page_text(released)
    done = run(released, code=1)
    assert page_text(released) == old
    assert 'no heading "## Download a Checkpoint"; add one' in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "left", (docs_page.START, docs_page.END, docs_page.END + docs_page.START)
)
def test_half_a_section_is_refused_and_left(released, left):
    page_fpath(released).write_text(PAGE.replace("It is large.", left))
    old = page_text(released)
    done = run(released, code=1)
    assert page_text(released) == old
    assert "delete the rest of it" in done.err


# ---- dry run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ({"argv": ["--dry-run"]}, {"DRY_RUN": "1"}))
@pytest.mark.parametrize(
    "page",
    (PAGE, PAGE.replace("\n", "\r\n"), BEFORE.rstrip("\n")),
    ids=("lf", "crlf", "eof"),
)
def test_dry_run_prints_a_diff_that_git_applies_and_writes_nothing(released, how, page):
    page_fpath(released).write_bytes(page.encode())
    settings = dict(how)
    done = run(released, *settings.pop("argv", ()), **settings)
    assert page_text(released) == page
    patch = done.out
    git = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(git, cwd=released.saev_dir, input=patch.encode(), check=True)
    applied = page_text(released)
    page_fpath(released).write_bytes(page.encode())
    run(released, DRY_RUN="0")
    assert page_text(released) == applied != page


def test_a_page_behind_a_symlink_stays_behind_it(released):
    real = page_fpath(released).with_name("real.md")
    page_fpath(released).rename(real)
    page_fpath(released).symlink_to(real)
    run(released)
    assert page_fpath(released).is_symlink() and docs_page.START in real.read_text()


# ---- what the section says -------------------------------------------------------------------


def test_only_released_repos_are_listed_with_their_layers(released):
    run(released)
    listed = re.findall(
        r"^\| \[`(.*?)`\]\((.*?)\) \| (.*?) \| (\d+) \|$", page_text(released), re.M
    )
    assert listed == [
        ("lab/vits-relu", "https://huggingface.co/lab/vits-relu", "6, 11", "5"),
        ("lab/vitl-topk", "https://huggingface.co/lab/vitl-topk", "13", "1"),
    ]
    assert "never-released" not in page_text(released)


def test_slugs_choose_among_the_released(released):
    done = run(released, "vitl-topk")
    assert "vits-relu" not in page_text(released)
    assert "the section leaves out lab/vits-relu, released earlier" in done.err
    done = run(released, "vitl-topc", code=2)
    assert "did you mean vitl-topk?" in done.err


def test_the_example_is_in_the_middle_of_the_last_layers_l0_range():
    record = Record()
    record.l0s = dict(zip(record.files, (30.04, 10.0, 20.0, 9.0), strict=True))
    repo = docs._repo(record)
    assert repo.paths[11] == [f"layer_11/{i}/sae.pt" for i in "bca"]
    text = docs.section([repo])
    assert 'run["layer"] == 11]' in text and 'abs(run["l0"] - 20.0)' in text


def test_the_section_links_within_saevs_own_docs(released):
    run(released)
    assert "[Get Activations](#get-activations)" in page_text(released)
    assert "[Evaluation](guide.md#evaluation)" in page_text(released)


class Record:
    slug, repo_id = "a", "lab/a"

    def __init__(self):
        paths = [f"layer_11/{i}/sae.pt" for i in "abc"] + ["layer_9/d/sae.pt"]
        self.files = dict.fromkeys(paths)


def test_without_any_release_it_says_what_to_do(lab):
    done = run(lab, code=1)
    assert page_text(lab) == PAGE
    assert re.search(
        r"release\.json: no record .*; run make release first\n$", done.err
    )
    assert len(done.err.splitlines()) == 1


def test_a_record_that_names_no_repo_of_the_hub_is_refused(released):
    fpath = released.records_dpath / "vits-relu" / "release.json"
    record = json.loads(fpath.read_text())
    for repo_id in ("a/b`](javascript:x)", 7):
        fpath.write_text(json.dumps(record | {"repo_id": repo_id}))
        done = run(released, code=1)
        assert '"repo_id" is ' in done.err
    assert page_text(released) == PAGE


def test_without_a_checkout_it_says_what_to_set(released, tmp_path):
    done = run(released, SAEV_DIR=tmp_path / "elsewhere", code=1)
    assert "set SAEV_DIR to a checkout of saev" in done.err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.programs
def test_every_snippet_runs_by_itself_on_what_was_released(released, tmp_path):
    """Run by a reader, with the real client, over the loopback Hub."""
    run(released)
    dpath, rows = stage(released, "vits-relu")
    tokens = {TOKEN: {"name": "lab", "role": "write"}}
    with LoopbackHub(tmp_path / "hub", tokens=tokens) as hub:
        client = Client(tmp_path / "client", "lfs").use(hub, TOKEN)
        client.create_repo(repo_id="lab/vits-relu")
        client.upload_folder(repo_id="lab/vits-relu", folder_path=str(dpath))
        client.close()
        section = page_text(released).split(docs_page.START)[1].split(docs_page.END)[0]
        runs = [(code, "right") for code in reader.blocks(section, "py")]
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": tmp_path / "home"}
        choose, layer = reader.run(tmp_path, runs, HF_HUB_DISABLE_XET=1, **env)
    told = [line.split()[0] for line in choose["told"].splitlines() if "." in line]
    assert told[:3] == ["dddd", "cccc", "eeee"]
    by_id = {row["run_id"]: row for row in rows}
    assert choose["values"]["run"]["sha256"] == by_id["cccc"]["sha256"]
    found = [pathlib.Path(fpath) for fpath in layer["values"]["fpaths"]]
    assert [f"{f.parts[-3]}/{f.parts[-2]}" for f in found] == [
        f"layer_11/{run_id}" for run_id in ("dddd", "cccc", "eeee")
    ]
    for fpath in found:
        sha256 = hashlib.sha256(fpath.read_bytes()).hexdigest()
        assert sha256 == by_id[fpath.parts[-2]]["sha256"]
