"""render writes a card that people and the Hub understand, a manifest, and a plot."""

import hashlib
import json
import re

import pytest

from kits.programs import ROOT, run_program

CATALOG = {
    "collections": [],
    "repos": [
        {
            "slug": "vitl-topk",
            "repo_id": "osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K",
            "title": "TopK SAE for Meta's DINOv3 ViT-L/16 trained on ImageNet-1K Activations",
            "base_model": "facebook/dinov3-vitl16-pretrain-lvd1689m",
            "run_ids": {},
            "datasets": ["ILSVRC/imagenet-1k"],
            "objective": "matryoshka",
            "activation": "topk",
            "layers": [13, 23],
            "d_model": 1024,
            "d_sae": 16384,
        }
    ],
}
CONFIG = {"cls": "TopK", "params": {"top_k": 32}}


def line(run_id: str, layer: int, l0: float, nmse: float, **more) -> dict:
    return {
        "repo": "vitl-topk",
        "layer": layer,
        "run_id": run_id,
        "l0": l0,
        "nmse": nmse,
        "numbers": "wandb",
        "objective": "matryoshka",
        "d_model": 1024,
        "d_sae": 16384,
        "created_at": "2025-12-01T00:00:00Z",
        "activation": {"key": "top-k", "top_k": 32},
        "activation_config": CONFIG,
        "checkpoint": "/runs/x",
        "bytes": 134 * 10**6,
        "mtime_ns": 1,
        "sha256": hashlib.sha256(run_id.encode()).hexdigest(),
        "schema": 5,
        "loader": "saev abc123",
        "warnings": [],
        "path": f"layer_{layer}/{run_id}/sae.pt",
    } | more


LINES = [
    line("cccc3333", 23, 31.96, 0.1),
    line("bbbb2222", 13, 64.0625, 0.0123456789),
    line("aaaa1111", 13, 16.04, 0.25),
]


class Lab:
    def __init__(self, dpath):
        self.dpath = dpath / "build/vitl-topk/stage"
        self.dpath.mkdir(parents=True)
        self.env = {"BUILD": dpath / "build", "CATALOG": dpath / "catalog.json"}
        self.env["CATALOG"].write_text(json.dumps(CATALOG))

    def render(self, rows=LINES, *argv):
        stdin = "".join(json.dumps(row) + "\n" for row in rows)
        done = run_program(ROOT / "bin/render", *argv, stdin=stdin, **self.env)
        done.rows = [json.loads(text) for text in done.out.splitlines()]
        return done

    def read(self, name: str) -> str:
        return (self.dpath / name).read_text()


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("card"))
    done = lab.render()
    assert (done.returncode, done.err) == (0, "")
    return lab.read("README.md")


def test_the_hub_understands_the_front_matter(card):
    from huggingface_hub import ModelCard

    data = ModelCard(card).data
    assert data.license == "mit" and data.library_name == "saev"
    assert data.base_model == "facebook/dinov3-vitl16-pretrain-lvd1689m"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    wanted = {"sparse-autoencoder", "dinov3", "matryoshka", "topk", "interpretability"}
    assert wanted <= set(data.tags)


def test_the_table_is_by_layer_then_l0_rounded_for_reading(card):
    rows = re.findall(r"^\| (?!Run|-).*$", card, re.M)
    assert "| Run ID | Layer | L0 | NMSE | Path |" in card
    assert rows == [
        "| aaaa1111 | 13 | 16.0 | 0.250 | layer_13/aaaa1111/sae.pt |",
        "| bbbb2222 | 13 | 64.1 | 0.0123 | layer_13/bbbb2222/sae.pt |",
        "| cccc3333 | 23 | 32.0 | 0.100 | layer_23/cccc3333/sae.pt |",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "# TopK SAE for Meta's DINOv3 ViT-L/16 trained on ImageNet-1K Activations\n",
        "https://osu-nlp-group.github.io/saev\n",
        "https://github.com/OSU-NLP-Group/saev\n",
        "https://arxiv.org/abs/2511.17735\n",
        "https://osu-nlp-group.github.io/saev#demos\n",
        "Sam Stevens (stevens.994@buckeyemail.osu.edu)",
        'hf_hub_download("osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K", "layer_23/cccc3333/sae.pt")',
        "saev.nn.load(path)",
        'snapshot_download("osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K")',
        "@article{stevens2025towards,",
        "![One panel a layer",
        "it was loaded with saev abc123",
    ],
)
def test_the_card_says(card, text):
    assert text in card


def test_the_cards_python_is_python(card):
    for block in re.findall(r"```python\n(.*?)```", card, re.S):
        compile(block, "README.md", "exec")


def test_a_card_of_files_no_saev_loaded_does_not_claim_otherwise(lab):
    lab.render([row | {"loader": "builtin"} for row in LINES])
    card = lab.read("README.md")
    assert "it was loaded with" not in card
    assert "3 of the 3 files were read with the release tool's own reader only" in card


def test_the_manifest_has_full_precision_in_the_tables_order(lab):
    lab.render()
    rows = [json.loads(text) for text in lab.read("manifest.jsonl").splitlines()]
    assert [row["run_id"] for row in rows] == ["aaaa1111", "bbbb2222", "cccc3333"]
    assert rows[1] == {
        "run_id": "bbbb2222",
        "layer": 13,
        "l0": 64.0625,
        "nmse": 0.0123456789,
        "numbers": "wandb",
        "activation": CONFIG,
        "objective": "matryoshka",
        "d_model": 1024,
        "d_sae": 16384,
        "path": "layer_13/bbbb2222/sae.pt",
        "bytes": 134 * 10**6,
        "sha256": hashlib.sha256(b"bbbb2222").hexdigest(),
        "schema": 5,
        "created_at": "2025-12-01T00:00:00Z",
    }


def test_lines_gain_the_documents_that_verify_will_hold_them_to(lab):
    for row in lab.render().rows:
        for name in ("README.md", "manifest.jsonl", "pareto.png"):
            content = (lab.dpath / name).read_bytes()
            assert row["documents"][name] == {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }


def test_the_same_lines_give_the_same_bytes(lab):
    first = lab.render().rows[0]["documents"]
    assert lab.render(LINES[::-1]).rows[0]["documents"] == first


def account(lab, **fates) -> str:
    fpath = lab.dpath.parent / "account.jsonl"
    others = [
        line("dddd4444", 13, 99.0, 0.9),
        line("eeee5555", 23, 0, None),
        line("ffff6666", 23, "NaN", "Infinity"),
    ]
    rows = [row | {"fate": "chosen", "drop": None} for row in LINES]
    rows += [row | {"fate": "off the frontier", "drop": None} for row in others[:1]]
    rows += [row | {"fate": "dropped", "drop": "no NMSE"} for row in others[1:]]
    rows = [row | {"fate": fates.get(row["run_id"], row["fate"])} for row in rows]
    fpath.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(fpath)


def test_the_plot_is_a_png_of_every_candidate_that_has_a_place(lab):
    plain = lab.render().rows[0]["documents"]["pareto.png"]
    done = lab.render(LINES, "--account", account(lab))
    assert (done.returncode, done.err) == (0, "")
    png = (lab.dpath / "pareto.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert done.rows[0]["documents"]["pareto.png"] != plain


def test_an_account_of_another_choice_is_refused(lab):
    fpath = account(lab, cccc3333="off the frontier")
    done = lab.render(LINES, "--account", fpath)
    assert done.returncode == 1
    assert "another choice than the lines do (cccc3333)" in done.err


def test_hostile_text_in_the_catalog_cannot_break_the_card(lab, tmp_path):
    title = "SAE | `x` {{ 7*7 }} <script> $(id) [a](b) # é"
    base = 'a"b: {% raw %}'
    repo = CATALOG["repos"][0] | {"title": title, "base_model": base}
    (tmp_path / "catalog.json").write_text(json.dumps({"repos": [repo]}))
    lab.render()
    from huggingface_hub import ModelCard

    card = lab.read("README.md")
    assert ModelCard(card).data.base_model == base
    assert "<script>" not in card and "49" not in card.split("## Checkpoints")[0]
    assert "{{ 7\\*7 }}" in card


def test_no_stage_is_one_line(lab):
    lab.dpath.rmdir()
    done = lab.render()
    assert done.returncode == 1 and "run bin/stage before bin/render" in done.err
