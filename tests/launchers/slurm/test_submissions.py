"""What is written down before and after sbatch."""

import json
import sys
from pathlib import Path

import pytest

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Task, job_of
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.submissions import WITHDRAWN, SubmissionBook, _make_token, claim, is_superseded
from audiotok.status import read_json, write_json


def make_tasks(root: Path, count: int, *, mem_factor: float = 1.0) -> list[Task]:
    tasks = []
    for index in range(count):
        folder = root / "xps" / f"sig{index}"
        folder.mkdir(parents=True, exist_ok=True)
        command = ("python", "-m", "dora", "run", "--", f"index={index}", "name='a b'")
        tasks.append(Task(f"sig{index}", f"index={index}", folder, command, root, mem_factor))
    return tasks


def test_everything_stands_before_it_is_sent(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    submission = book.prepare("tiny.xp", make_tasks(tmp_path, 3, mem_factor=1.5), Profile(gpus=2))
    lines = [json.loads(line) for line in (submission.folder / "tasks.jsonl").read_text().splitlines()]
    assert [line["sig"] for line in lines] == ["sig0", "sig1", "sig2"]
    assert lines[1] == {
        "sig": "sig1",
        "name": "index=1",
        "folder": str(tmp_path / "xps" / "sig1"),
        "command": ["python", "-m", "dora", "run", "--", "index=1", "name='a b'"],
        "cwd": str(tmp_path),
        "python": sys.executable,
        "after": None,
        "needs": {},
    }
    content = read_json(submission.folder / "submission.json")
    assert content is not None
    assert {name: content[name] for name in ("token", "count", "job_id", "mem_factor")} == {
        "token": submission.folder.name,
        "count": 3,
        "job_id": None,
        "mem_factor": 1.5,
    }
    assert content["profile"]["gpus"] == 2 and "@" in content["user"]
    (found,) = SubmissionBook(tmp_path).open()
    assert found.token == submission.token and found.job_id is None
    assert job_of(tmp_path / "xps" / "sig0") is None


def test_an_answer_is_written_to_every_experiment(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    submission = book.prepare("tiny", make_tasks(tmp_path, 3), Profile())
    jobs = book.record(submission, "77")
    assert [job.job_id for job in jobs] == ["77_0", "77_1", "77_2"]
    job = job_of(tmp_path / "xps" / "sig2")
    assert job == jobs[2] and job is not None and job.engine == "slurm"
    assert job.content["token"] == submission.token and job.content["index"] == 2
    assert job.log == submission.folder / "77_2_0_log.out"
    assert (tmp_path / "by_id" / "77_2").resolve() == tmp_path / "xps" / "sig2"
    assert len((tmp_path / "xps" / "sig2" / "job.json").read_text()) < 2500  # whatever the size of the array
    (found,) = SubmissionBook(tmp_path).open()  # until their end is known
    assert found.recorded > 0
    book.settle(found)
    assert not SubmissionBook(tmp_path).open() and not book.has_open()
    assert read_json(submission.folder / "submission.json") is not None


def test_a_single_job_is_no_array(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    (job,) = book.record(book.prepare("tiny", make_tasks(tmp_path, 1), Profile()), "78")
    assert job.job_id == "78" and job.log.name == "78_0_log.out"


def test_recording_may_be_cut_short_and_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = SubmissionBook(tmp_path)
    submission = book.prepare("tiny", make_tasks(tmp_path, 3), Profile())
    written: list[Path] = []

    def fail_at_the_third(path: Path, content: dict[str, object], *, sync: bool = True) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write_json(path, content, sync=sync)

    monkeypatch.setattr("audiotok.launchers.slurm.submissions.write_json", fail_at_the_third)
    with pytest.raises(LaunchError, match=r"job 9 is submitted but cannot be written down .*No space left"):
        book.record(submission, "9")
    monkeypatch.undo()
    (found,) = SubmissionBook(tmp_path).open()
    assert found.job_id == "9" and not found.recorded
    first = tmp_path / "xps" / "sig0" / "job.json"
    write_json(first, {**(read_json(first) or {}), "cancelled": 5.0})  # meanwhile
    assert len(SubmissionBook(tmp_path).record(found, "9", adopted=True)) == 3
    assert (read_json(first) or {})["cancelled"] == 5.0


def test_an_adopted_job_does_not_take_the_place_of_a_later_one(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    tasks = make_tasks(tmp_path, 2)
    old = book.prepare("tiny", tasks, Profile())
    book.record(book.prepare("tiny", tasks[:1], Profile()), "20")
    assert [job.job_id for job in book.record(old, "10", adopted=True)] == ["10_1"]
    later = job_of(tasks[0].folder)
    assert later is not None and later.job_id == "20"


def test_a_submission_of_another_process_is_seen_to_change(tmp_path: Path) -> None:
    mine, theirs = SubmissionBook(tmp_path), SubmissionBook(tmp_path)
    submission = theirs.prepare("tiny", make_tasks(tmp_path, 2), Profile())
    assert [one.job_id for one in mine.open()] == [None]
    theirs.record(submission, "5")
    assert [one.job_id for one in mine.open()] == ["5"]
    theirs.abandon(submission, "for a test")
    assert not mine.open()


def test_a_submission_cut_short_before_it_was_whole_is_closed(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    submission = book.prepare("tiny", make_tasks(tmp_path, 2), Profile())
    (submission.folder / "tasks.jsonl").write_text('{"sig": "si')
    again = SubmissionBook(tmp_path)
    assert again.open() == [] and again.has_open()
    again.close_damaged()
    assert not again.has_open()


def test_the_folder_of_an_experiment_moves_with_the_outputs(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path / "here")
    book.record(book.prepare("tiny", make_tasks(tmp_path / "here", 1), Profile()), "3")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = SubmissionBook(tmp_path / "there")
    (submission,) = moved.open()
    assert moved.experiment(submission.tasks[0]) == tmp_path / "there" / "xps" / "sig0"
    assert (tmp_path / "there" / "by_id" / "3").resolve() == tmp_path / "there" / "xps" / "sig0"


def test_tokens_are_fit_for_slurm_and_never_the_same() -> None:
    tokens = {_make_token("my package/é", ["b", "a"]) for _ in range(50)}
    assert len(tokens) == 50
    assert all(token.isascii() and not set(token) & set(" /|,[]%") for token in tokens)
    assert len({token.rsplit("_", 1)[0] for token in tokens}) == 1  # same experiments, in any order
    assert _make_token("p", ["a", "b"]).rsplit("_", 1)[0] == _make_token("p", ["b", "a"]).rsplit("_", 1)[0]


def test_of_a_job_that_starts_and_a_command_that_withdraws_one_is_first(tmp_path: Path) -> None:
    for first, second in (("7;here", WITHDRAWN), (WITHDRAWN, "7;here")):
        submission = SubmissionBook(tmp_path).prepare("tiny", make_tasks(tmp_path, 1), Profile())
        assert submission.claimed == ""
        assert [claim(submission.folder, first), claim(submission.folder, second)] == [first, first]
        assert submission.claimed == first
    with pytest.raises(FileNotFoundError):
        claim(tmp_path / "nowhere", "8")


def test_the_first_job_to_start_is_recorded_where_slurm_took_a_submission_twice(tmp_path: Path) -> None:
    book = SubmissionBook(tmp_path)
    submission = book.prepare("tiny", make_tasks(tmp_path, 2), Profile())
    claim(submission.folder, "8;jupiter")
    jobs = book.record(submission, "9", "here")
    assert [(job.job_id, job.content["cluster"]) for job in jobs] == [("8_0", "jupiter"), ("8_1", "jupiter")]


def test_a_job_is_superseded_by_what_neither_it_nor_the_submission_knew(tmp_path: Path) -> None:
    book, tasks = SubmissionBook(tmp_path), make_tasks(tmp_path, 1)
    write_json(tasks[0].folder / "job.json", {"launcher": "local", "job_id": "L1"})
    (task,) = book.prepare("tiny", tasks, Profile()).tasks
    assert task["after"] == "L1"
    for job, superseded in (
        ({}, False),
        ({"job_id": "L1"}, False),
        ({"job_id": "7", "token": "mine"}, False),
        ({"job_id": "L2"}, True),
        ({"job_id": "7", "token": "theirs"}, True),
    ):
        assert is_superseded(task, "mine", job) == superseded
        assert not is_superseded({}, "mine", job)  # submitted by an earlier version
