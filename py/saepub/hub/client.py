"""The Hugging Face Hub's own client, set up for a release: token, timeouts, retries, and its
errors in words.

The token comes from HF_TOKEN in the environment and goes into the client's headers, nowhere
else: not the client's stored login, no file, no argument.
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
from ..cli import UserError, resume_command, scrub
from ..text import one_line, say

# The client reads its own settings while it is imported, and .env may have some. So every
# module of ours has the client from here.
settings.load()
TIMEOUT = float(settings.number("HF_HUB_DOWNLOAD_TIMEOUT") or 60)
"""Seconds without a sign of the Hub, where the client itself would wait for ever."""
# One file at a time through the Xet library's memory: eight of them take over a gigabyte,
# and a network is slower than the cutting of one file into chunks.
os.environ.setdefault("HF_XET_DATA_MAX_CONCURRENT_FILE_INGESTION", "1")
os.environ |= {
    # A chunk cache would let a verification read what the upload left on this machine.
    "HF_XET_CHUNK_CACHE_SIZE_BYTES": "0",
    # The client would fall back on a stored login where we say "no token".
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of older settings that do nothing any more
        import huggingface_hub as huggingface_hub  # for our other modules, as below
        from huggingface_hub import constants
except ValueError as err:
    # A number in one of its settings is none, and it does not say in which.
    given = {
        k: v for k, v in os.environ.items() if k.startswith(("HF_", "HUGGINGFACE_"))
    }
    names = [k for k, v in given.items() if v and repr(v) in str(err)]
    where = " and ".join(names) or "a setting that starts with HF_"
    raise UserError(f"{where}: the Hub's client can't read it: {err}") from None
from huggingface_hub import errors as errors  # noqa: E402
from huggingface_hub.hf_api import RepoFile as RepoFile  # noqa: E402
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # noqa: E402
    # Public, but made available in a way that mypy does not see.
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
)

if not sys.stderr.isatty():
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that HF_HUB_DISABLE_PROGRESS_BARS says otherwise
        disable_progress_bars()
# The client tells each of its own retries in two lines, with URLs that are signed. We tell
# ours, and of the client's only a wait that the Hub has asked for: it may be minutes.
logging.getLogger("huggingface_hub.utils._http").addFilter(
    lambda record: record.getMessage().startswith("Rate limited")
)

TransportError = errors.HfHubHTTPError.__bases__[0]
"""The HTTP library's own base of errors; 1.x and 2.x of the client use different ones."""

NETWORK = (TransportError, ConnectionError, TimeoutError)

NOT_SENT = {"LocalProtocolError", "UnsupportedProtocol", "TooManyRedirects"}
"""Errors of that library, by name, that no other try would mend: a header that can't be, say."""

PAUSES = (2.0, 4.0, 8.0, 16.0)
"""Seconds between the tries of a call whose own retries, in the client, have all failed."""

WAIT_MAX = 600.0
"""The longest that we wait because the Hub says so, in seconds: twice its own window."""

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
"""How the Xet library words an HTTP error: it raises no type that has the status."""

PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")
NETWORK_SETTINGS = (
    *PROXIES,
    *map(str.upper, PROXIES),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"),
)
"""What the HTTP library reads from the environment while it makes a client."""


@functools.cache
def _set_up() -> None:
    """Give the client HTTP sessions like its own, but with no request without a timeout.

    Raises:
        UserError: What the environment says of proxies or certificates can't be used.
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
            f"{names}: can't be used to reach {endpoint()} ({why}); mend or unset it"
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
    """The settings of the network with which, each alone, no HTTP client can be made."""
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
    # Many calls of the client pass "no timeout" on, which wins over the session's own.
    limits = request.extensions.get("timeout", {})
    limited = {k: TIMEOUT if v is None else v for k, v in limits.items()}
    request.extensions["timeout"] = limited


def _no_endless_wait(response: tp.Any) -> None:
    # The client would sleep for as long as any server says.
    seconds = _asked_by(response)
    if seconds is not None and seconds > WAIT_MAX:
        raise UserError(
            f"{endpoint()} asks us to wait for {seconds:.0f} s"
            f" ({response.status_code}); run {resume_command()} after that"
        )


def token() -> str:
    """HF_TOKEN; "" where it is not set.

    Raises:
        UserError: It can't be a token.
    """
    text = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[\w.~+/=-]*", text, re.ASCII):
        # No header can hold it, and the error of whoever tries would show it.
        raise UserError(
            "HF_TOKEN holds a space, a quote or what else no token has; copy it again"
        )
    return text


def api() -> huggingface_hub.HfApi:
    """The client.

    Raises:
        UserError: The environment does not let it be made.
    """
    url = urllib.parse.urlsplit(endpoint())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(
            f"HF_ENDPOINT is {one_line(endpoint())!r}, not an address like"
            " https://huggingface.co"
        )
    _set_up()
    return huggingface_hub.HfApi(token=token() or False, **US)


US = {"library_name": "saepub", "library_version": __version__}
"""Who asks, for the Hub's own statistics."""


def post(path: str, body: dict[str, tp.Any]) -> tp.Any:
    """The answer to a POST that the client has no method for. Raises what the client raises."""
    api()
    headers = build_hf_headers(token=token() or False, **US)
    response = get_session().post(endpoint() + path, headers=headers, json=body)
    hf_raise_for_status(response)
    return response.json()


def endpoint() -> str:
    return constants.ENDPOINT


def is_by_xet() -> bool:
    """Whether the client sends large files by Xet, or else by LFS."""
    has_library = importlib.util.find_spec("hf_xet") is not None
    return has_library and not constants.HF_HUB_DISABLE_XET


def _causes(err: BaseException) -> tp.Iterator[BaseException]:
    """The error and what is behind it, however deep the client wrapped that."""
    cause: BaseException | None = err
    while cause is not None:
        yield cause
        cause = cause.__cause__


def status_of(err: BaseException) -> int | None:
    """The HTTP status behind an error; None where the Hub gave no answer."""
    for cause in _causes(err):
        if isinstance(cause, errors.HfHubHTTPError):
            return cause.response.status_code
        if match := XET_STATUS.search(str(cause)):
            return int(match[1])
    return None


def is_passing(err: BaseException) -> bool:
    """Whether a later try may succeed: busy, failing or unreachable, not refused."""
    if any(isinstance(cause, UserError) for cause in _causes(err)):
        return False
    status = status_of(err)
    if status is not None:
        return status in (408, 429) or status >= 500
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(err)):
        return False
    if any(type(cause).__name__ in NOT_SENT for cause in _causes(err)):
        return False
    # The Xet library tells some of its troubles as RuntimeError.
    kinds = (*NETWORK, RuntimeError)
    return any(isinstance(cause, kinds) for cause in _causes(err))


def explain(err: BaseException) -> str:
    """What went wrong, in a few words for a person."""
    for cause in _causes(err):
        if isinstance(cause, UserError):
            return str(cause)
    status = status_of(err)
    if status == 401 and token():
        return "HF_TOKEN is wrong or expired (401)"
    if status == 401:
        return "it asks who we are, and HF_TOKEN is not set (401)"
    message = _message(err)
    if status is not None:
        return message if str(status) in message else f"{message} ({status})"
    if is_passing(err):
        return f"no answer from {endpoint()}{_by_way_of(message)}: {message}"
    return message


def _by_way_of(message: str) -> str:
    """The setting that a connection depends on, so that a person looks there."""
    if "CERTIFICATE" in message.upper():
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        return f" (certificates from {name})" if os.environ.get(name) else ""
    url = urllib.parse.urlsplit(endpoint())
    if urllib.request.proxy_bypass(url.hostname or ""):
        return ""
    names = (f"{url.scheme}_proxy", "all_proxy")
    given = [n for name in names for n in (name, name.upper()) if os.environ.get(n)]
    return f" (by the proxy of {given[0]})" if given else ""


def _message(err: BaseException) -> str:
    """The Hub's own words where it said some, else the network's, else the error's."""
    chain = list(_causes(err))
    said = [getattr(cause, "server_message", None) for cause in chain]
    network = [str(cause) for cause in chain if isinstance(cause, NETWORK)]
    texts = [*said, *network, str(err), type(err).__name__]
    text = next(text for text in texts if text and text.strip())
    # What follows a URL's question mark may be a signature that lets anybody upload.
    text = re.sub(r"\?[^\s'\"]+", "", text.strip().partition("\n")[0])
    return one_line(scrub(text))


Result = tp.TypeVar("Result")


def retrying(
    what: str,
    call: tp.Callable[[], Result],
    may_pass: tp.Callable[[Exception], bool] = is_passing,
) -> Result:
    """`call()`, again after a pause where it fails in passing.

    The client retries some requests by itself, within seconds; this outlasts a longer
    trouble.

    Raises:
        The last try's own error.
    """

    def told(err: Exception, seconds: float) -> None:
        say(f"{what}: {explain(err)}; trying again in {seconds:.0f} s")

    return retry.call(call, PAUSES, may_pass, _asked, told)


def _asked(err: Exception) -> float | None:
    for cause in _causes(err):
        if isinstance(cause, errors.HfHubHTTPError):
            return _asked_by(cause.response)
    return None


def _asked_by(response: tp.Any) -> float | None:
    """The seconds that an answer of "busy" asks us to wait; None where it names none."""
    if response.status_code != 429 and response.status_code < 500:
        return None
    return retry.requested_wait(response.headers)
