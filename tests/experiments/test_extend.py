"""What may change of an experiment that has trained, and the record of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiotok import train
from audiotok.cli import main as audiotok
from audiotok.errors import ConfigError
from audiotok.experiments.extend import Extension, plan_extension
from audiotok.experiments.frozen import FROZEN_FILE, FROZEN_VARIABLE, Experiment, read_frozen
from audiotok.status import AMENDED_FILE, State, Verdict, experiment_state, write_json
from audiotok.status.amendments import amendment_lines, may_change
from audiotok.status.progress import progress_in

DEBUG = ["solver=compression/debug", "device=cpu", "optim.epochs=4", "logging.log_updates=7"]


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Path]:
    """Folder of outputs of the entry point."""
    old, train.main.dora.dir = train.main.dora.dir, tmp_path / "outputs"
    yield tmp_path / "outputs"
    train.main.dora.dir = old


def finished(*argv: str, epochs: int = 4, state: str = "COMPLETED") -> Experiment:
    """An experiment that has trained, by its files."""
    xp: Experiment = train.main.init_xp(train.main.get_xp([*DEBUG, *argv]))
    (xp.folder / "history.json").write_text(json.dumps([{"train": {"loss": 1.0}}] * epochs))
    status = {"state": state, "epoch": epochs, "epochs": 4, "updates_per_epoch": 10, "epoch_s": 60.0}
    write_json(xp.folder / "status.json", {**status, "started": 1.0, "updated": 2.0, "job_id": None})
    return xp


def extend(sig: str, *argv: str) -> Extension:
    """Extend an experiment."""
    found = plan_extension(train.main, sig, argv)
    assert found is not None
    found.write("ada@here")
    return found


def test_a_finished_experiment_goes_on_under_its_signature(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xp = finished()
    frozen = (xp.folder / FROZEN_FILE).read_bytes()
    assert experiment_state(xp.folder) == ("COMPLETED", "")
    assert str(extend(xp.sig, "optim.epochs=6", "evaluate.every=3")).startswith("optim.epochs 4 → 6, evaluate.every ")
    assert experiment_state(xp.folder) == ("EXTENDED", "4 of 6 epochs are done")
    assert str(progress_in(xp.folder)) == "4/6" and progress_in(xp.folder).left_s == 120.0
    again = train.main.get_xp_from_sig(xp.sig)
    assert (again.sig, again.cfg.optim.epochs, again.cfg.evaluate.every) == (xp.sig, 6, 3)
    assert again.frozen_values()["optim"]["epochs"] == 6
    monkeypatch.setenv(FROZEN_VARIABLE, str(xp.folder / FROZEN_FILE))  # as in a job
    job = train.main.get_xp(DEBUG)
    assert (job.sig, job.cfg.optim.epochs) == (xp.sig, 6)
    monkeypatch.delenv(FROZEN_VARIABLE)
    assert train.main.get_xp(DEBUG).sig == xp.sig and (xp.folder / FROZEN_FILE).read_bytes() == frozen
    assert train.main.change(train.main.get_xp(DEBUG)) is None and train.main.drift(xp) == []
    extend(xp.sig, "optim.epochs=9")
    first, second = amendment_lines(xp.folder)
    assert "by ada@here, after 4 epochs: optim.epochs 4 → 6" in first and second.endswith("optim.epochs 6 → 9")
    assert train.main.get_xp_from_sig(xp.sig).cfg.optim.epochs == 9
    assert plan_extension(train.main, xp.sig, ["optim.epochs=9"]) is None
    extend(xp.sig, "optim.epochs=4")  # none of it has begun: as it was
    assert experiment_state(xp.folder) == ("COMPLETED", "")


def test_an_amendment_counts_over_what_was_submitted_and_what_a_run_is_given_over_both(outputs: Path) -> None:
    xp = finished("checkpoint.save_every=2")
    extend(xp.sig, "logging.log_updates=3", "checkpoint.save_every=null", "optim.epochs=5")
    argv = train.main.get_argv_from_sig(xp.sig)
    cfg = train.main._thaw(read_frozen(xp.folder / FROZEN_FILE), argv).cfg
    assert (cfg.logging.log_updates, cfg.checkpoint.save_every) == (3, None)
    cfg = train.main._thaw(read_frozen(xp.folder / FROZEN_FILE), [*argv, "logging.log_updates=5"]).cfg
    assert (cfg.logging.log_updates, cfg.optim.epochs) == (5, 5)


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("losses.mmd=2", r"losses.mmd may not change .* new experiment .* losses.mmd=2 continue_from=//sig/"),
        ("optim.lr=1", "optim.lr may not change"),
        ("optim.updates_per_epoch=3", "may not change"),
        ("device=cuda", "of a run, not of the experiment; give it to the run: dora run -f"),
        ("seed=3", "may not change"),
        ("optim.epochs=3", "has done 4 epochs; give more"),
        ("optim.epochs=5.5", "whole number"),
        ("optim.epochs=true", "whole number"),
        ("optim.epochs=null", "whole number"),
        ("checkpoint.every_minutes=-1", r"checkpoint.every_minutes=-1"),
        ("evaluate.every=soon", r"evaluate.every"),
        ("evaluate.evry=2", r"no key 'evaluate.evry'; nearest: evaluate.every(, [\w.]+){2}$"),
        ("optim.epochs=${seed}", "refers to something else"),
        ("optim.epochs=1,2", "not of a single key"),
        ("optim={epochs: 9}", "not of a single key"),
        ("~optim.epochs=4", "not of a single key"),
        ("optim.epochs=[", "override 'optim.epochs=\\['"),
    ],
)
def test_what_may_not_change_is_refused_in_one_line(outputs: Path, argument: str, found: str) -> None:
    xp = finished()
    with pytest.raises(ConfigError, match=found) as caught:
        plan_extension(train.main, xp.sig, ["evaluate.every=1", argument])
    assert "\n" not in str(caught.value) and not (xp.folder / AMENDED_FILE).exists()


def test_what_has_not_trained_has_nothing_to_extend(outputs: Path) -> None:
    xp = train.main.init_xp(train.main.get_xp(DEBUG))
    with pytest.raises(ConfigError, match="has not trained a step yet"):
        plan_extension(train.main, xp.sig, ["optim.epochs=6"])
    with pytest.raises(ConfigError, match="no experiment with signature"):
        plan_extension(train.main, "abcd1234", ["optim.epochs=6"])
    stopped = finished("seed=3", epochs=2, state="FAILED")
    with pytest.raises(ConfigError, match="has done 2 epochs"):  # it would end without its evaluation
        plan_extension(train.main, stopped.sig, ["optim.epochs=2"])


def test_epochs_of_a_job_that_may_run_are_not_lowered(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xp = finished(epochs=2)
    running = Verdict(State.RUNNING, "")
    monkeypatch.setattr("audiotok.experiments.extend.experiment_state", lambda folder: running)
    with pytest.raises(ConfigError, match="is RUNNING, and its job trains 4; give more than that, or cancel it first"):
        plan_extension(train.main, xp.sig, ["optim.epochs=3"])
    assert str(plan_extension(train.main, xp.sig, ["optim.epochs=6"])) == "optim.epochs 4 → 6"


def test_only_what_a_step_does_not_compute_may_change() -> None:
    assert all(map(may_change, ("optim.epochs", "checkpoint.keep_last", "logging.level", "dataset.valid.num_workers")))
    assert not any(map(may_change, ("optim.lr", "optim.ema.decay", "dataset.batch_size", "seed", "schedule.cosine")))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"sig": "abcd1234", "amendments": []}', '{"amendments": [{"keys": {"a": 1}}]}']
)
def test_a_damaged_record_stops_a_run_and_harms_no_table(outputs: Path, content: str) -> None:
    xp = finished()
    (xp.folder / AMENDED_FILE).write_text(content)
    assert experiment_state(xp.folder) == ("COMPLETED", "")
    with pytest.raises(ConfigError, match=AMENDED_FILE):
        read_frozen(xp.folder / FROZEN_FILE)


@pytest.mark.parametrize(
    "keys", [{"losses.mmd": [0, 5]}, {"slurm.setup": [None, ["x"]]}, {"optim.epochs": [4, "${seed}"]}]
)
def test_a_record_from_elsewhere_changes_nothing_that_a_command_would_not(
    outputs: Path, keys: dict[str, object]
) -> None:
    xp = finished()
    write_json(xp.folder / AMENDED_FILE, {"sig": xp.sig, "amendments": [{"time": 1e20, "keys": keys}]})
    with pytest.raises(ConfigError, match="may not change"):
        read_frozen(xp.folder / FROZEN_FILE)
    assert amendment_lines(xp.folder)[0].startswith("? by")


def test_what_was_submitted_with_a_key_that_counts_for_no_signature_is_the_value_before(outputs: Path) -> None:
    xp = finished("dataset.num_workers=7")
    assert plan_extension(train.main, xp.sig, ["dataset.num_workers=7"]) is None
    assert str(extend(xp.sig, "dataset.num_workers=3")) == "dataset.num_workers 7 → 3"


def test_a_moved_folder_takes_its_record_along(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xp = finished()
    extend(xp.sig, "optim.epochs=6")
    before = Path(xp.folder)
    shutil.move(outputs, tmp_path / "elsewhere")
    train.main.dora.dir = tmp_path / "elsewhere"
    moved = train.main.get_xp_from_sig(xp.sig)
    assert moved.folder != before and moved.cfg.optim.epochs == 6
    monkeypatch.setenv(FROZEN_VARIABLE, str(before / FROZEN_FILE))  # of a job that was queued before
    assert train.main.get_xp([]).cfg.optim.epochs == 6


def test_the_command_says_what_it_means_for_others(
    outputs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    xp = finished("schedule.lr_scheduler=cosine", "optim.lr=1e-3")
    over: dict[str, Any] = {"a": "COMPLETED", "b": "FAILED"}
    for name, state in over.items():
        folder = outputs / "xps" / f"{name}bcd1234"
        folder.mkdir()
        write_json(folder / "status.json", {"state": state, "started": 1.0, "updated": 2.0})
        (folder / ".argv.json").write_text(json.dumps([f"compression_model_checkpoint=//sig/{xp.sig}"]))
    (outputs / "grids" / "codecs").mkdir(parents=True)
    (outputs / "grids" / "codecs" / xp.sig).symlink_to(xp.folder)
    caplog.set_level("INFO")
    assert audiotok(["extend", "-P", "audiotok", "codecs", "optim.epochs=8", "--dry_run"]) == 0
    assert not (xp.folder / AMENDED_FILE).exists() and "nothing was written" in caplog.text
    caplog.clear()
    assert audiotok(["extend", "-P", "audiotok", xp.sig, "optim.epochs=8"]) == 0
    assert "after epoch 4 the learning rate is 0.0005, not 0:" in caplog.text
    assert "abcd1234 (COMPLETED) build on it: they keep their results" in caplog.text
    assert "bbcd1234 (FAILED) build on it: they take the weights that are there" in caplog.text
    assert experiment_state(xp.folder) == ("EXTENDED", "4 of 8 epochs are done")
    assert audiotok(["extend", "-P", "audiotok", xp.sig]) == 2
    assert "KEY=VALUE, such as optim.epochs=300 is missing" in capsys.readouterr().err
    assert audiotok(["extend", "-P", "audiotok", xp.sig, "losses.mmd=3"]) == 2


@pytest.mark.parametrize("extended", [False, True])
def test_a_mistake_in_what_a_run_is_given_leaves_a_finished_experiment_as_it_was(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    xp = finished()
    if extended:
        extend(xp.sig, "optim.epochs=6")
    files = {path: path.read_bytes() for path in xp.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["train.py", *DEBUG, "watch.explosion=1"])
    with pytest.raises(ConfigError, match=r"^watch\.explosion=1\.0: give a number above 1, or null$"):
        train.main()
    assert {path: path.read_bytes() for path in xp.folder.rglob("*") if path.is_file()} == files


def test_a_look_at_an_experiment_leaves_its_overrides(outputs: Path) -> None:
    """Else `dora run -f SIG`, which trains it on, would look again."""
    xp = finished()
    argv = train.main.get_argv_from_sig(xp.sig)
    for look in ("execute_only=evaluate", "show=true"):
        looking = train.main.init_xp(train.main.get_xp([*DEBUG, look]))
        assert looking.sig == xp.sig and train.main.get_argv_from_sig(xp.sig) == argv
    extend(xp.sig, "optim.epochs=6")
    cfg = train.main.get_xp_from_sig(xp.sig).cfg
    assert (cfg.execute_only, cfg.show, cfg.optim.epochs) == (None, False, 6)


def test_a_look_before_training_leaves_what_a_job_runs(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose command has no overrides takes those that were frozen."""
    xp = train.main.init_xp(train.main.get_xp(["seed=7", "++show=true"]))
    monkeypatch.setenv("AUDIOTOK_FROZEN", str(xp.folder / "frozen.json"))
    job = train.main.get_xp([])
    assert (job.sig, job.argv, job.cfg.show, job.cfg.seed) == (xp.sig, ["seed=7"], False, 7)
