"""The checks of SLURM in `audiotok doctor`: is it there, does it answer, would it accept a job of this profile."""

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audiotok.launchers.child import run_command
from audiotok.launchers.engine import Check
from audiotok.launchers.lock import user_name
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import sbatch

_NEEDED = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_HELPFUL = ("sacct", "sinfo", "sacctmgr")
_SOURCED = re.compile(
    r"""\s*(?:source|\.)\s+("[^"$`]*/[^"$`]*"|'[^']*/[^']*'|[\w./+@%:,-]*/[\w./+@%:,-]*)"""
)  # by a literal path
_GPUS = re.compile(r"gpu:(?:([A-Za-z][\w.-]*):)?(\d+)")


def check_slurm(profile: Profile | None) -> Iterator[Check]:
    """Check SLURM from its commands to a job of the profile, if known; ends where the rest makes no sense."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        advice = "load SLURM's module, or AUDIOTOK_LAUNCHER=local"
        yield Check.fail("commands", f"not on PATH: {', '.join(missing)}", advice)
        return
    rest = ", ".join(name for name in _HELPFUL if shutil.which(name) is None)
    yield Check.ok("commands", f"all there but {rest}, which may be missing" if rest else "all there")
    answer, failure = run_command(["scontrol", "ping"])
    answer = " ".join(answer.split())
    if failure or " is UP" not in answer:
        advice = "wait, see your administrator, or AUDIOTOK_LAUNCHER=local"
        yield Check.fail("slurmctld", f"it does not answer: {failure or answer}", advice)
        return
    yield Check.ok("slurmctld", f"{answer}; {sbatch.show_config().get('SLURM_VERSION', 'version unknown')}")
    yield _check_accounting()
    if profile is None:
        return
    yield from _check_files(profile)
    if profile.sbatch.get("clusters"):
        yield _check_clusters(profile)
    if variables := sbatch.open_environment(profile, os.environ):
        found = f"{', '.join(f'{name}={value}' for name, value in variables.items())} in the environment of each job"
        yield Check.warn("variables", found, "unset what is not meant, or set it in the profile")
    yield _check_partition(profile)
    yield from _check_account(profile)
    yield _check_arrays(profile)
    yield _check_job(profile)


def _check_accounting() -> Check:
    """Whether sacct answers; everything works without."""
    advice = "nothing to do: states come from squeue and from what jobs write themselves"
    if shutil.which("sacct") is None:
        return Check.warn("accounting", "there is no sacct", advice)
    failure = run_command(["sacct", "-n", "-X", "-S", "now-1hour", "-o", "JobID"])[1]
    if failure:
        return Check.warn("accounting", f"sacct does not answer: {failure}", advice)
    return Check.ok("accounting", "sacct answers")


def _check_files(profile: Profile) -> Iterator[Check]:
    """Whether the image and the mounts of the container and the files that setup lines source are here."""
    image, mounts = str(profile.container.get("image", "")), profile.container.get("mounts") or ()
    needed = [("container", mount.split(":")[0]) for mount in mounts]
    if image.startswith(("/", ".")) or ("/" not in image and image.endswith((".sif", ".sqsh", ".img"))):
        needed.append(("container", image))
    for line in profile.setup:
        if found := _SOURCED.match(line):
            needed.append(("setup", shlex.split(found[1])[0]))
    for key in dict.fromkeys(key for key, _ in needed):
        missing = [path for where, path in needed if where == key and not Path(path).exists()]
        advice = f"correct {key} in {profile.file}; if only the nodes have that, `audiotok doctor --try` shows it"
        if missing:
            yield Check.fail(key, f"not here: {', '.join(missing)}", advice)
        else:
            yield Check.ok(key, f"here: {', '.join(path for where, path in needed if where == key)}")


def _check_clusters(profile: Profile) -> Check:
    """Whether the other clusters that jobs go to are known."""
    names, here = str(profile.sbatch["clusters"]).split(","), sbatch.show_config().get("ClusterName", "")
    listing, failure = run_command(["sacctmgr", "-n", "-P", "show", "clusters", "format=cluster"])
    known = [here, *("" if failure else listing).split()]
    unknown = ", ".join(name for name in names if name not in (*known, "all"))
    if unknown:
        advice = f"correct sbatch in {profile.file}; there are: {', '.join(sorted(set(known)))}"
        return Check.fail("clusters", f"no cluster {unknown}", advice)
    return Check.ok("clusters", f"jobs go to {', '.join(names)}, from {here}")


def _check_partition(profile: Profile) -> Check:
    """Whether the partition exists and a job of the profile fits its limits and its nodes."""
    listing, failure = run_command(["scontrol", *_elsewhere(profile), "show", "partition", "-o"])
    if failure:
        return Check.warn("partition", f"scontrol does not list partitions: {failure}", "see `sinfo`")
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in listing.splitlines()]
    known = {row["PartitionName"]: row for row in rows if "PartitionName" in row}
    defaults = [name for name, row in known.items() if row.get("Default", "NO").upper() == "YES"]
    names = profile.partition.split(",") if profile.partition else defaults
    there = f"there are: {', '.join(known) or 'none'}"
    if not names:
        found = "the profile names none and this cluster has no default"
        return Check.fail("partition", found, f"set partition; {there}")
    unknown = ", ".join(name for name in names if name not in known)
    if unknown:
        return Check.fail("partition", f"no partition {unknown}", f"correct partition in {profile.file}; {there}")
    problems = {name: _does_not_fit(profile, known[name]) for name in names}
    if all(problems.values()):
        found = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        return Check.fail("partition", found, f"correct {profile.file}, or choose another partition ({there})")
    fits = known[next(name for name in names if not problems[name])]
    limits = f"at most {fits.get('MaxTime', 'unknown')}, {fits.get('TotalNodes', '?')} nodes"
    return Check.ok("partition", f"{', '.join(names)}; {limits}")


def _check_account(profile: Profile) -> Iterator[Check]:
    """Whether this user may use the account and the quality of service of the profile, and which limits those have."""
    pairs = (("account", profile.account), ("qos", profile.qos))
    names = ", ".join(f"{key} {value}" for key, value in pairs if value)
    rows, failure = _accounting(
        "associations", f"user={user_name()}", "account,qos,defaultqos", "maxsubmitjobs,maxjobs"
    )
    if names and not rows:
        found = f"{names}: sacctmgr lists none for you{f' ({failure})' * bool(failure)}"
        yield Check.warn("account", found, "see the line `job`")
    accounts, mine = sorted({row[0] for row in rows}), [row for row in rows if profile.account in (None, row[0])]
    allowed = sorted({qos for row in mine for qos in row[1].split(",")})
    if rows and not mine:
        advice = f"correct account in {profile.file}; yours are: {', '.join(accounts)}"
        yield Check.fail("account", f"no account {profile.account} for you", advice)
    elif rows and profile.qos and profile.qos not in allowed:
        advice = f"correct qos in {profile.file}; yours are: {', '.join(allowed)}"
        yield Check.fail("account", f"no qos {profile.qos} for you", advice)
    elif rows and names:
        yield Check.ok("account", f"{names} are yours")
    used = {profile.qos} if profile.qos else {row[2] for row in mine}
    classes = _accounting("qos", "", "name", "maxsubmitjobsperuser,maxjobsperuser")[0] if mine else []
    limits = [(f"account {row[0]}", row[3:]) for row in mine]
    limits += [(f"qos {row[0]}", row[1:]) for row in classes if row[0] in used]
    words = ("{} submitted jobs", "{} running jobs", "{} for a job")
    found = "; ".join(
        f"{name}: at most {word.format(limit)}"
        for name, row in limits
        for word, limit in zip(words, row, strict=True)
        if limit
    )
    longest = [minutes for _, row in limits if (minutes := _minutes(row[2])) is not None]
    if longest and profile.time > (min if profile.qos else max)(longest):
        advice = f"correct time in {profile.file}, or choose another qos"
        yield Check.fail("limits", f"time={int(profile.time)} min is above them: {found}", advice)
    elif found:
        yield Check.ok("limits", f"{found}; what is beyond is submitted as there is room")


def _accounting(what: str, which: str, columns: str, limits: str) -> tuple[list[list[str]], str]:
    """Rows of `sacctmgr show`, with the time limit as the last column, and why there are none."""
    names = f"{columns},{limits},maxwall"
    words = ["sacctmgr", "-n", "-P", "show", what, *filter(None, (which, f"format={names}"))]
    listing, failure = run_command(words)
    return [line.split("|") for line in listing.splitlines() if line.count("|") == names.count(",")], failure


def _check_arrays(profile: Profile) -> Check:
    """How long an array may be; a longer grid goes out as several."""
    size, cluster = sbatch.max_array_size(profile), sbatch.show_config().get("MaxArraySize", "")
    if cluster.isdecimal() and size > int(cluster):
        advice = f"set max_array_size to null in {profile.file}"
        return Check.fail("arrays", f"max_array_size={size}, but SLURM takes {cluster} at most", advice)
    return Check.ok("arrays", f"up to {size} jobs each, {int(profile.array_parallelism)} of them at once")


def _check_job(profile: Profile) -> Check:
    """The verdict of sbatch on the very script of this profile; --test-only submits nothing."""
    with tempfile.TemporaryDirectory(prefix="audiotok-doctor-") as folder:
        script = Path(folder) / "job.sh"
        script.write_text(sbatch.make_script(profile, "audiotok-doctor", Path(folder), ["--version"]))
        command = ["sh", "-c", 'exec sbatch --test-only "$0" 2>&1', str(script)]
        output, failure = run_command(command, environ=sbatch.sbatch_environment(profile))
    last = " ".join(output.split()).removeprefix("sbatch: ")
    if failure:
        return Check.fail("job", f"sbatch would refuse it: {last or failure}", f"correct {profile.file}")
    return Check.ok("job", last or "sbatch would take it")


def _does_not_fit(profile: Profile, row: dict[str, str]) -> str:
    """Why a job of the profile cannot run in a partition, "" if it can."""
    shape, memory = profile.shape(), profile.node_mem_mb() or 0
    if row.get("State", "UP") != "UP":
        return f"its state is {row['State']}"
    minutes = _minutes(row.get("MaxTime", ""))
    if minutes is not None and profile.time > minutes:
        return f"time={int(profile.time)} min is above its limit of {minutes} min ({row['MaxTime']})"
    if row.get("MaxNodes", "").isdecimal() and shape.nodes > int(row["MaxNodes"]):
        return f"{shape.nodes} nodes are above its limit of {row['MaxNodes']}"
    listing, failure = run_command(
        ["sinfo", *_elsewhere(profile), "-h", "-p", row["PartitionName"], "-o", "%D|%c|%m|%G"]
    )
    if failure:  # also where there is no sinfo
        return ""
    cpus, able, seen = shape.cpus_per_task * shape.tasks_per_node, 0, []
    for count, cores, megabytes, gres in (line.split("|") for line in listing.splitlines() if line.count("|") == 3):
        gpus = sum(int(number) for kind, number in _GPUS.findall(gres) if profile.gpu_type in (None, kind))
        fits = _number(cores) >= cpus and _number(megabytes) >= memory and gpus >= shape.gpus_per_node
        able += _number(count) if fits else 0
        seen.append(f"{count} with {cores} cores, {_number(megabytes) / 1024:.0f} GB, {gpus} GPUs")
    if not seen or able >= shape.nodes:
        return ""
    kind = f" {profile.gpu_type}" if profile.gpu_type else ""
    needed = f"{shape.nodes} with {cpus} cores, {memory / 1024:.0f} GB, {shape.gpus_per_node}{kind} GPUs"
    return f"nodes needed: {needed}; it has: {'; '.join(seen)}"


def _elsewhere(profile: Profile) -> list[str]:
    """Arguments with which SLURM's commands answer for the cluster that jobs go to."""
    clusters = profile.sbatch.get("clusters")
    return ["-M", str(clusters)] if clusters else []


def _number(text: str) -> int:
    found = re.match(r"\d+", text)  # of a column of sinfo; `64+` is at least 64
    return int(found[0]) if found else 0


def _minutes(text: str) -> int | None:
    """Time of SLURM ([D-]H:M:S, M:S) in whole minutes, None if there is no limit."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (*parts, days or "0")):
        return None
    units = (60.0, 1.0, 1 / 60) if dash or len(parts) == 3 else (1.0, 1 / 60)
    return int(int(days or 0) * 1440 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False)))
