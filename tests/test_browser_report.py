"""A comparison report in Chromium: sorting, layout and contrast on desktop and phone, in light and dark mode."""

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
    f"{kind} {scheme}": (size, scheme) for kind, size in (("desktop", (1280, 900)), ("phone", (390, 844))) for scheme in ("light", "dark")
}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Nine groups, which is more than the number of colours; one of them has two seeds."""
    outputs = tmp_path_factory.mktemp("outputs")
    for number in range(9):
        write_run(outputs, f"sweep/mix.only=[a_source_with_a_long_name],optim.steps={number}", right=number, optim__steps=20 + number)
    write_run(outputs, "sweep/again", seed=1, right=5, optim__steps=20)
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", "runs=sweep/*"]))).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=VIEWS)
def page(request, browser, address):
    (width, height), scheme = VIEWS[request.param]
    new_page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    new_page.scheme = scheme
    new_page.requested, new_page.errors = [], []
    new_page.on("request", lambda request: new_page.requested.append(request.url))
    new_page.on("pageerror", lambda error: new_page.errors.append(str(error)))
    new_page.goto(address)
    yield new_page
    new_page.close()


def column(page: Page, table: int, number: int) -> list[float]:
    """The sort keys of a column."""
    rows = page.locator("table").nth(table).locator("tbody tr")
    return [float(rows.nth(n).locator("td").nth(number).get_attribute("data-sort") or "nan") for n in range(rows.count())]


def test_click_sorts_and_second_click_reverses(page):
    heads = page.locator("table").nth(1).locator("thead th")
    number = heads.all_inner_texts().index("BLEU-1")
    before = column(page, 1, number)
    for ascending, order in ((True, "ascending"), (False, "descending")):
        heads.nth(number).locator("button").click()
        assert column(page, 1, number) == sorted(before, reverse=not ascending)
        assert heads.nth(number).get_attribute("aria-sort") == order
    assert before != sorted(before, reverse=True)
    assert page.errors == []


def test_page_fits_the_window_and_fetches_nothing(page, address):
    """Wide tables scroll on their own, without scrolling the page."""
    page.evaluate("document.querySelectorAll('details').forEach(details => (details.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.requested == [address]


def test_text_contrast_meets_wcag(page):
    """The contrast is at least 4.5, and the page follows the requested colour scheme."""
    ink, paper = page.evaluate(
        """() => {
          const context = document.createElement('canvas').getContext('2d'), body = getComputedStyle(document.body);
          const rgb = value => {
            context.fillStyle = value;
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data];
          };
          return [rgb(body.color), rgb(body.backgroundColor)];
        }"""
    )
    assert (luminance(paper) < 0.2) == (page.scheme == "dark")
    assert contrast(ink, paper) >= 4.5


def luminance(rgb: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb[:3])]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: list[int], second: list[int]) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
