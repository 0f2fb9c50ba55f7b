"""A probe notes what an SAE computes, so that a wrong loader shows itself."""

import numpy as np
import pytest
import torch

from kits import checkpoints as util
from saepub import checkpoint, settings
from saepub.checkpoint import probe
from saepub.cli import UserError
from saepub.stages import preflight

FILES = [name for name, says in util.EXPECTED["files"].items() if "f_x" in says]
X = np.array(util.EXPECTED["x"], dtype=np.float32)


@pytest.mark.parametrize("name", FILES)
def test_a_probe_says_what_saev_computes(name):
    says = util.EXPECTED["files"][name]
    found = probe.of(checkpoint.load(util.FILES / name), X)
    f_x, x_hat = torch.tensor(says["f_x"]), torch.tensor(says["x_hat"])
    assert probe.difference(found, f_x, x_hat) == ""
    assert np.allclose(found.x_hat, x_hat, atol=1e-5)
    strongest = np.sort(f_x.numpy(), axis=1)[:, ::-1][:, : probe.N_FEATURES]
    assert np.allclose(found.values, strongest, atol=1e-5)


def wrong(name: str, sae) -> tuple[torch.Tensor, torch.Tensor]:
    """What a faulty loader's SAE computes from X."""
    state = dict(sae.tensors)
    if name == "encoder is the decoder's transpose":
        state["W_enc"] = state["W_dec"].T
    elif name == "decoder is the encoder's transpose":
        state["W_dec"] = state["W_enc"].T
    elif name == "features in another order":
        order = torch.arange(sae.header.d_sae).flip(0)
        state |= {key: state[key][order] for key in ("b_enc", "W_dec")}
        state["W_enc"] = state["W_enc"][:, order]
    elif name == "takes b_dec from x first":
        state["b_enc"] = state["b_enc"] - state["b_dec"] @ state["W_enc"]
    sae = type(sae)(sae.header, state)
    x = torch.from_numpy(X)
    if name == "training mode":
        h_x = sae.pre_activation(x)
        k = sae.header.top_k * len(h_x)
        f_x = torch.where(h_x >= h_x.flatten().topk(k).values[-1], h_x, 0)
        return f_x, sae.decode(f_x)
    f_x = sae.encode(x)
    return f_x, sae.decode(f_x)


@pytest.mark.parametrize("name", [n for n in FILES if "schema5" in n])
@pytest.mark.parametrize(
    "fault",
    (
        "encoder is the decoder's transpose",
        "decoder is the encoder's transpose",
        "features in another order",
        "takes b_dec from x first",
        "training mode",
    ),
)
def test_a_wrong_loader_differs_from_the_probe(name, fault):
    if fault == "training mode" and "batchtopk" not in name:
        pytest.skip("only BatchTopK has one")
    sae = checkpoint.load(util.FILES / name)
    found = probe.of(sae, X)
    assert probe.difference(found, *wrong("", sae)) == ""
    assert "other than published, off by" in probe.difference(found, *wrong(fault, sae))


def test_activations_for_probes_are_real_where_a_directory_has_them(tmp_path):
    assert probe.inputs(tmp_path, 3, 8).shape == (probe.N_TOKENS, 8)
    np.save(tmp_path / "layer_3.npy", X)
    assert np.array_equal(probe.inputs(tmp_path, 3, 8), X)
    assert np.array_equal(probe.inputs(tmp_path, 4, 8), probe.random_inputs(8))
    assert np.array_equal(probe.inputs(tmp_path, 3, 16), probe.random_inputs(16))


def test_an_sae_of_which_nothing_fires_has_a_probe():
    sae = checkpoint.load(util.FILES / "schema5-relu.pt")
    sae.tensors["b_enc"][:] = -1e6
    found = probe.of(sae, X)
    assert not found.values.any()
    assert np.allclose(found.x_hat, sae.tensors["b_dec"])


def test_a_token_whose_features_hang_on_rounding_has_a_small_margin():
    sae = checkpoint.load(util.FILES / "schema5-topk.pt")
    h_x = sae.pre_activation(torch.from_numpy(X[:1]))
    (i, j) = h_x.topk(sae.header.top_k + 1).indices[0, -2:]
    sae.tensors["b_enc"][j] += (h_x[0, i] - h_x[0, j]) * (1 - 1e-6)
    margin = probe.of(sae, X).margin
    assert margin[0] < 1e-5 < margin[1:].min()


def test_a_probe_kept_for_one_checkpoint_is_not_read_for_another(tmp_path):
    fpath = tmp_path / "a.npz"
    found = probe.of(checkpoint.load(util.FILES / "schema5-relu.pt"), X)
    probe.write(found, "a" * 64, fpath)
    assert np.array_equal(probe.read(fpath, "a" * 64).x_hat, found.x_hat)
    with pytest.raises(UserError, match="of another checkpoint"):
        probe.read(fpath, "b" * 64)
    with pytest.raises(UserError, match="No such file"):
        probe.read(tmp_path / "b.npz", "a" * 64)


def test_preflight_probes_on_real_activations_where_the_shard_is_at_hand(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("SHARDS_ROOT", str(tmp_path / "shards"))
    settings.load()
    acts = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    (tmp_path / "shards/abc").mkdir(parents=True)
    np.save(tmp_path / "shards/abc/layer_6.npy", acts)
    measured = util.line(numbers="measured:abc")
    logged = util.line("bbbbbbbb", numbers="wandb", layer=7)
    gone = util.line("cccccccc", numbers="measured:gone", layer=8)
    for _ in range(2):
        preflight.leave_real_inputs([measured, logged, gone])
        dpath = preflight.probes_dpath(measured)
        x = probe.inputs(dpath, 6, 8)
        assert np.array_equal(x, acts[np.arange(8) * 100 // 8])
        assert not probe.is_random(x)
        assert all(probe.is_random(probe.inputs(dpath, layer, 8)) for layer in (7, 8))
        # The disk was cleaned: what was read of it stays.
        (tmp_path / "shards/abc/layer_6.npy").unlink(missing_ok=True)
