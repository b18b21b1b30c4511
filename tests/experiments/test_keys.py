"""A mistyped key or preset is refused with the nearest names; so is an added key that nothing reads."""

import os
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiotok import train
from audiotok.errors import ConfigError
from audiotok.experiments.keys import Additions

ROOT = Path(__file__).parent.parent.parent
PRESET = "solver=compression/debug"


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        train.main.get_xp(argv)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("losses.mdm=10", "losses.mmd"),
        ("losses={mdm: 10}", "losses.mmd"),
        ("n_q=3", "rvq.n_q"),
        ("optim.learning_rate=1", "optim has: "),
        ("sovler=compression/demo", "solver"),
        ("dsett=audio/demo", "dset"),
        ("slurm.gpuz=1", "slurm.gpus"),
        ("losses.mmd.x=1", "losses.mmd"),
        ("nothing_like_it=1", "the configuration has: "),
    ],
)
def test_a_key_that_is_not_there(override: str, nearest: str) -> None:
    said = refused(PRESET, override)
    assert said.startswith(f"override {override!r}: there is no key ") and "+" not in said
    assert nearest in said.split(";")[-1]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("+optim.lrr=10", "optim.lr"),
        ("++optim.lrr=10", "optim.lr"),
        ("+optim={lrr: 10}", "optim.lr"),
        ("+optim.adam.lr=1", "optim.lr"),
        ("+foo=1", "the configuration has: "),
        ("+dora.foo=1", "dora has: "),
        ("+slurm.gpuz=2", "slurm.gpus"),
        ("+dataset.valid.num_sample=4", "dataset.valid.num_samples"),
        ("+dataset.test.batch_size=4", "dataset.batch_size"),
        ("+seanet.encoder.n_filter=4", "seanet.n_filters"),
        ("+msstftd.max_filter=4", "msstftd"),
    ],
)
def test_an_added_key_that_nothing_reads(override: str, nearest: str) -> None:
    said = refused(PRESET, override)
    assert said.startswith(f"override {override!r} adds a key that nothing reads;") and nearest in said.split(";")[-1]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("+dataset.valid.batch_size=3", "dataset.valid.batch_size", 3),
        ("+seanet.encoder.n_filters=4", "seanet.encoder.n_filters", 4),
        ("+msstftd.max_filters=4", "msstftd.max_filters", 4),
        ("+seanet.activation_params.inplace=true", "seanet.activation_params.inplace", True),
    ],
)
def test_an_added_key_that_is_read(override: str, key: str, value: object) -> None:
    assert dict(train.main.get_xp([PRESET, override]).delta)[key] == value


def test_options_of_sbatch_may_be_added() -> None:
    assert train.main.get_xp([PRESET, "+slurm.sbatch.reservation=course"]).cfg.slurm.sbatch.reservation == "course"
    assert "a new one is +slurm.sbatch.x=1" in refused(PRESET, "slurm.sbatch.x=1")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("solver=compression/demoo", "no 'compression/demoo' in config group solver; choose one of: compression/demo,"),
        ("solver=demo", "no 'demo' in config group solver; choose one of: lm/demo, compression/demo,"),
        ("dset=audio/dem", "no 'audio/dem' in config group dset; choose one of: audio/demo,"),
        ("model=encodec/large", "no 'encodec/large' in config group model; choose one of: encodec/"),
        ("cluster=h100", "no 'h100' in config group cluster; choose one of: h100x8,"),
        ("solver/compression=debug", "write solver=compression/debug"),
        ("+dset=audio/demo", "leave out the +"),
        ("losses.mmd=1,2", "losses.mmd=[1, 2]"),
        ("=3", "has no '='"),
    ],
)
def test_a_preset_that_is_not_there_and_other_ways_to_choose(override: str, said: str) -> None:
    assert said in refused(*([] if override.startswith("solver") else [PRESET]), override)


def test_without_a_preset_the_advice_is_to_choose_one() -> None:
    assert "such as solver=compression/demo" in refused("losses.mmd=10")


def test_additions() -> None:
    cfg = {"above": {"size": 1, "split": {}}, "other": {}}
    some = Additions(free=("other.*", "new"), inherited=("above.split",))
    keys = ("above.split.size", "above.split.none", "above.more", "other.x", "other.x.y", "new", "newer")
    assert [key for key in keys if some.allow(key, cfg)] == ["above.split.size", "other.x", "other.x.y", "new"]


@pytest.mark.parametrize("command", [["-m", "dora", "run"], ["-m", "dora", "grid"], ["-m", "audiotok.cli", "plan"]])
def test_every_command_says_it_in_one_line(command: list[str], tmp_path: Path) -> None:
    """A grid of a project of one's own with the mistake in it, and the command line."""
    made = sp.run([sys.executable, "-m", "audiotok.cli", "init", str(tmp_path / "mycodec")], capture_output=True)
    assert made.returncode == 0, made.stderr
    grid = tmp_path / "mycodec/mycodec/grids/wrong.py"
    grid.write_text(grid.with_name("sweep.py").read_text().replace("losses.mmd", "losses.mdm"))
    arguments = ["losses.mdm=10", "solver=compression/mine"] if command[-1] == "run" else ["wrong"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AUDIOTOK", "DORA"))}
    environ |= {"AUDIOTOK_LAUNCHER": "local", "PYTHONPATH": str(ROOT)}
    run = sp.run(
        [sys.executable, *command, *arguments],
        cwd=tmp_path / "mycodec",
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "losses.mmd" in run.stderr.splitlines()[-1] and "there is no key losses.mdm" in run.stderr.splitlines()[-1]
