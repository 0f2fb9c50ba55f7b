"""Checks that HF_TOKEN has the rights that a release needs, before anything is changed.

The Hub can grant rights in ways that it doesn't report here (resource groups, future roles), so
only a certain lack of rights is a problem; a doubtful one is a warning, and the Hub decides.
"""

import typing as tp

from .. import settings
from ..cli import UserError
from ..text import one_line, say
from . import client as hub

MAY_WRITE = ("write", "contributor", "admin")
"""The roles in an organization that may create repos and write to them."""

Json = dict[str, tp.Any]


def problems(repo_ids: tp.Iterable[str], collections: tp.Iterable[str]) -> list[str]:
    """Why HF_TOKEN can't write to some of `repo_ids`; empty if it can, or might.

    The source is whoami-v2, which names the token's role and the user's in each organization.

    Args:
        repo_ids: namespace/name of each.
        collections: Their namespaces. A release is valid without collections, so a lack of
            rights to these is only a warning.
    """
    try:
        if not hub.token():
            return [settings.NO_TOKEN]
        me = _object(hub.retrying("whoami", lambda: hub.api().whoami()))
    except UserError as err:
        return [str(err)]
    except Exception as err:
        return [f"can't ask the Hub who HF_TOKEN is: {hub.explain(err)}"]
    access = _object(_object(me.get("auth")).get("accessToken"))
    if access.get("role") == "read":
        return ["HF_TOKEN has only read access; create a token with write access"]
    out: list[str] = []
    doubts: list[str] = []
    for repo_id in repo_ids:
        namespace = repo_id.partition("/")[0]
        if access.get("role") == "fineGrained":
            if _has(access, ("repo.write", "repo.content.write"), namespace, repo_id):
                continue
            why = f"HF_TOKEN is fine-grained and lacks repo.write for {namespace}"
            is_certain = _scopes(access) is not None
        else:
            why, is_certain = _membership(me, namespace)
        if why:
            (out if is_certain else doubts).append(why)
    if access.get("role") == "fineGrained":
        for namespace in sorted(set(collections)):
            if not _has(access, ("collection.write",), namespace):
                say(
                    f"HF_TOKEN lacks collection.write for {namespace}, so its collections"
                    " won't be changed"
                )
    for why in dict.fromkeys(doubts):
        say(f"{why}; the Hub decides")
    return list(dict.fromkeys(out))


def _membership(me: Json, namespace: str) -> tuple[str, bool]:
    """Why the token's user may not write to a namespace ("" if they may), and whether that is
    certain."""
    name = one_line(me.get("name"))
    if _same(me.get("name"), namespace):
        return "", True
    orgs = me.get("orgs")
    whole = isinstance(orgs, list) and all(_object(o).get("name") for o in orgs)
    for org in map(_object, orgs if isinstance(orgs, list) else []):
        if _same(org.get("name"), namespace):
            role = org.get("roleInOrg")
            if role in MAY_WRITE:
                return "", True
            role = one_line(role or "unknown")
            return f"HF_TOKEN is {name}'s, whose role in {namespace} is {role}", False
    return f"HF_TOKEN is {name}'s, who may not write to {namespace}", whole


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _same(name: object, other: str) -> bool:
    """Whether two names are the same namespace: the Hub ignores case."""
    return isinstance(name, str) and name.casefold() == other.casefold()


def _scopes(access: Json) -> list[tp.Any] | None:
    """The scopes of a fine-grained token; None if the Hub doesn't report them."""
    scoped = _object(access.get("fineGrained")).get("scoped")
    return scoped if isinstance(scoped, list) else None


def _has(access: Json, permissions: tuple[str, ...], *names: str) -> bool:
    """Whether a fine-grained token has one of `permissions` for one of `names`."""
    return any(
        any(_same(_object(scope.get("entity")).get("name"), name) for name in names)
        and any(p in (scope.get("permissions") or ()) for p in permissions)
        for scope in map(_object, _scopes(access) or [])
    )
