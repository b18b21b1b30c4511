"""A report as one file: everything inside, nothing outside, and no larger than mail takes."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from audiotok.cli import main
from audiotok.errors import ResultsError
from audiotok.report import ReportOptions, write_single_file
from audiotok.results import load_grid
from tests.report.conftest import EVIL_GRID, watched


@pytest.mark.browser
def test_it_shows_and_plays_everything_by_itself(
    results: Path, tmp_path: Path, context: BrowserContext, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out" / "demo.html"
    with caplog.at_level("INFO"):
        assert main(["report", "demo", "--root", str(results), "--single-file", "--output", str(output)]) == 0
    assert f"one file of {output.stat().st_size / 1e6:.1f} MB" in caplog.text
    alone = tmp_path / "mailed.html"
    shutil.move(output, alone)
    assert list(output.parent.iterdir()) == []
    page = context.new_page()
    trouble, asked = watched(page)
    page.goto(alone.as_uri())
    expect(page.locator("#player-status")).to_have_text("reference, paused")
    page.keyboard.press("2")
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Pause")
    page.locator("#test-start").click()
    expect(page.locator("#test-play")).to_be_enabled()
    charts = page.locator(".chart .canvas")
    for place in range(charts.count()):
        charts.nth(place).scroll_into_view_if_needed()
        expect(charts.nth(place).locator("canvas")).to_have_count(1)
        expect(charts.nth(place)).to_have_attribute("aria-label", re.compile(".{20}"))
    drawn = """views => views.map((box) => echarts.getInstanceByDom(box).getZr().storage.getDisplayList().length)"""
    assert charts.count() > 3 and min(charts.evaluate_all(drawn)) > 3
    page.locator(".chart").first.get_by_text("As a table").click()
    expect(page.locator(".chart").first.locator("tbody tr").nth(1)).to_be_visible()
    images = page.locator("img").evaluate_all("images => images.map((image) => image.currentSrc || image.src)")
    assert images and all(address.startswith("data:") for address in images)
    assert page.evaluate("getComputedStyle(document.querySelector('main section')).borderRadius") == "8px"
    assert page.locator("a[href]:not([href^='#'])").count() == 0
    assert trouble == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [alone.as_uri()]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', alone.read_text(encoding="utf-8"))
    assert policy and "file:" not in policy[1] and "'self'" not in policy[1] and "default-src 'none'" in policy[1]


def test_names_from_files_stay_text(results: Path, tmp_path: Path) -> None:
    listening, size = write_single_file(load_grid(EVIL_GRID, results), tmp_path / "evil.html")
    text = (tmp_path / "evil.html").read_text(encoding="utf-8")
    assert "<span data-folder>" not in text and "opens its page" not in text and "folder <code>" not in text
    assert size == len(text.encode()) and listening.clips
    assert "<img src=x" not in text and text.count("<script") == 3 and "<script>hacked" not in text


def test_a_file_that_mail_would_refuse_is_not_written(results: Path, tmp_path: Path) -> None:
    output = tmp_path / "demo.html"
    with pytest.raises(ResultsError, match=r"would have \d\.\d MB, more than 0\.5, of which .*--clips.*--max-mb"):
        write_single_file(load_grid("demo", results), output, limit_mb=0.5)
    assert list(tmp_path.iterdir()) == []
    write_single_file(load_grid("demo", results), output, ReportOptions(clips=0))
    write_single_file(load_grid("demo", results), output, ReportOptions(clips=0))  # in place of the last one


def test_other_files_are_left_alone(results: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    with pytest.raises(ResultsError, match="is no report of one file"):
        write_single_file(load_grid("demo", results), tmp_path / "mine.html")
    with pytest.raises(ResultsError, match="is a folder"):
        write_single_file(load_grid("demo", results), tmp_path)
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>mine"
