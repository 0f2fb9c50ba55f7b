"""audit-deps asks about every pinned package, and never takes silence for good news."""

import contextlib
import http.server
import json
import re
import sys
import threading

import pytest

from kits.programs import ROOT, run_program


@contextlib.contextmanager
def osv(answer):
    """A database of vulnerabilities on this machine; yields its URL and who was asked about.

    Args:
        answer: Takes a package's name and version; what OSV would answer, or an HTTP status.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert query["package"]["ecosystem"] == "PyPI"
            asked.append(f"{query['package']['name']}=={query['version']}")
            found = answer(query["package"]["name"])
            status, body = (found, {}) if isinstance(found, int) else (200, found)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def audit(tmp_path):
    def run(url):
        options = ("--osv-url", url, "--cache-dir", tmp_path, "--timeout", 5)
        return run_program(ROOT / "bin/audit-deps", sys.prefix, *options)

    return run


def pins() -> set[str]:
    found = {"saev==0.1.0"}
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        text = (ROOT / name).read_text()
        found |= set(re.findall(r"^[\w.-]+==[\w.]+", text, re.MULTILINE))
    return {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in found}


def test_every_pinned_package_is_asked_about(audit):
    with osv(lambda name: {}) as (url, asked):
        done = audit(url)
    assert (done.returncode, done.err) == (0, "")
    assert done.out == f"{len(pins())} packages, none with a known vulnerability\n"
    assert {name.partition("==")[0] for name in asked} == pins()


def test_a_known_vulnerability_is_told_with_its_cure(audit):
    events = [{"introduced": "0"}, {"fixed": "99.1"}]
    package = {"name": "jinja2", "ecosystem": "PyPI"}
    affected = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    bad = {"vulns": [{"id": "OSV-1", "summary": "bad", "affected": [affected]}]}
    with osv(lambda name: bad if name == "jinja2" else {}) as (url, _):
        done = audit(url)
    assert done.returncode != 0
    assert re.fullmatch(r"jinja2 [\d.]+: OSV-1, fixed in 99\.1\n", done.out)
    assert done.err == (
        f"audit-deps: 1 of {len(pins())} packages have known vulnerabilities\n"
    )


@pytest.mark.parametrize("answer", [500, 404, None])
def test_what_can_not_be_asked_is_one_line_and_no_good_news(audit, answer):
    with osv(lambda name: answer) as (url, _):
        done = audit(url if answer else "http://127.0.0.1:9/")
    assert done.returncode == 1 and done.out == ""
    assert done.err.startswith("audit-deps: could not ask: ")
    assert done.err.count("\n") == 1
