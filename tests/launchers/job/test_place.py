"""Where in which job of SLURM a task is."""

from collections.abc import Mapping

from audiotok.launchers.job.place import Place


def place(**values: str) -> Place:
    environ: Mapping[str, str] = {
        "SLURM_JOB_ID": "31999",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NODELIST": "n[1-2]",
        **values,
    }
    return Place.of(environ)


def test_place() -> None:
    assert place() == Place("31999", "31999", 0, 3, 4, 1, 0, "n[1-2]")
    array = place(SLURM_ARRAY_JOB_ID="31990", SLURM_ARRAY_TASK_ID="9", SLURM_RESTART_COUNT="2")
    assert (array.job_id, array.index, array.attempt) == ("31990_9", 9, 2)
    ports = {place(SLURM_JOB_ID=str(number)).port for number in range(10**6, 10**6 + 500)}
    assert len(ports) == 500 and all(1024 < port < 32768 for port in ports)
    assert place().port != place(SLURM_RESTART_COUNT="1").port
