"""The submitting half of a commit: decide again under the lock, make room, and send what asks for the same together."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dora import git_save
from dora.conf import SubmitRules
from dora.main import DecoratedMain

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.decide import Action
from audiotok.launchers.engine import Engine, Task
from audiotok.launchers.profile import Profile
from audiotok.launchers.sheep import GridSheep

if TYPE_CHECKING:
    from audiotok.launchers.shepherd import GridShepherd

SHOWN = 8  # experiments that are told one by one as they are submitted


@dataclass
class Wish:
    """An experiment that is to be submitted with the next commit.

    Attributes:
        sheep: the experiment.
        profile: what it asks for.
        rules: who is to be submitted.
        group: what may go out in one array with it.
        job_id: latest job when that was decided, None without one.
    """

    sheep: GridSheep
    profile: Profile
    rules: SubmitRules
    group: int
    job_id: str | None

    def resources(self) -> str:
        """Key of what it asks for; equal ones may share an array."""
        assert self.sheep.decision is not None
        return json.dumps([self.group, self.sheep.decision.mem_factor, asdict(self.profile)], default=str)


def submit(shepherd: "GridShepherd", engine_name: str, wishes: Sequence[Wish]) -> None:
    """Submit experiments; called under the submission lock.

    Raises:
        LaunchError: if something could not be submitted; what was is recorded, and the message tells the rest.
    """
    shepherd.update(engine_name)
    engine = shepherd.engines[engine_name]
    failure = getattr(engine, "failure", "")
    if failure:
        raise LaunchError(f"SLURM does not answer ({failure}); nothing was submitted.")
    left = [wish for wish in wishes if _is_still_wanted(shepherd, wish)]
    replaced = [wish.sheep.job.record for wish in left if wish.sheep.job and not wish.sheep.job.is_done()]
    if replaced:
        shepherd.cancel_if_possible(replaced)
        left = [wish for wish in left if _has_room(shepherd, wish)]
    groups: dict[str, list[Wish]] = {}
    for wish in left:
        groups.setdefault(wish.resources(), []).append(wish)
    todo = list(groups.values())
    with _code(shepherd.main, [wish.sheep for wish in left]) as clone:
        for number, group in enumerate(todo):
            try:
                _submit_group(shepherd, engine, group, clone)
            except LaunchError as error:
                others = sum(map(len, todo[number + 1 :]))
                more = f" Nor were {others} that ask for other resources." if others else ""
                raise LaunchError(f"{error}{more}") from error


def tell_blocked(shepherd: "GridShepherd") -> None:
    """Say which experiments are not retried and why, the first of many only."""
    decided = [(sheep, sheep.decision) for sheep, _ in shepherd.decided.values()]
    blocked = [(sheep, one.reason) for sheep, one in decided if one is not None and one.action is Action.BLOCKED]
    for sheep, reason in blocked[:SHOWN]:
        shepherd.log(f"Not retried: {shepherd.called(sheep)}: {reason}")
    if len(blocked) > SHOWN:
        shepherd.log(f"Not retried: {len(blocked) - SHOWN} more; --dry_run tells why")


def _is_still_wanted(shepherd: "GridShepherd", wish: Wish) -> bool:
    """Decide again; what somebody else has submitted meanwhile is left to them."""
    sheep, rules = wish.sheep, wish.rules
    sheep.reload()
    changed = sheep.current_job_id != wish.job_id
    if changed:
        rules = replace(rules, replace=False, replace_done=False, update=False)
    sheep.decision = shepherd.decide(sheep, wish.profile, rules)
    if changed and sheep.job is not None and not sheep.decision.action.submits:
        who = sheep.job.record.content.get("user", "somebody")
        shepherd.log(f"{who} has submitted job {sheep.job.job_id} for sheep {shepherd.called(sheep)}")
    return sheep.decision.action.submits


def _has_room(shepherd: "GridShepherd", wish: Wish) -> bool:
    """Two jobs must not write into one folder: the job before must have ended."""
    wish.sheep.reload()
    if wish.sheep.job is None or wish.sheep.job.is_done():
        return True
    shepherd.log(f"Not submitted, as job {wish.sheep.job.job_id} goes on: {shepherd.called(wish.sheep)}")
    return False


def _submit_group(shepherd: "GridShepherd", engine: Engine, wishes: Sequence[Wish], clone: Path | None) -> None:
    """Submit experiments that ask for the same."""
    try:
        tasks = [_task(shepherd.main, wish.sheep, clone) for wish in wishes]
    except OSError as error:
        raise LaunchError(
            f"cannot write the folders of experiments ({error}); none of these {len(wishes)} was submitted."
        ) from error
    try:
        engine.submit(tasks, wishes[0].profile)
    finally:
        _tell(shepherd, [wish.sheep for wish in wishes if _has_new_job(shepherd, wish)])


def _has_new_job(shepherd: "GridShepherd", wish: Wish) -> bool:
    wish.sheep.reload()
    job = wish.sheep.job
    if job is None or job.job_id == wish.job_id:
        return False
    if job.record.engine != "slurm":  # that one has done it
        shepherd.book.link(job.job_id, wish.sheep.xp.sig)
    return True


def _tell(shepherd: "GridShepherd", sheeps: Sequence[GridSheep]) -> None:
    """Say what was submitted, the first of many only."""
    for sheep in sheeps[:SHOWN]:
        shepherd.log(f"Scheduled job {sheep.current_job_id} for sheep {shepherd.called(sheep)}")
    if len(sheeps) > SHOWN:
        shepherd.log(f"Scheduled {len(sheeps) - SHOWN} more, the last of them as job {sheeps[-1].current_job_id}")


def _task(main: DecoratedMain, sheep: GridSheep, clone: Path | None) -> Task:
    """Make the folder of an experiment and say what runs in it."""
    assert sheep.decision is not None
    xp = sheep.xp
    main.init_xp(xp)
    if clone is not None:
        git_save.assign_clone(xp, clone)
    module = ["-P", main.package, "--main_module", main.main_module]
    return Task(
        sig=xp.sig,
        name=main.get_name(xp),
        folder=Path(xp.folder).absolute(),
        command=(sys.executable, "-m", "dora", *module, "run", "--", *xp.argv),
        cwd=Path.cwd(),
        mem_factor=sheep.decision.mem_factor,
    )


@contextmanager
def _code(main: DecoratedMain, sheeps: Sequence[GridSheep]) -> Iterator[Path | None]:
    """With `dora.git_save`, stand in a clone of the repository while submitting; yields the clone."""
    if not sheeps or not sheeps[0].xp.dora.git_save:
        yield None
        return
    if main.dora.local_code:
        raise ConfigError("dora.local_code=true is not known to these launchers; leave it out, git_save is enough.")
    clone = git_save.get_new_clone(main)
    with git_save.enter_clone(clone):
        yield clone
