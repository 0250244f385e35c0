"""A reader of a comparison report in a real Chromium: sorts a table, on a desk and on a phone, by day and by night."""

import pytest
from playwright.sync_api import Page, sync_playwright

from src.config.report import ReportConfig
from src.report import report
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from tests.stored import write_run
from tests.test_browser import CHROMIUM

pytestmark = pytest.mark.browser
VIEWS = {
    f"{kind} {scheme}": (size, scheme) for kind, size in (("desk", (1280, 900)), ("phone", (390, 844))) for scheme in ("light", "dark")
}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Nine groups, more than there are colours, of which one has two seeds."""
    outputs = tmp_path_factory.mktemp("outputs")
    for number in range(9):
        write_run(outputs, f"sweep/mix.only=[a_source_with_a_long_name],optim.steps={number}", right=number, optim__steps=20 + number)
    write_run(outputs, "sweep/again", seed=1, right=5, optim__steps=20)
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", "runs=sweep/*"]))).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=VIEWS)
def page(request, browser, address):
    (width, height), scheme = VIEWS[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened.scheme = scheme
    opened.asked, opened.wrong = [], []
    opened.on("request", lambda sent: opened.asked.append(sent.url))
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()


def column(page: Page, table: int, number: int) -> list[float]:
    """What the cells of a column are sorted by."""
    rows = page.locator("table").nth(table).locator("tbody tr")
    return [float(rows.nth(n).locator("td").nth(number).get_attribute("data-sort") or "nan") for n in range(rows.count())]


def test_a_click_sorts_and_another_turns_the_order_round(page):
    heads = page.locator("table").nth(1).locator("thead th")
    number = heads.all_inner_texts().index("BLEU-1")
    before = column(page, 1, number)
    for up, said in ((True, "ascending"), (False, "descending")):
        heads.nth(number).locator("button").click()
        assert column(page, 1, number) == sorted(before, reverse=not up)
        assert heads.nth(number).get_attribute("aria-sort") == said
    assert before != sorted(before, reverse=True)
    assert page.wrong == []


def test_nothing_sticks_out_and_nothing_is_fetched(page, address):
    """Wide tables scroll by themselves; the page does not."""
    page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.asked == [address]


def test_words_can_be_read(page):
    """WCAG's contrast of 4.5, on a page that is as dark as asked for."""
    ink, paper = page.evaluate(
        """() => {
          const pen = document.createElement('canvas').getContext('2d'), body = getComputedStyle(document.body);
          const rgb = value => { pen.fillStyle = value; pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data]; };
          return [rgb(body.color), rgb(body.backgroundColor)];
        }"""
    )
    assert (luminance(paper) < 0.2) == (page.scheme == "dark")
    assert contrast(ink, paper) >= 4.5


def luminance(rgb: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb[:3])]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[int], other: list[int]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
