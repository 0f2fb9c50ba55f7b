"""Two other labs release their SAEs from their catalogs alone."""

import json
import pathlib
import re

import pytest

from kits import checkpoints as util
from kits import reader
from kits.programs import ROOT, rows_of
from kits.tree import Tree, fresh
from loopback_wandb import LoopbackWandb

pytestmark = pytest.mark.long

README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Your own lab\n")[2].partition("\n## ")[0]

ANOTHER_LABS = re.compile(
    rb"dino|stevens|osunlp|\bosu\b|imagenet|\bvision|\bimage|\bpatch|ViT", re.IGNORECASE
)


def words_of_another_lab(dpath: pathlib.Path) -> list[tuple[str, bytes]]:
    """Traces of another lab in all that was made, except checkpoints and pictures."""
    return [
        (str(fpath.relative_to(dpath)), found[0])
        for fpath in sorted(dpath.rglob("*"))
        if fpath.is_file()
        and fpath.suffix in (".md", ".jsonl", ".json", ".html", ".txt")
        if (found := ANOTHER_LABS.search(fpath.read_bytes()))
    ]


def rehearsed(tree: Tree, slug: str, repo_id: str) -> pathlib.Path:
    """What the Hub would hold after the rehearsed release."""
    main = tree.dpath / "build/hub/models" / repo_id / "main"
    assert (main / "manifest.jsonl").is_file()
    return main


# ---- a text model, by README -----------------------------------------------------------------


@pytest.fixture(scope="module")
def text_lab(tmp_path_factory):
    """README's lab in a fresh checkout: its three files, with more runs like the one there."""
    tree = fresh(tmp_path_factory.mktemp("text"), None)
    own = tree.dpath / "own"
    own.mkdir()
    catalog, record = reader.blocks(SECTION, "json")
    (own / "catalog.json").write_text(catalog)
    ids, (record,) = reader.blocks(SECTION, "csv")[0], [json.loads(record)]
    for layer in range(4):
        for i, name in enumerate("abc"):
            run_id = f"text{layer}{name}"
            more = json.loads(json.dumps(record)) | {"name": run_id}
            more["config"]["train_data"]["layer"] = layer
            more["summary"] |= {"val/L0": 12.5 + 5 * i, "val/fvu": 0.31 - 0.05 * i}
            with open(own / "runs.jsonl", "a") as fd:
                fd.write(json.dumps(more) + "\n")
            ids += "" if run_id in ids else f"{run_id},{layer}\n"
            fpath = own / "runs" / run_id / "sae.pt"
            util.write(fpath, d_model=16, d_sae=64, seed=3 * layer + i)
    (own / "ids.csv").write_text(ids)
    util.write_saev(tree.dpath / "saev")
    return tree


def settings(tree: Tree) -> dict[str, object]:
    (block,) = reader.blocks(SECTION, "sh")
    found = dict(re.findall(r"(\w+)=(\S+)", block.splitlines()[0]))
    return found | {"SAEV_DIR": tree.dpath / "saev", "HOME": tree.dpath / "home"}


def test_readme_leads_from_nothing_to_a_rehearsed_release(text_lab):
    (block,) = reader.blocks(SECTION, "sh")
    goals = re.findall(r"^make (\S+)$", block, re.M)
    assert goals == ["doctor", "dry-run", "rehearse"]
    done = [text_lab.make(goal, **settings(text_lab)) for goal in goals]
    assert "text-relu: 12 candidates, 12 with a checkpoint under" in done[0].out
    assert "12 candidates" in done[1].out or "12" in done[1].out
    main = rehearsed(text_lab, "text-relu", "text-lab/sae-small-relu")
    runs = rows_of((main / "manifest.jsonl").read_text())
    assert [run["layer"] for run in runs] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (runs[0]["l0"], runs[0]["nmse"]) == (12.5, 0.31)
    card = (main / "README.md").read_text()
    says = ('license: "apache-2.0"', "sae@example.org", "@misc{text2026,", "per token")
    for words in says:
        assert words in card, words
    assert words_of_another_lab(text_lab.dpath / "build") == []


def test_a_filled_in_start_is_a_catalog(text_lab):
    """`make init` fills in all of README's catalog that the sweep and its runs tell."""
    sweep = text_lab.dpath / "own/sweep.py"
    sweep.write_text('run_ids = {0: ["text0a"], 1: ["text1a"], 2: ["text2a"]}\n')
    argv = ("SWEEP=own/sweep.py", "VARIABLE=run_ids", "CATALOG=own/started.json")
    env = {"METRICS_SNAPSHOT": "own/runs.jsonl", "HOME": text_lab.dpath / "home"}
    text_lab.make("init", *argv, **env)
    made = json.loads((text_lab.dpath / "own/started.json").read_text())
    whole = json.loads((text_lab.dpath / "own/catalog.json").read_text())["repos"][0]
    told = {key: made["repos"][0][key] for key in ("objective", "activation", "d_sae")}
    assert told == {key: whole[key] for key in told}
    done = text_lab.make("dry-run", "CATALOG=own/started.json", code=2, **env)
    assert "repos[0] (sweep).title: still to be written: the title" in done.err


# ---- an audio model, from W&B ----------------------------------------------------------------

FACTS = """\
# Another trainer's runs: what it logged, as keys of a line.
.wandb as $run
| ($run.config // {}) as $config
| del(.wandb) + {
    l0: $run.summary["eval/active"], nmse: $run.summary["eval/unexplained"], n_dead: null,
    objective: "vanilla", n_prefixes: null,
    activation: {key: "batch-top-k", top_k: $config.k}, aux: null,
    d_model: $config.d_in, d_sae: $config.width, train_layer: $config.hook_layer,
    shard: null, state: $run.state, created_at: $run.createdAt,
    wandb_url: $run.url, fault: null
  }
"""

AUDIO = {
    "lab": {
        "license": "cc-by-4.0",
        "contact": "audio@example.org",
        "links": [{"label": "Listen", "url": "https://example.org/listen"}],
        "datasets": ["audio-lab/birds"],
        "tokens": "frame",
        "entity": "audio-lab",
        "project": "saes",
        "runs_root": "runs",
        "facts": "facts.jq",
    },
    "repos": [
        {
            "slug": "audio-batchtopk",
            "repo_id": "audio-lab/sae-batchtopk",
            "title": "BatchTopK SAEs for an audio model",
            "base_model": "audio-lab/model",
            "objective": "vanilla",
            "activation": "batchtopk",
            "layers": [2, 5],
            "d_model": 8,
            "d_sae": 32,
            "wandb": {"sweep": "s1x2y3", "layer": "hook_layer"},
        }
    ],
}


def test_a_sweep_of_wandb_and_another_trainers_logs(tmp_path):
    tree = fresh(tmp_path / "tree", None)
    own = tree.dpath / "own"
    own.mkdir()
    (own / "catalog.json").write_text(json.dumps(AUDIO))
    (own / "facts.jq").write_text(FACTS)
    runs = []
    for layer in (2, 5):
        for i in range(3):
            run_id = f"audio{layer}{i}"
            config = {"d_in": 8, "width": 32, "hook_layer": layer, "k": 4}
            summary = {"eval/active": 4.0 + 0.01 * i, "eval/unexplained": 0.5 - 0.1 * i}
            base = {"name": run_id, "state": "finished", "config": config}
            base |= {"createdAt": f"2026-03-0{i + 1}T00:00:00Z", "summary": summary}
            runs.append(base | {"sweep": "s1x2y3"})
            fpath = util.run_dir(own / "runs", run_id)
            util.write(fpath, activation="batch-top-k", seed=10 * layer + i)
    runs.append(runs[0] | {"name": "another0", "sweep": "other"})
    with LoopbackWandb(runs, entity="audio-lab", project="saes") as server:
        env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        env |= {"CATALOG": "own/catalog.json", "HOME": tmp_path, "LOADER": "builtin"}
        tree.make("rehearse", **env)
    main = rehearsed(tree, "audio-batchtopk", "audio-lab/sae-batchtopk")
    runs = rows_of((main / "manifest.jsonl").read_text())
    assert [run["run_id"] for run in runs] == [
        f"audio{n}{i}" for n in (2, 5) for i in "012"
    ]
    assert [run["nmse"] for run in runs[:3]] == [0.5, 0.4, 0.3]
    card = (main / "README.md").read_text()
    says = ('license: "cc-by-4.0"', "Listen: https://example.org/listen", "per frame")
    for words in says:
        assert words in card, words
    assert "audio-lab/birds" in card and "BatchTopK" in card
    assert words_of_another_lab(tree.dpath / "build") == []
