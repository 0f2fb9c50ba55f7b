"""A reader who follows the card to the letter gets what was published, and can tell.

The card's code runs as it stands, over a loopback Hub; with what: see kits/reader.py.
"""

import json
import pathlib
import re

import numpy as np
import pytest

from kits import checkpoints as util
from kits import reader
from kits.hub import Client
from kits.programs import ROOT, commit_all, git, run_program, text_of
from loopback_hub import LoopbackHub
from saepub.choice import account
from saepub.release import staged

pytestmark = pytest.mark.programs

TOKEN = "hf_test"
D_MODEL, D_SAE = 384, 512
KINDS = {"relu": "relu", "topk": "top-k", "batchtopk": "batch-top-k"}
"""Activations by slug."""


class Published:
    """Three repos of this lab's model, one for each activation, on a Hub, and its reader."""

    def __init__(self, dpath: pathlib.Path, hub: LoopbackHub):
        self.dpath, self.hub = dpath, hub
        self.env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": dpath / "home"}
        self.env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.stage = {slug: dpath / "build" / slug / "stage" for slug in KINDS}
        catalog = json.loads((ROOT / "catalog.json").read_text())
        entry = catalog["repos"][0]
        assert entry["d_model"] == D_MODEL
        catalog["repos"] = [self.entry(entry, slug) for slug in KINDS]
        (dpath / "catalog.json").write_text(json.dumps(catalog))
        settings = {
            "CATALOG": dpath / "catalog.json",
            "BUILD": dpath / "build",
            "RUNS_ROOT": dpath / "runs",
            "SAEV_DIR": clone(util.write_saev(dpath / "saev")),
        }
        text = text_of(self.lines())
        for name in ("preflight", "stage", "render"):
            done = run_program(ROOT / "bin" / name, stdin=text, **settings)
            assert done.code == 0, done.err
            text = done.out
        self.rows = done.rows
        client = Client(dpath / "client", "lfs").use(hub, TOKEN)
        for slug, stage in self.stage.items():
            client.create_repo(repo_id=f"lab/{slug}")
            client.upload_folder(repo_id=f"lab/{slug}", folder_path=str(stage))
        if weights := reader.weights(dpath / "weights"):
            repo_id = f"timm/{reader.WEIGHTS}"
            client.create_repo(repo_id=repo_id)
            client.upload_folder(repo_id=repo_id, folder_path=str(weights))
        client.close()

    def entry(self, entry: dict, slug: str) -> dict:
        return entry | {
            "slug": slug,
            "repo_id": f"lab/{slug}",
            "activation": slug,
            "d_sae": D_SAE,
            "layers": [9, 11],
        }

    def lines(self) -> list[dict]:
        lines = []
        for slug, key in KINDS.items():
            for i, layer in enumerate((9, 11, 11, 11)):
                run_id = f"{slug}{i}"
                util.write(
                    util.run_dir(self.dpath / "runs", run_id),
                    d_model=D_MODEL,
                    d_sae=D_SAE,
                    activation=key,
                    seed=len(lines),
                )
                line = util.line(run_id, key, d_model=D_MODEL, d_sae=D_SAE, layer=layer)
                expected = {"objective": "matryoshka", "activation": [key]}
                expected |= {"d_model": D_MODEL, "d_sae": D_SAE}
                line |= {"repo": slug, "train_layer": layer, "expected": expected}
                lines.append(line | {"l0": 4.0 + i, "nmse": 0.5 / (1 + i)})
        return lines

    def card(self, slug: str) -> str:
        return (self.stage[slug] / "README.md").read_text()


def clone(saev_dir: pathlib.Path) -> pathlib.Path:
    """Make it a clone at a commit that its origin has."""
    origin = "https://user:secret@code.example/lab/saev.git"
    commit_all(saev_dir)
    git(saev_dir, "remote", "add", "origin", origin)
    git(saev_dir, "update-ref", "refs/remotes/origin/main", "HEAD")
    return saev_dir


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    dpath = tmp_path_factory.mktemp("published")
    tokens = {TOKEN: {"name": "lab", "orgs": ["timm"], "role": "write"}}
    with LoopbackHub(dpath / "hub", tokens=tokens) as hub:
        yield Published(dpath, hub)


@pytest.fixture(scope="module")
def ran(published):
    """What the blocks of code on each repo's card print, the check with every loader."""
    runs, keys = [], []
    for slug in KINDS:
        use, download, check = reader.blocks(published.card(slug), "python")
        keys += [(slug, "use"), (slug, "download")]
        runs += [(use, "right"), (download, "right")]
        for loader in ("right", "encoder", "decoder", "training"):
            keys.append((slug, loader))
            runs.append((check, loader))
    done = reader.run(published.dpath / "reader", runs, **published.env)
    return dict(zip(keys, done, strict=True))


@pytest.mark.parametrize("slug", KINDS)
def test_a_reader_gets_from_an_image_to_its_features(ran, slug):
    found = ran[slug, "use"]
    assert found["shapes"]["acts"] == [256, D_MODEL]
    assert found["shapes"]["f_x"] == [256, D_SAE]
    assert found["shapes"]["features"] == found["shapes"]["values"] == [256, 5]


@pytest.mark.skipif(not reader.PYTHON, reason="needs READER, with saev and timm")
def test_a_reader_computes_the_activations_that_saev_records(published):
    use, _, _ = reader.blocks(published.card("relu"), "python")
    record = reader.RECORD.format(fpath=published.dpath / reader.META_WEIGHTS, layer=11)
    (found,) = reader.run(
        published.dpath / "reader", [(use + record, "right")], **published.env
    )
    assert float(found["told"].splitlines()[-1]) < 1e-5


@pytest.mark.parametrize("slug", KINDS)
def test_a_reader_downloads_a_layer_and_the_run_nearest_to_an_l0(ran, published, slug):
    found = ran[slug, "download"]["names"]
    assert found["revision"] == published.hub.commits(f"lab/{slug}")[0]["id"]
    layer_dpath = pathlib.Path(found["layer_dpath"])
    files = {p.relative_to(layer_dpath) for p in layer_dpath.rglob("*") if p.is_file()}
    listed = {pathlib.Path(r["path"]) for r in published.rows if r["repo"] == slug}
    assert {p for p in listed if p.parts[0] == "layer_11"} <= files
    assert not any(p.parts[0] == "layer_9" for p in files)
    assert found["path"].endswith(f"layer_11/{slug}2/sae.pt")


@pytest.mark.parametrize("slug", KINDS)
def test_a_reader_sees_whether_the_loader_is_right(ran, slug):
    def says(loader: str) -> str:
        return ran[slug, loader]["told"].splitlines()[-1]

    assert says("right") == "right"
    assert re.fullmatch(
        r"WRONG: features off by \S+%, recon.* by \S+%", says("encoder")
    )
    assert says("decoder").startswith("WRONG: ")
    wrong = "right" if slug != "batchtopk" else "WRONG: "
    assert says("training").startswith(wrong)


@pytest.mark.skipif(not reader.PYTHON, reason="needs READER, with what saev brings")
def test_a_reader_makes_one_table_of_all_manifests(published):
    fpaths = [str(stage / "manifest.jsonl") for stage in published.stage.values()]
    code = f"fpaths = {fpaths}\n{reader.COMBINE}"
    (found,) = reader.run(
        published.dpath / "reader", [(code, "right")], **published.env
    )
    assert 'how="vertical_relaxed"' in published.card("relu")
    assert "concatenate_datasets" in published.card("relu")
    rows = [
        json.loads(t) for f in fpaths for t in pathlib.Path(f).read_text().splitlines()
    ]
    want = f"{[row['top_k'] for row in rows]} {[row['activation'] for row in rows]}"
    assert found["told"].replace(".0", "").splitlines()[-3:] == [want] * 3


def test_a_reader_of_the_command_line_gets_the_files_and_checks_their_bytes(published):
    card = published.card("topk")
    env = published.env | {"HF_HOME": published.dpath / "home-of-hf"}
    (block,) = (text for text in reader.blocks(card, "sh") if "hf download" in text)
    reader.shell(published.dpath, block, **env)
    (snapshot,) = (published.dpath / "home-of-hf").glob("hub/models--lab--topk/s*/*")
    found = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*.*")}
    staged_files = published.stage["topk"].rglob("*.*")
    assert {
        p.relative_to(published.stage["topk"]).as_posix() for p in staged_files
    } <= (found)
    (command,) = re.findall(r"`(hf cache verify .*?)`", card)
    assert "erified" in reader.shell(published.dpath, command, **env)[0]


def test_a_reader_can_install_the_very_saev_that_loaded_the_files(published):
    (block,) = (t for t in reader.blocks(published.card("topk"), "sh") if "pip" in t)
    commit = git(published.dpath / "saev", "rev-parse", "HEAD")
    assert block == (
        f'pip install "saev @ git+https://code.example/lab/saev@{commit}"\n'
    )
    assert account.loading(published.rows) == []


def test_check_npz_is_small_and_the_same_each_time(published):
    for slug, stage in published.stage.items():
        assert (stage / "check.npz").stat().st_size < 2_000_000
        with np.load(stage / "check.npz") as check:
            assert check["layer_11/x"].shape == (4, D_MODEL)
            names = {name.rsplit("/", 1)[0] for name in check.files}
            rows = [row for row in published.rows if row["repo"] == slug]
            runs = {row["path"].removesuffix("/sae.pt") for row in rows}
            assert names == runs | {"layer_9", "layer_11"}
    documents = [row["documents"] for row in published.rows]
    assert all(set(names) == set(staged.DOCUMENTS) for names in documents)
