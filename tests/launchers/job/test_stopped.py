"""Who stopped a task of SLURM; what follows from it is in test_task.py."""

from audiotok.launchers.job.stopped import stopped_by


def test_a_time_limit_in_the_words_of_slurm() -> None:
    assert stopped_by("JobState=COMPLETING Reason=TimeLimit Restarts=0 PreemptTime=None", 0) == "TIMEOUT"
    assert stopped_by("JobState=COMPLETING Reason=None Restarts=2 PreemptTime=None", 2) == "CANCELLED"
