"""Every setting: its name, its default, and where its value comes from.

A value comes from make's command line, else the environment, else `.env` in the checkout,
else the demo (if no data of your own is named), else the default. Both make and a stage run
by hand resolve settings here, and nowhere else. This runs before any package is installed,
since `.env` may set VENV, so `.env` is parsed here too.
"""

import os
import re
import typing as tp

from .cli import UsageError, UserError

if tp.TYPE_CHECKING:
    import pathlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The checkout."""

PATH, TEXT, NUMBER, IDS, SECRET = "path", "text", "number", "ids", "secret"


class Setting(tp.NamedTuple):
    name: str
    kind: str
    help: str
    default: str = ""
    shown: str = ""
    """What the documentation shows in place of `default`."""


SETTINGS = (
    Setting("SAEV_DIR", PATH, "a saev checkout: its sweep files, and `src/` as the saev that loads checkpoints"),
    Setting("RUNS_ROOT", PATH, "the runs: `<run_id>/checkpoint/sae.pt`", shown="the catalog's"),
    Setting("SHARDS_ROOT", PATH, "cached activations, one directory per shard", shown="the catalog's"),
    Setting("CATALOG", PATH, "the catalog: which repos are released, and from which runs", "catalog.json"),
    Setting("REPO", TEXT, "the slug of the repo to work on", shown="all of the catalog"),
    Setting("N", NUMBER, "checkpoints per layer, at most (2 or more: the sparsest and the densest)", "6"),
    Setting("PIN", IDS, "run ids to publish in addition to what the rule chooses"),
    Setting("EXCLUDE", IDS, "run ids to drop"),
    Setting("WANDB_ENTITY", TEXT, "the W&B entity of the runs", shown="the catalog's"),
    Setting("WANDB_PROJECT", TEXT, "the W&B project of the runs", shown="the catalog's"),
    Setting("WANDB_API_KEY", SECRET, "your W&B key; or run `wandb login` once"),
    Setting("WANDB_BASE_URL", TEXT, "the address of a self-hosted W&B server", shown="W&B's own"),
    Setting("METRICS_SNAPSHOT", PATH, "a JSONL export of runs, read instead of W&B (`bin/fetch-metrics --save-snapshot`)"),
    Setting("NMSE_SHARD", TEXT, "the shard whose inference results on disk may supply NMSE", shown="the catalog's `shard`"),
    Setting("TOKENS", NUMBER, "how many tokens `make measure` measures each run on: whole examples, evenly spaced", "1048576"),
    Setting("LAYERS", IDS, "the layers that `make measure` measures", shown="all"),
    Setting("HF_TOKEN", SECRET, "a token with write access; from the environment only"),
    Setting("HF_ENDPOINT", TEXT, "the address of another Hub", shown="the Hub"),
    Setting("HF_HUB_DISABLE_XET", TEXT, "1: upload through LFS instead of Xet"),
    Setting("HF_HUB_DOWNLOAD_TIMEOUT", NUMBER, "seconds to wait for the Hub to answer", "60"),
    Setting("PRUNE", TEXT, "1: delete files on the Hub that are not in the stage"),
    Setting("LOADER", TEXT, "`builtin`: publish checkpoints that the available saev can't load; the card says so"),
    Setting("JOBS", NUMBER, "how many files to process at once; with `EXECUTOR`, how many tasks share the runs", shown="by cores and memory"),
    Setting("EXECUTOR", TEXT, "`slurm`: run preflight and measure as a Slurm array; `local`: as processes on this machine. `BUILD`, `RUNS_ROOT` and the checkout must be on a disk that the nodes share. Finished work is kept in `build/executor`, so rerunning the command does only the rest"),
    Setting("SLURM_PARTITION", TEXT, "partition of that array"),
    Setting("SLURM_ACCOUNT", TEXT, "account of that array"),
    Setting("SLURM_TIME", NUMBER, "time limit of each of its tasks, in minutes", "60"),
    Setting("SLURM_CPUS", NUMBER, "cores for each of its tasks", shown="the cluster's"),
    Setting("SLURM_GPUS", NUMBER, "GPUs for each task of `make measure`; 1 is enough"),
    Setting("RECORDS", PATH, "records of measurements and releases, small JSON files for git; nothing here is ever deleted", "records"),
    Setting("RELEASES", PATH, "records of releases, if kept elsewhere; a rehearsal keeps its own", shown="`RECORDS`"),
    Setting("BUILD", PATH, "everything that can be rebuilt; in the environment: `SAEPUB_BUILD`", "build"),
    Setting("VENV", PATH, "the virtual environment; in the environment: `SAEPUB_VENV`", ".venv"),
    Setting("DRY_RUN", TEXT, "1: `make docs` shows what it would write"),
    Setting("TORCH_INDEX", TEXT, "a package index to install torch from, such as PyTorch's index of builds without CUDA"),
    Setting("PYTHON", TEXT, "the Python that creates the virtual environment", "python3"),
)  # fmt: skip

KNOBS = (
    *("PYTEST_ARGS", "ROWS", "TARGETS", "SECONDS_EACH", "SHARDS"),
    *("SWEEP", "VARIABLE", "WANDB_SWEEP", "DO"),
)
"""Variables of single Makefile targets, for the command line only; no program reads them."""

BY_NAME = {setting.name: setting for setting in SETTINGS}

AT_LEAST = {"N": 2}
"""The least value of a number, if not 1."""

OWN_DATA = ("SAEV_DIR", "RUNS_ROOT", "CATALOG", "METRICS_SNAPSHOT", "NMSE_SHARD")
"""Setting any of these selects the user's own data instead of the demo."""

DEMO = {
    "CATALOG": "catalog.json",
    "SAEV_DIR": "saev",
    "RUNS_ROOT": "runs",
    "SHARDS_ROOT": "shards",
    "METRICS_SNAPSHOT": "snapshot.jsonl",
    "RECORDS": "records",
}
"""The demo's settings: paths under BUILD/demo."""

NO_TOKEN = "HF_TOKEN is not set; create a token with write access and export it"

NO_RELEASE_OF_DEMO = (
    "this is the demo; set SAEV_DIR and RUNS_ROOT for your own data, or: make rehearse"
)

MADE = ("BUILD", "VENV")
"""Directories that we create and remove. Compiler scripts export variables of these names, so
in the environment ours have a prefix."""

NOT_IN_DOTENV = ("HF_TOKEN",)
"""Never read from a file: a token that can publish should not be stored on disk."""

FOR_CLIENTS = ("HF_", "WANDB_")
"""The Hub's and W&B's clients read these too, and treat an empty one as set."""

ADDRESSES = ("HF_ENDPOINT", "WANDB_BASE_URL")
"""Of servers. We send a key to them in another way, and they appear in messages and records."""

MARK = ".saepub"
"""The file that marks a directory as created by us."""


class Value(tp.NamedTuple):
    text: str
    source: str
    """Where it comes from, for messages."""


def resolve(command_line: tp.Mapping[str, str] | None = None) -> dict[str, Value]:
    """Every setting that is set anywhere, even if empty; the demo's if none names data.

    Args:
        command_line: The settings on make's command line.

    Raises:
        UserError: A setting has an invalid value; names the setting and its source.
    """
    command_line = command_line or {}
    in_file = dotenv(os.path.join(ROOT, ".env"))
    found = {}
    for name, setting in BY_NAME.items():
        exported = in_environment(name)
        if name in command_line:
            value = Value(command_line[name], "make's command line")
        elif exported in os.environ:
            value = Value(os.environ[exported], "the environment")
        elif name in in_file:
            value = in_file[name]
        else:
            continue
        found[name] = Value(_clean(setting, value), value.source)
    if not any(name in found and found[name].text for name in OWN_DATA):
        build = found["BUILD"].text if "BUILD" in found else default("BUILD")
        for name, path in DEMO.items():
            if name == "RECORDS" and name in found:
                continue  # the user's
            found[name] = Value(os.path.join(build, "demo", path), "the demo")
    return found


def _clean(setting: Setting, value: Value) -> str:
    """A value in normal form: ids separated by single spaces, a path without "~"."""
    text = value.text.strip()
    if setting.kind == IDS:
        return " ".join(split(text))
    if setting.kind == SECRET:
        return text
    if not text.isprintable():
        raise UserError(
            f"{setting.name} is {text!r} ({value.source}); it takes one line of text"
        )
    if setting.name in ADDRESSES and re.match(r"\w+://[^/]*@", text):
        raise UserError(
            f"{setting.name} has a user name or password in it ({value.source}), which would be"
            " shown and recorded; leave that out"
        )
    if setting.kind == PATH:
        text = os.path.expanduser(text)
    if setting.name in MADE and not text:
        raise UserError(
            f"{setting.name} is empty ({value.source}); name a directory or leave it out"
        )
    return text


def split(text: str) -> list[str]:
    """The ids of a list separated by commas or white space."""
    return [word for word in re.split(r"[\s,]+", text) if word]


# ---- .env --------------------------------------------------------------------------------------

_BINDING = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)[ \t]*=
    (?:[ \t]*(?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)")[ \t]*(?:\#[^\n]*)?
      |(?P<bare>(?![ \t]*['"])[^\n]*))(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_VARIABLE = re.compile(r"\\([\\\"$`])|\$(\w+)|\$\{(\w+)\}", re.ASCII)


def dotenv(fpath: str) -> dict[str, Value]:
    """The settings in an `.env` file: NAME=value lines, comments, quotes as in a shell.

    Raises:
        UserError: It can't be read, or a line is malformed or names no setting.
    """
    try:
        with open(fpath, encoding="utf-8-sig") as fd:
            text = fd.read()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise UserError(f"{fpath}: not text (UTF-8)") from None
    except OSError as err:
        raise UserError(f"{fpath}: {err.strerror}") from None
    found: dict[str, Value] = {}
    at = 0
    while at < len(text):
        where = f"{fpath}:{text.count(chr(10), 0, at) + 1}"
        if blank := re.compile(r"[^\S\n]*(#[^\n]*)?(\n|\Z)").match(text, at):
            at = blank.end()
            continue
        binding = _BINDING.match(text, at)
        if binding is None:
            raise UserError(
                f"{where}: not NAME=value, or a quote in it is never closed"
            )
        _check_name(binding["name"], where)
        found[binding["name"]] = Value(_dotenv_value(binding, found, where), where)
        at = binding.end()
    return found


def _check_name(name: str, where: str) -> None:
    if name in NOT_IN_DOTENV:
        raise UserError(
            f"{where}: {name} is read from the environment only; delete this line and export it"
            " in your shell"
        )
    if name not in BY_NAME:
        raise UserError(
            f"{where}: {name} is not a setting; {suggestion(name, BY_NAME)}"
        )


IN_README = "README.md lists them; variables for other programs belong in your shell"


def suggestion(name: str, names: tp.Iterable[str], otherwise: str = IN_README) -> str:
    """Advice on a name that is not one of `names`: the nearest, or else `otherwise`."""
    import difflib  # slow to import

    def plain(text: str) -> str:
        return text.replace("_", "").replace("-", "").upper()

    by_plain = {plain(known): known for known in names}
    close = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=0.5)
    return f"did you mean {by_plain[close[0]]}?" if close else otherwise


def _dotenv_value(binding: re.Match[str], above: dict[str, Value], where: str) -> str:
    is_path = BY_NAME[binding["name"]].kind == PATH
    has_escapes = binding["double"] is not None

    def put(match: re.Match[str]) -> str:
        if match[1]:
            return match[1] if has_escapes else match[0]
        name = match[2] or match[3]
        if not is_path:
            return match[0]
        if name in above:
            return above[name].text
        if name not in os.environ:
            raise UserError(
                f"{where}: ${name} is not set; for a literal $ use single quotes"
            )
        return os.environ[name]

    if binding["single"] is not None:
        text = binding["single"]
    elif binding["double"] is not None:
        text = _VARIABLE.sub(put, binding["double"])
    else:
        # A comment starts behind a space, as in a shell.
        text = _VARIABLE.sub(put, re.sub(r"\s#.*", "", binding["bare"]).strip())
    return in_checkout(text) if is_path and text and text[0] != "~" else text


def in_checkout(path: str) -> str:
    """A path relative to the checkout, as this process can open it."""
    return path if os.getcwd() == ROOT else os.path.join(ROOT, path)


# ---- for the stages ----------------------------------------------------------------------------


def load(found: tp.Mapping[str, Value] | None = None) -> None:
    """Put all settings into `os.environ`, for this process and its children.

    Args:
        found: The settings, if already resolved.

    Raises:
        UserError: As `resolve`.
    """
    for name, value in (resolve() if found is None else found).items():
        if value.text or not name.startswith(FOR_CLIENTS):
            os.environ[in_environment(name)] = value.text
        else:
            os.environ.pop(name, None)


def in_environment(name: str) -> str:
    """The name of a setting's environment variable."""
    return f"SAEPUB_{name}" if name in MADE else name


def value_of(name: str, found: tp.Mapping[str, Value]) -> Value:
    """A resolved setting's value, or its default."""
    if name in found and found[name].text:
        return found[name]
    text = default(name)
    return Value(text, "the default" if text else "")


def default(name: str) -> str:
    text = BY_NAME[name].default
    return in_checkout(text) if text and BY_NAME[name].kind == PATH else text


def get(name: str) -> str:
    """The setting's value; "" if it is not set and has no default."""
    return os.environ.get(in_environment(name)) or default(name)


def resume_command(otherwise: str = "the same command") -> str:
    """The command that resumes where this one stops; make passes it in AGAIN."""
    return os.environ.get("AGAIN") or otherwise


def need(name: str, why: str) -> str:
    """The setting's value.

    Raises:
        UserError: It is not set.
    """
    value = get(name)
    if not value:
        raise UserError(f"{name} is not set ({why}); export it or write it in .env")
    return value


def ids(name: str) -> list[str]:
    """The run ids that a setting lists."""
    return split(get(name))


def number(name: str) -> int | None:
    """A setting's value as a whole number; None if it is not set. Raises as `whole_number`."""
    text = get(name).strip()
    return whole_number(name, text) if text else None


def whole_number(name: str, text: str, source: str = "") -> int:
    """The number that a text says.

    Args:
        source: Where it comes from, for the message.

    Raises:
        UsageError: It is not a whole number, or too small for the setting.
    """
    least = AT_LEAST.get(name, 1)
    if text.isascii() and text.isdecimal() and int(text) >= least:
        return int(text)
    where = f" ({source})" if source else ""
    raise UsageError(
        f"{name} is {text!r}{where}; it takes a whole number, {least} or more"
    )


def is_demo_fpath(fpath: "str | pathlib.Path") -> bool:
    return os.path.abspath(fpath).startswith(
        os.path.join(os.path.abspath(get("BUILD")), "demo", "")
    )


def build_dpath() -> "pathlib.Path":
    """The directory of everything that can be rebuilt."""
    import pathlib  # slow to import, and the light stages don't need it

    return pathlib.Path(get("BUILD"))


def records_dpath() -> "pathlib.Path":
    """The directory of the records of measurements and releases. We never delete anything here."""
    import pathlib

    return pathlib.Path(get("RECORDS"))


def releases_dpath() -> "pathlib.Path":
    """The directory of the records of releases, a rehearsal's where this is one."""
    import pathlib

    return pathlib.Path(get("RELEASES") or get("RECORDS"))


# ---- directories that we create and remove -----------------------------------------------------


def claim(name: str) -> None:
    """Create the directory that a setting of `MADE` names, with our mark, unless it has one.

    Raises:
        UserError: It is not ours to fill and remove; see `check_made`.
    """
    path = get(name)
    check_made(name, path)
    if is_ours(path):
        return
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, MARK), "w") as fd:
        fd.write(
            "Created by saepub. make clean and make distclean delete what is in here.\n"
        )


def claim_new(name: str) -> None:
    """Claim the directory if it doesn't exist yet. Raises as `claim`."""
    if not os.path.lexists(get(name)):
        claim(name)


def check_made(name: str, path: str) -> None:
    """Raise UserError unless a directory is ours to fill and remove."""
    real = os.path.realpath(path)
    for kept, what in _kept(name).items():
        if os.path.join(os.path.realpath(kept), "").startswith(os.path.join(real, "")):
            raise UserError(
                f"{name} is {path}, which contains {what}; name a separate directory"
            )
    if (
        not is_ours(path)
        and os.path.lexists(path)
        and (not os.path.isdir(path) or os.listdir(path))
    ):
        raise UserError(
            f"{name} is {path}, which is not empty and was not created by saepub"
            f" (it has no {MARK}); name another directory"
        )


def _kept(name: str) -> dict[str, str]:
    """The paths that a directory we remove must not contain, and what each is."""
    kept = {ROOT: "this checkout", os.path.expanduser("~"): "your home"}
    demo = os.path.join(os.path.realpath(get("BUILD")), "demo", "")
    hub = os.path.join(os.path.realpath(get("BUILD")), "hub", "")
    data = ("RECORDS", "RELEASES", "SAEV_DIR", "RUNS_ROOT", "SHARDS_ROOT", "CATALOG")
    for other in (*data, *MADE):
        path = get(other)
        if (
            other != name
            and path
            and not os.path.realpath(path).startswith((demo, hub))
        ):
            kept[path] = other
    return kept


def is_ours(path: str) -> bool:
    return os.path.isfile(os.path.join(path, MARK))
