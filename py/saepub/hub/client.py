"""The Hugging Face Hub's own client, set up for a release: token, timeouts, retries, and its
errors in words.

The token comes from HF_TOKEN in the environment and goes into the client's headers, nowhere
else: not the client's stored login, no file, no argument.
"""

import logging
import math
import os
import re
import sys
import time
import typing as tp

from .. import settings
from ..cli import UserError, scrub
from ..text import one_line, say

# The client reads its own settings while it is imported, and .env may have some. So every
# module of ours has the client from here.
settings.load()
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

import huggingface_hub  # noqa: E402
from huggingface_hub import constants, errors  # noqa: E402
from huggingface_hub.hf_api import RepoFile  # noqa: E402, F401
from huggingface_hub.utils import disable_progress_bars  # noqa: E402

if not sys.stderr.isatty():
    disable_progress_bars()
# The client tells each of its own retries in two lines, with URLs that are signed. We tell
# ours, and of the client's only a wait that the Hub has asked for: it may be minutes.
logging.getLogger("huggingface_hub.utils._http").addFilter(
    lambda record: record.getMessage().startswith("Rate limited")
)

try:
    from huggingface_hub import _upload_pipeline as pipeline
except ImportError:
    pass  # an older client, whose upload_folder makes one commit whatever happens
else:
    # A newer one commits in parts when an upload has many files or takes five minutes, and
    # when a commit fails, with no option to change it. A release is one commit or none.
    pipeline.COMMIT_SIZE_SCALE = [sys.maxsize]
    pipeline.INITIAL_COMMIT_SIZE_INDEX = 0
    pipeline.MAX_COMMIT_INTERVAL = math.inf
    pipeline.REGULAR_CONTENT_BYTES_BUDGET = sys.maxsize

TransportError = errors.HfHubHTTPError.__bases__[0]
"""The HTTP library's own base of errors; 1.x and 2.x of the client use different ones."""

NETWORK = (TransportError, ConnectionError, TimeoutError)

TIMEOUT = float(settings.get("HF_HUB_DOWNLOAD_TIMEOUT"))
"""Seconds without a sign of the Hub, where the client itself would wait for ever."""

N_TRIES = 3
"""How often we make a call whose own retries, in the client, have all failed."""

RETRY_AFTER_MAX = 300.0
"""The longest that we wait because the Hub says so, in seconds."""

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
"""How the Xet library words an HTTP error: it raises no type that has the status."""


def _session() -> tp.Any:
    """An HTTP client like the Hub client's own, but with no request without a timeout."""
    return type(_own)(event_hooks=_hooks, follow_redirects=True, timeout=TIMEOUT)


def _limit(request: tp.Any) -> None:
    # Many calls of the client pass "no timeout" on, which wins over the session's own.
    limits = request.extensions.get("timeout", {})
    limited = {k: TIMEOUT if v is None else v for k, v in limits.items()}
    request.extensions["timeout"] = limited


_own = huggingface_hub.get_session()
_hooks = {"request": [*_own.event_hooks["request"], _limit]}
huggingface_hub.set_client_factory(_session)


def token() -> str:
    """HF_TOKEN; "" where it is not set.

    Raises:
        UserError: It can't be a token.
    """
    text = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", text):
        # No header can hold it, and the error of whoever tries would show it.
        raise UserError("HF_TOKEN holds a space or what is not ASCII; copy it again")
    return text


def api() -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(token=token() or False, library_name="saepub")


def endpoint() -> str:
    return constants.ENDPOINT


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
    status = status_of(err)
    if status is not None:
        return status in (408, 429) or status >= 500
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(err)):
        return False
    # The Xet library tells some of its troubles as RuntimeError.
    kinds = (*NETWORK, RuntimeError)
    return any(isinstance(cause, kinds) for cause in _causes(err))


def tell(err: BaseException) -> str:
    """What went wrong, in a few words for a person."""
    status = status_of(err)
    if status == 401 and token():
        return "HF_TOKEN is wrong or expired (401)"
    if status == 401:
        return "it asks who we are, and HF_TOKEN is not set (401)"
    if status == 412:
        return "somebody else committed meanwhile (412)"
    message = _message(err)
    if status is not None:
        return message if str(status) in message else f"{message} ({status})"
    if is_passing(err):
        return f"no answer from {endpoint()}: {message}"
    return message


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


def retrying(what: str, call: tp.Callable[[], Result]) -> Result:
    """`call()`, again after a pause where it fails in passing.

    The client retries some requests by itself, within seconds; this outlasts a longer
    trouble.

    Raises:
        The last try's own error.
    """
    for i in range(1, N_TRIES):
        try:
            return call()
        except Exception as err:
            if not is_passing(err):
                raise
            pause(what, err, i)
    return call()


def pause(what: str, err: BaseException, i: int) -> None:
    """Wait before the try after the `i`-th, as long as the Hub's Retry-After says."""
    after = _retry_after(err)
    seconds = 2.0**i if after is None else after
    say(f"{what}: {tell(err)}; trying again in {seconds:.0f} s")
    time.sleep(seconds)


def _retry_after(err: BaseException) -> float | None:
    for cause in _causes(err):
        if isinstance(cause, errors.HfHubHTTPError):
            text = cause.response.headers.get("Retry-After", "")
            return min(float(text), RETRY_AFTER_MAX) if text.isdecimal() else None
    return None
