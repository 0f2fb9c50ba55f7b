"""The report page works in a browser: by mouse, keyboard, touch and ear; light, dark, printed."""

import base64
import io
import pathlib
import random
import shlex

import pytest

from kits.page import ACCOUNT, leave, published, report, run, start_browser
from kits.programs import ROOT, rows_of, run_program, text_of
from saepub.jsonl import CHOSEN, NOT_NEEDED, OFF_FRONTIER, PINNED
from saepub.page.panel import BACK_TO_FRONT

CLIPBOARD = "navigator.clipboard.readText().then(arguments[0])"

# As in a browser that keeps the clipboard from pages.
NO_CLIPBOARD = (
    'Object.defineProperty(Navigator.prototype, "clipboard", {get: () => undefined});'
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def fpath(tmp_path_factory) -> pathlib.Path:
    build_dpath = leave(tmp_path_factory.mktemp("build"))
    assert report(build_dpath, PIN="byhand", EXCLUDE="out").code == 0
    return build_dpath / "report.html"


class Look:
    """A page in a browser."""

    def __init__(self, browser, fpath: pathlib.Path):
        self.browser, self.fpath = browser, fpath
        self.scripts = []

    def open(self, width=1200, scheme="light", media="", before=""):
        cdp = self.browser.execute_cdp_cmd
        size = {
            "width": width,
            "height": 1000,
            "deviceScaleFactor": 1,
            "mobile": width < 500,
        }
        cdp("Emulation.setDeviceMetricsOverride", size)
        cdp("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        cdp("Emulation.setEmulatedMedia", {"media": media, "features": features})
        if before:
            name = "Page.addScriptToEvaluateOnNewDocument"
            self.scripts.append(cdp(name, {"source": before})["identifier"])
        self.browser.get(self.fpath.as_uri())
        return self

    def close(self):
        for identifier in self.scripts:
            name = "Page.removeScriptToEvaluateOnNewDocument"
            self.browser.execute_cdp_cmd(name, {"identifier": identifier})
        assert self.browser.get_log("browser") == [], "the console is empty"

    def js(self, text: str, *args):
        return self.browser.execute_script(text, *args)

    def all(self, css: str) -> list:
        return self.browser.find_elements("css selector", css)

    def one(self, css: str):
        return self.browser.find_element("css selector", css)

    def point(self, run_id: str):
        return self.one(f"[data-row][aria-label^='{run_id},']")

    def row(self, run_id: str):
        (found,) = [r for r in self.all("tbody tr") if run_id in r.text.split()]
        return found

    def hover(self, element):
        from selenium.webdriver import ActionChains

        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.browser).move_to_element(element).perform()

    def click(self, element):
        from selenium.webdriver import ActionChains

        self.hover(element)
        ActionChains(self.browser).click().perform()

    def press(self, *keys: str):
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        actions = ActionChains(self.browser)
        for key in keys:
            actions.send_keys(getattr(Keys, key))
        actions.perform()

    def tap(self, element):
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        box = self.box(element)
        place = {
            "x": (box["left"] + box["right"]) / 2,
            "y": (box["top"] + box["bottom"]) / 2,
        }
        for kind, points in (("touchStart", [place]), ("touchEnd", [])):
            event = {"type": kind, "touchPoints": points}
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)

    def box(self, element) -> dict:
        return self.js("return arguments[0].getBoundingClientRect().toJSON()", element)

    def said(self, want: str) -> str:
        """What the page says, as soon as `want` is in it."""
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.browser, 10, poll_frequency=0.02)
        return wait.until(lambda _: (t := self.one("#count").text) and want in t and t)

    @property
    def has_bar(self) -> bool:
        return self.box(self.one("#bar"))["top"] < self.js("return innerHeight")

    @property
    def command(self) -> str:
        return self.one("#command").text

    @property
    def focused(self) -> str:
        return name_of(self.browser.switch_to.active_element)


def name_of(point) -> str:
    return (point.get_attribute("aria-label") or "").split(",")[0]


@pytest.fixture
def page(browser, fpath):
    look = Look(browser, fpath)
    yield look
    look.close()


def test_pointing_at_a_run_shows_a_tip_and_lights_its_row(page):
    page.open()
    tip = page.one("#tip")
    assert not tip.is_displayed()
    page.hover(page.point("middle"))
    assert tip.text.split("\n") == [
        "middle chosen",
        "L0 30.0 · NMSE 0.310",
        "Click to exclude it",
    ]
    assert "on" in page.row("middle").get_attribute("class")
    page.hover(page.point("plain"))
    assert "dropped: not Matryoshka" in tip.text
    assert "Can't be pinned" in tip.text
    assert len(page.all("tr.on")) == 1
    page.hover(page.one("h1"))
    assert not tip.is_displayed()
    assert not page.all("tr.on")


def test_a_tip_has_the_logged_numbers_too(browser, tmp_path):
    line = run("a", 30.0, 0.3, "chosen") | {
        "numbers": "measured:52ec5790",
        "n_tokens": 512,
        "l0_logged": 31.2,
        "nmse_logged": 0.31,
    }
    assert report(leave(tmp_path, [line])).code == 0
    page = Look(browser, tmp_path / "report.html").open()
    page.hover(page.point("a"))
    assert "As logged: L0 31.2, NMSE 0.310" in page.one("#tip").text
    page.close()


def test_the_lit_row_comes_into_sight_and_the_page_stays(browser, tmp_path):
    account = [run("first", 1.0, 0.9, "chosen"), run("last", 99.0, 0.1, "chosen")]
    account += [run(f"r{i}", 2.0 + i, 0.9, "off the frontier") for i in range(60)]
    page = Look(browser, leave(tmp_path, account) / "report.html")
    assert report(tmp_path).code == 0
    page.open()
    for run_id in ("last", "first"):
        page.hover(page.point(run_id))
        before = page.js("return scrollY")
        row, box = page.one("tr.on").rect, page.one(".rows").rect
        head = page.one("thead").rect["height"]
        assert box["y"] + head - 1 <= row["y"]
        assert row["y"] + row["height"] <= box["y"] + box["height"] + 1
        assert page.js("return scrollY") == before
    page.close()


def test_pointing_at_a_row_rings_its_point(page):
    page.open()
    page.hover(page.row("worse"))
    ring, point = page.one(".halo"), page.point("worse")
    for a in ("cx", "cy"):
        assert ring.get_attribute(a) == point.get_attribute(a)
    page.hover(page.row("nan"))
    assert "on" not in page.row("worse").get_attribute("class")


def test_escape_takes_the_tip_away(page):
    page.open()
    page.hover(page.point("middle"))
    page.press("ESCAPE")
    assert not page.one("#tip").is_displayed()


@pytest.mark.parametrize(
    ("run_ids", "want", "says"),
    [
        (["middle"], 'PIN="byhand" EXCLUDE="out middle"', "middle excluded."),
        (["worse"], 'PIN="byhand worse" EXCLUDE="out"', "worse pinned."),
        (["byhand"], 'PIN="" EXCLUDE="out"', "byhand no longer pinned."),
        (["out"], 'PIN="byhand" EXCLUDE=""', "out let back in."),
        (
            ["worse", "middle", "out", "lonely", "between"],
            'PIN="byhand worse between" EXCLUDE="middle lonely"',
            "between pinned. 5 changes in all:",
        ),
        (["worse", "middle", "worse"], 'PIN="byhand" EXCLUDE="out middle"', "1 change"),
    ],
)
def test_clicks_add_up_into_one_command(page, run_ids, want, says):
    page.open()
    for run_id in run_ids:
        page.click(page.point(run_id))
    assert says in page.said(says)
    assert page.command == f"make dry-run REPO=vits-relu {want}"


def test_copy_copies_and_undo_takes_all_back(page):
    page.open()
    page.click(page.point("worse"))
    page.click(page.row("dense").find_elements("tag name", "td")[-1])
    assert page.row("dense").text.endswith("chosen")
    changes = [
        r.get_attribute("data-gets") for r in page.all("tr.changed td:last-child")
    ]
    assert changes == ["pinned", "excluded"]
    want = 'make dry-run REPO=vits-relu PIN="byhand worse" EXCLUDE="out dense"'
    page.one("#copy").click()
    page.said("Copied.")
    assert page.browser.execute_async_script(CLIPBOARD) == want
    page.one("#undo").click()
    assert not page.all(".changed")
    assert not page.one("#command").is_displayed()


def test_clicks_in_two_repos_give_a_command_for_both(browser, tmp_path):
    other = [
        line | {"repo": "vitb-relu", "run_id": f"b{line['run_id']}"} for line in ACCOUNT
    ]
    leave(tmp_path, ACCOUNT + other)
    done = report(tmp_path, "vits-relu", "vitb-relu", PIN="byhand elsewhere", N=4)
    assert done.code == 0
    page = Look(browser, tmp_path / "report.html").open()
    page.click(page.point("worse"))
    assert page.command.startswith("make dry-run REPO=vits-relu N=4 PIN=")
    page.click(page.point("bmiddle"))
    assert page.command == (
        'make dry-run N=4 PIN="byhand elsewhere bbyhand worse" EXCLUDE="out bout bmiddle"'
    )
    page.close()


def test_a_command_does_what_it_says(browser, tmp_path):
    """The command's settings go through the real classify and select, which must change the fates."""
    rng = random.Random(0)
    expected = {
        "objective": "matryoshka",
        "activation": "relu",
        "d_model": 8,
        "d_sae": 32,
    }
    runs = []
    for i in range(30):
        l0 = 10 ** rng.uniform(0.3, 2.8)
        nmse = None if i == 7 else 0.9 * l0**-0.35 * rng.uniform(1, 1.2)
        runs.append(classifiable(f"run{i}", l0, nmse, expected))
    # A pin that the rule would not have chosen, and an exclusion.
    before = chain(tmp_path, runs, pin="run9", exclude="run3")
    fates = {x["run_id"]: x["fate"] for x in before}
    assert set(fates.values()) == set(BACK_TO_FRONT)
    assert report(leave(tmp_path, before), PIN="run9", EXCLUDE="run3").code == 0
    page = Look(browser, tmp_path / "report.html").open()
    wanted = {}
    for fate in (CHOSEN, PINNED, NOT_NEEDED, OFF_FRONTIER):
        run_id = next(i for i, f in fates.items() if f == fate)
        wanted[run_id] = fate in (NOT_NEEDED, OFF_FRONTIER)
        page.click(page.point(run_id))
    given = dict(word.split("=") for word in shlex.split(page.command)[2:])
    after = chain(tmp_path, runs, given.get("PIN", ""), given.get("EXCLUDE", ""))
    now = {x["run_id"]: x["fate"] for x in after}
    for run_id, is_in in wanted.items():
        assert (now[run_id] in (CHOSEN, PINNED)) == is_in
    page.close()


def classifiable(run_id: str, l0: float, nmse: float | None, expected: dict) -> dict:
    """A line as classify reads it."""
    more = {"expected": expected, **expected, "activation": {"key": "relu"}}
    more |= {
        "train_layer": 6,
        "state": "finished",
        "aux": None,
        "n_dead": 0,
        "shard": None,
    }
    return run(run_id, l0, nmse, "") | more


def chain(tmp_path, runs: list[dict], pin: str, exclude: str) -> list[dict]:
    stdin = text_of(runs)
    classified = run_program(ROOT / "bin/classify", stdin=stdin, EXCLUDE=exclude)
    settled = run_program(ROOT / "bin/settle", stdin=classified.out)
    fpath = tmp_path / "account.jsonl"
    argv = (ROOT / "bin/select", "--account", fpath)
    done = run_program(*argv, stdin=settled.out, PIN=pin)
    assert done.code == 0, done.err
    return rows_of(fpath.read_text())


def test_a_click_on_a_dropped_run_says_why_it_cant_be_pinned(page):
    page.open()
    page.click(page.point("plain"))
    page.said("plain can't be pinned, it was dropped: not Matryoshka")
    page.click(page.row("lost"))
    page.said("lost can't be pinned, it was dropped: not in W&B")
    assert page.command == ""


def test_where_nothing_can_be_copied_the_command_stands_selected(page):
    page.open(before=NO_CLIPBOARD)
    page.click(page.point("worse"))
    page.one("#copy").click()
    page.said("press Ctrl-C")
    want = 'make dry-run REPO=vits-relu PIN="byhand worse" EXCLUDE="out"'
    assert page.js("return String(getSelection())").strip() == want


def test_the_keyboard_goes_by_l0_and_enter_changes(page):
    page.open()
    stops = page.all(".panel:first-child [data-row][tabindex='0']")
    assert len(stops) == 1, "one stop a panel"
    page.js("arguments[0].focus()", page.point("sparse"))
    by_l0 = ["sparse", "between", "plain", "out", "middle", "worse", "byhand", "dense"]
    for run_id in by_l0:
        assert page.focused == run_id
        assert page.one("#tip b").text == run_id
        assert page.one("tr.on th").text == run_id
        page.press("ARROW_RIGHT")
    assert page.focused == "dense", "it stops at the end"
    page.press("HOME")
    assert page.focused == "sparse"
    page.press("END", "ARROW_LEFT", "ARROW_LEFT", "ENTER")
    page.said("worse pinned")
    assert page.command.endswith('PIN="byhand worse" EXCLUDE="out"')
    page.press("ENTER")
    page.said("worse as it was")


def test_tab_goes_from_the_top_to_the_panel_and_on_to_its_table(page):
    page.open()
    active = lambda: page.browser.switch_to.active_element  # noqa: E731
    page.press("TAB")
    assert active().text == "1 warning"
    page.press("TAB", "TAB")
    assert page.focused == "sparse", "the first chosen"
    assert page.js("return document.querySelector(':focus').matches(':focus-visible')")
    page.press("ESCAPE")
    assert not page.one("#tip").is_displayed()
    assert page.one(".halo").is_displayed(), "where the focus is stays visible"
    page.press("TAB")
    assert active().get_attribute("aria-label") == "Candidates of layer 6"
    page.press("TAB")
    assert active().get_attribute("href").endswith("/sparse")


def test_a_screen_reader_hears_every_run_and_what_was_copied(page):
    page.open()
    nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    heard = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"]
    }
    for name in (
        "middle, L0 30.0, NMSE 0.310, chosen",
        "plain, L0 20.0, NMSE 0.450, dropped: not Matryoshka",
    ):
        assert ("button", name) in heard
    assert ("group", "NMSE against L0, layer 6 of vits-relu") in heard
    assert ("region", "Candidates of layer 6") in heard
    assert ("columnheader", "NMSE") in heard
    assert ("rowheader", "middle") in heard
    assert ("cell", "0.310") in heard
    assert ("heading", "Layer 6") in heard
    assert any(role == "status" for role, _ in heard)


def test_the_page_is_well_formed_for_all(page):
    page.open()
    problems = page.js("""
        const problems = [];
        const ids = Array.from(document.querySelectorAll("[id]"), (e) => e.id);
        if (new Set(ids).size < ids.length) problems.push("an id twice");
        let level = 0;
        for (const h of document.querySelectorAll("h1, h2, h3, h4")) {
          if (h.tagName[1] - level > 1) problems.push(`a level left out before ${h.textContent}`);
          level = +h.tagName[1];
        }
        for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
          for (const key of ["aria-labelledby", "aria-describedby"])
            if (e.hasAttribute(key) && !document.getElementById(e.getAttribute(key)))
              problems.push(`no ${e.getAttribute(key)}`);
        for (const e of document.querySelectorAll("svg, [role], section, nav"))
          if (!e.closest("[aria-hidden]") && !e.matches("[aria-label], [aria-labelledby], #count"))
            problems.push(`${e.outerHTML.slice(0, 60)} has no name`);
        for (const e of document.querySelectorAll("[tabindex]"))
          if (e.tabIndex > 0) problems.push("a tab order of its own");
        for (const e of document.querySelectorAll("th")) if (!e.scope) problems.push("th without scope");
        if (document.documentElement.lang !== "en") problems.push("no language");
        if (document.querySelectorAll("main").length !== 1) problems.push("not one main");
        return problems;
    """)
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out(page, scheme):
    """WCAG 2: 4.5 for text, 3 for marks; contrast = (L1 + 0.05) / (L2 + 0.05)."""
    page.open(scheme=scheme)
    page.hover(page.point("plain"))
    page.click(page.point("worse"))
    page.hover(page.point("plain"))
    weak = page.js("""
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b]
          .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
          .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (e) => {
          for (; e; e = e.parentElement) {
            const color = rgb(getComputedStyle(e).backgroundColor);
            if (color.length === 3) return color;
          }
        };
        const contrast = (a, b) => {
          const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
          return (x + 0.05) / (y + 0.05);
        };
        const weak = [];
        for (const e of document.querySelectorAll("body *")) {
          if (!Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.data.trim())) continue;
          if (!e.getClientRects().length) continue;
          const style = getComputedStyle(e);
          const color = rgb(e.closest("svg") ? style.fill : style.color);
          const found = contrast(color, behind(e));
          if (found < 4.5) weak.push([e.tagName, e.className, e.textContent.slice(0, 20), found]);
        }
        for (const e of document.querySelectorAll("[data-row], .front, .halo")) {
          const style = getComputedStyle(e);
          const inks = [style.fill, style.stroke].filter((c) => c !== "none").map(rgb);
          const found = Math.max(...inks.map((ink) => contrast(ink, behind(e))));
          if (found < 3) weak.push([e.getAttribute("class"), found]);
        }
        return weak;
    """)
    assert weak == []


def test_dark_mode_is_dark_and_paper_is_white(page):
    def background() -> list[int]:
        color = page.js("return getComputedStyle(document.body).backgroundColor")
        return [
            int(float(c))
            for c in color.removeprefix("rgba(")
            .removeprefix("rgb(")
            .rstrip(")")
            .split(",")
        ]

    page.open(scheme="dark")
    assert max(background()[:3]) < 50
    page.open(scheme="light")
    assert min(background()[:3]) > 200
    page.open(scheme="dark", media="print")
    assert background()[3] == 0, "none"
    ink = page.js("return getComputedStyle(document.body).color")
    assert ink == "rgb(35, 38, 42)"


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 664)])
def test_the_first_plot_is_seen_without_scrolling(page, width, height):
    page.open(width=width)
    box = page.box(page.one(".plot"))
    n_label = 36  # under it: the numbers of L0
    assert box["bottom"] + n_label <= height
    assert not page.has_bar, "nothing lies over it"


def test_the_first_plot_is_seen_though_many_runs_are_excluded(browser, tmp_path):
    reason = {"drop": "excluded by hand"}
    many = [run(f"excluded{i:02d}", 20.0, 0.5, "dropped", **reason) for i in range(60)]
    assert report(leave(tmp_path, ACCOUNT + many)).code == 0
    page = Look(browser, tmp_path / "report.html").open(width=390)
    assert page.box(page.one(".plot"))["bottom"] + 36 <= 844
    page.close()


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_scrolls_sideways(page, width):
    page.open(width=width)
    assert page.js("return document.documentElement.scrollWidth") == width
    lefts = {panel.rect["x"] for panel in page.all(".panel")}
    assert len(lefts) == 1, "panels stand in one column"
    for box in page.all(".rows"):
        assert page.js(
            "return arguments[0].scrollWidth <= arguments[0].clientWidth", box
        )
    assert not any(cell.is_displayed() for cell in page.all(".date")), "no dates"
    page.tap(page.point("worse"))
    page.tap(page.point("worse"))
    page.said("worse pinned")
    assert page.js("return document.documentElement.scrollWidth") == width


def test_on_a_phone_a_tap_shows_and_a_second_one_changes(page):
    page.open(width=390)
    page.tap(page.point("middle"))
    tip = page.one("#tip")
    assert "Tap again to exclude it" in tip.text
    assert tip.rect["width"] <= 230 and tip.rect["height"] <= 90, "it stays small"
    assert not page.has_bar
    page.tap(page.point("dense"))
    assert page.one("#tip b").text == "dense"
    assert not page.has_bar
    page.tap(page.point("dense"))
    page.said("dense excluded")
    assert "Tap again to undo that" in tip.text


LAID = """
const box = (e) => e.getBoundingClientRect();
const tip = box(document.getElementById("tip"));
const plot = document.getElementById("tip").parentElement;
const panel = plot.closest(".panel");
const over = (e) => {
  const b = box(e);
  return Math.min(b.right, tip.right) - Math.max(b.left, tip.left) > 0.5
    && Math.min(b.bottom, tip.bottom) - Math.max(b.top, tip.top) > 0.5;
};
const lit = panel.querySelector(".halo");
return [...plot.querySelectorAll(".grid text"), ...panel.querySelectorAll("h3, .count, .rows"), lit]
  .filter(over).map((e) => e.textContent || e.tagName);
"""


@pytest.mark.parametrize("width", [320, 390, 760, 1280])
def test_a_tip_covers_no_label_no_row_and_not_its_run(page, width):
    page.open(width=width)
    for point in page.all("[data-row]"):
        page.js("arguments[0].focus()", point)
        tip = page.one("#tip")
        assert tip.is_displayed()
        assert page.js(LAID) == [], name_of(point)
        box = tip.rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_a_table_that_continues_shows_it(browser, tmp_path):
    account = [run(f"r{i}", 2.0 + i, 0.9, "off the frontier") for i in range(60)]
    account.append(run("best", 1.0, 0.2, "chosen"))
    assert report(leave(tmp_path, account)).code == 0
    page = Look(browser, tmp_path / "report.html").open(width=390)

    def foot() -> tuple[int, ...]:
        """The gray of the last few rows of pixels in the box."""
        from PIL import Image

        shot = Image.open(io.BytesIO(page.one(".rows").screenshot_as_png)).convert("L")
        x = shot.width - 40
        return tuple(
            shot.getpixel((x, y)) for y in range(shot.height - 5, shot.height - 1)
        )

    page.js("document.querySelector('.rows').scrollIntoView({block: 'center'})")
    assert max(foot()) < 245, "a shade while there is more"
    page.js("const b = document.querySelector('.rows'); b.scrollTop = b.scrollHeight")
    assert min(foot()) > 250, "and none at the end"
    page.close()


def pages_of(page) -> list[str]:
    """The text of each page that the browser prints."""
    import pypdf

    pdf = page.browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    reader = pypdf.PdfReader(io.BytesIO(base64.b64decode(pdf)))
    return [printed.extract_text() for printed in reader.pages]


def test_print_shows_all_rows_and_warnings_and_no_controls(page):
    page.open()
    page.hover(page.point("middle"))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "[...document.querySelectorAll('#tip, .use, .halo, #bar')].filter((e) => e.checkVisibility())"
    assert page.js(f"return {shown}.length") == 0
    text = "".join(pages_of(page))
    for line in ACCOUNT:
        assert line["run_id"] in text
    assert "layer 8: a frontier of only 1 run" in text


def test_no_table_is_broken_over_two_printed_pages(browser, tmp_path):
    account = []
    for layer in range(6, 12):
        # Those of layer 8 are measured, so each takes two lines.
        of = {"layer": layer, "numbers": "wandb" if layer != 8 else "measured:52ec5790"}
        account += [
            run(f"L{layer}r{i:02d}", 2.0 + i, 0.9, "off the frontier", **of)
            for i in range(10 * (layer - 5))
        ]
        account.append(run(f"L{layer}best", 1.0, 0.2, "chosen", **of))
    assert report(leave(tmp_path, account)).code == 0
    page = Look(browser, tmp_path / "report.html").open()
    printed = pages_of(page)
    assert len(printed) > 1
    for layer in range(6, 12):
        on = [i for i, text in enumerate(printed) if f"L{layer}best" in text]
        rows = [i for i, text in enumerate(printed) if f"L{layer}r" in text]
        heads = [i for i, text in enumerate(printed) if f"Layer {layer}" in text]
        is_long = layer >= 8
        assert on == heads and len(on) == 1
        assert rows == ([] if is_long else on)
    assert "the page itself has every candidate" in " ".join("".join(printed).split())
    page.close()


def test_without_a_script_pictures_and_tables_are_there(page):
    cdp = page.browser.execute_cdp_cmd
    cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open()
    cdp("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(page.all("[data-row]")) == 9
    assert not page.all("[data-row][tabindex]")
    assert len(page.all("tbody tr")) == len(ACCOUNT)
    assert not page.one("#tip").is_displayed()


def test_nothing_is_asked_of_any_network(page):
    page.open()
    page.hover(page.point("middle"))
    assert page.js("return performance.getEntriesByType('resource').length") == 0


def test_hostile_text_runs_nothing(browser, tmp_path):
    text = "</td></script><script>pwned=1</script><img src=x onerror=pwned=1>"
    account = [dict(line) for line in ACCOUNT]
    for line in account:
        line["created_at"] = line["wandb_url"] = text
        if line["drop"]:
            line["drop"] = text
    rows = [published(x) for x in account if x["fate"] in ("chosen", "pinned")]
    for row in rows:
        row |= {"warnings": [text], "loader": text}
    assert report(leave(tmp_path, account, rows)).code == 0
    page = Look(browser, tmp_path / "report.html").open()
    page.click(page.point("plain"))
    page.said(f"plain can't be pinned, it was dropped: {text}")
    assert page.js("return typeof pwned") == "undefined"
    assert not page.all("img")
    page.close()


@pytest.mark.long
def test_twenty_layers_of_five_hundred_runs_open_and_scroll(browser, tmp_path):
    """CPU of the page's own thread, so that a busy machine doesn't count."""
    rng = random.Random(0)
    account = [
        run(
            f"L{layer}r{i}",
            10 ** rng.uniform(0.5, 3),
            rng.random(),
            "off the frontier",
            layer=layer,
        )
        for layer in range(20)
        for i in range(499)
    ]
    account += [
        run(f"best{layer}", 2.0, 0.01, "chosen", layer=layer) for layer in range(20)
    ]
    assert report(leave(tmp_path, account)).code == 0
    page = Look(browser, tmp_path / "report.html").open()
    assert page.js("return document.querySelectorAll('[data-row]').length") == 10_000
    page.hover(page.point("best0"))
    assert page.one("#tip b").text == "best0"
    laid = page.js("""
        return Array.from(document.querySelectorAll("tbody"))
          .filter((e) => e.rows[0].checkVisibility({ contentVisibilityAuto: true })).length;
    """)
    n_tables = page.js("return document.querySelectorAll('tbody').length")
    assert laid < n_tables / 10, "what isn't seen isn't laid out"
    page.close()
