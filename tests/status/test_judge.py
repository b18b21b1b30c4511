"""The verdict on an experiment, from its files and its scheduler."""

import fcntl
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from audiotok.status import SchedulerWord, State, StatusWriter, Verdict, experiment_state, read_status, write_json
from audiotok.status.judge import judge


@pytest.mark.parametrize("content", [b"", b'{"state": "RUN', b"[1]", b"\xff\xfe", b"null"])
def test_damaged_files_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) is None
    assert experiment_state(tmp_path) is None
    assert read_status(tmp_path / "nowhere") is None


def test_a_run_without_a_launcher_goes_stale(tmp_path: Path) -> None:
    StatusWriter(tmp_path).start()
    assert experiment_state(tmp_path) == ("RUNNING", "")
    state = experiment_state(tmp_path, stale_s=-1.0)
    assert state is not None and state.state == "STALE"


def test_local_jobs_are_judged_by_their_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    job = {"launcher": "local", "job_id": "L4", "state": "RUNNING", "reason": "", "lock": str(lock)}
    write_json(tmp_path / "job.json", job)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert experiment_state(tmp_path) == ("RUNNING", "")
    assert experiment_state(tmp_path) == ("NODE_FAIL", "its process vanished")
    write_json(tmp_path / "job.json", {**job, "state": "FAILED", "reason": "exit code 1"})
    assert experiment_state(tmp_path) == ("FAILED", "exit code 1")
    write_json(tmp_path / "status.json", {"job_id": "L4", "state": "DIVERGED", "reason": "loss is nan"})
    assert experiment_state(tmp_path) == ("DIVERGED", "loss is nan")
    waits = {**job, "job_id": "L5", "state": "PENDING", "folder": str(tmp_path), "root": "/a/outputs/local"}
    write_json(tmp_path / "job.json", waits)
    assert experiment_state(tmp_path) == ("PENDING", "")
    write_json(tmp_path / "job.json", {**waits, "folder": "/a/outputs/xps/x", "user": "ada@here"})
    reason = "not queued here, --retry does it (but by ada@here in /a/outputs)"
    assert experiment_state(tmp_path) == ("NODE_FAIL", reason)
    write_json(tmp_path / "job.json", {**waits, "root": ""})
    reason = "not queued here, --retry does it (but by an earlier version)"
    assert experiment_state(tmp_path) == ("NODE_FAIL", reason)


def test_a_run_by_hand_after_the_last_job_counts(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"launcher": "local", "job_id": "L1", "state": "FAILED", "submitted": 100.0})
    write_json(tmp_path / "status.json", {"job_id": None, "state": "COMPLETED", "started": 50.0})
    state = experiment_state(tmp_path)
    assert state is not None and state.state == "FAILED"
    write_json(tmp_path / "status.json", {"job_id": None, "state": "COMPLETED", "started": 150.0})
    assert experiment_state(tmp_path) == ("COMPLETED", "")


NOW = 1_000_000.0
JOB: dict[str, Any] = {"launcher": "slurm", "job_id": "7_2", "submitted": NOW - 1000}
TASK: dict[str, Any] = {"job_id": "7_2", "attempt": 0, "started": NOW - 900, "updated": NOW - 10, "state": "RUNNING"}
STATUS: dict[str, Any] = {"job_id": "7_2", "started": NOW - 890, "updated": NOW - 20, "state": "RUNNING"}
SILENT = TASK | {"updated": NOW - 700}
TASK_FAILED = TASK | {"state": "FAILED", "reason": "exit code 1"}
DIVERGED = STATUS | {"state": "DIVERGED", "reason": "loss is nan"}
OVER = STATUS | {"state": "INTERRUPTED", "reason": "stopped by SIGTERM", "updated": NOW - 900.5, "started": NOW - 950}
NODE_FAIL = {"state": "NODE_FAIL", "reason": "vanished"}
Files = dict[str, Any] | None


@pytest.mark.parametrize(
    ("job", "task", "status", "expected"),
    [
        # What comes later.
        (JOB, None, None, ("PENDING", "")),
        (JOB, TASK | {"job_id": "6"}, STATUS | {"job_id": "6", "state": "FAILED"}, ("PENDING", "")),
        (JOB, TASK, STATUS | {"job_id": None}, ("RUNNING", "")),
        (JOB, TASK_FAILED, STATUS | {"job_id": None, "started": NOW - 5, "state": "COMPLETED"}, ("COMPLETED", "")),
        (JOB, TASK, STATUS | {"job_id": None, "started": NOW - 950, "state": "COMPLETED"}, ("RUNNING", "")),
        # What the parent process saw.
        (JOB, TASK, None, ("RUNNING", "")),
        (JOB, TASK, STATUS, ("RUNNING", "")),
        (JOB, TASK_FAILED, STATUS, ("FAILED", "exit code 1")),
        (JOB, TASK_FAILED, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB, TASK | {"state": "PREEMPTED", "reason": "by another"}, OVER, ("PREEMPTED", "by another")),
        (JOB, TASK | {"state": "REQUEUED", "reason": "time limit"}, OVER, ("REQUEUED", "time limit")),
        (JOB, TASK | {"state": "REQUEUED", "updated": NOW - 90_000}, OVER, ("REQUEUED", "")),
        (JOB, SILENT, STATUS, ("STALE", "no sign of life for 12 minutes")),
        (None, TASK | {"state": "COMPLETED"}, STATUS, ("COMPLETED", "")),
        # What an earlier attempt of the same job said.
        (JOB, TASK, OVER, ("RUNNING", "")),
        (JOB, SILENT, OVER, ("STALE", "no sign of life for 12 minutes")),
        (JOB, TASK_FAILED, DIVERGED | {"updated": NOW - 901}, ("FAILED", "exit code 1")),
        # What the trainer alone could tell before its parent vanished.
        (JOB, SILENT, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB, SILENT, STATUS | {"state": "COMPLETED"}, ("COMPLETED", "")),
        # What our commands and the scheduler said.
        (JOB | {"cancelled": NOW}, None, None, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK, STATUS, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK | {"state": "REQUEUED"}, STATUS, ("CANCELLED", "")),
        (JOB | {"cancelled": NOW}, TASK | {"state": "COMPLETED"}, STATUS, ("COMPLETED", "")),
        (JOB | {"verdict": NODE_FAIL}, TASK, STATUS, ("NODE_FAIL", "vanished")),
        (JOB | {"verdict": NODE_FAIL | {"time": NOW}}, TASK, STATUS, ("NODE_FAIL", "vanished")),
        (JOB | {"verdict": NODE_FAIL | {"time": NOW - 60}}, TASK, STATUS, ("RUNNING", "")),  # it was queued again
        (JOB | {"verdict": {"state": "FAILED", "reason": ""}}, TASK, DIVERGED, ("DIVERGED", "loss is nan")),
        (JOB | {"verdict": "damaged"}, TASK, STATUS, ("RUNNING", "")),
        # A local job has the same files.
        (JOB | {"launcher": "local", "cancelled": NOW}, TASK, STATUS, ("CANCELLED", "")),
        (JOB | {"launcher": "local"}, TASK, STATUS, ("RUNNING", "")),
        # A run by hand beats less often.
        (None, None, STATUS | {"job_id": None, "updated": NOW - 3000}, ("RUNNING", "")),
        (None, None, STATUS | {"job_id": None, "updated": NOW - 3900}, ("STALE", "no sign of life for 65 minutes")),
    ],
)
def test_the_verdict_of_the_files(
    job: Files, task: Files, status: Files, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    for name, content in (("job.json", job), ("task.json", task), ("status.json", status)):
        if content is not None:
            write_json(tmp_path / name, content)
    assert experiment_state(tmp_path) == expected


def test_a_cancelled_slurm_job_cannot_tell_so_itself(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"launcher": "slurm", "job_id": "7", "cancelled": 100.0})
    assert experiment_state(tmp_path) == ("CANCELLED", "")
    write_json(tmp_path / "status.json", {"job_id": "7", "state": "RUNNING", "updated": time.time()})
    assert experiment_state(tmp_path) == ("CANCELLED", "")
    write_json(tmp_path / "status.json", {"job_id": "7", "state": "COMPLETED"})
    assert experiment_state(tmp_path) == ("COMPLETED", "")


# The whole table in the docstring of `judge`: each combination of these cases must have the verdict of its first row.
COLUMNS = ("scheduler", "job", "task", "trainer", "verdict")
ENDS = ("COMPLETED", "FAILED", "OUT_OF_MEMORY", "CANCELLED", "TIMEOUT", "PREEMPTED")
WORDS: dict[str, SchedulerWord | None] = {
    "none": None,
    "no answer": SchedulerWord(State.UNKNOWN, "down"),
    "unknown job": SchedulerWord(State.MISSING),
    **{
        state: SchedulerWord(State(state), f"S {state}", live=True)
        for state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "UNKNOWN")
    },
    **{
        f"{state}!": SchedulerWord(State(state), f"S {state}")
        for state in (*ENDS, "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
    },
}
CANCELLED = {"cancelled": NOW - 5, "cancelled_by": "ada@login"}
RECORDED = {"verdict": {"state": "DEADLINE", "reason": "V", "time": NOW}}
JOBS: dict[str, Files] = {
    "none": None,
    "submitted": JOB,
    "cancelled": JOB | CANCELLED,
    "verdict": JOB | RECORDED,
    "undated verdict": JOB | {"verdict": {"state": "DEADLINE", "reason": "V"}},
    "verdict before a requeue": JOB | {"verdict": RECORDED["verdict"] | {"time": NOW - 89_000}},
    "cancelled, verdict": JOB | CANCELLED | RECORDED,
    **{
        f"record {state}": JOB | {"launcher": "local", "state": state, "reason": f"R {state}"}
        for state in ("PENDING", "RUNNING", *ENDS, "NODE_FAIL")
    },
}
BEGAN = {"started": NOW - 90_000, "updated": NOW - 700}
TASKS: dict[str, Files] = {
    "none": None,
    "other": TASK | {"job_id": "6", "state": "FAILED", "reason": "of job 6"},
    "RUNNING": TASK | {"reason": ""},
    "RUNNING, silent": TASK | BEGAN,
    "REQUEUED": TASK | {"state": "REQUEUED", "reason": "T REQUEUED"},
    "REQUEUED, silent": TASK | BEGAN | {"state": "REQUEUED", "reason": "T REQUEUED"},
    **{state: TASK | {"state": state, "reason": f"T {state}"} for state in ENDS},
}
STATUSES: dict[str, Files] = {
    "none": None,
    "other": STATUS | {"job_id": "6", "state": "FAILED", "reason": "of job 6"},
    "earlier": STATUS | {"started": NOW - 95_000, "updated": NOW - 91_000, "state": "DIVERGED", "reason": "earlier"},
    "by hand, before": STATUS | {"job_id": None, "started": NOW - 95_000, "state": "COMPLETED"},
    "by hand, RUNNING": STATUS | {"job_id": None, "started": NOW - 500},
    "by hand, COMPLETED": STATUS | {"job_id": None, "started": NOW - 500, "state": "COMPLETED"},
    "RUNNING": STATUS | {"updated": NOW - 700},
    "RUNNING, silent": STATUS | {"updated": NOW - 3700},
    **{s: STATUS | {"state": s, "reason": f"Y {s}"} for s in ("COMPLETED", "FAILED", "DIVERGED", "INTERRUPTED")},
}


class Case(NamedTuple):
    """What counts in a combination, by the words of the table, and the contents it came from."""

    symbols: dict[str, set[str]]
    word: SchedulerWord | None
    job: dict[str, Any]
    task: dict[str, Any]
    status: dict[str, Any]


def rows_of_the_table() -> list[dict[str, str]]:
    lines = [line.strip() for line in (judge.__doc__ or "").splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(rows[0]) == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[2:]]


def symbols(state: str) -> set[str]:
    properties = {name for name in ("settled", "failed") if getattr(State(state), name)}
    return {state, *properties}


def the_case(word: str, job: str, task: str, trainer: str) -> Case:
    """Find what counts of a combination."""
    status = STATUSES[trainer]
    has_job, has_task = job != "none", task != "none" and (job == "none" or task != "other")
    owner = "7_2" if has_job else (TASKS[task] or {})["job_id"] if has_task else None
    if status is not None and owner is not None and status["job_id"] != owner:
        if trainer in ("by hand, RUNNING", "by hand, COMPLETED"):
            word, job, task, has_job, has_task = "none", "none", "none", False, False
        else:
            status = None
    if has_task and trainer == "earlier":
        status = None
    scheduler, contents = WORDS[word], (JOBS[job] or {}, (TASKS[task] or {}) if has_task else {}, status or {})
    found: dict[str, set[str]] = {"scheduler": set(), "job": set(), "task": {"none"}, "trainer": set()}
    if word in ("no answer", "unknown job"):
        found["scheduler"] = {word}
    elif scheduler is not None:
        found["scheduler"] = {scheduler.state, "live" if scheduler.live else "ended"}
    if has_job:
        found["job"] = {"submitted", *({"cancelled", "verdict"} & set(job.split(", ")))}
        heard_since = any(content.get("updated", 0.0) > NOW - 89_000 for content in contents[1:])
        stands = job == "undated verdict" or (job == "verdict before a requeue" and not heard_since)
        found["job"] |= {"verdict"} if stands else set()
        found["job"] |= {"local record"} if job.startswith("record ") else set()
    if has_task:
        gone = word == "unknown job" and contents[1]["state"] in ("RUNNING", "REQUEUED")
        found["task"] = symbols(contents[1]["state"]) | ({"silent"} if gone or task.endswith(", silent") else set())
        found["task"] |= {"mute"} if task == "RUNNING, silent" else set()
    if status is not None:
        found["trainer"] = symbols(status["state"]) | ({"silent"} if trainer == "RUNNING, silent" else set())
    return Case(found, scheduler, *contents)


def applies(row: dict[str, str], case: Case) -> bool:
    cells = ((set(row[name].split(", ")), case.symbols[name]) for name in COLUMNS[:4] if row[name])
    return all(cell & found for cell, found in cells)


def expected(row: dict[str, str], case: Case) -> tuple[str, str | None]:
    """The state and the reason of a row; a reason None stands for our own words."""

    def of(content: dict[str, Any]) -> tuple[str, str]:
        return content["state"], content.get("reason", "")

    if row["verdict"] == "scheduler":
        assert case.word is not None
        state, reasons = case.word.state, [case.word.reason]
        if not case.word.live and state == "FAILED":
            reasons = [case.task.get("reason", ""), case.status.get("reason", ""), case.word.reason]
        elif not case.word.live and case.task.get("state") == state:
            reasons = [case.task["reason"], case.word.reason]
        found: tuple[str, str | None] = (state, next(reason for reason in reasons if reason))
    elif row["verdict"] == "job":
        found = of(case.job if row["job"] == "local record" else case.job["verdict"])
    elif row["verdict"] in ("task", "trainer"):
        found = of(case.task if row["verdict"] == "task" else case.status)
    elif row["job"] == "cancelled":
        found = ("CANCELLED", "cancelled by ada@login")
    else:
        found = (row["verdict"], None)
    return of(case.status) if found[0] == "FAILED" and case.status.get("state") == "DIVERGED" else found


def test_every_combination_follows_the_table() -> None:
    rows, used = rows_of_the_table(), Counter[int]()
    for names in itertools.product(WORDS, JOBS, TASKS, STATUSES):
        case = the_case(*names)
        word, job, task, status = names
        verdict = judge(JOBS[job], TASKS[task], STATUSES[status], WORDS[word], now=NOW)
        number = next((number for number, row in enumerate(rows) if applies(row, case)), None)
        if number is None:
            assert verdict is None, names
            continue
        used[number] += 1
        state, reason = expected(rows[number], case)
        assert verdict is not None and verdict.state == state, (names, rows[number], verdict)
        assert reason is None or verdict.reason == reason, (names, rows[number], verdict)
    assert used.keys() == set(range(len(rows)))


def test_a_warning_is_the_reason_of_what_runs_and_of_nothing_else() -> None:
    now = time.time()
    job, task = {"launcher": "slurm", "job_id": "7"}, {"job_id": "7", "state": "RUNNING", "updated": now}
    status = {"job_id": "7", "state": "RUNNING", "updated": now, "warning": "codebook 2 collapsed"}
    runs = SchedulerWord(State.RUNNING, live=True)
    assert judge(job, task, status, runs) == (State.RUNNING, "codebook 2 collapsed")
    assert judge(job, task, {**status, "job_id": "6"}, runs) == (State.RUNNING, "")  # of an earlier job
    assert judge(job, task, status, SchedulerWord(State.SUSPENDED, live=True)) == (State.SUSPENDED, "")
    note = judge(job, {**task, "updated": now - 4000}, status, runs)
    assert note is not None and note.reason.startswith("no sign of life")  # which matters more
    assert judge(job, {**task, "state": "COMPLETED"}, {**status, "state": "COMPLETED"}) == (State.COMPLETED, "")


def test_nothing_is_a_verdict_on_nothing() -> None:
    assert judge(None, None, None) is None
    assert judge({}, {}, {}, SchedulerWord(State.MISSING)) is None


def test_our_own_reasons() -> None:
    def gone(task: Files, status: Files) -> Verdict | None:
        return judge(JOB, task, status, SchedulerWord(State.MISSING), now=NOW)

    there = STATUS | {"host": "n2"}
    assert gone(TASK | {"host": "n1"}, there) == ("NODE_FAIL", "vanished while it ran on n1")
    assert gone(None, there) == ("NODE_FAIL", "vanished while it ran on n2")
    assert gone(TASK, None) == ("NODE_FAIL", "vanished while it ran")
    assert gone(TASK | {"state": "REQUEUED"}, None) == ("CANCELLED", "left the queue before it started again")
    assert gone(None, None) == ("CANCELLED", "left the queue before it started")
    silent = SchedulerWord(State.UNKNOWN, "SLURM does not answer")
    runs, over = SchedulerWord(State.RUNNING, live=True), SchedulerWord(State.COMPLETED)
    mute = "no sign of life for 12 minutes, though its job runs: look at its log and its node, or cancel it"
    assert judge(JOB, SILENT, None, runs, now=NOW) == ("RUNNING", mute)
    assert judge(JOB, SILENT, None, over, now=NOW) == ("FAILED", "ended without reporting its result; see the log")
    assert judge(JOB, None, None, SchedulerWord(State.COMPLETED, "its own"), now=NOW) == ("FAILED", "its own")
    assert judge(JOB, None, None, silent, now=NOW) == ("UNKNOWN", "SLURM does not answer")


def test_an_id_that_came_again_is_another_job() -> None:
    job, done = JOB | {"token": "b"}, {"state": "COMPLETED", "reason": ""}
    for token, state in (("a", "PENDING"), ("b", "COMPLETED"), (None, "COMPLETED")):  # None: of an earlier version
        for task, status in ((TASK | done | {"token": token}, None), (None, STATUS | done | {"token": token})):
            verdict = judge(job, task, status, now=NOW)
            assert verdict is not None and verdict.state == state
