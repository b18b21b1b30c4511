"""The layout is Dora's: folders written by Dora itself, with Hydra, come back as they were given."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from audiotok.results import load_grid

TRAIN = """
import sys
from dora import get_xp
from ENTRY_POINT as entry_point

@entry_point(config_path="conf", config_name="config", version_base="1.1")
def main(cfg):
    link = get_xp().link
    for epoch in range(1, cfg.epochs + 1):
        link.push_metrics({"train": {"l1": cfg.lr / epoch}, "valid": {"msspec": float(cfg.rvq.n_q)}})

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [_self_, {model: small}]
lr: 1e-3
epochs: 2
seed: 7
label: none
mmd: {sigmas: [1.0], scale: "${lr}"}
rvq: {n_q: 4}
dora: {dir: OUTPUTS}
"""
GRID = """
import sys
sys.path.insert(0, ".")
from pathlib import Path
from dora.explore import Explorer
from dora.grid import RunGridArgs, run_grid
from package.train import main

def explore(launcher):
    launcher({"rvq.n_q": 8, "mmd.sigmas": [0.1, 1, 5e-5], "lr": 1e-5})
    launcher({"label": "a b|c", "model": "large"})

args = RunGridArgs(monitor=False, dry_run=True, silent=True)
main._slow = False  # no process pool for two experiments
sheep = run_grid(main, Explorer(explore), "some.grid", args=args)
folder = main.dora.dir / "grids" / "some.grid"
for one in sheep:  # what run_grid does when it is not dry, less the submission
    main.init_xp(one.xp)
    (folder / one.xp.sig).symlink_to(one.xp.folder)
    print(one.xp.sig)
sys.argv[1:] = sheep[1].xp.argv
main()
"""


def _run(folder: Path, *arguments: str) -> str:
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("source", ["dora import hydra_main", "audiotok.experiments import experiment_main"])
def test_folders_that_dora_made(source: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "conf" / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(TRAIN.replace("ENTRY_POINT", source))
    (package / "conf" / "config.yaml").write_text(CONFIG.replace("OUTPUTS", str(tmp_path / "outputs")))
    for name in ("small", "large"):
        (package / "conf" / "model" / f"{name}.yaml").write_text("{}\n")
    (tmp_path / "submit.py").write_text(GRID)
    sigs = _run(tmp_path, "submit.py").split()
    assert len(sigs) == 2

    experiments = load_grid("some.grid", tmp_path / "outputs")
    runs = experiments.runs.set_index("sig")
    assert set(runs.index) == set(sigs)
    assert [runs[name].to_dict()[sigs[0]] for name in ("rvq.n_q", "mmd.sigmas", "lr")] == [
        8,
        (0.1, 1, 5e-05),
        1e-05,
    ]
    ran = {name: runs[name].to_dict()[sigs[1]] for name in runs.columns}
    assert [ran[name] for name in ("label", "model")] == ["a b|c", "large"]
    configured = [ran[name] for name in ("rvq.n_q", "mmd.sigmas", "lr")]
    if source.startswith("dora"):  # which keeps no resolved configuration: what is not overridden is missing
        assert pd.isna(pd.Series(configured, dtype=object)).all()
    else:
        assert configured == [4, (1.0,), 1e-3]
    assert runs["epochs"].tolist() == [0 if sig == sigs[0] else 2 for sig in runs.index]
    assert (ran["train.l1"], ran["valid.msspec"]) == (1e-3 / 2, 4.0)
    assert runs["problems"].tolist() == ["", ""]
