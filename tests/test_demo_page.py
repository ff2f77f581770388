"""The demo page in headless Chromium, as visitors use it. `python3 tools/extras.py demo` runs this."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed: python3 tools/extras.py demo runs this with it")
from harness_browser import DESK, PHONE, Visitor, keep_picture, needs_chromium
from harness_data import picture

import vlmprune

pytestmark = needs_chromium
COFFEE = Path(vlmprune.__file__).parent / "assets" / "photos" / "held_out" / "coffee.jpg"
COMMAND = [sys.executable, "-m", "vlmprune.cli", "demo", "--port", "0", "--methods", "hiprune,tome", "--keep", "0.25"]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server puts temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def url(temporary: Path) -> Iterator[str]:
    """The address of a server, started as a user starts it; it leaves no file behind."""
    variables = {**os.environ, "TMPDIR": str(temporary)}
    command = [*COMMAND, "--max-new-tokens", "6", "--device", "cpu"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line + server.communicate()[1]
            yield found[0]
        finally:
            server.send_signal(2)
            _, err = server.communicate(timeout=60)
    assert "Traceback" not in err, err
    assert not [path for path in temporary.rglob("*") if "vlmprune-demo" in str(path)]


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """Opens the page, waits until it can be used, and looks for faults at the end."""
    visitors: list[Visitor] = []

    def opened(query: str = "", size: dict[str, int] = DESK, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, url + "/" + query, size, **options))
        visitors[-1].page.wait_for_selector("#vp-picture img")
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.leave()


def ask(page: Any, question: str | None = None) -> None:
    if question is not None:
        page.fill("#vp-question textarea, #vp-question input", question)
    press(page)
    answered(page)


def press(page: Any) -> None:
    """Press the button; answers that are there already are not taken for the new ones."""
    page.evaluate("document.querySelectorAll('.vp-results').forEach(one => one.setAttribute('aria-busy', 'old'))")
    page.click("#vp-ask")


def answered(page: Any) -> None:
    """Wait until all answers are there."""
    page.wait_for_selector(".vp-results[aria-busy=false]")


def names(page: Any) -> list[str]:
    return page.locator(".vp-card h3").all_inner_texts()


def answers(page: Any) -> list[str]:
    return page.locator(".vp-answer").all_inner_texts()


def test_the_unpruned_answer_stands_first_and_all_numbers_are_there(visit: Visit) -> None:
    page = visit().page
    ask(page)
    keep_picture(page, "demo")
    assert names(page) == ["unpruned", "hiprune:0.25", "tome:0.25"]
    assert page.locator(".vp-tokens").all_inner_texts() == ["196", "196 → 49", "196 → 49"]
    assert all(re.fullmatch(r"\d+ ms", text) for text in page.locator(".vp-first").all_inner_texts())
    assert page.locator(".vp-overlay").count() == 2 and len(answers(page)) == 3


def test_a_patch_that_is_clicked_says_what_became_of_it(visit: Visit) -> None:
    page = visit().page
    ask(page)
    overlay, said = page.locator(".vp-overlay").nth(1), page.locator(".vp-said").nth(1)
    box = overlay.bounding_box()
    overlay.click(position={"x": 1, "y": 1})
    assert said.inner_text().startswith("Row 1, column 1: ")
    overlay.click(position={"x": box["width"] - 2, "y": box["height"] / 2 + 2})
    assert said.inner_text().startswith("Row 8, column 14: ")
    overlay.press("ArrowUp")
    overlay.press("ArrowRight")
    assert said.inner_text().startswith("Row 7, column 14: ")
    rating, told = page.locator(".vp-overlay").first, page.locator(".vp-said").first
    rating.click(position={"x": 1, "y": 1})
    assert re.search(r"; score -?[\d.e-]+, place \d+ of 196\.$", told.inner_text()), told.inner_text()
    merged = page.evaluate(
        "JSON.parse(document.querySelectorAll('.vp-overlay')[1].dataset.patches).into.findIndex(cell => cell >= 0)"
    )
    page.evaluate(f"vpTell(document.querySelectorAll('.vp-overlay')[1], {merged})")
    assert "merged before the LLM into the token at row" in said.inner_text()
    assert overlay.locator(".vp-mark").count() == 2 and overlay.locator(".vp-into").count() == 1


def test_an_uploaded_photo_is_asked_about_and_its_file_is_gone(visit: Visit, temporary: Path) -> None:
    page = visit().page
    page.set_input_files("#vp-upload input", str(COFFEE))
    page.wait_for_selector("#vp-picture img[alt='your photo']")
    assert not [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size]
    ask(page, "Is there a red circle?")
    assert names(page)[0] == "unpruned" and len(answers(page)) == 3
    assert "sample=" not in page.url and page.locator("#vp-sample input:checked").count() == 0
    ratio = page.evaluate("(i => i.naturalWidth / i.naturalHeight)(document.querySelector('.vp-overlay img'))")
    assert ratio == pytest.approx(360 / 240, rel=0.02)


def test_a_broken_file_gets_a_sentence_and_changes_nothing(visit: Visit, temporary: Path, tmp_path: Path) -> None:
    page = visit().page
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(COFFEE.read_bytes()[:3000])
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    for path, words in ((broken, "'broken.jpg' cannot be read"), (text, "'notes.png' is not a picture")):
        page.set_input_files("#vp-upload input", str(path))
        page.wait_for_selector(f'#vp-message [role=alert]:has-text("{words}")')
        assert str(temporary) not in page.inner_text("#vp-message")
        page.wait_for_selector("#vp-upload input", state="attached")
    assert not [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size]
    ask(page)
    assert len(answers(page)) == 3 and page.locator("[role=alert]").count() == 0


def test_moving_the_slider_asks_again(visit: Visit) -> None:
    page = visit().page
    ask(page)
    page.locator("#vp-keep input[type=range]").fill("0.5")
    page.locator("#vp-keep input[type=range]").dispatch_event("pointerup")
    page.wait_for_selector(".vp-card[data-name='tome:0.5']")
    answered(page)
    assert page.locator(".vp-tokens").all_inner_texts() == ["196", "196 → 98", "196 → 98"]
    assert "keep=0.5" in page.url


def test_a_link_opens_the_same_settings_and_answers(visit: Visit) -> None:
    first = visit().page
    first.click("#vp-sample label:has-text('coffee')")
    first.wait_for_selector("#vp-picture img[alt='photo: coffee']")
    ask(first, "Is there a blue square?")
    first.wait_for_function("location.search.includes('coffee')")
    second = visit(first.url.partition("/?")[2].join(["?", ""])).page
    second.wait_for_selector(".vp-card")
    answered(second)
    assert answers(second) == answers(first) and names(second) == names(first)
    assert second.input_value("#vp-question textarea, #vp-question input") == "Is there a blue square?"
    assert second.locator("#vp-sample input:checked").input_value() == "photo: coffee"


@pytest.mark.parametrize(
    ("query", "words"),
    [("?method=/tmp/evil.py:Evil", "is not offered here"), ("?keep=2", "2"), ("?sample=nothing", "no sample")],
)
def test_a_wrong_link_gets_a_sentence(query: str, words: str, visit: Visit) -> None:
    page = visit(query).page
    page.wait_for_selector("#vp-message [role=alert]")
    assert words in page.inner_text("#vp-message") and page.locator(".vp-card").count() == 0
    ask(page)
    assert len(answers(page)) == 3


def test_an_empty_question_and_one_full_of_markup(visit: Visit) -> None:
    page = visit().page
    page.fill("#vp-question textarea, #vp-question input", "  ")
    page.click("#vp-ask")
    page.wait_for_selector("#vp-message [role=alert]:has-text('There is no question')")
    evil = "${7*7} {{7*7}} <img src=x onerror=alert(1)>"
    ask(page, evil)
    assert page.inner_text(".vp-asked") == f"“{evil}”"


def test_a_phone_shows_everything_without_scrolling_sideways(visit: Visit) -> None:
    visitor = visit(size=PHONE, has_touch=True, is_mobile=True)
    page = visitor.page
    ask(page)
    keep_picture(page, "demo-phone")
    assert visitor.overflow <= 0
    for box in [one.bounding_box() for one in page.locator(".vp-card, .vp-card dd, .vp-answer, #vp-ask").all()]:
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    page.locator(".vp-overlay").first.tap(position={"x": 3, "y": 3})
    assert page.locator(".vp-said").first.inner_text().startswith("Row 1, column 1: ")


def test_two_visitors_at_once_each_get_their_own(visit: Visit, tmp_path: Path) -> None:
    one, other = visit().page, visit().page
    for page, number in ((one, 1), (other, 2)):
        path = tmp_path / f"{number}.png"
        picture(number, (112, 112)).save(path)
        page.set_input_files("#vp-upload input", str(path))
        page.wait_for_selector("#vp-picture img[alt='your photo']")
        page.fill(
            "#vp-question textarea, #vp-question input", "count the objects ." if number == 1 else "which color ?"
        )
    press(one)
    press(other)
    for page in (one, other):
        answered(page)
    together = [(answers(page), names(page), page.inner_text(".vp-asked")) for page in (one, other)]
    for page in (one, other):
        ask(page)
    alone = [(answers(page), names(page), page.inner_text(".vp-asked")) for page in (one, other)]
    assert together == alone and together[0][2] != together[1][2]
    sources = [page.get_attribute(".vp-card img", "src") for page in (one, other)]
    assert sources[0] != sources[1]
