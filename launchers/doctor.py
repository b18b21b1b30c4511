"""`audiotok doctor`: can this machine run and submit experiments, and if not, what to do about it.

None but the job of `--try` changes anything, none waits for ever; a file system that hangs counts as one that does not
work. The checks of a scheduler are its engine's.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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

from audiotok import cluster
from audiotok.errors import AudiotokError, ConfigError
from audiotok.files import hold_lock
from audiotok.launchers.child import run_command as query
from audiotok.launchers.engine import Check, Engine
from audiotok.launchers.profile import Profile
from audiotok.launchers.shepherd import ENGINES, LAUNCHER_VARIABLE, detect

IMPORT_S, FILES_S = 120.0, 15.0  # patience with the import of torch, and with a file system
ROOMY_GB, CRAMPED_GB = 50.0, 2.0
PACKAGES = ("torch", "torchaudio", "dora-search", "submitit", "flashy", "hydra-core", "omegaconf")
SPLITS = ("train", "valid", "evaluate", "generate")

_Load = Callable[[Sequence[str]], DictConfig]


def examine(
    overrides: Sequence[str] = (), *, torch: bool = False, trial: bool = False, load: _Load | None = None
) -> Iterator[Check]:
    """Run all checks, in the order in which a newcomer would correct what they find.

    Args:
        overrides: as of `dora run`, such as `solver=compression/demo`: whose data to look for.
        torch: also import torch and count its GPUs, which takes a while.
        trial: also submit a short job of the profile and follow it.
        load: composes the configuration of a project; None: the library's.
    """
    yield _check_versions()
    gpus = _check_gpus()
    yield gpus
    if torch:
        yield _check_torch()
    engine, check = _check_launcher()
    yield check
    if engine is None:
        os.environ.pop(LAUNCHER_VARIABLE)  # the rest can be checked without, and is not to fail for the same mistake
    config, check = _load_config(overrides, load or _load_library)
    yield check
    profile, remote = None, engine is not None and engine.remote
    if config is not None:
        profile, check = _check_profile(config)
        yield check
    if engine is not None:
        yield from engine.check(profile)
    if engine is not None and not remote and profile and profile.gpus and gpus.found.startswith("none"):
        found = f"the profile requests {profile.gpus} GPUs, here are none: jobs run on the CPU"
        yield Check.warn("size", found, "use small presets")
    if config is not None:
        yield _bounded("output", lambda: _check_output(Path.cwd() / config.dora.dir, shared=remote))
        yield _bounded("data", lambda: _check_data(config))
    if trial and profile is not None and config is not None and engine is not None:
        if hasattr(engine, "try_job"):
            yield from engine.try_job(profile, Path.cwd() / config.dora.dir)
        else:
            yield Check.ok("try", f"{engine.name} needs none: what its jobs need is checked above")


def _bounded(name: str, check: Callable[[], Check], seconds: float = FILES_S) -> Check:
    """A check of files that may hang in a dead file system; its thread is then left behind."""
    result: list[Check] = []

    def run() -> None:
        try:
            result.append(check())
        except OSError as error:
            result.append(Check.fail(name, str(error), "look at that path"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else Check.fail(name, f"no answer within {seconds:g} s", "the file system hangs")


def _check_versions() -> Check:
    """Python and the packages that this code was tested with."""
    found, wrong = [f"python {sys.version.split()[0]}"], []
    try:
        allowed = {one.name: one.specifier for one in map(Requirement, metadata.requires("audiotok") or ())}
    except metadata.PackageNotFoundError:
        return Check.fail("versions", "audiotok itself is not installed", "run `make install`")
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {version}")
        if name in allowed and not allowed[name].contains(version, prereleases=True):
            wrong.append(f"{name} {version} is not {allowed[name]}")
    if wrong:
        return Check.fail("versions", "; ".join(wrong), "run `make install`")
    return Check.ok("versions", ", ".join(found))


def _check_gpus() -> Check:
    """What nvidia-smi lists; a login node has none and needs none."""
    if shutil.which("nvidia-smi") is None:
        return Check.ok("gpus", "none on this machine (no nvidia-smi)")
    listing, failure = query(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if failure:
        advice = "see your administrator, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        return Check.warn("gpus", f"nvidia-smi fails: {failure}", advice)
    names = [line.strip() for line in listing.splitlines() if line.strip()]
    kinds = [f"{names.count(name)} x {name}" for name in sorted(set(names))]
    return Check.ok("gpus", "; ".join(kinds) or "none that nvidia-smi lists")


def _check_torch() -> Check:
    """Whether torch can be imported and sees the GPUs."""
    code = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    output, failure = query([sys.executable, "-c", code], seconds=IMPORT_S)
    if failure:
        return Check.fail("torch", f"it cannot be imported: {failure}", "run `make install`")
    count, cuda = output.split()
    if cuda == "None":
        return Check.ok("torch", "it can be imported; this build has no CUDA")
    if count == "0" and shutil.which("nvidia-smi"):
        advice = "compare with the driver of the line `gpus`"
        return Check.warn("torch", f"built for CUDA {cuda}, but sees no GPU", advice)
    return Check.ok("torch", f"built for CUDA {cuda}, sees {count} GPUs")


def _check_launcher() -> tuple[type[Engine] | None, Check]:
    """The engine that `dora` uses here, and why."""
    try:
        name = detect(os.environ)
    except ConfigError as error:
        return None, Check.fail("launcher", str(error), f"correct or unset {LAUNCHER_VARIABLE}")
    chosen, engine = os.environ.get(LAUNCHER_VARIABLE, "").strip(), ENGINES[name]
    why = f"{LAUNCHER_VARIABLE} in the environment" if chosen else engine.detect(os.environ)
    return engine, Check.ok("launcher", f"{name} ({why})")


def _load_library(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cluster.PROFILES.parent), version_base="1.3"):
        return compose("config", list(overrides))


def _load_config(overrides: Sequence[str], load: _Load) -> tuple[DictConfig | None, Check]:
    """Choose the profile and compose the configuration with it."""
    try:
        choice = cluster.choose(os.environ)
        cluster.settle(os.environ)
        config = load(overrides)
        OmegaConf.to_container(OmegaConf.select(config, "dora"), resolve=True)
    except (AudiotokError, HydraException, OmegaConfBaseException) as error:
        return None, Check.fail("cluster", " ".join(str(error).split()), "correct the configuration or the command")
    found = f"profile {choice.name} ({choice.how})"
    clusters = [one for one in ENGINES.values() if one.remote and one.detect(os.environ)]
    if choice.name != cluster.DEFAULT_CLUSTER or not clusters:
        return config, Check.ok("cluster", found)
    others = [name for name in cluster.list_profiles() if name not in (cluster.DEFAULT_CLUSTER, "template")]
    name = cluster.cluster_name(os.environ)[0] or "NAME"
    copy = f"cp {cluster.profile_path('template')} {cluster.profile_path(name)}"
    advice = f"{copy} and edit that, or export AUDIOTOK_CLUSTER={'|'.join(others)}"
    return config, Check.warn("cluster", found, advice)


def _check_profile(config: DictConfig) -> tuple[Profile | None, Check]:
    """Whether the values of the profile can be used, and what a job of it is."""
    name = cluster.choose(os.environ).name
    try:
        profile = Profile.from_section(config.slurm, cluster=name)
    except ConfigError as error:
        return None, Check.fail("profile", str(error), f"correct {cluster.profile_path(name)}")
    shape, memory = profile.shape(), profile.node_mem_mb()
    size = f"nodes x processes: {shape.nodes} x {shape.tasks_per_node}"
    each = f"{shape.gpus_per_node} GPUs, {shape.cpus_per_task * shape.tasks_per_node} cores"
    memory_text = f"{memory / 1024:g} GB" if memory else "SLURM's default memory"
    return profile, Check.ok("profile", f"{size}; on each node {each}, {memory_text}; {int(profile.time)} min")


def _check_output(folder: Path, *, shared: bool) -> Check:
    """Whether results can be written and locked, and how much room there is; `shared` if jobs run on other machines."""
    here = next(path for path in (folder, *folder.parents) if path.exists())
    advice = "set output_dir in the profile, or AUDIOTOK_OUTPUT_DIR"
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=here) as file:
            file.write(b"\0" * 4096)
            file.flush()
            path, locks = Path(file.name), False
            with suppress(OSError), hold_lock(path, patience_s=0) as first, hold_lock(path, patience_s=0) as second:
                locks = first and not second  # two openings of a file exclude each other
    except OSError as error:
        return Check.fail("output", f"{folder}: cannot write in {here} ({error.strerror})", advice)
    free = shutil.disk_usage(here).free / 1e9
    found = f"{folder}{'' if here == folder else ' (will be made)'}, {free:.0f} GB free"
    if not locks:
        return Check.fail("output", f"{found}, but flock does not work there", f"{advice}, on a file system with locks")
    if free < CRAMPED_GB:
        return Check.fail("output", found, f"make room, or {advice}")
    if shared and here.is_relative_to(tempfile.gettempdir()):
        return Check.warn("output", f"{found}, below {tempfile.gettempdir()}", f"nodes will not see it: {advice}")
    if free < ROOMY_GB:
        return Check.warn("output", found, f"a grid may fill it: make room, or {advice}")
    return Check.ok("output", f"{found}, locks work")


def _check_data(config: DictConfig) -> Check:
    """Whether the manifests that the configuration names are here, and the first track of each."""
    datasource = config.get("datasource") or {}  # a project of its own may have none
    named = {split: datasource[split] for split in SPLITS if datasource.get(split)}
    if not named:
        advice = "name the experiment to look at, such as `audiotok doctor solver=compression/demo`"
        return Check.warn("data", "the configuration names no manifests", advice)
    try:
        paths = cluster.dataset_paths(os.environ)
    except ConfigError as error:
        return Check.fail("data", str(error), "correct dataset_paths in the profile")
    found = {split: _manifest_problem(cluster.map_path(Path(path), paths)) for split, path in named.items()}
    problems = [f"{split}: {problem}" for split, problem in found.items() if problem]
    if problems:
        write = "write them with `audiotok data prepare` (`audiotok data demo` for the demo)"
        advice = f"{write}, or set dataset_paths in the profile to where they lie here"
        return Check.fail("data", "; ".join(problems), advice)
    return Check.ok("data", f"{', '.join(named)}: {len(named)} manifests and their first tracks")


def _manifest_problem(path: Path) -> str:
    names = (path / "data.jsonl.gz", path / "data.jsonl") if path.is_dir() else (path,)
    file = next(filter(Path.is_file, names), None)
    if file is None:
        return f"no manifest {path}"
    try:
        with open_gzip(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            first: Any = json.loads(next(lines))["path"]
        absolute = first.startswith("/")
        track = cluster.map_path(Path(first), cluster.dataset_paths(os.environ)) if absolute else file.parent / first
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        return f"{file} cannot be read ({type(error).__name__}: {error})"
    return "" if track.is_file() else f"{file} is here, its first track {track} is not"
