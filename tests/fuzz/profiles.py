"""Cluster profiles as accidents and strangers make them: refused with file and key, or read as YAML and Hydra do.

What is accepted must become a script of sbatch that bash can read, without a line that a value has made.
"""

import copy
import os
import random
import re
import subprocess as sp
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from audiotok.cluster import PROFILES, dataset_paths, output_dir, place_of, settle
from audiotok.errors import ConfigError
from audiotok.experiments.main import _explained
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.sbatch import make_script
from tests.fuzz.campaign import mark

DEFAULT = (PROFILES / "default.yaml").read_text()
_KEYS: dict[str, Any] = {key: value for key, value in yaml.safe_load(DEFAULT).items() if key != "defaults"}
_GOOD: dict[str, tuple[Any, ...]] = {
    "gpus": (0, 1, 2, 8, 16), "nodes": (None, 1, 2), "gpu_type": (None, "h100"), "cpus_per_gpu": (1, 10),
    "mem_per_gpu": (0, 0.1, 60), "mem_gb": (None, 30), "time": (5, 60, 4320), "signal_s": (60, 180),
    "partition": (None, "fast", "a,b"), "account": (None, "x1"), "qos": (None, "long"), "constraint": ("",
    "h100&nvlink"),
    "nodelist": (None, ["n1", "n[3-5]"]), "exclude": (None, "n1,n2"), "nice": (None, -3, 100), "comment": (None,
    "it's $HOME"),
    "sbatch": ({}, {"reservation": "course", "exclusive": True}), "setup": ([], ["module load cuda",
    "ulimit -Sn hard"]),
    "srun_args": ([], ["--mpi=none"]), "python": (None, "python3"), "code": ("snapshot", "live"),
    "container": ({}, {"image": "/images/codec.sif", "mounts": ["/data", "/here:/there:ro"]}),
    "output_dir": ("outputs", "/scratch/x y", "${oc.env:AUDIOTOK_FUZZ_A,.}/out"), "dataset_paths": ({}, {"/a": "/b"}),
    "gpu_option": ("gres", "none", "gpus"), "mem_option": ("mem", "mem-per-cpu", "none"), "array_parallelism": (1, 64),
}  # fmt: skip
_BAD: tuple[Any, ...] = (
    *(None, -1, 0, 1.5, 10**30, 10**400, float("nan"), float("inf"), True, False, "", "abc"),
    *("x\ntouch MARK", "x; touch MARK"),
    *("$(touch MARK)", "`touch MARK`", "x\n#SBATCH --wrap=evil", "\x00", "é",
      "a" * 10_000, "${oc.env:AUDIOTOK_FUZZ_B}"),
    *("${oc.env:HOME}", "${slurm.gpus}", "${oc.decode:1}", "${", "???", "~/x", "--wrap", "a b", "\u2028", "'", '"',
      "\\"),
    *([], ["touch MARK"], ["a\nb"], [1], [[]], [None], {}, {"a": 1}, {"wrap": "touch MARK"}, {"/a": "b"},
      {"image": ""}),
    *(["cat <<X"], ["#SBATCH -p x"], ["("], {"image": "/x", "mounts": ["a:b:c:d"]}, [True], ["a"] * 500, "1 2",
      "01:00:00"),
)  # fmt: skip
_TEXTS = (  # in place of a whole file, or after it
    "", "\t", "gpus:\t1\n\tnodes: 2\n", "- 1\n- 2\n", "gpus", "gpus: 1\ngpus: 2\n", "a: &a [*a]\n", "? [1]\n: 2\n",
    ": 1\n",
    "gpus: !!python/object/apply:os.system ['touch MARK']\n", "gpus: !!int 'x'\n", "a: &a 1\nb: *c\n",
    "{" * 5000, "[" * 5000,
    "gpus: 1\n---\ngpus: 2\n", "%YAML 9.9\n---\ngpus: 1\n", "gpus: 2001-01-01\n", "gpus: 0o17\n", "gpus: 1_000\n",
    "<<: {gpus: 2}\n",
    "defaults: []\n", "defaults: [/cluster/mine]\n", "defaults: [nothing, _self_]\n", "defaults: /cluster/default\n",
    "defaults: [{a: b}]\n", "setup: |\n  touch MARK\n", "comment: >\n  a\n  b\n", "null: 1\n", "1: 2\n", "true: 1\n",
    "gpus: 0x1F\n",
)  # fmt: skip
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


def make(dice: random.Random, folder: Path) -> str:
    """Write config.yaml and cluster/{default,mine}.yaml."""
    clusters = folder / "config" / "cluster"
    clusters.mkdir(parents=True)
    (clusters / "default.yaml").write_text(DEFAULT)
    (clusters.parent / "config.yaml").write_text("defaults:\n  - _self_\n  - cluster: mine\n")
    values: dict[str, Any] = {}
    for key in dice.sample(sorted(_KEYS), dice.choice((0, 1, 2, 3, 6))):
        good = dice.random() < 0.75
        values[key] = copy.deepcopy(dice.choice(_GOOD.get(key, (_KEYS[key],)) if good else _BAD))
    if dice.random() < 0.05:
        values[dice.choice(("gpuz", "Time", "é", "a.b", "cluster", "", "__class__"))] = 1
    text = yaml.safe_dump(
        values, allow_unicode=dice.random() < 0.5, default_flow_style=dice.choice((None, True, False))
    )
    text = "" if not values else text
    head = "# @package slurm\ndefaults:\n  - /cluster/default\n  - _self_\n"
    roll = dice.random()
    if roll < 0.12:
        text = dice.choice((head, "# @package slurm\n", "")) + dice.choice((*_TEXTS, _BOMB))
    elif roll < 0.2:
        text = head + text + dice.choice((*_TEXTS, _BOMB))
    elif roll < 0.25:
        text = dice.choice(("", "# @package _global_\n", "# @package\n", "\ufeff# @package slurm\n")) + text
    else:
        text = head + text
    data = text.replace("MARK", str(mark(folder))).encode("utf-8", "surrogatepass")
    if dice.random() < 0.08:
        spot = dice.randrange(len(data) + 1)
        data = (
            data[:spot]
            + dice.choice((b"\xff", b"\x00", b"\xc3", b"\t", b":", b"'", b"\r"))
            + data[spot + dice.randrange(3) :]
        )
    (clusters / "mine.yaml").write_bytes(data)
    return repr(data[:1500])


def check(folder: Path) -> None:
    """Read it without Hydra and with it, as a profile and as a script."""
    clusters = folder / "config" / "cluster"
    environ = {"AUDIOTOK_CLUSTER": "mine", "PATH": "/usr/bin:/bin"}
    os.environ["AUDIOTOK_CLUSTER"] = "mine"
    settle(environ, clusters)
    GlobalHydra.instance().clear()
    with _explained(clusters), initialize_config_dir(str(clusters.parent), version_base="1.3"):
        section = compose("config").slurm
        values = OmegaConf.to_container(section, resolve=True)
    assert isinstance(values, dict)
    profile = Profile.from_section(section, cluster="mine")
    _check_values(profile, values, yaml.safe_load((clusters / "mine.yaml").read_bytes()))
    try:
        folders = output_dir(environ, clusters), dataset_paths(environ, clusters)
    except ConfigError as error:
        raise AssertionError(f"a job would be refused what was accepted here: {error}") from error
    assert str(folders[0]) == str(Path(values.get("output_dir") or "outputs")) and folders[1] == (
        values.get("dataset_paths") or {}
    )
    assert place_of("mine", "gpus", clusters)
    _check_script(folder, profile)


def _check_values(profile: Profile, values: dict[Any, Any], written: dict[str, Any]) -> None:
    """What the file says is what the profile has, null in place of an empty one aside."""
    for key, value in values.items():
        found = getattr(profile, key)
        default = value is None and found in ([], {}, "", "outputs", "gres", "mem")
        assert found == value or default, (key, found, value)
    for key, value in written.items():
        if key != "defaults" and "${" not in str(value) and not isinstance(value, dict):
            assert values[key] == value or str(values[key]) == str(value), (key, values[key], value)


def _check_script(folder: Path, profile: Profile) -> None:
    command = ("python3", "-m", "audiotok.train")
    script = make_script(profile, "a_job", folder, command)
    done = sp.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False, timeout=10)
    assert not done.returncode, f"bash cannot read the script: {done.stderr}"
    for line in script.splitlines():
        outside = not any(line == one for one in profile.setup)
        assert not (outside and re.match(r"\s*touch ", line)), line
