"""For the report's tests: what a dry run leaves, and a browser to look at the page."""

import json
import pathlib
import shutil

import pytest

from kits import in_process
from kits.checkpoints import entry
from kits.programs import text_of

DATE = "2025-12-01T03:04:05Z"

CATALOG = {"repos": [entry(s, layers=[6, 8]) for s in ("vits-relu", "vitb-relu")]}


def run(run_id: str, l0, nmse, fate: str, layer: int = 6, **more) -> dict:
    """A line of the account."""
    url = f"https://wandb.ai/lab/saev/runs/{run_id}"
    base = {"repo": "vits-relu", "layer": layer, "run_id": run_id, "l0": l0}
    base |= {"nmse": nmse, "created_at": DATE, "wandb_url": url, "aux": None}
    base |= {"numbers": "wandb", "n_tokens": None, "l0_logged": l0, "nmse_logged": nmse}
    return base | {"drop": None, "fate": fate} | more


ACCOUNT = [
    run("sparse", 2.0, 0.8, "chosen"),
    run("between", 9.0, 0.5, "not needed"),
    run("middle", 30.0, 0.31, "chosen"),
    run("worse", 31.0, 0.6, "off the frontier"),
    run("byhand", 60.0, 0.4, "pinned", created_at="2025-11-27T00:00:00Z"),
    run("dense", 400.0, 0.123456, "chosen"),
    run("plain", 20.0, 0.45, "dropped", drop="not Matryoshka"),
    run("out", 25.0, 0.44, "dropped", drop="excluded by hand"),
    run("nan", 12.0, "NaN", "dropped", drop='not finite: NMSE "NaN"'),
    run("dead", 0, 1.0, "dropped", drop="L0 is 0: a dead SAE"),
    run("lost", None, None, "dropped", drop="not in W&B", created_at=None)
    | {"wandb_url": None},
    run("lonely", 32.0, 0.2, "chosen", layer=8),
]


def published(line: dict, **more) -> dict:
    """The line that render passes on for a chosen run."""
    path = f"layer_{line['layer']}/{line['run_id']}/sae.pt"
    base = line | {
        "path": path,
        "bytes": 1_000_000,
        "warnings": [],
        "loader": "saev 0.1.0",
        "numbers": "measured:52ec5790",
    }
    return base | more


def leave(
    build_dpath: pathlib.Path, account=ACCOUNT, rows=None, catalog=CATALOG
) -> pathlib.Path:
    """Write what a dry run of each repo in `account` leaves in the build directory."""
    if rows is None:
        rows = [
            published(line) for line in account if line["fate"] in ("chosen", "pinned")
        ]
    for slug in {line["repo"] for line in account}:
        dpath = build_dpath / slug
        dpath.mkdir(parents=True, exist_ok=True)
        for name, of_all in (("account", account), ("rendered", rows)):
            text = text_of([row for row in of_all if row["repo"] == slug])
            (dpath / f"{name}.jsonl").write_text(text)
    (build_dpath / "catalog.json").write_text(json.dumps(catalog))
    return build_dpath


def report(build_dpath: pathlib.Path, *argv: object, **settings: object):
    """Run report on a build directory, in this process; `html` is the page that it wrote."""
    settings = {
        "BUILD": build_dpath,
        "CATALOG": build_dpath / "catalog.json",
    } | settings
    args = [str(arg) for arg in argv or ["vits-relu"]]
    done = in_process.run("report", *args, env=settings)
    fpath = build_dpath / "report.html"
    done.html = fpath.read_text() if fpath.is_file() else None
    return done


def start_browser(profile_dpath: pathlib.Path):
    """A headless Chromium of its own. Skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip(
            "no Chromium to look with: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = (
        "headless=new no-sandbox disable-gpu disable-quic no-first-run"
        " disable-background-networking disable-component-update disable-sync"
    )
    for flag in (*flags.split(), f"user-data-dir={profile_dpath}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(chromedriver)
    browser = webdriver.Chrome(options=options, service=service)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    return browser
