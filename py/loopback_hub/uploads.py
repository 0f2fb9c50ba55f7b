"""Requests of an upload: how each file is to be sent, LFS objects, and the commit."""

import base64
import binascii
import fnmatch
import hashlib
import hmac
import io
import json
import posixpath
import re
import time

from . import card
from .access import find_writable, need_user
from .store import Repo
from .wire import Handler, HubError, Json, Response

MAX_REGULAR = 10 * 2**20
"""Bytes of the largest file that git itself holds."""

MAX_PUT = 5 * 10**9
"""Bytes of the largest PUT: S3's limit."""

MAX_LINE = 2 * MAX_REGULAR
N_PER_PREUPLOAD = 256
URL_SECONDS = 3600


def lfs_patterns(gitattributes: str) -> list[str]:
    """The patterns that a .gitattributes file gives to LFS."""
    found = []
    for line in gitattributes.splitlines():
        pattern, *attributes = line.split() or [""]
        if "filter=lfs" in attributes:
            found.append(pattern.replace("[[:space:]]", " "))
    return found


def matches(path: str, patterns: list[str]) -> bool:
    """Whether a pattern matches: with a slash the whole path, without one its last part."""
    name = posixpath.basename(path)
    return any(
        fnmatch.fnmatchcase(path if "/" in pattern else name, pattern)
        for pattern in patterns
    )


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as err:
        return err.start > len(sample) - 4  # The sample may end within a character.
    return True


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore file excludes a path, or a directory above it. Of the patterns that
    match, the last one counts."""
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    ignored = False
    for line in gitignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        negated, pattern = pattern.startswith("!"), pattern.lstrip("!")
        paths = above[:-1] if pattern.endswith("/") else above
        pattern = pattern.rstrip("/")
        anchored = "/" in pattern
        pattern = pattern.lstrip("/").removeprefix("**/").replace("/**", "/*")
        names = paths if anchored else [posixpath.basename(p) for p in paths]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            ignored = not negated
    return ignored


def _own_file(repo: Repo, path: str) -> str:
    """The text of a file in the head; "" if there is none."""
    entry = repo.head["files"].get(path)
    if entry is None:
        return ""
    return repo.object_fpath(entry["sha256"]).read_text("utf-8", "replace")


def preupload(req: Handler, repo_id: str, revision: str) -> Response:
    repo = find_writable(req, repo_id)
    files = repo.at(revision)["files"]
    data = req.json()
    asked = data.get("files")
    if not isinstance(asked, list) or len(asked) > N_PER_PREUPLOAD:
        raise HubError(400, f'"files" is not a list of up to {N_PER_PREUPLOAD}')
    patterns = lfs_patterns(_own_file(repo, ".gitattributes"))
    gitignore = data.get("gitIgnore") or _own_file(repo, ".gitignore")
    answers = []
    for file in asked:
        path, size = file["path"], file["size"]
        check_path(path)
        by_content = size > MAX_REGULAR or not _is_text(
            base64.b64decode(file["sample"])
        )
        lfs = size > 0 and (by_content or matches(path, patterns))
        answer = {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": is_ignored(path, gitignore),
        }
        if (entry := files.get(path)) is not None:
            answer["oid"] = entry["sha256"] if entry["lfs"] else entry["blob_id"]
        answers.append(answer)
    return Response({"files": answers, "commitOid": repo.at(revision)["id"]})


def lfs_batch(req: Handler, repo_id: str) -> Response:
    repo = find_writable(req, repo_id)
    data = req.json()
    transfers = data.get("transfers", ["basic"])
    if data.get("operation") != "upload" or data.get("hash_algo", "sha256") != "sha256":
        raise HubError(400, "Only uploads by sha256")
    objects = [_lfs_object(o) for o in data.get("objects", [])]
    if "xet" in transfers:  # Older clients ask here whether to upload by Xet.
        return Response({"transfer": "xet", "objects": objects})
    if "basic" not in transfers:
        raise HubError(400, f"No transfer among {transfers} that this server knows")
    endpoint = req.server.hub.endpoint
    for o in objects:
        if o["size"] > MAX_PUT:
            message = f"{o['size']} bytes are too many for one PUT"
            o["error"] = {"code": 422, "message": message}
        elif not repo.has_object(o["oid"], o["size"]):
            end = int(time.time()) + URL_SECONDS
            path = f"/lfs/{repo_id}/{o['oid']}/{o['size']}/{end}"
            signature = _sign(req, path)
            verify = f"{endpoint}/{repo_id}.git/info/lfs/objects/verify"
            o["actions"] = {
                "upload": {"href": f"{endpoint}{path}?signature={signature}"},
                "verify": {"href": verify},
            }
    return Response({"transfer": "basic", "objects": objects})


def _lfs_object(data: Json) -> Json:
    oid, size = data.get("oid"), data.get("size")
    if not isinstance(oid, str) or re.fullmatch("[0-9a-f]{64}", oid) is None:
        raise HubError(400, f"Not a sha256: {oid}")
    if not isinstance(size, int) or size < 0:
        raise HubError(400, f"Not a size: {size}")
    return {"oid": oid, "size": size}


def _sign(req: Handler, path: str) -> str:
    secret = req.server.hub.secret
    return hmac.new(secret, path.encode(), hashlib.sha256).hexdigest()


def lfs_put(req: Handler, repo_id: str, oid: str, size: str, end: str) -> Response:
    """Take an object. The signed URL authorizes it: clients send no token to storage."""
    signature = req.query.get("signature", [""])[-1]
    if not hmac.compare_digest(signature, _sign(req, req.url_path)):
        raise HubError(403, "The URL's signature is wrong")
    if int(end) < time.time():
        raise HubError(403, "The URL has expired")
    if req.body.length != int(size):
        raise HubError(400, f"{req.body.length} bytes of an object of {size}")
    repo = req.server.hub.store.repos[repo_id]
    repo.receive(req.body.chunks(), oid)
    return Response({}, headers={"ETag": f'"{oid}"'})


def lfs_verify(req: Handler, repo_id: str) -> Response:
    repo = find_writable(req, repo_id)
    o = _lfs_object(req.json())
    if not repo.has_object(o["oid"], o["size"]):
        raise HubError(404, f"No object {o['oid']} of {o['size']} bytes")
    return Response({})


def validate_yaml(req: Handler) -> Response:
    problems = card.problems(str(req.json().get("content", "")))
    errors = [{"message": text} for text in problems]
    if errors:
        message = "Invalid metadata in README.md"
        raise HubError(400, message, extra={"errors": errors, "warnings": []})
    return Response({"errors": [], "warnings": []})


def check_path(path: object) -> None:
    if (
        not isinstance(path, str)
        or any(part in ("", ".", "..", ".git") for part in path.split("/"))
        or any(ord(char) < 32 for char in path)
    ):
        raise HubError(400, f"Invalid path: {path!r}")


def commit(req: Handler, repo_id: str, revision: str) -> Response:
    """Apply the operations, as lines of JSON, to the head: all or none."""
    repo = find_writable(req, repo_id)
    if revision not in ("main", "refs/heads/main"):
        repo.at(revision)
        raise HubError(400, f"{revision} is not a branch")
    if req.flag("create_pr"):
        raise HubError(400, "The loopback Hub has no pull requests")
    header, operations = _read_operations(req, repo)
    with repo.lock:
        parent = header.get("parentCommit")
        if parent is not None and not repo.head["id"].startswith(parent):
            raise HubError(
                412, "A commit has happened since. Please refresh and try again."
            )
        files = _apply(repo, operations)
        title, message = header["summary"], header.get("description", "")
        done = repo.add_commit(files, title, message, need_user(req).name)
    return Response(
        {
            "success": True,
            "commitOid": done["id"],
            "commitUrl": f"{req.server.hub.endpoint}/{repo.id}/commit/{done['id']}",
            "hookOutput": "",
            "pullRequestUrl": None,
        }
    )


def _read_operations(req: Handler, repo: Repo) -> tuple[Json, list[tuple[str, Json]]]:
    """The commit's header and its operations; regular files' contents are stored on the way."""
    header, operations = None, []
    body = io.BufferedReader(req.body)
    while line := body.readline(MAX_LINE):
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, KeyError, TypeError):
            raise HubError(400, "A line of the commit is not an operation") from None
        if key == "header":
            header = value
            continue
        check_path(value.get("path"))
        if key == "file":
            value["entry"] = repo.add_regular(_content(value))
        operations.append((key, value))
    if header is None or not header.get("summary"):
        raise HubError(400, "A commit needs a header with a summary")
    return header, operations


def _content(value: Json) -> bytes:
    try:
        if value.get("encoding") == "base64":
            content = base64.b64decode(value["content"], validate=True)
        else:
            content = value["content"].encode()
    except (binascii.Error, KeyError, AttributeError):
        raise HubError(400, f"{value['path']}: content that can't be read") from None
    if len(content) > MAX_REGULAR:
        raise HubError(
            400, f"{value['path']}: over 10 MiB; such a file needs LFS or Xet"
        )
    if value["path"] == "README.md" and (
        found := card.problems(content.decode("utf-8", "replace"))
    ):
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(found)}")
    return content


def _apply(repo: Repo, operations: list[tuple[str, Json]]) -> dict[str, Json]:
    """The head's files after the operations."""
    files = dict(repo.head["files"])
    sizes = {}
    for key, value in operations:
        if key == "lfsFile":
            o = _lfs_object(value)
            sizes[o["oid"]] = o["size"]
    lfs_entries = repo.lfs_entries(sizes)
    for key, value in operations:
        path = value["path"]
        if key == "file":
            files[path] = value["entry"]
        elif key == "lfsFile":
            if value["oid"] not in lfs_entries:
                raise HubError(
                    400, f"An LFS pointer pointed to a file that does not exist: {path}"
                )
            files[path] = lfs_entries[value["oid"]]
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                message = f"A file with this name doesn't exist: {path}"
                raise HubError(404, message, code="EntryNotFound")
        else:
            raise HubError(400, f'No such operation: "{key}"')
    for path in files:
        if any(other.startswith(f"{path}/") for other in files):
            raise HubError(400, f"{path} is a file and a directory")
    return _tracked(repo, files)


def _tracked(repo: Repo, files: dict[str, Json]) -> dict[str, Json]:
    """`files`, with a line in .gitattributes for each LFS file that no pattern matches.

    The Hub, too, adds to that file with commits that don't mention it.
    """
    entry = files.get(".gitattributes")
    text = repo.object_fpath(entry["sha256"]).read_text("utf-8") if entry else ""
    patterns = lfs_patterns(text)
    missing = [p for p in files if files[p]["lfs"] and not matches(p, patterns)]
    if not missing:
        return files
    for path in missing:
        name = path.replace(" ", "[[:space:]]")
        text += f"{name} filter=lfs diff=lfs merge=lfs -text\n"
    return files | {".gitattributes": repo.add_regular(text.encode())}
