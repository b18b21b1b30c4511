"""`audiotok extend`: train a finished experiment longer, under the same signature."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiotok.cli.entry_point import PACKAGE_HELP, entry_point
from audiotok.errors import ConfigError, LaunchError
from audiotok.status.amendments import EPOCHS, MAY_CHANGE
from audiotok.text import number_in

if TYPE_CHECKING:
    from audiotok.experiments.extend import Extension

_SHOWN = 5
_WITH_HORIZON = ("cosine", "polynomial_decay")

logger = logging.getLogger(__name__)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("extend", help="train finished experiments longer, under the same signature")
    parser.description = (
        "Raise optim.epochs of experiments that have trained, or change another key that changes nothing a training "
        f"step computes: {', '.join(key for key in MAY_CHANGE if key != EPOCHS)}. The change is "
        "kept with its date in the folder of the experiment, in amended.json; the next `dora grid`, `dora launch` or "
        "`dora run -f SIG` trains from the last checkpoint with it."
    )
    parser.add_argument("sigs", nargs="+", metavar="SIG", help="signature of an experiment, or name of a grid")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as optim.epochs=300")
    parser.add_argument("--dry_run", action="store_true", help="check and show; write nothing")
    parser.add_argument("-P", "--package", metavar="NAME", help=PACKAGE_HELP)
    parser.set_defaults(run=_extend)


def _extend(args: argparse.Namespace) -> None:
    words = [*args.sigs, *args.overrides]
    names, overrides = [[word for word in words if ("=" in word) is given] for given in (False, True)]
    if not names or not overrides:
        missing = "KEY=VALUE, such as optim.epochs=300" if names else "SIG or GRID"
        raise ConfigError(f"audiotok extend SIG … KEY=VALUE …: {missing} is missing.")
    main = entry_point(args.package)
    from audiotok.experiments.extend import plan_extension
    from audiotok.launchers.lock import SubmitLock, user_and_host

    root = Path(main.dora.dir)
    with SubmitLock(root / "locks" / "submit", log=logger.warning).hold():
        planned = [(sig, plan_extension(main, sig, overrides)) for sig in _signatures(main, names)]
        found = [one for _, one in planned if one is not None]  # all are checked before the first is written
        for one in [] if args.dry_run else found:
            try:
                one.write(user_and_host())
            except OSError as error:
                raise LaunchError(f"cannot write {one.folder} ({error}); make room, and try again.") from error
    for sig, extension in planned:
        for line in ["has these values already"] if extension is None else _lines(extension, root / main.dora.xps):
            logger.info("%s: %s", sig, line)
    if found and args.dry_run:
        logger.info("nothing was written: --dry_run")


def _signatures(main: Any, names: list[str]) -> list[str]:
    """Signatures of experiments, and those that the folders of grids link, each once."""
    from audiotok.launchers.links import linked

    grids = Path(main.dora.dir) / main.dora._grids
    found: list[str] = []
    for name in names:
        is_grid = name in [path.name for path in grids.glob("*")] and not (Path(main.dora.dir) / "xps" / name).exists()
        found += sorted(linked(grids / name)) if is_grid else [name]
    return list(dict.fromkeys(found))


def _lines(extension: "Extension", xps: Path) -> Iterator[str]:
    """What changes, and what that means for this experiment and for those that build on it."""
    from audiotok.launchers.needs import needing
    from audiotok.status import State, experiment_state

    verdict = experiment_state(extension.folder)
    yield f"{extension}; {extension.done} epochs are done"
    if verdict is not None and verdict.state.live:
        again = f"from its next start; `audiotok requeue {extension.sig}` has a job begin anew"
        yield f"it is {verdict.state}: what has begun keeps the values before, and takes these {again}"
    elif verdict is not None and verdict.state is State.COMPLETED and extension.epochs is None:
        yield "it has completed: this counts once optim.epochs is raised, too"
    if extension.epochs is None:
        return
    yield from _schedule_lines(extension)
    for state, sigs in needing(xps, extension.sig).items():
        more = f" and {len(sigs) - _SHOWN} more" if len(sigs) > _SHOWN else ""
        if state == State.COMPLETED:
            what = "keep their results, which are of its weights before; for its new ones, run them anew under a label"
        else:
            what = "take the weights that are there when they start, and refuse to go on with others"
        yield f"{', '.join(sigs[:_SHOWN])}{more} ({state}) build on it: they {what}"


def _schedule_lines(extension: "Extension") -> Iterator[str]:
    """The learning rate at the joint, for a schedule that counts on the number of epochs."""
    from audiotok.status import read_status

    cfg, epochs = extension.frozen.cfg, extension.epochs
    schedule = cfg.get("schedule") or {}
    name = schedule.get("lr_scheduler")
    per_epoch = int(number_in(read_status(extension.folder) or {}, "updates_per_epoch") or 0)
    if name not in _WITH_HORIZON or epochs is None or not per_epoch:
        return
    from audiotok.solvers.schedules import rate_factor  # imports torch

    lr, step = float(cfg["optim"]["lr"]), extension.done * per_epoch
    old, new = (lr * rate_factor(schedule, step, per_epoch * total) for total in epochs)
    curve = f"the curve of {epochs[1]} epochs instead of {epochs[0]}"
    rates = f"the learning rate is {new:.3g}, not {old:.3g}"
    yield f"schedule {name}: after epoch {extension.done} {rates}: it follows {curve}"
