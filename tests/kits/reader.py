"""A reader of a published repo, who runs what its card and saev's docs say.

READER, in the environment, names a Python recent enough for saev (3.12 or later) that has saev
and timm, installed as a card says:

    python3.12 -m venv reader
    reader/bin/pip install "saev @ git+https://github.com/OSU-NLP-Group/saev"
    READER=$PWD/reader/bin/python make test PYTEST_ARGS="-k reader"

Without it, the tests' own Python runs the same code with a stand-in for saev, and one for timm,
which makes up activations where timm would download weights.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

from kits import checkpoints
from kits.programs import bare_env, run_program

PYTHON = os.environ.get("READER", "")

TIMM = '''
"""A stand-in for timm: its model returns noise, and accepts only what the real one would."""
import types
import torch

WIDTHS = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}


class Model:
    def __init__(self, width, n_blocks):
        self.width, self.n_blocks, self.training = width, n_blocks, True
        self.rope = types.SimpleNamespace(periods=torch.ones(16))

    def eval(self):
        self.training = False
        return self

    def forward_intermediates(
        self, x, indices, norm=False, output_fmt="NCHW", intermediates_only=False
    ):
        assert not self.training and x.shape == (1, 3, 256, 256)
        assert not norm and output_fmt == "NLC" and intermediates_only
        assert 0 <= min(indices) and max(indices) < self.n_blocks
        rng = torch.Generator().manual_seed(indices[0])
        return [torch.randn(1, 256, self.width, generator=rng) for _ in indices]


def create_model(name, pretrained=False):
    arch, tag = name.split(".")
    vit, size, patch, family = arch.split("_")
    assert (vit, patch, family, tag) == ("vit", "patch16", "dinov3", "lvd1689m")
    assert pretrained
    return Model(*WIDTHS[size])


def resolve_model_data_config(model):
    return {"input_size": (3, 256, 256)}


def create_transform(input_size):
    def transform(image):
        assert (3, *image.size) == input_size
        return torch.zeros(input_size) + image.getpixel((9, 9))[0]

    return transform


data = types.SimpleNamespace(
    resolve_model_data_config=resolve_model_data_config,
    create_transform=create_transform,
)
'''

# Runs blocks of code, each in a namespace of its own, with a loader that may be wrong.
DRIVER = """
import contextlib, io, json, pathlib, sys
import torch
import saev.nn

right = saev.nn.load


def encoder_overwritten(fpath):
    sae = right(fpath)
    sae.W_enc.data = sae.W_dec.data.T.clone()
    return sae


def decoder_overwritten(fpath):
    sae = right(fpath)
    sae.W_dec.data = sae.W_enc.data.T.clone()
    return sae


def training(fpath):
    sae = right(fpath)
    sae.eval = lambda: sae.train()
    return sae


LOADERS = {
    "right": right, "encoder": encoder_overwritten, "decoder": decoder_overwritten,
    "training": training,
}
out = []
for code, loader in json.load(sys.stdin):
    saev.nn.load = LOADERS[loader]
    told, names = io.StringIO(), {}
    with contextlib.redirect_stdout(told):
        exec(compile(code, "<card>", "exec"), names)
    keep = {k: str(v) for k, v in names.items() if isinstance(v, (str, pathlib.Path))}
    values = {k: json.loads(json.dumps(v, default=str)) for k, v in names.items()
              if isinstance(v, (list, dict)) and k != "__builtins__"}
    shapes = {k: list(v.shape) for k, v in names.items() if isinstance(v, torch.Tensor)}
    out.append({"told": told.getvalue(), "names": keep, "shapes": shapes,
                "values": values})
print(json.dumps(out))
"""


WEIGHTS = "vit_small_patch16_dinov3.lvd1689m"
META_WEIGHTS = "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"

# Stands in for what timm and saev would download, which can't be had here: random weights, as
# Meta's file and timm's repo would have them. Meta's has zeros for the biases of q, k and v, and
# rounded RoPE periods.
MAKE_WEIGHTS = f"""
import pathlib, sys
import safetensors.torch, timm, torch
from saev.data import dinov3
from timm.models.eva import checkpoint_filter_fn

dpath = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
meta = dinov3.Encoder(dinov3._PRETRAINED_CFGS["dinov3_vits16"]).state_dict()
for name, value in meta.items():
    if name.endswith("periods"):
        meta[name] = value.bfloat16()
    elif name.endswith(("qkv.bias", "bias_mask")):
        value.zero_()
    else:
        value.normal_(1.0 if "norm" in name else 0.0, 0.1)
torch.save(meta, dpath.parent / "{META_WEIGHTS}")
model = timm.create_model("{WEIGHTS.split(".")[0]}")
weights = checkpoint_filter_fn(meta, model)
safetensors.torch.save_file(weights, dpath / "model.safetensors")
"""

# After the card's code: how far its activations are from those that saev records.
RECORD = """
from saev.data import dinov3, shards

vit = dinov3.Vit("{fpath}").eval()
prepare, cut = vit.make_transforms("{fpath}", 256)
sample = cut({{"data": prepare(Image.open("image.jpg").convert("RGB"))}})
recorder = shards.RecordedTransformer(vit, 256, False, [{layer}])
with torch.inference_mode():
    _, recorded = recorder(sample["data"][None], grid=sample["grid"][None])
print((acts - recorded[0, 0]).norm().item() / (recorded - recorded.mean(2)).norm().item())
"""


# What a card says of several manifests, `fpaths`: they make one table.
COMBINE = """
import datasets, pandas, polars

pandas_runs = pandas.concat([pandas.read_json(f, lines=True) for f in fpaths])
polars_runs = polars.concat(
    [polars.read_ndjson(f) for f in fpaths], how="vertical_relaxed"
)
datasets_runs = datasets.concatenate_datasets(
    [datasets.load_dataset("json", data_files=f, split="train") for f in fpaths]
)
for runs in (pandas_runs, polars_runs, datasets_runs):
    print([None if k != k else k for k in runs["top_k"]], list(runs["activation"]))
"""


def weights(dpath: pathlib.Path) -> pathlib.Path | None:
    """A directory like timm's repo of WEIGHTS, for the real timm; None for the stand-in.

    Beside it are the same weights as Meta publishes them, for saev.
    """
    if not PYTHON:
        return None
    dpath.mkdir()
    subprocess.run([PYTHON, "-c", MAKE_WEIGHTS, dpath], check=True, env=bare_env())
    return dpath


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language in a Markdown text, as they stand."""
    import markdown_it

    tokens = markdown_it.MarkdownIt("commonmark").parse(text)
    return [t.content for t in tokens if t.type == "fence" and t.info == language]


def run(dpath: pathlib.Path, runs: list[tuple[str, str]], **env: object) -> list[dict]:
    """Run blocks of code in one process, one after the other.

    Args:
        dpath: The working directory, which gets an image.jpg.
        runs: Each block, and the name of the loader that saev.nn.load is to be.
        env: The environment: HF_ENDPOINT and HF_HOME.

    Returns:
        For each, what it printed and its variables.
    """
    from PIL import Image

    dpath.mkdir(parents=True, exist_ok=True)
    image = Image.radial_gradient("L").rotate(20).resize((400, 300))
    Image.merge("RGB", (image, image.rotate(70), image.rotate(140))).save(
        dpath / "image.jpg"
    )
    if not PYTHON:
        saev = checkpoints.write_saev(dpath / "saev")
        (saev / "src/timm.py").write_text(textwrap.dedent(TIMM))
        env |= {"PYTHONPATH": saev / "src"}
    argv = (PYTHON or sys.executable, "-c", DRIVER)
    done = run_program(*argv, stdin=json.dumps(runs), cwd=dpath, **env)
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


def shell(dpath: pathlib.Path, text: str, **env: object) -> list[str]:
    """Run a block of `hf` commands. Returns what each printed."""
    hf_dpath = pathlib.Path(PYTHON or sys.executable).parent
    env |= {"PATH": f"{hf_dpath}:{os.environ['PATH']}"}
    printed = []
    for line in re.findall(r"^hf .*$", text, re.M):
        done = run_program("bash", "-c", line, cwd=dpath, **env)
        assert done.code == 0, (line, done.err)
        printed.append(done.out)
    return printed
