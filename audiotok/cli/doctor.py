"""`audiotok doctor`: can this machine run and submit experiments, and what to do where it cannot."""

import argparse
from collections.abc import Sequence
from typing import Any


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("doctor", help="check this machine, its cluster profile and the data")
    parser.description = (
        "Check versions, GPUs, SLURM, cluster profile, results folder and manifests; only --try changes anything."
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of `dora run`: whose data to look for")
    parser.add_argument("--torch", action="store_true", help="also import torch and count its GPUs")
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="also run a one-minute job of the profile on the cluster"
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from audiotok.launchers.doctor import examine
    from audiotok.launchers.engine import Level

    failed = False
    options = {"torch": args.torch, "trial": args.trial}
    for check in examine(args.overrides, load=_load, **options):
        failed |= check.verdict is Level.FAIL
        print(f"{check.verdict:4}  {check.name:10}  {check.found}", flush=True)
        if check.advice:
            print(f"{'':4}  {'':10}  -> {check.advice}", flush=True)
    return int(failed)


def _load(overrides: Sequence[str]) -> Any:
    """Configuration of overrides; ConfigError if its settings cannot be used."""
    from audiotok.cli.entry_point import entry_point
    from audiotok.experiments.schema import refuse

    xp = entry_point(None).compose(overrides)
    refuse(xp.checked.faults)
    return xp.cfg
