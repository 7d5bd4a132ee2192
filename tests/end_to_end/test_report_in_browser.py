"""The report in a real browser: what is drawn, what clicks, sliders and keys do, and that no text of a run is run.

Playwright drives Chromium. Without a Chromium these tests are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.report.page import comparison_page, run_page
from tempo_megatron.report.reading import read_run
from tests.unit.report.run_copy import copy_run, new_run, write_evaluation, write_lines, write_tokens

sync_api = pytest.importorskip("playwright.sync_api")
INSTALLED = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
RIGHT_TO_LEFT = "abc \u202egnirts\u202c שלום"

OpenPage = Callable[..., Any]
"""Writes a page into a file and returns its tab: (page, width=1400, dark=False)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as Debian or Playwright installs it."""
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=INSTALLED, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Opens pages. At the end no tab may have had an error, asked for anything but its file, or changed its title."""
    directory = tmp_path_factory.mktemp("pages")
    errors: list[str] = []
    tabs: list[tuple[Any, str]] = []

    def open_tab(page: str, *, width: int = 1400, dark: bool = False) -> Any:
        path = directory / f"page-{len(tabs)}.html"
        path.write_text(page)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: errors.append(request.url) if request.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        tab.locator(".plot:not([data-drawn])").first.wait_for(state="detached")
        tabs.append((tab, tab.title()))
        return tab

    yield open_tab
    assert [tab.title() for tab, _ in tabs] == [title for _, title in tabs]
    assert errors == []


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the fixture's run, with reliability bins and token samples of four evaluations."""
    run = copy_run(tmp_path_factory.mktemp("browser") / "demo")
    for iteration in (0, 8, 16, 24):
        values = [iteration / 24, 0.5, 1.0]
        write_tokens(run, iteration, {"q": ["al", "pha", f"<b>{iteration}"]}, values=values)
        write_tokens(run, iteration, {f"labeled {iteration}": ["x"]}, set="labeled", left_out=5, first=0)
    bins = [{"iteration": n, "bins": {"after": [[4, 0.5, n / 24]]}, "values": {}} for n in (0, 12, 24)]
    write_lines(run / "critic.jsonl", bins)
    return run_page(read_run(run))


@pytest.fixture(scope="module")
def demo(open_page: OpenPage, demo_page: str) -> Any:
    """A tab with that page, which tests leave without filters and samples."""
    return open_page(demo_page)


def cells(tab: Any, column: int) -> list[str]:
    """Return the texts of a column of the questions' table."""
    texts: list[str] = tab.locator(f"#questions-table .question-row td:nth-child({column})").all_inner_texts()
    return texts


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_curves_and_questions_are_drawn_and_nothing_is_wider_than_the_screen(
    open_page: OpenPage, demo: Any, demo_page: str, width: int, dark: bool
) -> None:
    tab = open_page(demo_page, width=width, dark=dark) if dark else demo
    plots = tab.locator(".plot").count()
    assert plots > 20 and tab.locator(".plot .main-svg").count() >= plots
    assert tab.locator(".plot .scatterlayer .trace, .plot .barlayer .trace").count() >= plots
    assert tab.locator(".question-row").count() == 60 and tab.locator("svg.spark").count() == 60
    assert tab.evaluate("() => document.documentElement.scrollWidth") == width


def test_curves_of_two_runs_are_drawn(open_page: OpenPage, tmp_path: Path) -> None:
    record = read_run(copy_run(tmp_path / "demo"))
    tab = open_page(comparison_page([record, record]))
    assert tab.locator(".plot .main-svg").count() >= tab.locator(".plot").count() > 30


def test_questions_are_sorted_by_the_column_that_is_clicked(demo: Any) -> None:
    """Numbers begin with the largest, texts with the first; a second click turns the order around."""
    start = demo.get_by_role("button", name="start", exact=True)
    start.click()
    shares = [int(text.rstrip("%")) for text in cells(demo, 4)]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 3
    start.click()
    assert [int(text.rstrip("%")) for text in cells(demo, 4)] == sorted(shares)
    assert demo.locator("th[aria-sort=ascending]").inner_text() == "start"
    demo.get_by_role("button", name="set", exact=True).click()
    assert cells(demo, 2) == sorted(cells(demo, 2)) and len(set(cells(demo, 2))) == 2


def test_questions_are_filtered_by_set_outcome_and_text(demo: Any) -> None:
    demo.locator("#filter-set").select_option("held-out")
    assert demo.locator("#question-count").inner_text() == "30 of 60 questions"
    assert set(cells(demo, 2)) == {"held-out"}
    label = cells(demo, 3)[0]
    demo.locator("#filter-label").select_option(label)
    assert set(cells(demo, 3)) == {label} and len(cells(demo, 3)) < 30
    word = cells(demo, 1)[0].rpartition(" ")[2]
    demo.locator("#filter-text").fill(word.upper())
    assert 1 <= len(cells(demo, 1)) < 30 and all(word in text for text in cells(demo, 1))
    demo.locator("#filter-text").fill("no question has this")
    assert cells(demo, 1) == [] and demo.locator("#question-count").inner_text() == "0 of 60 questions"
    for name in ("#filter-set", "#filter-label"):
        demo.locator(name).select_option("")
    demo.locator("#filter-text").fill("")
    assert len(cells(demo, 1)) == 60


def test_a_click_shows_a_questions_samples(demo: Any) -> None:
    """With the mouse and with the keyboard; a second one hides them."""
    row = demo.locator(".question-row").first
    row.click()
    details = demo.locator("tr.details")
    assert details.count() == 1 and details.locator(".sample").count() > 1
    assert {"iteration 0", "iteration 24"} == {
        text.partition(":")[0] for text in details.locator("h4").all_inner_texts()
    }
    row.click()
    assert details.count() == 0
    row.locator("button").press("Enter")
    assert details.count() == 1 and row.locator("button").get_attribute("aria-expanded") == "true"
    row.click()


def test_the_slider_of_the_reliability_diagram_shows_another_iteration(demo: Any) -> None:
    figure = demo.locator("figure", has=demo.locator("input[type=range]"))

    def place() -> Any:
        """Return where the only point is drawn."""
        return figure.locator(".scatterlayer .point").bounding_box()["y"]

    assert figure.locator("output").inner_text() == "24"
    top = place()
    figure.locator("input").press("Home")
    assert figure.locator("output").inner_text() == "0" and place() > top + 50
    figure.locator("input").press("ArrowRight")
    assert figure.locator("output").inner_text() == "12" and top < place() - 20


def test_a_token_tells_its_numbers_to_mouse_and_keyboard(demo: Any) -> None:
    """Value before and after it, advantage, and both log-probs."""
    column = demo.locator(".token-column").first
    readout = column.locator(".token-readout")
    column.locator(".token").nth(1).hover()
    told = " ".join(readout.inner_text().split()).replace("\u2212", "-")
    assert told == (
        '"pha" token 2 of 3 value 0.00 → 0.50 advantage +0.150 log-prob -1.000 generator\'s -1.000, difference +1.0e-6'
    )
    column.locator(".token").first.focus()
    assert '"al"' in readout.inner_text() and "value 0.50 → 0.00" in readout.inner_text()
    demo.keyboard.press("ArrowRight")
    assert '"pha"' in readout.inner_text()
    demo.keyboard.press("ArrowRight")
    demo.keyboard.press("ArrowRight")
    assert '"<b>0"' in readout.inner_text()


def test_a_response_is_followed_over_iterations_side_by_side(demo: Any) -> None:
    """The first and the last evaluation at first; each side has its own slider. Colors change with what is chosen."""
    left, right = demo.locator(".token-column").all()
    assert (left.locator("output").inner_text(), right.locator("output").inner_text()) == ("0", "24")
    assert left.locator(".token-text").inner_text() == "alpha<b>0"

    def color(column: Any) -> str:
        shade: str = column.locator(".token").first.evaluate("token => getComputedStyle(token).backgroundColor")
        return shade

    by_value = color(left)
    assert by_value != color(right)
    left.locator("input").press("End")
    assert left.locator(".token-text").inner_text() == "alpha<b>24" and color(left) == color(right)
    left.locator("input").press("Home")
    shades = {by_value}
    names = ("advantage", "log-prob", "generator against trainer")
    for name in names:
        demo.locator("#token-color").select_option(label=name)
        shades.add(
            demo.locator(".token-column").first.locator(".token").nth(1).evaluate("t => t.style.backgroundColor")
        )
    assert len(shades) == 4
    demo.locator("#token-question").select_option(index=1)
    assert demo.locator(".token-column").count() == 1  # a labeled question of one iteration
    assert "5 tokens left out" in demo.locator(".token-text").inner_text()
    assert "labeled questions" in demo.locator("#token-meaning").inner_text()


def test_tokens_without_numbers_are_shown_without_color(open_page: OpenPage, tmp_path: Path) -> None:
    """A token without a log-prob keeps the others' color, and a response without any number is text."""
    run = new_run(tmp_path / "run")
    missing = {"values": None, "value_before": None, "advantages": None, "differences": None}
    write_tokens(run, 0, {"q": ["one", "two"]}, **missing, log_probs=[None, -3.0])
    tab = open_page(run_page(read_run(run)))
    first, second = tab.locator(".token").all()
    assert first.evaluate("t => t.style.backgroundColor") == "" != second.evaluate("t => t.style.backgroundColor")
    first.hover()
    assert "log-prob" not in tab.locator(".token-readout").inner_text()
    write_tokens(run, 0, {"q": ["one", "two"]}, **missing, log_probs=None)
    tab = open_page(run_page(read_run(run)))
    assert tab.locator(".token-text").inner_text() == "onetwo" and not tab.locator("#token-scale").is_visible()
    tab.locator(".token").first.hover()
    assert "token 1 of 2" in tab.locator(".token-readout").inner_text()


def test_no_text_of_a_run_is_run(open_page: OpenPage, tmp_path: Path) -> None:
    """Neither as part of the page nor by its script, nor when samples and tokens are shown."""
    run = new_run(tmp_path / "run")
    for iteration in (0, 1):
        write_evaluation(run, iteration, {HOSTILE: [0.0]}, response=HOSTILE, answer=HOSTILE)
        write_tokens(run, iteration, {HOSTILE: [HOSTILE, "b"]}, question=HOSTILE)
    (run / "interrupted").write_text(HOSTILE)
    tab = open_page(run_page(read_run(run)))
    tab.locator(".question-row").click()
    tab.locator(".token").first.hover()
    assert tab.locator("main img").count() == 0 and "pwned" not in tab.title()
    for place in ("header", ".question-row", "tr.details .sample .text", ".token-text", ".token-readout"):
        assert "<img src=x" in tab.locator(place).first.inner_text(), place


def test_right_to_left_text_turns_nothing_around(open_page: OpenPage, tmp_path: Path) -> None:
    """An override in one token or response leaves what follows it as it is."""
    run = new_run(tmp_path / "run")
    for iteration in (0, 1):
        write_evaluation(run, iteration, {"q": [0.0]}, response=RIGHT_TO_LEFT)
        write_tokens(run, iteration, {"q": ["one ", "\u202e", "two ", "three"]})
    tab = open_page(run_page(read_run(run)))
    left = [box["x"] for box in map(lambda token: token.bounding_box(), tab.locator(".token").all()[:4])]
    assert left == sorted(left) and left[2] < left[3]
    header = tab.locator(".token-column .token-header").first.inner_text()
    assert header.startswith("right ·")
    tab.locator(".question-row").click()
    assert tab.locator("tr.details .sample .text").first.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
