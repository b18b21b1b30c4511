"""The script that sbatch gets, held against golden ones, and how it is submitted; SLURM's commands are fakes."""

import subprocess as sp
import sys
from pathlib import Path
from typing import Any

import pytest

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import sbatch
from audiotok.launchers.slurm.sbatch import SbatchExecutor, _make_parameters, make_script, max_array_size, show_config
from tests.fakes.tiny import FAKES, REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden"
FOLDER = Path("/outputs/submissions/grid_80c2febe_1")
COMMAND = ("-u", "-m", "launchers.job.task", str(FOLDER))  # any words; the golden files hold these
SITE = {
    "gpus": 4,
    "gpu_type": "h100",
    "cpus_per_gpu": 12,
    "mem_gb": 400,
    "time": 2880,
    "signal_s": 300,
    "partition": "gpu,gpu-long",
    "account": "music@h100",
    "qos": "qos_gpu-t3",
    "constraint": "h100&nvlink",
    "exclude": "n[3-5],n9",
    "comment": "Ada's first #grid",
    "nice": 50,
    "sbatch": {"reservation": "course", "exclusive": True},
    "setup": ["module purge", "module load cuda/12.8  # and nothing else", 'export NAME="a  b"'],
    "srun_args": ["--mpi=none"],
    "python": "singularity exec --nv /images/codec.sif python3",
    "dataset_paths": {"/home/ada/it's music": "/scratch/ada/music"},
}
SCRIPTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "array_without_gpus": (
        {"gpus": 0, "cpus_per_task": 1, "mem_per_gpu": 0.1, "time": 5, "array_parallelism": 64},
        1000,
    ),
    "two_gpus": ({"gpus": 2, "partition": "fast", "mem_per_gpu": 0.1, "time": 5, "cpus_per_gpu": 1}, None),
    "two_nodes_of_eight_gpus": ({"gpus": 16, "mem_per_gpu": 60, "time": 4320}, None),
    "two_nodes_of_two_processes": ({"gpus": 0, "nodes": 2, "tasks_per_node": 2, "cpus_per_task": 1, "mem_gb": 3}, None),
    "everything_a_site_may_want": (SITE, 3),
}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the answers of fake SLURM commands; see tests/fakes/slurm_command.sh."""
    commands, answers = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    answers.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).symlink_to(FAKES / "slurm_command.sh")
    (answers / "sbatch").write_text("Submitted batch job 101\n")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(answers))
    monkeypatch.setenv("SLURM_CONF", str(answers / "slurm.conf"))
    return answers


def script(values: dict[str, Any], array: int | None = None, **options: Any) -> str:
    profile = Profile.from_mapping(values, cluster="site" if "account" in values else "")
    text = make_script(profile, "grid_80c2febe_1", FOLDER, COMMAND, array=array, **options)
    return text.replace(sys.executable, "PYTHON")


def directives(text: str) -> dict[str, str]:
    pairs = (line.removeprefix("#SBATCH --").partition("=") for line in text.splitlines() if line.startswith("#SBATCH"))
    return {key: value for key, _, value in pairs}


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden_script(name: str) -> None:
    values, array = SCRIPTS[name]
    assert script(values, array) == (GOLDEN / f"sbatch_{name}.sh").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script_as_it_is_meant(name: str, tmp_path: Path) -> None:
    """Run it with an srun that tells its arguments, one a line."""
    values, array = SCRIPTS[name]
    srun, path = tmp_path / "srun", tmp_path / "job.sh"
    srun.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "$AUDIOTOK_DATASET_PATHS"\n')
    srun.chmod(0o755)
    module = "module() { :; }\n"
    path.write_text(module + script(values, array))
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    process = sp.run(
        ["bash", "-eu", str(path)], env={**environ, "AUDIOTOK_DATASET_PATHS": ""}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    words = process.stdout.splitlines()
    log = f"{FOLDER}/{'%j' if array is None else '%A_%a'}_%t_log.out"
    assert words[:3] == ["--unbuffered", "--output", log]
    assert words[-5:-1] == list(COMMAND)
    expected = '{"/home/ada/it\'s music": "/scratch/ada/music"}' if name.startswith("everything") else ""
    assert words[-1] == expected


def test_an_option_that_is_made_here_cannot_be_given_twice() -> None:
    for values, array in SCRIPTS.values():
        for option in directives(script(values, array)).keys() - values.get("sbatch", {}).keys():
            with pytest.raises(ConfigError, match=r"slurm\.sbatch"):
                Profile.from_mapping({"sbatch": {option: 1}})


def test_what_every_job_asks_for() -> None:
    for values, array in SCRIPTS.values():
        text = script(values, array)
        found = directives(text)
        assert found["export"] == "ALL" and "requeue" in found and "wckey" not in found
        assert found["mem"].removesuffix("M").isdecimal()
        assert found["signal"] == f"USR2@{values.get('signal_s', 120)}"
        srun = next(line for line in text.splitlines() if line.startswith("srun "))
        assert f"--cpus-per-task={found['cpus-per-task']} --kill-on-bad-exit=1" in srun


def test_memory_after_running_out_of_it() -> None:
    values = {"gpus": 0, "mem_gb": 10, "max_mem_gb": 12}
    assert [directives(script(values, mem_factor=f))["mem"] for f in (1.0, 1.1, 2.0)] == ["10240M", "11264M", "12288M"]


def test_nothing_is_asked_for_by_accident() -> None:
    found = directives(script({"mem_per_gpu": 0, "constraint": "", "nodelist": [], "gpus": 0}))
    assert set(found) == {
        "comment", "cpus-per-task", "export", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue",
        "signal", "time",
    }  # fmt: skip
    assert directives(script({"nodelist": ["n1", "n[3-4]"], "time": 90.0})) | {
        "nodelist": "'n1,n[3-4]'",
        "time": "90",
    } == (directives(script({"nodelist": ["n1", "n[3-4]"], "time": 90.0})))


def test_a_profile_changed_behind_our_back_is_checked_again() -> None:
    profile = Profile()
    profile.setup.append("echo a\necho b")
    with pytest.raises(ConfigError, match="setup"):
        _make_parameters(profile, "name")


def test_submission_tells_the_id_and_keeps_the_script(answers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "submission"
    executor = SbatchExecutor(folder, Profile.from_mapping({"gpus": 0}), "grid_1")
    assert executor.submit(["-m", "audiotok.launchers.slurm.inside", "x"], array=4) == "101"
    expected = make_script(
        Profile.from_mapping({"gpus": 0}), "grid_1", folder, ["-m", "audiotok.launchers.slurm.inside", "x"], array=4
    )
    assert (answers / "script").read_text() == expected == (folder / "101_submission.sh").read_text()
    assert "#SBATCH --array=0-3%4\n" in expected
    assert executor.submit(["-m", "audiotok.launchers.slurm.inside", "x"]) == "101"
    assert "--array" not in (answers / "script").read_text()
    assert not list(folder.glob("*.pkl"))


def test_a_job_inherits_nothing_of_the_job_it_was_submitted_from(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_GPU", "SBATCH_EXPORT"):
        monkeypatch.setenv(name, "7")
    executor = SbatchExecutor(tmp_path, Profile(), "grid_1")
    words = executor._make_submission_command(tmp_path / "job.sh")
    code = "import os; print(sorted(k for k in os.environ if k[:6] in ('SLURM_', 'SBATCH')))"
    told = sp.run([*words[:-2], sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "['SLURM_CONF']\n"
    assert words[-2:] == ["sbatch", str(tmp_path / "job.sh")]
    assert executor.submit(["x"]) == "101"


def test_a_refusal_says_where_to_correct_it(answers: Path, tmp_path: Path) -> None:
    executor = SbatchExecutor(tmp_path, Profile(cluster="mine"), "grid_1")
    (answers / "sbatch.fails").write_text("sbatch: error: invalid partition\n")
    with pytest.raises(LaunchError, match=r"SLURM refused the job: .*invalid partition.*config/cluster/mine.yaml"):
        executor.submit(["x"])
    (answers / "sbatch.fails").unlink()
    (answers / "sbatch").write_text("something else\n")
    with pytest.raises(LaunchError, match="holds no id"):
        executor.submit(["x"])


def test_a_full_disk_after_sbatch_does_not_lose_the_job(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submitit.core.utils.JobPaths.move_temporary_file", full)
    executor = SbatchExecutor(tmp_path, Profile(), "grid_1")
    assert executor.submit(["x"]) == "101"
    monkeypatch.setattr(SbatchExecutor, "_make_submission_file_text", full)
    with pytest.raises(OSError, match="No space left"):
        executor.submit(["x"])


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="AUDIOTOK_LAUNCHER=local"):
        SbatchExecutor(tmp_path, Profile(), "grid_1")


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ("MaxArraySize            = 5001\nSchedulerParameters     = (null)\n", 5001),
        ("MaxArraySize            = 5001\nSchedulerParameters     = bf_max=3,max_array_tasks=400,x\n", 400),
        ("MaxArraySize            = 0\n", 1),
        ("ClusterName             = site\n", sbatch.MAX_ARRAY_SIZE),
    ],
)
def test_array_size(answers: Path, told: str, size: int) -> None:
    (answers / "scontrol").write_text(f"Configuration data as of 2026-01-01\n{told}")
    assert max_array_size(Profile()) == size
    assert max_array_size(Profile(max_array_size=17)) == 17
    assert max_array_size(Profile()) == size
    assert (answers / "calls").read_text().count("scontrol show config") == 1


def test_a_slurm_that_does_not_answer_has_slurms_default(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (answers / "scontrol.fails").write_text("Unable to contact slurm controller\n")
    assert show_config() == {} and max_array_size(Profile()) == sbatch.MAX_ARRAY_SIZE
    monkeypatch.setenv("PATH", "/nowhere")
    assert show_config() == {}
