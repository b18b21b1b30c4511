"""Overrides of real presets with hostile values: refused in one line, or the configuration has exactly that value.

What the schema accepts must build, as far as no data is needed: networks on the meta device, losses, schedule, MMD.
"""

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from audiotok import train
from audiotok.errors import AudiotokError, ConfigError
from audiotok.experiments.overrides import as_override, leaves_of
from audiotok.experiments.schema import refuse
from audiotok.models.encodec import get_compression_model
from audiotok.schema import SCHEMA
from audiotok.solvers import builders
from audiotok.solvers.interruption import SaveClock
from audiotok.solvers.macro_batch import MMDWeight
from audiotok.solvers.schedules import get_lr_scheduler
from tests.fuzz.campaign import mark

PRESETS = ("debug", "demo", "encodec_mmd_32khz", "encodec_base_24khz")
_SECRET = "AUDIOTOK_FUZZ_SECRET"
_SCALARS: tuple[Any, ...] = (
    *(0, 1, 2, 3, 4, 5, 8, 16, 100, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), True, False, None),
    *(0.0, 0.5, 0.99, 1.0, 1.5, -0.1, 1e-30, 1e300, float("inf"), float("-inf"), float("nan"), 3.0, 1e3),
    *("", "abc", "ten", "true", "null", "1", "1e3", "0x10", "median", "clips", "auto", "none", "wav", "cosine", "rvq"),
    *("é", "日本", "a b", "a=b", "a,b", "a:b", "#", "'", '"', "\\", "[", "{", "}", "\t", "\n", "\x00", "\u2028"),
    *("../../etc/passwd", "/dev/zero", "~", "!!python/object:os.system", "*a", "&a", "%", "a" * 5000, "١"),
)  # fmt: skip
_GRAMMAR = (  # as text of the override, not as values
    *("[", "{", "[1,", "{a:", "[[[[", "'", '"', "1,2,3", "choice(1,2)", "range(1,5)", "sort(3,1)", "glob(*)",
      "int('a')"),
    *("float(nan)", "json_str({a: 1})", "${", "${}", "${a", "${oc.env:AUDIOTOK_FUZZ_NOT_SET}", "${optim.lr}",
      "${seed}"),
    *("${oc.env:HOME}", "${oc.decode:'1+1'}", "${oc.create:{a: 1}}", "${oc.select:seed}", "${now:%Y}",
      "${hydra:job.name}"),
    *("${.}", "${..}", "${losses}", "${oc.dict.keys:optim}", "???", "\\${x}", "tag(a,1)", "shuffle(1,2)", "9" * 5000),
    *("[" * 500 + "]" * 500, "{a: {b: {c: {d: 1}}}}", "1e999", "-inf", "nan", "0b1", "1_000", "$(touch x)",
      "`touch x`"),
)  # fmt: skip


@cache
def _keys() -> list[tuple[str, Any]]:
    """Keys of a preset with their values, and those that the schema names beside them."""
    values = train.main.compose(["solver=compression/debug"]).cfg
    plain = OmegaConf.to_container(values, resolve=True)
    assert isinstance(plain, dict)
    found = {
        ".".join(path): value
        for path, value in leaves_of({str(key): value for key, value in plain.items()})
        if path[0] not in ("slurm", "dora")
    }
    return sorted({**dict.fromkeys(SCHEMA.keys), **found}.items(), key=lambda pair: pair[0])


def _value(dice: random.Random, right: Any, depth: int = 0) -> Any:
    if isinstance(right, list) and dice.random() < 0.7:
        items = list(right)
        for _ in range(dice.randrange(3)):
            edit = dice.randrange(3)
            if edit == 0 and items:
                items.pop(dice.randrange(len(items)))
            elif edit == 1 and items:
                items[dice.randrange(len(items))] = _value(dice, items[0], depth + 1)
            else:
                items.append(_value(dice, items[0] if items else None, depth + 1))
        return items
    roll = dice.random()
    if roll < 0.35 and isinstance(right, int | float) and not isinstance(right, bool):
        return dice.choice((right * 2, right / 2, -right, right + 1, right - 1, float(right), int(right), right * 1000))
    if roll < 0.45 and depth < 3:
        return [_value(dice, right, depth + 1) for _ in range(dice.randrange(4))]
    if roll < 0.5 and depth < 3:
        return {dice.choice("ab"): _value(dice, right, depth + 1) for _ in range(dice.randrange(3))}
    if roll < 0.6 and isinstance(right, str | bool):
        return not right if isinstance(right, bool) else right.upper()
    return dice.choice(_SCALARS)


def _override(dice: random.Random, mark_path: Path) -> tuple[str, str, Any]:
    """Text, key, and the value that it must give: ConfigError where none can be known."""
    key, right = dice.choice(_keys())
    if dice.random() < 0.05:
        key = dice.choice(
            (key + "x", key[:-1] or "x", "a.b.c", key.upper(), f"{key}.x", f"{key}[0]", "é", "", f"{key}@x")
        )
    if dice.random() < 0.2:
        text = dice.choice(_GRAMMAR).replace("touch x", f"touch {mark_path}")
        return f"{dice.choice(('', '', '+', '++', '~'))}{key}={text}", key, ConfigError
    value = right if dice.random() < 0.3 else _value(dice, right)
    sign = "" if dice.random() < 0.9 else dice.choice(("+", "++"))
    return f"{sign}{key}={as_override(value)}", key, value


def make(dice: random.Random, folder: Path) -> str:
    """Write the overrides of one experiment, and the values that they must have."""
    preset = dice.choice(PRESETS)
    count = dice.choice((1, 1, 1, 2, 3))
    some = [_override(dice, mark(folder)) for _ in range(count)]
    known = {key: [value] for _, key, value in some if value is not ConfigError}
    known = {key: value for key, value in known.items() if [one for _, one, _ in some].count(key) == 1}
    content = {"argv": [f"solver=compression/{preset}", *(text for text, _, _ in some)], "known": known}
    (folder / "overrides.json").write_text(json.dumps(content))
    return str(content["argv"])[:2000]


def check(folder: Path) -> None:
    """Compose, check, compare and build."""
    os.environ[_SECRET] = "hunter2"
    content = json.loads((folder / "overrides.json").read_text())
    xp = train.main.get_xp(content["argv"])
    refuse(xp.checked.faults)
    cfg = OmegaConf.to_container(xp.cfg, resolve=True)
    assert isinstance(cfg, dict)
    for key, (value,) in content["known"].items():
        found: Any = cfg
        for part in key.split("."):
            found = found[part]
        same = _laid_over(value, found) if isinstance(value, dict) else found == value and type(found) is not bool
        assert same or (found is value) or (found != found and value != value), f"{key} is {found!r}, not {value!r}"
    json.dumps(xp.frozen_values()).encode()
    assert train.main.get_name(xp) is not None
    try:
        _build(xp.cfg)
    except AudiotokError as error:
        if "_params" in str(error):
            raise  # arguments of a class of torch, which the schema leaves to it
        raise AssertionError(f"the schema accepts it, and it does not build: {error}") from error


def _laid_over(value: dict[str, Any], found: Any) -> bool:
    return isinstance(found, dict) and all(found.get(key) == item for key, item in value.items())


def _build(cfg: Any) -> None:
    """What needs no data; a size that only the computer limits is left out."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = get_compression_model(cfg)
        builders.get_adversaries(cfg, torch.device("meta"))
    builders.get_signal_losses(cfg)
    builders.get_evaluation_metrics(cfg)
    builders.get_balancer(cfg)
    builders.get_macro_batch(cfg)
    optimizer = builders.get_optimizer(model.parameters(), cfg.optim)
    get_lr_scheduler(optimizer, cfg.schedule, (cfg.optim.updates_per_epoch or 10**9) * cfg.optim.epochs)
    MMDWeight(cfg.losses.mmd, cfg.mmd.start_epoch, cfg.mmd.ramp_epochs)(cfg.optim.epochs)
    SaveClock(cfg.checkpoint.every_minutes)
