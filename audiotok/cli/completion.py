"""`audiotok completion`: the script that completes `audiotok` and `dora` in a shell, and the names that it looks up.

The script is static. With the TAB key it lists names through `audiotok completion grids` and the like, which read
folders only, and import neither torch nor Dora.
"""

import argparse
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from audiotok.cli.entry_point import package_here
from audiotok.cluster import output_dir
from audiotok.files import module_names

_SHELLS = ("bash", "zsh")
_NAMES = ("grids", "results", "signatures", "codecs")
# What completes the arguments of commands: `audiotok plan GRID`, `dora info -f SIG`.
_ARGUMENTS = {
    "audiotok": {
        "plan": {"grid": "grids"},
        "results": {"grid": "results"},
        "best": {"grid": "results"},
        "report": {"grid": "results"},
        "requeue": {"sigs": "signatures"},
        "extend": {"sigs": "signatures"},
        "export": {"codec": "codecs"},
        "tokenize": {"codec": "codecs"},
        "encode": {"model": "codecs"},
        "decode": {"model": "codecs"},
    },
    "dora": {
        "grid": {"grid": "grids"},
        "run": {"from_sig": "signatures"},
        "launch": {"from_sig": "signatures"},
        "info": {"from_sig": "signatures"},
        "export": {"sigs": "signatures"},
    },
}


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("completion", help="shell completion of `audiotok` and `dora`")
    parser.description = (
        "Print the script that completes `audiotok` and `dora` in a shell: options, names of grids and signatures; or "
        "the names themselves, one a line: of the grids that can be run from here, of those with results, of "
        "experiments, and of codecs as `tokenize` takes them."
    )
    parser.add_argument("what", choices=(*_SHELLS, *_NAMES), help="a shell, or the names that are listed")
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> None:
    if args.what in _SHELLS:
        print("\n".join(_scripts(args.what, args.whole)))
    else:
        print("".join(f"{name}\n" for name in _names(args.what)), end="")


def _names(kind: str) -> list[str]:
    """Names of grids that can be run from here, of grids that have results, of experiments, or of codecs."""
    if kind == "grids":
        package = package_here()
        places = [package] if Path(package, "__init__.py").exists() else []
        if not places and (found := importlib.util.find_spec(package)):  # found without being imported
            places = list(found.submodule_search_locations or ())
        return [name for place in places for name in module_names(Path(place, "grids"))]
    if kind == "codecs":
        own = sorted(path.stem for path in Path(__file__).parent.parent.glob("models/weights/*.bin"))
        return own + [f"//sig/{name}" for name in _names("signatures")]
    folder = output_dir(os.environ) / {"results": "grids", "signatures": "xps"}[kind]
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _scripts(shell: str, ours: argparse.ArgumentParser) -> Iterator[str]:
    """Completion of both commands; `ours` is the parser of `audiotok`."""
    import dora.__main__
    import shtab

    for prog, parser in (("audiotok", ours), ("dora", dora.__main__.get_parser())):
        parser.prog = prog
        for command, action in _actions(parser):
            names = _ARGUMENTS[prog].get(command, {}).get(action.dest)
            if names is not None:
                action.complete = shtab.cmd(f"audiotok completion {names} 2>/dev/null")  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in ("MANIFEST", "IN"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        yield shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """All arguments of a parser and of its commands, with the command that each belongs to."""
    for action in parser._actions:
        yield command, action
        if isinstance(action, argparse._SubParsersAction):
            described = {choice.dest for choice in action._choices_actions}
            for name, inner in action.choices.items():
                if name not in described:  # shtab offers commands with a help text only; Dora's have none
                    action._choices_actions.append(action._ChoicesPseudoAction(name, (), f"dora {name}"))
                yield from _actions(inner, name)
