"""Every command of the README and of the docs runs as it is written, in the order in which it is written.

All blocks run in a copy of the repository, one after the other, as a reader would type them: shell, console and Python,
and YAML is put into the file that it is of. What cannot run here stands in INSTEAD with its reason; nothing is left out
otherwise. Without a network and without SLURM, on a little music, with the presets of the demo made smaller (SMALL).
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess as sp
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dora.__main__
import pytest
import soundfile
import yaml

from audiotok.cli import make_parser
from audiotok.data.demo import PACKAGE, VERSION
from audiotok.launchers.profile import Profile
from audiotok.results.declared import declare_project
from audiotok.results.metrics import known_metric
from tests.conftest import RATE, chords
from tests.pages import PAGES, ROOT, Block, blocks
from tests.report.conftest import add_run
from tests.results.joined import measured

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, Any]] = {  # over the presets demo and demo_mmd: seconds a run
    "optim": {"epochs": 2, "updates_per_epoch": 2},
    "dataset": {
        "batch_size": 2,
        "segment_duration": 0.4,
        "valid": {"num_samples": 2},
        "evaluate": {"batch_size": 4, "num_samples": 8, "segment_duration": 0.5},
        "generate": {"num_samples": 2, "segment_duration": 0.5},
    },
    "rvq": {"bins": 16},
    "mmd": {"num_batches_mmd": 2},
    "metrics": {"mmd": {"num_permutations": 5, "max_samples": 64}},
    "evaluate": {"every": 2},
    "generate": {"every": 2},
}
ENVIRONMENT = {
    "AUDIOTOK_LAUNCHER": "local",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "USER": "reader",
}


def store_results(folder: Path) -> None:
    """Results of compression.mmd_on_off_demo as a run leaves them."""
    for index, (weight, seed) in enumerate((weight, seed) for weight in (0.0, 10.0) for seed in (1, 2, 3)):
        evaluate = {"sisdr": seed - 10 + weight / 5 + index % 2, "mi_groups": 0.2 / (1 + weight) + seed / 50}
        evaluate |= {"mi_groups_q0_q1": 0.1, "usage": 0.9, "mi": 0.4, "mi_q0_q1": 0.4, "usage_q0": 0.8, "usage_q1": 0.9}
        history = [{"valid": {"msspec": 3.0}}, {"valid": {"msspec": 2.0 + seed / 10}, "evaluate": evaluate}]
        argv = [f"losses.mmd={weight}", f"seed={seed}"]
        sig = f"0000000{index}"
        add_run(folder / "outputs", "compression.mmd_on_off_demo", sig, argv, history, clips=["a"], state="COMPLETED")


def store_language_models(folder: Path) -> None:
    """Results of lm.mmd_on_off_demo, on the codecs of `store_results`, as a run leaves them."""
    for index, (weight, codec_seed) in enumerate((weight, seed) for weight in (0, 10) for seed in (1, 2, 3)):
        for seed in (1, 2):
            argv = [f"compression_model_checkpoint=//sig/0000000{index}", "solver=lm/demo", f"seed={seed}"]
            history = [{"valid": {"ce": 3.0}, "evaluate": measured(weight, codec_seed, seed), "generate": {"fmd": 1.0}}]
            add_run(folder / "outputs", "lm.mmd_on_off_demo", f"000001{index}{seed}", argv, history, state="COMPLETED")


def store_games(folder: Path) -> None:
    """A little music where the packages of the study's games put theirs."""
    for place in ("games/wesnoth", "hyperrogue/music", "games/singularity"):
        music = folder / "data/games/usr/share" / place
        music.mkdir(parents=True)
        for index in range(8):
            soundfile.write(music / f"{place.replace('/', '-')}{index}.flac", chords(index, 2.5), RATE)


class Instead(NamedTuple):
    """What runs in place of a command, or of a block that begins with this line; why, and which test covers it."""

    page: str
    command: str
    run: str | Callable[[Path], None]
    why: str


GRID_OF_STORED_RESULTS = "dora grid compression.mmd_on_off_demo"
INSTEAD = (
    Instead("README.md", "make test", "", "it runs this very test"),
    Instead("README.md", GRID_OF_STORED_RESULTS, store_results, "minutes; as the demo grid, which runs here"),
    Instead("README.md", f"{GRID_OF_STORED_RESULTS} --no_monitoring", "", "its results are there since above"),
    Instead("README.md", "dora grid lm.mmd_on_off_demo", store_language_models, "minutes: tests/solvers/test_lm.py"),
    Instead(
        "README.md",
        "audiotok tokenize demo data/demo/train.jsonl.gz --out data/tokens/demo"
        " && audiotok gap demo --tokens data/tokens/demo",
        "audiotok tokenize demo data/demo/train.jsonl.gz --out data/tokens/demo"
        " && audiotok gap demo --tokens data/tokens/demo --updates 2 --context 64",
        "its tracks of music are 2.5 s long",
    ),
    Instead("README.md", "pip install .", "", "needs a network: tests/test_wheel.py installs the wheel"),
    Instead(
        "docs/launching.md", "scontrol show config | grep ClusterName", "", "SLURM: tests/cluster/test_docs_on_slurm.py"
    ),
    Instead("docs/launching.md", "sinfo -o '%P %l %D %c %m %G'", "", "SLURM: tests/cluster/test_docs_on_slurm.py"),
    Instead(
        "docs/launching.md",
        "sacctmgr show associations user=$USER format=account%30,qos%50",
        "",
        "SLURM: tests/cluster/test_docs_on_slurm.py",
    ),
    Instead(
        "docs/launching.md",
        "audiotok doctor solver=compression/encodec_mmd_32khz dset=audio/default",
        "AUDIOTOK_CLUSTER=jupiter audiotok doctor solver=compression/encodec_mmd_32khz dset=audio/default",
        "no cluster bears that name here",
    ),
    Instead(
        "docs/tokens.md",
        "sbatch --array=1-4 --gpus=1 --cpus-per-task=8 --time=2:00:00"
        ' --wrap="audiotok tokenize //sig/SIG data/music/train.jsonl.gz --out data/tokens/music --workers 8"',
        "for task in 1 2 3 4; do SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=4"
        " SLURM_ARRAY_TASK_COUNT=4 audiotok tokenize demo data/music/train.jsonl.gz --out data/tokens/music; done"
        " && test -e data/tokens/music/tokens.json",
        "SLURM: an array's variables in tests/cli/test_tokenize.py, its processes in tests/test_tokenizing.py",
    ),
    Instead(
        "docs/encodec_mmd.md",
        "dora run solver=compression/encodec_mmd_share_32khz dset=audio/default",
        "dora run solver=compression/encodec_mmd_share_32khz dset=audio/default device=cpu optim.epochs=1"
        " optim.updates_per_epoch=1 dataset.batch_size=2 dataset.num_workers=0 dataset.segment_duration=0.4"
        " dataset.valid.num_samples=2 dataset.evaluate.num_samples=4 dataset.evaluate.batch_size=2"
        " dataset.evaluate.segment_duration=0.5"
        " dataset.generate.num_samples=2 dataset.generate.batch_size=2 dataset.generate.segment_duration=0.5"
        " seanet.n_filters=2 rvq.bins=16 msstftd.filters=2 metrics.mmd.num_permutations=5",
        "a GPU for a week at full size",
    ),
    Instead(
        "docs/encodec_mmd.md",
        "dora grid compression.encodec_musicgen_mmd_32khz",
        "dora grid compression.encodec_musicgen_mmd_32khz --dry_run --no_monitoring",
        "GPUs for weeks at full size",
    ),
    Instead(
        "docs/gap.md",
        "audiotok gap demo --tokens data/tokens/demo --updates 20",
        "audiotok gap demo --tokens data/tokens/demo --updates 2 --context 64",
        "its tracks of music are 2.5 s long",
    ),
    Instead("docs/results.md", GRID_OF_STORED_RESULTS, "", "its results are there since the README"),
    Instead("docs/results.md", "dora grid lm.mmd_on_off_demo", "", "its results are there since the README"),
    Instead("docs/report.md", GRID_OF_STORED_RESULTS, "", "its results are there since the README"),
    Instead("docs/launching.md", f"{GRID_OF_STORED_RESULTS} --no_monitoring", "", "likewise"),
    Instead("docs/launching.md", "dora grid lm.mmd_on_off_demo", "", "likewise"),
    Instead(
        "docs/results.md", "pip install -e '.[notebooks]'", "", "needs a network; the tests have them: pyproject.toml"
    ),
    Instead(
        "docs/results.md",
        "rsync -a --exclude '*.th' cluster:/path/to/outputs/ outputs/",
        "cp -a outputs elsewhere && cp -a elsewhere/. outputs/",
        "no other machine here",
    ),
    Instead(
        "docs/studies/factorisation_gap.md",
        "apt-get download wesnoth-1.16-music hyperrogue-music singularity-music",
        store_games,
        "needs a network",
    ),
    Instead(
        "docs/studies/factorisation_gap.md",
        'for package in *.deb; do dpkg-deb -x "$package" .; done',
        "",
        "likewise",
    ),
    Instead(
        "docs/studies/factorisation_gap.md",
        "audiotok results lm.gap_study --runs --where 'state==COMPLETED' --format csv"
        " --output docs/studies/factorisation_gap.csv --columns 'sig,seed,lm.pattern,codec.sig,codec.losses.mmd,"
        "codec.mmd.*,codec.seed,codec.evaluate.*,evaluate.*,generate.*'",
        "",
        "it needs hours of training: tests/test_notebooks.py has the table",
    ),
    *(
        Instead(
            "docs/studies/factorisation_gap.md",
            f"dora grid {grid}.gap_study",
            f"dora grid {grid}.gap_study --dry_run --no_monitoring",
            "hours: tests/test_notebooks.py on its stored results",
        )
        for grid in ("compression", "lm")
    ),
    *(
        Instead(
            "docs/studies/factorisation_gap.md",
            f"dora grid {grid}.gap_study_32khz",
            f"dora grid {grid}.gap_study_32khz --dry_run --no_monitoring",
            "GPUs for weeks at full size",
        )
        for grid in ("compression", "lm")
    ),
    Instead("docs/extending.md", "class FakeEngine:", "", "a part of a file: tests/contract/test_third_engine.py"),
    Instead(
        "docs/extending.md",
        "ENGINES[FakeEngine.name] = FakeEngine",
        "",
        "likewise: tests/contract/test_third_engine.py",
    ),
)
WORDS = {  # in commands and in Python: what a reader puts there
    "SIG": "signature of an experiment that has run, by `dora run` of the README",
    "/path/to/music": "a folder of music",
}
FILES = {  # the n-th YAML block of a page is this file
    ("docs/launching.md", 0): "config/cluster/jupiter.yaml",
    ("docs/data.md", 0): "config/dset/audio/mine.yaml",
}


BLOCKS = [block for block in blocks() if block.kind != "text"]


def instead_of(block: Block, first_line: str) -> Instead | None:
    return next((one for one in INSTEAD if (one.page, one.command) == (block.page, first_line)), None)


def not_cloned(path: str, names: list[str]) -> set[str]:
    """What a clone does not have."""
    top = {".git", ".venv", "outputs", "data", "reports", "build", ".hypothesis"} if Path(path) == ROOT else set[str]()
    return top & set(names) | shutil.ignore_patterns("*.egg-info", "__pycache__", ".*_cache")(path, names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a reader has it after a clone and `make install`, with music where the pages take it from."""
    folder = tmp_path_factory.mktemp("docs") / "audiotok"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=not_cloned)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".installed":
            (folder / ".venv" / path.name).symlink_to(path)
    for music, tracks in ((folder / f"data/demo/{PACKAGE}-{VERSION}", 20), (folder.parent / "music", 24)):
        music.mkdir(parents=True)
        for index in range(tracks):
            soundfile.write(music / f"track{index}.flac", chords(index, 2.5), RATE)
    for name, left_out in (
        ("demo", ()),
        ("demo_mmd", ("rvq",)),
    ):  # it has the sizes of its weights
        preset = folder / f"config/solver/compression/{name}.yaml"
        content = yaml.safe_load(preset.read_text())
        for section in SMALL.keys() - left_out:
            content[section] = merged(content.get(section, {}), SMALL[section])
        preset.write_text("# @package __global__\n" + yaml.safe_dump(content, sort_keys=False))
    (folder / ".venv/.installed").touch()  # last: newer than pyproject.toml
    return folder


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for key, value in other.items():
        mine = result.get(key)
        result[key] = merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return result


def run(folder: Path, script: str, *command: str, **environ: str) -> str:
    """Run a script in the copy; it must succeed."""
    foreign = ("AUDIOTOK", "DORA", "SLURM", "SBATCH", "OMP", "CUDA")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    paths = {"HOME": str(folder.parent), "SCRATCH": str(folder.parent / "scratch"), "PYTHONPATH": str(folder)}
    path = f"{folder}/.venv/bin:{os.environ['PATH']}"
    environ = {**kept, **ENVIRONMENT, **paths, "PATH": path, **environ}
    done = sp.run(command, cwd=folder, env=environ, input=script, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (
        f"exit code {done.returncode} of\n{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def filled(text: str, folder: Path) -> str:
    """Text with a reader's own words in place of the placeholders."""
    if re.search(r"\bSIG\b", text):
        (sig, *_) = [path.parent.name for path in sorted(folder.glob("outputs/xps/*/checkpoint.th"))]
        text = re.sub(r"\bSIG\b", sig, text)
    return text.replace("/path/to/music", str(folder.parent / "music"))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_runs(block: Block, folder: Path) -> None:
    if block.kind == "python":
        if instead_of(block, block.text.splitlines()[0]) is None:
            run(folder, filled(block.text, folder), "python", "-")
    elif block.kind in ("shell", "console"):
        script = ["set -e"]
        for command in block.commands:
            replacement = instead_of(block, command)
            what = command if replacement is None else replacement.run
            if isinstance(what, str):
                script.append(filled(what, folder))
            else:
                what(folder)
        run(folder, "\n".join(script), "bash", "-x", "-")
    elif block.kind == "yaml":
        check_yaml(block, folder)
    elif block.kind == "toml":  # of a project's pyproject.toml
        (folder / "pages").mkdir(exist_ok=True)
        (folder / "pages/pyproject.toml").write_text(block.text)
        declare_project(folder / "pages")
        assert known_metric("evaluate.brightness") is not None
    else:
        pytest.fail(f"a block of kind {block.kind!r}, which nothing here runs")


def check_yaml(block: Block, folder: Path) -> None:
    """Put a YAML block where it belongs, or into a profile that is then used: keys that do not exist are refused."""
    name = FILES.get((block.page, block.index), "config/cluster/snippet.yaml")
    text = block.text
    if (block.page, block.index) not in FILES:
        assert yaml.safe_load(text).keys() <= Profile.__dataclass_fields__.keys(), text
        text = f"# @package slurm\ndefaults: [/cluster/default, _self_]\n{text}"
    assert text.startswith("# @package ")
    (folder / name).write_text(text)
    if name.startswith("config/cluster/"):
        run(folder, "", "audiotok", "plan", "compression.debug", AUDIOTOK_CLUSTER=Path(name).stem)


def test_every_replacement_is_of_a_command_that_is_there_and_names_a_test_that_is() -> None:
    there = {(block.page, command) for block in BLOCKS for command in block.commands}
    there |= {(block.page, block.text.splitlines()[0]) for block in BLOCKS if block.kind == "python"}
    assert [one for one in INSTEAD if (one.page, one.command) not in there] == []
    for one in INSTEAD:
        for path in re.findall(r"tests/\S+\.py", one.why):
            assert (ROOT / path).is_file(), path
        assert one.why
    yamls = {(block.page, block.index) for block in BLOCKS if block.kind == "yaml"}
    assert set(FILES) <= yamls
    text = "\n".join(block.text for block in BLOCKS)
    assert [word for word in WORDS if word not in text] == []


def test_every_page_is_read() -> None:
    docs = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    # A diary; what programs have written.
    left_out = {path for path in docs if path.name == "LOG.md" or path.parent.name in ("benchmarks", "notebooks")}
    assert {str(path) for path in set(docs) - left_out} == set(PAGES) - {"README.md"}


def options(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """Options by command; of a command within a command by both words."""
    found: dict[str, set[str]] = {"": set(parser._option_string_actions)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                for more, names in options(inner).items():
                    found[f"{name} {more}".strip()] = names
    return found


def inline_commands() -> list[tuple[str, str]]:
    """Commands within sentences and tables of the pages."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", code)
            if re.match(r"(audiotok|dora|make) \S", command):
                found.append((page, command))
    return found


def test_commands_within_the_text_have_the_options_that_are_given() -> None:
    parsers = {"audiotok": options(make_parser()), "dora": options(dora.__main__.get_parser())}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = inline_commands()
    assert len(commands) > 20
    for page, command in commands:
        program, *words = shlex.split(command.replace("…", ""))
        if program == "make":
            assert words[-1] in targets, (page, command)
            continue
        known = parsers[program]
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in known)
        wrong = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)} - known[name]
        assert not wrong, (page, command, wrong)
