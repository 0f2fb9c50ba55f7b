"""Collections: their state, in one file, and the requests about them."""

import json
import re
import secrets

from .access import find_repo, need_right, need_user
from .repos import page
from .store import Store, now
from .wire import Handler, HubError, Json, Response

MAX_TITLE = 59
"""Characters. Public sources say 59 or 60; the smaller one makes a rehearsal stricter."""

MAX_DESCRIPTION, MAX_NOTE = 150, 500
N_LISTED_ITEMS = 4
"""How many items of each collection the list of collections shows."""

N_PER_PAGE = 100
ITEM_TYPES = ("model", "dataset", "space", "paper", "collection")
TEXT_FIELDS = {"title": MAX_TITLE, "description": MAX_DESCRIPTION}


def new_id() -> str:
    return secrets.token_hex(12)


class Collections:
    """All collections, as `collections.json` has them."""

    def __init__(self, store: Store):
        self._store, self._fpath = store, store.dpath / "collections.json"
        self.all: list[Json] = []
        if self._fpath.exists():
            self.all = json.loads(self._fpath.read_text(encoding="utf-8"))

    def save(self) -> None:
        self._store.write_json(self._fpath, self.all)

    def add(
        self,
        namespace: str,
        title: str,
        description: str | None = None,
        private: bool = False,
        collection_id: str | None = None,
    ) -> Json:
        collection: Json = {
            "id": collection_id or new_id(),
            "namespace": namespace,
            "title": title,
            "description": description,
            "private": private,
            "last_updated": now(),
            "items": [],
        }
        self.all.append(collection)
        self.save()
        return collection

    def add_item(
        self, collection: Json, item_id: str, item_type: str, note: str | None
    ) -> None:
        item = {"_id": new_id(), "id": item_id, "type": item_type, "note": note}
        collection["items"].append(item)
        collection["last_updated"] = now()
        self.save()


def slug_of(collection: Json) -> str:
    """namespace/words-of-the-title-id, of which only the id counts in a lookup."""
    words = re.sub(r"[^a-z0-9]+", "-", collection["title"].lower()).strip("-")
    return f"{collection['namespace']}/{words or 'collection'}-{collection['id']}"


def _shown(collection: Json, position: int, *, listed: bool = False) -> Json:
    items = collection["items"][: N_LISTED_ITEMS if listed else None]
    shown = {
        "slug": slug_of(collection),
        "title": collection["title"],
        "description": collection["description"],
        "owner": {"name": collection["namespace"]},
        "items": [_shown_item(item, i) for i, item in enumerate(items)],
        "lastUpdated": collection["last_updated"],
        "private": collection["private"],
        "theme": "orange",
        "upvotes": 0,
    }
    # A listing is in order of position, so the client counts for itself.
    return shown if listed else shown | {"position": position}


def _shown_item(item: Json, position: int) -> Json:
    shown = {key: item[key] for key in ("_id", "id", "type")} | {"position": position}
    if item["note"] is not None:
        shown["note"] = {"text": item["note"], "html": item["note"]}
    return shown


def _visible(req: Handler) -> list[Json]:
    def may_see(c: Json) -> bool:
        return not c["private"] or (
            req.user is not None and req.user.belongs_to(c["namespace"])
        )

    return [c for c in req.server.hub.shelf.all if may_see(c)]


def _find(req: Handler, slug: str) -> tuple[Json, int]:
    """A collection by its slug, whatever the words in it, and its position."""
    namespace, _, rest = slug.partition("/")
    for i, collection in enumerate(_visible(req)):
        if (
            collection["namespace"] == namespace
            and rest.rpartition("-")[2] == collection["id"]
        ):
            return collection, i
    raise HubError(404, "Collection not found")


def _check_text(data: Json) -> None:
    for key, n_max in TEXT_FIELDS.items():
        text = data.get(key)
        if text is not None and not isinstance(text, str):
            raise HubError(400, f"Not a string: {key}")
        if text is not None and len(text) > n_max:
            raise HubError(400, f"Too big: expected <={n_max} characters at {key}")


def list_all(req: Handler) -> Response:
    owners, wanted = req.query.get("owner"), req.query.get("item")
    found = [
        _shown(c, i, listed=True)
        for i, c in enumerate(_visible(req))
        if (owners is None or c["namespace"] in owners)
        and (wanted is None or any(_item_key(item) in wanted for item in c["items"]))
    ]
    limit = req.query.get("limit", [""])[-1]
    n_per_page = min(int(limit), N_PER_PAGE) if limit.isdecimal() else N_PER_PAGE
    return page(req, found, max(n_per_page, 1))


def _item_key(item: Json) -> str:
    return f"{item['type']}s/{item['id']}"


def get(req: Handler, slug: str) -> Response:
    return Response(_shown(*_find(req, slug)))


def create(req: Handler) -> Response:
    user, data = need_user(req), req.json()
    namespace, title = data.get("namespace", user.name), data.get("title")
    if not title:
        raise HubError(400, "A collection needs a title")
    _check_text(data)
    need_right(req, "collection.write", namespace)
    shelf = req.server.hub.shelf
    with req.server.hub.store.lock:
        for c in shelf.all:
            if c["namespace"] == namespace and c["title"] == title:
                message = "A collection with this title exists already"
                raise HubError(409, message, extra={"slug": slug_of(c)})
        private = data.get("private", False)
        collection = shelf.add(namespace, title, data.get("description"), private)
    return Response(_shown(collection, len(shelf.all) - 1))


def add_item(req: Handler, slug: str) -> Response:
    need_user(req)
    collection, i = _find(req, slug)
    need_right(req, "collection.write", collection["namespace"])
    data = req.json()
    item, note = data.get("item") or {}, data.get("note")
    if item.get("type") not in ITEM_TYPES or not isinstance(item.get("id"), str):
        raise HubError(400, "An item needs a type and an id")
    if note is not None and len(note) > MAX_NOTE:
        raise HubError(400, f"Too big: expected <={MAX_NOTE} characters at note")
    if item["type"] == "model":
        find_repo(req, item["id"])
    elif item["type"] != "paper":
        raise HubError(404, f"The loopback Hub has no {item['type']} {item['id']}")
    with req.server.hub.store.lock:
        if any(_item_key(other) == _item_key(item) for other in collection["items"]):
            raise HubError(409, "This item is in the collection already")
        req.server.hub.shelf.add_item(collection, item["id"], item["type"], note)
    return Response(_shown(collection, i))
