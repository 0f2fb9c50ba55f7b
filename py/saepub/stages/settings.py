"""settings: show how every setting is resolved, for people and, at each call, for make.

The Makefile can't be read without a virtual environment and a catalog, so for make this also
creates both (the demo's, if no data is set).
"""

import typing as tp

from .. import settings
from ..cli import UsageError, UserError, message_of, parser
from ..making import call as making
from ..making import ready
from ..making.call import LINE_END, Call, quote
from ..making.stamps import Stamps, of_catalog, own_facts


def main(argv: list[str]) -> None:
    p = parser(
        "Show every setting as make and the stages resolve it, and where its value comes from.",
        "bin/settings\nbin/settings --value RUNS_ROOT",
    )
    p.add_argument(
        "--value", metavar="NAME", help="print only the value of this setting"
    )
    p.add_argument(
        "--claim", metavar="NAME", help="create BUILD or VENV, with our mark; print it"
    )
    p.add_argument(
        "--make", nargs="*", metavar="KEY=TEXT", help="print all settings for make"
    )
    args = p.parse_args(argv)
    if args.make is not None:
        call = Call(**dict(word.split("=", 1) for word in args.make))
        print(LINE_END.join(for_make(call)))
    elif args.claim:
        settings.load()
        settings.claim(args.claim)
        print(settings.get(args.claim))
    elif args.value:
        if args.value not in settings.BY_NAME:
            hint = settings.suggestion(args.value, settings.BY_NAME)
            raise UsageError(f"{args.value} is not a setting; {hint}")
        print(settings.value_of(args.value, settings.resolve()).text)
    else:
        show()


def show() -> None:
    found = settings.resolve()
    for name, setting in settings.BY_NAME.items():
        text, source = settings.value_of(name, found)
        if setting.kind == settings.SECRET and text:
            text = "(set)"
        print(f"{name:24} {text:40}  {source}".rstrip())


def for_make(call: Call) -> tp.Iterator[str]:
    """Makefile lines. An error becomes lines too, so that make itself reports it and stops."""
    goals = call.goals.split()
    try:
        for letter, what in making.NOT_FOR_MAKE.items():
            if letter in call.letters:
                raise UserError(f"make -{letter} {what}; leave out -{letter}")
        given = making.command_line(call.overrides)
        found = settings.resolve(given)
        making.check(found)
        given = {
            name: found[name].text if name in found else text
            for name, text in given.items()
        }
        settings.load(found)
        if "release" in goals and not call.changes_nothing:
            check_release()
        yield from making.assignments(found, given)
        resume = settings.resume_command(making.make_command(goals, given))
        yield f"export AGAIN := {quote(resume)}"
        if not set(goals) <= {"help", *call.need_no_data.split()}:
            yield from pipe(call.changes_nothing)
    except (UserError, OSError) as err:
        yield f"saepub_error := {quote(message_of(err))}"
        yield "$(error $(saepub_error))"


def check_release() -> None:
    """Raise UserError if a release can't succeed, before hours of preflight rather than after.

    push checks all of this again, and much else.
    """
    is_demo = settings.is_demo_fpath(settings.get("CATALOG"))
    if is_demo and not settings.get("HF_ENDPOINT"):
        raise UserError(settings.NO_RELEASE_OF_DEMO)
    if not settings.get("HF_TOKEN"):
        raise UserError(f"{settings.NO_TOKEN}, or: make rehearse")


def pipe(changes_nothing: bool) -> tp.Iterator[str]:
    """Makefile lines on the catalog's repos; also updates the settings' files."""
    is_demo = settings.is_demo_fpath(settings.get("CATALOG"))
    ready.make_ready(is_demo, changes_nothing)
    stamps = Stamps(settings.get("BUILD"), changes_nothing)
    repos = of_catalog(stamps)
    chosen = settings.split(settings.get("REPO")) or list(repos)
    for slug in chosen:
        if slug not in repos:
            hint = settings.suggestion(slug, repos, f"it has: {' '.join(repos)}")
            raise UserError(
                f'REPO: {settings.get("CATALOG")} has no repo "{slug}"; {hint}'
            )
    if not changes_nothing:
        settings.claim("BUILD")
        ready.tidy()
    yield f"SLUGS := {' '.join(repos)}"
    yield f"CHOSEN := {' '.join(chosen)}"
    yield f"is_demo := {'yes' if is_demo else ''}"
    for slug, entry in repos.items():
        if facts := own_facts(entry):
            yield f"facts.{slug} := {quote(facts)}"
    stamps.update_all(repos)
    if stamps.changed and changes_nothing:
        yield f".PHONY: {' '.join(stamps.changed)}"
