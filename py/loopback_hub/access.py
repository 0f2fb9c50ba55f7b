"""Who may do what: tokens and rights; and creating a repo."""

import dataclasses
import hashlib
import re
import typing as tp

from .store import Repo
from .wire import Handler, HubError, Response

MAX_NAME = 96
"""Characters of a repo id."""


@dataclasses.dataclass(frozen=True)
class User:
    """The user that a token belongs to."""

    name: str
    orgs: tp.Sequence[str] = ()
    role: str = "read"
    """"read", "write", or "fineGrained", which has only the permissions in `scoped`."""
    scoped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Permissions ("repo.write", "collection.write") by namespace."""

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)

    def may(self, permission: str, namespace: str) -> bool:
        if self.role == "fineGrained":
            return permission in self.scoped.get(namespace, ())
        return self.role == "write" and self.belongs_to(namespace)


def need_user(req: Handler) -> User:
    if req.user is None:
        raise HubError(401, "Invalid username or password.")
    user: User = req.user
    return user


def need_right(req: Handler, permission: str, namespace: str) -> User:
    user = need_user(req)
    if not user.may(permission, namespace):
        raise HubError(
            403, f'Forbidden: this token lacks "{permission}" on {namespace}'
        )
    return user


def find_repo(req: Handler, repo_id: str) -> Repo:
    """The repo, if it exists and this user may know of it."""
    store = req.server.hub.store
    repo: Repo | None = store.repos.get(repo_id)
    if repo is None and (known := store.known_as(repo_id)) is not None:
        # Clients follow the redirect, and use the new name from then on.
        url = req.server.hub.endpoint + req.path.replace(repo_id, known, 1)
        raise HubError(307, f"Moved to {known}", headers={"Location": url})
    namespace = repo_id.partition("/")[0]
    is_member = req.user is not None and req.user.belongs_to(namespace)
    if repo is not None and (is_member or not repo.private):
        return repo
    # To a stranger, a missing repo and a private one look the same.
    if req.user is None:
        raise HubError(401, "Invalid username or password.", code="RepoNotFound")
    raise HubError(404, "Repository not found", code="RepoNotFound")


def find_writable(req: Handler, repo_id: str) -> Repo:
    repo = find_repo(req, repo_id)
    need_right(req, "repo.write", repo_id.partition("/")[0])
    return repo


def whoami(req: Handler) -> Response:
    user = need_user(req)
    token: dict[str, tp.Any] = {"displayName": "loopback", "role": user.role}
    if user.role == "fineGrained":
        token["fineGrained"] = {
            "canReadGatedRepos": False,
            "global": [],
            "scoped": [
                {
                    "entity": {
                        "type": "user" if name == user.name else "org",
                        "name": name,
                    },
                    "permissions": list(permissions),
                }
                for name, permissions in user.scoped.items()
            ],
        }
    return Response(
        {
            "type": "user",
            "id": object_id(user.name),
            "name": user.name,
            "fullname": user.name,
            "orgs": [
                {"type": "org", "name": org, "fullname": org, "roleInOrg": "write"}
                for org in user.orgs
            ],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def create_repo(req: Handler) -> Response:
    user, data = need_user(req), req.json()
    name, namespace = data.get("name"), data.get("organization") or user.name
    if data.get("type", "model") != "model":
        raise HubError(400, "The loopback Hub holds models only")
    repo_id = f"{namespace}/{name}"
    for part in (namespace, name):
        if (
            not isinstance(part, str)
            or re.fullmatch(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", part, re.ASCII)
            is None
            or re.search(r"--|\.\.|\.git$", part)
            or len(repo_id) > MAX_NAME
        ):
            raise HubError(400, f"Invalid repo name: {repo_id}")
    if not user.may("repo.write", namespace):
        raise HubError(
            403,
            f'You don\'t have the rights to create a model under the namespace "{namespace}"',
        )
    hub = req.server.hub
    url = f"{hub.endpoint}/{repo_id}"
    with hub.store.lock:
        if repo_id in hub.store.repos:
            message = "You already created this model repo"
            raise HubError(409, message, extra={"url": url})
        private = data.get("visibility") == "private" or data.get("private") is True
        hub.store.create(repo_id, user.name, private=private)
    return Response({"url": url, "name": repo_id, "id": object_id(repo_id)})


def object_id(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:24]


def auth_check(req: Handler, repo_id: str) -> Response:
    find_repo(req, repo_id)
    return Response({})


def auth_check_write(req: Handler, repo_id: str) -> Response:
    find_writable(req, repo_id)
    return Response({})
