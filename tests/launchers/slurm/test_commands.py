"""How the answers of SLURM's commands are read."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiotok.launchers.slurm.commands import (
    CHUNK,
    Entry,
    collapse_ids,
    expand_ids,
    local_cluster,
    query_accounting,
    query_queue,
    run,
)
from audiotok.launchers.slurm.sbatch import _UNREACHABLE
from tests.fakes.tiny import FAKES


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the answers of fake commands; see tests/fakes/slurm_command.sh."""
    for name in ("squeue", "sacct", "scontrol"):
        (tmp_path / name).symlink_to(FAKES / "slurm_command.sh")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "answers"
    folder.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def test_one_query_tells_all_jobs(answers: Path) -> None:
    lines = [
        "12_0|RUNNING|None|tiny_1|tiny_1 for the paper",
        "12_[1-3,7%4]|PENDING|Priority|tiny_1|tiny_1",
        "13|OUT_OF_MEMORY|OutOfMemory|other",
    ]
    (answers / "squeue").write_text("\n".join(lines))
    entries, failure = query_queue(["0", "1000"])
    assert failure == ""
    assert entries["12_0"] == Entry("RUNNING", "None", ("tiny_1", "tiny_1"))
    assert {entries[f"12_{index}"].state for index in (1, 2, 3, 7)} == {"PENDING"} and len(entries) == 6
    assert entries["13"].state == "OUT_OF_MEMORY" and not entries["13"].is_live
    (call,) = (answers / "calls").read_text().splitlines()
    assert "-u 0,1000" in call and "-t all" in call


def test_what_people_set_for_their_tables_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SACCT_FORMAT", "JobID")
    monkeypatch.setenv("SCANCEL_STATE", "PENDING")
    monkeypatch.setenv("SLURM_CLUSTERS", "jupiter")
    assert run(["sh", "-c", "echo $SQUEUE_FORMAT$SACCT_FORMAT$SCANCEL_STATE$SLURM_CLUSTERS"]) == ("\n", "")


def test_a_command_that_fails_tells_why(answers: Path) -> None:
    (answers / "squeue.fails").write_text("slurm_load_jobs error:\n Unable to contact slurm controller\n")
    assert query_queue(["0"]) == ({}, "slurm_load_jobs error: Unable to contact slurm controller")
    assert "no-such-command" in run(["no-such-command"])[1]
    assert run(["sh", "-c", "exit 3"])[1] == "sh exit code 3"


def test_accounting(answers: Path) -> None:
    lines = [
        "12_0|CANCELLED by 0|tiny_1|tiny_1 x",
        "12_[1-2%4]|CANCELLED by 4000111||",
        "13|TIMEOUT",
        "13.batch|FAILED",
    ]
    (answers / "sacct").write_text("\n".join(lines))
    entries = query_accounting(["12_0", "12_1", "13"])
    assert entries == {
        "12_0": Entry("CANCELLED", "by root", ("tiny_1", "tiny_1")),
        "12_1": Entry("CANCELLED", "by 4000111", ("", "")),
        "12_2": Entry("CANCELLED", "by 4000111", ("", "")),
        "13": Entry("TIMEOUT", "", ("", "")),
    }
    assert (answers / "calls").read_text().splitlines()[0].endswith("-j 12,13")
    (answers / "sacct.fails").write_text("Slurm accounting storage is disabled\n")
    assert query_accounting(["12_0"]) is None


def test_another_cluster_is_named_in_the_query(answers: Path) -> None:
    (answers / "squeue").write_text("CLUSTER: jupiter\n12|RUNNING|None|tiny_1|tiny_1\n")
    entries, failure = query_queue(["0"], "jupiter")
    assert list(entries) == ["12"] and not failure
    assert query_accounting(["12"], "jupiter") == {}
    assert all(" -M jupiter " in call for call in (answers / "calls").read_text().splitlines())


def test_the_name_of_this_cluster(answers: Path) -> None:
    (answers / "scontrol").write_text("ClusterName             = jupiter\n")
    assert local_cluster() == "jupiter"
    (answers / "scontrol.fails").touch()
    assert local_cluster() == ""


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PENDING", "Resources", ("PENDING", "")),
        ("PENDING", "Strange", ("PENDING", "Strange")),
        ("REQUEUE_HOLD", "x", ("PENDING", "held after it was queued again; `scontrol release ID` lets it start")),
        ("RUNNING", "None", ("RUNNING", "")),
        ("COMPLETING", "None", ("COMPLETING", "")),
        ("SUSPENDED", "None", ("SUSPENDED", "")),
        ("POWER_UP_NODE", "None", ("UNKNOWN", "state POWER_UP_NODE")),  # of a SLURM to come
    ],
)
def test_states_of_life(state: str, reason: str, expected: tuple[str, str]) -> None:
    assert Entry(state, reason).is_live
    assert Entry(state, reason).word == (*expected, True)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("JobHeldUser", "`scontrol release ID`"),
        ("JobHeldAdmin", "write to the support of the site"),
        ("launch failed requeued held", "`scontrol release ID`"),
        ("launch_failed_requeued_held", "`scontrol release ID`"),
        ("DependencyNeverSatisfied", "cancel it (-C), then --retry"),
        ("PartitionDown", "choose another one"),
        ("PartitionTimeLimit", "correct the profile"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "is down or reserved"),
        ("AssocGrpCPUMinutesLimit", "a limit of its account is reached"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS is reached"),
        ("QOSMaxGRESPerUser", "a limit of its QOS is reached"),
        ("QOSMaxWallDurationPerJobLimit", "never starts: more than one job may have here"),
        ("InvalidQOS", "never starts: its account or QOS may not be used"),
    ],
)
def test_a_reason_to_wait_comes_with_what_to_do(reason: str, advice: str) -> None:
    state, shown, live = Entry("PENDING", reason).word
    assert (state, live) == ("PENDING", True)
    assert shown.startswith(f"{reason}: ") and advice in shown


@given(
    st.dictionaries(st.integers(1, 9), st.sets(st.integers(0, 1100), min_size=1), max_size=4),
    st.sets(st.integers(10, 99)),
)
def test_ids_of_arrays_fold_and_unfold(arrays: dict[int, set[int]], singles: set[int]) -> None:
    ids = [f"{root}_{index}" for root, indices in arrays.items() for index in indices] + [str(one) for one in singles]
    folded = collapse_ids(ids)
    assert sorted(one for word in folded for one in expand_ids(word)) == sorted(ids)
    assert len(folded) <= len(singles) + sum(1 + len(indices) // CHUNK for indices in arrays.values())


def test_steps_are_no_jobs() -> None:
    assert expand_ids("12.batch") == [] and expand_ids("") == []
    assert expand_ids("12_[0-2%2]") == ["12_0", "12_1", "12_2"]


@pytest.mark.parametrize(
    ("said", "unreachable"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Batch job submission failed: Zero Bytes were transmitted or received", True),
        ("no answer within 180 s", True),
        ("Batch job submission failed: Invalid partition name specified", False),
        ("SLURM refused the job: Job violates accounting/QOS policy; correct the profile and try again.", False),
    ],
)
def test_a_controller_that_is_silent_is_told_from_one_that_refuses(said: str, unreachable: bool) -> None:
    assert bool(_UNREACHABLE.search(said)) == unreachable
