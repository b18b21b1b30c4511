"""AudioCraft → audiotok → AudioCraft on the three shapes of its codecs, by AudioCraft itself, from a clone.

`python -m benchmarks.interchange CLONE`: weights have to be equal bit by bit, codes equal, audio within 1e-5. Random
weights, codebooks spread as the latents are; sizes of the released models. It needs the package einops.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor

from audiotok.export.formats import AUDIOCRAFT_FILE, export_model
from audiotok.models import CompressionModel
from benchmarks.audiocraft import import_audiocraft

NAMES = ("modules", "models.encodec", "models.builders", "models.loaders")
WITHOUT = (
    *("modules.conditioners", "modules.jasco_conditioners", "modules.diffusion_schedule", "modules.codebooks_patterns"),
    *("models.lm", "models.lm_magnet", "models.flow_matching", "models.unet", "models.watermark"),
)
_SHARED = {
    "activation": "ELU",
    "activation_params": {"alpha": 1.0},
    "n_residual_layers": 1,
    "lstm": 2,
    "dimension": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
    "mono 32 kHz": {
        "encodec": {"sample_rate": 32000, "channels": 1, "causal": False, "renormalize": False},
        "seanet": {"n_filters": 64, "ratios": [8, 5, 4, 4], "norm": "weight_norm", "pad_mode": "constant"},
        "rvq": {"n_q": 4, "bins": 2048},
    },
    "causal 24 kHz": {
        "encodec": {"sample_rate": 24000, "channels": 1, "causal": True, "renormalize": False},
        "seanet": {"n_filters": 32, "ratios": [8, 5, 4, 2], "norm": "weight_norm", "pad_mode": "reflect"},
        "rvq": {"n_q": 32, "bins": 1024, "q_dropout": True},
    },
    "stereo 48 kHz": {
        "encodec": {"sample_rate": 48000, "channels": 2, "causal": False, "renormalize": True},
        "seanet": {"n_filters": 32, "ratios": [8, 5, 4, 2], "norm": "time_group_norm", "pad_mode": "reflect"},
        "rvq": {"n_q": 16, "bins": 1024},
    },
}


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path, help="of AudioCraft")
    _, encodec, builders, loaders = import_audiocraft(parser.parse_args().clone, NAMES, without=WITHOUT)
    alike = True
    for shape, sections in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            found = _there_and_back(sections, Path(folder), encodec, builders, loaders)
        print(f"{shape}: {', '.join(f'{name} {value}' for name, value in found.items())}", flush=True)
        alike = alike and bool(found["weights equal"]) and not found["codes that differ"]
    sys.exit(not alike)


def _there_and_back(
    sections: dict[str, Any], folder: Path, encodec: Any, builders: Any, loaders: Any
) -> dict[str, Any]:
    own = {side: sections["encodec"][side] for side in ("channels", "causal")}
    seanet = {**_SHARED, **sections["seanet"], **own, "encoder": {}, "decoder": {}}
    networks = {"autoencoder": "seanet", "quantizer": "rvq", **sections["encodec"]}
    cfg = {"compression_model": "encodec", "encodec": networks, "seanet": seanet, "rvq": sections["rvq"]}
    torch.manual_seed(0)
    theirs = builders.get_compression_model(OmegaConf.create({**cfg, "device": "cpu"})).eval()
    wav = torch.randn(2, theirs.channels, theirs.sample_rate + 123) * 0.2
    _spread(theirs, wav)
    content = {"best_state": theirs.state_dict(), "xp.cfg": yaml.safe_dump(cfg), "version": "1.4.0a2", "exported": True}
    torch.save(content, folder / "theirs.bin")
    ours = CompressionModel.get_pretrained(folder / "theirs.bin")
    out = export_model(folder / "theirs.bin", "audiocraft", folder / "ours")
    back = encodec.CompressionModel.get_pretrained(str(out))  # a folder, as MusicGen has one
    file = loaders.load_compression_model(str(out / AUDIOCRAFT_FILE))
    weights = [model.state_dict() for model in (theirs, ours, back, file)]
    equal = all(
        list(other) == list(weights[0]) and all(torch.equal(other[name], value) for name, value in weights[0].items())
        for other in weights[1:]
    )
    (codes, scale), *others = [model.encode(wav) for model in (theirs, ours, back)]
    wavs = [model.decode(codes, scale) for model in (theirs, ours, back)]
    return {
        "weights equal": equal,
        "codes": codes.numel(),
        "in use": len(codes.unique()),
        "codes that differ": sum(int((codes != other).sum()) for other, _ in others),
        "largest difference of audio": max(float((each - wavs[0]).abs().max()) for each in wavs[1:]),
    }


def _spread(model: Any, wav: Tensor) -> None:
    latent = model.encoder(model.preprocess(wav)[0]).transpose(1, 2).reshape(-1, model.encoder.dimension)
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        book.embed.copy_(latent.mean(0) + latent.std(0) * torch.randn_like(book.embed))
        book.embed_avg.copy_(book.embed)
        book.cluster_size.fill_(1)
        book.inited.fill_(1)
        latent = latent - book.decode(book.encode(latent[None])[0])


if __name__ == "__main__":
    main()
