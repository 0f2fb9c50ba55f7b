"""HTTP: requests in, responses out, bodies streamed both ways."""

import contextlib
import dataclasses
import http.server
import io
import json
import os
import socket
import sys
import traceback
import typing as tp
import urllib.parse
import uuid

Json = dict[str, tp.Any]

CHUNK = 2**20
"""Bytes of a body in memory at a time."""

MAX_JSON = 16 * 2**20
"""Bytes of a JSON request. The largest is a preupload, of 256 files with samples of 512 bytes."""


class HubError(Exception):
    """A refusal as the Hub sends it: status, X-Error-Code, X-Error-Message."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        extra: Json | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.extra = headers or {}, extra or {}

    def response(self) -> "Response":
        # A header is one line of Latin-1; the body has the text unchanged.
        one_line = " ".join(self.message.split()).encode("latin-1", "replace")
        headers = {"X-Error-Message": one_line.decode("latin-1")} | self.headers
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return Response({"error": self.message} | self.extra, self.status, headers)


class Drop(Exception):
    """Close the connection without an answer (for faults in tests)."""


class ClientGone(Exception):
    """The client closed the connection before its body was whole."""


@dataclasses.dataclass
class Response:
    data: object = None
    """Sent as JSON, unless `fpath` is set."""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    fpath: str | os.PathLike[str] | None = None
    """A file to send: `length` bytes from `start` on."""
    start: int = 0
    length: int = 0


class Body(io.RawIOBase):
    """A request's body: exactly Content-Length bytes of the connection.

    `count` is called with the number of bytes as they arrive.
    """

    def __init__(self, fd: tp.Any, length: int):
        self._fd, self.length, self.remaining = fd, length, length
        self.count: tp.Callable[[int], None] = lambda n_bytes: None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: tp.Any) -> int:
        view = memoryview(buffer)[: self.remaining]
        if not view:
            return 0
        n: int = self._fd.readinto1(view)
        if n == 0:
            raise ClientGone
        self.remaining -= n
        self.count(n)
        return n

    def chunks(self) -> tp.Iterator[memoryview]:
        """The rest of the body, in pieces each of which is valid until the next."""
        buffer = memoryview(bytearray(CHUNK))
        while n := self.readinto(buffer):
            yield buffer[:n]

    def drain(self) -> None:
        for _ in self.chunks():
            pass


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. `LoopbackHub.serve` answers its requests."""

    server: tp.Any  # a Server, whose `hub` answers
    user: tp.Any
    """The access.User that the token belongs to; None without a token."""
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        hub = self.server.hub
        self.body = Body(self.rfile, 0)
        url = urllib.parse.urlsplit(self.path)
        # Kept quoted: a revision or a path may contain a quoted slash.
        self.url_path = url.path
        self.query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        try:
            self._open_body()
            try:
                response = hub.serve(self)
            except HubError as err:
                response = err.response()
            # Bytes left unread would be taken for the connection's next request.
            self.body.drain()
            self._send(response)
        except (Drop, ClientGone, ConnectionError):
            self._hang_up()
        except Exception as err:  # Any mistake of ours is answered with 500.
            hub.errors.append(traceback.format_exc())
            self.close_connection = True
            self._send(HubError(500, f"{type(err).__name__}: {err}").response())

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _open_body(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.close_connection = True
            raise HubError(411, "A body needs a Content-Length")
        self.body = Body(self.rfile, int(length))

    def json(self) -> Json:
        """The body as a JSON object."""
        if self.body.length > MAX_JSON:
            raise HubError(413, "Payload too large")
        try:
            data = json.loads(self.body.readall())
        except ValueError as err:
            raise HubError(400, f"The body is not JSON: {err}") from None
        if not isinstance(data, dict):
            raise HubError(400, "The body is not a JSON object")
        return data

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[-1].lower() in ("true", "1")

    def _send(self, response: Response) -> None:
        payload = b""
        headers = {"X-Request-Id": str(uuid.uuid4())} | response.headers
        if response.fpath is None:
            payload = json.dumps(response.data).encode()
            headers |= {
                "Content-Type": "application/json; charset=utf-8",
                "Content-Length": str(len(payload)),
            }
        try:
            self.send_response(response.status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(payload)
            self.wfile.flush()
            if (
                response.fpath is not None
                and self.command != "HEAD"
                and response.length
            ):
                with open(response.fpath, "rb") as fd:
                    self.connection.sendfile(fd, response.start, response.length)
        except ConnectionError:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # The other side was faster.
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1, and nowhere else."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: tp.Any):
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    def process_request(self, request: tp.Any, client_address: tp.Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: tp.Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close every connection: one kept alive would be answered after the Hub has stopped."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):  # Closed meanwhile.
                sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: tp.Any, client_address: tp.Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # Clients may be killed.
            self.hub.errors.append(traceback.format_exc())
