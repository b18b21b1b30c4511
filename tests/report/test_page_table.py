"""The page in a real browser: its table, at any width, in light and dark, whatever the names in it."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from audiotok.report import ReportOptions, write_report
from audiotok.results import load_grid
from tests.report.conftest import EVIL, EVIL_GRID, OpenPage, add_run

pytestmark = pytest.mark.browser


def column(page: Page, name: str) -> list[str]:
    """Texts of the rows that are shown."""
    headings = ["".join(text.split()) for text in page.locator("#runs thead th button").all_inner_texts()]
    index = next(place for place, text in enumerate(headings) if text.startswith(name))
    script = "(rows, index) => rows.filter((row) => !row.hidden).map((row) => row.cells[index].innerText)"
    texts: list[str] = page.locator("#runs tbody tr").evaluate_all(script, index)
    return [" ".join(text.split()) for text in texts]


def heading(page: Page, name: str) -> str:
    """`aria-sort` of a column."""
    return page.locator("#runs thead th", has_text=name).get_attribute("aria-sort") or ""


def test_the_rows_are_the_same_without_javascript(open_page: OpenPage, browser: Browser) -> None:
    page = open_page()
    plain = browser.new_page(java_script_enabled=False)
    plain.goto(page.url)
    read = "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"
    rows = page.locator("#runs tbody tr").evaluate_all(read)
    assert len(rows) == 5 and plain.locator("#runs tbody tr").evaluate_all(read) == rows
    plain.close()


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(open_page: OpenPage) -> None:
    page = open_page()
    button = page.get_by_role("button", name=re.compile("sisnr"))
    assert heading(page, "sisnr") == "none"
    button.click()
    assert column(page, "evaluate.sisnr") == ["-2.5", "9.25", "10.5", "100 (best)", "-"]
    assert heading(page, "sisnr") == "ascending"
    button.click()
    assert column(page, "evaluate.sisnr") == ["100 (best)", "10.5", "9.25", "-2.5", "-"]
    assert heading(page, "sisnr") == "descending"


def test_texts_sort_by_keyboard_and_one_heading_is_sorted(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name=re.compile("sisnr")).press("Enter")
    page.get_by_role("button", name="state").press("Enter")
    page.keyboard.press("Space")
    assert column(page, "state") == ["FAILED", *["COMPLETED"] * 4]
    assert page.locator("th[aria-sort=none]").count() == page.locator("th[aria-sort]").count() - 1


def test_rows_are_filtered_by_text_state_and_parameter(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#shown")).to_have_text("5 of 5 shown")
    page.get_by_label("Search").fill("NO disk")
    assert column(page, "sig") == ["000000af"]
    page.get_by_label("Search").fill("")
    page.get_by_role("combobox", name="state").select_option("COMPLETED")
    page.get_by_role("combobox", name="losses.mmd").select_option("10")
    assert column(page, "sig") == ["000000a2", "000000a3"]
    expect(page.locator("#shown")).to_have_text("2 of 5 shown")
    page.locator("#filters").get_by_role("button", name="Show all").click()
    expect(page.locator("#shown")).to_have_text("5 of 5 shown")


def test_the_best_of_each_metric_is_marked_in_its_own_direction(open_page: OpenPage) -> None:
    page = open_page()
    assert [text for text in column(page, "evaluate.sisnr") if "best" in text] == ["100 (best)"]
    assert [text for text in column(page, "valid.msspec") if "best" in text] == ["1.51 (best)"]
    name = " ".join((page.locator("#runs thead th", has_text="sisnr").text_content() or "").split())
    assert name == "evaluate.sisnr dB ↑, higher is better"


@pytest.mark.parametrize("grid", ["demo", EVIL_GRID, "waiting", "nothing"])
def test_nothing_sticks_out_of_a_phone(open_page: OpenPage, grid: str) -> None:
    page = open_page(grid)
    page.set_viewport_size({"width": 360, "height": 740})
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [360, 360]
    for link in [link.get_attribute("href") for link in page.locator("#runs tbody a").all()][:1]:
        page.goto(page.url.replace("index.html", link or ""))
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_comparison_of_the_demo_fits_a_laptop(context: BrowserContext, tmp_path: Path) -> None:
    names = ("sisdr", "mi_groups_delay", "mmd", "usage")
    for run in range(8):
        values = np.array([7.41, 0.0196, 1.874e-5, 0.883]) * (1 + 0.1 * (run // 4) + 0.01 * np.sin(run))
        history = [{"evaluate": dict(zip(names, values.tolist(), strict=True))}]
        add_run(tmp_path, "g", f"{run:08x}", [f"losses.mmd={run // 4}", f"seed={run % 4}"], history, state="COMPLETED")
    options = ReportOptions(baseline={"losses.mmd": 0}, metrics=[f"evaluate.{name}" for name in names])
    write_report(load_grid("g", tmp_path), tmp_path / "report", options)
    page = context.new_page()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto((tmp_path / "report/index.html").as_uri())
    table = page.get_by_role("region", name="Comparison with the baseline")
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_enough(open_page: OpenPage, scheme: str) -> None:
    page = open_page()
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    pairs = [(ink, paper) for ink in ("ink", "soft", "good", "going", "bad", "accent") for paper in ("card", "page")]
    pairs += [("accent-ink", "accent"), ("ink", "tint")]
    read = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    for ink, paper in pairs:
        values = sorted(luminance(page.evaluate(read, name)) for name in (ink, paper))
        assert (values[1] + 0.05) / (values[0] + 0.05) >= 4.5, (scheme, ink, paper)


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("path", ["index.html", "runs/00000000.html"])
def test_names_from_files_are_text_and_nothing_else(open_page: OpenPage, path: str) -> None:
    page = open_page(EVIL_GRID, path)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img[src=x], b, [onerror]").count() == 0
    assert EVIL in page.locator("main").inner_text()
    assert EVIL_GRID in page.title()


def test_a_grid_that_has_not_begun_says_so(open_page: OpenPage) -> None:
    page = open_page("waiting")
    assert column(page, "state") == ["NOT_STARTED"] * 2
    assert page.get_by_text("No run has left samples yet").is_visible()
    assert open_page("nothing").get_by_text("This grid has no experiments yet.").is_visible()


def test_a_page_of_a_run_says_what_sets_it_apart_and_what_happened(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("link", name="000000af").first.click()
    assert page.get_by_role("row", name="losses.mmd").inner_text().split("\t") == [
        "losses.mmd",
        "10",
        "0 (2), 10 (2)",
        "override",
    ]
    assert page.get_by_text("RuntimeError: no disk").is_visible()
    log = page.locator("pre").inner_text().splitlines()
    assert (len(log), log[-2:]) == (30, ["line 99", "disk full"])
    box, text = page.locator(".log").bounding_box(), page.locator(".log pre").bounding_box()
    assert box and text and text["y"] < box["y"] and text["y"] + text["height"] < box["y"] + box["height"]  # its end
    page.get_by_role("link", name="All runs").click()
    page.get_by_role("link", name="000000a3").first.click()
    assert page.locator("svg polyline").count() == 1  # msspec has two epochs, the rest one
    matrix = page.get_by_role("table", name="Mutual information between the codebooks of 000000a3")
    expect(matrix).to_be_visible()
    assert matrix.locator("tbody td").all_inner_texts() == ["", "0.4", "0.4", ""]
