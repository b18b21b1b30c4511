"""`audiotok doctor`: what it finds on a laptop, on a cluster made of fakes, and where something is broken."""

import gzip
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from audiotok.cli import main
from audiotok.cli.entry_point import entry_point
from audiotok.launchers import doctor
from audiotok.launchers.child import run_command as ask
from audiotok.launchers.doctor import _bounded
from audiotok.launchers.engine import Check, Level
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import doctor as doctor_slurm

PARTITIONS = """\
PartitionName=main Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=UP TotalNodes=2
PartitionName=long Default=NO MaxNodes=1 MaxTime=UNLIMITED State=UP TotalNodes=1
PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=9
"""
NODES = "2|64|512000+|gpu:h100:4(S:0-1)\n8|16|64000|(null)\n"
CLUSTER = {
    "scontrol": f"""case "$*" in
ping) echo 'Slurmctld(primary) at head is UP';;
'show config') echo 'MaxArraySize = 1001'; echo 'SLURM_VERSION = 24.11.5'; echo 'ClusterName = site';;
*) cat <<'EOF'
{PARTITIONS}EOF
esac""",
    "sinfo": f"cat <<'EOF'\n{NODES}EOF",
    "sacct": "",
    "sacctmgr": """case "$*" in
*associations*) echo 'music|normal,high|normal|||'; echo 'other|low|low|9||';;
*clusters*) echo site; echo elsewhere;;
*) echo 'normal|||'; echo 'high|4|2|00:10:00'; echo 'low|5||';;
esac""",
    "sbatch": "echo 'sbatch: Job 7 to start at 2026-01-01T00:00:00 using 8 processors on nodes n1' >&2",
    "srun": "",
    "squeue": "",
    "scancel": "",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a PATH that holds nothing but these commands, by the text of their scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "env", "sh", "bash", "sleep"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    for name in ("AUDIOTOK_CLUSTER", "AUDIOTOK_LAUNCHER", "AUDIOTOK_DATASET_PATHS", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))

    def make(**scripts: str) -> Path:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder

    return make


def verdicts(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_laptop(machine: Callable[..., Path], tmp_path: Path) -> None:
    machine()
    found = verdicts(doctor.examine(["solver=compression/demo", "slurm.gpus=0"]))
    assert list(found) == ["versions", "gpus", "launcher", "cluster", "profile", "output", "data"]
    assert found["launcher"] == Check.ok("launcher", "local (no sbatch on PATH)")
    assert {found[name].verdict for name in ("versions", "gpus", "cluster", "profile")} == {Level.OK}
    assert "default" in found["cluster"].found
    assert str(tmp_path / "outputs") in found["output"].found
    assert not (tmp_path / "outputs").exists()  # looking leaves no trace


def test_a_laptop_without_the_gpus_of_the_profile(machine: Callable[..., Path]) -> None:
    machine()
    found = verdicts(doctor.examine())
    assert found["size"].verdict is Level.WARN and "run on the CPU" in found["size"].found
    assert found["data"].verdict is Level.WARN and "doctor solver=" in found["data"].advice


def test_a_cluster(machine: Callable[..., Path]) -> None:
    machine(**CLUSTER)
    found = verdicts(doctor.examine())
    assert not [check for check in found.values() if check.verdict is Level.FAIL]
    assert list(found)[5:12] == ["commands", "slurmctld", "accounting", "partition", "limits", "arrays", "job"]
    assert "24.11.5" in found["slurmctld"].found
    assert found["partition"].found == "main; at most 1-00:00:00, 2 nodes"
    assert found["arrays"].found == "up to 1001 jobs each, 64 of them at once"
    assert found["job"].found.startswith("Job 7 to start")
    assert "site" in found["cluster"].found and "template.yaml" in found["cluster"].advice


def test_a_project_has_its_own_profiles(
    machine: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(**CLUSTER)
    assert main(["init", str(tmp_path / "mycodec")]) == 0
    monkeypatch.chdir(tmp_path / "mycodec")
    advice = verdicts(doctor.examine())["cluster"].advice
    copied, target = advice.removeprefix("cp ").split(" and ")[0].split()
    assert Path(copied).is_file() and target == "mycodec/config/cluster/site.yaml" and "|mine" in advice
    shutil.copy(copied, target)
    monkeypatch.setenv("AUDIOTOK_CLUSTER", "site")
    cfg = OmegaConf.create({"slurm": {"gpus": 1.5}, "dora": {"dir": "outputs"}, "datasource": {}})
    found = verdicts(doctor.examine(load=lambda overrides: cfg))
    assert found["cluster"] == Check.ok("cluster", "profile site (AUDIOTOK_CLUSTER in the environment)")
    assert found["profile"].advice == f"correct {target}"


@pytest.mark.parametrize(
    ("command", "script", "name", "verdict", "said"),
    [
        ("scontrol", "echo 'Slurmctld(primary) at head is DOWN'", "slurmctld", "fail", "is DOWN"),
        ("scontrol", "echo 'no config' >&2; exit 1", "slurmctld", "fail", "no config"),
        ("sacct", "echo 'accounting storage is disabled' >&2; exit 1", "accounting", "warn", "is disabled"),
        ("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1", "job", "fail", "error: invalid account"),
        ("nvidia-smi", "echo 'driver mismatch'; exit 9", "gpus", "warn", "exit code 9"),
        ("nvidia-smi", "echo 'H100, 81559 MiB, 570.1'; echo 'H100, 81559 MiB, 570.1'", "gpus", "ok", "2 x H100, 81559"),
    ],
)
def test_what_is_broken(
    machine: Callable[..., Path], command: str, script: str, name: str, verdict: str, said: str
) -> None:
    machine(**{**CLUSTER, command: script})
    check = verdicts(doctor.examine())[name]
    assert check.verdict == verdict and said in check.found
    assert bool(check.advice) == (verdict != "ok")


def test_commands_that_are_missing(machine: Callable[..., Path]) -> None:
    machine(**{name: script for name, script in CLUSTER.items() if name not in ("scancel", "sacct")})
    check = verdicts(doctor.examine())["commands"]
    assert check.verdict is Level.FAIL and check.found == "not on PATH: scancel"
    machine(scancel="")
    found = verdicts(doctor.examine())
    assert found["commands"].verdict is Level.OK and "sacct" in found["commands"].found
    assert found["accounting"].verdict is Level.WARN


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"time": 1440}, ""),
        ({"time": 1441}, r"time=1441 min is above its limit of 1440 min \(1-00:00:00\)"),
        ({"time": 1441, "partition": "long,main"}, ""),
        ({"partition": "gone,main"}, "no partition gone"),
        ({"partition": "old"}, "its state is DOWN"),
        ({"partition": "long", "gpus": 8, "gpus_per_node": 4}, "2 nodes are above its limit of 1"),
        ({"gpus": 8, "gpus_per_node": 4}, ""),
        ({"gpus": 12, "gpus_per_node": 4}, "nodes needed: 3 with 32 cores"),
        ({"gpus": 8}, "it has: 2 with 64 cores, 500 GB, 4 GPUs; 8 with 16 cores, 62 GB, 0 GPUs"),
        ({"gpus": 4, "gpu_type": "h100"}, ""),
        ({"gpus": 1, "gpu_type": "a100"}, "1 a100 GPUs"),
        ({"gpus": 0, "nodes": 10}, ""),
        ({"gpus": 0, "nodes": 10, "cpus_per_task": 17}, "nodes needed"),
        ({"gpus": 0, "mem_gb": 600}, "600 GB"),
    ],
)
def test_whether_the_profile_fits_the_partition(
    machine: Callable[..., Path], values: dict[str, Any], said: str
) -> None:
    machine(**CLUSTER)
    plain = {"cpus_per_gpu": 8, "mem_per_gpu": 32, "time": 60}
    check = doctor_slurm._check_partition(Profile.from_mapping({**plain, **values}, cluster="site"))
    assert check.verdict == ("fail" if said else "ok"), check
    if said:
        assert re.search(said, check.found)
        assert "config/cluster/site.yaml" in check.advice


HIGH = "qos high: at most 4 submitted jobs; qos high: at most 2 running jobs; qos high: at most 00:10:00 for a job"


@pytest.mark.parametrize(
    ("account", "qos", "verdict", "limits"),
    [
        ("music", "high", "ok", HIGH),
        ("music", "low", "fail", "qos low: at most 5 submitted jobs"),
        ("film", None, "fail", ""),
        (None, "low", "ok", "account other: at most 9 submitted jobs; qos low: at most 5 submitted jobs"),
        (None, None, "", "account other: at most 9 submitted jobs; qos low: at most 5 submitted jobs"),
        ("music", None, "ok", ""),
    ],
)
def test_account_and_qos(
    machine: Callable[..., Path], account: str | None, qos: str | None, verdict: str, limits: str
) -> None:
    machine(**CLUSTER)
    profile = Profile(account=account, qos=qos, time=10)
    found = verdicts(doctor_slurm._check_account(profile))
    assert (found["account"].verdict if verdict else "") == verdict
    assert ("limits" in found) == bool(limits)
    assert not limits or found["limits"] == Check.ok(
        "limits", f"{limits}; what is beyond is submitted as there is room"
    )
    machine(sacctmgr="")
    found = verdicts(doctor_slurm._check_account(profile))
    assert [check.verdict for check in found.values()] == [Level.WARN] * bool(verdict)


def test_a_time_that_the_qos_does_not_allow(machine: Callable[..., Path]) -> None:
    machine(**CLUSTER)
    check = verdicts(doctor_slurm._check_account(Profile(account="music", qos="high", time=11)))["limits"]
    assert check.verdict is Level.FAIL and "time=11 min is above them" in check.found and "00:10:00" in check.found


def test_files_that_the_profile_names(machine: Callable[..., Path], tmp_path: Path) -> None:
    machine(**CLUSTER)
    (tmp_path / "here.sh").touch()
    named = [f"source {tmp_path}/here.sh", f". '{tmp_path}/here.sh' && true", "source $HOME/x.sh", "echo . /nowhere/y"]
    profile = Profile.from_mapping(
        {"setup": named, "container": {"image": "docker://a/b", "mounts": [f"{tmp_path}:/b"]}}
    )
    assert [check.verdict for check in doctor_slurm._check_files(profile)] == [Level.OK, Level.OK]
    assert list(doctor_slurm._check_files(Profile())) == []
    wrong = {
        "setup": ["true", "source /nowhere/x.sh  # y"],
        "container": {"image": "/nowhere/a.sif", "mounts": ["/no"]},
    }
    found = verdicts(doctor_slurm.check_slurm(Profile.from_mapping(wrong, cluster="site")))
    assert found["setup"].found == "not here: /nowhere/x.sh"
    assert found["container"].found == "not here: /no, /nowhere/a.sif"
    for key in ("setup", "container"):
        assert found[key].verdict is Level.FAIL and f"correct {key} in " in found[key].advice
        assert "config/cluster/site.yaml" in found[key].advice and "doctor --try" in found[key].advice


@pytest.mark.parametrize(
    ("clusters", "verdict"), [("site", "ok"), ("elsewhere,site", "ok"), ("all", "ok"), ("site,gone", "fail")]
)
def test_clusters_that_the_profile_names(machine: Callable[..., Path], clusters: str, verdict: str) -> None:
    machine(**CLUSTER)
    check = verdicts(doctor_slurm.check_slurm(Profile.from_mapping({"sbatch": {"clusters": clusters}})))["clusters"]
    assert check.verdict == verdict
    assert verdict == "ok" or (check.found == "no cluster gone" and "there are: elsewhere, site" in check.advice)


def test_variables_that_go_into_each_job(machine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(**CLUSTER)
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    check = verdicts(doctor_slurm.check_slurm(Profile()))["variables"]
    assert check.verdict is Level.WARN and "SBATCH_PARTITION=gpu" in check.found
    assert "variables" not in verdicts(doctor_slurm.check_slurm(Profile(partition="main")))


def test_arrays_beyond_the_cluster(machine: Callable[..., Path]) -> None:
    machine(**CLUSTER)
    assert doctor_slurm._check_arrays(Profile(max_array_size=2000)).verdict is Level.FAIL
    assert doctor_slurm._check_arrays(Profile(max_array_size=500)).verdict is Level.OK


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", None),
        ("1-00:00:00", 1440),
        ("02:30:00", 150),
        ("30:00", 30),
        ("45", 45),
        ("2-12", 3600),
        ("", None),
    ],
)
def test_times_of_slurm(text: str, minutes: int | None) -> None:
    assert doctor_slurm._minutes(text) == minutes


def test_a_profile_that_cannot_be_used(machine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    found = verdicts(doctor.examine(["slurm.gpus=11"]))
    assert found["profile"].verdict is Level.FAIL and "multiple of 8" in found["profile"].found
    found = verdicts(doctor.examine(["solver=compression/nope"]))
    assert found["cluster"].verdict is Level.FAIL and "profile" not in found
    monkeypatch.setenv("AUDIOTOK_CLUSTER", "nope")
    assert "choose one of: cpu, default" in verdicts(doctor.examine())["cluster"].found
    monkeypatch.setenv("AUDIOTOK_LAUNCHER", "nope")
    monkeypatch.delenv("AUDIOTOK_CLUSTER")
    found = verdicts(doctor.examine(load=lambda overrides: entry_point(None).compose(overrides).cfg))
    assert [name for name, check in found.items() if "nope" in check.found] == ["launcher"]  # once
    assert found["launcher"].verdict is Level.FAIL and found["cluster"].verdict is Level.OK


def test_a_trial_is_for_a_scheduler(machine: Callable[..., Path]) -> None:
    machine()
    assert "local needs none" in verdicts(doctor.examine(trial=True))["try"].found


def test_nothing_is_waited_for_for_ever(machine: Callable[..., Path]) -> None:
    machine()
    began = time.monotonic()
    assert ask(["sleep", "60"], seconds=0.1) == ("", "no answer within 0.1 s")
    check = _bounded("data", lambda: time.sleep(5) or Check.ok("data", ""), seconds=0.1)  # type: ignore[func-returns-value]
    assert check.verdict is Level.FAIL and "hangs" in check.advice
    assert time.monotonic() - began < 4
    assert ask(["no-such-command"])[1]


def test_the_command(machine: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    machine()
    assert main(["doctor", "slurm.gpus=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    versions")
    told = [i for i, line in enumerate(lines) if line.startswith(("warn", "fail"))]
    assert told and all(lines[i + 1].lstrip().startswith("-> ") for i in told)
    assert main(["doctor", "slurm.gpus=11"]) == 1
    assert "\nfail  profile     slurm.gpus=11" in capsys.readouterr().out


def test_torch_is_imported_only_when_asked_for(machine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setattr(doctor, "query", lambda command, seconds=0.0: ("2 12.8\n", ""))
    assert doctor._check_torch() == Check.ok("torch", "built for CUDA 12.8, sees 2 GPUs")
    monkeypatch.setattr(doctor, "query", lambda command, seconds=0.0: ("", "no module named torch"))
    assert doctor._check_torch().verdict is Level.FAIL
    monkeypatch.setattr(sys, "argv", ["audiotok"])
    assert "torch" not in verdicts(doctor.examine())


def test_results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/elsewhere")
    monkeypatch.setattr(doctor, "ROOMY_GB", 0.0)
    monkeypatch.setattr(doctor, "CRAMPED_GB", 0.0)
    found = doctor._check_output(tmp_path / "a" / "b", shared=True)
    assert found.verdict is Level.OK and "will be made" in found.found and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert doctor._check_output(tmp_path / "file" / "x", shared=False).verdict is Level.FAIL
    for size, verdict in (("ROOMY_GB", Level.WARN), ("CRAMPED_GB", Level.FAIL)):
        monkeypatch.setattr(doctor, size, 1e9)
        assert doctor._check_output(tmp_path, shared=False).verdict is verdict
    monkeypatch.setattr(doctor, "ROOMY_GB", 0.0)
    monkeypatch.setattr(doctor, "CRAMPED_GB", 0.0)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert "nodes will not see it" in doctor._check_output(tmp_path, shared=True).advice
    monkeypatch.setattr("fcntl.flock", lambda *_: None)  # a file system where every lock succeeds
    assert "flock does not work" in doctor._check_output(tmp_path, shared=False).found


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / "far"
    far.mkdir()
    manifest = far / "train.jsonl.gz"
    cfg = OmegaConf.create({"datasource": {"train": "/home/me/train.jsonl.gz", "valid": None}})
    monkeypatch.setenv("AUDIOTOK_DATASET_PATHS", json.dumps({"/home/me": str(far)}))
    assert f"train: no manifest {manifest}" in doctor._check_data(cfg).found
    for first, found in (("a.wav", True), ("/home/me/a.wav", True), ("b.wav", False), ("/nowhere/a.wav", False)):
        manifest.write_bytes(gzip.compress(json.dumps({"path": first}).encode()))
        (far / "a.wav").touch()
        check = doctor._check_data(cfg)
        assert (check.verdict is Level.OK) == found and ("first track" in check.found)
    for damage in (b"", b"plain", gzip.compress(b"[]"), gzip.compress(b'{"path": 1}'), gzip.compress(b"{")):
        manifest.write_bytes(damage)
        assert "cannot be read" in doctor._check_data(cfg).found, damage
    monkeypatch.setenv("AUDIOTOK_DATASET_PATHS", "x")
    assert doctor._check_data(cfg).verdict is Level.FAIL
