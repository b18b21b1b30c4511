"""Experiments that need others: when they are submitted, with what, and when they are blocked."""

from pathlib import Path

import pytest
from dora.conf import SubmitRules

from audiotok.errors import LaunchError
from audiotok.launchers.decide import Action, Decision, after
from audiotok.launchers.engine import Job
from audiotok.launchers.needs import needing, set_waiting
from audiotok.launchers.profile import Profile
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import GridShepherd
from audiotok.status import State, Verdict, experiment_state, write_json
from audiotok.status.judge import hold_up, unmet
from tests.launchers.test_shepherd import Engine, House, house

__all__ = ["house"]

FAILED = Verdict(State.FAILED, "no audio")


class Waiting(Engine):
    """An engine with which a task can wait for a job."""

    def can_wait_for(self, job: Job, profile: Profile) -> bool:
        return self.states[job.job_id].state.live


def shepherd_of(house: House, engine: type[Engine] = Waiting) -> tuple[GridShepherd, Engine]:
    shepherd, _ = house.shepherd()
    shepherd.engines["slurm"] = notes = engine(house.states)
    return shepherd, notes


def over(shepherd: GridShepherd, *codecs: int, seeds: int = 1, rules: SubmitRules | None = None) -> list[GridSheep]:
    """Request experiments over those with these indices."""
    words = [(f"seed={seed}", f"continue_from=//sig/xindex{codec}") for codec in codecs for seed in range(seeds)]
    sheeps = [shepherd.get_sheep_from_argv(list(argv)) for argv in words]
    shepherd.update()
    for sheep in sheeps:
        shepherd.maybe_submit_lazy(sheep, Profile(), rules or SubmitRules())
    return sheeps


def test_experiments_over_one_share_an_array_that_waits_for_its_job(house: House) -> None:
    codecs, _ = house.launch(3)
    house.states[str(codecs[2].current_job_id)] = Verdict(State.COMPLETED, "")
    shepherd, engine = shepherd_of(house)
    sheeps = over(shepherd, 0, 1, 2, seeds=2)
    shepherd.commit()
    assert [len(part) for part in engine.submitted] == [2, 2, 2]
    assert engine.tasks[0].needs == {}  # of the one that has completed
    assert [sheep.decision.needs for sheep in sheeps if sheep.decision][::2] == [
        {"xindex0": "PENDING"},
        {"xindex1": "PENDING"},
        {},
    ]
    shepherd, engine = shepherd_of(house)
    over(shepherd, 0, 1, 2, seeds=2)
    shepherd.commit()
    assert engine.submitted == []


def test_over_what_was_extended_nothing_new_begins_and_what_is_done_says_so(house: House) -> None:
    (codec,), _ = house.launch(1)
    house.states[str(codec.current_job_id)] = Verdict(State.COMPLETED, "")
    shepherd, engine = shepherd_of(house)
    (done,) = over(shepherd, 0)
    shepherd.commit()
    house.states[str(done.current_job_id)] = Verdict(State.COMPLETED, "")
    write_json(done.xp.folder / "status.json", {"state": "COMPLETED", "started": 100.0})
    write_json(codec.xp.folder / "status.json", {"state": "COMPLETED", "epoch": 2})
    amendment = {"time": 200.0, "keys": {"optim.epochs": [2, 4]}}
    write_json(codec.xp.folder / "amended.json", {"sig": codec.xp.sig, "amendments": [amendment]})
    shepherd, engine = shepherd_of(house)
    sheeps = over(shepherd, 0, seeds=2)
    assert shepherd.carry_out() == [] and engine.submitted == []
    assert sheeps[0].decision == Decision(Action.REUSE, f"keeps what it has of {codec.xp.sig} before that was extended")
    assert sheeps[1].held() == ("BLOCKED", f"needs {codec.xp.sig}, which is EXTENDED: 2 of 4 epochs are done")
    assert needing(house.folder / "xps", codec.xp.sig).keys() <= {"COMPLETED", "NOT_STARTED", "PENDING"}


def test_what_cannot_wait_in_a_queue_goes_out_when_the_other_has_completed(house: House) -> None:
    codecs, _ = house.launch(2)
    shepherd, engine = shepherd_of(house, Engine)
    sheeps = over(shepherd, 0, 1)
    assert shepherd.carry_out() == [] and engine.submitted == []
    assert [sheep.held() for sheep in sheeps] == [
        ("WAITING", "for xindex0 (PENDING)"),
        ("WAITING", "for xindex1 (PENDING)"),
    ]
    assert shepherd.no_room == "0 of 2 are submitted, 2 wait for others"
    assert not shepherd.may_have_room()
    house.states[str(codecs[0].current_job_id)] = Verdict(State.COMPLETED, "")
    house.states[str(codecs[1].current_job_id)] = FAILED
    assert shepherd.may_have_room()  # at once
    shepherd.submit_rest(set(shepherd.rest))
    assert engine.submitted == [[sheeps[0].xp.sig]] and engine.tasks[0].needs == {} and not shepherd.rest
    assert sheeps[1].held() == ("BLOCKED", "needs xindex1, which is FAILED: no audio")
    assert any(line.endswith("needs xindex1, which is FAILED: no audio") for line in house.said)


def test_over_what_was_never_submitted_nothing_is(house: House) -> None:
    shepherd, engine = shepherd_of(house)
    links = house.folder / "grids" / "codecs"
    links.mkdir(parents=True)
    (links / "xindex0").symlink_to("../../xps/xindex0")
    sheeps = over(shepherd, 0, 1, seeds=2)
    assert shepherd.carry_out() == [] and engine.submitted == []
    assert [sheep.held() for sheep in sheeps][1:3] == [
        ("BLOCKED", "needs `dora grid codecs` first"),
        ("BLOCKED", "needs xindex1, which is not submitted"),
    ]
    assert [" and 1 more: needs" in line for line in house.said] == [True, True]
    over(shepherd, 0)
    with pytest.raises(LaunchError, match="not submitted: it needs `dora grid codecs` first"):
        shepherd.commit()  # of `dora launch`


def test_over_what_waits_for_room_it_waits_too(house: House) -> None:
    set_waiting(house.folder, "codecs", ["xindex0"])
    shepherd, engine = shepherd_of(house)
    (sheep,) = over(shepherd, 0)
    assert shepherd.carry_out() == [] and engine.submitted == [] and list(shepherd.rest) == [sheep.xp.sig]
    assert sheep.held() == ("WAITING", "for xindex0 (WAITING for `dora grid codecs` to send it)")
    (codec,), _ = house.launch(1)
    shepherd.update()
    shepherd.submit_rest({sheep.xp.sig})
    assert engine.submitted == [[sheep.xp.sig]] and engine.tasks[0].needs == {"xindex0": codec.current_job_id}
    assert not shepherd.rest and sheep.held() is None
    set_waiting(house.folder, "codecs", [])  # cancelled
    shepherd, _ = shepherd_of(house)
    (sheep,) = over(shepherd, 1)
    assert sheep.held() == ("BLOCKED", "needs xindex1, which is not submitted")


def test_a_chain_within_one_grid_goes_out_link_by_link(house: House) -> None:
    shepherd, engine = shepherd_of(house)
    sheeps = [shepherd.get_sheep_from_argv(["index=0"])]
    for _ in range(2):
        sheeps.append(shepherd.get_sheep_from_argv([f"continue_from=//sig/{sheeps[-1].xp.sig}"]))
    sigs = [sheep.xp.sig for sheep in sheeps]
    for sheep in sheeps:
        shepherd.maybe_submit_lazy(sheep, Profile(), SubmitRules())
    assert shepherd.carry_out() == [] and engine.submitted == [sigs[:1]] and list(shepherd.rest) == sigs[1:]
    shepherd.update()
    assert [sheep.held() for sheep in sheeps] == [
        None,
        ("WAITING", f"for {sigs[0]} (PENDING)"),
        ("WAITING", f"for {sigs[1]} (WAITING to be submitted)"),
    ]
    for number in (2, 3):
        shepherd.submit_rest(set(shepherd.rest))
        assert engine.submitted == [[sig] for sig in sigs[:number]]
        assert engine.tasks[0].needs == {sigs[number - 2]: sheeps[number - 2].current_job_id}
    house.states[str(sheeps[0].current_job_id)] = FAILED
    house.states[str(sheeps[1].current_job_id)] = Verdict(State.BLOCKED, f"needs {sigs[0]}, which is FAILED")
    assert hold_up(shepherd.needs(sheeps[2].xp)) == (
        "BLOCKED",
        f"needs {sigs[1]}, which is BLOCKED: needs {sigs[0]}, which is FAILED",
    )
    for sheep in sheeps:
        shepherd.maybe_submit_lazy(sheep, Profile(), SubmitRules(retry=True))
    assert shepherd.carry_out() == [] and engine.submitted[3:] == [sigs[:1]] and list(shepherd.rest) == sigs[1:2]


def test_what_runs_by_hand_is_waited_for_and_what_it_left_is_seen(house: House) -> None:
    folder = house.folder / "xps" / "xindex0"
    folder.mkdir(parents=True)
    for state, held in (("RUNNING", "WAITING"), ("COMPLETED", None), ("INTERRUPTED", "BLOCKED")):
        write_json(folder / "status.json", {"state": state, "started": 1.0, "updated": 4e9})
        shepherd, _ = shepherd_of(house)
        found = hold_up(shepherd.needs(shepherd.get_sheep_from_argv(["continue_from=//sig/xindex0"]).xp))
        assert (found and found.state) == held
    assert unmet(house.folder / "xps" / "other", ["xindex0"]) == found


@pytest.mark.parametrize("state", ["COMPLETED", "INTERRUPTED"])
def test_the_end_of_a_run_by_hand_is_seen_at_once(house: House, state: str) -> None:
    folder = house.folder / "xps" / "xindex0"
    folder.mkdir(parents=True)
    write_json(folder / "status.json", {"state": "RUNNING", "started": 1.0, "updated": 4e9})
    shepherd, engine = shepherd_of(house)
    (sheep,) = over(shepherd, 0)
    shepherd.carry_out()
    assert sheep.held() == ("WAITING", "for xindex0 (RUNNING)") and not shepherd.may_have_room()
    write_json(folder / "status.json", {"state": state, "started": 1.0, "updated": 4e9})
    assert shepherd.may_have_room()
    shepherd.submit_rest({sheep.xp.sig})
    assert not shepherd.rest and not shepherd.may_have_room()
    assert len(engine.submitted) == (state == "COMPLETED") and bool(sheep.held()) == (state == "INTERRUPTED")


def test_force_begins_from_what_has_failed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    codecs, _ = house.launch(1)
    house.states[str(codecs[0].current_job_id)] = FAILED
    shepherd, engine = shepherd_of(house)
    over(shepherd, 0)
    shepherd.carry_out()
    assert engine.submitted == []
    monkeypatch.setenv("AUDIOTOK_RETRY", "force")
    over(shepherd, 0)
    shepherd.carry_out()
    assert len(engine.submitted) == 1 and engine.tasks[0].needs == {}


@pytest.mark.parametrize("rules", [SubmitRules(), SubmitRules(retry=True)])
def test_what_was_blocked_waits_again_once_the_other_is_retried(house: House, rules: SubmitRules) -> None:
    codecs, _ = house.launch(1)
    shepherd, _ = shepherd_of(house)
    (sheep,) = over(shepherd, 0)
    shepherd.commit()
    first = str(sheep.current_job_id)
    house.states[str(codecs[0].current_job_id)] = FAILED
    house.states[first] = Verdict(State.BLOCKED, "needs xindex0, which is FAILED: no audio")
    shepherd, engine = shepherd_of(house)
    (sheep,) = over(shepherd, 0, rules=rules)
    shepherd.carry_out()
    assert engine.submitted == [] and sheep.state() is State.BLOCKED
    over(shepherd, 0, rules=rules)
    with pytest.raises(LaunchError, match="not submitted: it needs xindex0, which is FAILED: no audio"):
        shepherd.commit()  # of `dora launch`
    (codec,), _ = house.launch(1, rules=SubmitRules(retry=True))
    shepherd, engine = shepherd_of(house)
    (sheep,) = over(shepherd, 0, rules=rules)
    shepherd.commit()
    assert len(engine.submitted) == 1 and engine.tasks[0].needs == {"xindex0": codec.current_job_id}
    assert sheep.current_job_id != first


@pytest.mark.parametrize(
    "value", ["//sig/xindex0", '"//sig/xindex0"', "//sig/xindex0/", "//pretrained///sig/xindex0", "'//sig/xindex0'"]
)
def test_all_ways_to_write_a_signature(house: House, value: str) -> None:
    shepherd, _ = shepherd_of(house)
    sheep = shepherd.get_sheep_from_argv(["continue_from=//sig/first", f"compression_model_checkpoint={value}"])
    assert list(shepherd.needs(sheep.xp)) == ["first", "xindex0"]
    later = shepherd.get_sheep_from_argv(["continue_from=//sig/first", "continue_from=null", f"note=a{value}"])
    assert list(shepherd.needs(later.xp)) == []


def test_the_decision_by_the_states_of_what_is_needed() -> None:
    new, keep = Decision(Action.NEW), Decision(Action.KEEP, "WAITING: for a (RUNNING)")
    runs, done = Verdict(State.RUNNING, ""), Verdict(State.COMPLETED, "")
    assert after(new, {"a": done}) == new
    assert after(new, {"a": done, "b": runs}).needs == {"b": "RUNNING"}
    assert after(keep, {"b": runs}) == Decision(
        Action.KEEP, "once what it needs has completed (RUNNING now)", needs={"b": State.RUNNING}
    )
    assert after(new, {"a": runs, "b": FAILED}).action is Action.BLOCKED
    assert after(keep, {"a": FAILED}) == keep  # its queue ends it
    assert after(new, {"a": Verdict(State.UNKNOWN, "")}).needs == {"a": "UNKNOWN"}


def test_a_blocked_experiment_is_known_from_its_files(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"job_id": "7", "verdict": {"state": "BLOCKED", "reason": "needs a", "time": 1}})
    assert experiment_state(tmp_path) == ("BLOCKED", "needs a")


def test_what_waits_is_known_from_the_files_beside_it(tmp_path: Path) -> None:
    codec, model, after_it = (tmp_path / name for name in ("codec", "model", "after"))
    for folder, needs in ((model, {"codec": "7"}), (after_it, {"model": "8", "../codec": "7"})):
        folder.mkdir()
        write_json(folder / "job.json", {"job_id": "8", "submitted": 2.0, "needs": needs})
    assert experiment_state(model) == ("PENDING", "")  # its queue ends it
    codec.mkdir()
    write_json(codec / "job.json", {"job_id": "7", "submitted": 1.0})
    assert experiment_state(model) == ("WAITING", "for codec (PENDING)")
    assert experiment_state(after_it) == ("WAITING", "for model (PENDING), ../codec (PENDING)")
    write_json(codec / "job.json", {"job_id": "7", "verdict": {"state": "COMPLETED", "time": 1}})
    assert experiment_state(model) == ("PENDING", "")
    write_json(model / "job.json", {"job_id": "8", "needs": {"model": "8"}})  # damaged: of itself
    assert experiment_state(model) == ("WAITING", "for model (PENDING)")
    write_json(model / "job.json", {"job_id": "8", "needs": ["codec", 7]})
    assert experiment_state(model) == ("PENDING", "")
