"""Whether HF_TOKEN may do what a release will need, asked before anything is changed."""

import typing as tp

from ..cli import UserError
from ..text import say
from . import client as hub

MAY_WRITE = ("write", "contributor", "admin")
"""The roles in an organization that may make a repo and write to it."""


def problems(repo_ids: tp.Iterable[str], collections: tp.Iterable[str]) -> list[str]:
    """Why HF_TOKEN may not write to some of `repo_ids`; empty where it may.

    Source: whoami-v2, whose answer names the token's role, and each organization's.

    Args:
        repo_ids: namespace/name of each.
        collections: Their namespaces. A release stands without them, so what is missing
            for these is told, and no problem.
    """
    try:
        if not hub.token():
            return ["HF_TOKEN is not set; make a token that may write and export it"]
        me = hub.retrying("whoami", hub.api().whoami)
    except UserError as err:
        return [str(err)]
    except Exception as err:
        return [f"can't ask the Hub who HF_TOKEN is: {hub.tell(err)}"]
    access = me.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        return ["HF_TOKEN may only read; make a token that may write"]
    roles = {org["name"]: org.get("roleInOrg", "write") for org in me.get("orgs", [])}
    roles[me["name"]] = "admin"
    out = []
    for repo_id in repo_ids:
        namespace = repo_id.partition("/")[0]
        if roles.get(namespace) not in MAY_WRITE:
            why = f"HF_TOKEN is {me['name']}'s, who may not write to {namespace}"
        elif not _has(access, "repo.write", namespace, repo_id):
            why = f"HF_TOKEN is fine-grained and lacks repo.write for {namespace}"
        else:
            continue
        out.append(why)
    for namespace in sorted(set(collections)):
        if not _has(access, "collection.write", namespace):
            say(
                f"HF_TOKEN lacks collection.write for {namespace}: its collections will"
                " not be changed"
            )
    return list(dict.fromkeys(out))


def _has(access: dict, permission: str, *names: str) -> bool:
    """Whether a token, fine-grained or not, has a permission for one of `names`."""
    if access.get("role") != "fineGrained":
        return True
    return any(
        scope.get("entity", {}).get("name") in names
        and permission in scope.get("permissions", [])
        for scope in access.get("fineGrained", {}).get("scoped", [])
    )
