"""The demo in Chromium: upload, question, answer and occlusion map, by mouse, by keyboard and on a phone."""

import os
import shutil

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from experiments.soak.images import RAMP, dicom, picture
from src.data.image_io import read_image
from src.demo import running_demo
from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.serving.limits import Limits
from tests.fixtures import overrides
from tests.runs import finish
from tests.test_demo import loaded_handlers

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")  # as in the Makefile
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), NAMES[0])
QUESTION = "Which organ is shown?"


@pytest.fixture(scope="module")
def model(shards, language, tmp_path_factory):
    folder, _ = finish(overrides(shards, language, tmp_path_factory.mktemp("runs")))
    return load_vqa_model(str(folder), accelerator="cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(picture("PNG"))
    return path


@pytest.fixture(scope="module")
def url(model, file):
    with running_demo(loaded_handlers(model, Limits()), Limits(), name="run:tiny", examples=[(file, "an example's question?")]) as demo:
        yield demo.url


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, url):
    width, height = request.param
    new_page = browser.new_page(viewport={"width": width, "height": height})
    new_page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    new_page.requested = []
    new_page.failed = []
    new_page.on("response", lambda response: new_page.failed.append(response.url) if response.status >= 400 else None)
    new_page.on("request", lambda request: new_page.requested.append(request.url))
    new_page.goto(url)
    new_page.wait_for_selector("#question textarea")
    yield new_page
    new_page.close()


def upload(page: Page, file) -> None:
    page.set_input_files("#picture input[type=file]", str(file))
    page.wait_for_selector("#picture img")


def ask(page: Page, question: str) -> str:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    expect(page.locator("#status")).to_contain_text("confidence")
    return page.locator("#chat .bot .message, #chat .message.bot").last.inner_text()


def test_upload_question_answer_and_map(page, url, model, file):
    upload(page, file)
    answer = ask(page, QUESTION)
    expected = model.answers([VQAQuery(QUESTION, [read_image(file)])], Sampling(32))[0].text
    assert "".join(answer.split()) == "".join(expected.split())
    page.click("#look")
    page.wait_for_selector("#map img")
    expect(page.locator("#meaning")).to_contain_text("(occlusion)")
    page.click("#matter")
    expect(page.locator("#compared")).to_contain_text("Image blanked")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    expect(page.locator("#banner")).to_contain_text("not for clinical use")
    foreign = [address for address in page.requested if not address.startswith((url, "data:", "blob:"))]
    assert (foreign, page.failed) == ([], [])


def test_page_works_by_keyboard(page, file):
    """Tab reaches the question and the buttons; Enter sends and presses."""
    upload(page, file)
    page.focus("#question textarea")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("confidence")
    focused = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.closest('[id]')?.id || ''"))
        if focused[-1] == "look":
            break
    assert focused[-1] == "look", focused
    page.keyboard.press("Enter")
    page.wait_for_selector("#map img")


def test_example_sets_its_question(page):
    page.locator("#examples button").first.click()
    page.wait_for_selector("#picture img")
    expect(page.locator("#question textarea")).to_have_value("an example's question?")


def test_dicom_is_opened_and_an_error_is_shown_once(page, tmp_path):
    page.set_input_files("#dicom input[type=file], input[type=file][accept*='dcm']", str(dicom(tmp_path / "a.dcm", RAMP)))
    page.wait_for_selector("#picture img")
    ask(page, QUESTION)
    page.click("#ask")
    expect(page.locator("body")).to_contain_text("the question is empty")
    assert [page.locator(f"{part} .error").count() for part in ("#chat", "#question")] == [0, 0]  # the conversation stays readable


def test_new_image_starts_a_new_conversation(page, file, tmp_path):
    upload(page, file)
    ask(page, QUESTION)
    page.click("#look")
    page.wait_for_selector("#map img")
    other = tmp_path / "b.png"
    other.write_bytes(picture("PNG", (50, 40)))
    page.locator("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']").first.click()
    upload(page, other)
    expect(page.locator("#chat .message")).to_have_count(0)
    expect(page.locator("#map img")).to_have_count(0)
