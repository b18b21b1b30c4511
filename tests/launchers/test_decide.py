"""Who is submitted: every state against every rule, and the retry that thinks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dora.conf import SubmitRules
from hypothesis import given
from hypothesis import strategies as st

from audiotok.experiments.frozen import Change
from audiotok.launchers.decide import (
    FORCE,
    Action,
    Decision,
    _changed_fields,
    decide,
    previous_job,
)
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, STATUS_FILE, State, Verdict

LATEST: Mapping[str, Any] = {"job_id": "7_0"}
NO_RULES, RETRY = SubmitRules(), SubmitRules(retry=True)
ALL = SubmitRules(retry=True, update=True, replace=True, replace_done=True)
LIVE_STATES = {state for state in State if state.live}
FAILURE_STATES = {state for state in State if state.failed} - {State.BLOCKED}  # which never ran
_OOM = {"profile": Profile(mem_gb=40.0).as_json()}
UNBLOCKED = sorted(FAILURE_STATES - {"DIVERGED", "OUT_OF_MEMORY"})


def _decide(
    state: str | None,
    rules: SubmitRules = NO_RULES,
    previous: Mapping[str, Any] = LATEST,
    profile: Profile | None = None,
    *,
    reason: str = "",
    force: bool = False,
) -> Decision:
    verdict = None if state is None else Verdict(State.of(state), reason)
    return decide(verdict, rules, previous, profile or Profile(mem_gb=40.0), force=force)


def _ran_out(profile: Profile, factor: float = 1.0) -> dict[str, Any]:
    """The `job.json` of a job with this profile that ran out of memory."""
    return {"job_id": "7_0", "profile": profile.as_json(), "mem_factor": factor}


@pytest.mark.parametrize("rules", [NO_RULES, ALL])
def test_without_a_job_it_is_new(rules: SubmitRules) -> None:
    assert _decide(None, rules, {}) == Decision(Action.NEW)
    assert _decide("BLOCKED", rules) == Decision(Action.NEW)


def test_what_was_extended_goes_on() -> None:
    found = _decide("EXTENDED", reason="4 of 6 epochs are done")
    assert found == Decision(Action.RETRY, "goes on: 4 of 6 epochs are done")
    assert _decide("EXTENDED", previous={}).action is Action.NEW  # it was run by hand
    assert not State.EXTENDED.live and not State.EXTENDED.failed


def test_what_is_done_is_run_again_only_when_told_so() -> None:
    assert _decide("COMPLETED", SubmitRules(retry=True, replace=True)).action is Action.REUSE
    assert _decide("COMPLETED", SubmitRules(replace_done=True)).action is Action.REPLACE


@pytest.mark.parametrize("state", sorted(LIVE_STATES - {"UNKNOWN"}))
def test_what_lives_is_kept_unless_replaced(state: str) -> None:
    assert _decide(state, SubmitRules(retry=True, replace_done=True)).action is Action.KEEP
    assert _decide(state, SubmitRules(replace=True)).action is Action.REPLACE


@given(
    st.builds(
        SubmitRules, retry=st.booleans(), update=st.booleans(), replace=st.booleans(), replace_done=st.booleans()
    ),
    st.sampled_from(["UNKNOWN", "SPECIAL_EXIT", "A_WORD_OF_NEXT_YEAR"]),
    st.booleans(),
    st.sampled_from([{}, LATEST]),
)
def test_what_may_be_running_is_never_submitted(
    rules: SubmitRules, state: str, force: bool, previous: Mapping[str, Any]
) -> None:
    decision = _decide(state, rules, previous, force=force)
    assert decision.action is Action.KEEP and not decision.action.submits
    assert "may be running" in decision.reason


@pytest.mark.parametrize("state", sorted(FAILURE_STATES))
def test_what_failed_is_left_alone_without_retry(state: str) -> None:
    decision = _decide(state, SubmitRules(replace=True, replace_done=True, update=True), reason="lightning")
    assert decision == Decision(Action.KEEP, f"{state}: lightning")


@pytest.mark.parametrize("state", [*UNBLOCKED, "CANCELLED by 1000", "CANCELLED+"])
def test_retry_covers_every_way_to_fail(state: str) -> None:
    decision = _decide(state, RETRY, reason="lightning")
    assert decision.action is Action.RETRY and "lightning" in decision.reason and decision.mem_factor == 1.0


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("DIVERGED", {}),
        ("FAILED", {"kind": "diverged"}),
        ("FAILED", {"kind": "config"}),
        ("FAILED", {"kind": "data"}),
        ("FAILED", {"verdict": {"state": "FAILED", "kind": "config"}}),
        ("FAILED", {"verdict": "DIVERGED"}),
    ],
)
def test_what_would_fail_again_is_blocked_unless_forced(state: str, told: dict[str, Any]) -> None:
    decision = _decide(state, RETRY, {**LATEST, **told}, reason="losses.mmd is nan in epoch 3")
    assert decision.action is Action.BLOCKED and not decision.action.submits
    assert "losses.mmd is nan in epoch 3" in decision.reason and FORCE in decision.reason
    assert FORCE == "AUDIOTOK_RETRY=force dora grid GRID --retry"
    assert _decide(state, RETRY, {**LATEST, **told}, force=True).action is Action.RETRY


@pytest.mark.parametrize("told", [{"kind": "config"}, {"kind": "data"}, {"kind": "diverged"}, _OOM])
def test_a_configuration_that_changed_unblocks_what_is_frozen_anew(told: dict[str, Any]) -> None:
    previous, state = {**LATEST, **told}, "OUT_OF_MEMORY" if told is _OOM else "FAILED"
    anew, kept = Change(["rate: 1 → 2"]), Change(["rate: 1 → 2"], "it has trained")
    verdict, profile = Verdict(State.of(state), "why"), Profile(mem_gb=40.0)
    decision = decide(verdict, RETRY, previous, profile, change=anew)
    assert decision.action is Action.RETRY and decision.change is anew
    assert decision.reason.endswith("why; configuration changed since: rate: 1 → 2; freezes anew")
    decision = decide(verdict, RETRY, previous, profile, change=kept)
    assert decision.action is Action.BLOCKED and decision.reason.endswith("rate: 1 → 2; it has trained")
    decision = decide(verdict, NO_RULES, previous, profile, change=anew)
    assert decision.action is Action.KEEP and "rate: 1 → 2" in decision.reason


@pytest.mark.parametrize(("frozen", "action"), [(5.0, Action.BLOCKED), (None, Action.BLOCKED), (15.0, Action.RETRY)])
def test_what_was_frozen_anew_and_then_found_no_room_stays_unblocked(
    tmp_path: Path, frozen: float | None, action: Action
) -> None:
    (tmp_path / JOB_FILE).write_text(json.dumps({**LATEST, "submitted": 10.0, "verdict": {"kind": "config"}}))
    if frozen is not None:
        (tmp_path / "frozen.json").write_text(json.dumps({"written": frozen}))
    previous = previous_job(tmp_path, failed=True)
    assert _decide("FAILED", RETRY, previous).action is action
    assert _decide("OUT_OF_MEMORY", RETRY, {**previous, **_OOM}).action is action
    assert _decide("FAILED", NO_RULES, previous).action is Action.KEEP


@pytest.mark.parametrize("state", ["COMPLETED", "RUNNING", "PENDING", "UNKNOWN"])
def test_a_configuration_that_changed_leaves_what_lives_or_is_done(state: str) -> None:
    verdict = Verdict(State.of(state), "")
    assert decide(verdict, RETRY, LATEST, Profile(), change=Change(["rate: 1 → 2"])) == _decide(state, RETRY)


def test_data_that_the_profile_finds_elsewhere_unblocks() -> None:
    previous = {**LATEST, "kind": "data", "profile": Profile(mem_gb=40.0).as_json()}
    assert _decide("FAILED", RETRY, previous, Profile(mem_gb=50.0)).action is Action.BLOCKED
    now = Profile(mem_gb=40.0, dataset_paths={"/a": "/b"})
    assert _decide("FAILED", RETRY, previous, now).action is Action.RETRY
    assert _decide("FAILED", RETRY, {**previous, "kind": "config"}, now).action is Action.BLOCKED


@pytest.mark.parametrize("kind", ["", "error", "interrupted", None, 3, ["config"]])
def test_other_kinds_of_failure_are_retried(kind: Any) -> None:
    previous = {**LATEST, "kind": kind, "verdict": {"state": "FAILED", "reason": "exit code 1", "time": 1.0}}
    assert _decide("FAILED", RETRY, previous).action is Action.RETRY


def test_a_run_by_hand_does_not_count_as_a_submission() -> None:
    assert _decide("INTERRUPTED", NO_RULES, {}).action is Action.NEW
    assert _decide("RUNNING", SubmitRules(replace=True), {}).action is Action.KEEP  # nothing here could cancel it
    assert _decide("COMPLETED", NO_RULES, {}).action is Action.REUSE


def test_more_memory_once() -> None:
    profile = Profile(mem_gb=40.0, max_mem_gb=100.0, oom_mem_factor=1.5)
    first = _decide("OUT_OF_MEMORY", RETRY, _ran_out(profile), profile)
    assert first.action is Action.RETRY and first.mem_factor == pytest.approx(1.5)
    assert "40 GB" in first.reason and "60 GB" in first.reason
    second = _decide("OUT_OF_MEMORY", RETRY, _ran_out(profile, first.mem_factor), profile)
    assert second.action is Action.BLOCKED and "60 GB" in second.reason
    forced = _decide("OUT_OF_MEMORY", RETRY, _ran_out(profile, first.mem_factor), profile, force=True)
    assert forced.action is Action.RETRY and forced.mem_factor == pytest.approx(1.5)


def test_more_memory_up_to_what_the_profile_allows() -> None:
    near = Profile(mem_gb=40.0, max_mem_gb=50.0, oom_mem_factor=1.5)
    assert _decide("OUT_OF_MEMORY", RETRY, _ran_out(near), near).mem_factor == pytest.approx(50 / 40)
    for full in (Profile(mem_gb=40.0, max_mem_gb=40.0), Profile(mem_gb=40.0, max_mem_gb=None)):
        decision = _decide("OUT_OF_MEMORY", RETRY, _ran_out(full), full)
        assert decision.action is Action.BLOCKED and "max_mem_gb" in decision.reason and FORCE in decision.reason


def test_no_memory_asked_for_cannot_grow() -> None:
    profile = Profile(mem_gb=0.0, mem_per_gpu=0.0)
    assert profile.total_mem_gb is None
    decision = _decide("OUT_OF_MEMORY", RETRY, _ran_out(profile), profile)
    assert decision.action is Action.BLOCKED and "mem_per_gpu" in decision.reason


def test_a_profile_with_more_memory_unblocks() -> None:
    then, now = Profile(mem_gb=40.0), Profile(mem_gb=90.0)
    for factor in (1.0, 1.5):
        decision = _decide("OUT_OF_MEMORY", RETRY, _ran_out(then, factor), now)
        assert decision.action is Action.RETRY and decision.mem_factor == 1.0 and "90 GB" in decision.reason


def test_grown_memory_is_kept_in_later_retries() -> None:
    profile = Profile(gpus=2, mem_per_gpu=20.0, max_mem_gb=100.0)
    assert profile.total_mem_gb == 40.0
    assert _decide("PREEMPTED", RETRY, _ran_out(profile, 1.5), profile).mem_factor == pytest.approx(1.5)
    bigger = Profile(gpus=2, mem_per_gpu=25.0, max_mem_gb=100.0)
    assert _decide("PREEMPTED", RETRY, _ran_out(profile, 1.5), bigger).mem_factor == pytest.approx(60 / 50)
    assert _decide("PREEMPTED", RETRY, _ran_out(profile, 1.0), bigger).mem_factor == 1.0


def test_update_replaces_what_was_submitted_with_other_parameters() -> None:
    then, now = Profile(time=60), Profile(time=90, array_parallelism=2, output_dir="elsewhere")
    previous = {**LATEST, "profile": then.as_json()}
    assert _changed_fields(previous, now).keys() == {"time", "array_parallelism", "output_dir"}
    for state in ("PENDING", "RUNNING"):
        decision = _decide(state, SubmitRules(update=True), previous, now)
        assert decision.action is Action.REPLACE and "time 60 → 90" in decision.reason
        assert _decide(state, SubmitRules(update=True), previous, then).action is Action.KEEP
        assert _decide(state, NO_RULES, previous, now).action is Action.KEEP
    only_site = Profile(time=60, array_parallelism=2, output_dir="elsewhere", code="live")
    assert _decide("RUNNING", SubmitRules(update=True), previous, only_site).action is Action.KEEP


@pytest.mark.parametrize("damage", [{"profile": 3}, {"profile": {"gpus": -1, "time": "x"}}, {"mem_factor": "x"}])
def test_a_damaged_job_file_is_borne(damage: dict[str, Any]) -> None:
    assert _decide("FAILED", RETRY, {**LATEST, **damage}).action is Action.RETRY
    assert _decide("OUT_OF_MEMORY", RETRY, {**LATEST, **damage}).action is Action.BLOCKED


def test_the_kind_of_failure_is_that_of_the_latest_job(tmp_path: Path) -> None:
    assert previous_job(tmp_path) == {}
    (tmp_path / STATUS_FILE).write_text(json.dumps({"job_id": "7_0", "state": "FAILED", "kind": "config"}))
    assert previous_job(tmp_path) == {}  # a run that nobody submitted
    (tmp_path / JOB_FILE).write_text(json.dumps({"job_id": "7_0"}))
    assert previous_job(tmp_path) == {"job_id": "7_0", "kind": "config"}
    (tmp_path / JOB_FILE).write_text(json.dumps({"job_id": "8_0"}))  # died before it could say anything
    assert previous_job(tmp_path) == {"job_id": "8_0"}
