"""What `audiotok doctor` looks at: can this machine run and submit experiments, and if not, what is to be done.

Each check says what it found; no check fails the command, changes anything or waits for ever (a file system that hangs
counts as one that does not work). What is asked of SLURM stands in `launchers.doctor_slurm`.
"""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from gzip import open as open_gzip
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.requirements import Requirement

from audiotok.cluster import (
    DEFAULT_CLUSTER,
    PROFILES,
    choose,
    cluster_name,
    dataset_paths,
    list_profiles,
    map_path,
    settle,
)
from audiotok.errors import AudiotokError, ConfigError
from launchers.check import Check, ask, bounded, fail, ok, warn
from launchers.doctor_slurm import check_slurm
from launchers.hooks import LAUNCHER_VARIABLE, detect
from launchers.profile import Profile

IMPORT_S = 120.0
ROOMY_GB, CRAMPED_GB = 50.0, 2.0
SPLITS = ("train", "valid", "evaluate", "generate")
PACKAGES = ("torch", "torchaudio", "dora-search", "submitit", "flashy", "hydra-core", "omegaconf")


def examine(overrides: Sequence[str] = (), *, torch: bool = False) -> Iterator[Check]:
    """Look at everything, in the order in which a newcomer would mend it.

    Args:
        overrides: as of `dora run`, such as `solver=compression/demo`: which data is to be looked for.
        torch: also import torch and ask it for GPUs, which takes a while.
    """
    yield check_versions()
    gpus = check_gpus()
    yield gpus
    if torch:
        yield check_torch()
    try:
        launcher = detect(os.environ)
    except ConfigError as error:
        yield fail("launcher", str(error), f"correct or unset {LAUNCHER_VARIABLE}")
        launcher = ""
    else:
        yield check_launcher(launcher)
    config, check = load_config(overrides)
    yield check
    profile = None
    if config is not None:
        profile, check = check_profile(config)
        yield check
    if launcher == "slurm":
        yield from check_slurm(profile)
    elif launcher == "local" and profile is not None and profile.gpus and gpus.found.startswith("none"):
        yield warn(
            "size", f"the profile asks for {profile.gpus} GPUs, here are none: jobs run on the CPU", "use small presets"
        )
    if config is not None:
        yield bounded("output", lambda: check_output(Path.cwd() / config.dora.dir, shared=launcher == "slurm"))
        yield bounded("data", lambda: check_data(config))


def check_versions() -> Check:
    """Python and the packages that this code was tested with."""
    found, wrong = [f"python {sys.version.split()[0]}"], []
    try:
        wanted = {r.name: r for r in map(Requirement, metadata.requires("audiotok") or ())}
    except metadata.PackageNotFoundError:
        return fail("versions", "audiotok itself is not installed", "run `make install`")
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {version}")
        if name in wanted and not wanted[name].specifier.contains(version, prereleases=True):
            wrong.append(f"{name} {version} is not {wanted[name].specifier}")
    return fail("versions", "; ".join(wrong), "run `make install`") if wrong else ok("versions", ", ".join(found))


def check_gpus() -> Check:
    """What nvidia-smi lists; a login node has none and needs none."""
    if shutil.which("nvidia-smi") is None:
        return ok("gpus", "none on this machine (no nvidia-smi)")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listing, failure = ask(query)
    if failure:
        return warn(
            "gpus", f"nvidia-smi fails: {failure}", "ask your administrator, or set CUDA_VISIBLE_DEVICES= to go on"
        )
    names = [line.strip() for line in listing.splitlines() if line.strip()]
    kinds = [f"{names.count(name)} x {name}" for name in sorted(set(names))]
    return ok("gpus", "; ".join(kinds) or "none that nvidia-smi lists")


def check_torch() -> Check:
    """Whether torch can be imported and sees the GPUs."""
    code = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    said, failure = ask([sys.executable, "-c", code], seconds=IMPORT_S)
    if failure:
        return fail("torch", f"it cannot be imported: {failure}", "run `make install`")
    count, cuda = said.split()
    if cuda == "None":
        return ok("torch", "it can be imported; this build has no CUDA")
    if count == "0" and shutil.which("nvidia-smi"):
        return warn("torch", f"built for CUDA {cuda}, but sees no GPU", "compare with the driver of the line `gpus`")
    return ok("torch", f"built for CUDA {cuda}, sees {count} GPUs")


def check_launcher(name: str) -> Check:
    """Which launcher `dora` uses here, and why."""
    if os.environ.get(LAUNCHER_VARIABLE, "").strip():
        return ok("launcher", f"{name} ({LAUNCHER_VARIABLE} in the environment)")
    return ok("launcher", f"{name} ({'sbatch is' if name == 'slurm' else 'no sbatch'} on PATH)")


def load_config(overrides: Sequence[str]) -> tuple[DictConfig | None, Check]:
    """Choose the profile and compose the configuration with it."""
    try:
        choice = choose(os.environ)
        settle(os.environ)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(PROFILES.parent), version_base="1.3"):
            config = compose("config", list(overrides))
        OmegaConf.to_container(OmegaConf.select(config, "dora"), resolve=True)
    except (AudiotokError, HydraException, OmegaConfBaseException) as error:
        return None, fail("cluster", " ".join(str(error).split()), "correct the configuration or the command")
    found = f"profile {choice.name} ({choice.how})"
    if choice.name == DEFAULT_CLUSTER and shutil.which("sbatch"):
        others = [name for name in list_profiles() if name not in (DEFAULT_CLUSTER, "template")]
        name = cluster_name(os.environ)[0] or "NAME"
        advice = (
            f"cp config/cluster/template.yaml config/cluster/{name}.yaml and edit that, or export "
            f"AUDIOTOK_CLUSTER={'|'.join(others)}"
        )
        return config, warn("cluster", found, advice)
    return config, ok("cluster", found)


def check_profile(config: DictConfig) -> tuple[Profile | None, Check]:
    """Whether the values of the profile can be used, and what a job of it is."""
    name = choose(os.environ).name
    try:
        values = OmegaConf.to_container(config.slurm, resolve=True)
        assert isinstance(values, dict)
        profile = Profile.from_mapping({str(key): value for key, value in values.items()}, cluster=name)
    except (ConfigError, OmegaConfBaseException) as error:
        return None, fail("profile", " ".join(str(error).split()), f"correct config/cluster/{name}.yaml")
    shape, memory = profile.shape(), profile.node_mem_mb()
    size = f"nodes x processes: {shape.nodes} x {shape.tasks_per_node}"
    each = f"{shape.gpus_per_node} GPUs, {shape.cpus_per_task * shape.tasks_per_node} cores"
    asked = f"{memory / 1024:g} GB" if memory else "SLURM's default memory"
    return profile, ok("profile", f"{size}; on each node {each}, {asked}; {int(profile.time)} min")


def check_output(folder: Path, *, shared: bool) -> Check:
    """Whether results can be written and locked, and how much room there is; leaves nothing behind.

    Args:
        folder: the results folder; it need not exist yet.
        shared: jobs run on other machines, which must see it.
    """
    here = next(path for path in (folder, *folder.parents) if path.exists())
    advice = "set output_dir in the profile, or AUDIOTOK_OUTPUT_DIR"
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=here) as first, Path(first.name).open("rb") as second:
            first.write(b"\0" * 4096)
            first.flush()
            locks = _locks_hold(first.fileno(), second.fileno())
    except OSError as error:
        return fail("output", f"{folder}: cannot write in {here} ({error.strerror})", advice)
    free = shutil.disk_usage(here).free / 1e9
    found = f"{folder}{'' if here == folder else ' (will be made)'}, {free:.0f} GB free"
    if not locks:
        return fail("output", f"{found}, but flock does not work there", f"{advice}, on a file system with locks")
    if free < CRAMPED_GB:
        return fail("output", found, f"make room, or {advice}")
    if shared and here.is_relative_to(tempfile.gettempdir()):
        return warn("output", f"{found}, below {tempfile.gettempdir()}", f"nodes will not see it: {advice}")
    if free < ROOMY_GB:
        return warn("output", found, f"a grid may fill it: make room, or {advice}")
    return ok("output", f"{found}, locks work")


def check_data(config: DictConfig) -> Check:
    """Whether the manifests that the configuration names are here, and the first track of each."""
    asked = {split: config.datasource[split] for split in SPLITS if config.datasource.get(split)}
    if not asked:
        return warn(
            "data",
            "the configuration names no manifests",
            "say which experiment to look at, such as `audiotok doctor solver=compression/demo`",
        )
    try:
        paths = dataset_paths(os.environ)
    except ConfigError as error:
        return fail("data", str(error), "correct dataset_paths in the profile")
    problems, counts = [], 0
    for split, path in asked.items():
        problem = _manifest_problem(map_path(Path(path), paths))
        problems += [f"{split}: {problem}"] if problem else []
        counts += not problem
    if problems:
        return fail(
            "data",
            "; ".join(problems),
            "write them with `audiotok data prepare` (`audiotok data demo` for the demo), or say with dataset_paths in "
            "the profile where they lie here",
        )
    return ok("data", f"{', '.join(asked)}: {counts} manifests and their first tracks")


def _locks_hold(first: int, second: int) -> bool:
    """Tell whether a lock on one opening of a file keeps out the other."""
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _manifest_problem(path: Path) -> str:
    names = (path / "data.jsonl.gz", path / "data.jsonl") if path.is_dir() else (path,)
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        return f"no manifest {path}"
    try:
        with open_gzip(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            first: Any = json.loads(next(lines))["path"]
        track = (
            file.parent / map_path(Path(first), dataset_paths(os.environ))
            if first.startswith("/")
            else file.parent / first
        )
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        return f"{file} cannot be read ({type(error).__name__}: {error})"
    return "" if track.is_file() else f"{file} is here, its first track {track} is not"
