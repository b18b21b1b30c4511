"""The codec that comes with the package: its weights file from the trained experiment, and the figures of its card.

`make demo-codec` trains the preset compression/demo_codec and calls this. The evaluate stage is that of the preset
compression/demo_mmd, on the held-out tracks: once with the weights as trained, once with those of the file, float16.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

import torch

from audiotok import train
from audiotok.checkpoint import load_checkpoint, own_models, resolve_checkpoint
from audiotok.models import CompressionModel
from audiotok.results.metrics import METRICS
from audiotok.utils.export import export_encodec
from benchmarks.machine import where

OVERRIDES = ["solver=compression/demo_codec", "device=cpu"]
CARD = own_models()["demo"].with_suffix(".md")
_FIGURES = re.compile(r"(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)


def measured(source: Path) -> dict[str, float]:
    """Metrics of the evaluate stage for the weights of a file."""
    overrides = ["solver=compression/demo_mmd", "device=cpu", f"continue_from='{source.absolute()}'"]
    xp = train.main.get_xp(overrides)
    with xp.enter():
        solver = train.get_solver(xp.cfg)
        solver.restore()
        return {name: float(value) for name, value in solver.run_one_stage("evaluate").items()}


@torch.no_grad()
def equal_codes(one: Path, other: Path) -> list[float]:
    """Share of equal codes between two files on the held-out clips, for each codebook."""
    xp = train.main.get_xp(["solver=compression/demo_mmd", "device=cpu", "continue_from=null"])
    models = [CompressionModel.get_pretrained(path) for path in (one, other)]
    with xp.enter():
        batches = [wav for wav, _ in train.get_solver(xp.cfg).dataloaders["evaluate"]]
    equal = [(models[0].encode(wav)[0] == models[1].encode(wav)[0]).float() for wav in batches]
    return [float(share) for share in torch.cat(equal).mean(dim=(0, 2))]


def figures(checkpoint: Path, weights: Path) -> str:
    """The part of the card that is measured, as Markdown."""
    history = load_checkpoint(checkpoint)["history"]
    trained, shipped = measured(checkpoint), measured(weights)
    names = [name for name in METRICS if name in shipped and name not in ("duration", "protocol")]
    rows = [f"| {name} | {trained[name]:.4g} | {shipped[name]:.4g} | {METRICS[name].unit} |" for name in names]
    hours = sum(stage.get("duration", 0.0) for epoch in history for stage in epoch.values()) / 3600
    updates = len(history) * train.main.get_xp(OVERRIDES).cfg.optim.updates_per_epoch
    shares = ", ".join(f"{share:.4f}" for share in equal_codes(checkpoint, weights))
    return "\n".join(
        (
            f"{len(history)} epochs, {updates} updates, {hours:.1f} hours of training on the machine below.",
            "",
            "| evaluate | as trained | this file | unit |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Codes that agree between the two, by codebook: {shares}.",
            f"SHA-256 of the file: {hashlib.sha256(weights.read_bytes()).hexdigest()}.",
            "",
            where("benchmarks.demo_codec"),
            "",
        )
    )


def main() -> None:
    """Write weights and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="default: that of the experiment of `make demo-codec`")
    args = parser.parse_args()
    checkpoint = resolve_checkpoint(args.checkpoint or f"//sig/{train.main.get_xp(OVERRIDES).sig}")
    weights = export_encodec(checkpoint, own_models()["demo"], half=True)
    text = figures(checkpoint, weights)
    CARD.write_text(_FIGURES.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", CARD.read_text()))
    print(json.dumps({"weights": str(weights), "bytes": weights.stat().st_size, "card": str(CARD)}), text, sep="\n\n")


if __name__ == "__main__":
    main()
