"""The hash of a codec, by which tokens know the codec that made them."""

import hashlib
import json

import torch
from torch import nn

from audiotok.models.encodec import CompressionModel

_OF_TRAINING = (".inited", ".cluster_size", ".embed_avg")  # buffers of codebooks that no code depends on
_OWN_LAYERS = "audiotok.modules.conv"  # its convolutions are torch's, in another order of memory
# What decides codes and audio beside the weights; by name, so that a new attribute of a class changes no hash.
_ATTRIBUTES = (
    "alpha", "causal", "channels", "dilation", "eps", "frame_rate", "groups", "kernel_size", "negative_slope",
    "num_groups", "pad_mode", "padding", "renormalize", "sample_rate", "skip", "stride", "trim_left", "trim_right",
)  # fmt: skip


def codec_hash(model: CompressionModel) -> str:
    """SHA-256, 64 hex digits, over what decides a codec's codes and audio.

    That are its weights by name, shape and value, and what its layers are and do with them. A training checkpoint's
    best state and its exported file have the same one (a file in float16 another: its weights are rounded). Buffers
    that only training uses do not count, nor does how many codebooks are in use, the mode or the device.
    """
    digest = hashlib.sha256(b"audiotok codec 1\n")
    for name, module in model.named_modules():
        layer = next(each for each in type(module).__mro__ if each.__module__ != _OWN_LAYERS)
        of_torch = layer.__module__.startswith("torch.nn.") and layer is not nn.Module
        kind = layer.__name__ if of_torch else ""  # such as ELU
        values = {key: value for key in _ATTRIBUTES if _plain(value := getattr(module, key, None))}
        if kind or values:
            digest.update(f"{name} {kind} {json.dumps(values, sort_keys=True)}\n".encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith(_OF_TRAINING):
            held = value.detach().cpu().contiguous()
            digest.update(f"{name} {list(held.shape)} {held.dtype}\n".encode())
            digest.update(memoryview(held.flatten().view(torch.uint8).numpy()) if held.numel() else b"")
    return digest.hexdigest()


def _plain(value: object) -> bool:
    """Whether a value is a number, a text, or several of them."""
    return isinstance(value, int | float | str) or (isinstance(value, tuple) and all(map(_plain, value)))
