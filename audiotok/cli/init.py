"""`audiotok init`: a project of one's own, which uses the installed library."""

import argparse
import importlib.util
import keyword
import logging
import shlex
from pathlib import Path

from audiotok.errors import ConfigError

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).parent / "project"
_NAME = "mycodec"  # of the template: a working project, in which the name is replaced


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("init", help="make a project of your own: a grid, a preset, a cluster profile")
    parser.description = "Make a project in DIR, which `dora grid` runs from there; its package is named as DIR is."
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder, such as mycodec")
    parser.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> None:
    folder: Path = args.folder.absolute()
    name = folder.name
    try:
        _check(folder, name)
        for source in sorted(path for path in _TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            target = folder / str(source.relative_to(_TEMPLATE)).replace(_NAME, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}.") from error
    advice = "`audiotok doctor` checks this machine, `audiotok data demo` fetches music to train on. Next:"
    logger.info("The grid, presets and cluster profile of the project are in %s; %s", args.folder / name, advice)
    print(f"cd {shlex.quote(str(args.folder))} && dora grid sweep --dry_run --no_monitoring")


def _check(folder: Path, name: str) -> None:
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a Python package; use letters, digits and _, such as {_NAME}.")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # without origin: an empty folder of this name
        raise ConfigError(f"a package {name} is installed already ({spec.origin}); choose another name.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder.")
