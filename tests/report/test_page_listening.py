"""The page in a real browser: recordings that switch at one position, and the blind test."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from scipy.stats import binomtest

from tests.report.conftest import CLIPS, SECONDS, OpenPage, wait_for

pytestmark = pytest.mark.browser

# crypto whose numbers the test knows: 0, 1, 2, ... in turn
COUNTING = "let drawn = 0; crypto.getRandomValues = (array) => { array[0] = drawn; drawn += 1; return array; };"
STORED = "JSON.parse(localStorage.getItem('audiotok-abx:demo'))"


def playing(page: Page) -> list[int]:
    """Which recordings sound."""
    found: list[int] = page.evaluate("players.flatMap((player, index) => player.paused ? [] : [index])")
    return found


def wait_beyond(page: Page, player: int, seconds: float) -> None:
    wait_for(page, f"players[{player}].currentTime > {seconds}")


def test_switching_keeps_position_and_level(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Play", exact=True).click()
    wait_beyond(page, 0, 0.4)
    for key, old, new in (("3", 0, 2), ("2", 2, 1), ("1", 1, 0)):
        switch = f"""() => new Promise((resolve) => {{
            const before = players[{old}].currentTime;
            players[{new}].addEventListener("timeupdate", () => {{
                if (!players[{new}].seeking) resolve([before, players[{new}].currentTime]);
            }});
            document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "{key}", bubbles: true }}));
        }})"""
        before, after = page.evaluate(switch)
        assert abs(after - before) < 0.15
        assert playing(page) == [new]
        wait_beyond(page, new, after + 0.1)  # it sounds on
    assert page.evaluate("players.every((player) => player.volume === 1 && !player.muted)")
    assert page.locator(".take.chosen button").get_attribute("aria-pressed") == "true"


def test_switching_in_a_pause_keeps_the_position_too(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#position").fill("1.5")
    page.get_by_role("button", name="mmd=10, seed=1").click()
    wait_for(page, "players[3].currentTime === 1.5")
    assert playing(page) == []
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
    wait_beyond(page, 1, 0.1)
    page.keyboard.press("Space")
    wait_for(page, "players[1].paused")
    position = page.evaluate("players[1].currentTime")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("players[1].currentTime") == pytest.approx(position + 1, abs=0.01)
    page.locator("#position").press("ArrowLeft")
    assert page.evaluate("players[1].currentTime") == pytest.approx(position, abs=0.01)
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_another_clip_stops_the_first_and_a_click_in_a_spectrogram_moves(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Play", exact=True).click()
    page.locator("#clip").select_option(index=2)
    assert playing(page) == []
    assert page.locator("#clip").locator("option").all_inner_texts() == [f"{c} (5 recordings)" for c in CLIPS]
    box = page.locator(".picture").nth(1).bounding_box()
    assert box is not None
    page.locator(".picture").nth(1).click(position={"x": box["width"] / 2, "y": 20})
    assert page.evaluate("players[6].currentTime") == pytest.approx(SECONDS / 2, abs=0.02)
    assert page.evaluate(
        "[...document.querySelectorAll('.picture img')].every((image) => image.complete && image.naturalWidth)"
    )


def vote(page: Page, answer: str) -> None:
    page.evaluate("document.activeElement.blur()")
    assert page.get_by_role("button", name=f"X is {answer}").is_disabled()  # before X is heard
    page.keyboard.press("x")
    page.get_by_role("button", name="Play", exact=True).last.click()
    page.get_by_role("button", name=f"X is {answer}").click()


def start(page: Page, trials: int, listener: str) -> None:
    page.locator("#abx-a").select_option("000000a0")
    page.locator("#abx-b").select_option("000000a3")
    page.get_by_label("Trials").fill(str(trials))
    page.get_by_label("Listener").fill(listener)
    page.get_by_role("button", name="Start").click()


def saved_votes(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the votes as CSV").click()
    path = download.value.path()
    return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"), newline="")))


def test_votes_are_counted_hidden_until_the_end_and_saved(open_page: OpenPage) -> None:
    page = open_page(script=COUNTING)
    start(page, 4, '=cmd("x")')
    xs = [index * 2 + 1 for index in range(4)]  # each trial draws its clip, then X
    expected = [["000000a0", "000000a3"][x % 2] for x in xs]
    assert page.evaluate(STORED)["session"]["trials"] == [{"clip": 2 * i % 3, "x": xs[i] % 2} for i in range(4)]
    for index, answer in enumerate("BABB"):
        assert page.locator("#abx-progress").inner_text().startswith(f"Trial {index + 1} of 4")
        assert not page.locator("#abx-result").is_visible()
        vote(page, answer)
    p = binomtest(3, 4, alternative="greater").pvalue
    score = page.locator("#abx-score").inner_text()
    assert score.startswith("3 of 4 correct")
    assert float(score.partition("p = ")[2].partition(" ")[0]) == pytest.approx(p, abs=6e-4)
    votes = saved_votes(page)
    assert [row["x"] for row in votes] == expected
    assert [row["answer"] for row in votes] == ["000000a3", "000000a0", "000000a3", "000000a3"]
    assert [row["correct"] for row in votes] == ["1", "0", "1", "1"]
    assert [row["trial"] for row in votes] == list("1234")
    assert {row["clip"] for row in votes} <= set(CLIPS)
    assert {row["listener"] for row in votes} == {'\'=cmd("x")'}  # no formula for a spreadsheet
    assert all(earlier["time"] <= later["time"] for earlier, later in itertools.pairwise(votes))
    assert {(row["a"], row["b"]) for row in votes} == {("000000a0", "000000a3")}


def test_a_test_goes_on_after_a_reload_and_its_votes_stay(open_page: OpenPage) -> None:
    page = open_page()
    start(page, 3, "anna")
    vote(page, "A")
    page.reload()
    assert page.locator("#abx-progress").inner_text().startswith("Trial 2 of 3")
    vote(page, "B")
    page.get_by_role("button", name="End here").click()
    page.reload()
    assert page.locator("#abx-count").inner_text() == "2 votes so far"
    assert [row["listener"] for row in saved_votes(page)] == ["anna", "anna"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget all votes").click()
    page.reload()
    assert page.get_by_role("button", name="Save the votes as CSV").is_disabled()


def test_x_is_drawn_evenly_by_crypto(open_page: OpenPage) -> None:
    count = "window.calls = 0; const real = crypto.getRandomValues.bind(crypto);"
    count += "crypto.getRandomValues = (array) => { calls += 1; return real(array); };"
    page = open_page(script=count + " Math.random = () => { throw new Error('not random enough'); };")
    start(page, 200, "")
    trials: list[dict[str, Any]] = page.evaluate(STORED)["session"]["trials"]
    assert page.evaluate("calls") >= 400
    assert binomtest(sum(trial["x"] for trial in trials), 200).pvalue > 1e-6
    assert {trial["clip"] for trial in trials} == {0, 1, 2}


@pytest.mark.parametrize(("correct", "trials"), [(0, 1), (9, 16), (16, 16), (120, 200), (200, 200)])
def test_the_p_value_is_exact(open_page: OpenPage, correct: int, trials: int) -> None:
    votes = [{"clip": "first", "x": "a", "answer": "a", "correct": int(i < correct)} for i in range(trials)]
    session = {"test": "", "listener": "", "a": "000000a0", "b": "000000a1", "trials": [{"clip": 0, "x": 0}] * trials}
    stored = json.dumps({"votes": [], "session": {**session, "votes": votes}})
    page = open_page(script=f"localStorage.setItem('audiotok-abx:demo', JSON.stringify({stored}));")
    p = float(page.locator("#abx-score").inner_text().partition("p = ")[2].partition(" ")[0])
    assert p == pytest.approx(binomtest(correct, trials, alternative="greater").pvalue, rel=5e-3)


def test_a_browser_that_keeps_nothing_says_so_and_still_saves(open_page: OpenPage) -> None:
    broken = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page = open_page(script=broken)
    assert "keeps nothing for this page" in page.locator("#abx-storage").inner_text()
    start(page, 1, "")
    vote(page, "A")
    assert len(saved_votes(page)) == 1


def test_conditions_without_a_common_clip_are_refused(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#abx-b").select_option("reference")
    page.get_by_role("button", name="Start").click()
    assert not page.locator("#abx-trial").is_visible()
    assert page.evaluate("document.querySelector('#abx-a').validationMessage") == "A and B are the same."
