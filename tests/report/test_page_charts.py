"""The charts in a real browser, on a sweep of 400 runs: what they draw, name and filter, by pointer and by keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from audiotok.report import ReportOptions, write_report
from audiotok.report.runs import Run
from audiotok.results import load_grid
from audiotok.results.experiments import Experiments
from tests.report.conftest import A4_PX, EVIL_GRID, OpenPage, add_run, wait_for
from tests.results.shapes import write_shape

pytestmark = pytest.mark.browser
CHARTS = ("tradeoff", "parallel", "curves", "means", "importance", "heatmap")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of 400 runs, 362 of which have completed."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiotok.report.page._write_run_pages", empty_pages)
        grid = load_grid(write_shape("sweep400", root), root)
        write_report(grid, root / "report", ReportOptions(baseline={"losses.mmd": 0.0}))
    return root / "report"


def empty_pages(_experiments: Experiments, runs: list[Run], _metrics: list[str], stage: Path, **_options: bool) -> None:
    """Pages of runs that a click can open: real ones would take a minute."""
    for run in runs:
        (stage / "runs" / f"{run.sig}.html").write_text("<!doctype html><title>a run</title>")


@pytest.fixture
def page(sweep: Path, context: BrowserContext) -> Iterator[Page]:
    """Its page; no script may have failed at the end."""
    trouble: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.goto((sweep / "index.html").as_uri())
    yield opened
    assert trouble == []


# A chart in the middle of the window, once it and all near it are drawn: drawing may move what follows.
SETTLED = """((box) => {
    box.scrollIntoView({ block: "center" });
    const near = (frame) => {
        const { top, bottom } = frame.getBoundingClientRect();
        return bottom >= -400 && top <= innerHeight + 400;
    };
    return [...document.querySelectorAll(".chart")].filter(near)
        .every((frame) => frame.querySelector(".canvas").ariaBusy === "false");
})"""


def drawing(page: Page, name: str) -> Locator:
    """The drawing of a chart, once it is up to date and stays where it is."""
    wait_for(page, f"{SETTLED}(document.querySelector('#chart-{name} .canvas'))")
    return page.locator(f"#chart-{name} .canvas")


def chart(page: Page, name: str, script: str) -> Any:
    """Value of a script over `view`, the instance of ECharts."""
    return page.evaluate(
        f"((view) => {script})(echarts.getInstanceByDom(document.querySelector('#chart-{name} .canvas')))"
    )


def point_at(page: Page, name: str, place: list[float]) -> tuple[float, float]:
    """Move the pointer to a place of a chart, and return where that is."""
    left, top = drawing(page, name).evaluate("box => [box.getBoundingClientRect().x, box.getBoundingClientRect().y]")
    page.mouse.move(left + place[0] - 3, top + place[1])
    page.mouse.move(left + place[0], top + place[1])
    return left + place[0], top + place[1]


def test_every_chart_is_drawn_and_says_in_words_and_numbers_what_it_shows(page: Page) -> None:
    for name in CHARTS:
        drawing(page, name)
        frame = page.locator(f"#chart-{name}")
        assert len(frame.locator(".canvas").get_attribute("aria-label") or "") > 40
        frame.get_by_text("As a table").click()
        expect(frame.locator("tbody tr").nth(3)).to_be_visible()  # filled after the click, by an event of its own
        assert chart(page, name, "view.getOption().animation") is False
    assert page.locator("#plots").get_by_text("362 of 400 runs completed and are counted").is_visible()
    for name in ("means", "curves"):
        expect(page.locator(f"#chart-{name} tbody tr")).to_have_count(199)
    assert page.locator("#chart-importance tbody tr").first.inner_text().startswith("rvq.n_q")


def test_the_trade_off_has_runs_means_and_a_front_of_means(page: Page) -> None:
    drawing(page, "tradeoff")
    line, _, runs, means = chart(page, "tradeoff", "view.getOption().series.map((one) => one.data.length)")
    assert (runs, means) == (362, 199) and 2 <= line < 30
    front = chart(page, "tradeoff", "view.getOption().series[0].data")
    assert front == sorted(front) == sorted(front, key=lambda point: point[1])  # more quality costs dependence
    place = chart(page, "tradeoff", "view.convertToPixel({gridIndex: 0}, view.getOption().series[0].data[0])")
    where = point_at(page, "tradeoff", place)
    hint = page.locator("#chart-tradeoff .hint")
    expect(hint).to_contain_text("mmd=")
    expect(hint).to_contain_text("mean of 2 runs")
    page.mouse.click(*where)
    links = page.locator("#chart-tradeoff .picked a")
    expect(links).to_have_count(2)
    links.first.click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f]+\.html"))


def test_the_trade_off_shows_whole_intervals_unless_they_are_wide(context: BrowserContext, tmp_path: Path) -> None:
    for run in range(8):
        mmd, seed = divmod(run, 4)
        history = [
            {"evaluate": {"visqol": 3 - 0.3 * mmd + 0.1 * seed, "mi": (2 if mmd else 10) + (seed if mmd else 0.1)}}
        ]
        argv = [f"losses.mmd={mmd}", f"seed={seed}"]
        add_run(tmp_path, "four", f"{run:08x}", argv, history, state="COMPLETED")
        if seed < 2:
            add_run(tmp_path, "two", f"{run + 16:08x}", argv, history, state="COMPLETED")
    ends = "['xAxis', 'yAxis'].map((axis) => view.getModel().getComponent(axis).axis.scale.getExtent())"
    whole = "view.getOption().series[1].data.map(({value}) => value.slice(2, 6))"
    for grid, cut in (("four", False), ("two", True)):
        write_report(load_grid(grid, tmp_path), tmp_path / "report" / grid)
        page = context.new_page()
        page.goto((tmp_path / "report" / grid / "index.html").as_uri())
        drawing(page, "tradeoff")
        (left, right), (low, high) = chart(page, "tradeoff", ends)
        inside = [
            left <= x0 and x1 <= right and low <= y0 and y1 <= high for x0, x1, y0, y1 in chart(page, "tradeoff", whole)
        ]
        assert len(inside) == 2 and all(inside) is not cut, grid
        assert ("goes on beyond" in page.locator("#chart-tradeoff").inner_text()) is cut, grid


def test_a_brush_filters_the_table_and_the_plots_and_show_all_takes_it_back(page: Page) -> None:
    drawing(page, "tradeoff")
    drawing(page, "parallel")
    axes = chart(page, "parallel", "view.getOption().parallelAxis.map((axis) => axis.name)")
    place = next(index for index, name in enumerate(axes) if name.endswith("visqol ↑"))
    width = page.locator("#chart-parallel .canvas").evaluate("box => box.clientWidth")
    x, y = point_at(page, "parallel", [40 + (width - 100) * place / (len(axes) - 1), 60])
    page.mouse.down()
    page.mouse.move(x, y + 40, steps=4)
    page.mouse.move(x, y + 90, steps=4)
    page.mouse.up()
    expect(page.locator("#shown")).not_to_have_text(re.compile("^400 of 400"))
    shown = int((page.locator("#shown").inner_text()).split()[0])
    assert 5 < shown < 200
    drawing(page, "tradeoff")
    assert chart(page, "tradeoff", "view.getOption().series[2].data.length") == shown
    page.locator("#brush-state").get_by_role("button", name="Show all").click()
    expect(page.locator("#shown")).to_have_text(re.compile("^400 of 400"))
    drawing(page, "tradeoff")
    assert chart(page, "tradeoff", "view.getOption().series[2].data.length") == 362


def test_the_keyboard_can_brush_too_and_a_wrong_value_is_named(page: Page) -> None:
    drawing(page, "parallel")
    frame = page.locator("#chart-parallel")
    frame.get_by_label("range of", exact=True).select_option("rvq.n_q")
    frame.get_by_label("from", exact=True).fill("9")
    frame.get_by_role("button", name="Filter by the range").press("Enter")
    expect(frame.locator(".picked")).to_have_text("rvq.n_q takes: 4, 8.")
    frame.get_by_label("from", exact=True).fill("7,5")  # the next value is 8
    frame.get_by_role("button", name="Filter by the range").press("Enter")
    expect(page.locator("#shown")).to_have_text(re.compile("^18[0-9] of 400"))
    expect(page.locator("#brush-state")).to_be_visible()


def test_filters_of_the_table_reach_the_plots(page: Page) -> None:
    drawing(page, "means")
    search = page.get_by_label("Search")
    search.fill("rvq.n_q=8")
    expect(page.locator("#shown")).to_have_text(re.compile("^200 of 400"))
    drawing(page, "means")
    labels = chart(page, "means", "view.getOption().yAxis[0].data")
    assert 50 < len(labels) < 199 and all("n_q=8" in label for label in labels)


def test_a_curve_is_named_under_the_pointer_and_the_rest_is_grey(page: Page) -> None:
    drawing(page, "curves")
    place = chart(page, "curves", "view.convertToPixel({gridIndex: 0}, [4, 2.45])")
    point_at(page, "curves", place)
    expect(page.locator("#chart-curves .hint")).to_contain_text("mmd=")
    assert page.locator("#chart-curves .key li").all_inner_texts()[-1].endswith("the other 193")
    page.locator("#chart-curves").get_by_label("panels", exact=True).select_option("optim.lr")
    assert chart(page, "curves", "view.getOption().grid.length") == 5


def test_a_heatmap_hides_no_third_parameter(page: Page) -> None:
    drawing(page, "heatmap")
    frame = page.locator("#chart-heatmap")
    note = frame.locator(".legend")
    expect(note).to_have_text(
        re.compile(
            r"Mean over seed, 1 to 2 runs a cell; at optim\.lr = .*, rvq\.bins = .*; a panel for each mmd\.stream"
        )
    )
    assert chart(page, "heatmap", "view.getOption().grid.length") == 2
    frame.get_by_label("optim.lr", exact=True).select_option("mean")
    expect(note).to_have_text(re.compile(r"Mean over seed and over optim\.lr, [0-9]+ to 10 runs"))


def test_better_is_the_same_end_of_the_colours_for_every_metric(page: Page) -> None:
    drawing(page, "heatmap")
    cells = (
        "view.getOption().series.flatMap((one) => one.data.map(({value, itemStyle}) => [value[2], itemStyle.color]))"
    )
    best = {}
    for metric, choose in (("evaluate.visqol", max), ("evaluate.mi_groups", min)):
        page.locator("#chart-heatmap").get_by_label("metric", exact=True).select_option(metric)
        best[metric] = choose(chart(page, "heatmap", cells))[1]
    assert len(set(best.values())) == 1
    expect(page.locator("#chart-heatmap .key li").first).to_have_text(re.compile(r"worse \(0\.[0-9]+ from 0\)"))


def test_better_is_up_on_every_axis_of_a_metric(page: Page) -> None:
    drawing(page, "parallel")
    axes = chart(page, "parallel", "view.getOption().parallelAxis.map(({name, inverse}) => [name, inverse])")
    ways = {name.split("\n")[-1]: inverse for name, inverse in axes if "evaluate" in name}
    assert len(ways) > 2 and all(inverse == name.endswith("| →0") for name, inverse in ways.items())
    place = [name for name, _ in axes].index("evaluate\n|mmd| →0")
    values = chart(page, "parallel", f"view.getOption().series[0].data.map(({{value}}) => value[{place}])")
    assert min(values) >= 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_the_charts_fit_and_follow_the_colours_of_the_page(page: Page, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for name in CHARTS:
        drawing(page, name)
        ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
        assert chart(page, name, "view.getOption().textStyle.color") == ink
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_paper_statistics_fit_the_sheet_and_no_number_is_broken(context: BrowserContext, factorial: Path) -> None:
    page = context.new_page()
    page.goto((factorial / "index.html").as_uri())
    page.emulate_media(media="print")
    page.set_viewport_size({"width": int(A4_PX), "height": 700})
    cells = page.locator("[aria-label^='Comparison'] :is(th, td), [aria-label^='Table of conditions'] :is(th, td)")
    lines = """cells => cells.map((cell) => {
        const range = document.createRange();
        const words = [...cell.childNodes].filter(({ nodeType, data }) => nodeType === 3 && !data.trim().includes(" "));
        const rows = words.map((word) => { range.selectNodeContents(word); return range.getClientRects().length; });
        return [cell.textContent, cell.getBoundingClientRect().right, Math.max(0, ...rows)];
    })"""
    found = cells.evaluate_all(lines)
    assert len(found) > 1000
    assert [cell for cell in found if cell[1] > A4_PX + 1 or cell[2] > 1] == []


# Texts of a chart that stick out of its drawing.
CUT = """view.getZr().storage.getDisplayList(true).filter((item) => item.type === "tspan" && !item.ignore)
    .map((item) => {
        const box = item.getBoundingRect().clone();
        if (item.getComputedTransform()) box.applyTransform(item.getComputedTransform());
        return [item.style.text, box.x, box.x + box.width];
    }).filter(([text, left, right]) => text && (left < -1 || right > view.getWidth() + 1))"""


@pytest.fixture(scope="module")
def factorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of the 40 runs of the main sweep, whose conditions lack parameters of others."""
    root = tmp_path_factory.mktemp("main")
    options = ReportOptions(baseline={"losses.mmd": 0.0})
    write_report(load_grid(write_shape("main", root), root), root / "report", options)
    return root / "report"


@pytest.mark.parametrize("shape", ["factorial", "sweep"])
def test_no_label_is_cut_off(context: BrowserContext, request: pytest.FixtureRequest, shape: str) -> None:
    page = context.new_page()
    page.goto((request.getfixturevalue(shape) / "index.html").as_uri())
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for name in CHARTS:
            drawing(page, name)
            assert chart(page, name, CUT) == [], (name, width)
    labels = chart(page, "means", "view.getOption().yAxis[0].data")
    assert all(label.startswith("mmd=") and not re.search("…|\n,|=-", label) for label in labels)
    names = page.evaluate("Object.values(JSON.parse(document.getElementById('report-data').textContent).runs)")
    assert len(names) >= 40 and not any("=-" in name for name in names)


def test_a_heatmap_begins_with_parameters_that_all_conditions_have(context: BrowserContext, factorial: Path) -> None:
    page = context.new_page()
    page.goto((factorial / "index.html").as_uri())
    drawing(page, "heatmap")
    frame = page.locator("#chart-heatmap")
    assert [frame.get_by_label(name, exact=True).input_value() for name in ("down", "across")] == [
        "losses.mmd",
        "rvq.n_q",
    ]


def test_a_heatmap_begins_with_cells_where_the_usual_values_never_meet(context: BrowserContext, tmp_path: Path) -> None:
    """Most runs have mmd.ramp_epochs=0 and most rvq.kmeans_iters=0, but none has both."""
    pairs = [(0, 1), (0, 2), (1, 0), (2, 0)]
    conditions = [(weight, n_q, *pair) for weight in (0, 1) for n_q in (2, 4) for pair in pairs]
    left_out = {(0, 2, 1, 0), (0, 2, 0, 1), (1, 4, 2, 0), (1, 4, 0, 2)}  # so that no parameter has panels of its own
    for index, condition in enumerate(one for one in conditions if one not in left_out):
        names = ("losses.mmd", "rvq.n_q", "mmd.ramp_epochs", "rvq.kmeans_iters")
        argv = [f"{name}={value}" for name, value in zip(names, condition, strict=True)]
        history = [{"valid": {"msspec": 2.0}, "evaluate": {"sisdr": float(index)}}]
        add_run(tmp_path, "apart", f"{index:08x}", [*argv, "seed=1"], history, state="COMPLETED")
    write_report(load_grid("apart", tmp_path), tmp_path / "report", ReportOptions())
    page = context.new_page()
    page.goto((tmp_path / "report" / "index.html").as_uri())
    drawing(page, "heatmap")
    assert chart(page, "heatmap", "view.getOption().series.flatMap((one) => one.data).length") > 0


def test_a_comparison_of_hundreds_of_rows_makes_no_long_page(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    table = page.get_by_role("region", name="Comparison with the baseline")
    assert table.locator("tbody tr").count() > 1000
    height, inner = table.evaluate("box => [box.clientHeight, box.scrollHeight]")
    assert height < 844 < inner
    assert page.evaluate("document.documentElement.scrollHeight") < 14_000
    table.evaluate("box => box.scrollTo(0, 9000)")
    top = table.evaluate("box => box.querySelector('th').getBoundingClientRect().y - box.getBoundingClientRect().y")
    assert abs(top) < 3  # the heading stays


def test_on_paper_the_charts_have_the_width_and_the_colours_of_a_sheet(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    drawing(page, "means")
    page.evaluate("""addEventListener("beforeprint", () => {
        const views = [...document.querySelectorAll(".chart .canvas")].map((box) => echarts.getInstanceByDom(box));
        const inks = (canvas) => new Set(new Uint32Array(canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
        window.inks = inks(document.querySelector("#chart-heatmap canvas"));
        window.paper = views.map((view) => [view.getWidth(), view.getOption().textStyle.color]);
    })""")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    paper = page.evaluate("paper")
    assert len(paper) == len(CHARTS)
    assert all(abs(width - A4_PX) < 2 and colour == "#000000" for width, colour in paper)
    assert page.evaluate("inks") > 20  # cells and labels, of layers that lie on one another
    drawing(page, "means")
    assert chart(page, "means", "view.getOption().textStyle.color") != "#000000"
    page.emulate_media(media="print", color_scheme="light")
    page.set_viewport_size({"width": int(A4_PX), "height": 700})
    boxes = "boxes => boxes.map((box) => [box.clientWidth, box.clientHeight, box.getBoundingClientRect().right])"
    for name in CHARTS:
        outer, inner = (
            page.locator(f"#chart-{name} {part}").evaluate_all(boxes)[0] for part in (".canvas", ".canvas canvas")
        )
        assert outer == inner and outer[2] <= A4_PX + 1, name


def test_a_random_search_has_charts_of_a_bounded_size(context: BrowserContext, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for run in range(150):
        lr, decay = 10 ** draw.uniform(-5, -3), draw.uniform(0, 0.1)
        history = [{"evaluate": {"visqol": 3 - abs(np.log10(lr) + 4), "mi": decay}}]
        add_run(
            tmp_path, "search", f"{run:08x}", [f"optim.lr={lr}", f"optim.decay={decay}"], history, state="COMPLETED"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiotok.report.page._write_run_pages", empty_pages)
        write_report(load_grid("search", tmp_path), tmp_path / "report")
    page = context.new_page()
    page.goto((tmp_path / "report/index.html").as_uri())
    for name in CHARTS:
        if page.locator(f"#chart-{name}").count():
            assert drawing(page, name).evaluate("box => box.clientHeight") <= 800, name
    page.locator("#chart-tradeoff").get_by_label("colours", exact=True).select_option(label="optim.lr")
    assert page.locator("#chart-tradeoff .key li").count() <= 13
    lines = chart(page, "parallel", "view.getOption().series[0].data.map(({value}) => value[0])")
    assert len(lines) == 150 and -0.5 < min(lines) < 0.5 and max(lines) > 140


def test_names_from_files_are_text_in_the_charts(open_page: OpenPage) -> None:
    page = open_page(EVIL_GRID)
    for name in ("parallel", "curves"):
        if page.locator(f"#chart-{name}").count():
            drawing(page, name)
            page.locator(f"#chart-{name}").get_by_text("As a table").click()
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img[src=x], b:not(.key b), [onerror]").count() == 0
