"""The built-in reader reads what saev wrote, and does nothing that a hostile file says."""

import io
import os
import pickle
import random
import struct
import zlib

import pytest
import torch

from kits import checkpoints as util
from saepub import checkpoint
from saepub.cli import UserError

EXPECTED = util.EXPECTED["files"]
X = torch.tensor(util.EXPECTED["x"])
RELU = util.weights()


@pytest.fixture
def fpath(tmp_path):
    return tmp_path / "sae.pt"


def refusal(fpath) -> str:
    """Why the file is refused: one line that starts with its name."""
    with pytest.raises(UserError) as caught:
        checkpoint.load(fpath)
    text = str(caught.value)
    assert text.startswith(f"{fpath}: ")
    assert text.isprintable() and len(text) < 400
    return text.removeprefix(f"{fpath}: ")


# What saev wrote.


@pytest.mark.parametrize("name", [n for n in EXPECTED if "f_x" in EXPECTED[n]])
def test_real_file_computes_what_todays_saev_does(name):
    want = EXPECTED[name]
    sae = checkpoint.load(util.FILES / name)
    assert (sae.header.schema, sae.header.top_k) == (want["schema"], want["top_k"])
    assert (sae.header.d_model, sae.header.d_sae) == (want["d_model"], want["d_sae"])
    assert (
        sae.header.activation
        == {v: k for k, v in util.CLASSES.items()}[want["activation"]]
    )
    f_x = sae.encode(X)
    torch.testing.assert_close(f_x, torch.tensor(want["f_x"]), atol=1e-5, rtol=0)
    x_hat = sae.decode(f_x)
    torch.testing.assert_close(x_hat, torch.tensor(want["x_hat"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in EXPECTED if "f_x" not in EXPECTED[n]])
def test_batchtopk_from_before_its_threshold_is_refused(name):
    assert "no activation.threshold" in refusal(util.FILES / name)


@pytest.mark.parametrize(
    ("schema", "activation"),
    [
        (None, "relu"),
        *((schema, a) for schema in (1, "1b", 2, 3, 4, 5) for a in util.CLASSES),
    ],
)
def test_every_schema_gives_widths_activation_and_tensors(fpath, schema, activation):
    util.write(fpath, schema, d_model=4, d_sae=16, activation=activation, top_k=3)
    sae = checkpoint.load(fpath)
    header = sae.header
    assert header.schema == (1 if schema == "1b" else schema)
    assert (header.d_model, header.d_sae) == (4, 16)
    assert header.activation == activation
    assert header.top_k == (None if activation == "relu" else 3)
    assert header.normalize_w_dec
    assert (header.activation_config == {}) == (schema is None)
    for name, tensor in util.weights(4, 16, activation).items():
        assert torch.equal(sae.tensors[name], tensor)


def test_activation_config_is_as_the_header_has_it(fpath):
    util.write(fpath, 5, activation="top-k")
    config = util.header(5, activation="top-k")["cfg"]["activation"]
    assert checkpoint.load(fpath).header.activation_config == config


def test_saev_0_1_0_took_b_dec_from_x_first():
    sae = checkpoint.load(util.FILES / "v0-relu.pt")
    h_x = sae.pre_activation(X, subtract_b_dec=True)
    want = sae.pre_activation(X - sae.tensors["b_dec"])
    assert torch.equal(h_x, want) and not torch.allclose(h_x, sae.pre_activation(X))


def test_topk_keeps_the_largest_even_if_negative(fpath):
    util.write(fpath, activation="top-k", top_k=30)
    f_x = checkpoint.load(fpath).encode(X)
    assert (f_x != 0).sum(dim=1).tolist() == [30, 30, 30] and (f_x < 0).any()


def test_batchtopk_with_no_positive_threshold_is_relu(fpath):
    state = util.weights(activation="batch-top-k")
    state["activation.threshold"] = torch.tensor(-1.0)
    head = util.header(activation="batch-top-k")
    sae = checkpoint.load(util.write_raw(fpath, head, util.archive(state)))
    assert torch.equal(sae.encode(X), sae.pre_activation(X).relu())


def test_tensors_that_share_their_values_are_read(fpath):
    state = RELU | {"W_enc": RELU["W_dec"].T}
    body = util.archive(state)
    sae = checkpoint.load(util.write_raw(fpath, util.header(), body))
    assert torch.equal(sae.tensors["W_enc"], state["W_enc"])


# The file.


def test_file_is_read_from_disk_once(fpath):
    util.write(fpath, d_model=64, d_sae=8192)
    n_bytes = fpath.stat().st_size
    before = bytes_read()
    checkpoint.load(fpath)
    assert n_bytes <= bytes_read() - before < n_bytes + 10_000


def bytes_read() -> int:
    """How many bytes this process has read() so far, from anywhere."""
    with open("/proc/self/io") as fd:
        return int(fd.readline().split()[1])


def test_loader_sees_the_bytes_that_were_hashed(fpath):
    util.write(fpath)
    before = fpath.read_bytes()
    with checkpoint.File(fpath) as file:
        file.read()
        fpath.write_bytes(b"something else by now")
        with open(file.loader_fpath(), "rb") as fd:
            assert fd.read() == before
        assert file.difference("W_dec", RELU["W_dec"]) == ""


def test_memory_of_one_file_serves_the_next_and_no_two_at_once(tmp_path):
    sizes = {"large": 64, "small": 16, "again": 64, "largest": 128}
    for i, (name, d_sae) in enumerate(sizes.items()):
        util.write(tmp_path / name, d_sae=d_sae, seed=i)
    kept = {}
    for name in sizes:
        with checkpoint.File(tmp_path / name) as file:
            file.read()
            kept[name] = file.sae()
            with open(file.loader_fpath(), "rb") as fd:
                assert fd.read() == (tmp_path / name).read_bytes()
            with checkpoint.File(tmp_path / "large") as other:
                other.read()
                assert other.difference("W_dec", kept["large"].tensors["W_dec"]) == ""
            assert file.difference("W_dec", kept[name].tensors["W_dec"]) == ""
    for i, (name, d_sae) in enumerate(sizes.items()):
        expected = util.weights(d_sae=d_sae, seed=i)
        for key, tensor in kept[name].tensors.items():
            assert torch.equal(tensor, expected[key])


def test_difference_is_bit_for_bit_and_names_the_tensor(fpath):
    with checkpoint.File(util.write(fpath)) as file:
        file.read()
        for name, tensor in RELU.items():
            assert file.difference(name, tensor) == ""
            assert file.difference(name, tensor.clone().contiguous()) == ""
        b_enc = RELU["b_enc"].clone()
        b_enc[0] = -0.0
        assert torch.equal(b_enc, RELU["b_enc"])
        assert file.difference("b_enc", b_enc) == "b_enc differs in 1 of 32 values"
        assert "W_enc differs in 25" in file.difference("W_enc", RELU["W_dec"].T)
        assert "W_dec became (8, 32)" in file.difference("W_dec", RELU["W_dec"].T)
        assert "torch.float64" in file.difference("b_dec", RELU["b_dec"].double())


def test_what_is_no_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "missing.pt")
    assert "a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo.pt")
    assert "pipe, socket or device" in refusal(tmp_path / "fifo.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    assert "pipe, socket or device" in refusal(tmp_path / "zero.pt")
    (tmp_path / "empty.pt").touch()
    assert refusal(tmp_path / "empty.pt") == "an empty file"
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert "symbolic links" in refusal(tmp_path / "loop.pt")


def test_header_without_an_end_is_refused_unread(fpath):
    with open(fpath, "wb") as fd:
        fd.truncate(1 << 30)
    before = bytes_read()
    assert "no header line" in refusal(fpath)
    assert bytes_read() - before < 2 << 20


def test_file_much_larger_than_its_sae_is_refused_unread(fpath):
    util.write(fpath)
    with open(fpath, "r+b") as fd:
        fd.truncate(1 << 36)
    before = bytes_read()
    assert "68.7 GB, but an SAE of 8 by 32 has" in refusal(fpath)
    assert bytes_read() - before < 2 << 20


# The header.


def with_cfg(**changes) -> dict:
    head = util.header(5, activation="top-k")
    head["cfg"] |= changes
    return head


def with_activation(**changes) -> dict:
    head = util.header(5, activation="top-k")
    head["cfg"]["activation"]["params"] |= changes
    return head


def with_loss(name: str, cls: str, **params) -> dict:
    return with_activation(**{name: {"cls": cls, "params": params}})


def nested(depth: int = 500) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"\n", "not JSON"),
        (b"\xff\xfe{}\n", "not JSON"),
        (b"[1, 2]\n", "not a JSON object"),
        (b"[" * 500_000 + b"\n", "nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", "nested too deep"),
        (b'{"schema": 5, "schema": 4}\n', "a key twice"),
        (b'{"schema": NaN}\n', "NaN"),
        (b'{"seed": 1e999}\n', "1e999, which no float holds"),
        (b'{"d_vit": ' + b"9" * 100_000 + b', "exp_factor": 4}\n', "not JSON"),
        (b'{"d_vit": ' + b"9" * 4000 + b', "exp_factor": 4}\n', "are impossible"),
        (b'{"d_vit": 8, "exp_factor": true}\n', "are impossible"),
        (b'{"d_vit": 8}\n', "either d_sae or exp_factor"),
        ({}, "either d_model or d_vit"),
        (util.header(None) | {"rm -rf": 1}, '"rm -rf", which saev doesn\'t know'),
        (util.header(5) | {"schema": 6}, "schema 6 is not one that saev writes"),
        (util.header(5) | {"schema": None}, "schema null is not"),
        (util.header(5) | {"schema": True}, "schema true is not"),
        (util.header(5) | {"schema": {"a": 1}}, "is not one that saev writes"),
        (util.header(5) | {"cfg": 5}, 'no "cfg"'),
        (with_cfg(d_model=-8), "are impossible"),
        (with_cfg(d_model="8"), "are impossible"),
        (with_cfg(exp_factor=4), "either d_sae or exp_factor"),
        (with_cfg(d_vit=8), '"d_vit", which saev doesn\'t know'),
        (with_cfg(normalize_w_dec="no"), "normalize_w_dec"),
        (with_cfg(activation=None), 'no "activation"'),
        (with_cfg(activation={"cls": "os.system", "params": {}}), '"os.system" is not'),
        (with_cfg(activation={"cls": ["TopK"], "params": {}}), "is not one of"),
        (with_activation(top_k=0), "top_k is 0"),
        (with_activation(top_k=2**60), "top_k is"),
        (with_activation(momentum=0.1), '"momentum", which saev refuses'),
        (with_activation(kind="top-k"), '"kind", which saev refuses'),
        (with_activation(key="relu"), 'the key "relu"'),
        (b'{"seed": ' + b"[" * 900 + b"]" * 900 + b"}\n", "nested too deep"),
        (with_cfg(seed=nested(100)), "nested too deep"),
        (util.header(5) | {"extra": nested(100)}, "nested too deep"),
        (with_activation(aux=nested(100)), "nested too deep"),
        (with_cfg(seed=[0]), "its header's seed is [0], not a single value"),
        (with_activation(sparsity=5), "its sparsity is 5, not an object"),
        (with_activation(sparsity={}), "its sparsity null is not one of NoSparsity"),
        (with_loss("sparsity", "AuxK"), 'its sparsity "AuxK" is not one of'),
        (with_loss("aux", "os.system"), 'its aux "os.system" is not one of'),
        (with_loss("aux", "AuxK", k=5), 'its aux AuxK has "k", which saev refuses'),
        (with_loss("aux", "AuxK", k_aux=0), "k_aux is 0"),
        (with_loss("aux", "AuxK", k_aux=2**60), "k_aux is"),
        (with_loss("aux", "AuxK", alpha="1"), 'AuxK\'s alpha is "1", not a number'),
        (with_loss("aux", "AuxK", alpha=2**60), "AuxK's alpha is"),
        (with_loss("aux", "NoAux", key="auxk"), 'its aux NoAux has the key "auxk"'),
        (with_loss("sparsity", "L1Sparsity", coeff=True), "L1Sparsity's coeff is true"),
    ],
)
def test_header_that_saev_did_not_write_is_refused(fpath, head, why):
    util.write_raw(fpath, head, util.archive(RELU))
    assert why in refusal(fpath)


@pytest.mark.parametrize(
    ("head", "aux"),
    [
        (util.header(5, activation="top-k"), None),  # its first two weeks
        (with_loss("aux", "AuxK"), "auxk"),
        (util.header(4), None),
        (util.header(None), None),
        (with_loss("aux", "NoAux"), "no-aux"),
        (with_loss("aux", "AuxK", kind="auxk", k_aux=64, alpha=0.5), "auxk"),
    ],
)
def test_header_names_its_auxiliary_loss(fpath, head, aux):
    with checkpoint.File(util.write_raw(fpath, head, util.archive(RELU))) as file:
        assert file.header.aux == aux


@pytest.mark.parametrize("sparsity", [{}, {"coeff": 4e-4}])
def test_sparsity_before_schema_5_is_bare(fpath, sparsity):
    head = util.header(4)
    head["cfg"]["activation"]["params"] |= {"sparsity": sparsity}
    checkpoint.load(util.write_raw(fpath, head, util.archive(RELU)))


# The archive.


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncated_file_is_refused(fpath, sixteenth):
    whole = util.write(fpath).read_bytes()
    fpath.write_bytes(whole[: len(whole) * sixteenth // 16])
    assert refusal(fpath)


def test_flipped_bit_is_refused_or_changes_no_tensor(fpath):
    whole = util.write(fpath, d_model=4, d_sae=8).read_bytes()
    state, rng = util.weights(4, 8), random.Random(0)
    n_header = whole.index(b"\n") + 1
    for at in range(n_header, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        fpath.write_bytes(damaged)
        try:
            sae = checkpoint.load(fpath)
        except UserError as err:
            assert str(err).startswith(f"{fpath}: ")
            continue
        for name, tensor in state.items():
            assert torch.equal(sae.tensors[name], tensor), at


def test_flipped_byte_in_any_tensor_is_refused(fpath):
    whole = util.write(fpath).read_bytes()
    for name, tensor in RELU.items():
        values = tensor.T if name == "W_enc" else tensor  # as it is stored
        data = values.contiguous().numpy().tobytes()
        start = whole.index(data)
        for at in range(start, start + len(data), 5):
            damaged = bytearray(whole)
            damaged[at] ^= 0xFF
            fpath.write_bytes(damaged)
            assert "does not match its checksum" in refusal(fpath)


def test_zip_bomb_is_refused(fpath):
    body = util.rezip(
        util.archive(RELU),
        lambda m: m | {"archive/data/0": bytes(1 << 20)},
        deflate=True,
    )
    util.write_raw(fpath, util.header(), body)
    assert "is compressed, which torch never does" in refusal(fpath)


def patched_pickle(edit) -> bytes:
    """A valid archive, except for its pickle."""

    def change(members):
        return members | {"archive/data.pkl": edit(members["archive/data.pkl"])}

    return util.rezip(util.archive(RELU), change)


def test_untouched_archive_of_another_writer_is_read(fpath):
    util.write_raw(fpath, util.header(), patched_pickle(lambda p: p))
    assert torch.equal(checkpoint.load(fpath).tensors["W_enc"], RELU["W_enc"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("archive/code/evil.py", "which torch.save never writes"),
        ("archive/data/99", "which no tensor uses"),
        ("archive/../../etc/passwd", "a member named"),
        ("elsewhere/data/9", "besides archive/"),
        ("archive/dätä", "a member named"),
        ("archive/.note", "over the limit of 1024"),
        ("archive/data.pklx", "which torch.save never writes"),
    ],
)
def test_archive_with_anything_else_in_it_is_refused(fpath, name, why):
    body = util.rezip(util.archive(RELU), lambda m: m | {name: b"x" * 2000})
    util.write_raw(fpath, util.header(), body)
    assert why in refusal(fpath)


def test_archive_with_far_too_many_members_is_refused(fpath):
    many = {f"archive/data/{i}": b"" for i in range(9000)}
    body = util.rezip(util.archive(RELU), lambda m: m | many)
    util.write_raw(fpath, util.header(), body)
    assert "members; torch writes 1 to 32" in refusal(fpath)


def test_bytes_hidden_in_the_archive_are_refused(fpath):
    body = util.archive(RELU)
    util.write_raw(fpath, util.header(), body + b"more")
    assert "truncated" in refusal(fpath)
    util.write_raw(fpath, util.header(), b"hidden" + body)
    assert "end record is damaged" in refusal(fpath)
    # A complete second archive in front, with the offsets of the last one corrected.
    one, gap = util.rezip(body), b"hidden" * 100
    end = one.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<L", one, end + 16)[0]
    moved = struct.pack("<L", start + len(gap))
    shifted = one[:start] + gap + one[start : end + 16] + moved + one[end + 20 :]
    util.write_raw(fpath, util.header(), shifted)
    assert "after the last member" in refusal(fpath)


def test_archives_end_records_must_agree(fpath):
    body = bytearray(util.archive(RELU))
    body[body.rindex(b"PK\x05\x06") + 16] ^= 1
    util.write_raw(fpath, util.header(), bytes(body))
    assert "two end records disagree" in refusal(fpath)


def test_archive_of_torch_before_1_6_is_refused(fpath):
    buffer = io.BytesIO()
    torch.save(RELU, buffer, _use_new_zipfile_serialization=False)
    util.write_raw(fpath, util.header(), buffer.getvalue())
    assert "not an archive of torch 1.6 or later" in refusal(fpath)


# The pickle.


class Runs:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_pickle_that_would_run_code_runs_nothing(fpath, tmp_path, protocol):
    mark = tmp_path / "ran"
    evil = Runs(os.system, f"touch {mark}")
    for state in (evil, {"W_enc": evil}, [evil]):
        body = patched_pickle(lambda _, state=state: pickle.dumps(state, protocol))
        util.write_raw(fpath, util.header(), body)
        why = refusal(fpath)
        assert "would run" in why or "which no state dict needs" in why
        assert not mark.exists()
    evil = Runs(eval, f"open({str(mark)!r}, 'w')")
    util.write_raw(fpath, util.header(), util.archive(RELU | {"b_dec": evil}))
    assert "would run '__builtin__ eval'" in refusal(fpath)
    assert not mark.exists()


def long1(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"K\x20K\x08\x86", long1(2**60) + b"K\x08\x86", "a tensor of shape (11529"),
        (b"K\x20K\x08\x86", long1(2**60) * 2 + b"\x86", "a tensor of shape (11529"),
        (b"K\x20K\x08\x86", b"K\x08K\x20\x86", "but the header says"),
        (b"M\x00\x01", long1(2**60), "over 11529"),
        (b"K\x08K\x01\x86", b"K\x00K\x00\x86", "has strides (0, 0)"),
        (b"K\x08K\x01\x86", b"K\x01K\x01\x86", "has strides (1, 1)"),
        (b"K\x08K\x01\x86", b"K\x08K\x01\x87", "pickle is damaged"),
        (b"QK\x00", b"QK\x04", "part of another"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007", "its member has 0"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00elsewhr", "something other"),
        (b"FloatStorage", b"HalfStorage", "Half values, not float32"),
        (b"q\x00", b"r\xff\xff\xff\x7f", "memo index is out of bounds"),
        (b"cpu", b"c\xff\xff", "pickle is damaged"),
    ],
)
def test_pickle_that_claims_what_is_not_there_is_refused(fpath, old, new, why):
    def edit(text):
        assert old in text
        return text.replace(old, new, 1)

    util.write_raw(fpath, util.header(), patched_pickle(edit))
    assert why in refusal(fpath)


def test_pickle_nested_too_deep_is_refused(fpath):
    for opcode in (b"\x85", b"("):
        body = patched_pickle(lambda _, o=opcode: b"\x80\x02}" + o * 100_000 + b".")
        util.write_raw(fpath, util.header(), body)
        assert "over the limit of 8192" in refusal(fpath)
        body = patched_pickle(lambda _, o=opcode: b"\x80\x02}N" + o * 8000 + b"Ks.")
        util.write_raw(fpath, util.header(), body)
        assert refusal(fpath)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({n: RELU[n] for n in ("W_enc", "b_enc", "W_dec")}, "no b_dec in its weights"),
        (RELU | {"extra": torch.ones(3)}, "an unknown tensor extra"),
        (RELU | {"x\n\x1b[2J": torch.ones(3)}, "an unknown tensor x"),
        (
            RELU | {"b_dec": torch.zeros(9)},
            "b_dec has shape (9,), but the header says (8,)",
        ),
        (RELU | {"b_dec": RELU["b_dec"].half()}, "Half values, not float32"),
        (RELU | {"b_dec": RELU["b_dec"].double()}, "Double values, not float32"),
        (RELU | {"b_dec": torch.ones(1).expand(8)}, "over 1 values"),
        (RELU | {"b_dec": torch.zeros(16)[4:12]}, "part of another"),
        (RELU | {"b_dec": torch.full((8,), torch.nan)}, "b_dec has NaN or infinite"),
        (RELU | {"W_dec": RELU["W_dec"] / 0}, "W_dec has NaN or infinite"),
        (RELU | {"b_dec": 5}, "something other than named tensors"),
        (RELU | {5: torch.ones(1)}, "something other than named tensors"),
        (list(RELU.values()), "no state dict"),
        (torch.ones(3), "no state dict"),
        ({}, "in its weights"),
    ],
)
def test_weights_that_are_not_the_headers_are_refused(fpath, state, why):
    util.write_raw(fpath, util.header(), util.archive(state))
    found = refusal(fpath)
    assert why in found or (state and "EMPTY_LIST" in found)


def test_crc_is_that_of_the_bytes_not_of_the_local_header(fpath):
    whole = bytearray(util.write(fpath).read_bytes())
    data = RELU["b_dec"].numpy().tobytes()
    start = whole.index(data)
    whole[start : start + 4] = struct.pack("<f", 3.0)
    # Correcting the descriptor but not the directory gets an attacker nowhere.
    descriptor = whole.index(b"PK\x07\x08", start)
    crc = zlib.crc32(whole[start : start + len(data)])
    whole[descriptor + 4 : descriptor + 8] = struct.pack("<L", crc)
    fpath.write_bytes(whole)
    assert "does not match its checksum" in refusal(fpath)
