"""The player in a real browser: recordings that switch at one position, to the sample, from disk and from a server."""

import http.server
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import BrowserContext, Page, expect

from audiotok.report import write_report
from audiotok.results import load_grid
from tests.report.conftest import CLIPS, RATE, SECONDS, OpenPage, add_run, wait_for

pytestmark = pytest.mark.browser

FRAMES = 30400  # of the reference; the run's recording is 400 longer
# A clock that renders as fast as it can, and stops where a test has put a stop: what sounds is known to the sample.
OFFLINE = """
const Offline = window.OfflineAudioContext;
window.clocks = [];
window.AudioContext = class extends Offline {
  constructor({ sampleRate }) { super(1, 5 * sampleRate, sampleRate); clocks.push(this); }
  resume() { return Promise.resolve(); }
};
window.rendered = async (stops) => {
  const own = clocks.at(-1);
  const done = stops.map(([seconds, act]) => own.suspend(seconds).then(async () => {
    await act();
    await Offline.prototype.resume.call(own);
  }));
  const buffer = await own.startRendering();
  await Promise.all(done);
  return [...buffer.getChannelData(0)];
};
window.find = (id) => document.getElementById(id);
window.press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
window.until = async (holds) => { while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5)); };
"""


def coded(frames: int, sign: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A signal [T] whose sample tells its place within 1000: 20 steps a sample, up for 1 and down for -1."""
    return (sign * 20 * (1 + np.arange(frames) % 1000)).astype(np.int16)


@pytest.fixture(scope="module")
def coded_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip: a reference that counts up, a run that counts down and goes on longer."""
    root = tmp_path_factory.mktemp("coded")
    samples = add_run(root, "g", "00000001", [], clips=["a"]) / "samples"
    soundfile.write(samples / "reference/a.wav", coded(FRAMES, 1), RATE)
    soundfile.write(samples / "epoch_0002/a.wav", coded(FRAMES + 400, -1), RATE)
    write_report(load_grid("g", root), root / "report")
    return root / "report"


def places(wav: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Places within 1000 of what was rendered, with the sign of the recording; nan in silence."""
    steps = np.array(wav) * 32768 / 20
    steps[np.abs(steps) < 0.5] = np.nan
    nearest: np.ndarray[Any, np.dtype[np.float64]] = np.sign(steps) * (np.round(np.abs(steps)) - 1)
    return nearest


def expected(wav: np.ndarray[Any, Any], start: int, frames: slice, loop: tuple[int, int], sign: int) -> None:
    """Check that frames of what was rendered are those of a recording that began at `start` and loops."""
    clock = np.arange(frames.start, frames.stop) - start
    at = np.where(clock < loop[1], clock, loop[0] + (clock - loop[0]) % (loop[1] - loop[0]))
    assert (sign * wav[frames] == at % 1000).all()


def test_switching_is_exact_to_the_sample_while_it_loops(context: BrowserContext, coded_report: Path) -> None:
    page = context.new_page()
    page.add_init_script(OFFLINE)
    page.goto((coded_report / "index.html").as_uri())
    page.get_by_role("button", name="Play", exact=True).click()  # the second recording loads in the middle of the first
    wav = places(
        page.evaluate("""rendered([
            [0.512, () => { press("2"); return until(() => find("player-status").textContent.startsWith("0")); }],
            [1.024, () => press("1")],
        ])""")
    )
    start = int(np.flatnonzero(~np.isnan(wav))[0])
    loop = (0, FRAMES + 400)  # in the player a shorter recording ends in silence
    late = round(0.05 * RATE)  # the fade
    first, second = round(0.512 * RATE), round(1.024 * RATE)
    expected(wav, start, slice(start, first), loop, 1)
    expected(wav, start, slice(first + late, second), loop, -1)
    expected(wav, start, slice(second + late, start + FRAMES), loop, 1)
    assert np.isnan(wav[start + FRAMES : start + FRAMES + 400]).all()
    expected(wav, start, slice(start + FRAMES + 400, start + 2 * FRAMES), loop, 1)


def test_a_blind_trial_has_one_length_and_loops_a_part(context: BrowserContext, coded_report: Path) -> None:
    page = context.new_page()
    page.add_init_script(OFFLINE + "crypto.getRandomValues = (array) => { array[0] = 1; return array; };")  # X is B
    page.goto((coded_report / "index.html").as_uri())
    page.locator("#test-start").click()
    expect(page.locator("#test-time")).to_have_text(f"0.0 / {FRAMES / RATE:.1f} s")  # of the shorter one
    page.keyboard.press("Space")
    wav = places(
        page.evaluate("""rendered([[0.256, () => press("x")], [0.512, () => press("]")]])""")  # a loop from 0 to here
    )
    start, late = int(np.flatnonzero(~np.isnan(wav))[0]), round(0.05 * RATE)
    expected(wav, start, slice(start, round(0.256 * RATE)), (0, FRAMES), 1)
    expected(wav, start, slice(round(0.256 * RATE) + late, round(0.512 * RATE)), (0, FRAMES), -1)
    again = round(0.512 * RATE) + int(np.flatnonzero(~np.isnan(wav[round(0.512 * RATE) :]))[0])
    end = round(0.512 * RATE) - start  # where it was when the key was pressed
    assert not np.isnan(wav[again:]).any()
    expected(wav, again, slice(again, len(wav)), (0, end), -1)


def seconds_at(page: Page) -> float:
    return float(page.locator("#position").evaluate("slider => slider.value"))


def wait_beyond(page: Page, seconds: float) -> None:
    wait_for(page, f"document.querySelector('#position').value > {seconds}")


class _Plain(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` runs: it sends whole files, whatever range is requested."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(reports: dict[str, Path]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Plain, directory=str(reports["demo"])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


def test_switching_keeps_the_position_on_a_server_without_ranges(context: BrowserContext, served: str) -> None:
    page = context.new_page()
    page.goto(served)
    page.locator("#position").fill("1.5")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="mmd=10, seed=1").click()
    expect(page.locator("#player-status")).to_contain_text("paused")
    assert seconds_at(page) == 1.5
    page.get_by_role("button", name="Play", exact=True).click()
    wait_beyond(page, 1.6)
    page.keyboard.press("1")
    expect(page.locator("#player-status")).to_have_text("reference, playing")
    assert seconds_at(page) > 1.6


def test_a_page_of_another_server_gets_no_recording(context: BrowserContext, served: str) -> None:
    page = context.new_page()
    page.goto(served.replace("127.0.0.1", "localhost").replace("index.html", "assets/report.css"))  # another origin
    audio = next(iter(sorted(re.findall(r"audio/[0-9a-f]+\.html", context.request.get(served).text()))))
    page.evaluate("() => { window.received = 0; addEventListener('message', () => { received += 1; }); }")
    framing = """async (address) => {
        const frame = document.createElement("iframe");
        frame.src = address;
        frame.sandbox = "allow-scripts";
        document.body.append(frame);
        await new Promise((resolve) => { frame.onload = resolve; });
    }"""
    page.evaluate(framing, served.replace("index.html", audio))  # loaded, and so would its message have been sent
    page.evaluate(framing, served.replace("127.0.0.1", "localhost").replace("index.html", audio))
    wait_for(page, "received > 0")
    assert page.evaluate("received") == 1


def test_only_what_is_chosen_is_loaded(reports: dict[str, Path], context: BrowserContext) -> None:
    page = context.new_page()
    loads: list[str] = []
    page.on("request", lambda request: loads.append(request.url) if request.resource_type == "document" else None)
    page.goto((reports["demo"] / "index.html").as_uri())
    expect(page.locator("#player-status")).to_have_text("reference, paused")
    page.keyboard.press("3")
    expect(page.locator("#player-status")).to_contain_text("seed=2")
    assert len([url for url in loads if "/audio/" in url]) == 2
    assert page.locator(".take img").evaluate_all("images => images.every((image) => image.loading === 'lazy')")


def test_the_players_follow_the_filters(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate(
        "document.dispatchEvent(new CustomEvent('audiotok:shown', { detail: { sigs: ['000000a1', '000000a3'] } }))"
    )
    assert [text.split("\n")[1] for text in page.locator(".take:visible").all_inner_texts()] == [
        "Reference", "mmd=0, seed=2", "mmd=10, seed=2"
    ]  # fmt: skip
    assert page.locator("#test-a option").count() == 3


def test_a_recording_that_is_gone_is_stated(reports: dict[str, Path], context: BrowserContext, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "index.html").write_bytes((reports["demo"] / "index.html").read_bytes())
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    expect(page.locator("#player-status")).to_have_text("reference cannot be played.")


def test_switching_in_a_pause_keeps_the_position_too(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#position").fill("1.5")
    page.get_by_role("button", name="mmd=10, seed=1").click()
    expect(page.locator("#player-status")).to_contain_text("000000a2, paused")
    expect(page.locator("#time")).to_have_text(f"1.5 / {SECONDS:.1f} s")


def test_everything_can_be_done_by_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_label("Search").press("2")
    assert page.locator(".take.chosen").inner_text().startswith("1")  # a digit in a field is a digit
    page.get_by_label("Search").fill("")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("2")
    assert page.locator(".take.chosen").inner_text().startswith("2")
    page.keyboard.press("Space")
    wait_beyond(page, 0.1)
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Play")
    position = seconds_at(page)
    page.keyboard.press("ArrowRight")
    on = min(position + 1, SECONDS)  # it has played for as long as the machine took
    assert seconds_at(page) == pytest.approx(on, abs=0.011)
    page.locator("#position").press("ArrowLeft")
    assert seconds_at(page) == pytest.approx(on - 1, abs=0.011)
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_another_clip_stops_the_first_and_a_click_in_a_spectrogram_moves(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator("#play")).to_have_text("Pause")
    page.locator("#clip").select_option(index=2)
    expect(page.locator("#play")).to_have_text("Play")
    assert page.locator("#clip").locator("option").all_inner_texts() == [f"{c} (5 recordings)" for c in CLIPS]
    box = page.locator(".picture").nth(1).bounding_box()
    assert box is not None
    page.locator(".picture").nth(1).click(position={"x": box["width"] / 2, "y": 20})
    assert seconds_at(page) == pytest.approx(SECONDS / 2, abs=0.02)
    expect(page.locator(".take.chosen")).to_contain_text("mmd=0, seed=1")
    page.locator(".take").last.scroll_into_view_if_needed()
    wait_for(
        page, "[...document.querySelectorAll('.picture img')].every((image) => image.complete && image.naturalWidth)"
    )


def test_without_repeat_it_ends_at_the_end_and_starts_over(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Repeat").uncheck()
    page.locator("#position").fill(str(SECONDS - 0.2))
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator("#play")).to_have_text("Play")
    assert seconds_at(page) == 0
