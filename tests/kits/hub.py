"""For tests over the loopback Hub: faults, a corrupted file, and the real client.

Run as a program, it is the real client: `huggingface_hub` reads its transport from the
environment when it is imported, so each transport needs a process of its own.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import types

import loopback_hub
from loopback_hub import Drop, HubError, LoopbackHub

PACKAGE_DPATH = pathlib.Path(__file__).resolve().parents[2] / "py"
TRANSPORTS = ("xet", "lfs")


@dataclasses.dataclass
class Fault(loopback_hub.Fault):
    """Something that goes wrong with the next `times` requests of a kind.

    One of: an HTTP `status` with `headers`; a `drop` of the connection ("before" anything is
    read, at "half" of the body, or "after" the work is done); a `stall` until `release` is
    set.
    """

    kind: str
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    drop: str | None = None
    stall: bool = False
    times: int = 1
    method: str | None = None
    release: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __post_init__(self):
        assert (self.status is not None) + (self.drop is not None) + self.stall == 1
        assert self.drop in (None, "before", "half", "after")
        self._lock = threading.Lock()

    def _is_due(self, kind, request) -> bool:
        with self._lock:
            if kind != self.kind or self.method not in (None, request.command):
                return False
            self.times -= 1
            return self.times >= 0

    def before(self, kind, request) -> None:
        if self.drop == "after" or not self._is_due(kind, request):
            return
        if self.status is not None:
            raise HubError(self.status, "a fault of the test", headers=self.headers)
        if self.stall:
            self.release.wait(60)
            return
        if self.drop == "half":
            half = request.body.length // 2
            while request.body.length - request.body.remaining < half:
                request.body.read(min(2**16, half))
        raise Drop

    def after(self, kind, request) -> None:
        if self.drop == "after" and self._is_due(kind, request):
            raise Drop


def corrupt(hub: LoopbackHub, repo_id: str, path: str) -> None:
    """Change one byte of a stored file; the Hub's tree still has the old sha256."""
    repo = hub.store.repos[repo_id]
    entry = repo.head["files"][path]
    content = bytearray(hub.read(repo_id, path))
    content[len(content) // 2] ^= 1
    fpath = repo.object_fpath(entry["sha256"])
    fpath.unlink()
    fpath.write_bytes(content)
    # Otherwise a Xet client would read the old bytes, from chunks.
    entry["xet_hash"] = None


class ClientError(Exception):
    """What the client raised: `names` has the names of its class and all base classes."""

    def __init__(self, names: list[str], status: int | None, message: str):
        super().__init__(f"{names[0]} {status}: {message}")
        self.names, self.status, self.message = names, status, message


class Client:
    """The real client in a process of its own, with a cache of its own.

    Any method of `HfApi` can be called on it; results come back as JSON has them.
    """

    def __init__(
        self, dpath: pathlib.Path, transport: str, python: str = sys.executable
    ):
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{PACKAGE_DPATH}:{PACKAGE_DPATH.parent / 'tests'}",
            "HF_HOME": str(dpath / "hf_home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        if transport == "lfs":
            env["HF_HUB_DISABLE_XET"] = "1"
        self.process = subprocess.Popen(
            [python, "-m", "kits.hub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
        )
        self.transport, self.endpoint, self.token = transport, "", ""
        # Unread, the client's log would block it.
        self.log: list[str] = []
        threading.Thread(
            target=lambda: self.log.extend(self.process.stderr), daemon=True
        ).start()

    def use(self, hub: LoopbackHub, token: str | bool) -> "Client":
        self.endpoint, self.token = hub.endpoint, token
        return self

    def start(self, method: str, **kwargs) -> None:
        request = {"endpoint": self.endpoint, "token": self.token}
        request |= {"method": method, "kwargs": kwargs}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def finish(self):
        line = self.process.stdout.readline()
        assert line, "".join(self.log)
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(**answer["error"])
        return answer["result"]

    def __getattr__(self, method: str):
        def call(**kwargs):
            self.start(method, **kwargs)
            return self.finish()

        return call

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def _plain(value):
    """A result of the client, as JSON has it."""
    if isinstance(value, types.GeneratorType | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, int | float | bool | None):
        return value
    if hasattr(value, "__dict__"):
        return _plain({k: v for k, v in vars(value).items() if not k.startswith("_")})
    return str(value)


def _upload_with_sha256(api, repo_id: str, fpath: str, sha256: str) -> None:
    """A Xet upload with any sha256, as only a broken client would do it."""
    import hf_xet
    from huggingface_hub.utils._xet import XetTokenType, xet_connection_info_refresh_url

    url = xet_connection_info_refresh_url(
        token_type=XetTokenType.WRITE,
        repo_id=repo_id,
        repo_type="model",
        revision="main",
        endpoint=api.endpoint,
    )
    with hf_xet.XetSession().new_upload_commit(
        token_refresh_url=url, token_refresh_headers=api._build_hf_headers()
    ) as commit:
        commit.start_upload_file(fpath, sha256=sha256)


def _counters() -> dict[str, int]:
    """The kernel's counts of what this process has read and written."""
    text = pathlib.Path("/proc/self/io").read_text()
    return {k: int(v) for k, v in (line.split(": ") for line in text.splitlines())}


def main() -> None:
    import huggingface_hub

    answers = sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        method, kwargs = request["method"], request["kwargs"]
        api = huggingface_hub.HfApi(
            endpoint=request["endpoint"], token=request["token"]
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if method == "upload_with_sha256":
                    result = _upload_with_sha256(api, **kwargs)
                elif method == "counters":
                    result = _counters()
                else:
                    result = _plain(getattr(api, method)(**kwargs))
            answer = {"result": result}
        except Exception as err:  # Whatever the client raises is the answer.
            response = getattr(err, "response", None)
            names = [cls.__name__ for cls in type(err).__mro__]
            status = getattr(response, "status_code", None)
            error = {"names": names, "status": status, "message": str(err)}
            answer = {"error": error}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
