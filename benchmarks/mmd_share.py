"""The share of the gradient that `mmd.weighting: share` reaches, case by case: `python -m benchmarks.mmd_share`.

A small codec is trained on the demo music (`audiotok data demo --output data/demo`) without the MMD, then with it. In
the steps that follow, every estimator, set of widths and stream is measured and scaled on the same latents.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiotok import train
from audiotok.losses import MMDLoss
from audiotok.losses.mmd import ESTIMATORS, RELEASED_SIGMAS
from audiotok.models.encodec import EncodecModel
from audiotok.solvers import CompressionSolver
from audiotok.solvers.gradient_share import GradientShare, clip_norms
from audiotok.solvers.macro_batch import stream_mmd
from benchmarks.machine import where, write_page

SHARE, BATCH, FRAMES = 0.5, 4, 36  # clips of 40 frames, of which the delay leaves 36
STREAMS = ("input", "residual", "code")
WIDE = (50.0, 200.0, 800.0, 3200.0)
WIDTHS: dict[str, Any] = {"the six": RELEASED_SIGMAS, "median": "median", "wide": WIDE}
SINGLE = {f"{width:g}": (width,) for width in RELEASED_SIGMAS}
BASE = (
    "solver=compression/demo", "device=cpu", "num_threads=1", "losses.adv=0", "losses.feat=0", "rvq.n_q=4",
    "adversarial.adversaries=[]", f"dataset.batch_size={BATCH}", "mmd.num_batches_mmd=1", "mmd.sigmas=median",
    "mmd.stream=code", "mmd.estimator=closed", "mmd.weighting=share", "optim.epochs=2",
)  # fmt: skip


class Case:
    """One criterion, with norms per clip at the latent of each step."""

    def __init__(self, estimator: str, widths: str, sigmas: Any, stream: str) -> None:
        self.name = f"`{estimator}` | {widths} | {stream}"
        self.loss, self.stream = MMDLoss(sigmas, estimator), stream
        self.share = GradientShare(0.999)
        self.plain: list[float] = []  # of the MMD at weight 1
        self.given: list[float] = []  # of the MMD, as the encoder would get it
        self.reconstruction: list[float] = []

    def step(self, model: EncodecModel, latent: Tensor, reconstruction: Tensor) -> None:
        """Measure on a batch of latents."""
        latent = latent.clone().requires_grad_()
        generator = torch.Generator().manual_seed(len(self.plain))
        (gradient,) = torch.autograd.grad(stream_mmd(self.loss, model, latent, self.stream, generator), latent)
        self.share.add_reconstruction(reconstruction)
        factor = self.share.scale(SHARE, gradient, latent)
        self.plain.append(float(clip_norms(gradient).mean()))
        self.given.append(float(clip_norms(factor * gradient).mean()))
        self.reconstruction.append(float(reconstruction))

    def row(self) -> str:
        """Line of a table: ratios of means over steps, and the spread of single steps."""
        mean, given = np.mean(self.reconstruction), np.array(self.given)
        reached, absolute = given.mean() / mean, np.mean(self.plain) / mean
        return (
            f"| {self.name} | {np.mean(self.plain):.1e} | {absolute:.1e} | {reached:.2f} ± {given.std() / mean:.2f} |"
        )


@contextmanager
def solver_of(*overrides: str) -> Iterator[CompressionSolver]:
    """Solver of overrides over BASE, within its experiment."""
    xp = train.main.init_xp(train.main.get_xp([*BASE, *overrides]))
    with xp.enter():
        solver = train.get_solver(xp.cfg)
        assert isinstance(solver, CompressionSolver)
        yield solver


def trained(updates: int) -> dict[str, Tensor]:
    """Weights of the codec after some updates without the MMD."""
    with solver_of("losses.mmd=0", f"optim.updates_per_epoch={updates}") as solver:
        solver.run_stage("train", solver.train)
        return {key: value.clone() for key, value in solver.model.state_dict().items()}


def measure(cases: Sequence[Case], weights: dict[str, Tensor], steps: int) -> None:
    """Train on from weights, with a share of 0.5, and measure the cases in each step."""
    with solver_of(f"losses.mmd={SHARE}", f"optim.updates_per_epoch={steps}", "optim.lr=3e-4") as solver:
        solver.model.load_state_dict(weights)
        macro, probe = solver.macro_batch, solver.probe
        assert macro is not None and probe is not None
        value = macro.value

        def watched(model: EncodecModel, weight: float, n_q: int | None = None) -> Tensor:
            with torch.no_grad():
                latent = model.encode_latent(torch.cat(macro.pending))[0]
            for case in cases:
                case.step(model, latent, probe.norm)
            return value(model, weight, n_q)

        macro.value = watched  # type: ignore[method-assign]
        solver.run_stage("train", solver.train)


HEAD = """| estimator | widths | stream | norm at weight 1 | relative to the reconstruction | share reached |
| --- | --- | --- | --- | --- | --- |
"""
PAGE = """# The share of the gradient

{where}

The codec of `compression/demo` (4 codebooks, no adversaries) after {updates} updates without the MMD, on real music,
goes on for {steps} training steps of {batch} clips of 0.8 s ({frames} frames after the delay), an MMD step each. In
each step every criterion is measured at the latent and scaled to a share of {share}.
Norms are means per clip. Share reached: mean norm of the scaled gradient over that of the balanced losses, ± the
standard deviation of single steps.

{table}

Single widths, `unbiased`; 0 where the gradient is below the floor and stays off:

{single}
"""


def main() -> None:
    """Measure all cases, and write docs/benchmarks/mmd_share.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=40, help="of the codec, before")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    grid = itertools.product(ESTIMATORS, WIDTHS.items(), STREAMS)
    cases = [Case(estimator, name, sigmas, stream) for estimator, (name, sigmas), stream in grid]
    single = [Case("unbiased", name, sigmas, "residual") for name, sigmas in SINGLE.items()]
    with tempfile.TemporaryDirectory() as folder:
        train.main.dora.dir = Path(folder)
        measure([*cases, *single], trained(options.updates), options.steps)
    facts = {
        "updates": options.updates,
        "steps": options.steps,
        "share": SHARE,
        "batch": BATCH,
        "frames": BATCH * FRAMES,
    }
    tables = {key: HEAD + "\n".join(case.row() for case in of) for key, of in (("table", cases), ("single", single))}
    write_page("mmd_share.md", PAGE.format(where=where("benchmarks.mmd_share"), **facts, **tables))


if __name__ == "__main__":
    main()
