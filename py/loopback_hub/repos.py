"""Requests about a repo: what it holds at which commit, and the files themselves."""

import hashlib
import json
import re
import time
import typing as tp
import urllib.parse
import uuid

from .access import find_repo, find_writable, object_id
from .store import lfs_pointer
from .wire import Handler, HubError, Json, Response

N_FILES_PER_PAGE, N_COMMITS_PER_PAGE = 1000, 50
XET_TOKEN_SECONDS = 3600
"""The client asks for a new token a minute before the old one expires."""


def info(req: Handler, repo_id: str, revision: str = "main") -> Response:
    repo = find_repo(req, repo_id)
    commit = repo.at(revision)
    blobs = req.flag("blobs")
    data = {
        "_id": object_id(repo.id),
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit["id"],
        "lastModified": commit["date"],
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [
            {"rfilename": path} | (_blob(entry) if blobs else {})
            for path, entry in commit["files"].items()
        ],
        "usedStorage": sum(entry["size"] for entry in commit["files"].values()),
    }
    if expand := req.query.get("expand"):
        data = {key: data[key] for key in data if key in ("_id", "id", *expand)}
    return Response(data)


def _blob(entry: Json) -> Json:
    blob = {"size": entry["size"], "blobId": entry["blob_id"]}
    if entry["lfs"]:
        blob["lfs"] = _lfs(entry) | {"sha256": entry["sha256"]}
    return blob


def _lfs(entry: Json) -> Json:
    pointer = lfs_pointer(entry["sha256"], entry["size"])
    return {"size": entry["size"], "pointerSize": len(pointer)}


def page(req: Handler, items: list[tp.Any], n_per_page: int) -> Response:
    """A page of `items`, with a Link to the next one."""
    text = req.query.get("cursor", ["0"])[-1]
    start = int(text) if text.isdecimal() else 0
    end = start + n_per_page
    headers = {}
    if end < len(items):
        query = req.query | {"cursor": [str(end)]}
        url = f"{req.server.hub.endpoint}{req.url_path}?"
        url += urllib.parse.urlencode(query, doseq=True)
        headers["Link"] = f'<{url}>; rel="next"'
    return Response(items[start:end], headers=headers)


def commits(req: Handler, repo_id: str, revision: str) -> Response:
    repo = find_repo(req, repo_id)
    past = repo.commits[: repo.commits.index(repo.at(revision)) + 1]
    items = [
        {
            "id": commit["id"],
            "title": commit["title"],
            "message": commit["message"],
            "authors": [{"user": commit["author"]}],
            "date": commit["date"],
        }
        for commit in reversed(past)
    ]
    response = page(req, items, N_COMMITS_PER_PAGE)
    response.headers["X-Total-Count"] = str(len(items))
    return response


def tree(req: Handler, repo_id: str, revision: str, path: str = "") -> Response:
    repo = find_repo(req, repo_id)
    commit = repo.at(revision)
    paths = _all_paths(commit["files"])
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    if prefix and paths.get(prefix[:-1], "") is not None:
        raise HubError(404, f"{path} does not exist", code="EntryNotFound")
    wanted = [p for p in paths if p.startswith(prefix)]
    if not req.flag("recursive"):
        wanted = [p for p in wanted if "/" not in p.removeprefix(prefix)]
    items = [_tree_item(p, paths[p], commit["files"]) for p in wanted]
    return page(req, items, N_FILES_PER_PAGE)


def _all_paths(files: dict[str, Json]) -> dict[str, Json | None]:
    """Every path of a tree, sorted, with a file's entry; None for a directory."""
    paths: dict[str, Json | None] = dict(files)
    for path in files:
        while "/" in path:
            path = path.rpartition("/")[0]
            paths[path] = None
    return dict(sorted(paths.items()))


def _tree_item(path: str, entry: Json | None, files: dict[str, Json]) -> Json:
    if entry is None:
        under = {p: files[p] for p in files if p.startswith(f"{path}/")}
        oid = hashlib.sha1(json.dumps(under, sort_keys=True).encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}
    item = {"type": "file", "oid": entry["blob_id"], "size": entry["size"]}
    item["path"] = path
    if entry["lfs"]:
        item["lfs"] = _lfs(entry) | {"oid": entry["sha256"]}
    if entry["xet_hash"] is not None:
        item["xetHash"] = entry["xet_hash"]
    return item


def xet_token(req: Handler, repo_id: str, kind: str, revision: str) -> Response:
    """Permission to read or write chunks, in a directory on this machine."""
    repo = find_writable(req, repo_id) if kind == "write" else find_repo(req, repo_id)
    repo.at(revision)
    repo.xet.dpath.mkdir(exist_ok=True)
    if kind == "write":
        dpath = repo.xet.dpath
    else:  # A view of its own: the library allows one process at a time in a directory.
        dpath = repo.store.aside()
        repo.xet.view(dpath)
    url, token = f"local://{dpath}", uuid.uuid4().hex
    end = int(time.time()) + XET_TOKEN_SECONDS
    return Response(
        {"casUrl": url, "accessToken": token, "exp": end},
        headers={
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(end),
        },
    )


def resolve(req: Handler, repo_id: str, revision: str, path: str) -> Response:
    """A file's content, or the part of it that a Range header asks for."""
    repo = find_repo(req, repo_id)
    commit = repo.at(revision)
    headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
    entry = commit["files"].get(path)
    if entry is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    size = entry["size"]
    if entry["lfs"]:
        headers["X-Linked-ETag"] = headers["ETag"] = f'"{entry["sha256"]}"'
        headers["X-Linked-Size"] = str(size)
    else:
        headers["ETag"] = f'"{entry["blob_id"]}"'
    if entry["xet_hash"] is not None:
        api = f"{req.server.hub.endpoint}/api/models/{repo.id}"
        headers["X-Xet-Hash"] = entry["xet_hash"]
        headers["Link"] = f'<{api}/xet-read-token/{commit["id"]}>; rel="xet-auth"'
    start, end = _range(req.headers.get("Range"), size)
    status = 200
    if "Range" in req.headers:
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Type"] = "application/octet-stream"
    headers["Content-Length"] = str(end - start)
    fpath = repo.object_fpath(entry["sha256"])
    return Response(None, status, headers, fpath, start, end - start)


def _range(text: str | None, size: int) -> tuple[int, int]:
    """First byte and end (exclusive) of "bytes=a-b", "bytes=a-" or "bytes=-n"."""
    if text is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text.replace(" ", ""))
    first, last = match.groups() if match is not None else ("", "")
    start, end = 0, 0
    if first:
        start, end = int(first), min(int(last or size) + 1, size)
    elif last:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise HubError(
            416, f"No such range: {text}", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end
