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
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from audiotok.errors import ConfigError
from audiotok.files import UnreadableError, read_bytes, shown

CLUSTER_VARIABLE = "AUDIOTOK_CLUSTER"
OUTPUT_VARIABLE = "AUDIOTOK_OUTPUT_DIR"
DATASET_PATHS_VARIABLE = "AUDIOTOK_DATASET_PATHS"
PROFILES = Path(__file__).parent / "config" / "cluster"
DEFAULT_CLUSTER = "default"
DETECTION_S = 5.0
_MAX_BYTES, _MAX_VALUES = 2**18, 10_000  # of a profile; values count where aliases stand for them, too

_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)(?:,([^${}]*))?\}")


class _Choice(NamedTuple):
    name: str
    how: str


class _Keys(NamedTuple):
    """Keys of a profile, and where each stands, as `config/cluster/NAME.yaml:12`."""

    values: dict[str, Any]
    places: dict[str, str]


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
        ConfigError: if AUDIOTOK_CLUSTER names no profile, or Hydra could not read it.
    """
    for variable in (CLUSTER_VARIABLE, OUTPUT_VARIABLE):  # Hydra would take "" for a name
        if not environ.get(variable, "set").strip():
            del environ[variable]
    if not any(folder.is_dir() for folder in _places(folders)):
        return
    name = choose(environ, *folders).name
    if name != DEFAULT_CLUSTER:
        environ[CLUSTER_VARIABLE] = name
    if profile_path(name, *folders).exists():
        _read_profile(name, *folders)


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
    found = environ.get(OUTPUT_VARIABLE, "").strip()
    if not found and any(folder.is_dir() for folder in _places(folders)):
        name = choose(environ, *folders).name
        keys = _read_profile(name, *folders)
        found = _resolved(keys.values.get("output_dir"), environ, f"output_dir in {keys.places.get('output_dir')}")
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
    keys = _read_profile(name, *folders)
    where = f"dataset_paths in {keys.places.get('dataset_paths', shown(file))}"
    return _mapping(keys.values.get("dataset_paths") or {}, environ, where)


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


def place_of(name: str, key: str, *folders: Path, value: Any = None) -> str:
    """Where a key of a profile is to be corrected, such as `config/cluster/NAME.yaml:12`, or the command line.

    Args:
        name: the profile.
        key: the key; "" for the file as a whole.
        folders: as everywhere here.
        value: what the key is now; where the file has another value, it came from the command line.
    """
    file = profile_path(name, *folders)
    if not file.is_file():
        return f"config/cluster/{name}.yaml"
    try:
        found = _read_profile(name, *folders)
    except ConfigError:
        return shown(file)
    if key not in found.places:
        return shown(file)
    written = found.values[key]
    is_same = value is None or str(written) == str(value) or "${" in str(written)
    return found.places[key] if is_same else "the command line"


def _read_profile(name: str, *folders: Path, above: tuple[str, ...] = ()) -> _Keys:
    """Keys of a profile laid over those of its `defaults`, as Hydra composes them, `${...}` left as they are.

    Raises:
        ConfigError: naming file and line, if Hydra could not compose it, or not to the section `slurm`.
    """
    path = profile_path(name, *folders)
    file, (own, lines, package) = shown(path), _load(path)
    if package != "slurm":
        found = f"its package is {package}" if package else "it does not begin with `# @package slurm`"
        raise ConfigError(f"{file}:1: {found}; make `# @package slurm` its first line, before any comment.")
    places = {key: f"{file}:{line}" for key, line in lines.items()}
    where, defaults = places.pop("defaults", file), own.pop("defaults", None)
    if defaults is None:
        base = profile_path(DEFAULT_CLUSTER, *folders)
        lacking = sorted(_load(base)[0].keys() - own.keys()) if name != DEFAULT_CLUSTER and base.is_file() else []
        if lacking:
            advice = "write `defaults: [/cluster/default, _self_]` above its keys"
            raise ConfigError(f"{file}: it has no defaults, and lacks {len(lacking)} keys ({lacking[0]}, …); {advice}.")
        defaults = ["_self_"]
    if not isinstance(defaults, list):
        raise ConfigError(f"{where}: defaults={defaults!r}; give a list, such as [/cluster/default, _self_].")
    keys = _Keys({}, {})
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            _lay_over(keys, _Keys(own, places))
            continue
        base_name = entry.removeprefix("/cluster/") if isinstance(entry, str) else ""
        if not base_name or "/" in base_name:
            raise ConfigError(f"{where}: defaults hold {entry!r}; give other profiles, such as /cluster/default.")
        if base_name in (*above, name):
            raise ConfigError(f"{where}: defaults lead back to themselves ({' > '.join([*above, name, base_name])}).")
        if not profile_path(base_name, *folders).is_file():
            known = ", ".join(list_profiles(*folders))
            raise ConfigError(f"{where}: defaults hold {entry!r}, which is not there; profiles are: {known}.")
        _lay_over(keys, _read_profile(base_name, *folders, above=(*above, name)))
    return keys


def _lay_over(keys: _Keys, over: _Keys) -> None:
    """Lay keys over others as OmegaConf does: a mapping adds to a mapping, and is no list."""
    for key, value in over.values.items():
        below = keys.values.get(key)
        if {type(below), type(value)} == {list, dict}:
            allowed = "a list, such as [a, b]" if isinstance(below, list) else "a mapping, such as {a: b}"
            raise ConfigError(f"slurm.{key}={value!r} in {over.places[key]}: give {allowed}.")
        keys.values[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    keys.places.update(over.places)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, int], str]:
    """Content of a profile, the line of each of its keys, counted from 1, and its package as Hydra reads it.

    Raises:
        ConfigError: naming file and line, if it cannot be read, is no YAML mapping or has a key twice.
    """
    file, advice = shown(path), f"see {shown(path.with_name('template.yaml'))}"
    try:
        data = read_bytes(path, limit=_MAX_BYTES)
    except (OSError, UnreadableError) as error:
        found = error.reason if isinstance(error, UnreadableError) else error.strerror
        raise ConfigError(f"cannot read profile {file}: {found}.") from error
    try:
        text = data.decode()
        loader = yaml.SafeLoader(text)
        root: Any = loader.get_single_node()
        problem = "" if root is None else next(_problems(root, (), iter(range(_MAX_VALUES))), "")
        content = None if problem else loader.construct_document(root) if root else {}
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        is_key = "simple key" in str(error.context)  # without its colon, which is missed at the end of the file only
        mark = error.context_mark if is_key else error.problem_mark or error.context_mark
        tab = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"{where}: it is not YAML: {error.problem or error.context}{tab}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # characters, dates, depth
        raise ConfigError(f"{file}: it is not YAML: {' '.join(str(error).split())}.") from error
    if problem:
        raise ConfigError(f"{file}:{problem}.")
    if not isinstance(content, dict) or not content:
        found = "nothing" if not content else f"a {type(content).__name__}"
        raise ConfigError(f"{file} holds {found}; a profile is a mapping, such as `gpus: 1`: {advice}.")
    if text.startswith("\ufeff"):
        raise ConfigError(f"{file}:1: it begins with a byte order mark; save it as UTF-8 without one.")
    header = re.match(r"(?:\s*#\s*@(?!package\b).*\n)*\s*#\s*@package[ ]+(\S+)[ \t\r]*$", text, re.MULTILINE)
    lines = {str(name): key.start_mark.line + 1 for name, (key, _) in zip(content, root.value, strict=False)}
    return {str(key): value for key, value in content.items()}, lines, header[1] if header else ""


def _problems(node: yaml.Node, above: tuple[yaml.Node, ...], budget: Iterator[int]) -> Iterator[str]:
    """What YAML allows and Hydra does not, each after its line: keys twice, other kinds of values, circles, bombs."""
    line = node.start_mark.line + 1
    if next(budget, None) is None:
        yield f"{line}: with its aliases written out, it has more than {_MAX_VALUES} values; write fewer"
    elif node in above:
        yield f"{line}: an alias leads back to itself; write the value out"
    elif node.tag.removeprefix("tag:yaml.org,2002:") not in _KINDS:
        yield f"{line}: {node.tag} is of another kind; give a text, a number, true, false, null, a list or a mapping"
    elif isinstance(node.value, str) and node.value.count("${") > node.value.count("}"):
        yield f"{line}: {node.value!r} lacks a closing brace; write ${{oc.env:NAME}}"
    elif node.value == "???":
        yield f"{line}: ??? stands for a value that is still missing; give one, or null"
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":null"):
                yield f"{line}: a key without a name; write `key: value`"
            elif key.value in seen:
                yield f"{line}: {key.value} stands here again, after line {seen[key.value]}; keep one of them"
            else:
                seen[key.value] = line
                yield from _problems(value, (*above, node), budget)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _problems(item, (*above, node), budget)


def _mapping(found: Any, environ: Mapping[str, str], where: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {found!r}; give a mapping, such as {{/home/me/music: /scratch/me/music}}.")
    return {_resolved(key, environ, where): _resolved(value, environ, where) for key, value in found.items()}


def _resolved(value: Any, environ: Mapping[str, str], where: str) -> str:
    """Put `${oc.env:NAME}` and `${oc.env:NAME,default}` into a text, the only interpolation there is in folders."""

    def of_environment(match: re.Match[str]) -> str:
        found = environ.get(match[1], match[2])
        if found is None:
            advice = f"set it, or give a default, such as ${{oc.env:{match[1]},DEFAULT}}"
            raise ConfigError(f"{where}: {match[0]}, but {match[1]} is not set in the environment; {advice}.")
        return found

    text, before = "" if value is None else str(value), ""
    while text != before:  # from the innermost out: ${oc.env:A,${oc.env:B}}
        text, before = _FROM_ENVIRONMENT.sub(of_environment, text), text
    if "${" in text:
        raise ConfigError(f"{where}: {text!r}; of ${{...}} only ${{oc.env:NAME}} can stand in a folder.")
    return text
