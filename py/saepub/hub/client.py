"""huggingface_hub configured for a release: token, timeouts, retries and readable errors.

The token comes only from HF_TOKEN in the environment, not from the client's stored login, and
goes only into request headers.
"""

import functools
import importlib.util
import logging
import os
import re
import sys
import typing as tp
import urllib.parse
import urllib.request
import warnings

from .. import __version__, retry, settings
from ..cli import UserError, scrub
from ..text import one_line, say

# The client reads its settings while it is imported, and .env may have some. So all our
# modules import the client from here.
settings.load()
TIMEOUT = float(settings.number("HF_HUB_DOWNLOAD_TIMEOUT") or 60)
"""Seconds to wait for the Hub, where the client itself would wait forever."""
# The Xet library holds files in memory: eight take over a gigabyte, and chunking one at a time
# is faster than a network.
os.environ.setdefault("HF_XET_DATA_MAX_CONCURRENT_FILE_INGESTION", "1")
# It would retry for minutes without a word; our own retries, which are told, come on top.
os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
# It would log to a file in HF_HOME, or to stdout if it can't.
os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
os.environ |= {
    # With a chunk cache, verification might read this machine's copy instead of the Hub's.
    "HF_XET_CHUNK_CACHE_SIZE_BYTES": "0",
    # Without a token, the client would fall back on a stored login.
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

try:
    with warnings.catch_warnings():
        # It warns about older settings that have no effect any more.
        warnings.simplefilter("ignore")
        import huggingface_hub as huggingface_hub  # for our other modules, as below
        from huggingface_hub import constants
except ValueError as err:
    # A setting is not a number, and the client doesn't say which.
    given = {
        k: v for k, v in os.environ.items() if k.startswith(("HF_", "HUGGINGFACE_"))
    }
    names = [k for k, v in given.items() if v and repr(v) in str(err)]
    where = " and ".join(names) or "a setting that starts with HF_"
    raise UserError(f"{where}: the Hub's client can't read it: {err}") from None
from huggingface_hub import errors as errors  # noqa: E402
from huggingface_hub.hf_api import RepoFile as RepoFile  # noqa: E402
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # noqa: E402
    # Public, but exported in a way that mypy doesn't see.
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
)

if not sys.stderr.isatty():
    with warnings.catch_warnings():
        # It warns if HF_HUB_DISABLE_PROGRESS_BARS says otherwise.
        warnings.simplefilter("ignore")
        disable_progress_bars()
# The client logs two lines about each of its retries, with signed URLs. We report our own
# retries, and of the client's only a wait that the Hub asked for, which may take minutes.
logging.getLogger("huggingface_hub.utils._http").addFilter(
    lambda record: record.getMessage().startswith("Rate limited")
)

TransportError = errors.HfHubHTTPError.__bases__[0]
"""The HTTP library's base error class, which differs between the client's 1.x and 2.x."""

NETWORK = (TransportError, ConnectionError, TimeoutError)

NOT_SENT = {"LocalProtocolError", "UnsupportedProtocol", "TooManyRedirects"}
"""Errors of that library, by name, that a retry can't fix, such as an invalid header."""

PAUSES = (2.0, 4.0, 8.0, 16.0)
"""Seconds between our attempts at a call, each of which includes the client's own retries."""

WAIT_MAX = 600.0
"""The longest wait requested by the Hub that we accept, in seconds: twice its own window."""

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
"""The Xet library's message on an HTTP error. Its exception has no status."""

PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")
NETWORK_SETTINGS = (
    *PROXIES,
    *map(str.upper, PROXIES),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"),
)
"""What the HTTP library reads from the environment when it creates a client."""


@functools.cache
def _set_up() -> None:
    """Give the client HTTP sessions like its own, but with a timeout on every request.

    Raises:
        UserError: A proxy or certificate setting in the environment is unusable.
    """
    try:
        own = get_session()
    except Exception as err:
        names = " and ".join(_culprits()) or "the environment"
        why = f"{type(err).__name__}: {one_line(err)}"
        if "socks" in str(err).lower():
            why = "a SOCKS proxy, which needs the package socksio"
        elif isinstance(err, FileNotFoundError):
            why = "no such file"
        raise UserError(
            f"{names}: can't be used to reach {endpoint()} ({why}); fix or unset it"
        ) from None
    kind = type(own)
    hooks: dict[str, list[tp.Any]] = {
        "request": [*own.event_hooks["request"], _limit],
        "response": [*own.event_hooks["response"], _no_endless_wait],
    }
    huggingface_hub.set_client_factory(
        lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT)
    )


def _culprits() -> list[str]:
    """The network settings that each prevent an HTTP client from being created."""
    given = {k: os.environ.pop(k) for k in NETWORK_SETTINGS if k in os.environ}
    found = []
    try:
        for name, value in given.items():
            os.environ[name] = value
            try:
                get_session()
            except Exception:
                found.append(name)
            else:
                huggingface_hub.close_session()
            del os.environ[name]
    finally:
        os.environ.update(given)
    return found


def _limit(request: tp.Any) -> None:
    # Many of the client's calls pass "no timeout", which overrides the session's.
    limits = request.extensions.get("timeout", {})
    limited = {k: TIMEOUT if v is None else v for k, v in limits.items()}
    request.extensions["timeout"] = limited


def _no_endless_wait(response: tp.Any) -> None:
    # The client would sleep for as long as the server says.
    seconds = _requested_wait(response)
    if seconds is not None and seconds > WAIT_MAX:
        raise UserError(
            f"{endpoint()} asks us to wait for {seconds:.0f} s"
            f" ({response.status_code}); run {settings.resume_command()} after that"
        )


def token() -> str:
    """HF_TOKEN; "" where it is not set.

    Raises:
        UserError: It can't be a token.
    """
    text = settings.get("HF_TOKEN").strip()
    if not re.fullmatch(r"[\w.~+/=-]*", text, re.ASCII):
        # It can't go into a header, and the HTTP library's error would show it.
        raise UserError(
            "HF_TOKEN contains a space, a quote or another invalid character; copy it again"
        )
    return text


def api() -> huggingface_hub.HfApi:
    """The client.

    Raises:
        UserError: It can't be created because of a setting in the environment.
    """
    url = urllib.parse.urlsplit(endpoint())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(
            f"HF_ENDPOINT is {one_line(endpoint())!r}, not an address like"
            " https://huggingface.co"
        )
    _set_up()
    return huggingface_hub.HfApi(token=token() or False, **USER_AGENT)


USER_AGENT: dict[str, tp.Any] = {
    "library_name": "saepub",
    "library_version": __version__,
}
"""Identifies us in the Hub's statistics."""


def post(path: str, body: dict[str, tp.Any]) -> tp.Any:
    """The answer to a POST for which the client has no method. Raises the client's errors."""
    api()
    headers = build_hf_headers(token=token() or False, **USER_AGENT)
    response = get_session().post(endpoint() + path, headers=headers, json=body)
    hf_raise_for_status(response)
    return response.json()


def endpoint() -> str:
    return constants.ENDPOINT


def is_by_xet() -> bool:
    """Whether the client uploads large files through Xet; if not, through LFS."""
    has_library = importlib.util.find_spec("hf_xet") is not None
    return has_library and not constants.HF_HUB_DISABLE_XET


def _causes(err: BaseException) -> tp.Iterator[BaseException]:
    """The error and its causes, however deeply the client wrapped them."""
    cause: BaseException | None = err
    while cause is not None:
        yield cause
        cause = cause.__cause__


def status_of(err: BaseException) -> int | None:
    """The HTTP status behind an error; None if the Hub didn't answer."""
    for cause in _causes(err):
        if isinstance(cause, errors.HfHubHTTPError):
            return cause.response.status_code
        if match := XET_STATUS.search(str(cause)):
            return int(match[1])
    return None


def is_transient(err: BaseException) -> bool:
    """Whether a later attempt may succeed: the Hub is busy, failing or unreachable."""
    if any(isinstance(cause, UserError) for cause in _causes(err)):
        return False
    status = status_of(err)
    if status is not None:
        return status in (408, 429) or status >= 500
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(err)):
        return False
    if any(type(cause).__name__ in NOT_SENT for cause in _causes(err)):
        return False
    # The Xet library raises RuntimeError for some network errors.
    kinds = (*NETWORK, RuntimeError)
    return any(isinstance(cause, kinds) for cause in _causes(err))


def explain(err: BaseException) -> str:
    """What went wrong, in a few words."""
    for cause in _causes(err):
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            name = next((name for name in names if os.environ.get(name)), names[0])
            return f"{name} is set, so the Hub's client stays offline; unset it"
    status = status_of(err)
    if status == 401 and token():
        return "HF_TOKEN is wrong or expired (401)"
    if status == 401:
        return "it requires a token, and HF_TOKEN is not set (401)"
    message = _message(err)
    if status is not None:
        return message if str(status) in message else f"{message} ({status})"
    kinds = (ValueError, LookupError, TypeError, AttributeError)
    is_odd = isinstance(err, kinds) and not isinstance(err, errors.HFValidationError)
    if is_odd or type(err).__name__ == "TooManyRedirects":
        return (
            f"{endpoint()} doesn't answer as a Hub does ({type(err).__name__}: {message});"
            " check HF_ENDPOINT, and whether this network asks for a login"
        )
    if is_transient(err):
        return f"no answer from {endpoint()}{_via(message)}: {message}"
    return message


def _via(message: str) -> str:
    """The setting that a connection depends on, as a hint."""
    if "CERTIFICATE" in message.upper():
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        return f" (certificates from {name})" if os.environ.get(name) else ""
    url = urllib.parse.urlsplit(endpoint())
    if urllib.request.proxy_bypass(url.hostname or ""):
        return ""
    names = (f"{url.scheme}_proxy", "all_proxy")
    given = [n for name in names for n in (name, name.upper()) if os.environ.get(n)]
    return f" (through the proxy of {given[0]})" if given else ""


def _message(err: BaseException) -> str:
    """The Hub's own message if there is one, else the network error's, else the error's."""
    chain = list(_causes(err))
    server = [getattr(cause, "server_message", None) for cause in chain]
    network = [str(cause) for cause in chain if isinstance(cause, NETWORK)]
    texts = [*server, *network, str(err), type(err).__name__]
    text = next(text for text in texts if text and text.strip())
    # A URL's query string may be a signature that lets anyone upload.
    text = re.sub(r"\?[^\s'\"]+", "", text.strip().partition("\n")[0])
    return one_line(scrub(text))


Result = tp.TypeVar("Result")


def retrying(
    what: str,
    call: tp.Callable[[], Result],
    may_pass: tp.Callable[[Exception], bool] = is_transient,
) -> Result:
    """`call()`, retried after a pause if its error is transient.

    The client itself retries some requests within seconds; this survives longer outages.

    Raises:
        The last attempt's error.
    """

    def notify(err: Exception, seconds: float) -> None:
        say(f"{what}: {explain(err)}; trying again in {seconds:.0f} s")

    def requested_wait(err: Exception) -> float | None:
        for cause in _causes(err):
            if isinstance(cause, errors.HfHubHTTPError):
                return _requested_wait(cause.response)
        return None

    return retry.call(call, PAUSES, may_pass, requested_wait, notify)


def _requested_wait(response: tp.Any) -> float | None:
    """The seconds that a "busy" response asks us to wait; None if it names none."""
    if response.status_code != 429 and response.status_code < 500:
        return None
    return retry.requested_wait(response.headers)
