"""A cluster profile: what one job asks of a cluster, checked before anything is submitted.

A profile is a file `config/cluster/NAME.yaml`, laid over `default.yaml`, which explains every key. It extends Dora's
`SlurmConfig`, so that `launcher.slurm_(gpus=2)` in a grid and `dora grid -g 2 -p gpu` change it as they always did.
"""

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dora.explore
from dora.conf import SlurmConfig
from dora.main import DecoratedMain
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiotok.cluster import CLUSTER_VARIABLE, DATASET_PATHS_VARIABLE, DEFAULT_CLUSTER, dump_paths
from audiotok.errors import ConfigError
from audiotok.launchers.profiles.rules import RULES, setup_problem

NO_PARTITION = SlurmConfig().partition
"""Dora's default: a partition of its authors' own cluster, which here means that none is asked for."""


@dataclass(frozen=True)
class Shape:
    """How a job lies on the cluster: `nodes` × `tasks_per_node` processes, GPUs by node, CPUs by process."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int

    @property
    def tasks(self) -> int:
        """Processes in all: the world size of the training."""
        return self.nodes * self.tasks_per_node


@dataclass
class Profile(SlurmConfig):
    """What one job asks of a cluster; every key of `config/cluster/default.yaml`, explained there.

    Dora changes its attributes one by one and compares profiles by `==`, so it stays a plain dataclass; `check` is
    called when it is read and again before it is submitted.

    Attributes:
        cluster: name of the file it came from; not a key of that file, and no part of comparisons.
    """

    partition: str | None = None  # type: ignore[assignment]  # Dora's is never None
    nodes: int | None = None
    gpus_per_node: int = 8
    gpu_type: str | None = None
    tasks_per_node: int | None = None
    mem_gb: float | None = None
    max_mem_gb: float | None = None
    oom_mem_factor: float = 1.5
    signal_s: int = 120
    max_array_size: int | None = None
    nice: int | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    output_dir: str = "outputs"
    dataset_paths: dict[str, str] = field(default_factory=dict)
    cluster: str = field(default="", compare=False)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, cluster: str = "") -> "Profile":
        """Profile of the keys of a file; an empty list or mapping may be written as null.

        Raises:
            ConfigError: if a key is unknown (the valid ones are listed, the nearest first) or a value cannot be used.
        """
        profile = cls(cluster=cluster)
        profile.update(values)
        profile.check()
        return profile

    @classmethod
    def of(cls, config: SlurmConfig) -> "Profile":
        """The profile itself, or one with the values of Dora's own configuration, without its partition."""
        if isinstance(config, cls):
            return config
        return cls.from_mapping(vars(config))

    @property
    def where(self) -> str:
        """Where a value is to be corrected."""
        return f"config/cluster/{self.cluster}.yaml" if self.cluster else "the profile"

    def update(self, values: Mapping[str, Any]) -> None:
        """Set some keys.

        Raises:
            ConfigError: if one is unknown.
        """
        defaults = vars(type(self)())
        for key, value in values.items():
            if key not in RULES:
                raise ConfigError(f"unknown key slurm.{key} in {self.where}; {_nearest(key)}")
            default = defaults[key]
            if value is None and isinstance(default, list | dict | str):
                value = default  # `setup: null` reads as none
            elif key == "partition" and value == NO_PARTITION:
                value = None
            setattr(self, key, value)

    def check(self) -> None:
        """Check every value by itself, then how they go together.

        Raises:
            ConfigError: naming the key, what was found, where, and what is allowed.
        """
        for key, rule in RULES.items():
            problem = rule.problem(getattr(self, key))
            if problem:
                raise self._error(key, problem)
        problem = setup_problem(tuple(self.setup))
        if problem:
            raise self._error("setup", problem)
        if self.dependents:
            raise self._error("dependents", "give 0: a job that runs out of time is requeued instead")
        if 0 < self.time * 60 <= self.signal_s:
            raise self._error("signal_s", f"give less than the time limit of the job, {self.time} min")
        total = self.total_mem_gb
        if self.max_mem_gb is not None and (total is None or self.max_mem_gb < total):
            asked = "no memory is asked for" if total is None else f"a job asks for {total:g} GB"
            raise self._error("max_mem_gb", f"{asked}; give that or more, or null")
        self.shape()

    def shape(self) -> Shape:
        """Nodes, tasks and what each gets.

        Raises:
            ConfigError: if GPUs or tasks do not divide evenly among nodes.
        """
        whole = self.gpus_per_node
        if self.nodes is None and self.gpus > whole and self.gpus % whole:
            raise self._error("gpus", f"give 0 to {whole}, or a multiple of {whole} (gpus_per_node)")
        nodes = max(1, self.gpus // whole) if self.nodes is None else self.nodes
        per_node = self.gpus // nodes
        if self.gpus % nodes or per_node > whole:
            raise self._error(
                "gpus", f"{nodes} nodes of at most {whole} GPUs (gpus_per_node) need a multiple of {nodes}"
            )
        tasks = 1 if self.one_task_per_node else self.tasks_per_node or max(1, per_node)
        if self.one_task_per_node and self.tasks_per_node not in (None, 1):
            raise self._error("tasks_per_node", "one_task_per_node is set; give null or 1")
        if per_node % tasks:
            raise self._error("tasks_per_node", f"give a divisor of the {per_node} GPUs of a node, or null")
        cpus = self.cpus_per_task or max(1, self.cpus_per_gpu * per_node // tasks if per_node else self.cpus_per_gpu)
        return Shape(nodes=nodes, tasks_per_node=tasks, gpus_per_node=per_node, cpus_per_task=cpus)

    @property
    def total_mem_gb(self) -> float | None:
        """Memory of the whole job in GB, None where none is asked for."""
        if self.mem_gb is not None:
            return self.mem_gb or None
        shape = self.shape()
        return self.mem_per_gpu * shape.nodes * max(1, shape.gpus_per_node) or None

    def node_mem_mb(self, mem_factor: float = 1.0) -> int | None:
        """Memory that each node gives the job in whole MB, at most `max_mem_gb` in all; None for SLURM's default."""
        total = self.total_mem_gb
        if total is None:
            return None
        grown = min(total * mem_factor, max(total, self.max_mem_gb or 0)) if mem_factor > 1 else total
        return math.ceil(grown / self.shape().nodes * 1024)

    def environment(self) -> dict[str, str]:
        """Variables that a job of this profile needs, whatever launcher starts it."""
        variables = {CLUSTER_VARIABLE: self.cluster} if self.cluster else {}
        if self.dataset_paths:
            variables[DATASET_PATHS_VARIABLE] = dump_paths(self.dataset_paths)
        return variables

    def _error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"slurm.{key}={getattr(self, key)!r} in {self.where}: {problem}.")


def profile_of(main: DecoratedMain) -> Profile:
    """Profile that an entry point was composed with; a new one each time, to be changed at will.

    Raises:
        ConfigError: if a key is unknown or a value cannot be used.
    """
    config = getattr(main, "_base_cfg", None)
    section = None if config is None else config.get("slurm")
    if section is None:
        return Profile.of(DecoratedMain.get_slurm_config(main))
    cluster = os.environ.get(CLUSTER_VARIABLE) or DEFAULT_CLUSTER
    if not Path(getattr(main, "full_config_path", ""), "cluster", f"{cluster}.yaml").is_file():
        cluster = ""  # a project whose profile stands in its config.yaml
    try:
        values = OmegaConf.to_container(section, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(str(error).split())} (in slurm of profile {cluster or 'config.yaml'})") from error
    assert isinstance(values, dict)
    return Profile.from_mapping({str(key): value for key, value in values.items()}, cluster=cluster)


class ProfileLauncher(dora.explore.Launcher):
    """Dora's `launcher` of a grid, where an unknown or impossible key is a mistake explained in one line."""

    def slurm_(self, **kwargs: Any) -> "ProfileLauncher":
        """Change what the following experiments ask of the cluster.

        Raises:
            ConfigError: if a key is unknown or a value cannot be used.
        """
        profile = Profile.of(self._slurm)
        profile.update(kwargs)
        profile.check()
        self._slurm = profile
        return self

    def _copy(self) -> "ProfileLauncher":
        return type(self)(self._shepherd, self._slurm, self._herd, self._argv, self._pool)


def _nearest(key: str) -> str:
    """Say which keys there are, the nearest first."""
    near = difflib.get_close_matches(key, RULES, n=3, cutoff=0.6)
    rest: Iterable[str] = sorted(name for name in RULES if name not in near)
    return f"valid keys: {', '.join([*near, *rest])}."
