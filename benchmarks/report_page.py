"""How long a page of a sweep takes to open and to filter in a headless Chromium, at 400 and at 2000 runs.

`python -m benchmarks.report_page [FOLDER ...]` writes the page of a stored sweep of each size, and measures it beside
the reports in the folders given, such as those of an earlier version; each without and with a baseline, whose table has
hundreds of rows. The pages of the runs, which it links to, take no
part. A filter is measured twice: before any plot was in view, and with a plot in view that has to be drawn again.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from playwright.sync_api import Browser

from audiotok.report import ReportOptions, write_report
from audiotok.results import load_grid
from benchmarks.machine import Figures, where, write_page
from tests.report.chromium import running_browser
from tests.results.shapes import sweep

RUNS = (400, 2000)
REPEATS = 3
PHONE_PX, DESK_PX = 390, 1400
TIMES = ("load", "cpu", "filter", "clear", "drawn", "with_plots")
WORD = "COMPLETED"  # a word that nine of ten rows have
_PAINTED = "const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
_PLOTS = f"""async () => {{
    {_PAINTED}
    const start = performance.now();
    document.getElementById("chart-parallel").scrollIntoView({{ block: "center" }});
    while (!document.querySelector("#chart-parallel .canvas[aria-busy=false]")) await painted();
    await painted();
    return performance.now() - start;
}}"""
_FILTER = f"""async () => {{
    {_PAINTED}
    const field = document.getElementById("filter-text");
    const took = [];
    for (const text of ["{WORD}", ""]) {{
        await painted();
        const start = performance.now();
        field.value = text;
        field.dispatchEvent(new Event("input", {{ bubbles: true }}));
        await painted();
        took.push(performance.now() - start);
    }}
    return took;
}}"""


def _reports(folder: Path) -> Iterator[Path]:
    for runs in RUNS:
        root = folder / f"outputs{runs}"
        grid = load_grid(sweep(root, runs, grid=f"sweep{runs}"), root)
        for name, baseline in ((f"report{runs}", None), (f"report{runs}-baseline", {"losses.mmd": 0.0})):
            with mock.patch("audiotok.report.page._write_run_pages"):
                write_report(grid, folder / name, ReportOptions(baseline=baseline))
            yield folder / name


def _measured(browser: Browser, index: Path) -> Figures:
    """Wall time until the page is loaded, CPU time of its main thread until it is drawn, times of the filter, size."""
    page = browser.new_page(viewport={"width": DESK_PX, "height": 844})
    page.set_default_timeout(0)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(index.absolute().as_uri())
    load = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    found = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
    elements = page.evaluate("document.querySelectorAll('*').length")
    chosen, cleared = page.evaluate(_FILTER)
    has_plots = page.locator("#chart-parallel").count() > 0
    drawn = page.evaluate(_PLOTS) if has_plots else float("nan")
    with_plots = page.evaluate(_FILTER)[0] if has_plots else float("nan")
    page.set_viewport_size({"width": PHONE_PX, "height": 844})
    phone = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    figures = {"load": load, "cpu": found["TaskDuration"] * 1e3, "filter": chosen, "clear": cleared}
    figures |= {"drawn": drawn, "with_plots": with_plots}
    return {**figures, "elements": elements, "phone": phone, "kib": index.stat().st_size / 1024}


def main(folders: Sequence[str]) -> None:
    """Measure, the pages in turns, and write the page of the documentation."""
    with tempfile.TemporaryDirectory() as scratch, running_browser() as browser:
        pages = [*map(Path, folders), *_reports(Path(scratch))]
        found: list[list[Figures]] = [[] for _ in pages]
        for _ in range(REPEATS):
            for page, rows in zip(pages, found, strict=True):
                rows.append(_measured(browser, page / "index.html"))
                print(page.name, rows[-1], file=sys.stderr, flush=True)
    lines = []
    for page, rows in zip(pages, found, strict=True):
        figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        times = " | ".join(f"{figures[name]:.0f} ms" for name in TIMES).replace("nan ms", "–")
        size = f"{figures['kib']:.0f} KiB | {figures['elements']:.0f}"
        lines.append(f"| {page.name} | {size} | {times} | {figures['phone']:.0f} px |")
    write_page(
        "report_page.md", PAGE.format(where=where("benchmarks.report_page"), repeats=REPEATS, rows="\n".join(lines))
    )


PAGE = """# The page of a large sweep

{where}

| page | size | elements | load | CPU time | filter | clear | plots | filter, plots | height at 390 px |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Medians of {repeats} openings in headless Chromium, in turns; the pages with `-baseline` compare each condition with its
baseline. Load: from the navigation to the end of the `load` event, which the table's script precedes. CPU time: of the
page's main thread until the first frame after that, layout included. Filter: from an input in the search, of a word
that nine of ten rows have, to the frame that shows it; clear: back to all rows. Plots: from scrolling to the parallel
coordinates to the frame that shows them, the plots near them included. Filter, plots: as filter, with them in view.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
