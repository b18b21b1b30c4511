"""What `audiotok doctor` asks of SLURM: is it there, does it answer, and would it take a job of this profile."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audiotok.launchers.child import run_command as ask
from audiotok.launchers.doctor.check import Check, fail, ok, warn
from audiotok.launchers.lock import user_name
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.sbatch import make_script, max_array_size, show_config

NEEDED = ("sbatch", "srun", "squeue", "scancel", "scontrol")
HELPFUL = ("sacct", "sinfo", "sacctmgr")
WITHOUT_ACCOUNTING = "nothing to do: states come from squeue and from what jobs write themselves"
_GPUS = re.compile(r"gpu:(?:([A-Za-z][\w.-]*):)?(\d+)")


def check_slurm(profile: Profile | None) -> Iterator[Check]:
    """Look at SLURM from its commands to a job of the profile, and stop where going on makes no sense.

    Args:
        profile: what a job asks for, None if that is not known.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        yield fail("commands", f"not on PATH: {', '.join(missing)}", "load SLURM's module, or AUDIOTOK_LAUNCHER=local")
        return
    rest = ", ".join(name for name in HELPFUL if shutil.which(name) is None)
    yield ok("commands", f"all there but {rest}, which may be missing" if rest else "all there")
    said, failure = ask(["scontrol", "ping"])
    if failure or " is UP" not in said:
        found = failure or " ".join(said.split())
        yield fail(
            "slurmctld", f"it does not answer: {found}", "wait, ask your administrator, or AUDIOTOK_LAUNCHER=local"
        )
        return
    yield ok("slurmctld", f"{' '.join(said.split())}; {show_config().get('SLURM_VERSION', 'version unknown')}")
    yield check_accounting()
    if profile is None:
        return
    yield check_partition(profile)
    if profile.account or profile.qos:
        yield check_association(profile)
    yield check_arrays(profile)
    yield check_job(profile)


def check_accounting() -> Check:
    """Whether sacct answers; everything works without."""
    if shutil.which("sacct") is None:
        return warn("accounting", "there is no sacct", WITHOUT_ACCOUNTING)
    failure = ask(["sacct", "-n", "-X", "-S", "now-1hour", "-o", "JobID"])[1]
    if failure:
        return warn("accounting", f"sacct does not answer: {failure}", WITHOUT_ACCOUNTING)
    return ok("accounting", "sacct answers")


def check_partition(profile: Profile) -> Check:
    """Whether the partition is there and a job of the profile fits its limits and its nodes."""
    listing, failure = ask(["scontrol", "show", "partition", "-o"])
    if failure:
        return warn("partition", f"scontrol does not list partitions: {failure}", "see `sinfo`")
    known = {row["PartitionName"]: row for row in map(_fields, listing.splitlines()) if "PartitionName" in row}
    asked = (
        profile.partition.split(",") if profile.partition else [n for n, row in known.items() if _is(row, "Default")]
    )
    there = f"there are: {', '.join(known) or 'none'}"
    if not asked:
        return fail("partition", "the profile names none and this cluster has no default", f"set partition; {there}")
    unknown = [name for name in asked if name not in known]
    if unknown:
        return fail("partition", f"no partition {', '.join(unknown)}", f"correct partition in {profile.where}; {there}")
    problems = {name: _does_not_fit(profile, known[name]) for name in asked}
    if all(problems.values()):
        told = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        return fail("partition", told, f"correct {profile.where}, or choose another partition ({there})")
    fits = next(name for name in asked if not problems[name])
    limit = known[fits].get("MaxTime", "unknown")
    return ok("partition", f"{', '.join(asked)}; at most {limit}, {known[fits].get('TotalNodes', '?')} nodes")


def check_association(profile: Profile) -> Check:
    """Whether this user may use the account and the quality of service of the profile."""
    wanted = ", ".join(f"{key} {value}" for key, value in (("account", profile.account), ("qos", profile.qos)) if value)
    if shutil.which("sacctmgr") is None:
        return warn("account", f"{wanted}: there is no sacctmgr to ask", "see the line `job`")
    query = ["sacctmgr", "-n", "-P", "show", "associations", f"user={user_name()}", "format=account,qos"]
    listing, failure = ask(query)
    rows = [line.split("|") for line in listing.splitlines() if line.count("|") == 1]
    if failure or not rows:
        return warn(
            "account", f"{wanted}: sacctmgr lists none for you{f' ({failure})' * bool(failure)}", "see the line `job`"
        )
    accounts = sorted({account for account, _ in rows})
    allowed = sorted(
        {name for account, names in rows for name in names.split(",") if profile.account in (None, account)}
    )
    if profile.account and profile.account not in accounts:
        advice = f"correct account in {profile.where}; yours are: {', '.join(accounts)}"
        return fail("account", f"no account {profile.account} for you", advice)
    if profile.qos and profile.qos not in allowed:
        advice = f"correct qos in {profile.where}; yours are: {', '.join(allowed)}"
        return fail("account", f"no qos {profile.qos} for you", advice)
    return ok("account", f"{wanted} are yours")


def check_arrays(profile: Profile) -> Check:
    """How long an array may be; a grid that is longer goes out as several."""
    size = max_array_size(profile)
    cluster = show_config().get("MaxArraySize", "")
    if cluster.isdecimal() and size > int(cluster):
        advice = f"set max_array_size to null in {profile.where}"
        return fail("arrays", f"max_array_size={size}, but SLURM takes {cluster} at most", advice)
    return ok("arrays", f"up to {size} jobs each, {int(profile.array_parallelism)} of them at once")


def check_job(profile: Profile) -> Check:
    """What sbatch says to the very script of this profile; --test-only submits nothing."""
    with tempfile.TemporaryDirectory(prefix="audiotok-doctor-") as folder:
        script = Path(folder) / "job.sh"
        script.write_text(make_script(profile, "audiotok-doctor", Path(folder), ["--version"]))
        said, failure = ask(["sh", "-c", 'exec sbatch --test-only "$0" 2>&1', str(script)])
    last = " ".join(said.split()).removeprefix("sbatch: ")
    if failure:
        return fail("job", f"sbatch would refuse it: {last or failure}", f"correct {profile.where}")
    return ok("job", last or "sbatch would take it")


def _does_not_fit(profile: Profile, row: dict[str, str]) -> str:
    """Why a job of the profile cannot run in a partition, "" if it can."""
    shape, memory, name = profile.shape(), profile.node_mem_mb() or 0, row["PartitionName"]
    if row.get("State", "UP") != "UP":
        return f"its state is {row['State']}"
    minutes = _minutes(row.get("MaxTime", ""))
    if minutes is not None and profile.time > minutes:
        return f"time={int(profile.time)} min is above its limit of {minutes} min ({row['MaxTime']})"
    if row.get("MaxNodes", "").isdecimal() and shape.nodes > int(row["MaxNodes"]):
        return f"{shape.nodes} nodes are above its limit of {row['MaxNodes']}"
    if shutil.which("sinfo") is None:
        return ""
    listing, failure = ask(["sinfo", "-h", "-p", name, "-o", "%D|%c|%m|%G"])
    if failure:
        return ""
    cpus, able, seen = shape.cpus_per_task * shape.tasks_per_node, 0, []
    for count, cores, megabytes, gres in (line.split("|") for line in listing.splitlines() if line.count("|") == 3):
        gpus = sum(int(n) for kind, n in _GPUS.findall(gres) if profile.gpu_type in (None, kind))
        fits = _number(cores) >= cpus and _number(megabytes) >= memory and gpus >= shape.gpus_per_node
        able += _number(count) if fits else 0
        seen.append(f"{count} with {cores} cores, {_number(megabytes) / 1024:.0f} GB, {gpus} GPUs")
    if not seen or able >= shape.nodes:
        return ""
    kind = f" {profile.gpu_type}" if profile.gpu_type else ""
    wanted = f"{shape.nodes} with {cpus} cores, {memory / 1024:.0f} GB, {shape.gpus_per_node}{kind} GPUs"
    return f"wanted are nodes: {wanted}; it has: {'; '.join(seen)}"


def _fields(line: str) -> dict[str, str]:
    """`A=1 B=2 ...` of scontrol as a mapping."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _is(row: dict[str, str], key: str) -> bool:
    return row.get(key, "NO").upper() == "YES"


def _number(text: str) -> int:
    """Number in a column of sinfo; `64+` is at least 64."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _minutes(text: str) -> int | None:
    """Time of SLURM ([D-]H:M:S, M:S) in whole minutes, None if there is no limit."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts) or (days and not days.isdecimal()):
        return None
    units = (60.0, 1.0, 1 / 60)[: len(parts)] if dash or len(parts) == 3 else (1.0, 1 / 60)[: len(parts)]
    return int(int(days or 0) * 1440 + sum(int(part) * unit for part, unit in zip(parts, units, strict=True)))
