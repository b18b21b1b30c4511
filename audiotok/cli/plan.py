"""`audiotok plan`: what launching a grid would do, before it does."""

import argparse
import json

from audiotok.cli.entry_point import PACKAGE_HELP, entry_point


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("plan", help="what `dora grid` would submit, retry and cancel, and what it costs")
    parser.description = (
        "Show what `dora grid` with the same arguments would do: which experiments are new, reused, retried, blocked "
        "or cancelled, GPU-hours and disk requested, what has changed since the last submission. It submits and "
        "writes nothing."
    )
    grid_help = "as given to `dora grid`; without it, the grids there are"
    parser.add_argument("grid", nargs="?", metavar="GRID", help=grid_help)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="right after GRID: only names with all of them")
    parser.add_argument("-r", "--retry", action="store_true", help="as if failed jobs were to be retried")
    parser.add_argument("-R", "--replace", action="store_true", help="as if running jobs were to be replaced")
    parser.add_argument("-D", "--replace_done", action="store_true", help="as if done jobs were to be run again")
    parser.add_argument("-C", "--cancel", action="store_true", help="as if the grid were to be cancelled")
    parser.add_argument("-g", "--gpus", type=int, metavar="N", help="as if each job requested this many GPUs")
    parser.add_argument("-p", "--partition", metavar="NAME", help="as if each job requested this partition")
    parser.add_argument("-P", "--package", metavar="NAME", help=PACKAGE_HELP)
    parser.add_argument("--all", action="store_true", help="list every experiment, not the first of each group")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    main = entry_point(args.package)
    from dora.conf import SubmitRules, update_from_args
    from dora.grid import RunGridArgs

    from audiotok.launchers.grid import get_explorer, plan_grid
    from audiotok.launchers.grid_file import grid_names
    from audiotok.launchers.plan import SHOWN, plan_text

    if args.grid is None:
        print(*grid_names(main), sep="\n")
        return 0
    rules, profile = SubmitRules(), main.get_slurm_config()
    for settings in (rules, profile):
        update_from_args(settings, args)
    grid_args = RunGridArgs(patterns=list(args.patterns), cancel=args.cancel)
    plan = plan_grid(main, get_explorer(args, main), args.grid, rules, profile, grid_args)
    if args.format == "json":
        print(json.dumps(plan.as_json(), indent=1))
    else:
        print(plan_text(plan, shown=None if args.all else SHOWN))
    return 0
