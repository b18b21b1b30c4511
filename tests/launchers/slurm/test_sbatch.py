"""The script that sbatch gets, held against golden ones, and how it is submitted; SLURM's commands are fakes."""

import os
import subprocess as sp
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.engine import NoAnswerError, NoRoomError
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import sbatch
from audiotok.launchers.slurm.sbatch import Sent, make_script, max_array_size, open_environment, send, show_config
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
    "a_site_with_its_own_words": (
        {"gpus": 4, "gpu_type": "a100", "gpu_option": "gpus-per-node", "mem_option": "mem-per-cpu", "mem_gb": 30,
         "cpus_per_gpu": 3, "setup": ["source /etc/profile.d/site.sh"]},
        None,
    ),
    "a_container": (
        {"gpus": 1, "container": {"image": "/images/codec.sif", "mounts": ["/data", "/here:/there:ro"]},
         "dataset_paths": {"/home/ada/music": "/scratch/ada/music"}},
        None,
    ),
    "a_container_of_pyxis": (
        {"gpus": 0, "cpu_option": "none", "mem_option": "none",
         "container": {"image": "nvcr.io#nvidia/pytorch:24.01-py3", "mounts": ["/data"]}},
        2,
    ),
}  # fmt: skip


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the answers of fake SLURM commands; see tests/fakes/slurm_command.sh."""
    commands, answers = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    answers.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).symlink_to(FAKES / "slurm_command.sh")
    (answers / "sbatch").write_text("101\n")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(answers))
    monkeypatch.setenv("SLURM_CONF", str(answers / "slurm.conf"))
    return answers


def script(values: dict[str, Any], array: int | None = None, **options: Any) -> str:
    profile = Profile.from_mapping(values, cluster="site" if "account" in values else "")
    text = make_script(profile, "grid_80c2febe_1", FOLDER, COMMAND, array=array, **options)
    return text.replace(sys.executable, "PYTHON").replace(str(Path.cwd()), "/project")


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
    path.write_text(script(values, array).replace("module ", ": ").replace("source ", ": "))
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    process = sp.run(
        ["bash", "-eu", str(path)], env={**environ, "AUDIOTOK_DATASET_PATHS": ""}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    words = process.stdout.splitlines()
    log = f"{FOLDER}/{'%j' if array is None else '%A_%a'}_%t_log.out"
    assert words[:3] == ["--unbuffered", "--output", log]
    assert words[-5:-1] == list(COMMAND)
    music = {"everything_a_site_may_want": "it's music", "a_container": "music"}.get(name)
    assert words[-1] == (f'{{"/home/ada/{music}": "/scratch/ada/music"}}' if music else "")


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
        memory = [found[name] for name in ("mem", "mem-per-cpu") if name in found]
        assert [one.removesuffix("M").isdecimal() for one in memory] == [True] * (values.get("mem_option") != "none")
        assert found["signal"] == f"USR2@{values.get('signal_s', 120)}"
        srun = next(line for line in text.splitlines() if line.startswith("srun "))
        cores = f"--cpus-per-task={found['cpus-per-task']} " if "cpus-per-task" in found else ""
        assert f"_log.out {cores}--kill-on-bad-exit=1" in srun


def test_what_needs_other_jobs_starts_after_all_of_them_or_never() -> None:
    found = directives(script({}, 2, after=["101_3", "104"]))
    assert (found["dependency"], found["kill-on-invalid-dep"]) == ("afterok:101_3:104", "yes")
    profile = {"sbatch": {"dependency": "singleton"}}
    assert directives(script(profile, after=["7"]))["dependency"] == "afterok:7,singleton"
    assert "dependency" not in directives(script({}))


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
        make_script(profile, "name", FOLDER, COMMAND)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"gpus": 2}, {"gres": "gpu:2", "mem": "40960M", "cpus-per-task": "3"}),
        ({"gpus": 2, "gpu_option": "gpus-per-node"}, {"gpus-per-node": "2"}),
        ({"gpus": 16, "gpu_option": "gpus", "gpu_type": "h100"}, {"gpus": "h100:16"}),
        ({"gpus": 2, "gpu_option": "none"}, {}),
        ({"gpus": 2, "mem_option": "mem-per-cpu"}, {"mem-per-cpu": "6827M"}),
        ({"gpus": 2, "mem_option": "mem-per-gpu"}, {"mem-per-gpu": "20480M"}),
        ({"gpus": 0, "mem_option": "mem-per-gpu"}, {"mem": "20480M"}),  # there is no GPU to count by
        ({"gpus": 2, "mem_option": "none"}, {}),
        ({"gpus": 2, "cpu_option": "none"}, {}),
    ],
)
def test_a_site_chooses_how_requests_are_written(values: dict[str, Any], options: dict[str, str]) -> None:
    text = script({"cpus_per_gpu": 3, "mem_per_gpu": 20, **values})
    ours = {"gres", "gpus", "gpus-per-node", "mem", "mem-per-cpu", "mem-per-gpu", "cpus-per-task"}
    found = {name: value for name, value in directives(text).items() if name in ours}
    assert options.items() <= found.items()
    kinds = (("gpu_option", "g"), ("mem_option", "m"), ("cpu_option", "c"))
    for key, letter in kinds:
        left_out = values.get(key) == "none" or (key == "gpu_option" and not values["gpus"])
        assert len([name for name in found if name[0] == letter]) == (0 if left_out else 1)
    assert ("--cpus-per-task=" in text.rpartition("srun")[2]) == ("cpus-per-task" in found)


SETUPS: list[tuple[list[str], str, dict[str, str]]] = [
    ([], "", {}),
    (["[ -f /x ] && source /x", "! true", "false || :", "if false; then", "false", "fi", "case x in", "y) :", "esac"],
     "", {}),
    (["source file", "echo $FROM_FILE"], "", {"file": "false\ngrep -q x /dev/null\nexport FROM_FILE=1\n"}),
    (["load() { false; true; }", "load x", "set -eu", "true"], "", {}),
    (["trap 'echo theirs' EXIT"], "", {}),
    (["echo one", "module load foo  # and bar"], "failed (exit code 127): module load foo  # and bar", {}),
    (["cd /nowhere"], "failed (exit code 1): cd /nowhere", {}),
    (["load() { return 3; }", "load x"], "failed (exit code 3): load x", {}),
    (["if true; then", "  false", "fi"], "failed (exit code 1):   false", {}),
    (["echo a | grep b"], "failed (exit code 1): echo a | grep b", {}),
    (["source /nowhere.sh"], "failed (exit code 1): source /nowhere.sh", {}),
    (["set -e", "source file"], "ended the script before the training (exit code 1): source file", {"file": "false"}),
    (["source file", "true"], "ended the script before the training (exit code 0): source file", {"file": "exit 0"}),
    (["true", "[ -d /nowhere ] || exit 0"],
     "ended the script before the training (exit code 0): [ -d /nowhere ] || exit 0", {}),
    (["exit 9"], "ended the script before the training (exit code 9): exit 9", {}),
]  # fmt: skip


@pytest.mark.parametrize(("setup", "problem", "files"), SETUPS, ids=lambda value: " ".join(value)[:30])
def test_a_setup_line_that_fails_fails_the_job(
    setup: list[str], problem: str, files: dict[str, str], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "srun").write_text("#!/bin/sh\necho training\nexit 7\n")
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "job.sh").write_text(script({"setup": setup}))
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = sp.run(["bash", tmp_path / "job.sh"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ([f"error: setup line {problem}"] if problem else []), run.stderr
    assert ("training" in run.stdout) == (not problem)
    if problem:
        assert run.returncode == (int(problem.partition("exit code ")[2].partition(")")[0]) or 1)
    else:
        assert run.returncode == 7


def test_a_container_sees_the_project_the_results_and_the_audio() -> None:
    text = script({"gpus": 0, "container": {"image": "a.sif"}, "dataset_paths": {"/a": "/b"}})
    words = "exec --bind /project --bind /outputs --bind /b --pwd /project a.sif python3 -u"
    assert f"$(command -v apptainer || command -v singularity || echo apptainer) {words}" in text
    for runtime in ("apptainer", "singularity"):
        text = script(
            {"gpus": 1, "container": {"image": "a.sif", "runtime": runtime}, "python": "/opt/bin/python -X dev"}
        )
        assert f" {runtime} exec --nv --bind /project" in text and " a.sif /opt/bin/python -X dev -u " in text
    for image, wanted in (("a.sqsh", None), ("docker://a", "pyxis"), ("nvcr.io#a", None)):
        text = script({"container": {"image": image, "runtime": wanted}})
        assert f"--container-image {image if '#' not in image else repr(image)} --container-mounts" in text
    assert "exec" in script({"container": {"image": "docker://a#b"}})


def test_the_script_queues_a_job_in_a_container_again(tmp_path: Path) -> None:
    commands = {"srun": "exit $CODE", "sleep": "", "scontrol": 'echo "$@" >>calls; echo "A JobState=$NOW B"'}
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script({"container": {"image": "a.sif", "runtime": "apptainer"}}))
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7"}
    for code, state, ids, calls in (
        (200, "RUNNING", array, ["show job -o 5_1", "requeue 5_1"]),
        (200, "RUNNING", {"SLURM_JOB_ID": "7"}, ["show job -o 7", "requeue 7"]),
        (200, "COMPLETING", {"SLURM_JOB_ID": "7"}, ["show job -o 7"]),  # cancelled meanwhile
        (143, "RUNNING", array, []),
        (0, "RUNNING", array, []),
    ):
        (tmp_path / "calls").write_text("")
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": str(code), "NOW": state, **ids}
        run = sp.run(["bash", "-eu", tmp_path / "job.sh"], env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (code, "")
        assert (tmp_path / "calls").read_text().splitlines() == calls


def test_submission_tells_the_id_and_keeps_the_script(answers: Path, tmp_path: Path) -> None:
    folder, profile = tmp_path / "new" / "submission", Profile.from_mapping({"gpus": 0})
    words = ["-m", "audiotok.launchers.slurm.inside", "x"]
    assert send(profile, "grid_1", folder, words, array=4) == Sent("101")
    expected = make_script(profile, "grid_1", folder, words, array=4)
    assert (answers / "script").read_text() == expected == (folder / "submission.sh").read_text()
    assert (folder / "submission.sh").stat().st_mode & 0o777 == 0o600  # its setup lines may hold a key
    assert "#SBATCH --array=0-3%4\n" in expected
    (answers / "sbatch").write_text("Dear users,\n42 nodes are down.\n102;other\n\nYour project has\n 7 hours left\n")
    assert send(profile, "grid_1", folder, words) == Sent("102", "other")
    assert "--array" not in (answers / "script").read_text()
    assert (answers / "calls").read_text().count("sbatch --parsable ") == 2


def test_a_job_inherits_nothing_of_the_job_it_was_submitted_from(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_GPU", "SBATCH_EXPORT", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "7")
    seen = answers / "environ"
    sbatch_command = Path(os.environ["PATH"].split(":")[0]) / "sbatch"
    sbatch_command.unlink()
    sbatch_command.write_text(f"#!/bin/sh\nenv | grep -E '^(SLURM_|SBATCH)' | sort >{seen}\necho 101\n")
    sbatch_command.chmod(0o755)
    assert send(Profile(partition="gpu"), "grid_1", tmp_path, ["x"]).job_id == "101"
    assert seen.read_text() == f"SLURM_CONF={answers / 'slurm.conf'}\n"
    assert send(Profile(), "grid_1", tmp_path, ["x"]).job_id == "101"
    assert "SBATCH_PARTITION=7" in seen.read_text()


def test_the_environment_fills_in_only_what_the_profile_leaves_open() -> None:
    never = (
        "ARRAY_INX ERROR EXPORT INPUT JOB_NAME NO_REQUEUE OPEN_MODE OUTPUT REQUEUE SIGNAL TIMELIMIT WAIT GRES GPUS "
        "GPUS_PER_NODE GPUS_PER_TASK CPUS_PER_GPU"
    )
    memory = "MEM_PER_NODE MEM_PER_CPU MEM_PER_GPU"
    sometimes: dict[str, dict[str, Any]] = {
        "ACCOUNT": {"account": "music"},
        "PARTITION": {"partition": "gpu"},
        "QOS": {"qos": "high"},
        "CONSTRAINT": {"constraint": "h100"},
        "RESERVATION": {"sbatch": {"reservation": "mine"}},
        "EXCLUSIVE": {"sbatch": {"exclusive": True}},
        "CLUSTERS": {"sbatch": {"clusters": "mine"}},
    }
    environ = {f"SBATCH_{name}": "7" for name in [*never.split(), *memory.split(), *sometimes]}
    environ |= {"SLURM_CLUSTERS": "7", "PATH": "7", "SLURM_CONF": "7", "SLURM_JOB_ID": "7"}
    everything = {f"SBATCH_{name}" for name in sometimes} | {"SLURM_CLUSTERS"}
    assert open_environment(Profile(), environ) == dict.fromkeys(sorted(everything), "7")
    for name, values in sometimes.items():
        left = everything - {f"SBATCH_{name}", f"SLURM_{name}"}
        assert set(open_environment(Profile.from_mapping(values), environ)) == left
    left_open = Profile.from_mapping({"mem_option": "none"})
    assert set(open_environment(left_open, environ)) == everything | {f"SBATCH_{name}" for name in memory.split()}
    left_open = Profile.from_mapping({"gpu_option": "none"})
    assert {"SBATCH_GRES", "SBATCH_GPUS_PER_TASK"} <= set(open_environment(left_open, environ))


LIMITS = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("message", "error", "advice"),
    [
        ("invalid partition specified: x", LaunchError, "correct .*config/cluster/mine.yaml and try again"),
        ("Requested time limit is invalid (missing or exceeds some limit)", LaunchError, "correct"),
        (f"QOSMaxWallDurationPerJobLimit sbatch: error: {LIMITS}", LaunchError, "correct"),
        (f"AssocMaxCpuPerJobLimit sbatch: error: {LIMITS}", LaunchError, "correct"),
        ("You must give an account", LaunchError, "correct"),  # a site's own words
        ("Access/permission denied", LaunchError, "see your administrator"),
        ("Batch job submission failed: I/O error writing script/environment to file", LaunchError, "administrator"),
        (f"QOSMaxSubmitJobPerUserLimit sbatch: error: {LIMITS}", NoRoomError, "no more jobs now"),
        (f"AssocGrpSubmitJobsLimit sbatch: error: {LIMITS}", NoRoomError, "no more jobs now"),
        (LIMITS, NoRoomError, "no more jobs now"),
        ("Batch job submission failed: Resource temporarily unavailable", NoRoomError, "no more jobs now"),
        ("Slurm job queue full, sleeping and retrying.", NoRoomError, "no more jobs now"),
        ("Unable to contact slurm controller (connect failure)", NoAnswerError, "may have the job"),
        ("Socket timed out on send/recv operation", NoAnswerError, "may have the job"),
    ],
)
def test_a_refusal_says_where_to_correct_it(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, error: type[LaunchError], advice: str
) -> None:
    monkeypatch.setattr(sbatch, "BACKOFF_S", ())
    (answers / "sbatch.fails").write_text(f"sbatch: error: {message}\n")
    with pytest.raises(error, match=advice) as caught:
        send(Profile(cluster="mine"), "grid_1", tmp_path, ["x"])
    assert type(caught.value) is error and message.split()[0] in str(caught.value)
    assert ("mine.yaml" in str(caught.value)) == advice.startswith("correct")


def test_a_busy_slurm_is_tried_again(answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (answers / "sbatch.fails").write_text("Resource temporarily unavailable\n")
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (answers / "sbatch.fails").unlink()

    monkeypatch.setattr(
        "audiotok.launchers.slurm.sbatch.time", SimpleNamespace(sleep=sleep, monotonic=lambda: sum(pauses))
    )
    assert send(Profile(), "grid_1", tmp_path, ["x"]) == Sent("101")
    assert pauses == list(sbatch.BACKOFF_S[:2])
    (answers / "sbatch.fails").write_text("Resource temporarily unavailable\n")
    monkeypatch.setattr(sbatch, "PATIENCE_S", -1.0)  # sbatch itself has waited
    with pytest.raises(NoRoomError):
        send(Profile(), "grid_1", tmp_path, ["x"])
    assert len(pauses) == 2


@pytest.mark.parametrize("answer", ["something else\n", "Submitted job 7 of 9\n", ""])
def test_an_answer_without_an_id_may_be_a_job(answers: Path, tmp_path: Path, answer: str) -> None:
    (answers / "sbatch").write_text(answer)
    with pytest.raises(NoAnswerError, match="no job id in"):
        send(Profile(), "grid_1", tmp_path, ["x"])


def test_sbatch_has_a_time_limit(answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Path(os.environ["PATH"].split(":")[0]) / "sbatch"
    command.unlink()
    command.write_text("#!/bin/sh\nexec sleep 60\n")
    command.chmod(0o755)
    monkeypatch.setattr(sbatch, "SEND_S", 0.2)
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.2 s"):
        send(Profile(), "grid_1", tmp_path, ["x"])


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="AUDIOTOK_LAUNCHER=local"):
        send(Profile(), "grid_1", tmp_path, ["x"])


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
