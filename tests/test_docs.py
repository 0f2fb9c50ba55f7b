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
from kits.programs import ROOT, run_program
from loopback_hub import LoopbackHub
from saepub.release import record as release
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


class Lab:
    """A catalog of three repos, their records of release, and a checkout of saev."""

    def __init__(self, dpath: pathlib.Path):
        self.build, self.saev = dpath / "build", dpath / "saev"
        self.records = dpath / "records"
        self.page = self.saev / docs.PAGE
        self.page.parent.mkdir(parents=True)
        self.page.write_bytes(PAGE.encode())
        self.catalog = dpath / "catalog.json"
        entries = [
            {
                "slug": slug,
                "repo_id": f"lab/SAE_{slug}",
                "title": "SAE",
                "base_model": "facebook/dinov3",
                "sweep": "sweep.py",
                "variable": "run_ids",
                "objective": "matryoshka",
                "activation": "relu",
                "layers": list(layers),
                "d_model": 8,
                "d_sae": 32,
            }
            for slug, layers in REPOS.items()
        ]
        self.catalog.write_text(json.dumps({"collections": [], "repos": entries}))

    def stage(self, slug: str) -> tuple[pathlib.Path, list[dict]]:
        """What a repo holds, and its lines as verify sees them."""
        dpath, rows = self.build / slug / "stage", []
        for layer, run_ids in REPOS[slug].items():
            for i, run_id in enumerate(run_ids):
                path = f"layer_{layer}/{run_id}/sae.pt"
                fpath = util.write(dpath / path, seed=layer * 10 + i)
                row = {"path": path, "bytes": fpath.stat().st_size}
                row["sha256"] = hashlib.sha256(fpath.read_bytes()).hexdigest()
                row |= {"run_id": run_id, "layer": layer, "l0": 2.0**i, "nmse": 0.5**i}
                row |= {"repo": slug, "loader": "builtin", "commit": "c" * 40}
                rows.append(row)
        keys = ("run_id", "layer", "l0", "nmse", "path", "sha256")
        for name, text in {
            "README.md": f"---\nlicense: mit\n---\n# {slug}\n",
            "manifest.jsonl": "".join(
                json.dumps({key: row[key] for key in keys}) + "\n" for row in rows
            ),
        }.items():
            (dpath / name).write_text(text)
        documents = {
            f.name: {"bytes": f.stat().st_size, "sha256": "0" * 64}
            for f in (dpath / "README.md", dpath / "manifest.jsonl")
        }
        return dpath, [row | {"documents": documents} for row in rows]

    def release(self, monkeypatch, *slugs: str) -> None:
        monkeypatch.setenv("RECORDS", str(self.records))
        for slug in slugs:
            _, rows = self.stage(slug)
            record = release.from_lines(f"lab/SAE_{slug}", rows)
            verified = {"loaded": rows[0]["path"], "loader": "builtin", "extra": []}
            release.write(record, verified, 1.0, "https://hub")

    def docs(self, *argv: str, **settings):
        env = {"BUILD": self.build, "CATALOG": self.catalog, "SAEV_DIR": self.saev}
        env |= {"RECORDS": self.records}
        return run_program(ROOT / "bin/docs", *argv, **(env | settings))

    @property
    def text(self) -> str:
        return self.page.read_bytes().decode()


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture
def released(lab, monkeypatch):
    lab.release(monkeypatch, "vits-relu", "vitl-topk")
    return lab


# ---- where the section goes ------------------------------------------------------------------


def test_section_ends_the_part_under_its_heading_and_touches_nothing_else(released):
    done = released.docs()
    assert done.returncode == 0 and not done.out, done.err
    text = released.text
    before, after = text.index(docs.START), text.index(docs.END) + len(docs.END)
    assert text[:before] == BEFORE + "\n"
    assert text[after:] == "\n\n## Get the Code" + AFTER


def test_a_second_run_changes_no_byte(released):
    released.docs()
    once = released.text
    done = released.docs()
    assert released.text == once and "up to date" in done.err
    assert released.docs("--dry-run").out == ""


def test_a_later_release_rewrites_the_section_in_its_place(lab, monkeypatch):
    lab.release(monkeypatch, "vitl-topk")
    lab.docs()
    assert "SAE_vits-relu" not in lab.text
    outside = lab.text.partition(docs.START)[0], lab.text.partition(docs.END)[2]
    lab.release(monkeypatch, "vits-relu")
    lab.docs()
    assert "SAE_vits-relu" in lab.text and lab.text.count(docs.START) == 1
    assert (
        lab.text.partition(docs.START)[0],
        lab.text.partition(docs.END)[2],
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
    text = docs.with_section(page, f"{docs.START}\nbody\n{docs.END}")
    newline = "\r\n" if "\r\n" in page else "\n"
    section = f"{docs.START}{newline}body{newline}{docs.END}"
    around = (newline + section + newline, 2 * newline + section)
    assert page in [text.replace(inserted, "", 1) for inserted in around]
    assert docs.with_section(text, f"{docs.START}\nbody\n{docs.END}") == text
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
    text = docs.with_section(page, f"{docs.START}\nbody\n{docs.END}")
    by_hand = BY_HAND.replace("\n", newline)
    section = f"{docs.START}\nbody\n{docs.END}\n".replace("\n", newline)
    assert text == page.replace(by_hand, section, 1)
    assert docs.with_section(text, f"{docs.START}\nbody\n{docs.END}") == text


def test_what_is_replaced_is_told_and_shown_before(released):
    released.page.write_text(
        PAGE.replace("It is large.\n", f"It is large.\n\n{BY_HAND}")
    )
    old = released.text
    done = released.docs(DRY_RUN="1")
    assert "inference.md:19: takes the place of what was written by hand" in done.err
    assert "\n-path = hf_hub_download(" in done.out and released.text == old
    released.docs()
    assert "layer_23/dead" not in released.text and docs.START in released.text
    assert "by hand" not in released.docs().err


def test_a_page_without_the_heading_is_refused_and_left(released):
    released.page.write_text("# Inference\n\n```\n## Download a Checkpoint\n```\n")
    old = released.text
    done = released.docs()
    assert done.returncode == 1 and released.text == old
    assert 'no heading "## Download a Checkpoint"; add one' in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("left", (docs.START, docs.END, docs.END + docs.START))
def test_half_a_section_is_refused_and_left(released, left):
    released.page.write_text(PAGE.replace("It is large.", left))
    old = released.text
    done = released.docs()
    assert done.returncode == 1 and released.text == old
    assert "delete what is left of it" in done.err


# ---- dry run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ({"argv": ["--dry-run"]}, {"DRY_RUN": "1"}))
@pytest.mark.parametrize(
    "page",
    (PAGE, PAGE.replace("\n", "\r\n"), BEFORE.rstrip("\n")),
    ids=("lf", "crlf", "eof"),
)
def test_dry_run_prints_a_diff_that_git_applies_and_writes_nothing(released, how, page):
    released.page.write_bytes(page.encode())
    settings = dict(how)
    done = released.docs(*settings.pop("argv", ()), **settings)
    assert done.returncode == 0 and released.text == page
    patch = done.stdout
    git = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(git, cwd=released.saev, input=patch, check=True)
    applied = released.text
    released.page.write_bytes(page.encode())
    released.docs(DRY_RUN="0")
    assert released.text == applied != page


def test_a_page_behind_a_symlink_stays_behind_it(released):
    real = released.page.with_name("real.md")
    released.page.rename(real)
    released.page.symlink_to(real)
    released.docs()
    assert released.page.is_symlink() and docs.START in real.read_text()


# ---- what the section says -------------------------------------------------------------------


def test_only_released_repos_are_listed_with_their_layers(released):
    released.docs()
    listed = re.findall(
        r"^\| \[`(.*?)`\]\((.*?)\) \| (.*?) \| (\d+) \|$", released.text, re.M
    )
    assert listed == [
        ("lab/SAE_vits-relu", "https://huggingface.co/lab/SAE_vits-relu", "6, 11", "5"),
        ("lab/SAE_vitl-topk", "https://huggingface.co/lab/SAE_vitl-topk", "13", "1"),
    ]
    assert "never-released" not in released.text


def test_slugs_choose_among_the_released(released):
    done = released.docs("vitl-topk")
    assert done.returncode == 0 and "SAE_vits-relu" not in released.text
    done = released.docs("vitl-topc")
    assert done.returncode == 2 and "did you mean vitl-topk?" in done.err


def test_the_example_is_in_the_middle_of_the_last_layers_l0_range():
    record = Record()
    record.l0s = dict(zip(record.files, (30.04, 10.0, 20.0, 9.0), strict=True))
    repo = docs._repo(record)
    assert repo.paths[11] == [f"layer_11/{i}/sae.pt" for i in "bca"]
    text = docs.section([repo])
    assert 'run["layer"] == 11]' in text and 'abs(run["l0"] - 20.0)' in text


def test_the_section_links_within_saevs_own_docs(released):
    released.docs()
    assert "[Get Activations](#get-activations)" in released.text
    assert "[Evaluation](guide.md#evaluation)" in released.text


class Record:
    slug, repo_id = "a", "lab/a"

    def __init__(self):
        paths = [f"layer_11/{i}/sae.pt" for i in "abc"] + ["layer_9/d/sae.pt"]
        self.files = dict.fromkeys(paths)


def test_without_any_release_it_says_what_to_do(lab):
    done = lab.docs()
    assert done.returncode == 1 and lab.text == PAGE
    assert re.search(
        r"release\.json: no record .*; run make release first\n$", done.err
    )
    assert len(done.err.splitlines()) == 1


def test_a_record_that_names_no_repo_of_the_hub_is_refused(released):
    fpath = released.records / "vits-relu" / "release.json"
    record = json.loads(fpath.read_text())
    for repo_id in ("a/b`](javascript:x)", 7):
        fpath.write_text(json.dumps(record | {"repo_id": repo_id}))
        done = released.docs()
        assert done.returncode == 1 and '"repo_id" is ' in done.err
    assert released.text == PAGE


def test_without_a_checkout_it_says_what_to_set(released, tmp_path):
    done = released.docs(SAEV_DIR=tmp_path / "elsewhere")
    assert done.returncode == 1 and "set SAEV_DIR to a checkout of saev" in done.err
    assert not (tmp_path / "elsewhere").exists()


def test_every_snippet_runs_by_itself_on_what_was_released(released, tmp_path):
    """By a reader, with the real client, over the loopback Hub."""
    released.docs()
    dpath, rows = released.stage("vits-relu")
    tokens = {TOKEN: {"name": "lab", "role": "write"}}
    with LoopbackHub(tmp_path / "hub", tokens=tokens) as hub:
        client = Client(tmp_path / "client", "lfs").use(hub, TOKEN)
        client.create_repo(repo_id="lab/SAE_vits-relu")
        client.upload_folder(repo_id="lab/SAE_vits-relu", folder_path=str(dpath))
        client.close()
        section = released.text.split(docs.START)[1].split(docs.END)[0]
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
