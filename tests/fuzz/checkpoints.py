"""Checkpoints and exported files: damaged, of the wrong form, or hostile.

A tiny model's own files are the start. Where the input is still what the trainer wrote, or what a change legitimately
made of it, what loads must be exactly that; all else must be refused.
"""

import io
import json
import os
import pickle
import random
import tempfile
import warnings
import zipfile
from copy import deepcopy
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
import yaml
from dora.conf import DoraConfig
from dora.xp import XP
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiotok.checkpoint import load_checkpoint
from audiotok.models import CompressionModel
from audiotok.solvers import CompressionSolver
from audiotok.utils.export import export_encodec
from tests.fuzz.campaign import mark

CONFIG = Path(__file__).parents[2] / "config"
TINY = [
    *("solver=compression/debug", "device=cpu", "seanet.n_filters=2", "seanet.dimension=4", "seanet.lstm=0"),
    *("seanet.ratios=[4]", "rvq.n_q=2", "rvq.bins=8", "adversarial.adversaries=[]", "losses.adv=0", "losses.feat=0"),
    "optim.updates_per_epoch=2",
]
SIG = "0a1b2c3d"
RIGHT = "expected.pt"  # what the file holds, where it is right
SECRET = "hunter2"
ODD: tuple[Any, ...] = (
    *(None, True, -1, 3, 10**399, 1.5, float("nan"), "x", "", "${oc.env:FUZZ_SECRET}", [], {}, [[]], {"a": {}}, (1, 2)),
    *(torch.zeros(0), torch.zeros(3), torch.tensor(7), torch.ones(2, 2, dtype=torch.int64), b"bytes", {1, 2}, 1j),
)


class Payload:
    """Unpickling this would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


class _Solver(CompressionSolver):
    """The solver without its data."""

    def build_dataloaders(self) -> None:
        """Of two updates an epoch."""
        self.dataloaders = {"train": [None, None]}


def solver_in(folder: Path) -> _Solver:
    """A solver of the experiment that the inputs are of."""
    xp = XP(DoraConfig(dir=folder / "out"), _cfg(), [], sig=SIG)
    xp.folder.mkdir(parents=True, exist_ok=True)
    with xp.enter():
        return _Solver(deepcopy(_cfg()))


def make(dice: random.Random, folder: Path) -> str:
    """One file, `checkpoint.th`, and what it holds, if that may load."""
    os.environ["FUZZ_SECRET"] = SECRET
    state = torch.load(io.BytesIO(_original()), weights_only=False)  # our own, and this is ten times faster
    if is_exported := dice.random() < 0.3:
        state = {"best_state": state["best_state"]["model"], "xp.cfg": state["xp.cfg"], "exported": True}
    path = folder / "checkpoint.th"
    kind = dice.choice(("fine", "values", "flip", "flip", "cut", "entry", "entry", "entry", "entry", "records", "text"))
    described, zipped = kind, True
    if kind == "values":  # other weights: a file like any other
        for tensor in (_at(state, place) for place in _places(state) if place[0] in ("model", "best_state")):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.mul_(dice.choice((0.5, -1.0, 1e-3)))
    elif kind == "entry":
        described, zipped = _entry(dice, state, mark(folder)), dice.random() < 0.9
    elif kind == "text":
        described = _text(dice, state)
    if zipped or dice.random() < 0.5:
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    if kind == "records":
        described = _records(dice, path)
    elif kind in ("flip", "cut"):
        described = _damage(dice, path, kind)
    if kind not in ("entry", "text") and "exchanged" not in described:  # damage is either found or without effect
        torch.save(state, folder / RIGHT)
    return f"{'exported' if is_exported else 'training'}, {described}"


def check(folder: Path) -> None:
    """Load the file as data, then as a model and to export, or to resume; an exported one to continue from."""
    torch.set_num_threads(1)
    path, right = folder / "checkpoint.th", folder / RIGHT
    expected = torch.load(right, weights_only=False) if right.exists() else None
    state = load_checkpoint(path)
    assert expected is None or same(state, expected), "another state than was written was loaded"
    is_exported, resumes = state.get("exported") is True, path.stat().st_size % 2 == 0
    if is_exported or not resumes:
        model = CompressionModel.get_pretrained(path)
        weights = state["best_state"] if is_exported else state["best_state"]["model"]
        assert same({**model.state_dict()}, {**weights}), "the model has other weights than the file"
    if is_exported:
        solver = solver_in(folder)
        solver.cfg.continue_from = str(path)
        solver.restore()
        assert same({**solver.model.state_dict()}, {**weights}), "continues from other weights"
    elif resumes:
        _resume(path, solver_in(folder), state)
    else:
        exported = export_encodec(path, folder / "exported.bin")
        assert SECRET.encode() not in exported.read_bytes(), "a variable of the environment was exported"


def _resume(path: Path, solver: _Solver, state: dict[str, Any]) -> None:
    path.replace(solver.checkpoint_path)
    solver.restore()
    assert solver.stateful.sources.keys() <= state.keys(), "restored from less than there must be"
    now = solver.state_dict()
    for name in ("model", "best_state", "ema", "optimizer"):
        assert same(now[name], state[name]), f"{name} is not what the file holds"
    json.dumps(solver.history)
    solver.model.train()
    _update(solver, torch.zeros(2, 1, 1600))


def _update(solver: _Solver, batch: torch.Tensor) -> None:
    solver.model(batch).x.pow(2).mean().backward()
    solver.optimizer.step()
    assert solver.ema is not None
    solver.ema.step()


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, where torch does not convert: as it loads float64 and numbers; NaN is NaN."""
    if isinstance(one, torch.Tensor):
        converts = one.is_floating_point()
        if converts and isinstance(other, int | float):
            other = torch.tensor(other)
        if not isinstance(other, torch.Tensor):
            return False
        other = other.to(one.dtype) if converts and not other.is_complex() else other
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@cache
def _cfg() -> Any:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("config", TINY)
    return OmegaConf.create({**dict(cfg), "label": "a label"})


@cache
def _original() -> bytes:
    """A checkpoint after an epoch and an update, in the middle of the next."""
    with tempfile.TemporaryDirectory() as folder:
        solver, generator = solver_in(Path(folder)), torch.Generator().manual_seed(0)
        _update(solver, torch.randn(2, 1, 1600, generator=generator))
        assert solver.macro_batch is not None
        solver.macro_batch.pending = [torch.randn(2, 1, 1600, generator=generator)]
        solver.best_state.update("model", solver.model.state_dict())
        solver.history.append({"train": {"l1": 0.5, "duration": 1.0}, "valid": {"l1": 0.25}})
        solver.progress.updates = 1
        solver.rng = torch.Generator()
        file = io.BytesIO()
        torch.save({**solver.state_dict(), "progress": solver.progress.state_dict([solver.rank_state()])}, file)
        return file.getvalue()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all entries of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*path, key), *_places(item, (*path, key)))]


def _at(state: Any, place: tuple[Any, ...]) -> Any:
    return reduce(getitem, place, state)


def _entry(dice: random.Random, state: Any, target: Path) -> str:
    """An entry that is missing, one more, or one of another kind; code to execute, or containers without end."""
    place = dice.choice([(key,) for key in state] if dice.random() < 0.2 else _places(state))
    container, key = _at(state, place[:-1]), place[-1]
    value = dice.choice((_tensor, _hostile, lambda *_: dice.choice(ODD)))(dice, container[key], target)
    action = dice.choice(("missing", "more", *["other"] * 6))
    if action == "missing":
        del container[key]
    elif action == "more" and isinstance(container, list):
        container.append(value)
    else:
        container["more" if action == "more" else key] = value
    return f"{action} at {place}: {type(value).__name__} {getattr(value, 'shape', '')}"


def _tensor(dice: random.Random, old: Any, _: Path) -> Any:
    """A tensor of another shape, size or kind, or values that are not finite."""
    old = old if isinstance(old, torch.Tensor) else torch.ones(3)
    vast = torch.zeros(1).expand(*old.shape[:-1], 1 << dice.randrange(1, 50))
    some = [old.reshape(-1), old[None], old[:0] if old.dim() else old[None], vast, old.flatten()[:1], old.to("meta")]
    some += [old.to(dtype) for dtype in (torch.float64, torch.int32, torch.complex64)]
    return dice.choice([*some, old * float("nan"), old + float("inf"), old.to_sparse(), old.expand(3, *old.shape)])


def _hostile(dice: random.Random, _: Any, target: Path) -> Any:
    deep: Any = []
    for _level in range(dice.choice((70, 150))):
        deep = [deep] if dice.random() < 0.5 else {"a": deep}
    doubled: Any = [1.0]
    for _level in range(40):
        doubled = [doubled, doubled]
    own: list[Any] = []
    own += [own, own]
    return dice.choice((Payload(target), [Payload(target)], deep, doubled, own, bytearray(10)))


def _damage(dice: random.Random, path: Path, kind: str) -> str:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        start, end = sorted(dice.randrange(len(content)) for _ in range(2))
        head, tail = content[:start], content[start:]
        path.write_bytes(dice.choice((content[:end], tail, head + content[end:], content + tail)))
        return f"cut or doubled at {start}, {end}"
    places = [dice.randrange(len(content)) for _ in range(dice.choice((1, 1, 1, 3, 50)))]
    if dice.random() < 0.3:  # in the directory at the end
        places = [len(content) - 1 - dice.randrange(2000)]
    for place in places:
        content[place] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    return f"with flipped bits at {places[:3]}"


def _records(dice: random.Random, path: Path) -> str:
    """The zip written anew: a record twice, outside, gone, longer, compressed or exchanged, which is no damage."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    one, other = dice.randrange(len(records)), dice.randrange(len(records))
    name, content = records[one]
    kind = dice.choice(("outside", "twice", "case", "bomb", "gone", "longer", "exchanged"))
    more = {"outside": ("../../EXECUTED", b"x"), "twice": (name, content), "case": (name.upper(), b"")}
    more["bomb"] = ("archive/bomb", bytes(50 << 20))
    if kind in more:
        records.append(more[kind])
    elif kind == "gone":
        del records[one]
    elif kind == "longer":
        records[one] = (name, content + bytes(64))
    else:
        records[one], records[other] = (name, records[other][1]), (records[other][0], content)
    compression = zipfile.ZIP_DEFLATED if kind == "bomb" or dice.random() < 0.2 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for record in records:
            archive.writestr(*record)
    return f"zipped anew, {kind}: {name}, compression {compression}"


def _text(dice: random.Random, state: Any) -> str:
    """Another configuration as text."""
    cfg = yaml.safe_load(state["xp.cfg"])
    place = dice.choice([(name, *place) for name in ("seanet", "rvq", "encodec") for place in _places(cfg[name])])
    values: list[Any] = [None, True, -1, 0, 10**9, 10**400, 1e400, "x", [], [1] * 999, {}, "${sample_rate}"]
    value = dice.choice([*values, "${oc.env:FUZZ_SECRET}"])
    _at(cfg, place[:-1])[place[-1]] = value
    cfg["label"] = dice.choice(("${oc.env:FUZZ_SECRET}", "${oc.${oc.env:A,env}:FUZZ_SECRET}", "é\n\u2028", "\\${a}"))
    fine = yaml.safe_dump(cfg)
    chain = {f"r{n}": {"a": f"${{r{n + 1}}}", "b": f"${{r{n + 1}}}"} for n in range(40)}
    chained = yaml.safe_dump({**cfg, "seanet": {**cfg["seanet"], "activation_params": "${r0}"}, **chain})
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    texts = [fine, fine, chained, fine[:-50], bomb, "[" * 5000, "a: " + "{a: " * 3000, "\0", "x: !!python/name:os"]
    number = dice.randrange(len(texts))
    state["xp.cfg"] = texts[number]
    return f"text {number}, {str(value)[:20]} at {place}"
