"""Peak memory of the MMD step by the number of gathered batches: `python -m benchmarks.macro_batch`.

Every measurement is a process of its own.
"""

import json
import sys

import torch

from audiotok.losses import MMDLoss
from audiotok.models.encodec import EncodecModel
from audiotok.modules.seanet import SEANetDecoder, SEANetEncoder
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers.macro_batch import MacroBatch, stream_mmd
from benchmarks.machine import Figures, in_turns, measured, where, write_page

CLIPS, SAMPLE_RATE, HOP, DIM, N_Q = 2, 32000, 640, 128, 4
COUNTS = (1, 4, 16, 64)
WHOLE_UP_TO = 16  # batches in one graph
MIB = 2**20
# Freed blocks go back to the system: otherwise the peak shows how the C library cuts up its heap.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}


def codec() -> EncodecModel:
    """The 32 kHz model at a quarter of its width, with four codebooks of 256."""
    torch.manual_seed(0)
    sizes = {"channels": 1, "dimension": DIM, "n_filters": 16, "ratios": [8, 5, 4, 4], "lstm": 2, "norm": "weight_norm"}
    sizes |= {"n_residual_layers": 3, "pad_mode": "reflect"}
    quantizer = ResidualVectorQuantizer(dimension=DIM, n_q=N_Q, bins=256, kmeans_init=False)
    encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**{**sizes, "n_filters": 2})  # the decoder takes no part
    return EncodecModel(
        encoder, decoder, quantizer, frame_rate=SAMPLE_RATE / HOP, sample_rate=SAMPLE_RATE, channels=1
    ).train()


def batch(index: int) -> torch.Tensor:
    """Noise of one second, [B, 1, T]."""
    generator = torch.Generator().manual_seed(index)
    return 0.1 * torch.randn(CLIPS, 1, SAMPLE_RATE, generator=generator)


def step(model: EncodecModel, count: int) -> None:
    """Gather batches and take the MMD step."""
    macro = MacroBatch(MMDLoss("median", "unbiased"), "residual", count, seed=0)
    for index in range(count):
        macro.add(batch(index))
    macro.value(model, weight=1.0)


def one_graph(model: EncodecModel, count: int) -> None:
    """The same gradient from one graph."""
    latent, _ = model.encode_latent(torch.cat([batch(index) for index in range(count)]))
    generator = torch.Generator().manual_seed(0)
    stream_mmd(MMDLoss("median", "unbiased"), model, latent, "residual", generator).backward()


def mmd_alone(model: EncodecModel, count: int) -> None:
    """The MMD of as many latents and its gradient with respect to them, without the encoder."""
    latent = torch.randn(CLIPS * count, DIM, SAMPLE_RATE // HOP, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    stream_mmd(MMDLoss("median", "unbiased"), model, latent, "residual", generator).backward()


METHODS = {"step": step, "graph": one_graph, "mmd": mmd_alone}


def one(method: str, count: int) -> Figures:
    """Figures of one method; the model and its gradients are there before."""
    model = codec()
    if method != "mmd":
        model.encode_latent(batch(0)[:, :, : 10 * HOP])[0].sum().backward()
    return measured(lambda: METHODS[method](model, count))


def table() -> list[str]:
    """Markdown rows by number of batches."""
    lines = [
        "| batches | waveforms | latents | MMD alone | MMD step | one graph | MMD step, time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count in COUNTS:
        names = ["step", "mmd", *(["graph"] if count <= WHOLE_UP_TO else [])]
        rows = in_turns("benchmarks.macro_batch", [(n, count) for n in names], 1, **ENVIRONMENT)
        found = dict(zip(names, rows, strict=True))
        waveforms = 4 * CLIPS * count * SAMPLE_RATE / MIB
        whole = f"{found['graph']['mib']:.0f} MiB" if "graph" in found else "–"
        lines.append(
            f"| {count} | {waveforms:.1f} MiB | {waveforms / HOP * DIM:.1f} MiB | {found['mmd']['mib']:.0f} MiB "
            f"| {found['step']['mib']:.0f} MiB | {whole} | {found['step']['seconds']:.3g} s |"
        )
    return lines


PAGE = """# Memory of the MMD step

{where}

Peak memory above that of the model and its gradients, in processes of their own. Batches of {clips} clips of 1 s at
32 kHz, the encoder of the 32 kHz model at a quarter of its width, {n_q} codebooks. `one graph` gives the same gradient
without caching; `MMD alone` takes latents of the same shape and has no encoder.

{table}

The encoder's activations are those of one batch, whatever the number. What grows is what has to be there for all
batches: waveforms, latents and, while the MMD is differentiated, its streams ([N, K, D], so K times the latents) with
their shuffled copy and gradients.
"""


def main() -> None:
    """Write docs/benchmarks/macro_batch.md and print it; with --one METHOD COUNT, one measurement as JSON."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
    else:
        page = PAGE.format(table="\n".join(table()), where=where("benchmarks.macro_batch"), clips=CLIPS, n_q=N_Q)
        write_page("macro_batch.md", page)


if __name__ == "__main__":
    main()
