"""What an experiment was made with stays with it, whatever becomes of the YAML files."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dora.hydra import HydraMain
from dora.xp import get_xp
from omegaconf import OmegaConf

from audiotok.errors import ConfigError
from audiotok.experiments import ExperimentMain
from audiotok.experiments.frozen import FROZEN_FILE, FROZEN_VARIABLE, freeze, has_trained, read_frozen
from audiotok.results.read import SavedConfig
from audiotok.status import StatusWriter
from tests.nasty import make_main, write_project

ARGV = ["model=large", "epochs=4", "loose.n=7", "section.b.c=2"]


class Runs(list[Any]):
    """Configurations that the training function was called with; and the signature of the last."""

    sig = ""

    def __call__(self, cfg: Any) -> None:
        self.append(OmegaConf.to_container(cfg, resolve=True))
        self.sig = get_xp().sig


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def main(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> ExperimentMain:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    made: ExperimentMain = make_main(tmp_path, runs)
    return made


def edited(folder: Path, runs: Runs, old: str, new: str, name: str = "config.yaml") -> ExperimentMain:
    """The entry point as it is after a file of the configuration was edited."""
    path = folder / "config" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    main: ExperimentMain = make_main(folder, runs)
    return main


def call(main: ExperimentMain, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["dora", *argv])
        patch.setattr("hydra._internal.hydra.configure_log", lambda *args: None)
        patch.setattr("hydra.core.utils.configure_log", lambda *args: None)
        patch.setattr(logging, "basicConfig", lambda **kwargs: [handler.close() for handler in kwargs["handlers"]])
        main()


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # NaN is NaN


@pytest.mark.parametrize("argv", [[], ARGV, ["+new=[1, x]", "section={a: 3}"], ["name='${rate}'", "accent=${rate}"]])
def test_a_frozen_experiment_is_the_experiment(main: ExperimentMain, argv: list[str]) -> None:
    xp = main.init_xp(main.get_xp(argv))
    again = main.get_xp_from_sig(xp.sig)
    assert (again.sig, again.argv, again.folder) == (xp.sig, xp.argv, xp.folder)
    assert same(again.delta, xp.delta) and main.get_name(again) == main.get_name(xp)
    assert same(OmegaConf.to_container(again.cfg, resolve=True), OmegaConf.to_container(xp.cfg, resolve=True))
    assert OmegaConf.is_struct(again.cfg)
    assert main.drift(xp) == [] and main.change(main.get_xp(argv)) is None


def test_a_frozen_file_is_written_once(main: ExperimentMain, tmp_path: Path, runs: Runs) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    before = (xp.folder / FROZEN_FILE).read_text()
    later = edited(tmp_path, runs, "name: plain", "name: other")
    assert later.init_xp(later.get_xp(ARGV)).sig == xp.sig
    assert freeze(later.get_xp(ARGV)).read_text() == before
    assert sorted(path.name for path in xp.folder.iterdir()) == [".argv.json", FROZEN_FILE]


def test_a_job_runs_what_was_frozen(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    asked = OmegaConf.to_container(xp.cfg, resolve=True)
    later = edited(tmp_path, runs, "name: plain", "name: other")
    monkeypatch.setattr("hydra.main", None)
    monkeypatch.setattr("audiotok.experiments.main.compose", None)
    monkeypatch.setattr(later, "_get_config", None)
    monkeypatch.setenv(FROZEN_VARIABLE, str(xp.folder / FROZEN_FILE))
    for _ in range(2):  # it was queued again
        call(later, ARGV, monkeypatch)
        assert runs.sig == xp.sig and same(runs[-1], asked)
    assert later.get_xp([]).argv == later.get_xp(ARGV).argv == xp.argv
    assert Path.cwd() == tmp_path


def test_values_that_do_not_count_are_those_of_the_run(
    main: ExperimentMain, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = main.init_xp(main.get_xp(["epochs=4", "loose.n=7", "flag=false"]))
    monkeypatch.setenv(FROZEN_VARIABLE, str(xp.folder / FROZEN_FILE))
    call(main, ["epochs=4", "loose={n: 8}", "++loose.extra=1"], monkeypatch)
    (cfg,) = runs
    assert cfg["loose"] == {"n": 8, "other": "plain", "of_loose": 8, "extra": 1}
    assert cfg["flag"] is True and cfg["epochs"] == 4


def test_hydras_files_are_there_for_those_who_read_them(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["optim/sched=step", "model=large", "epochs=4", 'name="é"']
    call(make_main(tmp_path, runs, kind=HydraMain), argv, monkeypatch)
    (folder,) = (Path(main.dora.dir) / "xps").iterdir()
    by_hydra = {path.name: path.read_text() for path in (folder / ".hydra").iterdir()}
    shutil.rmtree(folder)
    call(main, argv, monkeypatch)  # by hand
    assert {path.name for path in (folder / ".hydra").iterdir()} == by_hydra.keys()
    assert SavedConfig(folder).get("name") == "é" and (folder / "train.log").exists()
    shutil.rmtree(folder / ".hydra")
    monkeypatch.setenv(FROZEN_VARIABLE, str(folder / FROZEN_FILE))
    call(main, argv, monkeypatch)
    ours = {path.name: path.read_text() for path in (folder / ".hydra").iterdir()}
    assert ours.keys() == by_hydra.keys()
    assert yaml.safe_load(ours["overrides.yaml"]) == yaml.safe_load(by_hydra["overrides.yaml"]) == argv
    one, other = (yaml.safe_load(found["hydra.yaml"])["hydra"] for found in (ours, by_hydra))
    theirs = {key: value for key, value in other["runtime"]["choices"].items() if not key.startswith("hydra/")}
    assert one["runtime"]["choices"] == theirs
    saved = SavedConfig(folder)
    assert (saved.get("optim/sched"), saved.get("optim.sched.size"), saved.get("name")) == ("step", 10, "é")
    assert same(runs[0], runs[1]) and same(runs[1], runs[2])


def test_a_run_by_hand_uses_the_frozen_copy_and_says_so(
    main: ExperimentMain,
    tmp_path: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call(main, ARGV, monkeypatch)
    sig = runs.sig
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    later = edited(tmp_path, runs, "name: plain", "name: other")
    main.get_xp(ARGV).history.write_text("[{}]")  # it has trained
    call(later, [*ARGV, "flag=false"], monkeypatch)
    assert runs.sig == sig and runs[-1]["name"] == "plain" and runs[-1]["flag"] is False
    assert 'name: "plain" → "other"' in caplog.text and "AUDIOTOK_RETRY=today" in caplog.text
    shutil.rmtree(main.get_xp(ARGV).folder)  # --clear
    call(later, ARGV, monkeypatch)
    assert runs.sig == sig and runs[-1]["name"] == "other"


@pytest.mark.parametrize("by", ["hand", "today"])
def test_a_run_by_hand_freezes_anew_what_may(
    main: ExperimentMain,
    tmp_path: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    by: str,
) -> None:
    call(main, ARGV, monkeypatch)
    folder = main.get_xp(ARGV).folder
    before = (folder / FROZEN_FILE).read_text()
    if by == "today":
        (folder / "checkpoint.th").touch()
        monkeypatch.setenv("AUDIOTOK_RETRY", "today")
    later = edited(tmp_path, runs, "name: plain", "name: other")
    later = edited(tmp_path, runs, "loose: {n: 1,", "loose: {n: 5,")  # does not count, and is taken all the same
    argv = [argument for argument in ARGV if not argument.startswith("loose")]
    call(later, [*argv, "flag=false"], monkeypatch)
    assert runs[-1]["name"] == "other" and runs[-1]["loose"]["n"] == 5 and runs[-1]["flag"] is False
    assert 'name: "plain" → "other"; freezes anew' in caplog.text and "loose.n: 1 → 5" in caplog.text
    assert read_frozen(folder / FROZEN_FILE).cfg["name"] == "other"
    assert (folder / "frozen.1.json").read_text() == before
    call(later, argv, monkeypatch)
    assert sorted(path.name for path in folder.glob("frozen*")) == ["frozen.1.json", FROZEN_FILE]


def test_what_runs_keeps_what_is_frozen(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    StatusWriter(xp.folder).start()
    call(edited(tmp_path, runs, "name: plain", "name: other"), ARGV, monkeypatch)
    assert runs[-1]["name"] == "plain" and "it is RUNNING" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "trained"),
    [
        ("nothing", "", False),
        ("history.json", "[]", False),
        ("history.json", '[{"train": {"loss": 1}}]', True),
        ("history.json", "[{", True),
        ("checkpoint.th", "", True),
        ("checkpoint_3", "", True),
        ("last.ckpt", "", True),
        (".checkpoint.th.host.7.tmp", "", False),
        ("status.json", '{"state": "FAILED", "epoch": 0, "update": null}', False),
        ("status.json", '{"state": "FAILED", "epoch": null, "update": 3}', True),
    ],
)
def test_what_counts_as_trained(main: ExperimentMain, name: str, text: str, trained: bool) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    (xp.folder / name).write_text(text)
    assert has_trained(xp) is trained


def test_a_change_says_what_becomes_of_it(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    later = edited(tmp_path, runs, "name: plain", "name: other").get_xp(ARGV)
    assert str(main.change(later)) == 'configuration changed since: name: "plain" → "other"; freezes anew'
    (xp.folder / "checkpoint.th").touch()
    change = main.change(later)
    assert change is not None and not change.anew and "AUDIOTOK_RETRY=today" in str(change)
    monkeypatch.setenv("AUDIOTOK_RETRY", "force")
    assert str(main.change(later)) == str(change)
    monkeypatch.setenv("AUDIOTOK_RETRY", "today")
    change = main.change(later)
    assert change is not None and change.anew
    monkeypatch.setenv("AUDIOTOK_RETRY", "tomorrow")
    with pytest.raises(ConfigError, match=r"'tomorrow'.*force.*today"):
        main.change(later)
    monkeypatch.setenv("AUDIOTOK_RETRY", "")
    (xp.folder / "checkpoint.th").unlink()
    (xp.folder / FROZEN_FILE).write_text("{")
    change = main.change(later)
    assert change is not None and change.anew and "cannot be read" in change.lines[0]


def test_an_int_for_a_float_reaches_the_run_as_a_float(
    main: ExperimentMain, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(main, ["lr=2", "weights=[3]"], monkeypatch)
    assert repr(runs[0]["lr"]) == "2.0" and repr(runs[0]["weights"]) == "[3.0]"


def test_drift_tells_what_changed(main: ExperimentMain, tmp_path: Path, runs: Runs) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    later = edited(tmp_path, runs, "name: plain", "name: other\nadded: 1\nnew: {a: 1}")
    assert later.drift(xp) == ["added: (not there) → 1", 'name: "plain" → "other"', "new.a: (not there) → 1"]
    later = edited(tmp_path, runs, "flag: true", "flag: false")
    assert len(later.drift(xp)) == 3  # flag does not count
    later = edited(tmp_path, runs, "epochs: 2", "epochs: 4")
    first, *_ = later.drift(xp)
    assert xp.sig in first and later.get_xp(ARGV).sig in first != later.get_xp(ARGV).sig
    later = edited(tmp_path, runs, "section:", "part:")
    assert ["section" in line for line in later.drift(xp)] == [True]


def test_an_experiment_is_found_though_the_code_gives_another_signature(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    later = edited(tmp_path, runs, "epochs: 2", "epochs: 4")
    assert later.get_xp(ARGV).sig != xp.sig
    assert later.get_xp_from_sig(xp.sig).sig == xp.sig
    argv = later.get_argv_from_sig(xp.sig)  # `dora info -f SIG`, `dora run -f SIG`
    found = later.get_xp(argv)
    assert found.sig == xp.sig and found.cfg.epochs == 4 and found.folder == xp.folder
    assert later.get_xp([*argv, "loose.n=9"]).sig == xp.sig and later.get_xp([*argv, "loose.n=9"]).cfg.loose.n == 9
    assert later.get_xp([*argv, "lr=9"]).sig != xp.sig
    call(later, argv, monkeypatch)
    assert runs.sig == xp.sig and runs[-1]["epochs"] == 4
    broken = edited(tmp_path, runs, "section:", "part:")
    assert broken.get_xp(broken.get_argv_from_sig(xp.sig)).sig == xp.sig


def test_an_experiment_without_frozen_file_keeps_its_signature(
    main: ExperimentMain, tmp_path: Path, runs: Runs
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    (xp.folder / FROZEN_FILE).unlink()
    later = edited(tmp_path, runs, "epochs: 2", "epochs: 4")
    found = later.get_xp_from_sig(xp.sig)
    assert found.sig == xp.sig and found.folder == xp.folder and found.link.history_file == xp.history


def test_outputs_may_be_moved(
    main: ExperimentMain, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    moved = tmp_path / "elsewhere"
    shutil.move(main.dora.dir, moved)
    monkeypatch.setenv(FROZEN_VARIABLE, str(moved / "xps" / xp.sig / FROZEN_FILE))  # told the new place
    found = main.get_xp(ARGV)
    assert found.folder == moved / "xps" / xp.sig and found.cfg.dora.dir == str(moved) == str(main.dora.dir)
    monkeypatch.setenv(FROZEN_VARIABLE, str(xp.folder / FROZEN_FILE))  # told the old one, but dora.dir is right
    assert main.get_xp(ARGV).folder == moved / "xps" / xp.sig


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "version 'list'"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1, "sig": "SIG", "argv": []}', "lacks 'delta'"),
        (
            '{"version": 1, "sig": "x", "argv": [], "delta": [], "cfg": {}, "choices": {}, "written": 1}',
            "of experiment x",
        ),
    ],
)
def test_a_damaged_file_is_named(
    main: ExperimentMain, text: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    xp = main.init_xp(main.get_xp(ARGV))
    path = xp.folder / FROZEN_FILE
    path.write_text(text.replace("SIG", xp.sig))
    with pytest.raises(ConfigError, match=words):
        read_frozen(path)
    assert main.get_xp_from_sig(xp.sig).sig == xp.sig and words in caplog.text
    assert words in main.drift(xp)[0]
    monkeypatch.setenv(FROZEN_VARIABLE, str(path))
    with pytest.raises(ConfigError, match=str(path)):
        main.get_xp(ARGV)
    path.unlink()
    with pytest.raises(ConfigError, match="submit the experiment again"):
        main.get_xp(ARGV)


def test_what_json_cannot_hold_is_kept_too(tmp_path: Path) -> None:
    write_project(tmp_path, {"config/config.yaml": "steps: {1: 0.5, 2: .inf}\nlr: .nan\ndora: {dir: OUTPUTS}\n"})
    main = make_main(tmp_path)
    xp = main.init_xp(main.get_xp(["+new=a\\:b"]))
    found = main.get_xp_from_sig(xp.sig).cfg
    assert found.steps == {1: 0.5, 2: math.inf} and math.isnan(found.lr) and found.new == "a:b"


def test_a_full_disk_leaves_no_half_file(main: ExperimentMain, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            main.init_xp(main.get_xp(ARGV))
    xp = main.get_xp(ARGV)
    assert list(xp.folder.iterdir()) == []
    assert main.get_xp_from_sig(main.init_xp(xp).sig).sig == xp.sig


SECRETS = r"""
slurm: {setup: ["export TOKEN=hunter2"], output_dir: OUTPUTS}
token: ${oc.env:FROZEN_TOKEN}
alias: ${token}
place: ${slurm.output_dir}/x
ours: ${oc.env:AUDIOTOK_FROZEN_NAME,none}
epochs: 2
loose: {level: "${oc.env:FROZEN_TOKEN}"}
dora: {dir: OUTPUTS, exclude: ["loose.*"]}
"""


@pytest.fixture
def secrets(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> ExperimentMain:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROZEN_TOKEN", "hunter2")
    monkeypatch.setenv("AUDIOTOK_FROZEN_NAME", "me")
    write_project(tmp_path, {"config/config.yaml": SECRETS})
    made: ExperimentMain = make_main(tmp_path, runs)
    return made


def test_secrets_and_the_machine_stay_out_of_what_is_saved(
    secrets: ExperimentMain, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(secrets, ["epochs=4"], monkeypatch)
    folder = secrets.get_xp(["epochs=4"]).folder
    assert not [path for path in folder.rglob("*") if path.is_file() and "hunter2" in path.read_text()]
    frozen = read_frozen(folder / FROZEN_FILE).cfg
    assert "slurm" not in frozen and "dora" not in frozen
    assert frozen["token"] == "${oc.env:FROZEN_TOKEN}" and frozen["alias"] == "${token}" and frozen["ours"] == "me"
    assert (runs[-1]["token"], runs[-1]["alias"], runs[-1]["loose"]["level"]) == ("hunter2",) * 3
    monkeypatch.setenv("AUDIOTOK_FROZEN_NAME", "other")  # what was frozen stays, the secret may change
    monkeypatch.setenv("FROZEN_TOKEN", "hunter3")
    monkeypatch.setenv(FROZEN_VARIABLE, str(folder / FROZEN_FILE))
    call(secrets, ["epochs=4"], monkeypatch)
    assert (runs[-1]["ours"], runs[-1]["alias"], runs[-1]["epochs"]) == ("me", "hunter3", 4)
    assert runs[-1]["slurm"]["setup"] == ["export TOKEN=hunter2"]  # of the profile here


def test_a_frozen_file_from_elsewhere_reads_nothing_here(
    main: ExperimentMain, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROZEN_TOKEN", "hunter2")
    xp = main.init_xp(main.get_xp(ARGV))
    path = xp.folder / FROZEN_FILE
    content = json.loads(path.read_text())
    texts = ["${oc.env:FROZEN_TOKEN}", "${oc.${accent}:FROZEN_TOKEN}", "${oc.decode:${oc.env:FROZEN_TOKEN}}"]
    content["cfg"] |= {"name": texts[0], "mixed": texts, "loose": {"n": 1, "other": texts[0], "of_loose": "${name}"}}
    content["cfg"] |= {"slurm": {"setup": texts}, "accent": "env"}
    path.write_text(json.dumps(content))
    monkeypatch.setenv(FROZEN_VARIABLE, str(path))
    call(main, ARGV, monkeypatch)
    assert runs[-1]["name"] == texts[0] and runs[-1]["mixed"] == texts and "slurm" not in runs[-1]
    assert runs[-1]["loose"]["other"] == runs[-1]["loose"]["of_loose"] == texts[0]
    assert "hunter2" not in json.dumps(runs[-1])


def test_overrides_read_no_environment(secrets: ExperimentMain) -> None:
    for override in ("token=${oc.env:HOME}", "+new='${oc.${x}:HOME}'", "loose={level: '${oc.env:HOME}'}"):
        with pytest.raises(ConfigError, match=r"reads the environment.*into a YAML file"):
            secrets.get_xp([override])
    assert secrets.get_xp(["token=${oc.env:AUDIOTOK_FROZEN_NAME}"]).cfg.token == "me"


def test_an_earlier_frozen_file_with_the_machine_still_runs(
    secrets: ExperimentMain, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp = secrets.init_xp(secrets.get_xp(["epochs=4"]))
    path = xp.folder / FROZEN_FILE
    content = json.loads(path.read_text())
    content["cfg"] |= {"slurm": {"setup": ["old"]}, "dora": {"dir": "/gone"}, "token": "resolved", "alias": "resolved"}
    path.write_text(json.dumps(content))
    xp.history.write_text("[{}]")
    call(secrets, ["epochs=4"], monkeypatch)
    assert runs.sig == xp.sig and runs[-1]["token"] == "resolved"
    assert runs[-1]["slurm"]["setup"] == ["export TOKEN=hunter2"] and runs[-1]["dora"]["dir"] == str(secrets.dora.dir)


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x", "a: " + "[" * 5000, "- 1"])
def test_yaml_in_a_frozen_file_is_bounded(main: ExperimentMain, text: str) -> None:
    path = main.init_xp(main.get_xp(ARGV)).folder / FROZEN_FILE
    content = json.loads(path.read_text())
    del content["cfg"]
    path.write_text(json.dumps({**content, "cfg_yaml": text}))
    with pytest.raises(ConfigError, match=r"frozen\.json cannot be read: its configuration"):
        read_frozen(path)
