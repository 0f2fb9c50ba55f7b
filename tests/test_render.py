"""render writes a card that people and the Hub understand, a manifest, and a plot."""

import hashlib
import json
import pathlib
import re

import numpy as np
import pytest

from kits import reader
from kits.lab import Lab
from kits.programs import Done, rows_of, text_of
from saepub.checkpoint import probe
from saepub.choice import account as choice
from saepub.release import manifest, staged

CATALOG = {
    "collections": [],
    "lab": {
        "license": "mit",
        "links": [{"label": "Homepage", "url": "https://lab.example/saev"}],
        "contact": "A. Person (a@lab.example)",
        "citation": "@article{person2025,\n  title = {A Title},\n}",
        "tags": ["dinov3"],
        "tokens": "patch",
        "recipe": ["import numpy", "acts = torch.zeros(16, 1024)  # {{ layer }}"],
    },
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
COMMIT = "0123456789abcdef" * 2 + "01234567"
SAEV = {
    "requirement": f"saev @ git+https://lab.example/saev@{COMMIT}",
    "python": ">=3.12",
    "why_not": "",
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
        "n_tokens": None,
        "l0_logged": l0,
        "nmse_logged": nmse,
        "n_dead": None,
        "aux": "auxk",
        "wandb_url": f"https://wandb.example/lab/saev/runs/{run_id}",
        "objective": "matryoshka",
        "d_model": 1024,
        "d_sae": 16384,
        "created_at": "2025-12-01T00:00:00Z",
        "activation": {"key": "top-k", "top_k": 32},
        "activation_config": CONFIG,
        "checkpoint": "/runs/x",
        "bytes": 134 * 10**6,
        "mtime_ns": "1",
        "sha256": hashlib.sha256(run_id.encode()).hexdigest(),
        "schema": 5,
        "loader": "saev abc123",
        "saev": SAEV,
        "warnings": [],
        "path": f"layer_{layer}/{run_id}/sae.pt",
    } | more


LINES = [
    line("cccc3333", 23, 31.96, 0.1),
    line("bbbb2222", 13, 64.0625, 0.0123456789),
    line("aaaa1111", 13, 16.04, 0.25),
]


@pytest.fixture
def lab(tmp_path):
    return with_catalog(tmp_path, CATALOG)


def with_catalog(dpath: pathlib.Path, catalog: dict) -> Lab:
    lab = Lab(dpath)
    lab.catalog = catalog
    lab.write()
    (lab.build / "vitl-topk/stage").mkdir(parents=True)
    return lab


def render(lab: Lab, rows=LINES, *argv: object, code: int = 0) -> Done:
    return lab.call("render", *(probed(lab, x) for x in rows), argv=argv, code=code)


def probed(lab: Lab, row: dict) -> dict:
    """The line with a probe of its checkpoint, as preflight leaves one."""
    fpath = lab.build / "vitl-topk/probes" / f"{row['run_id']}.npz"
    if not fpath.exists():
        x = probe.random_inputs(row["d_model"])
        features = np.tile(np.arange(8, dtype=np.int32), (len(x), 1))
        values, x_hat = 1 / (1 + features.astype(np.float32)), x / 2
        margin = np.full(len(x), np.inf, np.float32)
        of = probe.Probe(x, features, values, x_hat, margin)
        probe.write(of, row["sha256"], fpath)
    return {"probe": str(fpath)} | row


def read(lab: Lab, name: str = "README.md") -> str:
    return (lab.build / "vitl-topk/stage" / name).read_text()


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    lab = with_catalog(tmp_path_factory.mktemp("card"), CATALOG)
    assert render(lab).err == ""
    return read(lab)


def test_the_hub_understands_the_front_matter(card):
    from huggingface_hub import ModelCard

    data = ModelCard(card).data
    assert data.license == "mit" and data.library_name == "saev"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.base_model_relation == "adapter"
    assert data.base_model == "facebook/dinov3-vitl16-pretrain-lvd1689m"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    wanted = {"sparse-autoencoder", "dinov3", "matryoshka", "topk", "interpretability"}
    assert wanted <= set(data.tags)


def table(card: str) -> list[str]:
    """The lines of the card's table of checkpoints."""
    return re.findall(r"^\|.*$", card, re.M)


def test_the_table_is_by_layer_then_l0_rounded_for_reading(card):
    def row(run_id, cells, path):
        url = f"https://wandb.example/lab/saev/runs/{run_id}"
        return f"| [{run_id}]({url}) | {cells} | `{path}` | 134 MB |"

    assert table(card) == [
        "| Run ID | Layer | k | L0 | NMSE | Path | Size |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        row("aaaa1111", "13 | 32 | 16.0 | 0.250", "layer_13/aaaa1111/sae.pt"),
        row("bbbb2222", "13 | 32 | 64.1 | 0.0123", "layer_13/bbbb2222/sae.pt"),
        row("cccc3333", "23 | 32 | 32.0 | 0.100", "layer_23/cccc3333/sae.pt"),
    ]


def test_the_table_has_what_tells_its_rows_apart_where_that_is_known(lab):
    rows = [row | {"wandb_url": None} for row in LINES]
    rows[0] |= {"aux": "no-aux", "n_dead": 12}
    rows[1] |= {"aux": None, "wandb_url": "https://x.example/)[a](b"}
    render(lab, rows)
    head, _, *body = table(read(lab))
    assert head == "| Run ID | Layer | k | Aux | L0 | NMSE | Path | Size | Dead |"
    assert [line.split(" | ")[0] for line in body] == [
        f"| {run_id}" for run_id in ("aaaa1111", "bbbb2222", "cccc3333")
    ]
    assert [line.split(" | ")[3] for line in body] == ["auxk", "–", "no-aux"]
    assert [line.split(" | ")[-1] for line in body] == ["– |", "– |", "12 |"]


@pytest.mark.parametrize(
    "text",
    [
        "# TopK SAE for Meta's DINOv3 ViT-L/16 trained on ImageNet-1K Activations\n",
        "* Homepage: https://lab.example/saev\n",
        "* Contact: A. Person (a@lab.example)\n",
        f'pip install "saev @ git+https://lab.example/saev@{COMMIT}"\n',
        "saev needs Python 3.12 or later.",
        '"layer_23/cccc3333/sae.pt")\nsae = saev.nn.load(path).eval()\n',
        "acts = torch.zeros(16, 1024)  # 23\n",
        "hf download osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K layer_23/cccc3333/sae.pt\n",
        'hf download osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K --include "layer_23/*"\n',
        "hf download osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K\n",
        "hf cache verify osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K",
        "\nL0 and NMSE are as training logged them.\n",
        "Any other checkpoint in this repo is not part of it (an earlier release may have left it), and nothing",
        "4 activations (random, the same for all layers)",
        "@article{person2025,",
        "![NMSE against L0 on a log scale",
        "Each was loaded with saev abc123",
    ],
)
def test_the_card_says(card, text):
    assert text in card


def test_where_numbers_come_from_is_told_by_layer_where_it_differs(lab):
    measured = {"numbers": "measured:52ec5790", "n_tokens": 1048576}
    rows = [row | measured for row in LINES]
    render(lab, rows)
    words = (
        "measured from the files in this repo, on 1,048,576 patches of cached"
        " activations (shard `52ec5790`)."
    )
    assert f"\nL0 and NMSE are {words}\n" in read(lab)
    rows[0] |= {"numbers": "disk:3e27794f", "n_tokens": None}
    render(lab, rows)
    card = read(lab)
    assert f"\n* Layer 13: {words}\n* Layer 23: from two sources: L0 as" in card


def test_a_card_without_a_commit_that_anybody_can_install_says_so(lab):
    why_not = {"requirement": None, "python": ">=3.12", "why_not": "differs from x"}
    rows = [row | {"saev": why_not} for row in LINES]
    render(lab, rows)
    card = read(lab)
    assert "pip install" not in card and "isn't on record" in card
    (told,) = choice.loading(rows)
    assert "differs from x, so the card can't say how to install it" in told
    assert choice.loading(LINES) == []


def test_a_lab_that_says_nothing_of_itself_has_a_card_that_says_nothing_of_others(lab):
    repo = {k: v for k, v in CATALOG["repos"][0].items() if k != "datasets"}
    repo |= {"title": "SAEs", "base_model": "lab/model", "repo_id": "lab/saes"}
    lab.catalog = {"repos": [repo]}
    lab.write()
    render(lab, [row | {"saev": {}, "loader": "builtin"} for row in LINES])
    card = read(lab).replace("vitl-topk", "")
    words = r"(?i)dino|imagenet|\bosu|stevens|\bvision|patch|image|license"
    assert re.findall(words, card) == []
    assert "bibtex" not in card and "Contact" not in card
    assert (
        "acts = torch.randn(16, 1024)" in card and "for the token activations" in card
    )


def test_the_cards_python_is_python(card):
    for block in reader.blocks(card, "python"):
        compile(block, "README.md", "exec")


def test_a_card_of_files_no_saev_loaded_does_not_claim_otherwise(lab):
    render(lab, [row | {"loader": "builtin"} for row in LINES])
    card = read(lab)
    assert "compared with the file" not in card
    assert "All 3 checkpoints were read only with the release tool's own" in card


def test_the_manifest_has_full_precision_in_the_tables_order(lab):
    render(lab)
    rows = rows_of(read(lab, "manifest.jsonl"))
    assert [row["run_id"] for row in rows] == ["aaaa1111", "bbbb2222", "cccc3333"]
    assert rows[1] == {
        "run_id": "bbbb2222",
        "layer": 13,
        "l0": 64.0625,
        "nmse": 0.0123456789,
        "numbers": "wandb",
        "n_tokens": None,
        "l0_logged": 64.0625,
        "nmse_logged": 0.0123456789,
        "n_dead": None,
        "activation": "top-k",
        "top_k": 32,
        "aux": "auxk",
        "activation_config": json.dumps(CONFIG),
        "objective": "matryoshka",
        "d_model": 1024,
        "d_sae": 16384,
        "path": "layer_13/bbbb2222/sae.pt",
        "bytes": 134 * 10**6,
        "sha256": hashlib.sha256(b"bbbb2222").hexdigest(),
        "schema": 5,
        "created_at": "2025-12-01T00:00:00Z",
        "wandb_url": "https://wandb.example/lab/saev/runs/bbbb2222",
    }


def test_every_manifest_has_the_same_keys_with_flat_values_of_the_same_types():
    relu = line("a", 1, 3, 1, activation={"key": "relu"}, activation_config={})
    relu = {k: v for k, v in relu.items() if k not in ("aux", "n_tokens", "wandb_url")}
    bare, full = manifest.entry(relu), manifest.entry(LINES[0])
    assert list(bare) == list(full)
    for key, value in bare.items():
        assert type(value) in (type(full[key]), type(None)), key
        assert not isinstance(value, dict | list), key


def test_config_says_in_a_few_words_what_the_repo_holds(lab):
    render(lab)
    assert json.loads(read(lab, "config.json")) == {
        "library_name": "saev",
        "base_model": "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "layers": [13, 23],
        "d_model": 1024,
        "d_sae": 16384,
        "activation": "top-k",
        "objective": "matryoshka",
        "n_checkpoints": 3,
        "manifest": "manifest.jsonl",
        "check": "check.npz",
    }


def test_lines_gain_the_documents_that_verify_will_hold_them_to(lab):
    for row in render(lab).rows:
        assert set(row["documents"]) == set(staged.DOCUMENTS)
        for name in staged.DOCUMENTS:
            content = (lab.build / "vitl-topk/stage" / name).read_bytes()
            assert row["documents"][name] == {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }


def test_the_same_lines_give_the_same_bytes(lab):
    first = render(lab).rows[0]["documents"]
    lines = text_of([probed(lab, row) for row in LINES[::-1]])
    # In a process of its own, which hashes text differently.
    assert lab.program("bin/render", stdin=lines).rows[0]["documents"] == first


def account(lab, **fates) -> str:
    fpath = lab.build / "vitl-topk/account.jsonl"
    others = [
        line("dddd4444", 13, 99.0, 0.9),
        line("eeee5555", 23, 0, None),
        line("ffff6666", 23, "NaN", "Infinity"),
    ]
    rows = [row | {"fate": "chosen", "drop": None} for row in LINES]
    rows += [row | {"fate": "off the frontier", "drop": None} for row in others[:1]]
    rows += [row | {"fate": "dropped", "drop": "no NMSE"} for row in others[1:]]
    rows = [row | {"fate": fates.get(row["run_id"], row["fate"])} for row in rows]
    for row in rows:
        if row["fate"] == "excluded":
            row |= {"fate": "dropped", "drop": "excluded by hand"}
    fpath.write_text(text_of(rows))
    return str(fpath)


def test_the_plot_is_a_png_of_every_candidate_that_has_a_place(lab):
    plain = render(lab).rows[0]["documents"]["pareto.png"]
    done = render(lab, LINES, "--account", account(lab))
    assert done.err == ""
    png = (lab.build / "vitl-topk/stage/pareto.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert done.rows[0]["documents"]["pareto.png"] != plain


def test_what_the_card_says_of_the_choice_is_so(lab):
    render(lab, LINES, "--account", account(lab))
    said = (
        "The checkpoints here lie on the Pareto frontier of the 4 runs that were"
        " compared: no other run of the same layer is both"
    )
    card = read(lab)
    assert said in card and "by hand" not in card
    # One that is off the frontier, and one that the rule merely did not need, are pinned.
    rows = [*LINES, line("dddd4444", 13, 99.0, 0.9)]
    fates = {"dddd4444": "pinned", "cccc3333": "pinned", "eeee5555": "excluded"}
    render(lab, rows, "--account", account(lab, **fates))
    card = read(lab)
    assert said.replace("The", "Except for `dddd4444` (layer 13), the", 1) in card
    assert (
        "Added by hand: `dddd4444` (layer 13) and `cccc3333` (layer 23).\n"
        "Left out by hand, and not among the runs compared: `eeee5555` (layer 23).\n"
    ) in card


def test_without_an_account_nothing_is_said_of_the_choice(card):
    assert "rontier of" not in card and "by hand" not in card


def test_a_title_in_any_script_stands_on_the_card_and_not_in_the_plot(lab):
    """No font has all characters; the plot is named by the repo's id, which is ASCII."""
    first = render(lab).rows[0]["documents"]
    repo = CATALOG["repos"][0] | {"title": "稀疏自编码器 разреженный автокодировщик"}
    lab.catalog = {"repos": [repo]}
    lab.write()
    done = render(lab)
    assert done.err == ""
    assert "# 稀疏自编码器 разреженный автокодировщик\n" in read(lab)
    assert done.rows[0]["documents"]["pareto.png"] == first["pareto.png"]


def test_an_account_of_another_choice_is_refused(lab):
    fpath = account(lab, cccc3333="off the frontier")
    done = render(lab, LINES, "--account", fpath, code=1)
    assert "not the same choice as on stdin (different: cccc3333)" in done.err


def test_hostile_text_in_the_catalog_cannot_break_the_card(lab):
    title = "SAE | `x` {{ 7*7 }} <script> $(id) [a](b) # é"
    base = 'a"b: {% raw %}'
    repo = CATALOG["repos"][0] | {"title": title, "base_model": base}
    lab.catalog = {"repos": [repo]}
    lab.write()
    render(lab)
    from huggingface_hub import ModelCard

    card = read(lab)
    assert ModelCard(card).data.base_model == base
    assert "<script>" not in card and "49" not in card.split("## Checkpoints")[0]
    assert "{{ 7\\*7 }}" in card


def test_no_stage_is_one_line(lab):
    (lab.build / "vitl-topk/stage").rmdir()
    done = render(lab, code=1)
    assert "run bin/stage before bin/render" in done.err
