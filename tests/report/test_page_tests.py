"""Blind tests in a real browser: draws, what can be answered when, levels, answers kept and saved, results."""

import csv
import io
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import BrowserContext, Page, expect
from scipy.stats import binom, binomtest

from audiotok.report import write_report
from audiotok.report.stimuli import loudness
from audiotok.results import load_grid
from tests.report.conftest import CLIPS, RATE, OpenPage, add_run, melody

pytestmark = pytest.mark.browser

# crypto whose numbers the test knows: 0, 1, 2, ... in turn
COUNTING = "let drawn = 0; crypto.getRandomValues = (array) => { array[0] = drawn; drawn += 1; return array; };"
STORED = "JSON.parse(localStorage.getItem('audiotok-votes:demo'))"
PAIR = ["000000a0", "000000a3"]


def begin(page: Page, kind: str = "abx", *, trials: int = 4, listener: str = "", pair: list[str] = PAIR) -> None:
    page.locator("#test-kind").select_option(kind)
    if kind != "mushra":
        page.locator("#test-a").select_option(pair[0])
        page.locator("#test-b").select_option(pair[1])
        page.locator("#test-trials").fill(str(trials))
    page.get_by_label("Listener").fill(listener)
    page.locator("#test-start").click()
    expect(page.locator("#test-problem")).not_to_contain_text("Reading")


def vote(page: Page, answer: str, listen_to: str = "x") -> None:
    """Listen to signals by their keys, then answer by a key."""
    expect(page.locator("#test-play")).to_be_enabled()
    page.evaluate("document.activeElement.blur()")
    button = page.locator("#test-answers button").first
    page.keyboard.press("r" if page.locator(".ratings").count() else "a")
    expect(button).to_be_disabled()  # before what it is about has been heard
    page.keyboard.press("Space")
    for key in listen_to:
        page.keyboard.press(key)
    expect(button).to_be_enabled()
    progress = page.locator("#test-progress").inner_text()
    page.keyboard.press(answer)
    expect(page.locator("#test-progress", has_text=progress).locator("visible=true")).to_have_count(0)


def saved_votes(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the answers as CSV").click()
    path = download.value.path()
    return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"), newline="")))


def stored(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(STORED)
    return found


def seed_session(session: Mapping[str, Any]) -> str:
    """A script that puts a test into the browser's storage; recordings, in frames of their own, have none."""
    memory = json.dumps({"votes": [], "session": {"listener": "", "test": "", "equal": False, "votes": [], **session}})
    return f"if (parent === window) localStorage.setItem('audiotok-votes:demo', {json.dumps(memory)});"


def test_answers_are_counted_hidden_until_the_end_and_saved(open_page: OpenPage) -> None:
    page = open_page(script=COUNTING)
    begin(page, trials=4, listener='=cmd("x")')
    trials = stored(page)["session"]["trials"]
    assert sorted(trial["clip"] for trial in trials[:3]) == [0, 1, 2]  # all came before one comes again
    right = [trial["x"] for trial in trials]
    given = [right[0], 1 - right[1], right[2], right[3]]
    for index, choice in enumerate(given):
        assert page.locator("#test-progress").inner_text().startswith(f"Trial {index + 1} of 4")
        assert not page.locator("#test-result").is_visible()
        vote(page, "12"[choice])
    p = binomtest(3, 4, alternative="greater").pvalue
    score = page.locator("#test-score").inner_text()
    assert score.startswith("3 of 4 correct") and "Ended after" not in score
    assert float(score.partition("p = ")[2].partition(" ")[0]) == pytest.approx(p, abs=6e-4)
    votes = saved_votes(page)
    assert [row["x"] for row in votes] == [PAIR[x] for x in right]
    assert [row["answer"] for row in votes] == [PAIR[choice] for choice in given]
    assert [row["correct"] for row in votes] == ["1", "0", "1", "1"]
    assert [(row["trial"], row["trials"]) for row in votes] == [(n, "4") for n in "1234"]
    assert {row["clip"] for row in votes} == set(CLIPS)
    assert {row["listener"] for row in votes} == {'\'=cmd("x")'}  # no formula for a spreadsheet
    assert all(earlier["time"] <= later["time"] for earlier, later in itertools.pairwise(votes))
    assert {(row["grid"], row["kind"], row["a"], row["b"], row["loudness"]) for row in votes} == {
        ("demo", "abx", *PAIR, "as is")
    }


def test_a_test_goes_on_after_a_reload_and_its_answers_stay(open_page: OpenPage) -> None:
    page = open_page()
    begin(page, trials=3, listener="anna")
    vote(page, "1")
    page.reload()
    assert page.locator("#test-progress").inner_text().startswith("Trial 2 of 3")
    vote(page, "2")
    page.get_by_role("button", name="End here").click()
    assert "Ended after 2 of 3 trials" in page.locator("#test-score").inner_text()
    page.reload()
    assert page.locator("#test-count").inner_text() == "2 answers so far"
    assert [row["listener"] for row in saved_votes(page)] == ["anna", "anna"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget all answers").click()
    page.reload()
    assert page.get_by_role("button", name="Save the answers as CSV").is_disabled()


def test_x_is_drawn_evenly_by_crypto_and_clips_come_equally_often(open_page: OpenPage) -> None:
    page = open_page(script="Math.random = () => 0.25;")  # draws from it would be all alike
    begin(page, trials=200)
    trials: list[dict[str, Any]] = stored(page)["session"]["trials"]
    assert binomtest(sum(trial["x"] for trial in trials), 200).pvalue > 1e-6
    assert sorted(Counter(trial["clip"] for trial in trials).values()) == [66, 67, 67]
    orders = {tuple(trial["clip"] for trial in trials[at : at + 3]) for at in range(0, 198, 3)}
    assert len(orders) > 1 and all(sorted(order) == [0, 1, 2] for order in orders)


@pytest.mark.parametrize(("correct", "trials"), [(0, 1), (9, 16), (120, 200)])
def test_the_p_value_is_exact(open_page: OpenPage, correct: int, trials: int) -> None:
    votes = [
        {"clip": "first", "x": "a", "answer": "a", "correct": int(i < correct), "trials": trials} for i in range(trials)
    ]
    page = open_page(script=seed_session({"kind": "abx", "runs": PAIR, "done": trials, "trials": [], "votes": votes}))
    p = float(page.locator("#test-score").inner_text().partition("p = ")[2].partition(" ")[0])
    assert p == pytest.approx(binomtest(correct, trials, alternative="greater").pvalue, rel=5e-3)


def test_what_a_number_of_trials_can_show_is_stated_before(open_page: OpenPage) -> None:
    page = open_page()
    for kind, sides, trials, share in (("abx", 1, 16, 75), ("preference", 2, 20, 60), ("abx", 1, 3, 90)):
        counts = [
            next((c for c in range(n // 2, n + 1) if sides * binom.sf(c - 1, n, 0.5) < 0.05), n + 1) for n in range(300)
        ]
        powers = [float(binom.sf(critical - 1, n, share / 100)) for n, critical in enumerate(counts)]
        page.locator("#test-kind").select_option(kind)
        page.locator("#test-trials").fill(str(trials))
        page.locator("#test-share").fill(str(share))
        text = page.locator("#test-outlook").inner_text()
        enough = next(n for n, power in enumerate(powers) if power >= 0.8)
        assert text.endswith(f"80 % chance needs {enough} trials.")
        if counts[trials] > trials:
            assert text.startswith(f"No outcome of {trials} trials has p < 0.05")
        else:
            assert text.startswith(f"p < 0.05 needs {counts[trials]} of {trials} ")
            assert f"the chance of that is {powers[trials]:.0%};".replace("%", " %") in text


def test_a_browser_that_keeps_nothing_is_stated_and_still_saves(open_page: OpenPage) -> None:
    broken = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page = open_page(script=broken)
    assert "keeps nothing for this page" in page.locator("#test-storage").inner_text()
    begin(page, trials=1)
    vote(page, "1")
    assert len(saved_votes(page)) == 1


def test_answers_of_earlier_pages_are_kept(open_page: OpenPage) -> None:
    vote_before = {
        "listener": "anna",
        "test": "t",
        "trial": 1,
        "clip": "first",
        "a": "x",
        "b": "y",
        "x": "x",
        "answer": "x",
    }
    memory = json.dumps({"votes": [{**vote_before, "correct": 1}], "session": None})
    page = open_page(script=f"if (parent === window) localStorage.setItem('audiotok-abx:demo', {json.dumps(memory)});")
    (row,) = saved_votes(page)
    assert (row["kind"], row["grid"], row["listener"], row["correct"]) == ("abx", "demo", "anna", "1")


def test_conditions_that_cannot_be_compared_are_refused(open_page: OpenPage) -> None:
    page = open_page()
    begin(page, pair=["reference", "reference"])
    assert page.locator("#test-problem").inner_text() == "A and B are the same."
    page.locator("#test-kind").select_option("mushra")
    for box in page.locator("#test-runs input").all():
        box.uncheck()
    page.locator("#test-start").click()
    assert page.locator("#test-problem").inner_text() == "Choose one to 10 runs to rate."
    assert not page.locator("#test-trial").is_visible()


def test_a_number_that_is_hidden_bars_no_rating(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#test-trials").fill("500")
    begin(page, "mushra")
    assert page.locator("#test-progress").inner_text().startswith("Trial 1 of 3")


def test_choices_that_change_while_recordings_are_read_do_not_reach_the_test(
    context: BrowserContext, report_of: "MakeReport"
) -> None:
    page = opened(context, report_of({"a": np.append(melody(0) * 0.9, 0.0)}))  # of two lengths: both are read
    page.evaluate("""() => {
        const find = (id) => document.getElementById(id);
        find("test-a").value = "reference";
        find("test-b").value = "00000001";
        find("test-start").click();
        find("test-kind").value = "mushra";
        find("test-listener").value = "late";
    }""")
    expect(page.locator("#test-progress")).to_contain_text("Trial 1 of 16 · a · A: reference")
    session = page.evaluate("JSON.parse(localStorage.getItem('audiotok-votes:g')).session")
    assert (session["kind"], session["listener"], len(session["trials"])) == ("abx", "", 16)


def test_recordings_of_several_clips_are_compared_one_clip_at_a_time(
    context: BrowserContext, report_of: "MakeReport"
) -> None:
    context.add_init_script("""
        window.most = 0;
        addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
            most = Math.max(most, document.querySelectorAll("iframe").length);
        }).observe(document.body, { childList: true }));
    """)
    page = opened(context, report_of({clip: np.append(melody(n) * 0.9, 0.0) for n, clip in enumerate("abcd")}))
    expect(page.locator("#player-status")).to_have_text("reference, paused")
    begin(page, pair=["reference", "00000001"])
    expect(page.locator("#test-play")).to_be_enabled()
    assert page.evaluate("most") == 3  # A, X and B of the trial; eight, were all clips compared at once


def test_a_storage_that_is_full_ends_no_test(open_page: OpenPage) -> None:
    page = open_page()
    begin(page, trials=2)
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    vote(page, "1")
    vote(page, "2")
    assert "keeps nothing for this page" in page.locator("#test-storage").inner_text()
    assert len(saved_votes(page)) == 2


def test_a_test_that_is_repeated_says_what_p_is_of(open_page: OpenPage) -> None:
    page = open_page()
    for number, listener in enumerate(("anna", "anna", "ben"), 1):
        begin(page, trials=1, listener=listener, pair=PAIR if number == 1 else PAIR[::-1])
        vote(page, "1")
        repeated = "Test 2 of these two by this listener" in page.locator("#test-score").inner_text()
        assert repeated == (number == 2)


MakeReport = Callable[[Mapping[str, Any]], Path]


@pytest.fixture
def report_of(tmp_path: Path) -> MakeReport:
    """Write a report of one run whose recordings are given by clip; the reference is that of `add_run`."""

    def write(recordings: Mapping[str, Any]) -> Path:
        folder = add_run(tmp_path, "g", "00000001", [], clips=list(recordings))
        for clip, wav in recordings.items():
            soundfile.write(folder / "samples/epoch_0002" / f"{clip}.wav", wav, RATE)
        write_report(load_grid("g", tmp_path), tmp_path / "report")
        return tmp_path / "report"

    return write


def opened(context: BrowserContext, report: Path) -> Page:
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    return page


def test_bit_identical_clips_are_left_out(context: BrowserContext, report_of: MakeReport) -> None:
    padded = np.concatenate([melody(1), np.zeros(160)])
    page = opened(context, report_of({"a": melody(0), "b": padded, "c": melody(2) * 0.9}))
    begin(page, pair=["reference", "00000001"])
    assert page.locator("#test-problem").text_content() == "2 of 3 clips are bit-identical in two conditions: left out."
    assert page.locator("#test-progress").inner_text().startswith("Trial 1 of 4 · c")
    page.get_by_role("button", name="End here").click()
    page.locator("#clip").select_option("0")
    page.locator("#test-scope").select_option("one")
    begin(page, pair=["reference", "00000001"])
    assert page.locator("#test-problem").inner_text() == "1 of 1 clips are bit-identical in two conditions: left out."


GAINS = """
window.gains = [];
window.GainNode = class extends GainNode {
  constructor(context, options) { super(context, options); gains.push(options.gain); }
};
"""


def test_levels_are_shown_warned_of_and_made_equal(context: BrowserContext, report_of: MakeReport) -> None:
    context.add_init_script(GAINS)
    page = opened(context, report_of({"a": melody(0) * 0.5}))
    for place, gain in enumerate((1.0, 0.5)):
        level = loudness(gain * melody(0)[:, None], RATE)
        assert f"{level:.1f} LUFS".replace("-", "−") in page.locator(".take").nth(place).inner_text()
    page.locator("#test-a").select_option("00000001")  # the quiet one: the other is brought down to it
    page.locator("#test-b").select_option("reference")
    levels = page.locator("#test-levels")
    expect(levels).to_contain_text("at most 6.0 dB apart")
    expect(levels).to_contain_text("A difference above 0.5 dB")
    page.get_by_label("Equal loudness").check()
    expect(levels).not_to_contain_text("A difference above 0.5 dB")
    assert sorted(gains_of_a_trial(page)) == [pytest.approx(0.5, abs=1e-3), 1.0]


def gains_of_a_trial(page: Page) -> list[float]:
    """Start a test and hear both recordings: the gains other than 0 that the page sets."""
    page.locator("#test-start").click()
    expect(page.locator("#test-play")).to_be_enabled()
    for key in ("a", "b"):
        page.keyboard.press(key)
        page.keyboard.press("Space")
        page.keyboard.press("Space")
    gains: list[float] = page.evaluate("gains.filter((gain) => gain)")
    return gains


def test_no_gain_makes_a_recording_clip(context: BrowserContext, report_of: MakeReport) -> None:
    context.add_init_script(GAINS)
    loud = np.sign(melody(0)) * 0.95  # as loud as can be: a reference brought there would exceed full scale
    page = opened(context, report_of({"a": loud}))
    page.locator("#test-a").select_option("00000001")
    page.locator("#test-b").select_option("reference")
    page.get_by_label("Equal loudness").check()
    low, high = gains_of_a_trial(page)
    peak = np.abs(melody(0)).max()
    assert high * peak == pytest.approx(1.0, abs=1e-3) and low < 1


def rate_all(page: Page, score_of: Callable[[int], int]) -> None:
    """Listen to all signals of a trial and rate the signal at each position."""
    expect(page.locator("#test-play")).to_be_enabled()
    page.locator("#test-play").click()
    sliders = page.locator(".rating input")
    for place in range(sliders.count()):
        sliders.nth(place).focus()
        expect(page.locator(".rating button").nth(place)).to_have_attribute("aria-pressed", "true")
        page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        sliders.nth(place).fill(str(score_of(place)))


def test_a_rating_hides_the_reference_and_the_anchor_among_the_runs(open_page: OpenPage) -> None:
    page = open_page()
    begin(page, "mushra", listener="anna")
    session = stored(page)["session"]
    runs = ["reference", "anchor", *(f"000000a{n}" for n in range(4))]
    assert session["runs"] == runs
    assert sorted(trial["clip"] for trial in session["trials"]) == [0, 1, 2]
    assert all(sorted(trial["order"]) == list(range(6)) for trial in session["trials"])
    scores = {run: 95 - 10 * place for place, run in enumerate(runs)}
    for number, trial in enumerate(session["trials"]):
        assert page.locator("#test-progress").inner_text().startswith(f"Trial {number + 1} of 3")
        shown = page.locator("#test-trial").inner_text()
        assert "000000a" not in shown and "anchor" not in shown and "mmd" not in shown
        rate_all(page, lambda place, trial=trial: scores[runs[trial["order"][place]]])  # type: ignore[misc]
        page.keyboard.press("Enter") if number else page.get_by_role("button", name="Next").click()
    expect(page.locator("#test-score")).to_contain_text("below 90 in 0 of 3 clips. These ratings count")
    assert page.locator("#test-votes tr").first.inner_text().split("\t") == ["reference", "95.0", "95", "95", "3"]
    votes = saved_votes(page)
    assert len(votes) == 18 and {row["kind"] for row in votes} == {"mushra"}
    assert {(row["condition"], int(row["score"])) for row in votes} == set(scores.items())
    for number, trial in enumerate(session["trials"], 1):
        rows = [row for row in votes if row["trial"] == str(number)]
        assert [row["condition"] for row in rows] == [runs[place] for place in trial["order"]]
        assert [row["position"] for row in rows] == list("123456")


def test_who_misses_the_hidden_reference_is_told_so(open_page: OpenPage) -> None:
    votes = [
        {"condition": run, "score": 80 if run == "reference" and n == 0 else 95, "trials": 5}
        for n in range(5) for run in ("reference", "000000a0")
    ]  # fmt: skip
    page = open_page(
        script=seed_session(
            {"kind": "mushra", "runs": ["reference", "anchor", "000000a0"], "done": 5, "trials": [], "votes": votes}
        )
    )
    text = page.locator("#test-score").inner_text()
    assert "below 90 in 1 of 5 clips" in text and "leaves this listener out" in text


def test_a_preference_is_blind_and_may_be_none(open_page: OpenPage) -> None:
    page = open_page()
    begin(page, "preference", trials=3)
    trials = stored(page)["session"]["trials"]
    assert "mmd" not in page.locator("#test-trial").inner_text()
    expected = []
    for trial, key in zip(trials, "120", strict=True):
        shown = [PAIR[trial["first"]], PAIR[1 - trial["first"]]]
        expected.append("none" if key == "0" else shown[int(key) - 1])
        vote(page, key, listen_to="ab")
    votes = saved_votes(page)
    assert [row["answer"] for row in votes] == expected
    assert [row["position"] for row in votes] == [str(1 + trial["first"]) for trial in trials]
    assert "1 without preference; sign test of the 2" in page.locator("#test-score").inner_text()


def test_a_trial_whose_recording_is_gone_ends_the_test(
    reports: dict[str, Path], context: BrowserContext, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reports["demo"], copy)
    page = opened(context, copy)
    begin(page, "preference", trials=3)
    shutil.rmtree(copy / "audio")
    page.reload()
    expect(page.locator("#test-score")).to_contain_text("A recording cannot be read")
