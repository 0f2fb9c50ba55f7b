"""report writes one page that shows every candidate as it is, and any text as text."""

import base64
import collections
import hashlib
import html.parser
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kits import page as report_kit
from kits.page import ACCOUNT, leave, published, report, run
from saepub.choice import account as choice_account
from saepub.choice import frontier, plane
from saepub.page import panel as report_panel

HOSTILE = (
    "</script><script>pwned=1</script>",
    "<!--<script>",
    "<img src=x onerror=pwned=1>",
    "\"' onmouseover=pwned=1 x='",
    "{{ 7*7 }}{% raw %}&lt;`$(touch pwned)`",
    "a\nb\x00c\u202ed",
)


class Page(html.parser.HTMLParser):
    """The page as a browser would parse it: its tags, texts and rows."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: dict[str, dict] = {}
        self.texts: list[str] = []
        self.of_tag = collections.defaultdict(list)
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.of_tag[tag].append("")
        if tag == "tr":
            self.cells, self.tr = [], dict(attrs)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        self.texts.append(data)
        if self.open:
            self.of_tag[self.open[-1]][-1] += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass
        if tag == "tr":
            self.rows[self.cells[0]] = {"cells": self.cells[1:], **self.tr}

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture
def page(tmp_path):
    done = report(leave(tmp_path))
    assert done.code == 0, done.err
    assert done.out == ""
    return Page(done.html)


def test_every_candidate_is_told_with_its_numbers_and_its_fate(page):
    want = {
        "sparse": ["2.0", "0.800", "2025-12-01", "chosen"],
        "between": ["9.0", "0.500", "2025-12-01", "not needed"],
        "worse": ["31.0", "0.600", "2025-12-01", "off the frontier"],
        "byhand": ["60.0", "0.400", "2025-11-27", "pinned"],
        "dense": ["400.0", "0.123", "2025-12-01", "chosen"],
        "plain": ["20.0", "0.450", "2025-12-01", "dropped: not Matryoshka"],
        "nan": ["12.0", "NaN", "2025-12-01", 'dropped: not finite: NMSE "NaN"'],
        "dead": ["0.0", "1.00", "2025-12-01", "dropped: L0 is 0: a dead SAE"],
        "lost": ["none", "none", "", "dropped: not in W&B"],
    }
    for run_id, cells in want.items():
        assert page.rows[run_id]["cells"] == cells
    assert {line["run_id"] for line in ACCOUNT} == set(page.rows) - {"Run"}


def test_rows_stand_by_l0_and_those_without_a_place_last(page):
    order = ["sparse", "between", "plain", "out", "middle", "worse", "byhand", "dense"]
    order += ["dead", "lost", "nan"]
    assert [run_id for run_id in page.rows if run_id in order] == order


def test_only_runs_with_a_place_in_the_plane_are_drawn(page):
    points = [a for _, a in page.tags if "data-row" in a]
    assert len(points) == len(ACCOUNT) - len({"nan", "dead", "lost"})
    for point in points:
        for key in ("x", "y"):
            place = point.get(key) or point["c" + key]
            assert 0 <= float(place.removesuffix("%")) <= 100


def test_chosen_lie_on_top(page):
    kinds = [a["class"] for _, a in page.tags if "data-row" in a]
    assert kinds[:8] == ["d", "d", "o", "n", "p", "c", "c", "c"]


def test_the_top_says_whose_release_it_is_and_counts_all_repos(tmp_path):
    more = [line | {"repo": "vitb-relu"} for line in ACCOUNT]
    slugs = ("vits-relu", "vitb-relu", "vits-relu")
    page = Page(report(leave(tmp_path, ACCOUNT + more), *slugs).html)
    (title,) = [text for text in page.of_tag["title"] if text]
    assert title == "lab: 10 of 24 candidates chosen" == page.of_tag["h1"][0]
    assert "2 repos, 10 MB of checkpoints." in page.text
    assert "2 warnings" in page.of_tag["summary"]
    assert "demo" not in page.text


def test_the_demo_is_called_the_demo(tmp_path):
    leave(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "catalog.json").rename(tmp_path / "demo/catalog.json")
    done = report(tmp_path, CATALOG=tmp_path / "demo/catalog.json")
    page = Page(done.html)
    assert page.of_tag["title"] == ["lab, the demo: 5 of 12 candidates chosen"]
    assert "nothing here is a lab's" in " ".join(page.text.split())


def test_repos_stand_in_the_catalogs_order(tmp_path):
    more = [line | {"repo": "vitb-relu"} for line in ACCOUNT]
    leave(tmp_path, ACCOUNT + more)
    page = Page(report(tmp_path, "vitb-relu", "vits-relu").html)
    slugs = [a["data-slug"] for _, a in page.tags if "data-slug" in a]
    assert slugs == ["vits-relu", "vitb-relu"]


def test_warnings_stand_at_the_top_and_are_the_summarys(tmp_path):
    rows = [published(x) for x in ACCOUNT if x["fate"] in ("chosen", "pinned")]
    rows[0]["warnings"] = ["NMSE 1.2 is above 1"]
    done = report(leave(tmp_path, rows=rows))
    told = choice_account.warnings(rows, ACCOUNT)
    assert told == [
        "layer 8: a frontier of only 1 run",
        "layer 6 sparse: NMSE 1.2 is above 1",
    ]
    page = Page(done.html)
    assert [text for text in page.of_tag["li"] if text in told] == told
    assert done.html.index(told[0]) < done.html.index("<table")
    assert page.rows["sparse"]["cells"][-1] == "chosen Warning: NMSE 1.2 is above 1"


def test_what_will_stop_a_push_is_a_warning_and_comes_first(tmp_path):
    rows = [published(x) for x in ACCOUNT if x["fate"] in ("chosen", "pinned")]
    rows[0]["loader"] = rows[1]["loader"] = "builtin"
    page = Page(report(leave(tmp_path, rows=rows)).html)
    assert "2 warnings, one of which will stop a push" in page.of_tag["summary"]
    assert [a.get("class") for tag, a in page.tags if tag == "li"][0] == "stop"
    assert "saev has not loaded 2 checkpoints" in page.text
    page = Page(report(tmp_path, LOADER="builtin").html)
    assert "1 warning" in page.of_tag["summary"]
    assert "saev has not loaded" not in page.text


def test_measured_and_logged_numbers_both_stand_there(tmp_path):
    both = {"numbers": "measured:52ec5790", "n_tokens": 512}
    both |= {"l0_logged": 30.4, "nmse_logged": None}
    lines = [x | (both if x["run_id"] == "middle" else {}) for x in ACCOUNT]
    page = Page(report(leave(tmp_path, lines)).html)
    assert page.rows["middle"]["cells"][:2] == ["30.030.4", "0.310none"]
    assert page.rows["between"]["cells"][:2] == ["9.0", "0.500"]
    assert page.of_tag["small"] == ["logged", "logged", "30.4", "none"]
    (count,) = [text for text in page.of_tag["p"] if "11 candidates" in text]
    assert "1 run, measured on 512 tokens of 52ec5790" in count


def test_a_run_without_numbers_is_a_warning(tmp_path):
    lines = [*ACCOUNT, run("bare", 3.0, None, "dropped", drop="no NMSE in W&B")]
    page = Page(report(leave(tmp_path, lines)).html)
    told = "layer 6: 1 run dropped for lack of numbers; to measure them: make measure"
    assert told in page.of_tag["li"]


def test_what_loaded_the_checkpoints_is_told(tmp_path):
    rows = [published(x) for x in ACCOUNT if x["fate"] in ("chosen", "pinned")]
    rows[0]["loader"] = "builtin"
    page = Page(report(leave(tmp_path, rows=rows)).html)
    assert "loaded by saev 0.1.0 and the built-in reader" in page.text


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first = report(leave(tmp_path)).html
    assert report(leave(tmp_path, ACCOUNT[::-1])).html == first


@pytest.mark.parametrize(
    ("settings", "pin", "exclude"),
    [
        ({}, "byhand", "out"),
        (
            {"PIN": "middle, byhand elsewhere", "EXCLUDE": " out  out"},
            "middle byhand",
            "out",
        ),
    ],
)
def test_what_is_in_force_stands_there_for_the_command(
    tmp_path, settings, pin, exclude
):
    page = Page(report(leave(tmp_path), **settings).html)
    (repo,) = [a for _, a in page.tags if "data-slug" in a]
    assert (repo["data-pin"], repo["data-exclude"]) == (pin, exclude)
    assert f'PIN="{pin}"' in page.of_tag["code"]


def test_text_that_is_no_id_never_gets_into_a_command(tmp_path):
    page = Page(report(leave(tmp_path), PIN="elsewhere $(id) `id` a;b").html)
    (body,) = [a for tag, a in page.tags if tag == "body"]
    assert body["data-pin"] == "elsewhere"


def test_a_count_and_the_legend_have_one_order(tmp_path, page):
    order = list(plane.LEGEND)
    legend = [
        a["class"] for tag, a in page.tags if tag == "use" and "data-row" not in a
    ]
    assert legend == ["c", "p", "n", "o", "d"]
    counts = [t for t in page.of_tag["p"] + page.of_tag["span"] if "candidates:" in t]
    assert len(counts) == 2, "the repo's, and that of its one layer of several"
    for text in counts:
        words = "|".join(sorted(order, key=len, reverse=True))
        found = re.findall(rf"\d ({words})", text)
        assert len(found) > 2
        assert found == sorted(found, key=order.index)


# ---- hostile text ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_stays_text(tmp_path, text):
    def page_with(text: str) -> Page:
        changes = {"plain": {"drop": text}, "nan": {"wandb_url": text}}
        changes |= {"worse": {"created_at": text}}
        account = [line | changes.get(line["run_id"], {}) for line in ACCOUNT]
        rows = [published(x) for x in account if x["fate"] in ("chosen", "pinned")]
        rows[0] |= {"warnings": [text], "loader": text}
        done = report(leave(tmp_path, account, rows))
        assert done.code == 0, done.err
        return Page(done.html)

    page, harmless = page_with(text), page_with("harmless")
    assert tags_of(page) == tags_of(harmless)
    shown = "".join(c if c.isprintable() else " " for c in text)
    assert page.rows["plain"]["cells"][-1] == f"dropped: {shown}"
    assert page.rows["worse"]["cells"][2] == shown
    assert page.rows["sparse"]["cells"][-1] == f"chosen Warning: {shown}"
    assert f"layer 6 sparse: {shown}" in page.of_tag["li"]
    assert f"loaded by {min(shown, 'saev 0.1.0')}" in page.text


def tags_of(page: Page) -> list[tuple]:
    return [(tag, sorted(attrs)) for tag, attrs in page.tags]


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_the_catalogs_text_stays_text(tmp_path, text):
    catalog = json.loads(json.dumps(report_kit.CATALOG))
    catalog["repos"][0]["title"] = text
    found = Page(report(leave(tmp_path, catalog=catalog)).html)
    harmless = Page(report(leave(tmp_path)).html)
    assert text in found.of_tag["h2"]
    assert tags_of(found) == tags_of(harmless)


@pytest.mark.parametrize(
    ("url", "is_link"),
    [
        ("https://wandb.ai/lab/saev/runs/a?x=1&y=2", True),
        ("http://127.0.0.1:8080/runs/a", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt://wandb.ai/%0aalert(1)", False),
        ("data:text/html,<script>1</script>", False),
        ("file:///etc/passwd", False),
        ("//wandb.ai/a", False),
        ("https:wandb.ai", False),
        ("https://[wandb.ai", False),
        ("https://wandb.ai/\u202egpj", False),
        ("\x01https://wandb.ai", False),
        ("", False),
        (None, False),
    ],
)
def test_only_web_addresses_become_links(tmp_path, url, is_link):
    account = [line | {"wandb_url": url} for line in ACCOUNT]
    page = Page(report(leave(tmp_path, account)).html)
    links = {a.get("href") for tag, a in page.tags if tag == "a"}
    links = {href for href in links if href and not href.startswith("#")}
    assert links == ({url} if is_link else set())


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(page, tmp_path):
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag in ("script", "style"):
        (text,) = page.of_tag[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for tag, attrs in page.tags:
        assert tag not in ("iframe", "object", "embed", "form", "img", "base")
        assert not [
            key for key in attrs if key.startswith("on") or key in ("style", "src")
        ]
        if tag == "link":
            assert attrs == {"rel": "icon", "href": "data:,"}
        if "href" in attrs and tag != "a":
            assert attrs["href"].startswith(("#", "data:,"))
    assert not re.search(r"url\(|@import", page.of_tag["style"][0])


# ---- what a user can get wrong ---------------------------------------------------------------


def test_no_slug_and_an_unknown_slug_are_wrong_usage(tmp_path):
    leave(tmp_path)
    assert report(tmp_path, "--out", tmp_path / "x").code == 2
    done = report(tmp_path, "vitz-relu")
    assert done.code == 2
    assert "did you mean vits-relu?" in done.err


def test_a_repo_without_a_dry_run_says_what_to_run(tmp_path):
    done = report(leave(tmp_path), "vitb-relu")
    assert done.code == 1
    assert done.err == (
        f"report: {tmp_path}/vitb-relu/rendered.jsonl: missing;"
        f" run: make dry-run REPO=vitb-relu\n"
    )
    assert done.html is None


def test_files_of_two_choices_are_refused(tmp_path):
    leave(tmp_path, rows=[published(ACCOUNT[0])])
    done = report(tmp_path)
    assert done.code == 1
    assert "don't match; run: make dry-run REPO=vits-relu" in done.err


def test_a_line_that_is_no_account_is_refused_and_an_older_page_stands(tmp_path):
    first = report(leave(tmp_path)).html
    leave(tmp_path, [*ACCOUNT[:-1], run("lonely", 1.0, 1.0, "lucky", layer=8)])
    done = report(tmp_path)
    assert done.code == 1
    assert 'account.jsonl:12: "fate" is "lucky", not one of chosen, ' in done.err
    assert done.html == first
    assert not list(tmp_path.glob(".*"))


def test_out_names_the_file(tmp_path):
    fpath = tmp_path / "elsewhere" / "page.html"
    done = report(leave(tmp_path), "vits-relu", "--out", fpath)
    assert done.html is None
    assert fpath.read_text().startswith("<!doctype html>")
    assert str(fpath) in done.err


# ---- one panel -------------------------------------------------------------------------------


def test_the_frontier_line_goes_through_the_chosen_and_the_not_needed():
    front = frontier.of_account(sorted(ACCOUNT[:6], key=lambda r: r["l0"]))
    assert [r["run_id"] for r in front] == ["sparse", "between", "middle", "dense"]


def test_a_pinned_run_on_the_frontier_stays_on_the_line():
    runs = [run("a", 1.0, 0.9, "chosen"), run("b", 2.0, 0.5, "pinned")]
    assert frontier.of_account(runs) == runs


def test_dropped_runs_are_never_on_the_line():
    runs = [
        run("a", 1.0, 0.1, "dropped", drop="not Matryoshka"),
        run("b", 2.0, 0.5, "chosen"),
    ]
    assert frontier.of_account(runs) == runs[1:]


def test_l0_is_drawn_in_log_and_nmse_upwards():
    runs = [run("a", 1.0, 0.9, "chosen"), run("b", 10.0, 0.5, "chosen")]
    runs.append(run("c", 100.0, 0.1, "chosen"))
    points = report_panel.panel(6, runs).points
    x, y = ([float(getattr(p, k)[:-1]) for p in points] for k in "xy")
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.02)
    assert x[0] < x[1]
    assert y[0] < y[1], "less error is lower on the page"


def test_a_diverged_run_does_not_press_the_frontier_flat():
    runs = [run("a", 1.0, 0.9, "chosen"), run("b", 10.0, 0.1, "chosen")]
    runs.append(run("c", 5.0, 1e6, "off the frontier"))
    panel = report_panel.panel(6, runs)
    tops = {panel.runs[p.row]["run_id"]: float(p.y[:-1]) for p in panel.points}
    assert tops["c"] == 0
    assert tops["b"] - tops["a"] > 50
    assert panel.notes == ["1 run beyond the plot is drawn at its edge."]
    assert {panel.runs[p.row]["run_id"]: p.edge for p in panel.points}["c"] == "up"


def test_a_layer_of_which_nothing_can_be_drawn_has_a_table_all_the_same():
    panel = report_panel.panel(6, [run("a", None, None, "dropped", drop="no L0")])
    assert (panel.points, len(panel.runs)) == ([], 1)
    assert panel.notes == ["No candidate has L0 and NMSE."]


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0, allow_infinity=False),
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(report_panel.BACK_TO_FRONT),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_measures_have_places_and_any_axis_has_numbers(measures):
    runs = [run(f"r{i}", *m, drop=None) for i, m in enumerate(measures)]
    panel = report_panel.panel(6, runs)
    assert len(panel.runs) == len(runs)
    assert sorted(p.row for p in panel.points) == list(range(len(panel.points)))
    places = [v for p in panel.points for v in (p.x, p.y)]
    places += [at for at, _ in panel.x_ticks + panel.y_ticks]
    assert all(0 <= float(v.removesuffix("%")) <= 100 for v in places)
    if panel.points:
        assert 1 <= len(panel.x_ticks) <= report_panel.N_TICKS + 2
        assert 1 <= len(panel.y_ticks) <= report_panel.N_TICKS + 2


def test_the_repos_that_are_whole_are_shown_and_the_others_named(tmp_path):
    other = [line | {"repo": "vitb-relu"} for line in ACCOUNT]
    leave(tmp_path, [*ACCOUNT, *other])
    (tmp_path / "vits-relu/summary.txt").touch()
    argv = ("--partial", "vits-relu", "vitb-relu")
    done = report(tmp_path, *argv)
    assert done.code == 1
    assert "vitb-relu: can't be released yet" in done.err
    why = "vitb-relu: its dry run failed; to see why: make dry-run REPO=vitb-relu"
    assert f"Not shown: {why}" in done.html
    assert 'id="repo-vits-relu"' in done.html and 'id="repo-vitb-relu"' not in done.html
    # One joint was made anew, and the ones after it were not.
    time = (tmp_path / "vits-relu/summary.txt").stat().st_mtime + 1
    os.utime(tmp_path / "vits-relu/account.jsonl", (time, time))
    done = report(tmp_path, *argv)
    assert done.code == 1 and "vits-relu, vitb-relu: nothing to show" in done.err
