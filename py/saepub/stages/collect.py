"""collect: add each released repo to the catalog's collections."""

from .. import catalog, jsonl, settings
from ..cli import UserError, fail_on, parser
from ..hub import collections as hub_collections
from ..release import staged
from ..text import layers_text, n_of, say


def main(argv: list[str]) -> None:
    p = parser(
        "Add each released repo to the catalog's collections.",
        "bin/plan < build/vitl-topk/rendered.jsonl | bin/push | bin/verify | bin/collect",
    )
    p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    rows = list(jsonl.read("repo", "layer", "run_id", "commit"))
    repos = staged.by_repo(rows)
    if not repos:
        return
    waiting = [slug for slug, r in repos.items() if not is_verified(r)]
    if waiting:
        for row in rows:
            jsonl.write(row)
        say(f"no collection was changed: {', '.join(waiting)} must be released first")
        return
    notes = {cat.get(slug).repo_id: note(cat.get(slug), r) for slug, r in repos.items()}
    problems = []
    for wanted in cat.collections:
        try:
            fill(wanted, notes)
        except UserError as err:
            problems.append(str(err))
    # The repos are released even if a collection failed.
    for row in rows:
        jsonl.write(row)
    fail_on(
        problems,
        f"the repos are released and verified; to continue: {settings.resume_command()}",
    )


def is_verified(rows: list[jsonl.Line]) -> bool:
    """Whether push sent a repo, and verify, if it ran, found it right."""
    return all(row["commit"] and row.get("url", True) for row in rows)


def fill(wanted: catalog.Collection, notes: dict[str, str]) -> None:
    """Add the repos that `notes` names to one collection, and print one line about it.

    Raises:
        UserError: The collection can't be found, created or added to.
    """
    found = hub_collections.find(wanted)
    if found is None and wanted.slug:
        raise UserError(
            f"collection {wanted.slug}: not found, though the catalog names it"
        )
    is_new = found is None
    found = found or hub_collections.create(wanted)
    gained = []
    try:
        for repo_id in sorted(notes.keys() - found.repo_ids):
            hub_collections.add(found, repo_id, notes[repo_id])
            gained.append(repo_id)
    finally:
        what = f"gained {', '.join(gained)}" if gained else "has all"
        if gained or not notes.keys() - found.repo_ids:
            say(f"{found.url}: {'created, ' if is_new else ''}{what}")


def note(repo: catalog.Repo, rows: list[jsonl.Line]) -> str:
    layers = layers_text({row["layer"] for row in rows})
    return f"{n_of(len(rows), 'SAE checkpoint')} for {repo.base_model}, {layers}"
