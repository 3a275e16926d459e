"""The report in a real browser: it draws, it is quiet, it asks the network for nothing."""

import copy
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.report import write_report
from isoflop.report.figure import png_text
from isoflop.report.page import Picture
from tests.report.test_page import evaluation

pytestmark = pytest.mark.page


class Visit:
    """A page with everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
        self.page.set_default_timeout(0)  # the time limit of the test is enough
        self.noise: list[str] = []
        self.page.on("console", lambda m: self.noise.append(m.text))
        self.page.on("pageerror", lambda e: self.noise.append(str(e)))
        self.page.on("dialog", lambda d: self.noise.append(d.message))
        self.page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or self.noise.append(r.url))
        self.page.goto(path.as_uri())
        self.until("Boolean(window.isoflopPage) && document.readyState === 'complete'")

    def until(self, condition: str) -> None:
        """Wait until `condition` holds. (Playwright's own wait needs an `eval`, which our policy forbids.)"""
        while not self.page.evaluate(condition):
            self.page.wait_for_timeout(20)


@pytest.fixture(scope="module")
def visit(chromium: Any, planted: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    answer = {**planted.answer, "attention": {"pixels": [[4.0, 9.0], [8.0, 12.0]]}}
    pictures = [Picture("Attention", "What is seen.", png_text(np.zeros((9, 9, 3), np.uint8)))]
    path = tmp_path_factory.mktemp("report") / "report.html"
    made = Visit(chromium, write_report(planted.rows, answer, planted.curves, path, pictures, evaluation(3)))
    yield made
    made.page.close()


def test_all_figures_are_drawn_without_a_complaint_or_a_request(visit: Visit) -> None:
    assert visit.page.locator("[data-figure] .main-svg .cartesianlayer").count() == 12
    assert visit.page.locator("[data-figure] .scatterlayer path").count() > 300
    assert visit.noise == []


def test_nothing_offers_to_share_the_figures(visit: Visit) -> None:
    titles = visit.page.eval_on_selector_all(".modebar-btn", "all => all.map((b) => b.dataset.title)")
    assert titles
    assert not [t for t in titles if re.search("cloud|studio|share|edit|plotly", t, re.I)]


def test_axe_finds_nothing_serious(visit: Visit) -> None:
    """Names and roles of what can be reached, contrast, order of headings, landmarks: the rules of axe-core."""
    visit.page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8") + "; 0")
    # Thousands of points and cells, all alike.
    run = "axe.run({exclude: ['.main-svg', 'tbody tr:nth-child(n+3)', '#reproduce pre']}, %s)"
    found = visit.page.evaluate(run % "{}")["violations"]
    visit.page.emulate_media(color_scheme="dark")
    found += visit.page.evaluate(run % "{runOnly: ['color-contrast']}")["violations"]
    visit.page.emulate_media(color_scheme="light")
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_panels_stand_below_each_other_where_there_is_no_room(visit: Visit) -> None:
    """On a tablet and a phone nothing is cut off, no title of an axis lies on another panel and no legend on a heading,
    and each row of panels has the title of its axis."""
    inside = """[...document.querySelectorAll("[data-figure]")].flatMap((plot) => {
      const size = plot.getBoundingClientRect(), boxes = (query) =>
        [...plot.querySelectorAll(query)].map((part) => part.getBoundingClientRect()).filter((box) => box.width);
      const titles = boxes("[class*=title] text, [class*=title], .legendtext");
      return titles.filter((t) => t.left < size.left - 1 || t.right > size.right + 1).map(() => plot.dataset.figure);
    })"""
    covered = """[...document.querySelectorAll("[data-figure]")].filter((plot) => {
      const legend = plot.querySelector(".legend"), box = legend && legend.getBoundingClientRect();
      return box && [...plot.querySelectorAll(".annotation-text")].some((text) => {
        const other = text.getBoundingClientRect();
        return other.top < box.bottom && box.top < other.bottom && other.left < box.right && box.left < other.right;
      });
    }).map((plot) => plot.dataset.figure)"""
    untitled = """Object.entries(document.querySelector("[data-figure=profiles]").layout)
      .filter(([key, axis]) => /^yaxis/.test(key) && !axis.title.text).length"""
    captions = "[...document.querySelectorAll('caption')]"
    cut = f"{captions}.filter((c) => c.clientWidth > c.closest('.scroll').clientWidth).length"
    for width, columns in ((1400, 3), (800, 2), (390, 1)):
        visit.page.set_viewport_size({"width": width, "height": 800})
        left = "Object.entries(document.querySelector('[data-figure=optima]').layout)"
        left += ".filter(([k]) => /^xaxis/.test(k)).map(([, axis]) => axis.domain[0].toFixed(3))"
        visit.until(f"new Set({left}).size === {columns}")
        assert visit.page.evaluate(inside) == []
        assert visit.page.evaluate(covered) == []
        assert visit.page.evaluate(untitled) == {3: 2, 2: 1, 1: 0}[columns]
        assert visit.page.evaluate(cut) == 0
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.page.set_viewport_size({"width": 1280, "height": 800})


def test_a_laptop_needs_no_sideways_scrolling(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert visit.page.evaluate("(t => t.scrollWidth <= t.parentNode.clientWidth)(document.getElementById('summary'))")


def test_the_table_of_runs_sorts_by_keyboard(visit: Visit) -> None:
    head = visit.page.locator("#runs-table th", has_text="held-out loss")
    head.locator("button").focus()
    visit.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    column = "rows => rows.map((r) => Number(r.cells[1].dataset.order)).filter((v) => !isNaN(v))"
    shown = visit.page.eval_on_selector_all("#runs-table tbody tr", column)
    assert shown == sorted(shown)
    visit.page.keyboard.press("Enter")
    shown = visit.page.eval_on_selector_all("#runs-table tbody tr", column)
    assert shown == sorted(shown, reverse=True)


def test_the_data_of_a_figure_can_be_read_and_taken_away(visit: Visit) -> None:
    visit.page.locator("#frontier details.data summary").click()
    visit.page.wait_for_selector("#frontier details.data table")
    assert visit.page.locator("#frontier details.data tr").count() > 50
    with visit.page.expect_download() as event:
        visit.page.locator("#frontier details.data button").click()
    lines = Path(event.value.path()).read_text().splitlines()
    assert lines[0] == "panel,series,x,y,note"
    assert len(lines) > 200
    assert visit.noise == []


def test_a_zoomed_axis_gets_new_ticks_and_its_old_ones_back(visit: Visit) -> None:
    state = "document.querySelector('[data-figure=frontier]').layout.yaxis.tickmode"
    visit.page.evaluate(
        "Plotly.relayout(document.querySelector('[data-figure=frontier]'), {'yaxis.range': [0.1, 0.2]})"
    )
    visit.until(f"{state} === 'auto'")
    home = "isoflopPage.page.figures.frontier.layout.yaxis.range"
    visit.page.evaluate(
        f"Plotly.relayout(document.querySelector('[data-figure=frontier]'), {{'yaxis.range': {home}.slice()}})"
    )
    visit.until(f"{state} === 'array'")


def test_the_figures_follow_the_readers_theme_and_paper_is_light(visit: Visit) -> None:
    color = "document.querySelector('[data-figure=frontier]').layout.paper_bgcolor"
    visit.page.emulate_media(color_scheme="dark")
    visit.until(f"{color} === isoflopPage.page.themes.dark.page")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.evaluate(color) == "#ffffff"
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    visit.page.emulate_media(color_scheme="light")
    visit.until(f"{color} === isoflopPage.page.themes.light.page")
    assert visit.page.pdf()[:4] == b"%PDF"
    assert visit.noise == []


def test_paper_has_the_heads_of_tables_on_every_page_and_all_warnings(
    chromium: Any, planted: Any, tmp_path: Path
) -> None:
    """Chromium repeats the head of a table on the next page, but not the buttons in it."""
    answer = copy.deepcopy(planted.answer)
    answer["families"]["vit"]["warnings"] = [f"warning {k}" for k in range(9)]
    made = Visit(chromium, write_report(planted.rows, answer, {}, tmp_path / "report.html"))
    head, folded = "document.querySelector('#runs-table th')", "document.querySelector('.warnings details').open"
    made.page.emulate_media(media="print")
    assert made.page.evaluate(f"getComputedStyle({head}.querySelector('button')).display") == "none"
    assert made.page.evaluate(f"getComputedStyle({head}, '::after').content") == '"model"'
    assert not made.page.evaluate(folded)
    made.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert made.page.evaluate(folded)
    made.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not made.page.evaluate(folded)
    made.page.close()


def test_a_page_of_paper_holds_three_figures(visit: Visit) -> None:
    """A figure is never cut, so that one that does not fit leaves the foot of a page blank."""
    visit.page.set_viewport_size({"width": 688, "height": 1016})  # A4 within its margins, in CSS pixels
    visit.page.emulate_media(media="print")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    names = ("agreement", "efficiency", "learning-rates")
    place = "document.getElementById('{}').getBoundingClientRect().{}"
    top, bottom = place.format(names[0], "top"), place.format(names[-1], "bottom")
    assert visit.page.evaluate(f"{bottom} - {top}") < 1016
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    visit.page.emulate_media(media="screen")
    visit.page.set_viewport_size({"width": 1280, "height": 800})


def test_hostile_text_executes_nothing_and_requests_nothing(chromium: Any, hostile: Any, tmp_path: Path) -> None:
    made = Visit(chromium, write_report(hostile.rows, hostile.answer, hostile.curves, tmp_path / "report.html"))
    made.page.eval_on_selector_all("details", "all => all.forEach((d) => { d.open = true; })")
    made.page.mouse.move(640, 500)
    made.page.wait_for_timeout(300)
    assert "owned" not in made.page.title().replace("document.title='owned'", "")
    assert made.page.locator("img, iframe, base, [onerror], [onload]").count() == 0
    assert (
        made.page.eval_on_selector_all("a[href], a", "all => all.filter((a) => /javascript|http/.test(a.href)).length")
        == 0
    )
    assert made.page.locator("[data-figure] .main-svg .cartesianlayer").count() == 11
    assert made.noise == []
    made.page.close()


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_study_that_has_hardly_begun_gives_a_quiet_page(
    chromium: Any, planted: Any, tmp_path: Path, kept: int
) -> None:
    made = Visit(chromium, write_report(planted.rows[:kept], {}, planted.curves, tmp_path / "report.html"))
    assert "No answer yet" in made.page.locator(".answer").inner_text()
    assert made.noise == []
    made.page.close()


def test_the_page_can_be_read_without_seeing_it_and_used_without_a_mouse(visit: Visit) -> None:
    page = visit.page
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    plots = "[data-figure][role=group]"
    labels = page.eval_on_selector_all(plots, "all => all.map((e) => e.getAttribute('aria-label'))")
    assert len(labels) == 12
    assert min(map(len, labels)) > 40
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map((e) => Number(e.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.eval_on_selector_all("main table", "all => all.every((t) => t.caption || t.closest('details, figure'))")
    ids = page.eval_on_selector_all("[id]", "all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.eval_on_selector_all("nav a", "all => all.map((a) => Boolean(document.querySelector(a.hash)))")
    assert all(targets)
    page.reload()
    visit.until("Boolean(window.isoflopPage)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "BUTTON"} <= reached
