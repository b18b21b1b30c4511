"""The language model beside AudioCraft's `LMModel`: `python -m benchmarks.lm [--audiocraft CLONE] [--quick]`.

CLONE is a clone of github.com/facebookresearch/audiocraft, see `benchmarks.audiocraft`. Without it only ours is
measured.

Both have the same weights. Calls take turns within one process, so that a busy machine slows all, and CPU seconds of
one thread are counted. Before anything is timed, logits and greedy codes are compared.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audiotok.models.lm import LMModel, Sampling
from audiotok.utils.memory import keep_freed_memory
from benchmarks.audiocraft import import_audiocraft
from benchmarks.machine import where, write_page

K, STEPS = 4, 250
SIZES: dict[str, dict[str, Any]] = {
    "small": {"dim": 256, "num_heads": 4, "num_layers": 4, "bins": 1024, "batch": 4},
    "300M, 2 layers": {"dim": 1024, "num_heads": 16, "num_layers": 2, "bins": 2048, "batch": 1},
}
# How AudioCraft attends: by default with nn.MultiheadAttention over all inputs so far; MusicGen's configuration uses
# PyTorch's scaled_dot_product_attention; its third one is written out with einsum.
ATTENTION: dict[str, dict[str, bool]] = {
    "theirs, default": {},
    "theirs, sdpa": {"memory_efficient": True},
    "theirs, custom": {"custom": True},
}
BFLOAT16, FUSED = "ours, bfloat16", "ours, fused AdamW"
Run = Callable[[], object]
Times = dict[str, float]


def load(clone: Path) -> tuple[Any, Any]:
    """AudioCraft's modules `lm` and `codebooks_patterns`."""
    names, without = ("models.lm", "modules.codebooks_patterns"), ("modules.conditioners",)
    lm, patterns = import_audiocraft(clone, names, without=without)
    return lm, patterns


class _NoConditions:
    """What stands for AudioCraft's fuser of conditions where there are none."""

    fuse2cond: Mapping[str, list[str]] = {"prepend": []}

    def __call__(self, x: Tensor, conditions: object) -> tuple[Tensor, None]:
        return x, None


def ours(size: Mapping[str, Any]) -> LMModel:
    """The model of this project."""
    torch.manual_seed(0)
    return LMModel(n_q=K, **{name: value for name, value in size.items() if name != "batch"})


def theirs(modules: Sequence[Any], size: Mapping[str, Any], attention: str, state: Mapping[str, Tensor]) -> Any:
    """AudioCraft's model with the weights of ours."""
    lm, patterns = modules
    unbiased = {name: False for name in ("bias_proj", "bias_ff", "bias_attn")}
    model = lm.LMModel(
        patterns.DelayedPatternProvider(K), None, _NoConditions(), n_q=K, card=size["bins"], dim=size["dim"],
        num_heads=size["num_heads"], num_layers=size["num_layers"], norm_first=True, activation="gelu", causal=True,
        dropout=0.0, **unbiased, **ATTENTION[attention],
    )  # fmt: skip
    model.load_state_dict(state, strict=True)
    return model


def their_loss(model: Any, codes: Tensor) -> Tensor:
    """Mean cross-entropy, codebook by codebook over the codes of the mask, as AudioCraft's solver takes it."""
    output = model.compute_predictions(codes, [], {})
    pairs = [(output.logits[:, k][output.mask[:, k]], codes[:, k][output.mask[:, k]]) for k in range(K)]
    return torch.stack([F.cross_entropy(logits, targets) for logits, targets in pairs]).mean()


def our_loss(model: LMModel, codes: Tensor) -> Tensor:
    """The same of ours."""
    nll = model.nll(codes)
    return (nll.parallel.sum(dim=(0, 2)) / (len(codes) * nll.mask.sum(dim=1))).mean()


def training(model: Any, loss: Callable[[Any, Tensor], Tensor], codes: Tensor, *, fused: bool = False) -> Run:
    """One update by AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, codes).backward()
        optimizer.step()

    return step


def generation(model: Any, batch: int, frames: int, *, greedy: bool) -> Callable[[], Tensor]:
    """One call of `generate`, from nothing, greedy or from the 250 likeliest codes (MusicGen's choice)."""
    model.eval()
    if isinstance(model, LMModel):
        sampling = Sampling(temperature=0) if greedy else Sampling(top_k=250)
        return lambda: model.generate(frames, num_samples=batch, sampling=sampling)
    return lambda: torch.as_tensor(
        model.generate(num_samples=batch, max_gen_len=frames, use_sampling=not greedy, top_k=250)
    )


def in_bfloat16(run: Run) -> Run:
    """The same within autocast."""

    def rough() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            run()

    return rough


def in_turns(runs: Mapping[str, Run], rounds: int, *, warm: bool) -> Times:
    """Median CPU seconds of each; with `warm` the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _, (name, run) in itertools.product(range(rounds + warm), runs.items()):
        start = time.process_time()
        run()
        found[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[warm:]) for name, seconds in found.items()}


def check(models: Mapping[str, Any], bins: int) -> None:
    """AssertionError unless the losses and greedy codes of all models are the same."""
    codes = torch.randint(bins, (2, K, 20), generator=torch.Generator().manual_seed(1))
    reference = models["ours"]
    loss, clips = our_loss(reference, codes), (1, 4, 8)  # each number has products of its own
    greedy = [generation(reference, batch, 12, greedy=True)() for batch in clips]
    for name, model in models.items():
        if name != "ours":
            torch.testing.assert_close(their_loss(model, codes), loss, atol=1e-4, rtol=0)
            for batch, expected in zip(clips, greedy, strict=True):
                assert torch.equal(generation(model, batch, 12, greedy=True)(), expected), (name, batch)


def row(case: str, times: Times, scale: float, digits: int) -> str:
    """One line of a table: scale / seconds of each, and the fastest of theirs over each of ours."""
    cells = [f"{scale / seconds if scale else seconds:.{digits}f}" for seconds in times.values()]
    others = [seconds for name, seconds in times.items() if name.startswith("theirs")]
    ratio = [f"{min(others) / seconds:.2f}" for name, seconds in times.items() if others and name.startswith("ours")]
    line = "| " + " | ".join([case, *cells, *ratio]) + " |"
    print(line, file=sys.stderr, flush=True)
    return line


def table(first: str, names: list[str], rows: list[str]) -> str:
    """A table with its heading."""
    faster = [f"times faster, {name}" for name in names if name.startswith("ours")]
    heading = [first, *names, *(faster if any(name.startswith("theirs") for name in names) else [])]
    return "\n".join(["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|", *rows])


def main() -> None:
    """Measure all, and write docs/benchmarks/lm.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audiocraft", type=Path, metavar="CLONE")
    parser.add_argument("--quick", action="store_true", help="short clips, and no page")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", choices=("training", "generation"))
    parser.add_argument("--kept-memory", action="store_true", help="keep freed memory, as commands of ours do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kept_memory:
        keep_freed_memory()
    modules = load(options.audiocraft) if options.audiocraft else None
    rounds, lengths = options.rounds, (50,) if options.quick else (150, 500)
    updates: list[str] = []
    tokens: list[str] = []
    for size_name in options.sizes:
        size = SIZES[size_name]
        models: dict[str, Any] = {"ours": ours(size)}
        if modules is not None:
            state = models["ours"].state_dict()
            models |= {name: theirs(modules, size, name, state) for name in ATTENTION}
        check(models, size["bins"])
        # By default theirs projects all past keys again at each step: minutes for 500 frames.
        fast = {name: model for name, model in models.items() if name != "theirs, default"}
        cases = [(batch, frames, False) for frames in lengths for batch in (1, 4, 8) if batch == 1 or frames < 500]
        for batch, frames, greedy in [(1, lengths[0], True), *cases]:
            if options.only != "training":
                runs: dict[str, Run] = {m: generation(fast[m], batch, frames, greedy=greedy) for m in fast}
                runs[BFLOAT16] = in_bfloat16(runs["ours"])
                case = f"{size_name}, {batch} × {frames}, {'greedy' if greedy else 'top-k 250'}"
                times = in_turns(runs, rounds, warm=False)
                tokens.append(row(case, times, batch * frames * K, 0))
        codes = torch.randint(size["bins"], (size["batch"], K, STEPS))
        if options.only != "generation":
            steps = {name: training(m, our_loss if name == "ours" else their_loss, codes) for name, m in models.items()}
            steps[FUSED] = training(models["ours"], our_loss, codes, fused=True)
            times = in_turns(steps, rounds, warm=True)
            updates.append(row(f"{size_name}, {size['batch']} × {STEPS}", times, 0, 3))
    command = "benchmarks.lm" + " --audiocraft CLONE" * (modules is not None) + " --kept-memory" * options.kept_memory
    columns = [name for name in ("ours", *ATTENTION) if modules is not None or name == "ours"]
    page = "\n\n".join(
        [
            "# The language model beside AudioCraft's",
            where(command),
            "Seconds of an update (forward, backward, AdamW), clips × frames:",
            table("model", [*columns, FUSED], updates),
            "Codes per second of a whole call of `generate`, clips × frames:",
            table("model", [*(name for name in columns if name != "theirs, default"), BFLOAT16], tokens),
        ]
    )
    print(page) if options.quick else write_page("lm.md", page + "\n")


if __name__ == "__main__":
    main()
