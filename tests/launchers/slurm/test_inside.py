"""A task of a SLURM job, where `scontrol` is a fake; the real one is in tests/cluster."""

import json
import os
import shutil
import signal
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiotok.launchers.child import Outcome
from audiotok.launchers.slurm.inside import (
    REFUSED,
    REQUEUE_CODE,
    JobEnvironment,
    TaskFile,
    _address_of,
    _first_node,
    _stopped_by,
)
from audiotok.launchers.slurm.submissions import WITHDRAWN, claim
from tests.fakes.tiny import REPOSITORY

SCONTROL = """#!/bin/sh
echo "$*" >> "$FAKE/calls"
case "$1 $2" in
  "show hostnames") echo n1; echo n2 ;;
  "show node") echo "NodeName=$4 NodeAddr=127.0.0.7 Port=1" ;;
  "show job") cat "$FAKE/job" ;;
  requeue*|ping*) [ ! -e "$FAKE/down" ] || { echo 'Unable to contact slurm controller' >&2; exit 1; } ;;
esac
"""
STOPS = "trap 'sleep 0.2; touch checkpoint; exit 143' TERM; touch ready$RANK; while :; do sleep 0.05; done"
PREEMPTED = "JobState=COMPLETING Reason=None Restarts=0 PreemptTime=2026-11-22T10:00:00"
RUNNING = "JobId=7 JobState=RUNNING Reason=None Restarts=0 PreemptTime=None"


class Job:
    """A submission of one task, and the folder of its experiment."""

    def __init__(
        self, folder: Path, command: Sequence[str], after: str | None = None, needs: Sequence[str] = (), **profile: Any
    ) -> None:
        self.root, self.token, self.folder = folder, folder / "pkg_1", folder / "xp"
        for path in (self.token, self.folder, folder / "bin"):
            path.mkdir()
        line = {"sig": "abcd", "folder": str(self.folder), "command": list(command), "cwd": str(self.folder)}
        line |= {} if after is None else {"after": after}
        text = json.dumps({**line, "needs": dict.fromkeys(needs, "4")} if needs else line)
        (self.token / "tasks.jsonl").write_text(f'{{"not": "this one"}}\n{text}\n')
        profile = {"signal_s": 20, "max_num_timeout": 1, **profile}
        (self.token / "submission.json").write_text(json.dumps({"profile": profile}))
        (self.folder / "job.json").write_text(json.dumps({"job_id": "5_1"}))
        (folder / "job").write_text(RUNNING)
        (folder / "bin" / "scontrol").write_text(SCONTROL)
        (folder / "bin" / "scontrol").chmod(0o755)

    def start(
        self, rank: int = 0, world: int = 1, module: str = "audiotok.launchers.slurm.inside", **environ: str
    ) -> "sp.Popen[bytes]":
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "AUDIOTOK"))}
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_ARRAY_JOB_ID": "5",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": str(world),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "FAKE": str(self.root),
        }
        with (self.root / f"log{rank}").open("ab") as log:
            command = [sys.executable, "-u", "-m", module, str(self.token)]
            return sp.Popen(command, cwd=REPOSITORY, env={**clean, **slurm, **environ}, stdout=log, stderr=log)

    def run(self) -> int:
        return self.start().wait(30)

    def stop(self, process: "sp.Popen[bytes]", number: signal.Signals, rank: int = 0) -> None:
        until((self.folder / f"ready{rank}").exists)
        process.send_signal(number)

    @property
    def marker(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "task.json").read_text()))
        except FileNotFoundError:
            return {}

    @property
    def calls(self) -> list[str]:
        calls = self.root / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def told(self, *names: str) -> tuple[Any, ...]:
        return tuple(self.marker.get(name) for name in names)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_task_runs_its_line_and_says_so(tmp_path: Path) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    names += ["AUDIOTOK_JOB_ID", "AUDIOTOK_JOB_TOKEN", "AUDIOTOK_FROZEN"]
    code = f"import os, json; print(json.dumps([os.environ[name] for name in {names}]), os.getcwd())"
    job = Job(tmp_path, [sys.executable, "-c", code])
    for name in ("frozen.json", "rendezvous.txt"):
        (job.folder / name).touch()
    assert job.run() == 0
    frozen = str(job.folder / "frozen.json")
    expected = ["0", "1", "0", "127.0.0.1", "12007", "5_1", "pkg_1", frozen]
    assert (tmp_path / "log0").read_text() == f"{json.dumps(expected)} {job.folder}\n"
    assert job.told("state", "reason", "exit_code", "job_id", "token", "attempt") == (
        "COMPLETED", "", 0, "5_1", "pkg_1", 0,
    )  # fmt: skip
    marker = job.marker
    assert marker["started"] <= marker["updated"] <= time.time() and marker["ended"] >= marker["started"]
    assert not (job.folder / "rendezvous.txt").exists()
    assert job.calls == []  # SLURM is asked for nothing that one task needs not


def test_the_interpreter_of_the_submitter_is_replaced_by_that_of_the_job(tmp_path: Path) -> None:
    code = "import sys; print(sys.executable)"
    for number, (submitter, first, code_expected) in enumerate((
        ("/login/python", "/login/python", 0),
        (None, sys.executable, 0),  # submitted by an earlier version
        ("/login/python", "/login/other", 1),
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        job = Job(tmp_path / str(number), [first, "-c", code])
        lines = (job.token / "tasks.jsonl").read_text().splitlines()
        line = {**json.loads(lines[1]), **({"python": submitter} if submitter else {})}
        (job.token / "tasks.jsonl").write_text(f"{lines[0]}\n{json.dumps(line)}\n")
        assert job.run() == code_expected
        assert ((job.root / "log0").read_text() == f"{sys.executable}\n") == (code_expected == 0)


def test_a_job_without_scontrol_leaves_the_requeue_to_its_script(tmp_path: Path) -> None:
    (tmp_path / "container").mkdir()
    for name in ("sh", "sleep", "touch"):
        (tmp_path / "container" / name).symlink_to(str(shutil.which(name)))
    for number, (stop, state, timeouts) in enumerate(
        ((signal.SIGUSR2, "REQUEUED", 1), (signal.SIGTERM, "PREEMPTED", 0))
    ):
        (tmp_path / str(number)).mkdir()
        job = Job(tmp_path / str(number), ["sh", "-c", STOPS])
        process = job.start(PATH=str(tmp_path / "container"))
        job.stop(process, stop)
        assert process.wait(20) == REQUEUE_CODE
        assert (job.folder / "checkpoint").exists() and job.told("state", "timeouts") == (state, timeouts)


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("echo 'ValueError: wrong' >&2; exit 5", 5, "exit code 5: ValueError: wrong"),
        ("kill -9 $$", 137, "killed by SIGKILL (out of memory?)"),
    ],
)
def test_a_failure_has_a_reason_from_the_log(tmp_path: Path, script: str, code: int, reason: str) -> None:
    job = Job(tmp_path, ["sh", "-c", script])
    assert job.run() == code
    assert job.told("state", "reason") == ("FAILED", reason)


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("FAILED", REFUSED)])
def test_what_needs_another_experiment_begins_only_if_that_has_completed(tmp_path: Path, state: str, code: int) -> None:
    """SLURM takes a script that ends with 0 for a success, whatever became of the training."""
    job = Job(tmp_path, ["sh", "-c", "exit 0"], needs=["codec"])
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "task.json").write_text(json.dumps({"job_id": "4", "state": state, "reason": "no data"}))
    assert job.run() == code
    reason = "needs codec, which is FAILED: no data"
    assert job.told("state", "reason") == (("COMPLETED", "") if code == 0 else ("BLOCKED", reason))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    job = Job(tmp_path, ["/nowhere/python"])
    assert job.run() == 1
    assert job.marker["state"] == "FAILED" and "could not be started" in job.marker["reason"]


def test_a_submission_that_is_gone_is_told_in_the_log(tmp_path: Path) -> None:
    job = Job(tmp_path, ["true"])
    job.token.rename(tmp_path / "moved")
    assert job.run() == 2
    assert f"cannot read line 1 of {job.token / 'tasks.jsonl'}" in (tmp_path / "log0").read_text()


def refusal(job: Job) -> str:
    """What a job that must not start says; it touches nothing and fails."""
    (job.folder / "task.json").write_text('{"of": "another job"}')
    assert job.start().wait(30) == REFUSED
    said = (job.root / "log0").read_text()
    assert "trained" not in said and job.marker == {"of": "another job"}
    return said


def test_a_job_whose_experiment_was_submitted_again_does_not_start(tmp_path: Path) -> None:
    job = Job(tmp_path, ["echo", "trained"], after="pkg_0")
    (job.folder / "job.json").write_text(json.dumps({"job_id": "9", "token": "pkg_2"}))
    said = f"job 5_1 does not start {job.folder}: it was submitted again, as job 9.\n"
    assert refusal(job) == f"audiotok.launchers.slurm.inside: {said}"


@pytest.mark.parametrize("job_json", [None, {"job_id": "4", "token": "pkg_0"}, {"job_id": "5_1", "token": "pkg_1"}])
def test_a_job_that_is_not_recorded_yet_starts(tmp_path: Path, job_json: dict[str, str] | None) -> None:
    job = Job(tmp_path, ["echo", "trained"], after="pkg_0")
    (job.folder / "job.json").unlink()
    if job_json is not None:
        (job.folder / "job.json").write_text(json.dumps(job_json))
    assert job.start(SLURM_CLUSTER_NAME="jupiter").wait(30) == 0
    assert str((job.token / "claim").readlink()) == "5;jupiter"  # so that the next command finds it
    assert job.start(SLURM_RESTART_COUNT="1").wait(30) == 0  # queued again it is the same job


def test_a_job_that_was_withdrawn_does_not_start(tmp_path: Path) -> None:
    job = Job(tmp_path, ["echo", "trained"])
    claim(job.token, WITHDRAWN)
    assert "its submission was withdrawn, as SLURM did not list this job" in refusal(job)


@pytest.mark.parametrize("known_by", ["claim", "record"])
def test_of_two_jobs_of_one_submission_one_starts(tmp_path: Path, known_by: str) -> None:
    """SLURM has both if sbatch sent it again after an answer that was lost."""
    job = Job(tmp_path, ["echo", "trained"])
    if known_by == "claim":
        claim(job.token, "6;jupiter")
    else:
        (job.token / "submission.json").write_text('{"job_id": "6"}')
    assert "SLURM has taken its submission twice, also as job 6" in refusal(job)


def test_a_folder_that_cannot_be_written_costs_the_markers_only(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", "echo trained"])
    (job.folder / "task.json").mkdir()  # as full or read-only, but for root too
    (job.folder / "task.json" / "x").touch()
    assert job.run() == 0
    said = (tmp_path / "log0").read_text()
    assert "trained" in said and said.count("cannot write") == 1


def test_at_the_time_limit_it_is_queued_again_so_many_times(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS], max_num_timeout=1)
    first = job.start()
    job.stop(first, signal.SIGUSR2)
    until(lambda: "requeue 5_1" in job.calls)
    assert (job.folder / "checkpoint").exists()  # asked for only when the child had ended
    assert job.told("state", "timeouts", "attempt") == ("REQUEUED", 1, 0)
    assert job.marker["reason"] == "reached its time limit (1 of 1); queued again to go on"
    assert first.poll() is None  # it waits for SLURM to end it: an early exit could end the job
    first.terminate()
    assert first.wait(20) == 143
    (job.folder / "ready0").unlink()
    again = job.start(SLURM_RESTART_COUNT="1")
    until(lambda: job.told("state", "timeouts", "attempt") == ("RUNNING", 1, 1))
    job.stop(again, signal.SIGUSR2)
    assert again.wait(20) == 143
    assert job.told("state", "reason") == ("TIMEOUT", "reached its time limit, after 1 times more time")
    assert job.calls.count("requeue 5_1") == 1


def test_the_requeue_outlasts_a_controller_that_is_away(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    (tmp_path / "down").touch()
    process = job.start()
    job.stop(process, signal.SIGUSR2)
    until(lambda: "ping" in job.calls)
    assert job.marker["state"] == "REQUEUED" and process.poll() is None
    (tmp_path / "down").unlink()
    until(lambda: job.calls[-1] == "requeue 5_1")
    process.terminate()
    assert process.wait(20) == 143
    assert job.marker["state"] == "REQUEUED"


@pytest.mark.parametrize(
    ("shown", "cancelled", "state"),
    [
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=None", False, "CANCELLED"),
        (PREEMPTED, False, "PREEMPTED"),
        ("JobState=COMPLETING Reason=None Restarts=1", False, "PREEMPTED"),
        ("", False, "PREEMPTED"),  # SLURM does not answer
        ("", True, "CANCELLED"),
    ],
)
def test_who_sent_sigterm(tmp_path: Path, shown: str, cancelled: bool, state: str) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    (tmp_path / "job").write_text(shown)
    if cancelled:
        (job.folder / "job.json").write_text(json.dumps({"job_id": "5_1", "cancelled": 1.0}))
    process = job.start()
    job.stop(process, signal.SIGTERM)
    assert process.wait(20) == 143
    assert job.marker["state"] == state and (job.folder / "checkpoint").exists()
    assert "requeue 5_1" not in job.calls


def test_a_job_that_gets_time_to_leave_is_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    (tmp_path / "job").write_text(RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-22T10:00:00"))
    process = job.start()
    job.stop(process, signal.SIGTERM)
    until(lambda: "requeue 5_1" in job.calls)
    assert job.told("state", "timeouts") == ("REQUEUED", 0)
    process.terminate()
    assert process.wait(20) == 143


def test_a_job_that_is_cancelled_at_its_time_limit_stays_cancelled(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    (tmp_path / "job").write_text(RUNNING.replace("RUNNING", "COMPLETING"))
    process = job.start()
    job.stop(process, signal.SIGUSR2)
    assert process.wait(20) == 143
    assert "requeue 5_1" not in job.calls
    assert job.told("state", "reason") == ("CANCELLED", "cancelled when it had reached its time limit")


def test_a_rank_that_fails_is_heard_above_those_that_are_ended_for_it(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", f"if [ $RANK = 1 ]; then echo 'OSError: mine'; exit 3; fi; {STOPS}"])
    zero = job.start(rank=0, world=2)
    until((job.folder / "ready0").exists)
    assert job.start(rank=1, world=2).wait(20) == 3
    zero.terminate()  # as srun does
    assert zero.wait(20) == 143
    assert job.told("state", "reason", "exit_code") == ("FAILED", "rank 1: exit code 3: OSError: mine", 3)


def test_other_ranks_leave_after_rank_zero(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", STOPS])
    (tmp_path / "job").write_text(PREEMPTED)
    one = job.start(rank=1, world=2)
    job.stop(one, signal.SIGTERM, rank=1)
    zero = job.start(rank=0, world=2)
    until((job.folder / "checkpoint").exists)
    time.sleep(1.2)
    assert one.poll() is None  # its exit would make srun end rank 0 before its checkpoint
    job.stop(zero, signal.SIGTERM)
    assert zero.wait(20) == 143 and one.wait(20) == 143
    assert job.marker["state"] == "PREEMPTED"


def test_ranks_find_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, ["true"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    assert _first_node("n[1-2]") == "n1"
    assert _address_of("localhost") == "localhost"
    assert _address_of("n1.invalid") == "127.0.0.7"  # a name that only SLURM knows
    assert job.calls == ["show node -o n1.invalid"]
    names = {"n7": "n7", "n[01-04,9]-ib,m1": "n01-ib", "m[3,5-6]": "m3", "a1,b[1-2]": "a1", "r[2-3]n[04-08]": "r2n04"}
    assert {nodes: _first_node(nodes) for nodes in names} == names


def test_a_task_imports_neither_torch_nor_dora() -> None:
    heavy = "{'torch', 'dora', 'submitit', 'omegaconf'}"
    code = f"import sys, audiotok.launchers.slurm.inside; print({heavy} & set(sys.modules))"
    process = sp.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"


def test_a_task_that_was_submitted_by_an_earlier_version_still_runs(tmp_path: Path) -> None:
    job = Job(tmp_path, ["sh", "-c", "echo trained"])
    assert job.start(module="launchers.job.task").wait(30) == 0
    assert job.told("state", "job_id", "token") == ("COMPLETED", "5_1", "pkg_1")
    assert (tmp_path / "log0").read_text() == "trained\n"


def test_a_time_limit_in_the_words_of_slurm() -> None:
    assert _stopped_by("JobState=COMPLETING Reason=TimeLimit Restarts=0 PreemptTime=None", 0) == "TIMEOUT"
    assert _stopped_by("JobState=COMPLETING Reason=None Restarts=2 PreemptTime=None", 2) == "CANCELLED"


FIRST = JobEnvironment("31999", "31999", index=0, rank=0, world_size=4, local_rank=1, attempt=0, nodes="n[1-2]")


def test_timeouts_of_another_job_do_not_count(tmp_path: Path) -> None:
    for job_id, token, expected in (("31999", "token", 3), ("31998", "token", 0), ("31999", "another", 0)):
        (tmp_path / "task.json").write_text(json.dumps({"job_id": job_id, "token": token, "timeouts": 3}))
        assert TaskFile(tmp_path, replace(FIRST, rank=3), "token").timeouts == expected


def test_an_end_of_an_earlier_attempt_is_overwritten(tmp_path: Path) -> None:
    TaskFile(tmp_path, FIRST, "token").end(Outcome("PREEMPTED", "", 143))
    again = TaskFile(tmp_path, replace(FIRST, attempt=1), "token")
    again.beat()
    assert not again.has_ended()
    assert json.loads((tmp_path / "task.json").read_text())["state"] == "RUNNING"


def place(**values: str) -> JobEnvironment:
    environ: Mapping[str, str] = {
        "SLURM_JOB_ID": "31999",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NODELIST": "n[1-2]",
        **values,
    }
    return JobEnvironment.of(environ)


def test_place() -> None:
    assert place() == JobEnvironment("31999", "31999", 0, 3, 4, 1, 0, "n[1-2]")
    array = place(SLURM_ARRAY_JOB_ID="31990", SLURM_ARRAY_TASK_ID="9", SLURM_RESTART_COUNT="2")
    assert (array.job_id, array.index, array.attempt) == ("31990_9", 9, 2)
    ports = {place(SLURM_JOB_ID=str(number)).port for number in range(10**6, 10**6 + 500)}
    assert len(ports) == 500 and all(1024 < port < 32768 for port in ports)
    assert place().port != place(SLURM_RESTART_COUNT="1").port
