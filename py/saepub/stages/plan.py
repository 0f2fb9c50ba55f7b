"""plan: show what a push would change in each repo and collection on the Hub.

With --files, stdout has one line per file instead of the runs; see `staged.file_lines`.
"""

from .. import catalog, jsonl, settings
from ..cli import UsageError, UserError, fail_on, parser
from ..hub import collections as hub_collections
from ..hub import repo as hub_repo
from ..hub.files import Changes, Remote
from ..release import staged
from ..text import human, one_line, say


def main(argv: list[str]) -> None:
    p = parser(
        "Show what a push would change on the Hub; change nothing.",
        "bin/plan < build/vitl-topk/rendered.jsonl > /dev/null",
    )
    staged.add_files_option(p)
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    rows = list(jsonl.read(*staged.KEYS))
    repos = staged.by_repo(rows)
    if not repos:
        return
    plan, problems, parents, files = [], [], {}, []
    try:
        for slug, of_repo in repos.items():
            repo_id = cat.get(slug).repo_id
            there = hub_repo.remote(repo_id)
            changes = staged.changes(of_repo, there)
            parents[slug] = there.commit
            files += staged.file_lines(slug, changes.by_file())
            plan += describe(repo_id, there, changes)
            problems += hub_repo.access_problems(repo_id, there)
        plan += describe_collections(cat, [cat.get(slug).repo_id for slug in repos])
    except UsageError:
        raise
    except UserError as err:
        raise UserError(
            f"{err}; nothing was changed; to continue: {settings.resume_command()}"
        ) from err
    say("\n".join(plan))
    if args.files:
        for line in files:
            jsonl.write(line)
    fail_on(problems, f"nothing was changed; to continue: {settings.resume_command()}")
    for row in () if args.files else rows:
        jsonl.write(row | {"parent_commit": parents[row["repo"]]})


def describe(repo_id: str, there: Remote, changes: Changes) -> list[str]:
    prune = settings.get("PRUNE") == "1"
    if there.commit is None:
        out = [f"{repo_id}: would be created, public"]
        for kind in hub_repo.namesakes(repo_id):
            out.append(f"  beside an existing {kind} of that name")
    elif changes.is_done(prune):
        out = [f"{repo_id}: nothing to do, at {there.commit[:12]}"]
    else:
        out = [f"{repo_id}: at {there.commit[:12]}"]
    if ".gitignore" in there.files and not changes.is_done(prune):
        out.append("  has a .gitignore; push checks first whether it excludes files")
    why = "PRUNE=1" if prune else "not part of this release; PRUNE=1 would delete"
    parts = (
        ("add", changes.add, ""),
        ("change", changes.change, ""),
        ("unchanged", changes.keep, ""),
        ("delete" if prune else "leave", changes.extra, f" ({why})"),
    )
    for what, files, note in parts:
        if files:
            out.append(f"  {what:<9} {hub_repo.total(files)}{note}")
        if what != "unchanged":
            out += [f"    {one_line(f.path)}  {human(f.bytes)}" for f in files]
    return out


def describe_collections(cat: catalog.Catalog, repo_ids: list[str]) -> list[str]:
    out = []
    for wanted in cat.collections:
        name = hub_collections.name_of(wanted)
        found = hub_collections.find(wanted)
        if found is None and wanted.slug:
            out.append(f"collection {name}: not found, though the catalog names it")
            continue
        missing = [r for r in repo_ids if found is None or r not in found.repo_ids]
        if found is None:
            out.append(f"collection {name}: would be created with {', '.join(missing)}")
        elif missing:
            out.append(f"collection {found.slug}: would gain {', '.join(missing)}")
        else:
            out.append(f"collection {found.slug}: nothing to do")
    return out
