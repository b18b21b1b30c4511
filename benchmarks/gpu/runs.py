"""Whole runs on a device: stopped and resumed, and in a process group of NCCL."""

import itertools
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import flashy
import torch
from torch import Tensor

from audiotok import distributed
from audiotok.checkpoint import LAST, load_checkpoint
from audiotok.solvers import CompressionSolver, solver
from audiotok.solvers.interruption import Interrupted, StopSignals
from benchmarks.gpu.device import Setting, apart, table
from benchmarks.gpu.solvers import SMALL, batch_of, solver_on


def resume(setting: Setting, *overrides: str) -> list[str]:
    """Whole runs twice, and one that a signal stops in the middle of an epoch: what differs at the end."""
    with TemporaryDirectory() as root, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stops = {"whole": 0, "again": 0, "parts": 3}
        states = {name: _run(setting, Path(root) / name, stop, *overrides) for name, stop in stops.items()}
    rows = []
    for name in ("again", "parts"):
        rows.append(
            (
                {"again": "a second whole run", "parts": "stopped after step 3, resumed"}[name],
                " ".join(overrides) or "as it is",
                *_compared(states["whole"], states[name]),
            )
        )
    header = ["beside a whole run", "overrides", "tensors that differ", "largest difference", "metrics that differ"]
    loud = sorted({str(w.message).split(" does not have")[0] for w in caught if "deterministic" in str(w.message)})
    return [*table(header, rows), *(f"- no deterministic algorithm: {name}" for name in loud), ""]


def deterministic(setting: Setting) -> Iterator[list[str]]:
    """`resume` with deterministic=true, in float32 and in bfloat16."""
    lines = resume(setting, "deterministic=true")
    yield lines
    yield lines + resume(setting, "deterministic=true", "precision=bf16")


def _run(setting: Setting, folder: Path, stop_after: int, *more: str) -> dict[str, Any]:
    """Train one epoch of all stages, maybe stopped and resumed; returns its last checkpoint."""
    overrides = [
        *more,
        *([] if setting.tiny else SMALL),
        batch_of(setting, 4),
        "mmd.num_batches_mmd=2",
        "optim.epochs=1",
    ]
    overrides += ["losses.mmd=1000"]
    overrides += ["optim.updates_per_epoch=6", f"dataset.num_workers={setting.pick(2, 0)}", "adversarial.every=2"]
    overrides += [f"dataset.{split}.num_samples=4" for split in ("valid", "evaluate", "generate")]
    overrides += ["metrics.dependence.num_shuffles=2", "rvq.q_dropout=true"]
    for life in range(2 if stop_after else 1):
        with solver_on(setting, folder, *overrides) as one, StopSignals() as stop:
            if stop_after and life == 0:
                _stop_at(one, stop, stop_after)
            try:
                one.run()
            except Interrupted:
                assert stop_after and life == 0
            state = load_checkpoint(one.folder / LAST)
    return state


def _stop_at(one: CompressionSolver, stop: StopSignals, step: int) -> None:
    calls = itertools.count()  # the first is that of the epoch

    def progress() -> None:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    one.stop_signal, one.on_progress, stop.patient = lambda: stop.signum, progress, True


def _compared(wanted: dict[str, Any], found: dict[str, Any]) -> tuple[object, ...]:
    a, b = _tensors(wanted), _tensors(found)
    assert a.keys() == b.keys()
    differ = {name: apart(b[name], a[name]) for name in a if not torch.equal(a[name], b[name])}
    metrics = [
        (stage, name)
        for stage, values in wanted["history"][0].items()
        for name, value in values.items()
        if name != "duration" and found["history"][0][stage][name] != value
    ]
    total = sum(len(values) - 1 for values in wanted["history"][0].values())
    return f"{len(differ)} of {len(a)}", max(differ.values(), default=0.0), f"{len(metrics)} of {total}"


def _tensors(content: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested content, by path."""
    if isinstance(content, Tensor):
        return {name: content}
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {path: tensor for key, value in items for path, tensor in _tensors(value, f"{name}/{key}").items()}


def nccl(setting: Setting) -> list[str]:
    """Every collective of `audiotok.distributed` and of the solver, in a group of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DORA_FORCE_DISTRIB": "1"}
    yes = mock.Mock(return_value=True)
    rows: list[tuple[object, ...]] = []
    with (
        mock.patch.dict(os.environ, {**variables, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}),
        mock.patch.object(distributed, "is_distributed", yes),  # a single process would pass all collectives over
        mock.patch.object(solver, "is_distributed", yes),
        mock.patch.object(flashy.distrib, "is_distributed", yes),
        TemporaryDirectory() as folder,
    ):
        try:
            rows.append(("train, valid, evaluate, generate", _attempt(lambda: _run(setting, Path(folder), 3))))
            rows.append(("collectives of audiotok.distributed", _attempt(lambda: _collectives(setting.device))))
            backend = torch.distributed.get_backend()
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    return table([f"{backend}, 1 process", ""], rows)


def _attempt(run: Callable[[], object]) -> str:
    try:
        run()
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        return f"failed in {where}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return "ok"


def _collectives(device: torch.device) -> None:
    clips = torch.arange(6.0, device=device).view(3, 2)
    assert torch.equal(distributed.sum_over_ranks_(clips.clone()), clips)
    assert torch.equal(distributed.take_from_source_(clips.clone()), clips)
    assert 1 <= distributed.shared_randint(1, 4, device) <= 4
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}] and distributed.object_of_source("x") == "x"
    assert torch.equal(distributed.own_clips(distributed.gather_clips(clips)), clips)
    agreement = distributed.Agreement(device)
    assert (agreement(3), agreement(0), agreement.finish()) == (0, 3, 0)
