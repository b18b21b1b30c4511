"""The page of a sweep of four hundred runs in a real browser: pages of rows, filters, columns, paper."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave
from playwright.sync_api import Browser, Page, expect

from audiotok.report import write_report
from audiotok.report.listening import REFERENCE, Listening
from audiotok.results import load_grid
from tests.report.conftest import A4_PX, WAIT_MS, add_run, wait_for

pytestmark = pytest.mark.browser

RUNS = 400
STATES = ["RUNNING", "PENDING", "FAILED", "DIVERGED"]
TAKES = 363  # of the one clip: its reference, and the first runs
SHOWN = "document.addEventListener('audiotok:shown', (event) => { window.shown = event.detail.sigs; });"


def sisnr(run: int) -> float:
    """What run number `run` has measured."""
    return round((run * 37 % RUNS) / 10 - 5, 1)


def state(run: int) -> str:
    return STATES[run // 10 % 4] if run % 10 == 9 else "COMPLETED"


def sig(run: int) -> str:
    return f"{run:08x}"


def recordings(stage: Path) -> Listening:
    """One clip of many runs, whose recordings are empty pages and whose spectrograms are one black dot each."""
    (stage / "audio").mkdir()
    takes = []
    for place in range(TAKES):
        files = {"audio": f"audio/{place:04d}.html", "image": f"audio/{place:04d}.png"}
        (stage / files["audio"]).write_text("<!doctype html>")
        imsave(stage / files["image"], np.zeros((1, 1)))
        run = {"run": sig(place - 1), "epoch": 2} if place else {"run": REFERENCE, "epoch": None}
        takes.append({**run, **files, "seconds": 3.0, "loudness": -20.0, "peak": 0.5})
    clip = {"name": "clip", "seconds": 3.0, "sample_rate": 16000, "highest_hz": 8000.0, "takes": takes, "anchor": None}
    return Listening(clips=[clip])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page alone: pages of the runs and real recordings would take a minute."""
    root = tmp_path_factory.mktemp("outputs")
    for run in range(RUNS):
        argv = [f"losses.mmd={run % 5}", f"optim.lr={run / 1e4}", f"label=name {run % 3}", f"seed={run // 200}"]
        history = [{"evaluate": {"sisnr": sisnr(run), "mi": run / RUNS, "visqol": 3.0, "mel": 0.5}}]
        history[0]["evaluate"] |= {"usage": run % 7 / 7} if run % 7 else {}
        told: dict[str, Any] = {"state": state(run), "host": f"node{run % 50:02d}", "commit": f"c{run % 4}0ffee"}
        told["reason"] = "RuntimeError: out of memory " + "and so on " * 9 + f"at step {run}" if run % 10 == 9 else ""
        add_run(root, "sweep", sig(run), argv, history, **told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiotok.report.page.write_clips", lambda _clips, stage, _limit: recordings(stage))
        patch.setattr("audiotok.report.page._write_run_pages", lambda *_args, **_options: None)
        write_report(load_grid("sweep", root), root / "report")
    return root / "report" / "index.html"


@pytest.fixture
def page(browser: Browser, index: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(WAIT_MS)
    opened = context.new_page()
    trouble: list[str] = []
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.add_init_script(SHOWN)
    opened.goto(index.as_uri())
    yield opened
    context.close()
    assert trouble == []


def search(page: Page, words: str) -> set[int]:
    """Numbers of all runs that fit, on whatever page of rows."""
    page.get_by_label("Search").fill(words)
    found: list[str] = page.evaluate("shown")
    expect(page.locator("#shown")).to_have_text(f"{len(found)} of {RUNS} shown")
    return {int(name, 16) for name in found}


def first(page: Page) -> str:
    return page.locator("#runs tbody th").first.inner_text()


def test_rows_come_a_page_at_a_time_and_a_phone_is_not_scrolled_forever(page: Page) -> None:
    rows = page.locator("#runs tbody tr")
    assert (rows.count(), page.locator("#rows-place").inner_text()) == (50, "1–50 of 400")
    place = first(page)
    page.get_by_role("button", name="Next").click()
    assert page.locator("#rows-place").inner_text() == "51–100 of 400" and first(page) != place
    page.get_by_role("button", name="Back").click()
    assert first(page) == place and page.get_by_role("button", name="Back").is_disabled()
    page.get_by_label("Rows of a page").select_option("all")
    assert rows.count() == RUNS and page.get_by_role("button", name="Next").is_disabled()
    page.set_viewport_size({"width": 390, "height": 844})
    height, width = page.evaluate("[document.documentElement.scrollHeight, document.documentElement.scrollWidth]")
    assert height < 12_000 and width == 390  # with all plots and recordings
    page.reload()
    assert rows.count() == RUNS  # the choice is remembered


def test_all_pages_are_sorted_together(page: Page) -> None:
    button = page.get_by_role("button", name=re.compile("sisnr"))
    button.click()
    assert first(page) == sig(min(range(RUNS), key=sisnr))
    button.click()
    assert first(page) == sig(max(range(RUNS), key=sisnr))


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (sig(7), lambda run: run == 7),
        ("node07", lambda run: run % 50 == 7),
        ("C30FFEE", lambda run: run % 4 == 3),
        ("host=node07 losses.mmd=2", lambda run: run % 50 == 7 and run % 5 == 2),
        ("mmd=2", lambda run: run % 5 == 2),
        ("losses.mmd==2.0", lambda run: run % 5 == 2),
        ("losses.mmd!=2", lambda run: run % 5 != 2),
        ("mmd>=2 mmd<4", lambda run: 2 <= run % 5 < 4),
        ("evaluate.sisnr>30", lambda run: sisnr(run) > 30),
        ("sisnr<-4,5", lambda run: sisnr(run) < -4.5),
        ('label="name 1"', lambda run: run % 3 == 1),
        ("usage=null", lambda run: run % 7 == 0),
        ("usage!=null usage<0.2", lambda run: run % 7 == 1),
        ('"step 19"', lambda run: run in (19, 199)),  # far beyond what the cell of a long reason shows
        ("state=failed", lambda run: state(run) == "FAILED"),
        ("seed=0 nothing-like-it", lambda run: False),
    ],
)
def test_the_search_finds_what_it_promises(page: Page, words: str, fits: Any) -> None:
    assert search(page, words) == {run for run in range(RUNS) if fits(run)}


def test_ranges_filter_numbers_and_what_is_no_number_is_marked(page: Page) -> None:
    page.get_by_text("Ranges, and how to search").click()
    low, high = (page.get_by_label(f"optim.lr, at {end}", exact=True) for end in ("least", "most"))
    assert low.get_attribute("placeholder") == "0" and high.get_attribute("placeholder") == "0.0399"
    low.fill("0,01")
    high.fill("2e-2")
    assert {int(name, 16) for name in page.evaluate("shown")} == set(range(100, 201))
    expect(page.locator("#ranges-set")).to_have_text("(2 set)")
    high.fill("much")
    assert high.get_attribute("aria-invalid") == "true" and len(page.evaluate("shown")) == 300
    page.locator("#filters").get_by_role("button", name="Show all").click()
    expect(page.locator("#shown")).to_have_text("400 of 400 shown")


def test_counts_of_states_filter_and_a_brush_is_one_more_filter(page: Page) -> None:
    failed = {run for run in range(RUNS) if state(run) == "FAILED"}
    count = page.get_by_role("button", name=re.compile(r"\d+ FAILED"))
    assert count.inner_text().split()[0] == str(len(failed)) and count.get_attribute("aria-pressed") == "false"
    count.click()
    assert {int(name, 16) for name in page.evaluate("shown")} == failed
    assert count.get_attribute("aria-pressed") == "true"
    chosen = [sig(run) for run in (29, 30, 69)]
    brush = "sigs => document.dispatchEvent(new CustomEvent('audiotok:brush', { detail: { sigs } }))"
    page.evaluate(brush, chosen)
    assert {int(name, 16) for name in page.evaluate("shown")} == failed & {29, 30, 69}
    expect(page.locator("#shown")).to_have_text("2 of 400 shown, of 3 selected in a plot")
    count.click()
    assert page.evaluate("shown.length") == 3
    page.locator("#filters").get_by_role("button", name="Show all").click()
    expect(page.locator("#shown")).to_have_text("400 of 400 shown")


def test_columns_are_chosen_and_remembered(page: Page) -> None:
    heads = page.locator("#runs thead th:visible")
    usual = heads.count()
    page.locator("#choose-columns summary").click()
    page.get_by_role("checkbox", name="host").check()
    page.get_by_role("checkbox", name="evaluate.visqol").uncheck()
    for _ in range(2):
        names = ["".join(text.split()) for text in heads.all_inner_texts()]
        assert "host" in names and not any(name.startswith("evaluate.visqol") for name in names) and len(names) == usual
        assert page.locator("#runs tbody tr").first.locator("th, td").count() == usual
        assert page.locator("#runs tbody tr").first.inner_text().split("\t")[names.index("host")].startswith("node")
        page.reload()
    page.locator("#choose-columns summary").click()
    page.get_by_role("button", name="The usual ones").click()
    assert heads.count() == usual and not any(text == "host" for text in heads.all_inner_texts())


def test_memory_that_is_not_the_pages_own_does_no_harm(page: Page) -> None:
    for content in ("[1", '"text"', "null", json.dumps({"size": "7", "columns": "no"})):
        page.evaluate("content => localStorage.setItem('audiotok-table:sweep', content)", content)
        page.reload()
        assert page.locator("#runs tbody tr").count() == 50


def test_heading_and_first_column_stay_while_the_table_scrolls(page: Page) -> None:
    page.set_viewport_size({"width": 700, "height": 500})
    box = page.locator("#runs-box")
    corner = page.locator("#runs thead th").first
    box.evaluate("box => { box.scrollIntoView(); box.scrollTo(200, 300); }")
    assert box.evaluate("box => [box.scrollLeft, box.scrollTop]") == [200, 300]
    inner, outer = corner.bounding_box(), box.bounding_box()
    assert inner and outer and abs(inner["x"] - outer["x"]) < 3 and abs(inner["y"] - outer["y"]) < 3
    spot = "([x, y]) => document.elementFromPoint(x, y).closest('th') === document.querySelector('#runs thead th')"
    assert page.evaluate(spot, [inner["x"] + 20, inner["y"] + inner["height"] / 2])


def test_a_sheet_of_a4_has_all_rows_that_fit_and_clips_no_column(page: Page) -> None:
    search(page, "losses.mmd=2")
    count = "document.querySelectorAll('#runs tbody tr').length"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {count}; }})")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert page.evaluate(f"[printed, {count}]") == [80, 50]
    page.set_viewport_size({"width": int(A4_PX), "height": 700})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_PX
    assert page.locator("#runs").evaluate("table => table.getBoundingClientRect().right") <= A4_PX
    clipped = "cells => cells.filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.textContent)"
    assert page.locator("#runs th:visible, #runs td").evaluate_all(clipped) == []
    assert not page.locator("#filters, #choose-columns, #pager").locator("visible=true").count()


def test_hundreds_of_recordings_request_nothing_before_they_are_in_view_or_chosen(
    browser: Browser, index: Path
) -> None:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(WAIT_MS)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url.partition("/audio/")[2]))
    page.add_init_script(SHOWN)
    page.goto(index.as_uri())
    assert page.locator(".take").count() == TAKES
    assert list(filter(None, requests)) == ["0000.html"]  # the reference, which is chosen
    page.locator("#listen-heading").scroll_into_view_if_needed()
    wait_for(page, "document.querySelectorAll('.picture img')[1].naturalWidth > 0")
    with page.expect_request("**/audio/0001.html"):
        page.locator(".take").nth(1).locator("button").click()
    assert 2 <= len([name for name in requests if name.endswith(".png")]) <= 60  # the window, and what is near it
    search(page, "losses.mmd=2")
    shown = sum(run % 5 == 2 for run in range(TAKES - 1))
    assert page.locator(".take:visible").count() == 1 + shown
    assert [name for name in requests if name.endswith(".html")] == ["0000.html", "0001.html"]


def test_without_javascript_a_note_stands_for_a_large_table(browser: Browser, index: Path) -> None:
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(index.as_uri())
    assert "The table of 400 runs needs JavaScript" in plain.locator("#runs-heading ~ noscript").inner_text()
    assert plain.locator("#runs, #filters, #pager").locator("visible=true").count() == 0


def test_what_counts_is_stated_and_the_statistics_count_it(page: Page) -> None:
    counted = sum(state(run) == "COMPLETED" for run in range(RUNS))
    line = f"{counted} of {RUNS} runs completed and are counted; left out: "
    assert page.get_by_text(line).count() >= 2
    best = page.locator("#runs .best").filter(visible=True)
    page.get_by_label("Rows of a page").select_option("all")
    assert best.count() > 0
    states = best.evaluate_all("cells => cells.map((cell) => cell.closest('tr').querySelector('.state').innerText)")
    assert set(states) == {"COMPLETED"}
