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
from functools import cache
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
    "seanet.ratios=[4,2]",
    *("rvq.bins=8", "adversarial.adversaries=[]", "losses.adv=0", "losses.feat=0", "optim.updates_per_epoch=2"),
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
    state = torch.load(io.BytesIO(_original()), weights_only=True)
    if is_exported := dice.random() < 0.3:
        state = {"best_state": state["best_state"]["model"], "xp.cfg": state["xp.cfg"], "exported": True}
    path = folder / "checkpoint.th"
    torch.save(state, path)
    kind = dice.choice((_nothing, _values, _flip, _flip, _truncate, _entry, _entry, _shape, _payload, _records, _text))
    described = kind(dice, path, state)
    if kind in (_nothing, _values, _flip, _truncate, _records):  # damage is either found or without effect
        torch.save(state, folder / RIGHT)
    return f"{'exported' if is_exported else 'training'} {described}"


def check(folder: Path) -> None:
    """Load the file as data, then as a model and to export, or to resume; an exported one to continue from."""
    torch.set_num_threads(1)
    path, right = folder / "checkpoint.th", folder / RIGHT
    expected = torch.load(right, weights_only=True) if right.exists() else None
    state = load_checkpoint(path)
    assert expected is None or same(state, expected), "another state than was written was loaded"
    if state.get("exported") is True or path.stat().st_size % 2:
        model = CompressionModel.get_pretrained(path)
        weights = state["best_state"] if state.get("exported") is True else state["best_state"]["model"]
        assert same({**model.state_dict()}, {**weights}), "the model has other weights than the file"
    if state.get("exported") is True:
        solver = solver_in(folder)
        solver.cfg.continue_from = str(path)
        solver.restore()
        assert same({**solver.model.state_dict()}, {**weights}), "continues from other weights"
        return
    if path.stat().st_size % 2:
        exported = export_encodec(path, folder / "exported.bin")
        assert SECRET.encode() not in exported.read_bytes(), "a variable of the environment was exported"
        return
    solver = solver_in(folder)
    path.replace(solver.checkpoint_path)
    solver.restore()
    assert solver.stateful.sources.keys() <= state.keys(), "restored from less than there must be"
    now = solver.state_dict()
    for name in ("model", "best_state", "ema", "optimizer"):
        assert same(now[name], state[name]), f"{name} is not what the file holds"
    json.dumps(solver.history)
    batch = torch.zeros(2, 1, 1600)
    solver.model.train()
    solver.model(batch).x.pow(2).mean().backward()
    solver.optimizer.step()
    assert solver.ema is not None
    solver.ema.step()


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, where torch does not convert: as it loads float64 and numbers; NaN is NaN."""
    if isinstance(one, torch.Tensor) and one.is_floating_point() and isinstance(other, int | float):
        other = torch.tensor(other, dtype=one.dtype)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.is_floating_point():
        other = other if other.is_complex() else other.to(one.dtype)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
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
        solver = solver_in(Path(folder))
        generator = torch.Generator().manual_seed(0)
        result = solver.model(torch.randn(2, 1, 1600, generator=generator))
        result.x.pow(2).mean().backward()
        solver.optimizer.step()
        assert solver.ema is not None and solver.macro_batch is not None
        solver.ema.step()
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


def _put(state: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        state = state[key]
    state[place[-1]] = value


def _at(state: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        state = state[key]
    return state


def _nothing(dice: random.Random, path: Path, state: Any) -> str:
    return "as it is"


def _values(dice: random.Random, path: Path, state: Any) -> str:
    """Other weights: a file like any other."""
    for tensor in (_at(state, place) for place in _places(state) if place[0] in ("model", "best_state")):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
            tensor.mul_(dice.choice((0.5, -1.0, 1e-3)))
    torch.save(state, path)
    return "with other weights"


def _flip(dice: random.Random, path: Path, state: Any) -> str:
    content = bytearray(path.read_bytes())
    places = [dice.randrange(len(content)) for _ in range(dice.choice((1, 1, 1, 3, 50)))]
    if dice.random() < 0.3:  # in the directory at the end
        places = [len(content) - 1 - dice.randrange(2000)]
    for place in places:
        content[place] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    return f"with flipped bits at {places[:3]}"


def _truncate(dice: random.Random, path: Path, state: Any) -> str:
    content = path.read_bytes()
    start, end = sorted(dice.randrange(len(content)) for _ in range(2))
    kept = dice.choice((content[:end], content[start:], content[:start] + content[end:], content + content[start:]))
    path.write_bytes(kept)
    return f"cut or doubled at {start}, {end}"


def _entry(dice: random.Random, path: Path, state: Any) -> str:
    """An entry of another kind, one that is missing, or one more."""
    place = dice.choice([(key,) for key in state] if dice.random() < 0.3 else _places(state))
    value = dice.choice(ODD)
    if (action := dice.random()) < 0.2:
        container = _at(state, place[:-1])
        del container[place[-1]]
        described = f"without {place}"
    elif action < 0.3:
        container = _at(state, place[:-1])
        container.append(value) if isinstance(container, list) else container.update({"more": value})
        described = f"with one more beside {place}"
    else:
        _put(state, place, value)
        described = f"with {str(value)[:40]} at {place}"
    torch.save(state, path)
    return described


def _shape(dice: random.Random, path: Path, state: Any) -> str:
    """A tensor of another shape, size or kind, or values that are not finite."""
    place = dice.choice([place for place in _places(state) if isinstance(_at(state, place), torch.Tensor)])
    old = _at(state, place)
    vast = torch.zeros(1).expand(*old.shape[:-1], 1 << dice.randrange(1, 50))
    makes: list[Any] = [
        *(lambda: old.reshape(-1), lambda: old[None], lambda: old[:0] if old.dim() else old[None], lambda: vast),
        *(lambda: old.to(torch.float64), lambda: old.to(torch.int32), lambda: old.to(torch.complex64)),
        *(lambda: old.float() * float("nan"), lambda: old.float() + float("inf"), lambda: old.to_sparse()),
        *(lambda: old.to("meta"), lambda: old.float().expand(3, *old.shape), lambda: old.flatten()[:1]),
    ]
    number = dice.randrange(len(makes))
    _put(state, place, makes[number]())
    torch.save(state, path)
    return f"with shape {number} at {place}"


def _payload(dice: random.Random, path: Path, state: Any) -> str:
    """Code to execute, containers without end, and other things that pickle can say."""
    place = dice.choice(_places(state))
    deep: Any = []
    for _ in range(dice.choice((70, 150))):
        deep = [deep] if dice.random() < 0.5 else {"a": deep}
    doubled: Any = [1.0]
    for _ in range(40):
        doubled = [doubled, doubled]
    own: list[Any] = []
    own += [own, own]
    number = dice.randrange(6)
    value = (Payload(mark(path.parent)), deep, doubled, own, bytearray(10), [Payload(mark(path.parent))])[number]
    _put(state, place, value)
    if number in (0, 5) and dice.random() < 0.5:
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=dice.random() < 0.7)
    return f"with payload {number} at {place}"


def _records(dice: random.Random, path: Path, state: Any) -> str:
    """The zip written anew: compressed, with a record twice, outside, gone, longer or exchanged."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    one, other = dice.randrange(len(records)), dice.randrange(len(records))
    name, content = records[one]
    number = dice.randrange(7)
    added: list[tuple[str, bytes]] = [
        ("../../EXECUTED", b"x"), (name, content), (name.upper(), b""), ("archive/bomb", bytes(50 << 20)),
    ]  # fmt: skip
    if number < 4:
        records.append(added[number])
    elif number == 4:
        del records[one]
    elif number == 5:
        records[one] = (name, content + bytes(64))
    else:
        records[one], records[other] = (name, records[other][1]), (records[other][0], content)
    compressed = number == 3 or dice.random() < 0.2
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else 0) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for record in records:
            archive.writestr(*record)
    return f"zipped anew, way {number} at {name}, {'compressed' if compressed else 'stored'}"


def _text(dice: random.Random, path: Path, state: Any) -> str:
    """Another configuration as text."""
    cfg = yaml.safe_load(state["xp.cfg"])
    sections = [(name, *place) for name in ("seanet", "rvq", "encodec") for place in _places(cfg[name])]
    place = dice.choice(sections)
    values: list[Any] = [None, True, -1, 0, 10**9, 10**400, 1e400, "x", [], [1] * 999, {}, "${sample_rate}"]
    value = dice.choice([*values, "${oc.env:FUZZ_SECRET}"])
    _put(cfg, place, value)
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    chain = {f"r{n}": {"a": f"${{r{n + 1}}}", "b": f"${{r{n + 1}}}"} for n in range(40)}
    cfg["label"] = dice.choice(("${oc.env:FUZZ_SECRET}", "${oc.${oc.env:A,env}:FUZZ_SECRET}", "é\n\u2028", "\\${a}"))
    fine = yaml.safe_dump(cfg)
    texts = [fine, fine, bomb, "[" * 5000, "a: " + "{a: " * 3000, "\0", "x: !!python/name:os"]
    number = dice.randrange(len(texts) + 2)
    if number == len(texts):
        cfg["seanet"]["activation_params"] = "${r0}"
        text = yaml.safe_dump({**cfg, **chain})
    else:
        text = texts[number] if number < len(texts) else texts[0].encode("latin1", "replace").decode("latin1")[:-50]
    torch.save({**state, "xp.cfg": text}, path)
    return f"with text {number}, {str(value)[:20]} at {place}"
