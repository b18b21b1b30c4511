"""A small project whose configuration holds what makes comparing configurations hard."""

import importlib
import sys
from pathlib import Path
from typing import Any

import dora.hydra
from dora.hydra import HydraMain

from audiotok.experiments import ExperimentMain

FILES = {
    "config/config.yaml": r"""
defaults:
  - _self_
  - model: small
  - optim/sched: none
  - deep: one/a
rate: 16000
lr: 1.0e-3
epochs: 2
name: plain
flag: true
nothing: null
weights: [0.5, 1.0]
ints: [1, 2]
mixed: [1, a, null, true]
nested: [[1], [2.0]]
empty: {}
empty_list: []
section:
  a: 1
  b: {c: 0.5, d: "${rate}"}
alias: ${rate}
alias_of_alias: ${alias}
alias_of_list: ${weights}
alias_of_section: ${section.b}
through: ${alias_of_section.c}
text: r-${rate}
list_of_references: ["${rate}", 2]
relative: {x: 1, y: "${.x}", z: "${..epochs}", list: ["${..x}"]}
home: ${oc.env:NASTY_HOME,nowhere}
decoded: ${oc.decode:"${epochs}"}
not_a_number: .nan
escaped: 'a\${rate}'
quoted: 'it''s a "q" \'
accent: é
records: [{a: 1}]
loose: {n: 1, other: "${name}", of_loose: "${loose.n}"}
dora:
  dir: OUTPUTS
  exclude: [flag, "loose.*"]
""",
    "config/model/small.yaml": "width: 8\ndepth: 2.0\nrate: ${rate}\nmodel: me\n",
    "config/model/large.yaml": "# @package _global_\nrate: 44100\nmodel: {width: 64, depth: 4.0, rate: 1, model: me}\n",
    "config/model/unset.yaml": "width: ???\ndepth: 2.0\nrate: ${rate}\nmodel: ${model.width}\n",
    "config/deep/one/a.yaml": '# @package _global_\ndepth: {x: 1, y: [1.0], z: "${rate}"}\n',
    "config/deep/one/b.yaml": "# @package _global_\nepochs: 5\ndepth: {x: 2, y: [2.0, 3.0], z: 4}\n",
    "config/optim/sched/none.yaml": "gamma: 1.0\n",
    "config/optim/sched/step.yaml": "gamma: 0.5\nsize: 10\n",
}
_count = iter(range(10**6))


def write_project(folder: Path, files: dict[str, str] = FILES) -> None:
    """Write the files of a project; `OUTPUTS` in them is the folder `outputs` beside them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("OUTPUTS", str(folder / "outputs")))


def make_main(folder: Path, function: Any = None, *, kind: type[HydraMain] = ExperimentMain) -> Any:
    """Entry point of the project in a folder, ours or Dora's own, in a module that the configuration is found from."""
    package = folder / f"nasty_{next(_count)}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text(
        "function = None\n\ndef main(cfg):\n    return None if function is None else function(cfg)\n"
    )
    sys.path.insert(0, str(folder))
    try:
        module: Any = importlib.import_module(f"{package.name}.train")
        module.function = function
        return kind(module.main, config_name="config", config_path="../config", version_base="1.3")
    finally:
        sys.path.remove(str(folder))


def upstream(main: HydraMain, argv: list[str]) -> Any:
    """Experiment as Dora makes it; a comparison of Dora's that failed must not spoil the next."""
    dora.hydra._compare_config.__defaults__[0].clear()  # type: ignore[attr-defined]
    return main.get_xp(argv)
