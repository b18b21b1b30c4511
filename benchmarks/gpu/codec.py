"""Encoding and decoding on a device, codes beside those of the CPU, and the loader alone."""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from audiotok.models.encodec import EncodecModel, get_compression_model
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers import CompressionSolver
from benchmarks.gpu.device import TF32_MODES, Setting, apart, seconds, table, tf32
from benchmarks.gpu.solvers import SMALL, batch_of, one_batch, solver_on


def codec(setting: Setting) -> Iterator[list[str]]:
    """Encoding and decoding: seconds of audio a second, and codes beside those of the CPU."""
    overrides = [batch_of(setting, 64), f"dataset.num_workers={setting.pick(8, 0)}"]
    with TemporaryDirectory() as folder, solver_on(setting, folder, *overrides) as one:
        one.run_step(one_batch(one))  # k-means puts the codebooks where the latents are
        model = one.model.eval()
        wav = one_batch(one)
        model.eval()
    rows: list[tuple[object, ...]] = []
    long = wav[:16].repeat(1, 1, 10)
    for batch, length_s in ((wav, 1), (long, 10), (long[:1], 10)):
        name = f"{len(batch)} × {length_s} s"
        for mode in TF32_MODES:
            with torch.no_grad(), tf32(mode):
                codes, _ = model.encode(batch)
                length = len(batch) * batch.shape[-1] / model.sample_rate
                encoding = seconds(partial(model.encode, batch), setting.device)
                decoding = seconds(partial(model.decode, codes), setting.device)
            rows.append((name, mode, length / encoding, length / decoding))
        lines = table(["clips", "mode", "encodes, s of audio a second", "decodes"], rows)
        yield lines
    yield [*lines, *_codes_beside_cpu(setting, one, wav[: setting.pick(16, 2)])]


def _codes_beside_cpu(setting: Setting, one: CompressionSolver, wav: Tensor) -> list[str]:
    reference = get_compression_model(one.cfg)
    assert isinstance(reference, EncodecModel)
    reference.load_state_dict(one.model.state_dict())
    reference.eval()
    rows = []
    with torch.no_grad():
        latent = reference.encode_latent(wav.cpu())[0]
        wanted = reference.encode(wav.cpu())[0]
        audio = reference.decode(wanted)
        for mode in TF32_MODES:
            with tf32(mode):
                codes = one.model.encode(wav)[0].cpu()
                difference = apart(one.model.encode_latent(wav)[0], latent)
                heard = apart(one.model.decode(wanted.to(setting.device)), audio)
            differ, margin = _first_differences(reference, latent, wanted, codes)
            rows.append((mode, f"{int((codes == wanted).sum())} of {codes.numel()}", differ, margin, difference, heard))
    header = ["mode", "codes equal to the CPU's", "frames that differ", "largest margin there", "latent", "decoded"]
    return table(header, rows)


def _first_differences(model: EncodecModel, latent: Tensor, wanted: Tensor, found: Tensor) -> tuple[str, float]:
    """Frames whose codes differ, and by how much the other code is farther, relatively, where a frame first differs."""
    assert isinstance(model.quantizer, ResidualVectorQuantizer)
    residual, alike = latent.transpose(1, 2).double(), torch.ones_like(wanted[:, 0], dtype=torch.bool)
    margin = 0.0
    for index, codebook in enumerate(model.quantizer.vq.codebooks(wanted.shape[1])):
        ours, theirs = (codebook.embed.double()[codes[:, index]] for codes in (wanted, found))
        new = alike & (wanted[:, index] != found[:, index])
        near, far = ((residual - vectors).square().sum(-1)[new] for vectors in (ours, theirs))
        margin = max([margin, *((far - near) / near).abs().tolist()])
        alike &= ~new
        residual = residual - ours
    return f"{int((~alike).sum())} of {alike.numel()}", margin


def loader(setting: Setting) -> Iterator[list[str]]:
    """Batches a second of the loader alone, and how long a batch takes to the device."""
    rows: list[tuple[object, ...]] = []
    for workers in setting.pick((0, 4, 8, 15), (0,)):
        count = setting.pick(10 if workers == 0 else 60, 2)
        overrides = [batch_of(setting, 64), f"dataset.num_workers={workers}", f"optim.updates_per_epoch={count + 8}"]
        with (
            TemporaryDirectory() as folder,
            solver_on(setting, folder, *overrides, *([] if setting.tiny else SMALL)) as one,
        ):
            batches = iter(one.dataloaders["train"])
            for _ in itertools.islice(batches, setting.pick(8, 1)):
                pass  # the workers start, and fill what is read ahead
            start = time.perf_counter()
            read = sum(1 for _ in itertools.islice(batches, count))
            rows.append((workers, read / (time.perf_counter() - start)))
        lines = table(["workers", f"batches of {setting.clips(64)} clips a second"], rows)
        yield lines
    if setting.device.type == "cuda":
        wav = torch.randn(64, 1, 32000)
        copies = []
        for name, batch in (("pageable, as it is", wav), ("pinned", wav.pin_memory())):
            copies.append((name, 1e3 * seconds(partial(batch.to, setting.device), setting.device, 20)))
        yield [*lines, *table(["a batch to the device", "ms"], copies)]
