"""How make was called, and the Makefile's variables that it gets in return."""

import os
import re
import shlex
import typing as tp

from .. import settings
from ..cli import UserError

LINE_END = "¶"
"""Stands for a newline in what we pass to make: $(shell) turns newlines into spaces."""

FOR_MAKE = r"[\w./+@,-]+"
"""A path that can be a target: without characters that are special to make or a shell."""

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
    return " ".join(
        ["make", *goals, *(f"{k}={shlex.quote(v)}" for k, v in given.items())]
    )
