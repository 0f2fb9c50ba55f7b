"""The loopback Hub, asked by the real client over both transports."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from kits import hub as hub_kit
from kits.hub import TRANSPORTS, Client, ClientError, Fault
from loopback_hub import InUse, LoopbackHub, collection_api, repos, uploads, xet

pytestmark = pytest.mark.programs

REPO = "osunlp/model"
WRITER, READER, STRANGER, SCOPED = "hf_writer", "hf_reader", "hf_stranger", "hf_scoped"
TOKENS = {
    WRITER: {"name": "sam", "orgs": ["osunlp"], "role": "write"},
    READER: {"name": "sam", "orgs": ["osunlp"], "role": "read"},
    STRANGER: {"name": "eve", "orgs": [], "role": "write"},
    SCOPED: {
        "name": "sam",
        "orgs": ["osunlp"],
        "role": "fineGrained",
        "scoped": {"osunlp": ["repo.write"]},
    },
}
CARD = "---\nlicense: mit\ntags:\n- sparse-autoencoder\n---\n# A model\n"
SAE_V = "67ab8c4fdf179d117db28195"


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub", tokens=TOKENS) as hub:
        yield hub
    assert hub.errors == []


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The real client, a process for each transport."""
    clients = {t: Client(tmp_path_factory.mktemp(t), t) for t in TRANSPORTS}
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def lfs(clients, hub):
    return clients["lfs"].use(hub, WRITER)


@pytest.fixture(params=TRANSPORTS)
def client(request, clients, hub):
    return clients[request.param].use(hub, WRITER)


@pytest.fixture
def stage(tmp_path):
    """A folder like a release's stage: nested, with one checkpoint as a symlink."""
    dpath = tmp_path / "stage"
    rng = random.Random(0)
    for layer, n_bytes in ((6, 300_000), (7, 200_001)):
        fpath = dpath / f"layer_{layer}" / "3zih0tpa" / "sae.pt"
        fpath.parent.mkdir(parents=True)
        fpath.write_bytes(rng.randbytes(n_bytes))
    source = tmp_path / "source.pt"
    (dpath / "layer_7/3zih0tpa/sae.pt").rename(source)
    (dpath / "layer_7/3zih0tpa/sae.pt").symlink_to(source)
    (dpath / "README.md").write_text(CARD)
    (dpath / "manifest.jsonl").write_text("{}\n")
    (dpath / "pareto plot.png").write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(900))
    (dpath / "empty.pt").touch()
    return dpath


def push(client, stage, **kwargs) -> str:
    client.create_repo(repo_id=REPO, exist_ok=True)
    return client.upload_folder(
        repo_id=REPO, folder_path=str(stage), commit_message="Release", **kwargs
    )["oid"]


def content(stage: pathlib.Path) -> dict[str, tuple[int, str]]:
    files = (f for f in stage.rglob("*") if f.is_file())
    return {
        str(f.relative_to(stage)): (f.stat().st_size, sha256(f.read_bytes()))
        for f in files
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kinds(hub) -> list[str]:
    return [kind for _, kind in hub.requests]


def refused(call, **kwargs) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(**kwargs)
    return caught.value


def ask(hub, method: str, path: str, body: bytes = b"", token: str = WRITER, **headers):
    """A request without the client, for what no client would send: status and answer."""
    conn = http.client.HTTPConnection(*hub._server.server_address)
    headers = {"Authorization": f"Bearer {token}"} | headers
    conn.request(method, path.removeprefix(hub.endpoint), body, headers)
    response = conn.getresponse()
    data = response.read()
    conn.close()
    if response.headers.get_content_type() == "application/json" and data:
        data = json.loads(data)
    return response.status, data


def post_commit(hub, *operations: tuple[str, dict], **header):
    header = {"summary": "By hand"} | header
    items = (("header", header), *operations)
    body = "".join(json.dumps({"key": k, "value": v}) + "\n" for k, v in items)
    return ask(hub, "POST", f"/api/models/{REPO}/commit/main", body.encode())


def regular(path: str, data: bytes) -> tuple[str, dict]:
    text = base64.b64encode(data).decode()
    return "file", {"path": path, "content": text, "encoding": "base64"}


def lfs_file(path: str, data: bytes) -> tuple[str, dict]:
    value = {"path": path, "algo": "sha256", "oid": sha256(data), "size": len(data)}
    return "lfsFile", value


def lfs_upload_url(hub, data: bytes) -> str:
    body = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "hash_algo": "sha256",
        "objects": [{"oid": sha256(data), "size": len(data)}],
    }
    path = f"/{REPO}.git/info/lfs/objects/batch"
    _, answer = ask(hub, "POST", path, json.dumps(body).encode())
    return answer["objects"][0]["actions"]["upload"]["href"]


# Uploads


def test_new_repo_has_the_initial_commit(hub, lfs):
    lfs.create_repo(repo_id=REPO)
    (commit,) = hub.commits(REPO)
    assert commit["title"] == "initial commit"
    assert list(commit["files"]) == [".gitattributes"]
    assert b"*.pt filter=lfs" in hub.read(REPO, ".gitattributes")


def test_existing_repo_is_taken_with_exist_ok_only(hub, lfs):
    lfs.create_repo(repo_id=REPO)
    assert lfs.create_repo(repo_id=REPO, exist_ok=True)["repo_id"] == REPO
    assert refused(lfs.create_repo, repo_id=REPO).status == 409
    assert len(hub.commits(REPO)) == 1


def test_folder_lands_in_one_commit(hub, client, stage):
    oid = push(client, stage)
    assert [c["title"] for c in hub.commits(REPO)] == ["Release", "initial commit"]
    assert hub.commits(REPO)[0]["id"] == oid
    files = hub.files(REPO)
    del files[".gitattributes"]
    assert files == content(stage)
    by_lfs = {p for p, f in hub.commits(REPO)[0]["files"].items() if f["lfs"]}
    checkpoints = {"layer_6/3zih0tpa/sae.pt", "layer_7/3zih0tpa/sae.pt"}
    assert by_lfs == checkpoints | {"pareto plot.png"}


def test_lfs_file_that_no_pattern_names_is_added_to_gitattributes(hub, lfs, stage):
    push(lfs, stage)
    *_, last = hub.read(REPO, ".gitattributes").decode().splitlines()
    assert last == "pareto[[:space:]]plot.png filter=lfs diff=lfs merge=lfs -text"


def test_second_push_sends_nothing_and_commits_nothing(hub, client, stage):
    oid = push(client, stage)
    n_bytes = hub.bytes_received
    assert n_bytes > 500_000
    hub.requests.clear()
    assert push(client, stage) == oid
    assert hub.bytes_received == n_bytes
    assert len(hub.commits(REPO)) == 2
    assert not {"commit", "lfs_put"} & set(kinds(hub))


def test_changed_file_goes_up_alone(hub, client, stage):
    push(client, stage)
    n_bytes = hub.bytes_received
    (stage / "README.md").write_text(CARD + "More.\n")
    (stage / "manifest.jsonl").unlink()
    push(client, stage)
    assert hub.bytes_received - n_bytes < 2_000
    assert hub.read(REPO, "README.md").endswith(b"More.\n")
    assert "manifest.jsonl" in hub.files(REPO)


def test_deletion_rides_along(hub, client, stage):
    push(client, stage)
    (stage / "manifest.jsonl").unlink()
    push(client, stage, delete_patterns="*")
    assert set(hub.files(REPO)) - {".gitattributes"} == set(content(stage))
    assert len(hub.commits(REPO)) == 3


def test_stale_parent_commit_is_a_conflict(hub, client, stage):
    client.create_repo(repo_id=REPO)
    parent = hub.commits(REPO)[0]["id"]
    push(client, stage, parent_commit=parent)
    (stage / "README.md").write_text(CARD + "More.\n")
    err = refused(push, client=client, stage=stage, parent_commit=parent)
    assert err.status == 412
    assert "A commit has happened since" in err.message
    assert len(hub.commits(REPO)) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_upload_is_finished_by_the_next(hub, tmp_path, stage, transport):
    (stage / "layer_6/3zih0tpa/sae.pt").write_bytes(os.urandom(40_000_000))
    hub.faults.append(
        Fault("commit", drop="before", times=1000)
    )  # However fast the upload is.
    victim = Client(tmp_path / "victim", transport).use(hub, WRITER)
    victim.create_repo(repo_id=REPO)
    victim.start("upload_folder", repo_id=REPO, folder_path=str(stage))
    while hub.bytes_received < 5_000_000:
        assert victim.process.poll() is None
        time.sleep(0.001)
    victim.kill()
    hub.faults.clear()
    assert len(hub.commits(REPO)) == 1

    heir = Client(tmp_path / "heir", transport).use(hub, WRITER)
    push(heir, stage)
    heir.close()
    files = hub.files(REPO)
    del files[".gitattributes"]
    assert files == content(stage)
    assert len(hub.commits(REPO)) == 2


def test_main_is_a_tree_to_look_at(hub, client, stage):
    push(client, stage)
    main = hub.store.repos[REPO].dpath / "main"
    assert content(main) == hub.files(REPO)


# Downloads


@pytest.mark.parametrize("reader", TRANSPORTS)
def test_download_at_a_commit_by_either_transport(
    hub, clients, client, reader, stage, tmp_path
):
    oid = push(client, stage)
    expected = content(stage)
    (stage / "layer_6/3zih0tpa/sae.pt").write_bytes(b"another")
    push(client, stage)
    by = clients[reader].use(hub, READER)
    for path in ("layer_6/3zih0tpa/sae.pt", "layer_7/3zih0tpa/sae.pt", "README.md"):
        fpath = by.hf_hub_download(
            repo_id=REPO, filename=path, revision=oid, cache_dir=str(tmp_path / "cache")
        )
        assert sha256(pathlib.Path(fpath).read_bytes()) == expected[path][1]
    by_chunks = client.transport == reader == "xet"
    assert ("xet_token" in kinds(hub)[-7:]) == by_chunks


def test_reader_does_not_wait_for_a_writer(hub, clients, stage, tmp_path):
    writer = clients["xet"].use(hub, WRITER)
    push(writer, stage)
    (stage / "layer_6/3zih0tpa/sae.pt").write_bytes(os.urandom(100_000))
    fault = Fault("commit", stall=True)
    hub.faults.append(fault)
    hub.requests.clear()
    # Until its commit is answered, the writer has the chunk store's lock.
    writer.start("upload_folder", repo_id=REPO, folder_path=str(stage))
    while "commit" not in kinds(hub):
        assert writer.process.poll() is None
    reader = Client(tmp_path / "reader", "xet").use(hub, READER)
    path = "layer_7/3zih0tpa/sae.pt"
    fpath = reader.hf_hub_download(repo_id=REPO, filename=path)
    assert sha256(pathlib.Path(fpath).read_bytes()) == content(stage)[path][1]
    reader.close()
    fault.release.set()
    writer.finish()
    assert len(hub.commits(REPO)) == 3


def test_snapshot_download_has_every_file(hub, client, stage, tmp_path):
    push(client, stage)
    dpath = client.snapshot_download(repo_id=REPO, cache_dir=str(tmp_path / "cache"))
    assert content(pathlib.Path(dpath)) == hub.files(REPO)


def test_range_is_answered_in_part(hub, lfs, stage):
    push(lfs, stage)
    path = f"/{REPO}/resolve/main/manifest.jsonl"
    assert ask(hub, "GET", path, Range="bytes=1-") == (206, b"}\n")
    assert ask(hub, "GET", path, Range="bytes=0-0") == (206, b"{")
    assert ask(hub, "GET", path, Range="bytes=-1") == (206, b"\n")
    assert ask(hub, "GET", path, Range="bytes=3-")[0] == 416


def test_tree_has_sizes_and_hashes(hub, client, stage):
    oid = push(client, stage)
    tree = client.list_repo_tree(repo_id=REPO, recursive=True, revision=oid)
    files = {f["path"]: f for f in tree if "blob_id" in f}
    assert {p: f["size"] for p, f in files.items()} == {
        p: size for p, (size, _) in hub.files(REPO).items()
    }
    for path, (size, digest) in content(stage).items():
        lfs = files[path]["lfs"]
        if lfs is not None:
            assert (lfs["size"], lfs["sha256"]) == (size, digest)
        else:
            data = (stage / path).read_bytes()
            git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            assert files[path]["blob_id"] == git_id
    by_chunks = {p for p, f in files.items() if f["xet_hash"] is not None}
    assert len(by_chunks) == (3 if client.transport == "xet" else 0)
    folders = {f["path"] for f in tree if "tree_id" in f}
    assert {"layer_6", "layer_6/3zih0tpa"} <= folders


def test_tree_of_a_folder_and_without_recursion(hub, lfs, stage):
    push(lfs, stage)
    top = [f["path"] for f in lfs.list_repo_tree(repo_id=REPO)]
    assert "layer_6" in top
    assert not any("/" in path for path in top)
    under = lfs.list_repo_tree(repo_id=REPO, path_in_repo="layer_6", recursive=True)
    assert [f["path"] for f in under] == ["layer_6/3zih0tpa", "layer_6/3zih0tpa/sae.pt"]


def test_tree_comes_in_pages(hub, lfs, stage, monkeypatch):
    push(lfs, stage)
    monkeypatch.setattr(repos, "N_FILES_PER_PAGE", 4)
    hub.requests.clear()
    tree = lfs.list_repo_tree(repo_id=REPO, recursive=True)
    assert kinds(hub) == ["tree"] * 3
    assert len(tree) == 11 and {f["path"] for f in tree} > set(hub.files(REPO))


def test_info_and_commits(hub, lfs, stage):
    oid = push(lfs, stage)
    info = lfs.model_info(repo_id=REPO, files_metadata=True)
    assert info["sha"] == oid
    assert {s["rfilename"] for s in info["siblings"]} == set(hub.files(REPO))
    titles = [c["title"] for c in lfs.list_repo_commits(repo_id=REPO)]
    assert titles == ["Release", "initial commit"]


# Who may do what


def test_whoami_tells_name_orgs_and_role(hub, lfs):
    me = lfs.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("sam", ["osunlp"])
    assert me["auth"]["accessToken"]["role"] == "write"
    assert lfs.use(hub, READER).whoami()["auth"]["accessToken"]["role"] == "read"
    scoped = lfs.use(hub, SCOPED).whoami()["auth"]["accessToken"]["fineGrained"][
        "scoped"
    ]
    assert scoped[0]["entity"]["name"] == "osunlp"
    assert scoped[0]["permissions"] == ["repo.write"]


def test_wrong_token_is_refused_everywhere(hub, lfs, stage):
    push(lfs, stage)
    lfs.use(hub, "hf_wrong")
    for call, kwargs in (
        (lfs.whoami, {}),
        (lfs.create_repo, {"repo_id": "osunlp/other"}),
        (lfs.model_info, {"repo_id": REPO}),
        (lfs.upload_folder, {"repo_id": REPO, "folder_path": str(stage)}),
        (lfs.create_collection, {"title": "T", "namespace": "osunlp"}),
    ):
        err = refused(call, **kwargs)
        assert err.status == 401
        assert "RepositoryNotFoundError" not in err.names


@pytest.mark.parametrize("token", [READER, STRANGER, False])
def test_only_a_token_with_the_right_writes(hub, client, stage, token):
    client.create_repo(repo_id=REPO)
    client.use(hub, token)
    status = 401 if token is False else 403
    assert refused(client.create_repo, repo_id="osunlp/other").status == status
    folder = str(stage)
    assert (
        refused(client.upload_folder, repo_id=REPO, folder_path=folder).status == status
    )
    assert refused(client.auth_check, repo_id=REPO, write=True).status == status
    assert len(hub.commits(REPO)) == 1


def test_public_repo_needs_no_token_to_read(hub, lfs, stage, tmp_path):
    push(lfs, stage)
    lfs.use(hub, False)
    assert lfs.model_info(repo_id=REPO)["private"] is False
    cache = str(tmp_path / "cache")
    lfs.hf_hub_download(repo_id=REPO, filename="README.md", cache_dir=cache)


@pytest.mark.parametrize("token", [STRANGER, False])
def test_private_repo_is_unknown_to_a_stranger(hub, lfs, token):
    lfs.create_repo(repo_id=REPO, private=True)
    assert lfs.model_info(repo_id=REPO)["private"] is True
    lfs.use(hub, token)
    for repo_id in (REPO, "osunlp/never-made"):
        err = refused(lfs.model_info, repo_id=repo_id)
        assert err.names[0] == "RepositoryNotFoundError"
    assert lfs.repo_exists(repo_id=REPO) is False


def test_what_is_missing_has_its_own_error(hub, lfs, stage, tmp_path):
    push(lfs, stage)
    err = refused(lfs.model_info, repo_id=REPO, revision="v9")
    assert err.names[0] == "RevisionNotFoundError"
    err = refused(
        lfs.hf_hub_download,
        repo_id=REPO,
        filename="nothing.pt",
        cache_dir=str(tmp_path / "cache"),
    )
    assert "EntryNotFoundError" in err.names
    err = refused(
        lfs.upload_folder, repo_id="osunlp/never-made", folder_path=str(stage)
    )
    assert err.names[0] == "RepositoryNotFoundError"


@pytest.mark.parametrize(
    "name", ["a--b", "a..b", ".a", "a-", "a.git", "a b", "a" * 96, ""]
)
def test_bad_repo_name_is_refused(hub, name):
    body = json.dumps({"name": name, "organization": "osunlp"}).encode()
    assert ask(hub, "POST", "/api/repos/create", body)[0] == 400
    assert hub.store.repos == {}


# Content that is not what it claims to be


def test_put_with_another_sha256_or_size_is_refused(hub, lfs):
    lfs.create_repo(repo_id=REPO)
    data = b"x" * 1000
    url = lfs_upload_url(hub, data)
    assert ask(hub, "PUT", url, b"y" * 1000)[0] == 400
    assert ask(hub, "PUT", url, data[:-1])[0] == 400
    assert ask(hub, "PUT", url[:-1] + "!", data)[0] == 403
    assert post_commit(hub, lfs_file("a.pt", data))[0] == 400
    assert ask(hub, "PUT", url, data)[0] == 200
    assert post_commit(hub, lfs_file("a.pt", data))[0] == 200
    assert hub.read(REPO, "a.pt") == data


def test_commit_of_an_object_that_was_never_sent_is_refused(hub, lfs):
    lfs.create_repo(repo_id=REPO)
    status, answer = post_commit(hub, lfs_file("a.pt", b"never sent"))
    assert (status, "does not exist: a.pt" in answer["error"]) == (400, True)
    assert len(hub.commits(REPO)) == 1


def test_object_of_another_repo_does_not_count(hub, lfs, stage):
    push(lfs, stage)
    data = (stage / "layer_6/3zih0tpa/sae.pt").read_bytes()
    lfs.create_repo(repo_id="osunlp/other")
    operations = json.dumps({"key": "header", "value": {"summary": "s"}}) + "\n"
    key, value = lfs_file("a.pt", data)
    operations += json.dumps({"key": key, "value": value})
    path = "/api/models/osunlp/other/commit/main"
    assert ask(hub, "POST", path, operations.encode())[0] == 400


def test_chunks_that_make_another_file_are_refused(hub, clients, tmp_path):
    client = clients["xet"].use(hub, WRITER)
    client.create_repo(repo_id=REPO)
    fpath = tmp_path / "a.pt"
    fpath.write_bytes(os.urandom(100_000))
    claimed = os.urandom(100_000)
    client.upload_with_sha256(repo_id=REPO, fpath=str(fpath), sha256=sha256(claimed))
    assert hub.store.repos[REPO].xet.find(sha256(claimed)) is not None
    assert post_commit(hub, lfs_file("a.pt", claimed))[0] == 400
    assert len(hub.commits(REPO)) == 1


def test_chunks_that_were_lost_are_refused(hub, clients, stage):
    client = clients["xet"].use(hub, WRITER)
    push(client, stage)
    repo = hub.store.repos[REPO]
    data = (stage / "layer_6/3zih0tpa/sae.pt").read_bytes()
    # As if only the shard of an upload had arrived.
    for fpath in repo.xet.dpath.rglob("xorbs/default.*"):
        fpath.unlink()
    repo.object_fpath(sha256(data)).unlink()
    repo.commits[-1]["files"] = {}
    assert post_commit(hub, lfs_file("a.pt", data))[0] == 400


def test_shard_pairs_the_hashes(hub, clients, stage):
    client = clients["xet"].use(hub, WRITER)
    push(client, stage)
    repo = hub.store.repos[REPO]
    (shard,) = repo.xet.dpath.rglob("shards/*.mdb")
    pairs = {p.sha256: p for p in xet.read_shard(shard)}
    expected = content(stage)
    for path, entry in repo.head["files"].items():
        if entry["lfs"]:
            size, digest = expected[path]
            assert pairs[digest] == (digest, entry["xet_hash"], size)
    cut = shard.with_name("cut.mdb")
    cut.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(struct.error):
        xet.read_shard(cut)


@pytest.mark.parametrize(
    "operations",
    [
        [regular("../a", b"x")],
        [regular("a//b", b"x")],
        [regular(".git/config", b"x")],
        [regular("a\nb", b"x")],
        [regular("a", b"x"), regular("a/b", b"x")],
        [regular("big.txt", b"x" * (uploads.MAX_REGULAR + 1))],
        [regular("README.md", b"---\nlicense: [\n---\n")],
        [("deletedFile", {"path": "nothing"})],
        [("rename", {"path": "a"})],
    ],
)
def test_bad_operation_fails_the_whole_commit(hub, lfs, operations):
    lfs.create_repo(repo_id=REPO)
    before = hub.files(REPO)
    status, _ = post_commit(hub, regular("good.txt", b"good"), *operations)
    assert status in (400, 404)
    assert hub.files(REPO) == before


def test_card_with_bad_metadata_is_refused_before_any_upload(hub, client, stage):
    (stage / "README.md").write_text("---\ntags: yes please\n---\n")
    err = refused(push, client=client, stage=stage)
    assert "Invalid metadata in README.md" in err.message
    assert not {"preupload", "lfs_put", "xet_token"} & set(kinds(hub))


def test_corrupted_file_is_served_with_its_old_hash(hub, client, stage, tmp_path):
    push(client, stage)
    path = "layer_6/3zih0tpa/sae.pt"
    hub_kit.corrupt(hub, REPO, path)
    fpath = client.hf_hub_download(
        repo_id=REPO, filename=path, cache_dir=str(tmp_path / "cache")
    )
    assert sha256(pathlib.Path(fpath).read_bytes()) != content(stage)[path][1]
    assert hub.files(REPO)[path] == content(stage)[path]


# Collections


def test_collection_is_made_once(hub, lfs):
    made = lfs.create_collection(title="Two words", namespace="osunlp", description="D")
    assert made["slug"].startswith("osunlp/two-words-")
    assert made["description"] == "D"
    args = {"title": "Two words", "namespace": "osunlp"}
    assert refused(lfs.create_collection, **args).status == 409
    assert lfs.create_collection(**args, exists_ok=True)["slug"] == made["slug"]
    assert len(hub.collections()) == 1


def test_collection_texts_have_limits(hub, lfs):
    hub.add_repo(REPO)
    slug = hub.add_collection("osunlp", "T")
    n_title, n_text = collection_api.MAX_TITLE, collection_api.MAX_DESCRIPTION
    args = {"namespace": "osunlp"}
    lfs.create_collection(title="x" * n_title, description="y" * n_text, **args)
    for title, text in (("x" * (n_title + 1), "y"), ("x", "y" * (n_text + 1))):
        err = refused(lfs.create_collection, title=title, description=text, **args)
        assert err.names[0] == "BadRequestError"
    item = {"collection_slug": slug, "item_id": REPO, "item_type": "model"}
    assert refused(lfs.add_collection_item, note="z" * 501, **item).status == 400
    assert (
        lfs.add_collection_item(note="z" * 500, **item)["items"][0]["note"] == "z" * 500
    )


def test_collection_list_shows_four_items(hub, lfs):
    hub.add_repo(REPO)
    papers = [(f"2501.{i:05}", "paper") for i in range(6)]
    title = "A collection with a title of many words"
    slug = hub.add_collection("osunlp", title, items=papers)
    hub.add_collection("elsewhere", "Other")
    (listed,) = lfs.list_collections(owner="osunlp")
    assert (listed["title"], len(listed["items"])) == (title, 4)
    whole = lfs.get_collection(collection_slug=listed["slug"])
    assert (whole["slug"], len(whole["items"])) == (slug, 6)
    item = {"item_id": REPO, "item_type": "model"}
    after = lfs.add_collection_item(collection_slug=slug, **item)
    assert [i["item_id"] for i in after["items"]] == [p for p, _ in papers] + [REPO]


def test_known_collection_keeps_its_id(hub, lfs):
    slug = hub.add_collection("osunlp", "SAE-V", collection_id=SAE_V)
    assert slug == f"osunlp/sae-v-{SAE_V}"
    assert lfs.get_collection(collection_slug=slug)["title"] == "SAE-V"
    assert refused(lfs.get_collection, collection_slug="osunlp/sae-v").status == 404


def test_item_is_added_once(hub, lfs):
    hub.add_repo(REPO)
    slug = hub.add_collection("osunlp", "T")
    item = {"collection_slug": slug, "item_id": REPO, "item_type": "model"}
    lfs.add_collection_item(**item, note="first")
    assert refused(lfs.add_collection_item, **item).status == 409
    lfs.add_collection_item(**item, exists_ok=True)
    (collection,) = hub.collections()
    assert [(i["id"], i["note"]) for i in collection["items"]] == [(REPO, "first")]


def test_item_that_is_not_there_is_refused(hub, lfs):
    slug = hub.add_collection("osunlp", "T")
    item = {"collection_slug": slug, "item_id": "osunlp/never", "item_type": "model"}
    assert refused(lfs.add_collection_item, **item).status == 404
    assert hub.collections()[0]["items"] == []


@pytest.mark.parametrize("token", [READER, STRANGER, SCOPED, False])
def test_only_a_token_with_the_right_writes_collections(hub, lfs, token):
    hub.add_repo(REPO)
    slug = hub.add_collection("osunlp", "T")
    lfs.use(hub, token)
    status = 401 if token is False else 403
    item = {"collection_slug": slug, "item_id": REPO, "item_type": "model"}
    for call, kwargs in (
        (lfs.create_collection, {"title": "U", "namespace": "osunlp"}),
        (lfs.add_collection_item, item),
    ):
        assert refused(call, **kwargs).status == status
    assert lfs.get_collection(collection_slug=slug)["items"] == []


def test_private_collection_is_unknown_to_a_stranger(hub, lfs):
    slug = hub.add_collection("osunlp", "T", private=True)
    assert len(lfs.list_collections(owner="osunlp")) == 1
    lfs.use(hub, STRANGER)
    assert lfs.list_collections(owner="osunlp") == []
    assert refused(lfs.get_collection, collection_slug=slug).status == 404


def test_collection_is_found_by_its_id_whatever_the_words_in_its_slug(hub, lfs):
    slug = hub.add_collection("osunlp", "New one")
    old = slug.replace("new-one", "old")
    assert lfs.get_collection(collection_slug=old)["slug"] == slug


# Faults


def test_fault_answers_the_next_requests_of_its_kind(hub, lfs):
    hub.add_repo(REPO)
    hub.faults.append(Fault("info", status=429, headers={"Retry-After": "1"}, times=2))
    for _ in range(2):
        assert refused(lfs.model_info, repo_id=REPO).status == 429
    assert lfs.model_info(repo_id=REPO)["id"] == REPO


@pytest.mark.parametrize("drop", ["before", "half", "after"])
def test_dropped_commit_is_done_only_if_the_answer_alone_was_lost(
    hub, lfs, stage, drop
):
    lfs.create_repo(repo_id=REPO)
    hub.faults.append(Fault("commit", drop=drop))
    err = refused(lfs.upload_folder, repo_id=REPO, folder_path=str(stage))
    assert "RemoteProtocolError" in err.names
    assert len(hub.commits(REPO)) == (2 if drop == "after" else 1)
    push(lfs, stage)
    assert len(hub.commits(REPO)) == 2


def test_upload_that_is_dropped_half_way_leaves_nothing(hub, lfs):
    lfs.create_repo(repo_id=REPO)
    data = os.urandom(500_000)
    hub.faults.append(Fault("lfs_put", drop="half"))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(hub, "PUT", lfs_upload_url(hub, data), data)
    assert not hub.store.repos[REPO].object_fpath(sha256(data)).exists()
    assert list(hub.store.tmp_dpath.iterdir()) == []


def test_stalled_request_waits_for_its_release(hub, lfs):
    hub.add_repo(REPO)
    fault = Fault("info", stall=True)
    hub.faults.append(fault)
    lfs.start("model_info", repo_id=REPO)
    while "info" not in kinds(hub):
        assert lfs.process.poll() is None
    fault.release.set()
    assert lfs.finish()["id"] == REPO


def test_mistake_of_the_hub_itself_is_kept(tmp_path):
    class Broken:
        def before(self, kind, request):
            raise ZeroDivisionError

    with LoopbackHub(tmp_path, tokens=TOKENS, faults=[Broken()]) as hub:
        assert ask(hub, "GET", "/api/whoami-v2")[0] == 500
    assert "ZeroDivisionError" in hub.errors[0]


# State


def test_state_outlives_the_hub(tmp_path, clients, stage):
    client = clients["xet"]
    with LoopbackHub(tmp_path / "hub", tokens=TOKENS) as hub:
        oid = push(client.use(hub, WRITER), stage)
        slug = hub.add_collection("osunlp", "T", items=[(REPO, "model")])
        commits, files = hub.commits(REPO), hub.files(REPO)
    with LoopbackHub(tmp_path / "hub", tokens=TOKENS) as hub:
        assert (hub.commits(REPO), hub.files(REPO)) == (commits, files)
        assert push(client.use(hub, WRITER), stage) == oid
        assert hub.bytes_received == 0
        assert (
            client.get_collection(collection_slug=slug)["items"][0]["item_id"] == REPO
        )
        (stage / "more.txt").write_text("more")
        push(client, stage)
        assert hub.commits(REPO)[0]["parent"] == oid


def test_no_request_is_answered_after_the_end(tmp_path, clients):
    client = clients["lfs"]
    with LoopbackHub(tmp_path, tokens=TOKENS) as hub:
        client.use(hub, WRITER).whoami()  # The client keeps the connection.
    assert refused(client.whoami).status is None


def test_one_hub_at_a_time_on_a_directory(tmp_path):
    first = LoopbackHub(tmp_path, tokens={})
    with first, pytest.raises(InUse, match="another loopback Hub"):
        LoopbackHub(tmp_path, tokens={})
    with LoopbackHub(tmp_path, tokens={}) as second:
        assert second.endpoint != ""


def test_no_token_reaches_the_disk(hub, client, stage):
    push(client, stage)
    slug = client.create_collection(title="T", namespace="osunlp")["slug"]
    client.add_collection_item(collection_slug=slug, item_id=REPO, item_type="model")
    for fpath in hub.store.dpath.rglob("*"):
        if fpath.is_file():
            assert b"hf_" not in fpath.read_bytes().replace(b"hf_xet", b""), fpath


def test_hub_listens_on_loopback_only(hub):
    assert hub._server.server_address[0] == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(5)
        other.connect(("127.0.0.2", hub._server.server_port))


def test_name_that_points_here_is_refused(hub):
    assert ask(hub, "GET", "/api/whoami-v2", Host="evil.example")[0] == 421


# The Hub in a process of its own

SERVER = """
import sys
from loopback_hub import LoopbackHub
tokens = {"hf_writer": {"name": "sam", "orgs": ["osunlp"], "role": "write"}}
with LoopbackHub(sys.argv[1], tokens=tokens) as hub:
    print(hub.endpoint, flush=True)
    sys.stdin.read()
    sys.exit(hub.errors or 0)
"""


class Apart:
    """A Hub that can be measured and killed."""

    def __init__(self, dpath: pathlib.Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, dpath],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(hub_kit.PACKAGE_DPATH)},
        )
        self.endpoint = self.process.stdout.readline().decode().strip()

    def peak_mb(self) -> float:
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [text for text in status.splitlines() if text.startswith("VmHWM")]
        return int(line.split()[1]) / 1000

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait() == 0


def n_bytes_under(dpath: pathlib.Path) -> int:
    n_bytes = 0
    for fpath in dpath.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Renamed meanwhile.
            n_bytes += fpath.stat().st_size
    return n_bytes


def test_checkpoint_never_sits_in_memory(tmp_path, clients, client):
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "sae.pt").write_bytes(os.urandom(134_000_000))
    apart = Apart(tmp_path / "apart")
    before = apart.peak_mb()
    client.use(apart, WRITER)
    push(client, stage)
    clients["lfs"].use(apart, WRITER).hf_hub_download(
        repo_id=REPO, filename="sae.pt", cache_dir=str(tmp_path / "cache")
    )
    assert apart.peak_mb() - before < 20
    apart.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_hub_trusts_nothing_half_written(tmp_path, clients, stage, transport):
    (stage / "layer_6/3zih0tpa/sae.pt").write_bytes(os.urandom(40_000_000))
    dpath = tmp_path / "apart"
    apart = Apart(dpath)
    victim = Client(tmp_path / "victim", transport).use(apart, WRITER)
    victim.create_repo(repo_id=REPO)
    victim.start("upload_folder", repo_id=REPO, folder_path=str(stage))
    while n_bytes_under(dpath) < 5_000_000:
        assert victim.process.poll() is None
    apart.process.send_signal(signal.SIGKILL)
    apart.process.wait()
    victim.kill()

    with LoopbackHub(dpath, tokens=TOKENS) as hub:
        assert list(hub.store.tmp_dpath.iterdir()) == []
        for fpath in (hub.store.repos[REPO].dpath / "objects").iterdir():
            assert sha256(fpath.read_bytes()) == fpath.name
        push(clients[transport].use(hub, WRITER), stage)
        assert hub.files(REPO).items() >= content(stage).items()
        assert hub.errors == []
