"""Cluster profiles: what they may hold, what is said about a mistake, and the job that comes of one."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from dora.conf import SlurmConfig, update_from_args
from dora.explore import Herd
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from audiotok.cluster import PROFILES
from audiotok.errors import ConfigError
from audiotok.launchers.profile import _RULES, Profile, ProfileLauncher, Shape, profile_of


def profile(**values: Any) -> Profile:
    return Profile.from_mapping(values)


def test_every_key_has_a_rule_a_default_and_an_explanation() -> None:
    default = (PROFILES / "default.yaml").read_text()
    fields = set(vars(Profile())) - {"cluster"}
    assert set(_RULES) == fields == set(yaml.safe_load(default))
    assert set(vars(SlurmConfig())) <= fields
    explained = [line.partition("#")[2].strip() for line in default.splitlines() if line[:1].isalpha()]
    assert sum(map(bool, explained)) >= len(fields) - 3  # partition, account and qos are SLURM's own words
    Profile().check()


@pytest.mark.parametrize(
    ("key", "nearest"), [("gpu", "gpus"), ("partion", "partition"), ("memory", ""), ("mem_per_gpus", "mem_per_gpu")]
)
def test_an_unknown_key_lists_the_valid_ones_the_nearest_first(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key slurm.{key} in config/cluster/mine.yaml") as caught:
        Profile.from_mapping({key: 1}, cluster="mine")
    listed = str(caught.value).partition("valid keys: ")[2].rstrip(".").split(", ")
    assert listed[0].startswith(nearest)
    assert sorted(listed) == sorted(_RULES)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("gpus", -1, "a whole number of at least 0"),
        ("gpus", 1.5, "a whole number"),
        ("gpus", True, "a whole number"),
        ("gpus", None, "a whole number"),
        ("gpus", "2", "a whole number"),
        ("gpus", float("nan"), "a whole number"),
        ("time", 0, r"from 1 to 525600 \(minutes\)"),
        ("time", "1-00:00:00", r"\(minutes\)"),
        ("mem_gb", -0.5, r"at least 0 \(GB\), or null"),
        ("mem_per_gpu", float("inf"), "GB"),
        ("oom_mem_factor", 0.5, "at least 1"),
        ("nodes", 0, "or null"),
        ("partition", "a b", "the name of a partition"),
        ("partition", "x\n#SBATCH --uid=0", "the name of a partition"),
        ("partition", "", "the name of a partition"),
        ("account", "me; rm -rf /", "the name of an account"),
        ("account", "-x", "the name of an account"),
        ("qos", "$(id)", "quality of service"),
        ("gpu_type", "a:8", "kind of GPU"),
        ("constraint", "a\nb", "features"),
        ("constraint", "a'b", "features"),
        ("comment", "two\nlines", "one line"),
        ("comment", "carriage\rreturn", "one line"),
        ("nodelist", ["n1 n2"], "names of nodes"),
        ("exclude", "n1;n2", "names of nodes"),
        ("setup", "module load cuda", "a list of shell lines"),
        ("setup", ["module load cuda\necho"], "a list of shell lines"),
        ("setup", [1], "a list of shell lines"),
        ("setup", ["  #SBATCH --time=9"], "use the key of that option"),
        ("setup", ["echo 'open"], "bash cannot read them"),
        ("setup", ["echo one", "if true; then echo two"], "bash cannot read them"),
        ("setup", ["cat \\"], "go on in the line after it"),
        ("setup", ["cat <<EOF"], "go on in the line after it"),
        ("srun_args", ["--mpi=none\n"], "a list of arguments"),
        ("python", " ", "starts Python"),
        ("container", {"mounts": ["/a"]}, "of which image is needed"),
        ("container", "a.sif", "image is needed"),
        ("container", {"image": ""}, "image is needed"),
        ("container", {"image": "--fakeroot"}, "image is needed"),
        ("container", {"image": "a\nb"}, "image is needed"),
        ("container", {"image": "a.sif", "mount": ["/a"]}, "mounts: "),
        ("container", {"image": "a.sif", "mounts": "/a"}, "mounts: "),
        ("container", {"image": "a.sif", "mounts": ["a:/b"]}, "mounts: "),
        ("container", {"image": "a.sif", "mounts": ["/a,/b"]}, "mounts: "),
        ("container", {"image": "a.sif", "mounts": ["/a:/b:ro:x"]}, "mounts: "),
        ("container", {"image": "a.sif", "runtime": "docker"}, "apptainer or singularity or pyxis"),
        ("gpu_option", "gpu", "one of: gres, gpus-per-node, gpus, none"),
        ("cpu_option", "cpus", "one of: cpus-per-task, none"),
        ("mem_option", "mem-per-node", "one of: mem, mem-per-cpu, mem-per-gpu, none"),
        ("sbatch", {"time": 5}, "those that other keys make"),
        ("sbatch", {"Mail-User": "me"}, "long names"),
        ("sbatch", {"reservation": "a\nb"}, "long names"),
        ("sbatch", ["--exclusive"], "long names"),
        ("output_dir", "~/outputs", "no ~"),
        ("output_dir", "a\nb", "a folder"),
        ("dataset_paths", {"music": "/scratch"}, "absolute folders"),
        ("dataset_paths", {"/music": None}, "absolute folders"),
        ("dataset_paths", ["/music"], "absolute folders"),
        ("dependents", 2, "queued again|requeued"),
        ("one_task_per_node", "yes", "true or false"),
        ("max_array_size", 0, "jobs of one array"),
    ],
)
def test_a_value_that_cannot_be_used_says_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed) as caught:
        Profile.from_mapping({key: value}, cluster="mine")
    said = str(caught.value)
    assert said.startswith(f"slurm.{key}=") and "config/cluster/mine.yaml" in said and "\n" not in said


def test_null_is_none_where_that_makes_sense() -> None:
    plain = profile(setup=None, srun_args=None, dataset_paths=None, constraint=None, sbatch=None, output_dir=None)
    assert plain == Profile() == profile(container=None, mem_option=None)
    container = {"image": "a.sif", "mounts": None, "runtime": None}
    assert profile(container=container).container == container


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"gpus": 0}, Shape(1, 1, 0, 10)),
        ({"gpus": 0, "cpus_per_task": 3}, Shape(1, 1, 0, 3)),
        ({"gpus": 0, "nodes": 2, "tasks_per_node": 2, "cpus_per_task": 1}, Shape(2, 2, 0, 1)),
        ({"gpus": 3}, Shape(1, 3, 3, 10)),
        ({"gpus": 8}, Shape(1, 8, 8, 10)),
        ({"gpus": 24}, Shape(3, 8, 8, 10)),
        ({"gpus": 8, "gpus_per_node": 4}, Shape(2, 4, 4, 10)),
        ({"gpus": 4, "nodes": 2}, Shape(2, 2, 2, 10)),
        ({"gpus": 4, "one_task_per_node": True}, Shape(1, 1, 4, 40)),
        ({"gpus": 4, "tasks_per_node": 2}, Shape(1, 2, 4, 20)),
    ],
)
def test_shape(values: dict[str, Any], shape: Shape) -> None:
    assert profile(**values).shape() == shape
    assert shape.tasks == shape.nodes * shape.tasks_per_node


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gpus": 9}, r"slurm.gpus=9 .*give 0 to 8, or a multiple of 8"),
        ({"gpus": 6, "gpus_per_node": 4}, "multiple of 4"),
        ({"gpus": 3, "nodes": 2}, "2 nodes of at most 8 GPUs"),
        ({"gpus": 16, "nodes": 1}, "1 nodes of at most 8 GPUs"),
        ({"gpus": 4, "tasks_per_node": 3}, "a divisor of the 4 GPUs"),
        ({"one_task_per_node": True, "tasks_per_node": 2}, "give null or 1"),
        ({"time": 2, "signal_s": 120}, "less than the time limit"),
        ({"mem_gb": 100, "max_mem_gb": 50}, "a job requests 100 GB"),
        ({"mem_gb": 0, "max_mem_gb": 50}, "no memory is requested"),
        ({"mem_option": "none", "max_mem_gb": 50}, "no memory is requested"),
        ({"mem_option": "mem-per-cpu", "cpu_option": "none"}, "the cores are not known"),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        profile(**values)


@pytest.mark.parametrize(
    ("values", "factor", "megabytes"),
    [
        ({"gpus": 0, "mem_per_gpu": 0.5}, 1.0, 512),
        ({"gpus": 3, "mem_per_gpu": 0.0001}, 1.0, 1),
        ({"gpus": 16, "mem_per_gpu": 60}, 1.0, 60 * 8 * 1024),
        ({"gpus": 16, "mem_gb": 100}, 1.0, 50 * 1024),
        ({"gpus": 0, "nodes": 2, "mem_per_gpu": 4}, 1.0, 4096),
        ({"mem_per_gpu": 0}, 1.0, None),
        ({"mem_gb": 0}, 2.0, None),
        ({"mem_gb": 10, "max_mem_gb": 40}, 2.0, 20 * 1024),
        ({"mem_gb": 10, "max_mem_gb": 15}, 2.0, 15 * 1024),
        ({"mem_gb": 10}, 2.0, 10 * 1024),
    ],
)
def test_memory_of_a_node(values: dict[str, Any], factor: float, megabytes: int | None) -> None:
    assert profile(**values).node_mem_mb(factor) == megabytes


@given(
    nodes=st.integers(1, 4), per_node=st.integers(0, 8), cores=st.integers(1, 32), mem=st.floats(0.01, 500),
    factor=st.floats(1, 4),
)  # fmt: skip
def test_a_job_gets_what_was_asked_for(nodes: int, per_node: int, cores: int, mem: float, factor: float) -> None:
    asked = profile(gpus=nodes * per_node, nodes=nodes, cpus_per_gpu=cores, mem_gb=mem, max_mem_gb=2 * mem)
    shape = asked.shape()
    assert shape.nodes * shape.gpus_per_node == asked.gpus
    assert shape.cpus_per_task * shape.tasks_per_node == cores * max(1, per_node)
    memory = asked.node_mem_mb(factor)
    assert memory is not None
    assert 0 <= memory * nodes / 1024 - min(factor, 2) * mem <= nodes / 1024 + 1e-9 * mem


def test_the_partition_of_doras_authors_means_none() -> None:
    assert Profile.of(SlurmConfig()).partition is None
    assert profile(partition="learnlab").partition is None
    assert profile(partition="learnlab2").partition == "learnlab2"
    mine = profile()
    assert Profile.of(mine) is mine


def test_dora_may_change_copy_and_compare_it() -> None:
    first, second = profile(setup=["a"]), profile(setup=["a"])
    args = SimpleNamespace(gpus=2, partition="fast", comment=None, cluster=None)
    update_from_args(first, cast(Any, args))
    assert (first.gpus, first.partition) == (2, "fast")
    assert first != second
    again = copy.deepcopy(first)
    again.setup.append("b")
    assert first.setup == ["a"] and again != first
    assert Profile.from_mapping({"gpus": 2}, cluster="a") == Profile.from_mapping({"gpus": 2}, cluster="b")


def test_the_profile_of_the_documentation_can_be_used() -> None:
    text = (PROFILES.parent.parent.parent / "docs" / "launching.md").read_text()
    example = text.partition("```yaml\n# @package slurm\n")[2].partition("```")[0]
    values = yaml.safe_load(example)
    assert values.pop("defaults") == ["/cluster/default", "_self_"]
    assert profile(**values).shape() == Shape(nodes=1, tasks_per_node=1, gpus_per_node=1, cpus_per_task=12)


def fake_main(folder: Path, slurm: str) -> Any:
    (folder / "cluster").mkdir()
    (folder / "cluster" / "mine.yaml").touch()
    base = OmegaConf.create(f"slurm: {slurm}")
    return SimpleNamespace(_base_cfg=base, full_config_path=folder, value_to_argv=lambda value: [])


def test_profile_of_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOTOK_CLUSTER", "mine")
    main = fake_main(tmp_path, "{gpus: 2, qos: '${oc.env:TEST_QOS}'}")
    monkeypatch.setenv("TEST_QOS", "high")
    found = profile_of(main)
    assert (found.gpus, found.qos, found.cluster) == (2, "high", "mine")
    found.gpus = 4
    assert profile_of(main).gpus == 2
    monkeypatch.setenv("AUDIOTOK_CLUSTER", "of-another-project")
    assert profile_of(main).cluster == ""
    monkeypatch.delenv("TEST_QOS")
    with pytest.raises(ConfigError, match="TEST_QOS"):
        profile_of(main)
    with pytest.raises(ConfigError, match="valid keys: qos"):
        profile_of(SimpleNamespace(_base_cfg=OmegaConf.create({"slurm": {"qoss": 1}})))  # type: ignore[arg-type]


def test_a_project_without_profiles_has_doras_values() -> None:
    for main in (SimpleNamespace(), SimpleNamespace(_base_cfg=OmegaConf.create({"epochs": 2}))):
        assert profile_of(cast(Any, main)) == Profile()


def test_a_mistake_in_a_grid_is_one_line(tmp_path: Path) -> None:
    launcher: Any
    shepherd = SimpleNamespace(main=fake_main(tmp_path, "{}"))
    launcher = ProfileLauncher(cast(Any, shepherd), profile(gpus=1), Herd())
    small = launcher.slurm(gpus=2)
    assert isinstance(small, ProfileLauncher) and isinstance(small._copy(), ProfileLauncher)
    assert (launcher._slurm.gpus, small._slurm.gpus) == (1, 2)
    with pytest.raises(ConfigError, match="valid keys: mem_gb"):
        launcher.slurm_(mem_bg=10)
    with pytest.raises(ConfigError, match=r"slurm\.gpus=11 .*multiple of 8"):
        launcher.slurm(gpus=11)
    assert launcher._slurm == profile(gpus=1)


def test_what_a_job_finds_in_its_environment() -> None:
    assert profile().environment() == {}
    found = Profile.from_mapping({"dataset_paths": {"/b": "/c", "/a": "/x"}}, cluster="mine").environment()
    assert found == {"AUDIOTOK_CLUSTER": "mine", "AUDIOTOK_DATASET_PATHS": '{"/a": "/x", "/b": "/c"}'}
