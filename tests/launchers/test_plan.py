"""A plan: what it adds up to, what it says, what it remembers; made of decisions, without a launcher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiotok.experiments.disk import folder_bytes
from audiotok.launchers.decide import FORCE, Action, Decision
from audiotok.launchers.plan import (
    Entry,
    Plan,
    _bytes,
    _changes_since,
    _hours,
    _members_of,
    make_plan,
    plan_text,
    remember,
)
from audiotok.launchers.profile import Profile
from audiotok.status import STATUS_FILE, State

GRID = "compression.sweep"


def _entry(
    root: Path, number: int, action: Action, *, reason: str = "", state: str = "", profile: Profile | None = None
) -> Entry:
    sig = f"{number:08x}"
    decision = Decision(action, reason)
    return Entry(sig, f"seed={number}", root / "xps" / sig, state, decision, profile or Profile(time=120))


def _finish(folder: Path, *, size: int, epochs: int = 10, epoch_s: float = 360.0, **status: Any) -> None:
    """An experiment that took an hour, with this many bytes beside its `status.json`."""
    folder.mkdir(parents=True)
    told = {"state": "COMPLETED", "epoch": epochs, "epochs": epochs, "epoch_s": epoch_s, **status}
    (folder / STATUS_FILE).write_text(json.dumps(told))
    (folder / "checkpoint.th").write_bytes(b"\0" * (size - (folder / STATUS_FILE).stat().st_size))


def _plan(root: Path, *entries: Entry, launcher: str = "slurm") -> Plan:
    sigs = [entry.sig for entry in entries if entry.action is not Action.CANCEL]
    return make_plan(root, GRID, launcher, entries, sigs)


def _files(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def test_hours_are_those_of_what_is_submitted(tmp_path: Path) -> None:
    big = Profile(gpus=16, cpus_per_gpu=10, time=600)
    entries = [
        _entry(tmp_path, 1, Action.NEW, profile=big),
        _entry(tmp_path, 2, Action.RETRY, profile=Profile(gpus=0, cpus_per_task=4, time=90)),
        *(_entry(tmp_path, n, action, profile=big) for n, action in enumerate((Action.KEEP, Action.REUSE), 3)),
        _entry(tmp_path, 5, Action.BLOCKED, profile=big),
    ]
    request = _plan(tmp_path, *entries).request
    assert request.jobs == 2
    assert request.gpu_hours == pytest.approx(16 * 10)
    assert request.cpu_hours == pytest.approx(16 * 10 * 10 + 4 * 1.5)
    assert request.likely_gpu_hours is None and request.disk_bytes is None and request.finished == 0
    assert request.free_bytes is not None and request.free_bytes > 0


def test_the_chain_says_how_many_wait_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiotok.launchers.plan.grid_of", {"a": "codecs", "b": "codecs", "c": ""}.__getitem__)
    needs = [{"a": State.RUNNING}, {"a": State.RUNNING, "b": State.PENDING}, {"c": State.PENDING}, {}]
    entries = [_entry(tmp_path, n, Action.NEW) for n in range(4)]
    entries = [
        replace(entry, decision=replace(entry.decision, needs=some)) for entry, some in zip(entries, needs, strict=True)
    ]
    plan = _plan(tmp_path, *entries)
    assert [line for line in plan_text(plan).splitlines() if line.startswith("chain")] == [
        "chain: 2 wait for 2 experiments of codecs (1 RUNNING, 1 PENDING)",
        "chain: 1 waits for 1 experiment (1 PENDING)",
    ]
    assert [one.get("needs") for one in plan.as_json()["experiments"]] == [*needs[:3], None]


def test_finished_experiments_tell_what_is_likely(tmp_path: Path) -> None:
    done = [_entry(tmp_path, n, Action.REUSE, state="COMPLETED") for n in (1, 2, 3)]
    for entry, size, epoch_s in zip(done, (1000, 3000, 5000), (360.0, 360.0, 3600.0), strict=True):
        _finish(entry.folder, size=size, epoch_s=epoch_s)
    half = _entry(tmp_path, 4, Action.RETRY, state="TIMEOUT", profile=Profile(gpus=2, cpus_per_gpu=3, time=120))
    _finish(half.folder, size=1200, epoch=5, state="INTERRUPTED")
    new = _entry(tmp_path, 5, Action.NEW, profile=Profile(gpus=2, cpus_per_gpu=3, time=120))
    request = _plan(tmp_path, *done, half, new).request
    assert request.gpu_hours == pytest.approx(2 * 2 * 2)
    assert request.likely_gpu_hours == pytest.approx(2 * (1.0 + 0.5))  # an hour each, half of one being done
    assert request.likely_cpu_hours == pytest.approx(6 * 1.5)
    assert request.disk_bytes == 3000 + (3000 - 1200)
    assert request.finished == request.measured == 3


def test_only_finished_experiments_of_the_grid_count_those_that_left_it_too(tmp_path: Path) -> None:
    _finish(tmp_path / "xps" / "0000000a", size=700)
    new = _entry(tmp_path, 1, Action.NEW)
    elsewhere = _plan(tmp_path, new).request
    assert (elsewhere.disk_bytes, elsewhere.likely_gpu_hours, elsewhere.measured) == (None, None, 0)
    linked = tmp_path / "grids" / GRID
    linked.mkdir(parents=True)
    (linked / "0000000a").symlink_to(tmp_path / "xps" / "0000000a")
    here = _plan(tmp_path, new).request
    assert here.likely_gpu_hours == pytest.approx(1.0) and (here.disk_bytes, here.finished) == (700, 1)


def test_the_disk_is_that_of_each_configuration_where_it_is_known(tmp_path: Path) -> None:
    _finish(tmp_path / "xps" / "0000000a", size=700)
    done = _entry(tmp_path, 10, Action.REUSE, state="COMPLETED")
    known = [replace(_entry(tmp_path, n, Action.NEW), size=n * 10**9) for n in (3, 4)]
    known[0].folder.mkdir(parents=True)
    (known[0].folder / "checkpoint.th").write_bytes(b"\0" * 1000)
    plan = _plan(tmp_path, done, *known)
    assert (plan.request.disk_bytes, plan.request.measured) == (7 * 10**9 - 1000, 0)
    assert "disk: about 7 GB, networks and checkpoints that are kept; " in plan_text(plan)
    mixed = _plan(tmp_path, done, *known, _entry(tmp_path, 5, Action.NEW)).request
    assert (mixed.disk_bytes, mixed.measured) == (7 * 10**9 - 1000 + 700, 1)


def test_a_plan_writes_nothing_and_needs_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    plan = _plan(root, _entry(root, 1, Action.NEW))
    assert plan.request.free_bytes and plan.changes is None and not root.exists()
    _finish(tmp_path / "xps" / "0000000a", size=700)
    before = _files(tmp_path)
    plan_text(_plan(tmp_path, _entry(tmp_path, 10, Action.REUSE)))
    assert _files(tmp_path) == before


def test_links_are_not_followed_when_folders_are_measured(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\0" * 9999)
    folder = tmp_path / "xp"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one").write_bytes(b"\0" * 10)
    (folder / "link").symlink_to(tmp_path / "big")
    assert folder_bytes(folder) == 10 + (folder / "link").lstat().st_size
    assert folder_bytes(tmp_path / "none") == 0


def test_the_text_groups_and_shortens(tmp_path: Path) -> None:
    why = f"diverged: losses.mmd is nan; it would end so again: correct that, or `{FORCE}`"
    entries = [
        _entry(tmp_path, 90, Action.REUSE, state="COMPLETED"),
        *(_entry(tmp_path, n, Action.NEW) for n in range(1, 41)),
        _entry(tmp_path, 50, Action.RETRY, reason="NODE_FAIL: its node vanished", state="NODE_FAIL"),
        _entry(tmp_path, 51, Action.RETRY, reason="NODE_FAIL: its node vanished", state="NODE_FAIL"),
        _entry(tmp_path, 52, Action.RETRY, reason="TIMEOUT", state="TIMEOUT"),
        _entry(tmp_path, 60, Action.BLOCKED, reason=why, state="DIVERGED"),
        _entry(tmp_path, 70, Action.KEEP, reason="RUNNING", state="RUNNING"),
        _entry(tmp_path, 71, Action.KEEP, reason="FAILED: exit code 1", state="FAILED"),
        _entry(tmp_path, 80, Action.CANCEL, reason="RUNNING", state="RUNNING"),
    ]
    plan = _plan(tmp_path, *entries)
    text = plan_text(plan)
    head, *_ = text.splitlines()
    assert head == (f"Plan of {GRID} on slurm: 47 experiments (40 new, 1 reuse, 2 keep, 3 retry, 1 blocked, 1 cancel)")
    titles = [line for line in text.splitlines() if line and not line.startswith(" ") and line.endswith(")")]
    assert titles[1:] == [
        "new (40)",
        "retried (3)",
        "cancelled: no longer in the grid (1)",
        "blocked (1)",
        "left alone: waiting or running (1)",
        "left alone: failed; --retry submits them again (1)",
        "reused: done already (1)",
    ]
    assert (
        "    … 35 more (`audiotok plan` with --all lists them)" in text
        and text.count("NODE_FAIL: its node vanished (2)") == 1
    )
    assert f"AUDIOTOK_RETRY=force dora grid {GRID} --retry" in text
    assert "requests: 43 jobs, at most 86 GPU-hours and 860 CPU-hours" in text
    assert len(text.splitlines()) < 45
    assert "all of them" not in text  # nothing in common but nothing at all
    whole = plan_text(plan, shown=None)
    assert all(entry.sig in whole for entry in entries) and "more" not in whole


def test_what_all_names_begin_with_is_told_once(tmp_path: Path) -> None:
    names = ["solver=a sigmas=[0.1, 1.0]", "solver=a sigmas=[0.1, 5.0]", "solver=a"]
    entries = [Entry(f"{n:08x}", name, tmp_path, "", Decision(Action.NEW), Profile()) for n, name in enumerate(names)]
    _, common, _, _, *lines = plan_text(_plan(tmp_path, *entries)).splitlines()
    assert common == "all of them: solver=a"
    assert [line.split("  ")[-1] for line in lines[:3]] == ["sigmas=[0.1, 1.0]", "sigmas=[0.1, 5.0]", "(preset)"]
    lists = [names[0], names[1]]  # a list is not cut in two
    entries = [Entry(f"{n:08x}", name, tmp_path, "", Decision(Action.NEW), Profile()) for n, name in enumerate(lists)]
    assert "sigmas=[0.1, 5.0]" in plan_text(_plan(tmp_path, *entries))


def test_the_text_tells_when_nothing_happens_and_when_the_disk_is_too_small(tmp_path: Path) -> None:
    idle = plan_text(_plan(tmp_path, _entry(tmp_path, 1, Action.KEEP, state="RUNNING"), launcher="local"))
    assert "on local: 1 experiment (1 keep)" in idle and "requests: nothing" in idle and "disk" not in idle
    plan = _plan(tmp_path, _entry(tmp_path, 2, Action.NEW))
    assert "disk: unknown until an experiment of this grid has finished" in plan_text(plan)
    for name, value in (("disk_bytes", 10**13), ("free_bytes", 10**12)):
        object.__setattr__(plan.request, name, value)
    assert "disk: about 10 TB, networks and checkpoints that are kept; 1 TB free — not enough" in plan_text(plan)


def test_machines_get_plain_json(tmp_path: Path) -> None:
    left = Entry("0000000f", "seed=15", tmp_path / "f", "RUNNING", Decision(Action.CANCEL, "left"), None)
    profile = Profile(gpus=2, cpus_per_gpu=3, mem_gb=40.0, time=120)
    grown = Entry("0000000e", "seed=14", tmp_path / "e", "OUT_OF_MEMORY", Decision(Action.RETRY, "x", 1.5), profile)
    told = json.loads(json.dumps(_plan(tmp_path, grown, left).as_json()))
    assert told["grid"] == GRID and told["launcher"] == "slurm" and told["counts"] == {"retry": 1, "cancel": 1}
    assert told["request"]["gpu_hours"] == 4.0 and told["changes"] is None
    assert told["experiments"][0] == {
        "sig": "0000000e", "name": "seed=14", "action": "retry", "state": "OUT_OF_MEMORY", "reason": "x",
        "gpus": 2, "cpus": 6, "mem_gb": 60.0, "time_min": 120,
    }  # fmt: skip
    assert told["experiments"][1].keys() == {"sig", "name", "action", "state", "reason"}


def test_what_has_changed_since_the_last_submission(tmp_path: Path) -> None:
    first = [_entry(tmp_path, n, Action.NEW) for n in (1, 2, 3)]
    remember(tmp_path, GRID, first, [entry.sig for entry in first])
    same = _plan(tmp_path, *first)
    assert same.changes is not None and not same.changes and "nothing has changed" in plan_text(same)

    longer = Profile(time=240, partition="gpu")
    now = [_entry(tmp_path, n, Action.KEEP, state="RUNNING", profile=longer) for n in (2, 3)]
    now += [_entry(tmp_path, 4, Action.NEW, profile=longer), _entry(tmp_path, 1, Action.CANCEL)]
    changes = _plan(tmp_path, *now).changes
    assert changes is not None
    assert (changes.added, changes.removed) == (["seed=4"], ["seed=1"])
    assert changes.profile == {"partition none → gpu": 2, "time 120 → 240": 2}
    text = plan_text(_plan(tmp_path, *now))
    assert "+ seed=4" in text and "- seed=1" in text and "time 120 → 240 (2 experiments)" in text
    assert changes.user in text and changes.time > 1e9


def test_setup_lines_are_compared_and_not_recorded(tmp_path: Path) -> None:
    setup = Profile(setup=["export WANDB_API_KEY=hunter2"], srun_args=["--export=KEY=hunter2"])
    entry = _entry(tmp_path, 1, Action.NEW, profile=setup)
    remember(tmp_path, GRID, [entry], [entry.sig])
    path = tmp_path / "plans" / f"{GRID}.json"
    assert "hunter2" not in path.read_text()
    changes = _plan(tmp_path, entry).changes
    assert changes is not None and not changes.profile
    now = _entry(tmp_path, 1, Action.NEW, profile=Profile(setup=["export WANDB_API_KEY=hunter3"]))
    changes = _plan(tmp_path, now).changes
    assert changes is not None and {line.split()[0] for line in changes.profile} == {"setup", "srun_args"}
    assert "hunter" not in " ".join(changes.profile)

    content = json.loads(path.read_text())  # of a version that recorded the lines
    content["profiles"][0].update(setup=setup.setup, srun_args=setup.srun_args)
    path.write_text(json.dumps(content))
    changes = _plan(tmp_path, entry).changes
    assert changes is not None and not changes.profile


def test_patterns_do_not_make_the_rest_of_a_grid_disappear(tmp_path: Path) -> None:
    whole = [_entry(tmp_path, n, Action.NEW) for n in (1, 2, 3)]
    sigs = [entry.sig for entry in whole]
    remember(tmp_path, GRID, whole[:2], sigs)
    changes = _changes_since(tmp_path, GRID, _members_of(whole), sigs)
    assert changes is not None and changes.added == ["seed=3"] and changes.removed == []
    remember(tmp_path, GRID, whole[2:], sigs)  # the third by itself, later
    later = _changes_since(tmp_path, GRID, _members_of(whole[:1]), sigs)
    assert later is not None and not later
    remember(tmp_path, GRID, whole[:1], sigs[:1])  # the grid became smaller
    content = json.loads((tmp_path / "plans" / f"{GRID}.json").read_text())
    assert list(content["experiments"]) == sigs[:1] and len(content["profiles"]) == 1


def test_nothing_is_left_where_dora_looks_for_signatures(tmp_path: Path) -> None:
    entry = _entry(tmp_path, 10, Action.NEW)
    remember(tmp_path, GRID, [entry], [entry.sig])
    assert [path.relative_to(tmp_path).as_posix() for path in _files(tmp_path)] == ["plans", f"plans/{GRID}.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"experiments": 3}', '{"experiments": {"a": {}}, "profiles": []}'])
def test_a_damaged_memory_counts_as_none(tmp_path: Path, text: str) -> None:
    entry = _entry(tmp_path, 10, Action.NEW)
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / f"{GRID}.json").write_text(text)
    assert _changes_since(tmp_path, GRID, _members_of([entry]), [entry.sig]) is None
    remember(tmp_path, GRID, [entry], [entry.sig])
    assert _changes_since(tmp_path, GRID, _members_of([entry]), [entry.sig]) is not None


def test_numbers_for_people() -> None:
    assert [_hours(hours) for hours in (0.0, 1.25, 99.94, 12345.6)] == ["0", "1.25", "99.9", "12,346"]
    sizes = (0, 999, 1000, 2_500_000, 10**9, 10**13, 10**17)
    assert [_bytes(size) for size in sizes] == ["0 B", "999 B", "1 kB", "2.5 MB", "1 GB", "10 TB", "100,000 TB"]


def test_what_comes_from_the_environment_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_RESERVATION", "course")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")  # the profile says how long
    new, kept = _entry(tmp_path, 1, Action.NEW), _entry(tmp_path, 2, Action.KEEP, state="RUNNING")
    plan = _plan(tmp_path, new, kept)
    assert "\nfrom the environment: SBATCH_RESERVATION=course\n" in plan_text(plan)
    assert plan.as_json()["environment"] == {"SBATCH_RESERVATION": "course"}
    for other in (_plan(tmp_path, new, launcher="local"), _plan(tmp_path, kept)):
        assert "environment" not in plan_text(other)
