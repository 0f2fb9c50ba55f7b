"""A probe records what an SAE computes, so that a wrong loader shows."""

import numpy as np
import pytest
import torch

from kits import checkpoints as util
from saepub import checkpoint, settings
from saepub.checkpoint import bundle, probe, saev
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
    assert "than published, off by" in probe.difference(found, *wrong(fault, sae))


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
        preflight.store_real_inputs([measured, logged, gone])
        dpath = preflight.probes_dpath(measured)
        x = probe.inputs(dpath, 6, 8)
        assert np.array_equal(x, acts[np.arange(8) * 100 // 8])
        assert not probe.is_random(x)
        assert all(probe.is_random(probe.inputs(dpath, layer, 8)) for layer in (7, 8))
        # The disk was cleaned: what was read from it remains.
        (tmp_path / "shards/abc/layer_6.npy").unlink(missing_ok=True)


def probes(n_layers: int, n_runs: int, d_model: int) -> dict:
    """Probes of made-up SAEs; every other token of each layer depends on rounding."""
    rng, out = np.random.default_rng(0), {}
    for layer in range(n_layers):
        x = rng.standard_normal((8, d_model)).astype(np.float32)
        for i in range(n_runs):
            features = rng.integers(0, 99, (8, 8)).astype(np.int32)
            values = rng.random((8, 8)).astype(np.float32)
            margin = np.array([0, 1] * 4, np.float32)
            out[layer, f"run{i}"] = probe.Probe(x, features, values, x / 2, margin)
    return out


@pytest.mark.parametrize(
    ("n_layers", "n_runs", "d_model", "n_tokens"),
    ((6, 6, 1024, 4), (24, 6, 1024, 2), (32, 6, 4096, 1)),
)
def test_a_bundle_is_small_and_has_the_tokens_that_rounding_changes_least(
    tmp_path, n_layers, n_runs, d_model, n_tokens
):
    fpath, given = tmp_path / "check.npz", probes(n_layers, n_runs, d_model)
    bundle.write(fpath, given)
    assert fpath.stat().st_size < 2_000_000
    found, whole = bundle.read(fpath, 1, "run2"), given[1, "run2"]
    odd = [1, 3, 5, 7][:n_tokens]
    assert np.array_equal(found.x, whole.x[odd]) and len(odd) == bundle.n_tokens(given)
    assert np.array_equal(found.features, whole.features[odd])
    n_dims = found.x_hat.shape[1]
    assert np.array_equal(found.x_hat, whole.x_hat[odd][:, :n_dims])
    assert (n_dims == d_model) == (d_model < 4096) and n_dims > 100


def test_a_bundle_is_the_same_bytes_each_time_and_in_any_order(tmp_path):
    given = probes(2, 2, 64)
    bundle.write(tmp_path / "a", given)
    bundle.write(tmp_path / "b", dict(reversed(given.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(UserError, match="has nothing for run9"):
        bundle.read(tmp_path / "a", 1, "run9")


@pytest.mark.parametrize(
    ("remote", "url"),
    (
        ("git@code.example:lab/saev.git", "https://code.example/lab/saev"),
        ("ssh://git@code.example/lab/saev", "https://code.example/lab/saev"),
        (
            "https://me:secret@code.example/lab/saev.git",
            "https://code.example/lab/saev",
        ),
        ("https://code.example/a/b/saev/", "https://code.example/a/b/saev"),
        ("/home/me/saev", ""),
        ("../saev", ""),
        ('https://code.example/lab/saev"; rm -rf', ""),
    ),
)
def test_a_remote_is_told_to_readers_without_names_and_passwords(remote, url):
    assert saev.public_url(remote) == url
