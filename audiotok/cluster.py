"""Which cluster this is, and where its profile puts results and audio.

Profiles are files `config/cluster/NAME.yaml`; Hydra composes them to train and to submit, this module reads them
without it. Functions take folders of profiles, of which the first that has a profile counts; none: those of a project
in the current folder (`audiotok init`), then the library's. Environment variables: AUDIOTOK_CLUSTER (the profile),
AUDIOTOK_OUTPUT_DIR (results folder), AUDIOTOK_DATASET_PATHS (of jobs: JSON, where folders of audio lie).
"""

import functools
import json
import os
import re
import shutil
import subprocess as sp
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from audiotok.errors import ConfigError

CLUSTER_VARIABLE = "AUDIOTOK_CLUSTER"
DATASET_PATHS_VARIABLE = "AUDIOTOK_DATASET_PATHS"
PROFILES = Path(__file__).parent / "config" / "cluster"
DEFAULT_CLUSTER = "default"
DETECTION_S = 5.0

_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)(?:,([^${}]*))?\}")


class _Choice(NamedTuple):
    name: str
    how: str


def _places(folders: Sequence[Path]) -> list[Path]:
    if folders:
        return list(folders)
    here = sorted(train.parent / "config" / "cluster" for train in Path().glob("*/train.py"))
    return [*(folder for folder in here if folder.resolve() != PROFILES.resolve()), PROFILES]


def list_profiles(*folders: Path) -> list[str]:
    """Names of the profiles there are, sorted."""
    return sorted({path.stem for folder in _places(folders) for path in folder.glob("*.yaml")})


def profile_path(name: str, *folders: Path) -> Path:
    """File of a profile; where to make it, if there is none of this name."""
    files = [folder / f"{name}.yaml" for folder in _places(folders)]
    return next((file for file in files if file.is_file()), files[0])


def choose(environ: Mapping[str, str], *folders: Path) -> _Choice:
    """Choose the profile: AUDIOTOK_CLUSTER, else the one that bears the name of this cluster, else `default`.

    Returns:
        Its `name`, and `how` it was chosen.

    Raises:
        ConfigError: if AUDIOTOK_CLUSTER names no profile; the message lists those there are.
    """
    known = list_profiles(*folders)
    requested = environ.get(CLUSTER_VARIABLE, "").strip()
    if requested:
        if requested not in known:
            places = " and ".join(str(folder) for folder in _places(folders) if folder.is_dir())
            raise ConfigError(
                f"{CLUSTER_VARIABLE}={requested!r} in the environment, but {places} has no {requested}.yaml; "
                f"choose one of: {', '.join(known) or 'none yet'}."
            )
        return _Choice(requested, f"{CLUSTER_VARIABLE} in the environment")
    name, source = cluster_name(environ)
    if not name:
        return _Choice(DEFAULT_CLUSTER, f"{CLUSTER_VARIABLE} is not set and {source}")
    if name in known:
        return _Choice(name, f"the name of this cluster ({source})")
    return _Choice(DEFAULT_CLUSTER, f"there is no {name}.yaml for this cluster, {name} ({source})")


def settle(environ: MutableMapping[str, str], *folders: Path) -> None:
    """Put a detected profile into the environment, so that Hydra and every job of this process use the same.

    Raises:
        ConfigError: if AUDIOTOK_CLUSTER names no profile.
    """
    if not any(folder.is_dir() for folder in _places(folders)):
        return
    name = choose(environ, *folders).name
    if name != DEFAULT_CLUSTER:
        environ[CLUSTER_VARIABLE] = name


def cluster_name(environ: Mapping[str, str]) -> tuple[str, str]:
    """Name that SLURM gives this cluster ("" if none) and where it is from; runs scontrol once, never fails."""
    name = environ.get("SLURM_CLUSTER_NAME", "").strip()
    if name:
        return name, "SLURM_CLUSTER_NAME"
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        return "", "there is no SLURM here"
    scontrol = shutil.which("scontrol", path=environ.get("PATH"))
    name = _name_from(scontrol, tuple(sorted(environ.items()))) if scontrol else ""
    return (name, "scontrol show config") if name else ("", "scontrol does not give the name of this cluster")


@functools.cache
def _name_from(scontrol: str, environ: tuple[tuple[str, str], ...]) -> str:
    command, env = [scontrol, "show", "config"], dict(environ)
    try:
        process = sp.run(command, env=env, capture_output=True, text=True, timeout=DETECTION_S)
    except (OSError, sp.SubprocessError, UnicodeDecodeError):
        return ""
    found = _CLUSTER_NAME.search(process.stdout)
    return found[1] if found else ""


def output_dir(environ: Mapping[str, str], *folders: Path) -> Path:
    """Dora's folder, as `config/config.yaml` has it: AUDIOTOK_OUTPUT_DIR, else the profile's `output_dir`.

    Raises:
        ConfigError: if the profile cannot be read.
    """
    found = environ.get("AUDIOTOK_OUTPUT_DIR", "")
    if not found and any(folder.is_dir() for folder in _places(folders)):
        name = choose(environ, *folders).name
        value = _read_profile(name, *folders).get("output_dir")
        found = _resolved(value, environ, f"output_dir in {profile_path(name, *folders)}")
    return Path(found or "outputs")


def dataset_paths(environ: Mapping[str, str], *folders: Path) -> dict[str, str]:
    """Where folders of audio lie here, by what manifests and presets call them: a job's, else the profile's.

    Raises:
        ConfigError: if that is no mapping of folders.
    """
    if given := environ.get(DATASET_PATHS_VARIABLE):
        where = f"{DATASET_PATHS_VARIABLE} in the environment"
        try:
            return _mapping(json.loads(given), environ, where)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: {given!r} is not JSON; launchers set it, do not set it by hand.") from error
    name = environ.get(CLUSTER_VARIABLE) or DEFAULT_CLUSTER
    file = profile_path(name, *folders)
    if not file.is_file():
        return {}
    return _mapping(_read_profile(name, *folders).get("dataset_paths") or {}, environ, f"dataset_paths in {file}")


def dump_paths(paths: Mapping[str, str]) -> str:
    """What AUDIOTOK_DATASET_PATHS holds for a mapping."""
    return json.dumps(dict(paths), sort_keys=True)


def map_path(path: Path, paths: Mapping[str, str]) -> Path:
    """Path of a file on this machine: the longest folder of `paths` that it lies in is replaced.

    Args:
        path: as a manifest or a preset has it; a relative one counts from the working directory.
        paths: as of `dataset_paths`.
    """
    absolute = PurePath(os.path.normpath(path.absolute()))
    for folder in sorted(paths, key=lambda name: len(PurePath(name).parts), reverse=True):
        if absolute.is_relative_to(folder):
            return Path(paths[folder]) / absolute.relative_to(folder)
    return path


def _read_profile(name: str, *folders: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keys of a profile laid over those of its `defaults`, as Hydra composes them, `${...}` left as they are.

    Raises:
        ConfigError: if a file is missing, is no YAML mapping, or its `defaults` name anything but profiles.
    """
    path = profile_path(name, *folders)
    if name in above:
        raise ConfigError(f"{path}: its defaults lead back to itself ({' > '.join([*above, name])}).")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read profile {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; a profile is a mapping, such as `gpus: 1`.")
    own = {str(key): value for key, value in content.items() if key != "defaults"}
    defaults = content.get("defaults") or ["_self_"]
    values: dict[str, Any] = {}
    for entry in defaults:
        if entry == "_self_":
            values.update(own)
            continue
        base = str(entry).removeprefix("/cluster/") if isinstance(entry, str) else ""
        if not base or "/" in base:
            raise ConfigError(f"{path}: defaults hold {entry!r}; give other profiles, such as /cluster/default.")
        values.update(_read_profile(base, *folders, above=(*above, name)))
    return values if "_self_" in defaults else {**values, **own}


def _mapping(found: Any, environ: Mapping[str, str], where: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {found!r}; give a mapping, such as {{/home/me/music: /scratch/me/music}}.")
    return {_resolved(key, environ, where): _resolved(value, environ, where) for key, value in found.items()}


def _resolved(value: Any, environ: Mapping[str, str], where: str) -> str:
    """Put `${oc.env:NAME}` and `${oc.env:NAME,default}` into a text, the only interpolation there is in folders."""

    def of_environment(match: re.Match[str]) -> str:
        found = environ.get(match[1], match[2])
        if found is None:
            raise ConfigError(f"{where}: {match[0]} stands for nothing, {match[1]} is not set.")
        return found

    text = _FROM_ENVIRONMENT.sub(of_environment, "" if value is None else str(value))
    if "${" in text:
        raise ConfigError(f"{where}: {text!r}; of ${{...}} only ${{oc.env:NAME}} can stand in a folder.")
    return text
