"""The report page works in a browser: by mouse, keyboard, touch and ear, light, dark, printed."""

import base64
import pathlib

import pytest

from kits.page import ACCOUNT, leave, published, report, run, start_browser

CLIPBOARD = "navigator.clipboard.readText().then(arguments[0])"

# Stand in for a browser that keeps its clipboard from a page of file://.
NO_CLIPBOARD = """
window.real = navigator.clipboard;
Object.defineProperty(Navigator.prototype, "clipboard", { get: () => undefined });
"""
NO_COPY = "Document.prototype.execCommand = () => false;"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def fpath(tmp_path_factory) -> pathlib.Path:
    build_dpath = leave(tmp_path_factory.mktemp("build"))
    assert report(build_dpath, PIN="byhand", EXCLUDE="out").returncode == 0
    return build_dpath / "report.html"


class Look:
    """One page, looked at."""

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
        return self.one(f"use[aria-label^='{run_id},']")

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

    def toast(self) -> str:
        """What the page says last, once it says something."""
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.browser, 10, poll_frequency=0.02)
        return wait.until(lambda _: self.one("#toast").text)

    def clipboard(self, script: str = CLIPBOARD) -> str:
        return self.browser.execute_async_script(script)

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


def test_pointing_at_a_run_shows_its_card_and_lights_its_row(page):
    page.open()
    assert not page.one("#card").is_displayed()
    page.hover(page.point("middle"))
    card = page.one("#card")
    for text in ("middle", "L0\n30.0", "NMSE\n0.310", "Date\n2025-12-01", "chosen"):
        assert text in card.text
    assert 'make dry-run REPO=vits-relu PIN="byhand" EXCLUDE="out middle"' in card.text
    assert card.find_element("tag name", "a").get_attribute("href").endswith("/middle")
    assert "on" in page.row("middle").get_attribute("class")
    page.hover(page.point("plain"))
    assert "dropped: not Matryoshka" in card.text
    assert "A dropped run can't be pinned." in card.text
    assert "make" not in card.text
    assert len(page.all("tr.on")) == 1
    page.hover(page.one("h1"))
    assert not card.is_displayed()
    assert not page.all("tr.on")


def test_the_pointer_can_cross_to_the_card_and_its_link(browser, tmp_path):
    """Even where other runs lie so near that the way leads past them."""
    from selenium.webdriver import ActionChains

    nmse = {"sparse": 0.8, "above": 0.538, "middle": 0.5, "below": 0.462, "dense": 0.2}
    l0 = {"sparse": 1.0, "dense": 100.0}
    account = [run(k, l0.get(k, 10.0), v, "chosen") for k, v in nmse.items()]
    page = Look(browser, leave(tmp_path, account) / "report.html")
    assert report(tmp_path).returncode == 0
    page.open()
    page.hover(page.point("middle"))
    boxes = [
        page.js("return arguments[0].getBoundingClientRect().toJSON()", element)
        for element in (page.point("middle"), page.one("#card a"))
    ]
    (x, y), (to_x, to_y) = [
        (box["left"] + box["width"] / 2, box["top"] + box["height"] / 2)
        for box in boxes
    ]
    n_steps = 40
    actions = ActionChains(browser, duration=0)
    for i in range(1, n_steps + 1):
        share = i / n_steps
        # First straight out of the point, then over the card.
        across = max(0, share - 0.5) * 2
        place = round(x + (to_x - x) * across), round(y + (to_y - y) * share)
        actions.w3c_actions.pointer_action.move_to_location(*place)
    actions.perform()
    assert page.one("#card").is_displayed()
    assert page.one("#card b").text == "middle"
    assert page.one("#card a:hover")
    page.close()


def test_the_lit_row_comes_into_sight_and_the_page_stays(browser, tmp_path):
    account = [run("first", 1.0, 0.9, "chosen"), run("last", 99.0, 0.1, "chosen")]
    account += [run(f"r{i}", 2.0 + i, 0.9, "off the frontier") for i in range(60)]
    page = Look(browser, leave(tmp_path, account) / "report.html")
    assert report(tmp_path).returncode == 0
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
    for a, b in (("cx", "x"), ("cy", "y")):
        assert ring.get_attribute(a) == point.get_attribute(b)
    page.hover(page.row("nan"))
    assert "on" not in page.row("worse").get_attribute("class")


def test_escape_takes_the_card_away(page):
    page.open()
    page.hover(page.point("middle"))
    page.press("ESCAPE")
    assert not page.one("#card").is_displayed()


@pytest.mark.parametrize(
    ("run_id", "want", "says"),
    [
        ("middle", 'PIN="byhand" EXCLUDE="out middle"', "Copied what excludes it"),
        ("worse", 'PIN="byhand worse" EXCLUDE="out"', "Copied what pins it"),
        ("byhand", 'PIN="" EXCLUDE="out"', "Copied what unpins it"),
        ("out", 'PIN="byhand" EXCLUDE=""', "Copied what lets it back in"),
    ],
)
def test_a_click_copies_the_command_and_says_so(page, run_id, want, says):
    page.open()
    page.click(page.point(run_id))
    want = f"make dry-run REPO=vits-relu {want}"
    assert page.toast() == f"{says}: {want}"
    assert page.clipboard() == want


def test_a_click_on_a_row_copies_too(page):
    page.open()
    page.click(page.row("worse").find_elements("tag name", "td")[-1])
    assert "Copied what pins it" in page.toast()


def test_a_click_on_a_dropped_run_says_why_it_cant_be_pinned(page):
    page.open()
    page.click(page.point("plain"))
    assert page.toast() == "plain can't be pinned, it was dropped: not Matryoshka"
    page.click(page.row("lost"))
    assert page.toast() == "lost can't be pinned, it was dropped: not in W&B"


def test_without_a_clipboard_it_copies_the_old_way(page):
    page.open(before=NO_CLIPBOARD)
    page.click(page.point("worse"))
    assert "Copied what pins it" in page.toast()
    assert page.focused == "worse"
    copied = page.clipboard("real.readText().then(arguments[0])")
    assert copied == 'make dry-run REPO=vits-relu PIN="byhand worse" EXCLUDE="out"'


def test_where_nothing_can_be_copied_the_command_stands_selected(page):
    page.open(before=NO_CLIPBOARD + NO_COPY)
    page.click(page.point("worse"))
    assert "copy it by hand" in page.toast()
    want = 'make dry-run REPO=vits-relu PIN="byhand worse" EXCLUDE="out"'
    assert page.js("return String(getSelection())") == want


def test_the_keyboard_goes_by_l0_and_enter_copies(page):
    page.open()
    assert len(page.all(".panel:first-child use[tabindex='0']")) == 1, (
        "one stop a panel"
    )
    page.js("arguments[0].focus()", page.point("sparse"))
    by_l0 = ["sparse", "between", "plain", "out", "middle", "worse", "byhand", "dense"]
    for run_id in by_l0:
        assert page.focused == run_id
        assert page.one("#card b").text == run_id
        assert page.one("tr.on th").text == run_id
        page.press("ARROW_RIGHT")
    assert page.focused == "dense", "it stops at the end"
    page.press("HOME")
    assert page.focused == "sparse"
    page.press("END", "ARROW_LEFT", "ARROW_LEFT", "ENTER")
    assert "Copied what pins it" in page.toast()
    assert page.clipboard().endswith('PIN="byhand worse" EXCLUDE="out"')


def test_tab_goes_from_the_panel_to_the_cards_link_and_on(page):
    page.open()
    page.js(
        "document.querySelector('h1').tabIndex = -1; document.querySelector('h1').focus()"
    )
    page.press("TAB", "TAB")  # past the warnings' link
    assert page.focused == "sparse", "the first chosen"
    assert page.js("return document.querySelector(':focus').matches(':focus-visible')")
    active = lambda: page.browser.switch_to.active_element  # noqa: E731
    page.press("TAB")
    assert active().get_attribute("href").endswith("/sparse")
    assert page.one("#card").is_displayed()
    page.press("TAB", "ENTER")
    assert "Copied what excludes it" in page.toast()
    page.press("ESCAPE")
    assert page.focused == "sparse"
    assert not page.one("#card").is_displayed()
    assert page.one(".halo").is_displayed(), "where the focus is stays visible"
    page.press("TAB")
    assert active().get_attribute("aria-label") == "Candidates of layer 6"


def test_a_screen_reader_hears_every_run_and_what_was_copied(page):
    page.open()
    nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    heard = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"]
    }
    for name in (
        "middle, L0 30.0, NMSE 0.310, 2025-12-01, chosen",
        "plain, L0 20.0, NMSE 0.450, 2025-12-01, dropped: not Matryoshka",
    ):
        assert ("button", name) in heard
    assert ("group", "L0 against NMSE, layer 6 of vits-relu") in heard
    assert ("region", "Candidates of layer 6") in heard
    assert ("columnheader", "NMSE") in heard
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
          if (!e.closest("[aria-hidden]") && !e.matches("[aria-label], [aria-labelledby], #toast"))
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
    page.js("tell('x')")
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
        for (const e of document.querySelectorAll(".plot use, .front, .halo")) {
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


def test_on_a_phone_nothing_scrolls_sideways_and_a_tap_copies(page):
    page.open(width=320)
    assert page.js("return document.documentElement.scrollWidth") == 320
    lefts = {panel.rect["x"] for panel in page.all(".panel")}
    assert len(lefts) == 1, "panels stand in one column"
    for box in page.all(".rows"):
        assert page.js(
            "return arguments[0].scrollWidth <= arguments[0].clientWidth", box
        )
    point = page.point("middle")
    page.js("arguments[0].scrollIntoView({block: 'center'})", point)
    place = page.js(
        "const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]",
        point,
    )
    touch = {"type": "touchStart", "touchPoints": [{"x": place[0], "y": place[1]}]}
    page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    touch = {"type": "touchEnd", "touchPoints": []}
    page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    assert "Copied what excludes it" in page.toast()
    card = page.one("#card")
    assert card.is_displayed()
    assert card.rect["x"] >= 0
    assert card.rect["x"] + card.rect["width"] <= 320
    assert page.js("return document.documentElement.scrollWidth") == 320


def test_every_card_fits_the_window(page):
    for width in (320, 760, 1200):
        page.open(width=width)
        for point in page.all("use[aria-label]"):
            page.js("arguments[0].focus()", point)
            card = page.one("#card").rect
            assert 0 <= card["x"] <= card["x"] + card["width"] <= width


def test_print_shows_all_rows_and_no_controls(page):
    page.open()
    page.hover(page.point("middle"))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for css in ("#card", ".use", ".halo", "#toast"):
        assert not page.one(css).is_displayed()
    for box in page.all(".rows"):
        assert page.js(
            "return arguments[0].scrollHeight <= arguments[0].clientHeight", box
        )
    pdf = page.browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")


def test_without_a_script_pictures_and_tables_are_there(page):
    cdp = page.browser.execute_cdp_cmd
    cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open()
    cdp("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(page.all("use[data-row]")) == 9
    assert not page.all("use[tabindex]")
    assert len(page.all("tbody tr")) == len(ACCOUNT)
    assert not page.one("#card").is_displayed()


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
    assert report(leave(tmp_path, account, rows)).returncode == 0
    page = Look(browser, tmp_path / "report.html").open()
    page.click(page.point("plain"))
    assert page.toast() == f"plain can't be pinned, it was dropped: {text}"
    assert page.js("return typeof pwned") == "undefined"
    assert not page.all("img")
    page.close()


def test_a_hundred_thousand_candidates_open(browser, tmp_path):
    account = [
        run(
            f"r{i}",
            1 + i % 997,
            0.9 + i * 1e-7,
            "off the frontier",
            layer=6 + 2 * (i % 2),
        )
        for i in range(100_000)
    ]
    account += [
        run("best", 5.0, 0.2, "chosen"),
        run("best8", 5.0, 0.2, "chosen", layer=8),
    ]
    assert report(leave(tmp_path, account)).returncode == 0
    page = Look(browser, tmp_path / "report.html").open()
    count = page.one(".count").text
    assert count.startswith("50,001 candidates: 1 chosen")
    assert "Shown: 2,000 of the 50,000 off the frontier." in count
    page.hover(page.point("best"))
    assert page.one("#card b").text == "best"
    page.close()
