"""What `audiotok doctor` looks at: can this machine run and submit experiments, and if not, what is to be done.

Each check says what it found; no check fails the command, changes anything or waits for ever (a file system that hangs
counts as one that does not work). What is asked of SLURM stands in `launchers.doctor.slurm`, what of file systems in
`launchers.doctor.files`.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.requirements import Requirement

from audiotok.cluster import DEFAULT_CLUSTER, PROFILES, choose, cluster_name, list_profiles, settle
from audiotok.errors import AudiotokError, ConfigError
from audiotok.launchers.child import run_command as ask
from audiotok.launchers.doctor.check import Check, bounded, fail, ok, warn
from audiotok.launchers.doctor.files import check_data, check_output
from audiotok.launchers.doctor.slurm import check_slurm
from audiotok.launchers.engines import LAUNCHER_VARIABLE, detect
from audiotok.launchers.profile import Profile

IMPORT_S = 120.0
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
