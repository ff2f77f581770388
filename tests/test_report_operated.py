"""The report's page operated in headless Chromium. `python3 tools/extras.py demo` runs this."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_results import fill
from harness_browser import DESK, PHONE, Visitor, keep_picture, needs_chromium

from vlmprune.ask import write_examples
from vlmprune.bench.load import load_model
from vlmprune.bench.store import load_results
from vlmprune.report import build

pytestmark = needs_chromium
METHODS, KEEPS, TASKS = ("divprune", "fastv@2", "random", "downsample"), (0.333, 0.111), ("synth-ocr", "synth-choice")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of made-up results, with real examples of what was kept."""
    folder = tmp_path_factory.mktemp("results")
    fill(folder, models=("llava",), methods=METHODS, keeps=KEEPS, tasks=TASKS)
    weights = next(iter(load_results(folder))).weights
    recipes = [f"{name}:{keep}" for name in METHODS for keep in KEEPS]
    write_examples(folder, replace(load_model("llava", "cpu"), weights=weights), recipes)
    return build(folder)[-1].as_uri()


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    visitors: list[Visitor] = []

    def opened(size: dict[str, int] = DESK, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, url, size, **options))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.leave()


def column(page: Any, number: int) -> list[str]:
    """The texts of a column of the first table, its last body."""
    cells = page.locator(".overview").first.locator(f"tbody:last-of-type tr td:nth-child({number})")
    return [" ".join(text.split()) for text in cells.all_inner_texts()]


def numbers(texts: list[str]) -> list[float]:
    return [float(re.search(r"-?\d+(\.\d+)?", text)[0]) for text in texts]  # type: ignore[index]


def test_the_glance_table_sorts_by_mouse_and_keyboard(visit: Visit) -> None:
    page = visit().page
    keep_picture(page, "report")
    head = page.locator(".overview").first.locator("thead tr:nth-child(2) th").first
    given = numbers(column(page, 2))
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(column(page, 2)) == sorted(given, reverse=True) != sorted(given)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and numbers(column(page, 2)) == sorted(given)
    name = page.locator(".overview").first.locator("thead tr:first-child th").first
    name.locator("button").focus()
    page.keyboard.press("Space")
    assert name.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None
    assert column(page, 1) == sorted(column(page, 1))


def test_every_row_keeps_its_own_figures_when_sorted(visit: Visit) -> None:
    page = visit().page
    rows = page.locator(".overview").first.locator("tbody:last-of-type tr")
    before = sorted(rows.all_inner_texts())
    for button in page.locator(".overview").first.locator("thead button").all():
        button.click()
        assert sorted(rows.all_inner_texts()) == before


@pytest.mark.parametrize("width", [DESK["width"], 700, PHONE["width"]])
def test_what_a_link_goes_to_is_not_under_the_bar_of_links(width: int, visit: Visit) -> None:
    page = visit({"width": width, "height": 700}, reduced_motion="reduce").page
    page.add_style_tag(content="html { scroll-behavior: auto !important; }")
    for link in page.locator("nav a[href^='#']").all():
        link.click()
        target = page.locator(link.get_attribute("href"))
        top, under = (one.bounding_box() for one in (target, page.locator("nav")))
        assert top["y"] >= under["y"] + under["height"], link.inner_text()


def test_a_legend_entry_hides_its_method_in_every_plot(visit: Visit) -> None:
    page = visit().page
    entry = page.locator("[data-toggle]:has-text('divprune')").first
    number = entry.get_attribute("data-toggle")
    marks = page.locator(f"[data-model=m1] [data-line='{number}']")
    visible = "marks => marks.filter(one => getComputedStyle(one).display !== 'none').length"
    count = marks.evaluate_all(visible)
    assert count > 2
    entry.click()
    assert marks.evaluate_all(visible) == 0
    pressed = page.locator(f"[data-toggle='{number}']").evaluate_all("all => all.map(one => one.ariaPressed)")
    assert set(pressed) == {"false"} and len(pressed) > 1
    entry.press("Enter")
    assert marks.evaluate_all(visible) == count


def shown(page: Any) -> list[str]:
    """The names of the overlays that can be seen."""
    return page.locator("figure[data-name]:visible").evaluate_all("all => all.map(one => one.dataset.name)")


def test_what_was_kept_opens_at_a_budget_with_all_methods_and_can_be_filtered(visit: Visit) -> None:
    page = visit().page
    assert set(shown(page)) == {"divprune", "fastv@2", "random", "downsample"} and len(shown(page)) == 12
    chosen = page.locator("[data-choice=m1-keep] button[aria-pressed=true]").inner_text()
    assert chosen.startswith("11.1")
    page.select_option("form[data-filters] [name=name]", "divprune")
    assert shown(page) == ["divprune"] * 3
    page.select_option("form[data-filters] [name=name]", "")
    kinds = page.locator("form[data-filters] [name=kind] option").all_inner_texts()[1:]
    page.select_option("form[data-filters] [name=kind]", kinds[0])
    assert 0 < len(shown(page)) < 12
    page.select_option("form[data-filters] [name=kind]", "")
    said = dict.fromkeys(("right", "wrong"), 0)
    for name in said:
        page.select_option("form[data-filters] [name=said]", name)
        said[name] = len(shown(page))
        assert page.locator(f"figure[data-name]:visible figcaption .{name}").count() == said[name]
    assert said["right"] + said["wrong"] == 12


def test_another_budget_is_shown_by_its_button(visit: Visit) -> None:
    page = visit().page
    page.click("[data-choice=m1-keep] button:has-text('33.3')")
    texts = page.locator("figure[data-name=divprune]:visible small").all_inner_texts()
    assert len(texts) == 3 and all(text.startswith("65 of 196") for text in texts)


def listed(page: Any) -> int:
    """How many questions the list has, by its own count."""
    return int(page.inner_text(".browse > p").split()[0])


def test_every_question_can_be_found_with_all_its_replies(visit: Visit) -> None:
    page = visit().page
    assert listed(page) == 80 and page.inner_text(".browse > p") == "80 of 80 questions"
    articles = page.locator(".browse article")
    assert articles.count() == 10 and articles.first.locator("li").count() == 1 + 2 * len(METHODS)
    while page.locator(".browse .more").is_visible():
        page.click(".browse .more")
    assert articles.count() == 80
    page.locator(".browse").scroll_into_view_if_needed()
    keep_picture(page, "report-browse")


def test_questions_are_filtered_by_task_method_answer_and_words(visit: Visit) -> None:
    page = visit().page
    form = ".browse form "
    page.select_option(form + "[name=task]", label="synth-ocr")
    assert listed(page) == 40
    page.select_option(form + "[name=row]", label="divprune, 11.1 %")
    counts = {}
    for said in ("right", "wrong", "flipped", "broken", "repaired"):
        page.select_option(form + "[name=said]", said)
        counts[said] = listed(page)
        kinds = page.locator(".browse li:nth-child(2)").evaluate_all("all => all.map(one => one.textContent)")
        assert all(text.startswith("divprune, 11.1 %") for text in kinds)
    assert counts["right"] + counts["wrong"] == 40 and counts["broken"] + counts["repaired"] == counts["flipped"] > 0
    cell = page.locator("details summary:has-text('divprune, 11.1 %')").text_content()
    page.select_option(form + "[name=task]", label="all")
    page.select_option(form + "[name=said]", "broken")
    assert f"{listed(page)} broken" in cell, "as many as the table of flipped answers says"
    page.select_option(form + "[name=said]", "")
    page.fill(form + "[name=text]", "NUMBER")
    assert 0 < listed(page) < 80
    page.fill(form + "[name=text]", "no such words")
    assert listed(page) == 0 and page.locator(".browse article").count() == 0


HIDDEN = """() => [...document.querySelectorAll("table td")].filter(cell => {
  if (!cell.textContent.trim() || cell.closest("details:not([open]), [hidden]")) return false;
  const box = cell.getBoundingClientRect();
  return !box.width || !box.height || box.left < -1 || box.right > document.documentElement.clientWidth + 1
    || cell.scrollWidth > cell.clientWidth + 1;
}).map(cell => cell.dataset.head + ": " + cell.textContent.trim())"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_every_number_without_scrolling_sideways(theme: str, visit: Visit) -> None:
    visitor = visit(PHONE, color_scheme=theme, has_touch=True, is_mobile=True)
    page = visitor.page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    keep_picture(page, f"report-phone-{theme}")
    assert visitor.overflow <= 0
    assert page.evaluate(HIDDEN) == []
    buttons = page.locator("[data-choice]:visible button").all()
    for button in buttons:
        button.click()
        assert page.evaluate(HIDDEN) == [] and visitor.overflow <= 0
    beyond = page.locator("main svg:visible, main p:visible, .legend button:visible, form:visible").evaluate_all(
        "all => all.filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.outerHTML.slice(0, 90))"
    )
    assert beyond == []
    wider = page.locator("main *:visible").evaluate_all(
        "all => all.filter(one => getComputedStyle(one).overflowX === 'auto' && one.scrollWidth > one.clientWidth + 1)"
        ".map(one => one.outerHTML.slice(0, 90))"
    )
    assert wider == [], "nothing has to be scrolled sideways to be read"
    heads = page.locator("td[data-head]").evaluate_all("all => all.map(one => one.dataset.head)")
    assert "synth-choice multidisciplinary knowledge" in heads


def test_print_loses_nothing(visit: Visit) -> None:
    visitor = visit({"width": 720, "height": 1000})
    page = visitor.page
    page.click("[data-toggle] >> nth=0")
    page.select_option("form[data-filters] [name=name]", "divprune")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    keep_picture(page, "report-print")
    assert page.evaluate(HIDDEN.replace(", [hidden]", "")) == []
    invisible = page.locator("td, figure[data-name], [data-line], details p").evaluate_all(
        "all => all.filter(one => one.textContent.trim() && !one.getClientRects().length && !one.closest('.narrow')"
        " && !one.closest('defs')).map(one => one.outerHTML.slice(0, 90))"
    )
    assert invisible == []
    assert visitor.overflow <= 0
    struck = page.locator(".legend button").evaluate_all(
        "all => all.filter(one => getComputedStyle(one).textDecorationLine !== 'none').length"
    )
    assert struck == 0, "what is printed is not struck through"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator("details[open]").count() == 0


def test_without_a_script_nothing_is_hidden(visit: Visit) -> None:
    page = visit(java_script_enabled=False).page
    assert page.locator("figure[data-name]:visible").count() == 24
    assert page.locator(".overview:visible").count() == page.locator(".overview").count()


def test_all_that_can_be_pressed_can_be_reached_by_the_keyboard(visit: Visit) -> None:
    page = visit().page
    wanted = page.evaluate(
        "[...document.querySelectorAll('button, select, summary, a[href]')].filter(one => one.offsetParent).length"
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert len(reached) >= wanted
