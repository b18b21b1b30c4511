"""What a task of SLURM writes about itself."""

import json
from dataclasses import replace
from pathlib import Path

from audiotok.launchers.job.marker import Marker
from audiotok.launchers.job.place import Place
from audiotok.launchers.job.verdict import Outcome

FIRST = Place("31999", "31999", index=0, rank=0, world_size=4, local_rank=1, attempt=0, nodes="n[1-2]")


def test_timeouts_of_another_job_do_not_count(tmp_path: Path) -> None:
    for job_id, expected in (("31999", 3), ("31998", 0)):
        (tmp_path / "task.json").write_text(json.dumps({"job_id": job_id, "timeouts": 3}))
        assert Marker(tmp_path, replace(FIRST, rank=3), "token").timeouts == expected


def test_an_end_of_an_earlier_attempt_is_overwritten(tmp_path: Path) -> None:
    Marker(tmp_path, FIRST, "token").end(Outcome("PREEMPTED", "", 143))
    again = Marker(tmp_path, replace(FIRST, attempt=1), "token")
    again.beat()
    assert not again.has_ended()
    assert json.loads((tmp_path / "task.json").read_text())["state"] == "RUNNING"
