"""The Hub's collections: finding, creating and extending them."""

import functools
import typing as tp

from ..cli import UserError
from . import client as hub
from .client import errors

TITLE_MAX = 59
DESCRIPTION_MAX = 150
NOTE_MAX = 500
"""The Hub's limits on a collection's texts, in characters."""


class Collection(tp.Protocol):
    """A wanted collection, named by its full slug or by its title in a namespace."""

    namespace: str
    title: str
    slug: str


class Found(tp.NamedTuple):
    """A collection on the Hub, with all its model repos."""

    slug: str
    url: str
    repo_ids: frozenset[str]


def name_of(wanted: Collection) -> str:
    return wanted.slug or f'"{wanted.title}" of {wanted.namespace}'


def find(wanted: Collection) -> Found | None:
    """The wanted collection, or None if it doesn't exist.

    A listing shows only four items of each collection, so the matching one is fetched in full.

    Raises:
        UserError: Several have the title, or the Hub can't be reached.
    """
    try:
        found = hub.retrying(f"collection {name_of(wanted)}", lambda: _find(wanted))
    except Exception as err:
        raise UserError(f"collection {name_of(wanted)}: {hub.explain(err)}") from err
    if len(found) > 1:
        slugs = " and ".join(sorted(f.slug for f in found))
        raise UserError(
            f"collection {name_of(wanted)}: could be {slugs}; name one by its slug in the"
            " catalog"
        )
    return found[0] if found else None


def _find(wanted: Collection) -> list[Found]:
    client = hub.api()
    if wanted.slug:
        try:
            return [_whole(client.get_collection(wanted.slug))]
        except errors.HfHubHTTPError as err:
            if hub.status_of(err) == 404:
                return []
            raise
    listed = list(client.list_collections(owner=wanted.namespace))
    exact = [c for c in listed if c.title == wanted.title]
    short = [c for c in listed if c.title == shorten(wanted.title)]
    return [_whole(client.get_collection(c.slug)) for c in exact or short]


def _whole(collection: tp.Any) -> Found:
    repo_ids = {i.item_id for i in collection.items if i.item_type == "model"}
    return Found(collection.slug, collection.url, frozenset(repo_ids))


def create(wanted: Collection) -> Found:
    """Create the collection. If the Hub finds its title too long, shorten it and put the full
    title into the description.

    Raises:
        UserError: The Hub refuses.
    """

    def make(title: str, description: str | None) -> Found:
        made = hub.api().create_collection(
            title,
            namespace=wanted.namespace,
            description=description,
            exists_ok=True,  # so that a retry after a lost answer creates no second one
        )
        return _whole(made)

    what = f"collection {name_of(wanted)}"
    title, description = wanted.title, None
    while True:
        try:
            return hub.retrying(what, functools.partial(make, title, description))
        except Exception as err:
            is_too_long = hub.status_of(err) in (400, 413, 422)
            if not is_too_long or shorten(title) == title:
                why = hub.explain(err)
                raise UserError(f"{what}: can't create it: {why}") from err
        title, description = shorten(wanted.title), wanted.title[:DESCRIPTION_MAX]


def add(found: Found, repo_id: str, note: str) -> None:
    """Add a repo to the collection, unless it is there already.

    Raises:
        UserError: The Hub refuses.
    """
    what = f"collection {found.slug}"
    note = note[:NOTE_MAX]
    try:
        hub.retrying(
            what,
            lambda: hub.api().add_collection_item(
                found.slug, repo_id, "model", note=note, exists_ok=True
            ),
        )
    except Exception as err:
        raise UserError(f"{what}: can't add {repo_id}: {hub.explain(err)}") from err


def shorten(title: str) -> str:
    """`title` within the Hub's limit, cut between words."""
    if len(title) <= TITLE_MAX:
        return title
    cut = title[: TITLE_MAX + 1]
    return cut[: cut.rindex(" ")].rstrip() if " " in cut else title[:TITLE_MAX]
