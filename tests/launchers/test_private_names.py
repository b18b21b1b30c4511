"""All private and internal names of Dora, Hydra, OmegaConf and submitit that this code uses.

So an upgrade shows at once what moved.
"""

import ast
import importlib
import inspect
import subprocess as sp
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from audiotok.launchers.dora_patches import PATCHES
from tests.fakes.tiny import REPOSITORY

UPSTREAM = ("dora", "hydra", "omegaconf", "submitit")
# Of Python, torch and flashy.
OTHERS = {
    "_exit",
    "_replace",
    "_fields",
    "_foreach_lerp_",
    "_foreach_mul_",
    "_functorch",
    "_dynamo",
    "_start_epoch",
    "_forward_pre_hooks",
}


class Use(NamedTuple):
    """A private name: where it is upstream, which file or folder of ours uses it, and what for.

    `module.Class.name` is an attribute of a class or module, `module.Class#name` one that the constructor sets.
    """

    name: str
    where: str
    why: str


LAUNCHERS, EXPERIMENTS = "launchers", "audiotok/experiments"
COMPLETION = "audiotok/cli/completion.py"
USES = (
    Use("argparse._ActionsContainer#_actions", COMPLETION, "the arguments that are completed"),
    Use("argparse._SubParsersAction", COMPLETION, "the commands of a parser"),
    Use("argparse._SubParsersAction#_choices_actions", COMPLETION, "which of them have a help text"),
    Use("argparse._SubParsersAction._ChoicesPseudoAction", COMPLETION, "the help text of a command of Dora"),
    Use("dora.conf.DoraConfig._grids", "launchers/grid.py", "name of the folder of grids"),
    Use("dora.explore.Launcher#_argv", "launchers/profile.py", "copied into a launcher with other settings"),
    Use("dora.explore.Launcher._copy", "launchers/profile.py", "overridden: copies are launchers of ours"),
    Use("dora.explore.Launcher#_herd", "launchers/profile.py", "copied into a launcher with other settings"),
    Use("dora.explore.Launcher#_pool", "launchers/profile.py", "copied into a launcher with other settings"),
    Use("dora.explore.Launcher#_shepherd", "launchers/profile.py", "copied into a launcher with other settings"),
    Use("dora.explore.Launcher#_slurm", "launchers/profile.py", "replaced by a checked profile"),
    Use("dora.grid.RunGridArgs._from_commandline", "launchers/grid.py", "--clear asks, --log and --tail are allowed"),
    Use("dora.grid._filter_grid_sheeps", "launchers/grid.py", "patterns and indices of the command line"),
    Use("dora.shep.Sheep#_dependent_jobs", "launchers/sheep.py", "always empty, for what Dora inherits"),
    Use("dora.shep.Sheep#_other_jobs", "launchers/sheep.py", "always empty, for what Dora inherits"),
    Use("dora.shep.Shepherd._by_id", "launchers/shepherd.py", "folder of links from job ids to experiments"),
    Use("dora.hydra.HydraMain#_base_cfg", "launchers/profile.py", "the profile in the composed base"),
    Use("dora.hydra.HydraMain#_config_groups", EXPERIMENTS, "groups whose choice is part of a signature"),
    Use("dora.hydra.HydraMain._get_config", EXPERIMENTS, "composes what our rules do not cover"),
    Use("dora.hydra.HydraMain#_job_name", EXPERIMENTS, "composes under the name that Dora gives"),
    Use("dora.hydra.HydraMain._get_dora", EXPERIMENTS, "looks at the profile before the folder that it names"),
    Use("dora.hydra.HydraMain._main", EXPERIMENTS, "runs the function in Hydra's application"),
    Use("dora.hydra._compare_config", EXPERIMENTS, "the delta of an override, as Dora hashes it"),
    Use("dora.hydra._dump_key", EXPERIMENTS, "writes overrides as Dora does"),
    Use("dora.hydra._hydra_value_as_override", EXPERIMENTS, "writes overrides as Dora does"),
    Use("dora.hydra._simplify_argv", EXPERIMENTS, "drops repeated overrides as Dora does"),
    Use("dora.main.DecoratedMain._get_argv", EXPERIMENTS, "overrides of the command line"),
    Use("dora.xp.XP._argv_cache", EXPERIMENTS, "file with the overrides of an experiment"),
    Use("dora.xp.XP._shared_argv_cache", EXPERIMENTS, "the same for all users"),
    Use("dora.xp._get_sig", EXPERIMENTS, "the signature of a delta"),
    Use("hydra._internal.config_loader_impl.ConfigLoaderImpl._apply_overrides_to_config", EXPERIMENTS, "values"),
    Use("hydra.core.override_parser.overrides_parser.OverridesParser", EXPERIMENTS, "parses overrides"),
    Use("hydra.core.override_parser.types.Override#_value", EXPERIMENTS, "the parsed value"),
    Use("hydra.core.override_parser.types.Override._get_value_element_as_str", EXPERIMENTS, "writes a value again"),
    Use("hydra.core.override_parser.types.OverrideType", EXPERIMENTS, "what kind of override it is"),
    Use("hydra.core.override_parser.types.Quote", EXPERIMENTS, "quotes text"),
    Use("hydra.core.override_parser.types.QuotedString", EXPERIMENTS, "quotes text"),
    Use("hydra.core.override_parser.types.ValueType", EXPERIMENTS, "what kind of value it has"),
    Use("hydra.core.global_hydra.GlobalHydra", "launchers/doctor.py", "cleared to compose a second time"),
    Use("omegaconf.basecontainer.BaseContainer", EXPERIMENTS, "tells sections and lists from values"),
    Use("omegaconf.dictconfig.DictConfig._get_node", EXPERIMENTS, "a node without resolving it"),
    Use("omegaconf.nodes.AnyNode._is_interpolation", EXPERIMENTS, "finds references"),
    Use("omegaconf.nodes.AnyNode._is_none", EXPERIMENTS, "finds values without resolving them"),
    Use("omegaconf.nodes.AnyNode._value", EXPERIMENTS, "the text of a reference"),
)


def sources(where: str = "") -> dict[Path, str]:
    """Our source files at or below a path of the repository."""
    tops = [where] if where else ["audiotok", "launchers", "grids"]  # two of these are links inside of the first, too
    files = [
        path
        for top in tops
        for path in ([REPOSITORY / top] if top.endswith(".py") else (REPOSITORY / top).rglob("*.py"))
    ]
    return {path: path.read_text(encoding="utf-8") for path in files}


def resolve(dotted: str) -> Any:
    """The object of a dotted name, whose first part is a module."""
    parts, found = dotted.split("."), None
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_a_private_name_is_still_there(use: Use) -> None:
    owner, _, attribute = use.name.partition("#")
    found = resolve(owner)
    if attribute:  # set by a constructor, or a field
        assert f"self.{attribute}" in inspect.getsource(found) or attribute in vars(found).get("__annotations__", {})


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_a_private_name_is_used_where_the_table_has_it(use: Use) -> None:
    name = use.name.replace("#", ".").split(".")[-1]
    assert any(name in text for text in sources(use.where).values()), use.where


def test_no_other_private_names_are_used() -> None:
    known = {use.name.replace("#", ".").split(".")[-1] for use in USES} | OTHERS
    used, defined = set(), set()
    for text in sources().values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UPSTREAM:
                used |= {alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"}
    assert used - defined <= known


def test_names_that_are_replaced_are_there_before() -> None:
    names = [f"{patch.module}:{patch.name}" for patch in PATCHES]
    assert len(set(names)) == len(names) and all(patch.why for patch in PATCHES)
    code = (
        "import importlib, sys\n"
        "for module, name in (word.split(':') for word in sys.argv[1:]):\n"
        "    found = getattr(importlib.import_module(module), name)\n"
        "    assert 'audiotok' not in getattr(found, '__module__', found.__class__.__module__), name"
    )
    sp.run([sys.executable, "-c", code, *names], check=True, cwd=REPOSITORY)


def test_names_of_upstream_are_replaced_in_one_place() -> None:
    for path, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                assert owner.split(".")[0] not in UPSTREAM, f"{path}:{node.lineno} sets {owner}.{node.attr}"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                assert path.name in ("dora_patches.py", "profile.py"), f"{path}:{node.lineno}"
