"""settings: show how every setting is resolved, for people and, at each call, for make.

The Makefile can't be read without a virtual environment and a catalog, so for make this also
creates both (the demo's, if no data is set). Each setting that a target depends on has a file under
BUILD/.settings that is rewritten when its value changes, and that is what the target depends on.
If a setting names a file, the file's size and time are part of the value. So make never sees a user's path.
"""

import contextlib
import glob
import json
import os
import re
import subprocess
import sys
import time
import typing as tp

from .. import settings
from ..cli import UsageError, UserError, message_of, parser
from ..files import remove_leftovers, write_aside
from ..text import say

LINE_END = "¶"
"""Stands for a newline in what we pass to make: $(shell) turns newlines into spaces."""

FOR_MAKE = r"[\w./+@,-]+"
"""A path that can be a target: without characters that are special to make or a shell."""

STAMPED = (
    *("SAEV_DIR", "RUNS_ROOT", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_BASE_URL"),
    *("NMSE_SHARD", "EXCLUDE", "PIN", "N", "REPO", "LOADER"),
)
"""The settings that targets depend on by their value; on three others, by their files' times."""

NOT_FOR_MAKE = {
    "i": "would go on past a failure, with what an earlier run left",
    "t": "would take old results for current ones",
}
"""Options of make that would lead to a release of something else."""


class Call(tp.NamedTuple):
    """How make was called."""

    flags: str = ""
    goals: str = ""
    overrides: str = ""
    """The variables on its command line, as MAKEOVERRIDES has them."""
    need_no_data: str = ""
    """The goals that need only settings, no catalog."""

    @property
    def letters(self) -> set[str]:
        """The options without a value, each a letter."""
        first = self.flags.split(" ")[0]
        return set() if first.startswith("-") else set(first)

    @property
    def changes_nothing(self) -> bool:
        """Whether make was only asked what it would do (-n, -q)."""
        return bool({"n", "q"} & self.letters)


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


# ---- for make ----------------------------------------------------------------------------------


def for_make(call: Call) -> tp.Iterator[str]:
    """Makefile lines. An error becomes lines too, so that make itself reports it and stops."""
    goals = call.goals.split()
    try:
        for letter, what in NOT_FOR_MAKE.items():
            if letter in call.letters:
                raise UserError(f"make -{letter} {what}; leave out -{letter}")
        given = command_line(call.overrides)
        found = settings.resolve(given)
        check(found)
        given = {
            name: found[name].text if name in found else text
            for name, text in given.items()
        }
        settings.load(found)
        if "release" in goals and not call.changes_nothing:
            check_release()
        yield from assignments(found, given)
        resume = settings.resume_command(make_command(goals, given))
        yield f"export AGAIN := {quote(resume)}"
        if not set(goals) <= {"help", *call.need_no_data.split()}:
            yield from pipe(call.changes_nothing)
    except (UserError, OSError) as err:
        yield f"saepub_error := {quote(message_of(err))}"
        yield "$(error $(saepub_error))"


def command_line(overrides: str) -> dict[str, str]:
    """The variables on make's command line, in which "\\" escapes spaces and "$" is doubled.

    Raises:
        UserError: It sets a secret, or a variable that nothing reads.
    """
    given = {}
    for word in re.findall(r"(?:[^\s\\]|\\.)+", overrides, re.DOTALL):
        name, _, text = re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL).partition("=")
        name = name.rstrip(":+?!")
        if name in settings.BY_NAME and settings.BY_NAME[name].kind == settings.SECRET:
            raise UserError(
                f"{name} on a command line is visible to every user; export it instead"
            )
        names = (*settings.BY_NAME, *settings.KNOBS)
        if name not in (*names, "AGAIN"):
            raise UserError(
                f"{name} is not a setting; {settings.suggestion(name, names)}"
            )
        given[name] = text.replace("$$", "$").replace(LINE_END, "\n")
    return given


def check(found: tp.Mapping[str, settings.Value]) -> None:
    """Raise UserError if a value is invalid, before anything is built."""
    for name, (text, source) in found.items():
        if settings.BY_NAME[name].kind == settings.NUMBER and text:
            settings.whole_number(name, text, source)
        if name in settings.MADE and not re.fullmatch(FOR_MAKE, text):
            raise UserError(
                f"{name} is {text} ({source}); it may have letters, digits and . / _ + @ , - only,"
                " for make's sake; name another directory"
            )
        if LINE_END in text:
            raise UserError(
                f"{name} ({source}) contains {LINE_END}, which can't be passed to make"
            )


def check_release() -> None:
    """Raise UserError if a release can't succeed, before hours of preflight rather than after.

    push checks all of this again, and much else.
    """
    is_demo = settings.is_demo_fpath(settings.get("CATALOG"))
    if is_demo and not settings.get("HF_ENDPOINT"):
        raise UserError(settings.NO_RELEASE_OF_DEMO)
    if not settings.get("HF_TOKEN"):
        raise UserError(f"{settings.NO_TOKEN}, or: make rehearse")


def assignments(
    found: tp.Mapping[str, settings.Value], given: tp.Mapping[str, str]
) -> tp.Iterator[str]:
    """Every setting that is set, for make and the programs that it starts."""
    for name in settings.MADE:
        text = found[name].text if name in found else settings.BY_NAME[name].default
        yield f"override {name} := {quote(text)}"
        yield f"export SAEPUB_{name} := {quote(text)}"
        yield f"unexport {name}"
    for name, value in found.items():
        if name not in settings.MADE and settings.BY_NAME[name].kind != settings.SECRET:
            yield f"override export {name} := {quote(value.text)}"
    yield f"NODE := {quote(os.uname().nodename)}"
    for name in settings.KNOBS:
        yield f"override {name} := {quote(given.get(name, ''))}"


def quote(text: str) -> str:
    """Escape text for the right-hand side of an assignment."""
    text = re.sub(r"(\\*)#", r"\1\1\\#", text.replace("$", "$$"))
    return text + "$()" if text.endswith("\\") else text


def make_command(goals: list[str], given: tp.Mapping[str, str]) -> str:
    """The make command that is running."""
    import shlex

    return " ".join(
        ["make", *goals, *(f"{k}={shlex.quote(v)}" for k, v in given.items())]
    )


# ---- for make: what the pipe needs -------------------------------------------------------------


def pipe(changes_nothing: bool) -> tp.Iterator[str]:
    """Makefile lines on the catalog's repos; also updates the settings' files."""
    is_demo = settings.is_demo_fpath(settings.get("CATALOG"))
    lacks_demo = is_demo and not os.path.exists(settings.get("CATALOG"))
    if changes_nothing and (not is_set_up() or lacks_demo):
        raise UserError("nothing is set up yet; run: make setup demo")
    settings.check_made("BUILD", settings.get("BUILD"))
    set_up()
    if lacks_demo:
        run("bin/demo")
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
        tidy()
    yield f"SLUGS := {' '.join(repos)}"
    yield f"CHOSEN := {' '.join(chosen)}"
    yield f"is_demo := {'yes' if is_demo else ''}"
    for name in STAMPED:
        stamps.update(name, settings.get(name))
    stamps.update("CATALOG", with_time(settings.get("CATALOG")))
    measured = os.path.join(settings.get("RECORDS"), "measured")
    stamps.update("RECORDS", with_time(measured))
    stamps.update("METRICS_SNAPSHOT", with_time(settings.get("METRICS_SNAPSHOT")))
    for slug, entry in repos.items():
        stamps.update(f"entry.{slug}", json.dumps(entry))
        stamps.update(f"expected.{slug}", json.dumps(without_words(entry)))
        stamps.update(f"sources.{slug}", "".join(map(with_time, files_of(entry))))
        if facts := own_facts(entry):
            yield f"facts.{slug} := {quote(facts)}"
    if stamps.changed and changes_nothing:
        yield f".PHONY: {' '.join(stamps.changed)}"


class Stamps:
    """One file per setting, rewritten when its value changes, as a prerequisite in make."""

    def __init__(self, build: str, changes_nothing: bool):
        self._dpath = os.path.join(build, ".settings")
        self._changes_nothing = changes_nothing
        self.changed: list[str] = []

    def is_current(self, name: str, value: str) -> bool:
        """Whether a value is the same as at the last call."""
        try:
            with open(os.path.join(self._dpath, name), encoding="utf-8") as fd:
                return fd.read() == value
        except (OSError, ValueError):
            return False

    def update(self, name: str, value: str) -> None:
        if self.is_current(name, value):
            return
        fpath = os.path.join(self._dpath, name)
        self.changed.append(fpath)
        if not self._changes_nothing:
            with write_aside(fpath) as fd:
                fd.write(value)


def of_catalog(stamps: Stamps) -> dict[str, tp.Any]:
    """By slug, each repo's entry and the catalog's common part.

    A valid catalog is not checked again until it changes: that would take longer than the rest
    of a make that has nothing to do.

    Raises:
        UserError: The catalog has errors.
    """
    fpath = settings.get("CATALOG")
    if not stamps.is_current("CATALOG", with_time(fpath)):
        from .. import catalog  # slow to import

        catalog.load()
    with open(fpath, encoding="utf-8-sig") as fd:
        whole = json.load(fd)
    rest = {
        key: what for key, what in whole.items() if key not in ("repos", "collections")
    }
    return {entry["slug"]: [entry, rest] for entry in whole["repos"]}


WORDS = {"title", "base_model", "license", "links", "contact", "citation", "tags"}
WORDS |= {"datasets", "tokens", "recipe"}
"""The keys of a catalog that only the card shows: changing them rebuilds only the card."""


def without_words(entry: tp.Any) -> tp.Any:
    """An entry without the keys that only the card shows."""
    repo, rest = entry
    lab = rest.get("lab") or {}
    return [{k: v for k, v in node.items() if k not in WORDS} for node in (repo, lab)]


def own_facts(entry: tp.Any) -> str:
    """The command of a lab's own facts filter; "" if it has none."""
    repo, rest = entry
    name = repo.get("facts") or rest.get("lab", {}).get("facts")
    if not name:
        return ""
    import shlex

    fpath = os.path.join(os.path.dirname(settings.get("CATALOG")), name)
    return f"HOME=/dev/null jq -cf {shlex.quote(fpath)}"


def files_of(entry: object) -> list[str]:
    """Every existing file that an entry names, under SAEV_DIR or beside the catalog."""
    if isinstance(entry, str):
        roots = (settings.get("SAEV_DIR"), os.path.dirname(settings.get("CATALOG")))
        paths = [os.path.join(root, entry) for root in roots if entry]
        return [path for path in paths if os.path.isfile(path)]
    if isinstance(entry, dict):
        entry = list(entry.values())
    parts = entry if isinstance(entry, list) else []
    return [path for part in parts for path in files_of(part)]


def with_time(path: str) -> str:
    """A path with its file's size and modification time."""
    try:
        stat = os.stat(path)
    except OSError:
        return path
    return f"{path} {stat.st_size} {stat.st_mtime_ns}\n"


def is_set_up() -> bool:
    """Whether VENV exists and its packages are up to date."""
    venv = settings.get("VENV")
    files = [
        os.path.join(settings.ROOT, name)
        for name in ("requirements.txt", "constraints.txt")
    ]
    try:
        ready = os.stat(os.path.join(venv, ".ready")).st_mtime_ns
    except OSError:
        return False
    return os.access(os.path.join(venv, "bin/python"), os.X_OK) and all(
        os.stat(fpath).st_mtime_ns <= ready for fpath in files
    )


def set_up() -> None:
    """Set up VENV if necessary, and restart in it."""
    venv = settings.get("VENV")
    if not is_set_up():
        run("bin/setup")
    if os.path.realpath(sys.prefix) != os.path.realpath(venv):
        program = os.path.join(settings.ROOT, "bin/settings")
        os.dup2(sys.stdout.fileno(), 1)
        os.execv(program, [program, *sys.argv[1:]])


def run(program: str) -> None:
    """Run a program of ours. Raises UserError if it fails; it has printed why."""
    done = subprocess.run([os.path.join(settings.ROOT, program)], stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"{program} failed")


def tidy() -> None:
    """Remove what killed programs left, and have files dated in the future rebuilt.

    After the clock was set back, such a file would look newer than everything it depends on.
    """
    build, soon = glob.escape(settings.get("BUILD")), time.time() + 60
    for dpath in glob.glob(os.path.join(build, "*/")):
        remove_leftovers(dpath)
    names = ("*/*.jsonl", "known-ids", "*/summary.txt", "*.html", ".settings/*")
    for fpath in (f for name in names for f in glob.glob(os.path.join(build, name))):
        # Another make may be removing it right now.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(fpath).st_mtime > soon:
                say(f"make: {fpath} is dated in the future; rebuilding it")
                os.utime(fpath, None if ".settings" in fpath else (0, 0))
    for fpath in glob.glob(os.path.join(build, "*/staged.jsonl")):
        manifest = os.path.join(os.path.dirname(fpath), "stage/manifest.jsonl")
        if not os.path.exists(manifest):
            os.utime(fpath, (0, 0))  # the stage was removed by hand
