"""A virtual environment whose Python runs our stages as forks of one process.

Programs that tests run would spend most of their time importing the same packages. So one process
imports them, and each stage is a fork of it, with the arguments, environment, directory, streams,
umask and signals of the `python` that was started to run it. The fork executes the very code in
py/launch.sh. Whatever else that `python` is asked to do, the real one does.

Not imported in advance are our own code, saev and the Hub's client: where they are found, and what
they read from the environment while they are imported, differs between tests.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import linecache
import locale
import marshal
import os
import pathlib
import re
import resource  # noqa: F401, used in PLACE
import selectors
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import typing as tp
import weakref

IMPORTS = ("torch", "numpy", "pydantic", "jinja2", "yaml", "tqdm", "httpx2", "trio")
IMPORTS += ("google.protobuf.json_format", "beartype", "jaxtyping", "einops")
IMPORTS += (
    "PIL.PngImagePlugin",
    "pyparsing",
    "dateutil.rrule",
    "kiwisolver",
    "contourpy",
    "wandb",
    "wandb.apis.public",
)

OPTIONS = ("-I", "-S", "-X", "utf8")
"""Python's, as py/launch.sh starts a stage."""

ENV = {"OMP_NUM_THREADS": "1"}
"""What torch and numpy find when they are imported: the same as in `bare_env`."""

READ_BY_WANDB = (
    *("WANDB_DISABLE_CACHE", "WANDB_HTTP_TIMEOUT", "WANDB_INSECURE_DISABLE_SSL"),
    *("WANDB_LAUNCH_START_TIMEOUT", "WANDB_ONLY_INCLUDE"),
)
"""What it finds when it is imported. A stage that is given any of these imports it anew."""

PLACE = """[
    *(resource.getrlimit(n) for n in range(10)),
    *(os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "net", "pid", "user")),
    open("/proc/self/cgroup").read(), os.getresuid(), os.getgroups(), os.sched_getaffinity(0),
]"""
"""Evaluates to what a process may use and see. Where it differs, the real Python runs."""

PYTHON = """#!{base} -IS
import _signal, _socket, marshal, os, resource, sys

argv, asked = sys.argv[1:], None
read = ("OMP_", "MKL_", "KMP_", "LD_", "MALLOC_", "GLIBC_", "TORCH", "TQDM_")
env = {{k: v for k, v in os.environ.items() if k.startswith(read)}}
is_ours = argv[:5] == {options} and "saepub" in argv[5]
try:
    [os.fstat(fd) for fd in range(3)]
    where = os.getcwdb()
    if is_ours and env == {env} and {place_code} == {place}:
        ends = [n for n in (1, 2, 3, 15) if _signal.getsignal(n) != _signal.SIG_IGN]
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ends)
        umask = os.umask(0)
        asked = (argv[5:], dict(os.environb), where, umask, ends)
except OSError:
    pass
if asked is None:
    os.execv("{base}", ["{python}", *argv])
conn = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
conn.connect("{address}")
asked = marshal.dumps(asked)
fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in range(3))
rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)
conn.sendmsg([len(asked).to_bytes(8, "big")], [rights])
conn.sendall(asked)
for n in ends:
    _signal.signal(n, lambda n, _: conn.send(bytes([n])))
_signal.pthread_sigmask(_signal.SIG_UNBLOCK, ends)
code = conn.recv(4) or sys.exit("the process that forks has ended")
code = int.from_bytes(code, "big", signed=True)
if code < 0:
    _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
"""The environment's bin/python. It imports nothing that takes long."""


@contextlib.contextmanager
def venv() -> tp.Iterator[pathlib.Path]:
    """Such an environment, with the packages of this process's own."""
    with tempfile.TemporaryDirectory(prefix="forks") as dpath:
        made, own = pathlib.Path(dpath, "venv"), pathlib.Path(sys.prefix)
        (made / "bin").mkdir(parents=True)
        for fpath in (*own.glob("*"), *own.glob("bin/*")):
            if fpath.name not in ("bin", "python"):
                (made / fpath.relative_to(own)).symlink_to(fpath)
        python, base = made / "bin/python", os.path.realpath(sys.executable)
        names = {
            "base": base,
            "python": python,
            "address": f"{dpath}/socket",
            "env": ENV,
            "options": [*OPTIONS, "-c"],
        }
        names |= {"place_code": PLACE, "place": eval(PLACE)}
        python.write_text(PYTHON.format(**names))
        python.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{dpath}/socket")
            listener.listen(100)
            argv = [python, *OPTIONS, __file__, str(listener.fileno())]
            server = subprocess.Popen(
                argv,
                executable=base,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env=ENV,
                start_new_session=True,
            )
        with server:
            yield made
            server.stdin.close()


def serve(listener: socket.socket) -> None:
    """Fork for whoever connects, until stdin is closed."""
    site.main()
    site.main = lambda: None  # called by every fork
    with selectors.PollSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listener:
                    conn, pid = _fork(listener)
                    data = (conn, pid, os.pidfd_open(pid))
                    selector.register(data[0], selectors.EVENT_READ, data)
                    selector.register(data[2], selectors.EVENT_READ, data)
                elif key.fileobj in selector.get_map():
                    _attend(selector, key.fileobj, *key.data)


def _attend(
    selector: selectors.BaseSelector,
    ready: object,
    conn: socket.socket,
    pid: int,
    pidfd: int,
) -> None:
    """Pass on a signal to a fork, or its exit code to the `python` that stands for it."""
    if ready is conn:
        told = conn.recv(1)
        os.kill(pid, told[0] if told else signal.SIGKILL)
        if not told:
            selector.unregister(conn)
        return
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for fileobj in {conn, pidfd} & selector.get_map().keys():
        selector.unregister(fileobj)
    with contextlib.suppress(BrokenPipeError):
        conn.send(code.to_bytes(4, "big", signed=True))
    conn.close()
    os.close(pidfd)


def _fork(listener: socket.socket) -> tuple[socket.socket, int]:
    """Start the stage that a connection asks for."""
    conn, _ = listener.accept()
    size, fds, _, _ = socket.recv_fds(conn, 8, 3)
    asked = conn.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    _import()
    pid = os.fork()
    if pid == 0:
        _run(fds, *marshal.loads(asked))
    for fd in fds:
        os.close(fd)
    return conn, pid


@functools.cache
def _import() -> None:
    os.environ["WANDB_HTTP_TIMEOUT"] = "20"  # as tracking/runs.py has it
    load(IMPORTS)
    n_threads = len(os.listdir("/proc/self/task"))
    assert n_threads == 1, "forks would lack what a thread is for"


def load(modules: tp.Iterable[str]) -> None:
    """Import modules for processes that will be forked from this one."""
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("pydantic").create_model(
        "First"
    )  # looks for plug-ins, once
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False  # torch's own take 40 ms at every exit
    gc.collect()
    gc.freeze()
    _collapse()


def forget(*packages: str) -> None:
    """Have packages imported anew by whoever imports them next."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


MADV_COLLAPSE = 25
"""From Linux's mman.h, since 6.1."""


def _collapse() -> None:
    """Have this process's memory in huge pages, where the kernel can: a fork of it then takes
    8 ms instead of 33, most of which the kernel spends copying page tables."""
    libc = ctypes.CDLL(None)
    maps = pathlib.Path("/proc/self/maps").read_text()
    for first, end in re.findall(r"(?m)^(\w+)-(\w+) rw-p .* 0 +(?:\[heap\])?$", maps):
        at = int(first, 16)
        size = ctypes.c_size_t(int(end, 16) - at)
        libc.madvise(ctypes.c_void_p(at), size, MADV_COLLAPSE)


def _run(
    fds: list[int],
    argv: list[str],
    env: dict[bytes, bytes],
    dpath: bytes,
    umask: int,
    ends: list[int],
) -> tp.NoReturn:
    """Be a Python with these arguments after "-c".

    Args:
        ends: Those of the signals by which people end programs that are not ignored.
    """
    code: object = 0
    try:
        for fd in range(3):
            os.dup2(fds[fd], fd)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(dpath)
        os.umask(umask)
        os.environb.clear()
        os.environb.update(env)
        time.tzset()
        locale.setlocale(locale.LC_CTYPE, "")
        for n in {1, 2, 3, 15} - {*ends}:
            signal.signal(n, signal.SIG_IGN)
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            how = {
                "errors": getattr(sys, name).errors,
                "newline": "\n",
                "closefd": False,
            }
            stream = open(fd, "rww"[fd], 1 if name == "stderr" else -1, **how)  # noqa: SIM115
            stream.buffer.raw.name = f"<{name}>"
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if os.environ.keys() & {*READ_BY_WANDB}:
            forget("wandb")
        sys.argv[:] = ["-c", *argv[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        if sys.version_info >= (3, 13):  # whose tracebacks show these lines, too
            lines = argv[0].splitlines(keepends=True)
            linecache.cache["<string>"] = (len(argv[0]), None, lines, "<string>")
        exec(argv[0], vars(main))
    except SystemExit as end:
        code = end.code or 0
    except BaseException as err:
        code, tb = 1, err.__traceback__.tb_next
        sys.excepthook(type(err), err.with_traceback(tb), tb)
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
