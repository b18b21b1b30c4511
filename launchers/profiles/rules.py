"""What each key of a cluster profile may hold; see `launchers.profile` for what the keys mean together.

Values end in lines of a shell script, so that anything which could break out of its line is refused here.
"""

import functools
import math
import re
import subprocess as sp
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.&|!()\[\]*,:=-]*")
_NODES = re.compile(r"[A-Za-z0-9_.-]+(\[[0-9,-]+\][A-Za-z0-9_.-]*)*(,[A-Za-z0-9_.-]+(\[[0-9,-]+\][A-Za-z0-9_.-]*)*)*")
_OPTION = re.compile(r"[a-z][a-z-]*[a-z]")
_HERE_DOCUMENT = re.compile(r"(?<!<)<<(?!<)")
_MADE_HERE = frozenset(
    {
        "account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "error",
        "exclude", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu",
        "mem-per-gpu", "nice", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode",
        "output", "partition", "qos", "requeue", "signal", "time", "wrap",
    }
)  # fmt: skip
"""Options of sbatch that follow from other keys, or that the launcher itself needs as they are."""


@dataclass(frozen=True)
class Rule:
    """What a key may hold: a test of a value, and what is allowed in words."""

    fits: Callable[[Any], bool]
    allowed: str
    optional: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value, "" if nothing is."""
        if (value is None and self.optional) or (value is not None and self.fits(value)):
            return ""
        return f"give {self.allowed}{', or null' if self.optional else ''}"


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _whole(low: int, high: int | None = None, unit: str = "", *, optional: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return whole and value == int(value) and low <= value <= (value if high is None else high)

    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    return Rule(fits, f"a whole number {limits}{unit and f' ({unit})'}", optional)


def _number(low: float, unit: str, *, optional: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and value >= low

    return Rule(fits, f"a number of at least {low:g} ({unit})", optional)


def _pattern(pattern: re.Pattern[str], allowed: str, *, optional: bool = True) -> Rule:
    return Rule(lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None, allowed, optional)


def _lines(allowed: str, *, optional: bool = False) -> Rule:
    return Rule(lambda value: isinstance(value, list | tuple) and all(_is_line(v) for v in value), allowed, optional)


def _fits_nodelist(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(name, str) and _NODES.fullmatch(name) is not None for name in names)


def _fits_options(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and _OPTION.fullmatch(key) and key not in _MADE_HERE
        and (isinstance(content, bool | int | float) or (_is_line(content) and content)) and content is not False
        for key, content in value.items()
    )  # fmt: skip


def _fits_folder(value: Any) -> bool:
    return _is_line(value) and bool(value) and not value.startswith("~")


def _fits_paths(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_line(v) and v.startswith("/") for pair in value.items() for v in pair)


_FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
_LIST_OF_NODES = "names of nodes, such as n1,n[3-5]"

RULES: dict[str, Rule] = {
    "gpus": _whole(0),
    "gpus_per_node": _whole(1, 64),
    "gpu_type": _pattern(re.compile(r"[A-Za-z0-9_.-]+"), "the name of a kind of GPU, such as h100"),
    "nodes": _whole(1, optional=True),
    "tasks_per_node": _whole(1, optional=True),
    "one_task_per_node": _FLAG,
    "cpus_per_gpu": _whole(1),
    "cpus_per_task": _whole(1, optional=True),
    "mem_per_gpu": _number(0, "GB"),
    "mem_gb": _number(0, "GB", optional=True),
    "max_mem_gb": _number(0, "GB", optional=True),
    "oom_mem_factor": _number(1, "times the memory of before"),
    "time": _whole(1, 525_600, "minutes"),
    "signal_s": _whole(1, 65_535, "seconds"),
    "max_num_timeout": _whole(0),
    "array_parallelism": _whole(1),
    "max_array_size": _whole(1, unit="jobs of one array", optional=True),
    "partition": _pattern(_NAME, "the name of a partition, as `sinfo` lists them"),
    "account": _pattern(_NAME, "the name of an account"),
    "qos": _pattern(_NAME, "the name of a quality of service"),
    "constraint": _pattern(_CONSTRAINT, "features of nodes, such as h100&nvlink"),
    "exclude": Rule(_fits_nodelist, _LIST_OF_NODES, True),
    "nodelist": Rule(_fits_nodelist, _LIST_OF_NODES, True),
    "comment": Rule(_is_line, "one line of text", True),
    "nice": _whole(-2_147_483_645, 2_147_483_645, optional=True),
    "sbatch": Rule(
        _fits_options,
        "further options of sbatch by their long names, such as {reservation: course}; "
        "those that other keys make are left out",
    ),
    "setup": _lines("a list of shell lines, such as [module load cuda]"),
    "srun_args": _lines("a list of arguments of srun, such as [--mpi=none]"),
    "python": Rule(lambda value: _is_line(value) and bool(value.strip()), "a command that starts Python", True),
    "container_chdir": _FLAG,
    "force_chdir": Rule(_FLAG.fits, _FLAG.allowed, True),
    "dependents": _whole(0),
    "output_dir": Rule(_fits_folder, "a folder, such as /scratch/${oc.env:USER}/audiotok (no ~)"),
    "dataset_paths": Rule(_fits_paths, "absolute folders, such as {/home/me/music: /scratch/me/music}"),
}
"""By key. A test holds its names against the fields of `Profile` and the keys of `config/cluster/default.yaml`."""


@functools.cache
def setup_problem(lines: tuple[str, ...]) -> str:
    """What keeps setup lines from standing in a script before our own command, "" if nothing does."""
    for line in lines:
        if line.lstrip().startswith("#SBATCH"):
            return f"{line!r} asks sbatch for something; use the key of that option, or slurm.sbatch"
        if line.endswith("\\") or _HERE_DOCUMENT.search(line):
            return f"{line!r} would go on in the line after it; put it into a script and call that"
    if not lines:
        return ""
    check = sp.run(["bash", "-n", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    return f"bash cannot read them ({' '.join(check.stderr.split())})" if check.returncode else ""
