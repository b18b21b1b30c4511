"""Pictures of a report for the documentation: `python tests/report/screenshots.py [WHICH] REPORT_FOLDER docs/images`.

WHICH is `--table` for those of the table and of a run, `--sweep` for those of a sweep of four hundred runs, on a desk
and on a phone; without, those of players and tests.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
MARGIN = 24  # px


def main(report: Path, images: Path) -> None:
    """Take the pictures of players and tests."""
    images.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        page = _open(browser, report / "index.html", 1180, 860)
        _listen(page)
        _save(page, images / "report_listen.png", "#listen")
        _vote(page)
        _save(page, images / "report_abx.png", "#tests")
        for width, name in ((1400, "report_mushra.png"), (390, "report_mushra_phone.png")):
            rating = _open(browser, report / "index.html", width, 860)
            _rate(rating)
            _save(rating, images / name, "#tests")
        phone = _open(browser, report / "index.html", 360, 740)
        _listen(phone)
        phone.locator("#player").scroll_into_view_if_needed()
        phone.locator("#listen-heading").evaluate("heading => heading.scrollIntoView()")
        _save(phone, images / "report_phone.png")


def table(report: Path, images: Path) -> None:
    """Take the pictures of the table and of a run."""
    images.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = _open(browser, report / "index.html", 1180, 860)
        _save(page, images / "report_table.png")
        sig = page.locator("#runs tbody a").last.get_attribute("href") or ""
        _save(_open(browser, report / sig, 1180, 1250, dark=True), images / "report_run_dark.png")


def sweep(report: Path, images: Path) -> None:
    """Take the pictures of a large sweep."""
    images.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        for width, height, name in ((1400, 1000, "report_sweep.png"), (390, 844, "report_sweep_phone.png")):
            page = _open(browser, report / "index.html", width, height)
            page.locator("#filter-text").fill("losses.mmd>=1")
            page.evaluate("document.activeElement.blur()")
            if width == 390:
                page.locator("#runs-heading").evaluate("heading => heading.scrollIntoView()")
            _save(page, images / name)
            page.locator("#filter-text").fill("")
            if width == 390:
                _join([_chart(page, "parallel"), _chart(page, "means")], images / "report_plots_phone.png", beside=True)
            else:
                _join([_chart(page, "tradeoff"), _chart(page, "parallel")], images / "report_plots.png")


def _chart(page: Page, name: str) -> Image.Image:
    page.locator(f"#chart-{name}").evaluate("chart => chart.scrollIntoView({ block: 'center' })")
    page.locator(f"#chart-{name} .canvas[aria-busy=false]").wait_for()
    page.wait_for_timeout(300)
    return Image.open(io.BytesIO(page.locator(f"#chart-{name}").screenshot())).convert("RGB")


def _join(pictures: list[Image.Image], path: Path, *, beside: bool = False) -> None:
    """Pictures below or beside one another, with a margin."""
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    size = (sum(widths), max(heights)) if beside else (max(widths), sum(heights))
    gaps = MARGIN * (len(pictures) + 1), 2 * MARGIN
    joined = Image.new("RGB", (size[0] + gaps[not beside], size[1] + gaps[beside]), pictures[0].getpixel((2, 10)))
    at = [MARGIN, MARGIN]
    for picture in pictures:
        joined.paste(picture, (at[0], at[1]))
        at[not beside] += picture.size[not beside] + MARGIN
    _write(joined, path)


def _open(browser: Browser, path: Path, width: int, height: int, *, dark: bool = False) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page.goto(path.absolute().as_uri())
    page.wait_for_timeout(300)
    return page


def _listen(page: Page) -> None:
    page.locator("#position").fill("1.8")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("2")
    page.wait_for_timeout(300)


def _vote(page: Page) -> None:
    page.locator("#test-trials").fill("5")
    page.locator("#test-listener").fill("listener 1")
    page.locator("#test-start").click()
    for number, answer in enumerate("12212", 1):
        page.get_by_text(f"Trial {number} of 5").wait_for()
        page.locator("#test-play:enabled").wait_for()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("x")
        page.keyboard.press("Space")
        page.keyboard.press(answer)
    page.locator("#test-result").wait_for()
    page.evaluate("document.activeElement.blur()")


def _rate(page: Page) -> None:
    page.locator("#test-kind").select_option("mushra")
    page.locator("#test-equal").check()
    page.locator("#test-start").click()
    page.locator("#test-play:enabled").click()
    for place, score in enumerate((96, 34, 71, 58)):
        page.locator(".rating input").nth(place).fill(str(score))
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)


def _save(page: Page, path: Path, part: str = "") -> None:
    if part:
        page.locator(part).screenshot(path=path)
    else:
        page.screenshot(path=path)
    _write(Image.open(path).convert("RGB"), path)


def _write(picture: Image.Image, path: Path) -> None:
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    make = {"--sweep": sweep, "--table": table}.get(sys.argv[1], main)
    make(*map(Path, sys.argv[-2:]))
