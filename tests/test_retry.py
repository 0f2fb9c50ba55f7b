"""A busy server is given the time that it asks for, however it asks."""

import datetime
import email.message
import email.utils

import pytest

from saepub import retry
from saepub.retry import requested_wait

HOUR = datetime.timedelta(hours=1)
NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)

ASKED = {
    "the Hub's own": ({"RateLimit": '"api";r=0;t=12'}, 12),
    "with its policy": (
        {
            "RateLimit": '"api";r=0;t=31',
            "RateLimit-Policy": '"fixed window";"api";q=9;w=300',
        },
        31,
    ),
    "both": ({"RateLimit": '"api";r=0;t=12', "Retry-After": "1"}, 12),
    "both, the other way": ({"RateLimit": '"api";r=0;t=1', "Retry-After": "12"}, 12),
    "of several, one used up": ({"RateLimit": '"api";r=9;t=99, "pages";r=0;t=12'}, 12),
    "of several, two used up": ({"RateLimit": '"api";r=0;t=3, "pages";r=0;t=12'}, 12),
    "in another order": ({"RateLimit": '"api"; t=12; r=0'}, 12),
    "nothing of what is left": ({"RateLimit": '"api";t=12'}, 12),
    "an earlier draft": ({"RateLimit": "limit=9, remaining=0, reset=12"}, 12),
    "an earlier draft, not used up": (
        {"RateLimit": "limit=9, remaining=3, reset=12"},
        None,
    ),
    "a header each": ({"RateLimit-Remaining": "0", "RateLimit-Reset": "12"}, 12),
    "in small letters": ({"ratelimit-reset": "12", "ratelimit-limit": "9"}, 12),
    "a header each, of others": ({"X-RateLimit-Reset": "12"}, 12),
    "a header each, not used up": (
        {"RateLimit-Remaining": "3", "RateLimit-Reset": "99"},
        None,
    ),
    "a time": ({"X-RateLimit-Reset": str(int((NOW + HOUR).timestamp()))}, 3600),
    "a fraction": ({"Retry-After": "1.5"}, 1.5),
    "a date": ({"Retry-After": email.utils.format_datetime(NOW + HOUR, True)}, 3600),
    "a date gone by": (
        {"Retry-After": email.utils.format_datetime(NOW - HOUR, True)},
        0,
    ),
    "not used up": ({"RateLimit": '"api";r=3;t=99'}, None),
    "nothing": ({}, None),
    "odd": ({"RateLimit": "soon", "Retry-After": "-5", "RateLimit-Reset": ""}, None),
}


@pytest.mark.parametrize("what", ASKED)
def test_how_long_a_server_asks_us_to_wait(what, monkeypatch):
    monkeypatch.setattr(retry, "_now", lambda: NOW)
    given, seconds = ASKED[what]
    headers = email.message.Message()
    for name, value in given.items():
        headers[name] = value
    found = requested_wait(headers)
    assert found == seconds or abs(found - seconds) < 60
