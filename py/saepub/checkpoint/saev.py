"""Loads checkpoints with the available saev: SAEV_DIR's checkout, else the installed release.

People will call its `saev.nn.load` on the published files, so preflight calls it too, unchanged,
on the CPU, and checks what it returns.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import typing as tp

from .. import checkpoint, files, settings
from ..cli import SetupError, UserError
from ..text import one_line
from . import header as checkpoint_header
from .header import Header

DIRTY = "-dirty"
UNKNOWN = "saev (commit unknown)"
"""The label of a checkout whose commit is unknown. Its version doesn't identify it: saev has not
changed that since before the files that it reads."""


@dataclasses.dataclass(frozen=True)
class Source:
    """How other people can install the available saev."""

    requirement: str | None = None
    """A requirement for pip; None if nobody else could install it."""
    python: str | None = None
    """The Python versions that it supports, as ">=3.12"."""
    why_not: str = ""
    """Why there is no requirement."""


@dataclasses.dataclass(frozen=True)
class Saev:
    nn: tp.Any
    """The module `saev.nn`."""
    label: str
    """"saev" and its commit or version."""
    is_checkout: bool
    source: Source = Source()

    def load(self, fpath: str) -> tp.Any:
        """Load a checkpoint as a model (torch.nn.Module, in eval mode).

        Parameters that saev would initialize at random are NaN until the file's values
        replace them.

        Raises:
            UserError: saev refuses the file. The message doesn't name the file.
        """
        try:
            with _quiet_stdout(), _no_draws():
                return self.nn.load(fpath).eval()
        except Exception as err:  # noqa: BLE001, whatever it raises is a refusal
            why = one_line(f"{type(err).__name__}: {err}")
            raise UserError(
                f"{self.label} refuses it: {' '.join(why.split())}"
            ) from None

    def why_not(self, header: Header) -> str:
        """Why it can't read headers like this one; "" if it can."""
        return _why_not(self, json.dumps(checkpoint_header.shrunk(header).raw))

    def run(self, model: tp.Any, x: tp.Any) -> tuple[tp.Any, tp.Any, bool]:
        """Run a loaded model.

        Args:
            model: From `load`.
            x: Activations, (n, d_model), float32.

        Returns:
            f_x (n, d_sae), x_hat (n, d_model), and whether this saev subtracts b_dec from x
            before encoding, as only versions did whose forward also returned the loss.
        """
        import torch

        with torch.no_grad(), _quiet_stdout():
            out = model(x)
        if hasattr(out, "f_x"):
            return out.f_x, out.x_hats[:, -1], False
        x_hat, f_x = out[0], out[1]
        x_hat = x_hat[:, -1] if x_hat.ndim == 3 else x_hat
        return f_x, x_hat, len(out) == 3


@functools.cache
def _why_not(saev: Saev, header: str) -> str:
    """Load a tiny checkpoint with this header, instead of relying on saev's version.

    saev might refuse a real file because of some fault in it; this one has none.
    """
    import torch

    shapes = checkpoint_header.parse(header.encode()).shapes
    buffer = io.BytesIO()
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, buffer)
    with checkpoint.open_memory() as fd:
        fd.write(header.encode() + b"\n" + buffer.getvalue())
        fd.seek(0)
        try:
            saev.load(f"/dev/fd/{fd.fileno()}")
        except UserError as err:
            return str(err)
    return ""


@functools.cache
def available() -> Saev:
    """Import the saev that the SAEV_DIR setting names, else the installed one.

    Raises:
        SetupError: It can't be imported.
    """
    src_dpath = checkout_src()
    where = str(src_dpath or "the installed saev")
    if src_dpath:
        sys.path.insert(0, str(src_dpath))
    try:
        with _quiet_stdout():
            nn = importlib.import_module("saev.nn")
    except ModuleNotFoundError as err:
        name = one_line(err.name)
        if not src_dpath and name == "saev":
            raise SetupError("saev is not installed; run: make setup") from None
        raise SetupError(f"{where} needs the package {name}; install it") from None
    except Exception as err:  # noqa: BLE001, it is not our code
        why = one_line(f"{type(err).__name__}: {err}")
        raise SetupError(f"{where} can't be imported: {why}") from None
    if src_dpath:
        name = commit(src_dpath)
        label = f"saev {name[:12]}{DIRTY * name.endswith(DIRTY)}" if name else UNKNOWN
        return Saev(nn, label, True, _source_of(src_dpath, name))
    label, source = _installed()
    return Saev(nn, label, False, source)


def identity() -> list[tp.Any]:
    """What distinguishes this saev from another, as JSON: label, source and checkout's files.

    Raises:
        SetupError: It can't be imported.
    """
    src_dpath = checkout_src()
    fpaths = sorted(src_dpath.rglob("*.py")) if src_dpath else []
    source = dataclasses.asdict(available().source)
    return [available().label, source, files.facts(fpaths)]


def environment() -> dict[str, str]:
    """The environment with which another process finds the same saev, from any directory."""
    saev_dir = settings.get("SAEV_DIR")
    return {"SAEV_DIR": os.path.abspath(saev_dir)} if saev_dir else {}


def checkout_src() -> pathlib.Path | None:
    """src/ of the checkout that SAEV_DIR names; None if it is not set or has no saev."""
    saev_dir = settings.get("SAEV_DIR")
    src_dpath = pathlib.Path(saev_dir).resolve() / "src"
    return src_dpath if saev_dir and (src_dpath / "saev").is_dir() else None


def commit(src_dpath: pathlib.Path) -> str:
    """The checkout's commit, with "-dirty" if src/ differs from it; "" if git can't say."""
    try:
        top = _git(src_dpath, "rev-parse", "--show-toplevel")
        if pathlib.Path(top) != src_dpath.parent:
            return ""  # a copy inside another project's checkout
        name = _git(src_dpath, "rev-parse", "HEAD")
        status = ("status", "--porcelain", "--untracked-files=no", "--", ".")
        return name + DIRTY * bool(_git(src_dpath, *status))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(dpath: pathlib.Path, *args: str) -> str:
    # git refuses another user's checkout, as one shared on a cluster may be.
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false"]
    return subprocess.run(
        [*command, "-C", str(dpath), *args],
        check=True,
        # In a git hook, GIT_* would point to another checkout.
        env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout.strip()


def _source_of(src_dpath: pathlib.Path, name: str) -> Source:
    """How other people can install a checkout whose `commit` is `name`."""
    python = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        project = (src_dpath.parent / "pyproject.toml").read_text(encoding="utf-8")
        python = one_line(tomllib.loads(project)["project"]["requires-python"])
    if not name:
        is_clone = (src_dpath.parent / ".git").exists()
        why = "is a clone whose commit git can't tell (is git installed?)"
        return Source(None, python, why if is_clone else "has no git history")
    if name.endswith(DIRTY):
        return Source(None, python, "has uncommitted changes")
    try:
        url = public_url(_git(src_dpath, "remote", "get-url", "origin"))
        is_public = _git(src_dpath, "branch", "--remotes", "--contains", name)
    except (OSError, subprocess.CalledProcessError):
        url, is_public = "", ""
    if not url or not is_public:
        return Source(None, python, "is at a commit that no remote branch has")
    return Source(f"saev @ git+{url}@{name}", python)


def public_url(remote: str) -> str:
    """A git remote's https address without user name and password; "" if it has none."""
    found = re.fullmatch(
        r"(?:https://|ssh://|git://)?(?:[^@/\s]*@)?([A-Za-z0-9.-]+\.[A-Za-z]+)[:/]"
        r"([A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)+)/?",
        remote,
    )
    return f"https://{found[1]}/{found[2].removesuffix('.git')}" if found else ""


def _installed() -> tuple[str, Source]:
    """The installed saev's label and source."""
    from importlib import metadata  # slow to import

    try:
        package = metadata.distribution("saev")
    except metadata.PackageNotFoundError:  # it is on PYTHONPATH
        return UNKNOWN, Source(None, None, "is not installed as a package")
    metadata_of: tp.Any = package.metadata
    python = metadata_of.get("Requires-Python")
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    name = origin.get("vcs_info", {}).get("commit_id")
    url = public_url(str(origin.get("url", "")))
    if name and url:
        return f"saev {name[:12]}", Source(f"saev @ git+{url}@{name}", python)
    label = f"saev {one_line(package.version)}"
    if origin:
        return label, Source(None, python, "was installed from a directory")
    if package.version == "0.1.0":
        why_not = "is a release whose forward differs from today's"
        return label, Source(None, python, why_not)
    return label, Source(f"saev=={package.version}", python)


def _quiet_stdout() -> contextlib.AbstractContextManager[tp.Any]:
    """Send what saev prints to stderr: stdout is for data only."""
    return contextlib.redirect_stdout(sys.stderr)


def _no_draws() -> contextlib.AbstractContextManager[tp.Any]:
    """Replace random initialization of a module's tensors by NaN.

    Drawing numbers that the file's values overwrite took half of the loading time. A value
    that is not overwritten stays NaN, which no checked file contains.
    """
    import torch

    init = torch.nn.init
    draws: set[tp.Any] = {
        *(torch.Tensor.uniform_, init.uniform_),
        *(init.kaiming_uniform_, init.xavier_uniform_),
        *(torch.Tensor.normal_, init.normal_),
        *(init.kaiming_normal_, init.xavier_normal_),
    }

    class NoDraws(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self,
            func: tp.Any,
            types: tp.Any,
            args: tuple[tp.Any, ...] = (),
            kwargs: dict[str, tp.Any] | None = None,
        ) -> tp.Any:
            kwargs = kwargs or {}
            if func not in draws:
                return func(*args, **kwargs)
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).fill_(torch.nan)

    return NoDraws()
