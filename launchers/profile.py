"""A cluster profile: what one job requests from a cluster, checked before anything is submitted.

A profile is a file `config/cluster/NAME.yaml`, laid over `default.yaml`, which explains every key. It extends Dora's
`SlurmConfig`, so that `launcher.slurm_(gpus=2)` in a grid and `dora grid -g 2 -p gpu` change it as in Dora.
"""

import functools
import inspect
import json
import math
import os
import re
import subprocess as sp
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import dora.explore
from dora.conf import SlurmConfig
from dora.main import DecoratedMain
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiotok.cluster import (
    CLUSTER_VARIABLE,
    DATASET_PATHS_VARIABLE,
    DEFAULT_CLUSTER,
    dump_paths,
    place_of,
    profile_path,
)
from audiotok.errors import ConfigError
from audiotok.files import shown
from audiotok.text import nearest_first

_NO_PARTITION = SlurmConfig.partition  # Dora's default is a partition of its authors' own cluster: none is requested
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*")
_KIND = re.compile(r"[A-Za-z0-9_.-]+")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.&|!()\[\]*,:=-]*")
_NODES = re.compile(r"[A-Za-z0-9_.-]+(\[[0-9,-]+\][A-Za-z0-9_.-]*)*(,[A-Za-z0-9_.-]+(\[[0-9,-]+\][A-Za-z0-9_.-]*)*)*")
_OPTION = re.compile(r"[a-z][a-z-]*[a-z]")
_MOUNT = re.compile(r"/[^:,\x00-\x1f]*(:/[^:,\x00-\x1f]*(:(ro|rw))?)?")
RUNTIMES = ("apptainer", "singularity", "pyxis")
_MOST = 2**63  # of all numbers
_HERE_DOCUMENT = re.compile(r"(?<!<)<<(?!<)")
# Options of sbatch that follow from other keys, or that the launcher itself needs as they are.
_MADE_HERE = frozenset((
    "account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "error", "exclude",
    "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu", "mem-per-gpu",
    "nice", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos",
    "requeue", "signal", "time", "wrap",
))  # fmt: skip


class _Rule(NamedTuple):
    """What a key may hold, besides None where its type has that."""

    fits: Callable[[Any], bool]
    allowed: str


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _whole(low: int, high: int | None = None, unit: str = "") -> _Rule:
    def fits(value: Any) -> bool:
        return _is_number(value) and value == int(value) and low <= value <= (value if high is None else high)

    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    return _Rule(fits, f"a whole number {limits}{unit and f' ({unit})'}")


def _number(low: float, unit: str) -> _Rule:
    return _Rule(lambda value: _is_number(value) and value >= low, f"a number of at least {low:g} ({unit})")


def _pattern(pattern: re.Pattern[str], allowed: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None, allowed)


def _lines(allowed: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, list | tuple) and all(map(_is_line, value)), allowed)


def _fits_nodelist(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(name, str) and _NODES.fullmatch(name) is not None for name in names)


def _fits_options(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and _OPTION.fullmatch(key) and key not in _MADE_HERE
        and (isinstance(content, bool | int | float) or (_is_line(content) and content)) and content is not False
        for key, content in value.items()
    )  # fmt: skip


def _fits_paths(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_line(v) and v.startswith("/") for pair in value.items() for v in pair)


def _fits_container(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    image, mounts, runtime = value.get("image"), value.get("mounts") or [], value.get("runtime")
    known = value.keys() <= {"image", "mounts", "runtime"} and runtime in (None, *RUNTIMES)
    fits = isinstance(mounts, list | tuple) and all(isinstance(one, str) and _MOUNT.fullmatch(one) for one in mounts)
    return known and fits and isinstance(image, str) and image.isprintable() and image[:1] not in ("", " ", "-")


def _one_of(*words: str) -> _Rule:
    return _Rule(lambda value: value in words, f"one of: {', '.join(words)}")


_COUNT, _FLAG = _whole(1), _Rule(lambda value: isinstance(value, bool), "true or false")
_HOSTS = _Rule(_fits_nodelist, "names of nodes, such as n1,n[3-5]")
_PYTHON = _Rule(lambda value: _is_line(value) and bool(value.strip()), "a command that starts Python")
_CODE = _Rule(lambda value: value in ("snapshot", "live"), "snapshot or live")
_SETUP = _lines("a list of shell lines, such as [module load cuda]")
_SRUN_ARGS = _lines("a list of arguments of srun, such as [--mpi=none]")
_SBATCH = _Rule(
    _fits_options,
    "further options of sbatch by their long names, such as {reservation: course}; "
    "those that other keys make are left out",
)
_FOLDER = _Rule(
    lambda value: _is_line(value) and value[:1] not in ("", "~"),
    "a folder, such as /scratch/${oc.env:USER}/audiotok (no ~)",
)
_CONTAINER = _Rule(
    _fits_container,
    f"{{image: …, mounts: [/data, /here:/there], runtime: {' or '.join(RUNTIMES)}}}, of which image is needed",
)
_PATHS = _Rule(_fits_paths, "absolute folders, such as {/home/me/music: /scratch/me/music}")


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
    """What one job requests from a cluster: the keys of `config/cluster/default.yaml`, explained there.

    Dora sets its attributes one by one and compares profiles by `==`, so it is a plain dataclass, checked when it is
    read and again before it is submitted. Each key is annotated with what it may hold; values end in lines of a shell
    script, so whatever could break out of its line is refused.

    Attributes:
        cluster: name of the file it came from; not a key of that file, and no part of comparisons.
        changed_in: file and line of the grid that has changed it, "" if none has.
    """

    changed_in = ""

    gpus: Annotated[int, _whole(0)] = SlurmConfig.gpus
    nodes: Annotated[int | None, _COUNT] = None
    gpus_per_node: Annotated[int, _whole(1, 64)] = 8
    gpu_type: Annotated[str | None, _pattern(_KIND, "the name of a kind of GPU, such as h100")] = None
    tasks_per_node: Annotated[int | None, _COUNT] = None
    one_task_per_node: Annotated[bool, _FLAG] = SlurmConfig.one_task_per_node
    cpus_per_gpu: Annotated[int, _COUNT] = SlurmConfig.cpus_per_gpu
    cpus_per_task: Annotated[int | None, _COUNT] = SlurmConfig.cpus_per_task
    mem_per_gpu: Annotated[float, _number(0, "GB")] = SlurmConfig.mem_per_gpu
    mem_gb: Annotated[float | None, _number(0, "GB")] = None
    max_mem_gb: Annotated[float | None, _number(0, "GB")] = None
    oom_mem_factor: Annotated[float, _number(1, "times the memory of before")] = 1.5
    gpu_option: Annotated[str, _one_of("gres", "gpus-per-node", "gpus", "none")] = "gres"
    cpu_option: Annotated[str, _one_of("cpus-per-task", "none")] = "cpus-per-task"
    mem_option: Annotated[str, _one_of("mem", "mem-per-cpu", "mem-per-gpu", "none")] = "mem"
    time: Annotated[int, _whole(1, 525_600, "minutes")] = SlurmConfig.time
    signal_s: Annotated[int, _whole(1, 65_535, "seconds")] = 120
    max_num_timeout: Annotated[int, _whole(0)] = SlurmConfig.max_num_timeout
    array_parallelism: Annotated[int, _COUNT] = SlurmConfig.array_parallelism
    max_array_size: Annotated[int | None, _whole(1, unit="jobs of one array")] = None
    partition: Annotated[str | None, _pattern(_NAME, "the name of a partition, as `sinfo` lists them")] = None  # type: ignore[assignment]
    account: Annotated[str | None, _pattern(_NAME, "the name of an account")] = SlurmConfig.account
    qos: Annotated[str | None, _pattern(_NAME, "the name of a quality of service")] = SlurmConfig.qos
    constraint: Annotated[str | None, _pattern(_CONSTRAINT, "features of nodes, such as h100&nvlink")] = ""  # type: ignore[assignment]
    exclude: Annotated[str | None, _HOSTS] = SlurmConfig.exclude
    nodelist: Annotated[list[str] | None, _HOSTS] = SlurmConfig.nodelist
    comment: Annotated[str | None, _Rule(_is_line, "one line of text")] = SlurmConfig.comment
    nice: Annotated[int | None, _whole(-2_147_483_645, 2_147_483_645)] = None
    sbatch: Annotated[dict[str, Any], _SBATCH] = field(default_factory=dict)
    setup: Annotated[list[str], _SETUP] = field(default_factory=list)
    srun_args: Annotated[list[str], _SRUN_ARGS] = field(default_factory=list)
    python: Annotated[str | None, _PYTHON] = SlurmConfig.python
    container: Annotated[dict[str, Any], _CONTAINER] = field(default_factory=dict)
    container_chdir: Annotated[bool, _FLAG] = SlurmConfig.container_chdir
    force_chdir: Annotated[bool | None, _FLAG] = SlurmConfig.force_chdir
    code: Annotated[str, _CODE] = "snapshot"
    dependents: Annotated[int, _whole(0)] = SlurmConfig.dependents
    output_dir: Annotated[str, _FOLDER] = "outputs"
    dataset_paths: Annotated[dict[str, str], _PATHS] = field(default_factory=dict)
    cluster: str = field(default="", compare=False)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, cluster: str = "") -> "Profile":
        """Profile of the keys of a file; an empty list or mapping may be written as null.

        Raises:
            ConfigError: if a key is unknown (the valid ones are listed, the nearest first) or a value cannot be used.
        """
        profile = cls(cluster=cluster)
        profile.update(values)
        return profile

    @classmethod
    def from_section(cls, section: Any, *, cluster: str = "") -> "Profile":
        """Profile of the section `slurm` of a configuration.

        Raises:
            ConfigError: if a key is unknown, or a value cannot be used or resolved.
        """
        try:
            values = OmegaConf.to_container(section, resolve=True)
        except OmegaConfBaseException as error:
            where = f"in slurm of profile {cluster or 'config.yaml'}"
            raise ConfigError(f"{' '.join(str(error).split())} ({where})") from error
        assert isinstance(values, dict)
        return cls.from_mapping({str(key): value for key, value in values.items()}, cluster=cluster)

    @classmethod
    def of(cls, config: SlurmConfig) -> "Profile":
        """The profile itself, or one with the values of Dora's own configuration, without its partition."""
        return config if isinstance(config, cls) else cls.from_mapping(vars(config))

    @property
    def queue(self) -> str:
        """What limits of a site hold for: where there is no room for one job, there is none for others of its queue."""
        return str((self.partition, self.account, self.qos, self.sbatch))

    @property
    def file(self) -> str:
        """The file of this profile, as messages name it."""
        return shown(profile_path(self.cluster)) if self.cluster else "the profile"

    def _place(self, key: str, value: Any = None) -> str:
        """The line where a key is to be corrected."""
        return self.changed_in or (place_of(self.cluster, key, value=value) if self.cluster else self.file)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set some keys, and check the whole.

        Raises:
            ConfigError: if one is unknown, or a value cannot be used.
        """
        defaults = vars(type(self)())
        for key, value in values.items():
            if key not in _RULES:
                known = ", ".join(nearest_first(key, _RULES, n=3, cutoff=0.6))
                raise ConfigError(f"unknown key slurm.{key} in {self._place(key)}; valid keys: {known}.")
            if value is None and isinstance(defaults[key], list | dict | str):
                value = defaults[key]  # `setup: null` reads as none
            elif key == "partition" and value == _NO_PARTITION:
                value = None
            setattr(self, key, value)
        self.check()

    def check(self) -> None:
        """Check every value by itself, then all together.

        Raises:
            ConfigError: naming the key, what was found, where, and what is allowed.
        """
        for key, rule in _RULES.items():
            value, optional = getattr(self, key), key in _OPTIONAL
            if not (optional if value is None else rule.fits(value)):
                raise self._error(key, f"give {rule.allowed}{', or null' if optional else ''}")
        if problem := _setup_problem(tuple(self.setup)):
            raise self._error("setup", problem)
        if self.dependents:
            raise self._error("dependents", "give 0: a job that runs out of time is requeued instead")
        if self.mem_option == "mem-per-cpu" and self.cpu_option == "none":
            raise self._error("mem_option", "cpu_option is none, so the cores are not known; give mem, or none")
        if 0 < self.time * 60 <= self.signal_s:
            raise self._error("signal_s", f"give less than the time limit of the job, {self.time} min")
        total = self.total_mem_gb
        if self.max_mem_gb is not None and (total is None or self.max_mem_gb < total):
            found = "no memory is requested" if total is None else f"a job requests {total:g} GB"
            raise self._error("max_mem_gb", f"{found}; give that or more, or null")
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
            problem = f"{nodes} nodes of at most {whole} GPUs (gpus_per_node) need a multiple of {nodes}"
            raise self._error("gpus", problem)
        tasks = 1 if self.one_task_per_node else self.tasks_per_node or max(1, per_node)
        if self.one_task_per_node and self.tasks_per_node not in (None, 1):
            raise self._error("tasks_per_node", "one_task_per_node is set; give null or 1")
        if per_node % tasks:
            raise self._error("tasks_per_node", f"give a divisor of the {per_node} GPUs of a node, or null")
        cpus = self.cpus_per_task or max(1, self.cpus_per_gpu * per_node // tasks if per_node else self.cpus_per_gpu)
        return Shape(nodes=nodes, tasks_per_node=tasks, gpus_per_node=per_node, cpus_per_task=cpus)

    @property
    def total_mem_gb(self) -> float | None:
        """Memory of the whole job in GB, None where none is requested."""
        if self.mem_option == "none" or self.mem_gb is not None:
            return None if self.mem_option == "none" else self.mem_gb or None
        shape = self.shape()
        return self.mem_per_gpu * shape.nodes * max(1, shape.gpus_per_node) or None

    def node_mem_mb(self, mem_factor: float = 1.0) -> int | None:
        """Memory that each node gives the job in whole MB, at most `max_mem_gb` in all; None for SLURM's default."""
        total = self.total_mem_gb
        if total is None:
            return None
        grown = min(total * mem_factor, max(total, self.max_mem_gb or 0)) if mem_factor > 1 else total
        return math.ceil(grown / self.shape().nodes * 1024)

    def as_json(self) -> dict[str, Any]:
        """All values as plain containers, as a JSON file returns them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return values

    def environment(self) -> dict[str, str]:
        """Variables that a job of this profile needs, whichever engine starts it."""
        variables = {CLUSTER_VARIABLE: self.cluster} if self.cluster else {}
        if self.dataset_paths:
            variables[DATASET_PATHS_VARIABLE] = dump_paths(self.dataset_paths)
        return variables

    def _error(self, key: str, problem: str) -> ConfigError:
        value = getattr(self, key)
        return ConfigError(f"slurm.{key}={value!r} in {self._place(key, value)}: {problem}.")


_HINTS = {key: hint for key, hint in get_type_hints(Profile, include_extras=True).items() if key != "cluster"}
_RULES: dict[str, _Rule] = {key: hint.__metadata__[0] for key, hint in _HINTS.items()}
_OPTIONAL = frozenset(key for key, hint in _HINTS.items() if type(None) in get_args(hint.__origin__))


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
    return Profile.from_section(section, cluster=cluster)


class ProfileLauncher(dora.explore.Launcher):
    """Dora's `launcher` of a grid, where an unknown or impossible key is a mistake explained in one line."""

    def slurm_(self, **kwargs: Any) -> "ProfileLauncher":
        """Change what the following experiments request.

        Raises:
            ConfigError: if a key is unknown or a value cannot be used.
        """
        profile = Profile.of(self._slurm)
        profile.changed_in = _place_in_grid()
        profile.update(kwargs)
        self._slurm = profile
        return self

    def _copy(self) -> "ProfileLauncher":
        return type(self)(self._shepherd, self._slurm, self._herd, self._argv, self._pool)


def _place_in_grid() -> str:
    """File and line that called a launcher."""
    frame = inspect.currentframe()
    while frame and frame.f_code.co_filename in (__file__, dora.explore.__file__):
        frame = frame.f_back
    return f"{shown(Path(frame.f_code.co_filename))}:{frame.f_lineno}" if frame else ""


@functools.cache
def _setup_problem(lines: tuple[str, ...]) -> str:
    """What keeps setup lines from standing in a script before our own command, "" if nothing does."""
    for line in lines:
        if line.lstrip().startswith("#SBATCH"):
            return f"{line!r} is an option of sbatch; use the key of that option, or slurm.sbatch"
        if line.endswith("\\") or _HERE_DOCUMENT.search(line):
            return f"{line!r} would go on in the line after it; put it into a script and call that"
    if not lines:
        return ""
    check = sp.run(["bash", "-n", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    return f"bash cannot read them ({' '.join(check.stderr.split())})" if check.returncode else ""
