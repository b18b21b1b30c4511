"""Profiles and grids with a mistake: one line each, with file and line, exit code 2, from every command."""

import os
import re
import subprocess as sp
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dora.grid import RunGridArgs

from audiotok import train
from audiotok.cli import main as command_line
from audiotok.cluster import output_dir
from audiotok.errors import ConfigError
from audiotok.experiments.main import ExperimentMain
from audiotok.launchers.grid import get_explorer, run_grid
from audiotok.launchers.profile import profile_of

HEAD = "# @package slurm\ndefaults:\n  - /cluster/default\n  - _self_\n"  # four lines
SHOWN = "mycodec/config/cluster/mine.yaml"

# What a profile holds, and the line that is blamed and what is said about it.
PROFILES: dict[str, tuple[str | bytes, str]] = {
    "variable not set": (HEAD + "output_dir: ${oc.env:NO_SUCH}/x\n", ":5: .*NO_SUCH is not set.*set it, or give a"),
    "variable not set, a number": (HEAD + "time: ${oc.env:NO_SUCH}\n", ":5: NO_SUCH is not set in the environment"),
    "variable not set, in a list": (HEAD + "setup: ['${oc.env:NO_SUCH}']\n", ":5: NO_SUCH is not set"),
    "variable not set, in a mapping": (HEAD + "dataset_paths: {/a: '${oc.env:NO_SUCH}'}\n", ":5: .*NO_SUCH is not set"),
    "tab": (HEAD + "setup:\n\t- a\n", r":6: it is not YAML: .*'\\t'.*indent with spaces"),
    "key twice": (HEAD + "gpus: 1\ntime: 9\ngpus: 2\n", ":7: gpus stands here again, after line 5; keep one"),
    "key twice within": (HEAD + "sbatch: {a: 1, a: 2}\n", ":5: a stands here again, after line 5"),
    "no package": (HEAD.partition("\n")[2] + "gpus: 1\n", ":1: it does not begin with `# @package slurm`"),
    "package below a comment": ("# mine\n" + HEAD, ":1: .*its first line, before any comment"),
    "another package": (HEAD.replace("slurm", "_global_"), ":1: its package is _global_"),
    "words after the package": (HEAD.replace("slurm", "slurm here"), ":1: it does not begin with"),
    "package without a name": (HEAD.replace(" slurm", ""), ":1: it does not begin with"),
    "no defaults": ("# @package slurm\ngpus: 1\n", ": it has no defaults, and lacks .*write `defaults: "),
    "defaults of another kind": ("# @package slurm\ndefaults: /cluster/default\n", ":2: .*give a list"),
    "defaults as a mapping": ("# @package slurm\ndefaults: {a: b}\n", ":2: .*give a list"),
    "defaults nowhere": ("# @package slurm\ndefaults: [/cluster/nope, _self_]\n", ":2: .*is not there; profiles are: "),
    "defaults of itself": ("# @package slurm\ndefaults: [mine]\n", ":2: defaults lead back to themselves"),
    "defaults of another group": ("# @package slurm\ndefaults: [/dset/default]\n", ":2: .*give other profiles"),
    "setup as a mapping": (HEAD + "setup: {a: b}\n", ":5: give a list"),
    "setup as a text": (HEAD + "setup: module load cuda\n", ":5: give a list of shell lines"),
    "sbatch as a list": (HEAD + "sbatch: [a]\n", ":5: give a mapping"),
    "sbatch as a number": (HEAD + "sbatch: 3\n", ":5: give further options"),
    "a mapping for a number": (HEAD + "gpus: {a: 1}\n", ":5: give a whole number"),
    "a list for a number": (HEAD + "gpus: [1]\n", ":5: give a whole number"),
    "a text for a number": (HEAD + "gpus: two\n", ":5: give a whole number"),
    "null for a number": (HEAD + "gpus: null\n", ":5: give a whole number"),
    "a date for a number": (HEAD + "time: 2020-01-01\n", ":5: give a whole number"),
    "no such date": (HEAD + "time: 2020-13-41\n", "it is not YAML: month must be"),
    "a number that is too large": (HEAD + "\n\ntime: 9999999\n", ":7: give a whole number from 1"),
    "two keys that contradict": (HEAD + "gpus: 9\n", ":5: give 0 to 8, or a multiple of 8"),
    "unknown key": (HEAD + "gpuz: 1\n", ":5; valid keys: gpus, "),
    "key with a dot": (HEAD + "gpus.x: 1\n", ":5; valid keys: gpus, "),
    "key that is a number": (HEAD + "1: 2\n", ":5; valid keys: "),
    "key that is null": (HEAD + "null: 2\n", ":5: a key without a name"),
    "key that is a list": (HEAD + "[a]: 2\n", ":5: a key without a name"),
    "no value": (HEAD + "partition: ???\n", r":5: \?\?\? stands for a value"),
    "circle": (HEAD + "time: ${slurm.signal_s}\nsignal_s: ${slurm.time}\n", ":5: .*[Rr]ecursi"),
    "circle of aliases": (HEAD + "setup: &a [*a]\n", ":5: an alias leads back to itself"),
    "folder by other keys": (HEAD + "output_dir: ${slurm.output_dir}\n", ":5: .*only .*oc.env:NAME"),
    "folder by the time": (HEAD + "output_dir: ${now:%Y}\n", ":5: .*only .*oc.env:NAME"),
    "unknown resolver": (HEAD + "time: ${nope:1}\n", ":5: Unsupported interpolation type nope"),
    "unknown reference": (HEAD + "time: ${slurm.nope}\n", ":5: Interpolation key 'slurm.nope' not found"),
    "brace left open": (HEAD + "output_dir: ${oc.env:HOME\n", ":5: .*lacks a closing brace"),
    "bracket left open": (HEAD + "setup: [a\n", ":6: it is not YAML"),
    "no colon": (HEAD + "gpus 1\n", ":5: it is not YAML: could not find expected ':'"),
    "unquoted text": (HEAD + "comment: a: b\n", ":5: it is not YAML: mapping values"),
    "Python objects": (HEAD + "time: !!python/object/apply:os.system [ls]\n", ":5: .*of another kind"),
    "a set": (HEAD + "setup: !!set {a, b}\n", ":5: .*of another kind"),
    "two documents": (HEAD + "gpus: 1\n---\ngpus: 2\n", ":6: it is not YAML"),
    "nothing": ("", " holds nothing"),
    "comments only": ("# @package slurm\n", " holds nothing"),
    "a list": ("- a\n", " holds a list"),
    "a text": ("gpus\n", " holds a str"),
    "not UTF-8": ((HEAD + "comment: ").encode() + b"\xe9t\xe9\n", ":5: byte 0xe9 is not UTF-8; save it as UTF-8"),
    "UTF-16": (HEAD.encode("utf-16"), ":1: byte 0xff is not UTF-8"),
    "byte order mark": ("\ufeff" + HEAD, ":1: it begins with a byte order mark"),
    "control characters": (HEAD + "comment: \x00\n", ": it is not YAML"),
    "aliases that stand for a billion values": (
        HEAD + "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
        ": with its aliases written out, it has more than 10000 values",
    ),
    "a megabyte": (HEAD + "# " + "x" * 2**20, "it has 1 MiB, more than 0.25"),
    "too deep": (HEAD + "comment: " + "[" * 9999 + "\n", "it is not YAML"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of `audiotok init`, which is the current folder and whose profile `mine` is chosen."""
    assert command_line(["init", str(tmp_path / "mycodec")]) == 0
    monkeypatch.chdir(tmp_path / "mycodec")
    for name, value in (("AUDIOTOK_CLUSTER", "mine"), ("AUDIOTOK_LAUNCHER", "local"), ("NO_SUCH", None)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AUDIOTOK_OUTPUT_DIR", raising=False)
    return tmp_path / "mycodec"


def entry_point(project: Path) -> ExperimentMain:
    """What `experiment_main` makes in the train.py of a project, with its profile checked as a command does."""

    def main(cfg: Any) -> None:
        """Train nothing."""

    made = ExperimentMain(main, "config", str(project / "mycodec" / "config"), base="audiotok", version_base="1.3")
    profile_of(made)
    return made


def write(project: Path, content: str | bytes) -> Path:
    path = project / SHOWN
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", PROFILES)
def test_a_broken_profile_is_one_line(project: Path, name: str) -> None:
    content, expected = PROFILES[name]
    write(project, content)
    with pytest.raises(ConfigError) as caught:
        entry_point(project)
    message = str(caught.value)
    assert re.search(f"{SHOWN}.*{expected}|{SHOWN}{expected}", message), message
    assert "\n" not in message and len(message) < 900
    try:
        output_dir(os.environ)  # what `audiotok results` reads of it
    except ConfigError as error:
        assert SHOWN in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [
        HEAD,
        "\n" + HEAD.replace("\n", "\r\n"),
        HEAD + "output_dir: ${oc.env:NO_SUCH,${oc.env:HOME}}/x\n",
        HEAD + "sbatch: {reservation: course}\nsetup: null\n",
        HEAD + "time: ${slurm.signal_s}\nsignal_s: 61\n",
        HEAD + "setup: &lines [a]\nsrun_args: *lines\n",
    ],
)
def test_a_sound_profile_is_none(project: Path, content: str) -> None:
    write(project, content)
    made = entry_point(project)
    assert output_dir(os.environ).absolute() == Path(made.dora.dir).absolute()


def test_a_folder_in_place_of_a_profile(project: Path) -> None:
    (project / SHOWN).unlink()
    (project / SHOWN).mkdir()
    with pytest.raises(ConfigError, match=f"cannot read profile {SHOWN}: Is a directory"):
        entry_point(project)


def test_variables_that_are_empty_are_not_set(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUDIOTOK_CLUSTER", "AUDIOTOK_OUTPUT_DIR"):
        monkeypatch.setenv(name, " ")
    made = entry_point(project)
    assert Path(made.dora.dir).absolute() == project / "outputs" and output_dir(os.environ) == Path("outputs")
    assert made.compose([]).choices["cluster"] == "default" and "AUDIOTOK_CLUSTER" not in os.environ


def test_a_job_may_lack_variables_that_its_profile_names(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, HEAD + "comment: ${oc.env:NO_SUCH}\n")
    monkeypatch.setenv("AUDIOTOK_FROZEN", str(project / "frozen.json"))
    with pytest.raises(ConfigError, match="NO_SUCH"):
        entry_point(project)  # only what launches looks at it
    folder = str(project / "mycodec" / "config")
    assert ExperimentMain(lambda: None, "config", folder, base="audiotok", version_base="1.3")


def test_the_command_line_is_blamed_for_its_own_values(project: Path) -> None:
    profile = profile_of(entry_point(project))
    profile.gpus = 9
    with pytest.raises(ConfigError, match=r"^slurm.gpus=9 in the command line: give 0 to 8"):
        profile.check()


COMMANDS = (
    ("dora", "run", "solver=compression/mine"),
    ("dora", "launch", "solver=compression/mine"),
    ("dora", "grid", "sweep", "--dry_run"),
    ("dora", "info", "-f", "01234567"),
    ("audiotok.cli", "plan", "sweep"),
    ("audiotok.cli", "requeue", "01234567"),
    ("audiotok.cli", "results"),
    ("audiotok.cli", "doctor"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_it_in_one_line(project: Path, command: tuple[str, ...]) -> None:
    write(project, PROFILES["variable not set"][0])
    done = sp.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "HYDRA_FULL_ERROR" not in done.stderr
    if command[1] == "doctor":  # goes on, and ends with 1
        assert done.returncode == 1 and not done.stderr
        assert sum("NO_SUCH is not set" in line for line in done.stdout.splitlines()) == 1
    else:
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert re.fullmatch(rf"error: .*{SHOWN}:5.*NO_SUCH is not set.*\n", done.stderr)
    assert not (project / "outputs").exists()


# What a grid file holds, and what is said about it; the file begins with two lines of imports.
GRID_HEAD = "from audiotok.explorers import CompressionExplorer\n\n"
EXPLORE = GRID_HEAD + "@CompressionExplorer\ndef explorer(launcher):\n"
GRIDS: dict[str, tuple[str | bytes, str]] = {
    "unknown key": (
        EXPLORE + "    launcher.slurm_(gpuz=1)\n",
        "unknown key slurm.gpuz in .*one.py:5; valid keys: gpus",
    ),
    "impossible value": (EXPLORE + "    launcher.slurm_(\n        gpus=-1)\n", "slurm.gpus=-1 in .*one.py:5: give"),
    "a copy of the launcher": (EXPLORE + "    launcher.slurm(time='x')\n", "slurm.time='x' in .*one.py:5: give"),
    "after a sound change": (
        EXPLORE + "    launcher.slurm_(gpus=0)\n    launcher.slurm_(gpus=9)\n",
        "slurm.gpus=9 in .*one.py:6: give",
    ),
    "unknown override": (EXPLORE + "    launcher({'losses.nope': 1})\n", "one.py:5: .*losses.nope"),
    "unknown preset": (EXPLORE + "    launcher(solver='compression/nope')\n", "one.py:5: .*compression/nope"),
    "override without a value": (EXPLORE + "    launcher('losses')\n", "one.py:5: .*has no '='"),
    "value of no kind": (EXPLORE + "    launcher(seed=object())\n", "one.py:5: TypeError"),
    "name that is not there": (EXPLORE + "    launcher(seed=SEEDS)\n", "one.py:5: NameError: name 'SEEDS'"),
    "in a function of the grid": (
        EXPLORE + "    help(launcher)\ndef help(launcher):\n    return 1 / 0\n",
        "one.py:7: ZeroDivisionError",
    ),
    "another size within an array": (
        EXPLORE + "    with launcher.job_array():\n        launcher.slurm_(gpus=0)\n        launcher(seed=1)\n",
        "one.py:7: AssertionError: cannot change slurm config",
    ),
    "syntax": (EXPLORE + "    launcher(\n", "one.py:5: it is not Python"),
    "indentation": (EXPLORE + "launcher()\n", "one.py:5: it is not Python: expected an indented block"),
    "name at the top": (GRID_HEAD + "SEEDS = [NOPE]\n", "one.py:3: NameError: name 'NOPE'"),
    "import": ("from audiotok.nope import x\n", "one.py:1: ModuleNotFoundError: No module named 'audiotok.nope'"),
    "no explorer": (GRID_HEAD + "def explore(launcher): pass\n", "one.py has no `explorer`; decorate"),
    "explorer without decorator": (
        "def explorer(launcher): pass\n",
        "one.py has `explorer`, which is of the kind funct",
    ),
    "not UTF-8": (b"x = 'caf\xe9'\n", "one.py:1: it is not Python"),
    "null bytes": (b"x = 1\0\n", "one.py: it is not Python"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_broken_grid_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    content, expected = GRIDS[name]
    package = f"grids_{abs(hash(name))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "one.py").write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(train.main.dora, "grid_package", package)
    monkeypatch.setattr(train.main.dora, "dir", tmp_path / "outputs")
    with pytest.raises(ConfigError) as caught:
        explorer = get_explorer(SimpleNamespace(grid="one"), train.main)
        run_grid(train.main, explorer, "one", args=RunGridArgs(dry_run=True))
    message = str(caught.value)
    assert re.search(expected, message) and message.count("one.py") == 1, message
    assert "\n" not in message and "config/cluster" not in message
    assert not (tmp_path / "outputs").exists()


def test_a_defect_elsewhere_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids_defect").mkdir()
    (tmp_path / "grids_defect" / "one.py").write_text(EXPLORE + "    launcher(seed=1)\n")
    (tmp_path / "grids_defect" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(train.main.dora, "grid_package", "grids_defect")
    monkeypatch.setattr(train.main, "get_xp", lambda argv: dict[str, int]()["defect"])
    explorer = get_explorer(SimpleNamespace(grid="one"), train.main)
    with pytest.raises(KeyError, match="defect"):
        run_grid(train.main, explorer, "one", args=RunGridArgs(dry_run=True))


def test_a_grid_with_a_mistake_ends_the_command_with_2(project: Path) -> None:
    (project / "mycodec" / "grids" / "sweep.py").write_text(EXPLORE + "    launcher.slurm_(gpuz=1)\n")
    for command in (("dora", "grid", "sweep", "--no_monitoring"), ("audiotok.cli", "plan", "sweep")):
        done = sp.run([sys.executable, "-m", *command], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert re.fullmatch(r"error: unknown key slurm.gpuz in mycodec/grids/sweep.py:5; valid .*\n", done.stderr)
