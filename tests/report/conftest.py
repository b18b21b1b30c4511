"""Grids made by hand, with music in them, their reports, and a browser that looks at them."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from audiotok.report import ReportOptions, write_report
from audiotok.results import load_grid
from tests.report.chromium import running_browser

RATE = 16000
SECONDS = 3.0
CLIPS = ("first", "second", "tenth")
EVIL = "</script><script>hacked=1</script><img src=x onerror=hacked=2>'\"&amp;"
EVIL_FILE = "<img src=x onerror=hacked=3>'\"&amp;"  # a file name has no slash
EVIL_GRID = "evil<img src=x onerror=hacked=4>'"
FAILED: dict[str, Any] = {"state": "FAILED", "reason": "RuntimeError: no disk"}
OpenPage = Callable[..., Page]
A4_PX = (297 - 2 * 12) / 25.4 * 96  # inner width of the sheet, landscape
WAIT_MS = 120_000  # until a state is given up: a busy machine is slow, not wrong
expect.set_options(timeout=WAIT_MS)


def melody(seed: int, seconds: float = SECONDS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A few notes [T] that peak below full scale."""
    t = np.arange(round(seconds * RATE)) / RATE
    notes = np.random.default_rng(seed).uniform(200, 2000, 3)
    tune: np.ndarray[Any, np.dtype[np.float64]] = np.mean([np.sin(2 * np.pi * f * t) for f in notes], axis=0) * 0.8
    return tune


def add_run(
    root: Path,
    grid: str,
    sig: str,
    argv: Sequence[str],
    history: Sequence[Mapping[str, Any]] = (),
    *,
    clips: Sequence[str] = (),
    quality: float = 0.0,
    **status: Any,
) -> Path:
    """Add an experiment to a grid, as Dora, the launchers and the solver leave it."""
    folder = root / "xps" / sig
    for name in ("samples/reference", "samples/epoch_0001", "samples/epoch_0002") if clips else ("submitit",):
        (folder / name).mkdir(parents=True)
    (folder / ".argv.json").write_text(json.dumps(list(argv)))
    if history:
        (folder / "history.json").write_text(json.dumps(list(history)))
    if status:
        now = time.time()
        told = {"host": "n1", "commit": "abc1234", "started": now - 100, "updated": now, "ended": now, "reason": ""}
        (folder / "status.json").write_text(json.dumps({**told, **status}))
    for index, clip in enumerate(clips):
        tune = melody(index)
        noise = np.random.default_rng(int(sig, 16)).normal(0, 0.1 * (1 - quality), len(tune))
        soundfile.write(folder / "samples/reference" / f"{clip}.wav", tune, RATE)
        soundfile.write(folder / "samples/epoch_0001" / f"{clip}.wav", tune * 0, RATE)
        soundfile.write(folder / "samples/epoch_0002" / f"{clip}.wav", np.clip(tune + noise, -1, 1), RATE)
    (root / "grids" / grid).mkdir(parents=True, exist_ok=True)
    (root / "grids" / grid / sig).symlink_to(folder)
    return folder


def fill(root: Path) -> None:
    """Three grids: `demo` (two weights, two seeds, one run that failed), one of evil names, one not begun."""
    for index, (weight, seed) in enumerate([(0, 1), (0, 2), (10, 1), (10, 2)]):
        msspec = [3.0 + seed / 10, 2.0 - weight / 20 + seed / 100]
        evaluate = {"sisnr": (-2.5, 10.5, 9.25, 100.0)[index], "mi": 0.5 / (1 + weight) + seed / 100, "mi_q0_q1": 0.4}
        evaluate |= {"usage": 0.9, "usage_q0": 0.8, "usage_q1": 1.0, "mi_groups": 0.3 / (1 + weight) + seed / 50}
        history = [{"valid": {"msspec": msspec[0]}}, {"valid": {"msspec": msspec[1]}, "evaluate": evaluate}]
        argv = [f"losses.mmd={weight}", f"seed={seed}", "optim.epochs=2"]
        add_run(root, "demo", f"000000a{index}", argv, history, clips=CLIPS, quality=weight / 20, state="COMPLETED")
    failed = add_run(
        root,
        "demo",
        "000000af",
        ["losses.mmd=10", "seed=3", "optim.epochs=2"],
        state="FAILED",
        reason="RuntimeError: no disk",
    )
    (failed / "submitit" / "7_0_log.out").write_text("\n".join(f"line {n}" for n in range(100)) + "\n\x1b[31mdisk full")
    history = [{"valid": {"msspec": 1.0, EVIL: 2.0}}, {"valid": {"msspec": 1.0, EVIL: 3.0}}]
    for index in range(2):
        argv = [f"label={json.dumps(EVIL)}", f"other={json.dumps(EVIL + str(index))}", f"k<b>={index}"]
        told: dict[str, Any] = {"state": "FAILED", "reason": EVIL, "host": EVIL, "commit": EVIL}
        folder = add_run(root, EVIL_GRID, f"0000000{index}", argv, history, clips=[EVIL_FILE], **told)
        (folder / "train.log").write_text(EVIL)
    add_run(root, "waiting", "000000b1", ["losses.mmd=0"])
    add_run(root, "waiting", "000000b2", ["losses.mmd=1"])
    (root / "grids" / "nothing").mkdir()


def wait_for(page: Page, condition: str) -> None:
    """Wait for a JavaScript expression to be true; from outside, since the page's policy forbids `eval`."""
    end = time.monotonic() + WAIT_MS / 1e3
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        time.sleep(0.02)


def watched(page: Page) -> tuple[list[str], list[str]]:
    """What a page writes to its console or fails with, and what it requests, from now on."""
    trouble: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    return trouble, requests


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the grids of `fill`; tests only read it."""
    root = tmp_path_factory.mktemp("outputs")
    fill(root)
    return root


@pytest.fixture(scope="session")
def reports(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of the grids, by name of the grid."""
    folder = tmp_path_factory.mktemp("reports")
    options = {"demo": ReportOptions(baseline={"losses.mmd": 0}, by=["losses.mmd"])}
    written = {}
    for index, name in enumerate(("demo", EVIL_GRID, "waiting", "nothing")):
        written[name] = folder / f"{index} a report"  # a space in its path
        write_report(load_grid(name, results), written[name], options.get(name))
    return written


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser with empty storage."""
    fresh = browser.new_context(viewport={"width": 1280, "height": 900})
    fresh.set_default_timeout(WAIT_MS)
    yield fresh
    fresh.close()


def failures(request: Request) -> list[str]:
    """What failed to load; a recording that is left before it has loaded is given up by the page itself."""
    given_up = "/audio/" in request.url and request.failure in (
        "net::ERR_ABORTED",
        "",
        None,
    )  # no text: a frame is gone
    return [] if given_up else [f"{request.url} {request.failure}"]


@pytest.fixture
def open_page(context: BrowserContext, reports: dict[str, Path]) -> Iterator[OpenPage]:
    """Open a page of a report from disk; at the end no script may have failed, and nothing asked of a network."""
    trouble: list[str] = []
    asked: list[str] = []

    def open_one(grid: str = "demo", path: str = "index.html", script: str = "") -> Page:
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.extend(failures(request)))
        page.on("request", lambda request: asked.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto((reports[grid] / path).as_uri())
        return page

    yield open_one
    assert trouble == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []
