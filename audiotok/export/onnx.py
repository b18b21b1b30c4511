"""EnCodec as two ONNX graphs, encoder and decoder, for onnxruntime on any device and in browsers.

The graphs are written layer by layer rather than traced, so that every length works: also one that is no multiple of
the hop, or shorter than what is reflected. Weights are folded, as they are at inference. Operators are those of ONNX
opset 17: https://onnx.ai/onnx/operators.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiotok import __version__
from audiotok.errors import AudiotokError, ConfigError
from audiotok.files import replacing, write_text
from audiotok.models.encodec import SILENCE, EncodecModel
from audiotok.modules import StreamableConv1d, StreamableConvTranspose1d, StreamableLSTM
from audiotok.modules.seanet import SEANetDecoder, SEANetEncoder, SEANetResnetBlock
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.quantization.rvq import EuclideanCodebook

OPSET = 17
_IR_VERSION = 8  # the one that came with this opset
_MAX_BYTES = 2**31 - 2**20  # of a protobuf file
_SAME = {"Identity": "", "ReLU": "Relu", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "Softplus": "Softplus"}
_ALLOWED = ", ".join(["ELU", "LeakyReLU", "SiLU", "GELU", *_SAME])


def write_onnx(model: EncodecModel, folder: Path, *, half: bool = False) -> None:
    """Write `encoder.onnx`, `decoder.onnx` and `audiotok.json`, which describes them, each in one step.

    The encoder takes `wav` float32 [B, C, T], T from 1 up, and gives `codes` int64 [B, K, T'] and, if the model
    renormalises, `scale` float32 [B, 1]; the decoder takes these and gives `wav` [B, C, T' * hop]. K is the number of
    codebooks in use. B and T are free. `one_pass` of audiotok.json is whether all of a sound counts in each frame, so
    that pieces of it have other codes.

    Args:
        model: on the CPU, in evaluation mode.
        folder: where to write; made if it is missing.
        half: weights as float16 in the files, which a runtime makes float32 again when it loads them.

    Raises:
        ConfigError: naming the key, if the model has no codes or an activation that is not in the table here.
        AudiotokError: if the package onnx is missing, or the model does not fit an ONNX file.
        OSError: if the disk refuses.
    """
    _onnx()
    if not isinstance(model.quantizer, ResidualVectorQuantizer):
        raise ConfigError("encodec.quantizer=no_quant has no codes; only models with rvq become ONNX files.")
    both = {"encoder": _encoder(model, half), "decoder": _decoder(model, half)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in both.items():
        if (size := made.ByteSize()) > _MAX_BYTES:
            raise AudiotokError(f"the {name} has {size / 2**30:.3g} GiB; an ONNX file holds 2: choose half")
        with replacing(folder / f"{name}.onnx") as draft:
            draft.write_bytes(made.SerializeToString())
    about = {"format": "onnx", "version": 1, "audiotok": __version__, "opset": OPSET, "half": half}
    about |= {"sample_rate": model.sample_rate, "channels": model.channels, "frame_rate": model.frame_rate}
    about |= {"n_q": model.num_codebooks, "bins": model.cardinality, "renormalize": model.renormalize}
    about["one_pass"] = model.renormalize or any(isinstance(layer, nn.GroupNorm) for layer in model.modules())
    write_text(folder / "audiotok.json", json.dumps(about, indent=1))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise AudiotokError(
            "ONNX files need the package onnx, which is not installed: pip install 'audiotok[onnx]'"
        ) from error
    return onnx


class _Graph:
    """A graph under construction: values go by their names."""

    def __init__(self, half: bool) -> None:
        self._helper, self._half = _onnx().helper, half
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._whole: dict[tuple[int, ...], str] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """The first output of a new node; `""` among the inputs leaves an optional one out."""
        names = [f"{kind.lower()}_{len(self._nodes)}", *[""] * (outputs - 1)]
        self._nodes.append(self._helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def weight(self, value: Tensor, *, exact: bool = False) -> str:
        """A tensor of weights; `exact` ones are float32 whatever the file's others are."""
        name, value = f"weight_{len(self._weights)}", value.detach().cpu()
        stored = value.half() if self._half and not exact else value.float()
        self._weights.append(_onnx().numpy_helper.from_array(stored.contiguous().numpy(), name))
        return name if stored.dtype == torch.float32 else self.op("Cast", name, to=_onnx().TensorProto.FLOAT)

    def whole(self, *values: int) -> str:
        """A constant of whole numbers [N]."""
        if values not in self._whole:
            name = f"whole_{len(self._whole)}"
            self._weights.append(_onnx().numpy_helper.from_array(torch.tensor(values).numpy(), name))
            self._whole[values] = name
        return self._whole[values]

    def index(self, value: int) -> str:
        """A constant without axes."""
        return self.op("Squeeze", self.whole(value))

    def length(self, x: str) -> str:
        """Length [1] of the last axis of x [B, C, T]."""
        return self.op("Gather", self.op("Shape", x), self.whole(2))

    def model(
        self, name: str, inputs: dict[str, tuple[Any, ...]], outputs: dict[str, tuple[str, tuple[Any, ...]]]
    ) -> Any:
        """The finished model; inputs by name with their shapes, outputs with the values they are, too."""
        for given, (value, _) in outputs.items():
            self._nodes.append(self._helper.make_node("Identity", [value], [given]))
        shapes = {**inputs, **{given: shape for given, (_, shape) in outputs.items()}}
        infos = {given: self._info(given, shape) for given, shape in shapes.items()}
        graph = self._helper.make_graph(
            self._nodes, name, [infos[key] for key in inputs], [infos[key] for key in outputs], self._weights
        )
        opset = self._helper.make_opsetid("", OPSET)
        options = {"ir_version": _IR_VERSION, "producer_name": "audiotok", "producer_version": __version__}
        return self._helper.make_model(graph, opset_imports=[opset], **options)

    def _info(self, name: str, shape: tuple[Any, ...]) -> Any:
        types = _onnx().TensorProto
        return self._helper.make_tensor_value_info(name, types.INT64 if name == "codes" else types.FLOAT, shape)


def _encoder(model: EncodecModel, half: bool) -> Any:
    graph, wav, outputs = _Graph(half), "wav", {}
    if model.renormalize:
        mixed = graph.op("ReduceMean", wav, axes=[1], keepdims=1)  # [B, 1, T]
        volume = graph.op("Sqrt", graph.op("ReduceMean", graph.op("Mul", mixed, mixed), axes=[2], keepdims=1))
        scale = graph.op("Add", volume, graph.weight(torch.tensor([SILENCE]), exact=True))
        wav = graph.op("Div", wav, scale)
        outputs["scale"] = (graph.op("Squeeze", scale, graph.whole(2)), ("batch", 1))
    frames = graph.op("Transpose", _layer(graph, model.encoder, wav), perm=[0, 2, 1])  # [B, T', D]
    codes = _codes(graph, _codebooks(model), frames)
    made: dict[str, tuple[str, tuple[Any, ...]]] = {"codes": (codes, ("batch", model.num_codebooks, "frames"))}
    return graph.model("encoder", {"wav": ("batch", model.channels, "samples")}, {**made, **outputs})


def _decoder(model: EncodecModel, half: bool) -> Any:
    graph, total = _Graph(half), ""
    for index, codebook in enumerate(_codebooks(model)):
        codes = graph.op("Gather", "codes", graph.index(index), axis=1)  # [B, T']
        found = graph.op("Gather", graph.weight(codebook.embed), codes)  # [B, T', D]
        total = graph.op("Add", total, found) if total else found
    wav = _layer(graph, model.decoder, graph.op("Transpose", total, perm=[0, 2, 1]))
    inputs: dict[str, tuple[Any, ...]] = {"codes": ("batch", model.num_codebooks, "frames")}
    if model.renormalize:
        inputs["scale"] = ("batch", 1)
        wav = graph.op("Mul", wav, graph.op("Unsqueeze", "scale", graph.whole(2)))
    return graph.model("decoder", inputs, {"wav": (wav, ("batch", model.channels, "samples"))})


def _codebooks(model: EncodecModel) -> list[EuclideanCodebook]:
    quantizer = model.quantizer
    assert isinstance(quantizer, ResidualVectorQuantizer)
    return quantizer.vq.codebooks(quantizer.num_codebooks)


def _codes(graph: _Graph, codebooks: list[EuclideanCodebook], residual: str) -> str:
    """Codes [B, K, T'] of frames [B, T', D]: what each codebook leaves over is the next one's."""
    codes = []
    for codebook in codebooks:
        vectors = graph.weight(codebook.embed)
        norms = graph.op("ReduceSum", graph.op("Mul", vectors, vectors), graph.whole(1), keepdims=0)
        own = graph.op("ReduceSum", graph.op("Mul", residual, residual), graph.whole(2), keepdims=1)
        product = graph.op("MatMul", residual, graph.op("Transpose", vectors, perm=[1, 0]))
        twice = graph.op("Mul", product, graph.weight(torch.tensor(2.0), exact=True))
        distances = graph.op("Add", graph.op("Sub", own, twice), norms)  # in the order of audiotok.quantization.kmeans
        codes.append(graph.op("ArgMin", distances, axis=2, keepdims=0))
        if codebook is not codebooks[-1]:
            residual = graph.op("Sub", residual, graph.op("Gather", vectors, codes[-1]))
    return graph.op("Concat", *(graph.op("Unsqueeze", each, graph.whole(1)) for each in codes), axis=1)


def _layer(graph: _Graph, layer: nn.Module, x: str) -> str:
    """What a layer makes of x [B, C, T]."""
    if isinstance(layer, nn.Sequential):
        for each in layer:
            x = _layer(graph, each, x)
        return x
    if isinstance(layer, SEANetEncoder | SEANetDecoder):
        return _layer(graph, layer.model, x)
    if isinstance(layer, SEANetResnetBlock):
        return graph.op("Add", _layer(graph, layer.shortcut, x), _layer(graph, layer.block, x))
    if isinstance(layer, StreamableConv1d):
        return _conv(graph, layer, x)
    if isinstance(layer, StreamableConvTranspose1d):
        return _transposed(graph, layer, x)
    if isinstance(layer, StreamableLSTM):
        return _lstm(graph, layer, x)
    return _activation(graph, layer, x)


def _conv(graph: _Graph, layer: StreamableConv1d, x: str) -> str:
    conv = layer.conv.conv
    right = 0 if layer.causal else layer.padding // 2
    left, pads = layer.padding - right, (0, 0)
    if layer.stride == 1 and (layer.pad_mode == "constant" or not layer.padding):
        pads = (left, right)
    else:
        x = _padded(graph, x, left, right, layer.stride, layer.pad_mode)
    sizes: dict[str, Any] = {
        "kernel_shape": [*conv.kernel_size],
        "strides": [*conv.stride],
        "dilations": [*conv.dilation],
    }
    x = graph.op("Conv", x, *_folded(graph, conv), pads=[*pads], group=conv.groups, **sizes)
    return _normalised(graph, layer.conv.norm, x)


def _padded(graph: _Graph, x: str, left: int, right: int, stride: int, mode: str) -> str:
    """Pad the last axis, and the right end until the last window is full; see `audiotok.modules.conv`."""
    length, before, none = graph.length(x), graph.whole(left), graph.whole(0, 0)
    missing = graph.op("Mod", graph.op("Neg", length), graph.whole(stride))  # from 0 up: it has the sign of the stride
    after = graph.op("Add", missing, graph.whole(right))
    pads = graph.op("Concat", none, before, none, after, axis=0)
    if mode != "reflect":
        return graph.op("Pad", x, pads, mode={"constant": "constant", "replicate": "edge"}[mode])
    # A mirror needs more samples than it reflects: zeros are lent to it, and as many samples taken away afterwards.
    needed = graph.op("Add", graph.op("Max", before, after), graph.whole(1))
    short = graph.op("Max", graph.op("Sub", needed, length), graph.whole(0))
    lent = graph.op("Pad", x, graph.op("Concat", none, graph.whole(0), none, short, axis=0), mode="constant")
    mirrored = graph.op("Pad", lent, pads, mode="reflect")
    end = graph.op("Add", graph.op("Add", before, length), after)
    return graph.op("Slice", mirrored, graph.whole(0), end, graph.whole(2))


def _transposed(graph: _Graph, layer: StreamableConvTranspose1d, x: str) -> str:
    conv, left, right = layer.convtr.convtr, layer.trim_left, layer.trim_right
    late = isinstance(layer.convtr.norm, nn.GroupNorm)  # what is trimmed counts in the mean
    sizes: dict[str, Any] = {
        "kernel_shape": [*conv.kernel_size],
        "strides": [*conv.stride],
        "dilations": [*conv.dilation],
    }
    pads = [0, 0] if late else [left, right]
    x = graph.op("ConvTranspose", x, *_folded(graph, conv), pads=pads, group=conv.groups, **sizes)
    if not late:
        return x
    x = _normalised(graph, layer.convtr.norm, x)
    end = graph.op("Sub", graph.length(x), graph.whole(right))
    return graph.op("Slice", x, graph.whole(left), end, graph.whole(2))


def _folded(graph: _Graph, conv: nn.Conv1d | nn.ConvTranspose1d) -> list[str]:
    """Weight and bias of a convolution, the weight as its normalisation makes it."""
    with torch.no_grad():
        for hook in conv._forward_pre_hooks.values():  # weight_norm and spectral_norm set `weight` so
            hook(conv, ())
    return [graph.weight(value) for value in (conv.weight, conv.bias) if value is not None]


def _normalised(graph: _Graph, norm: nn.Module, x: str) -> str:
    if isinstance(norm, nn.Identity):
        return x
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
    apart = graph.op("Sub", x, _mean(graph, x))
    variance = _mean(graph, graph.op("Mul", apart, apart))
    spread = graph.op("Sqrt", graph.op("Add", variance, graph.weight(torch.tensor(norm.eps), exact=True)))
    scaled = graph.op("Mul", graph.op("Div", apart, spread), graph.weight(norm.weight[:, None]))
    return graph.op("Add", scaled, graph.weight(norm.bias[:, None]))


def _mean(graph: _Graph, x: str) -> str:
    """Mean [B, 1, 1] of x [B, C, T]: of means, which rounds less than one long sum."""
    return graph.op("ReduceMean", graph.op("ReduceMean", x, axes=[2], keepdims=1), axes=[1], keepdims=1)


def _lstm(graph: _Graph, layer: StreamableLSTM, x: str) -> str:
    first = frames = graph.op("Transpose", x, perm=[2, 0, 1])  # [T, B, D]
    for index in range(layer.lstm.num_layers):
        names = (f"{kind}_l{index}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        weights = [_gates(getattr(layer.lstm, name)) for name in names]
        both = torch.cat(weights[2:])[None]  # [1, 8 D]
        inputs = [graph.weight(weights[0][None]), graph.weight(weights[1][None]), graph.weight(both)]
        every = graph.op("LSTM", frames, *inputs, hidden_size=layer.lstm.hidden_size)  # [T, 1, B, D]
        frames = graph.op("Squeeze", every, graph.whole(1))
    if layer.skip:
        frames = graph.op("Add", frames, first)
    return graph.op("Transpose", frames, perm=[1, 2, 0])


def _gates(weight: Tensor) -> Tensor:
    """Input, forget, cell and output gates of torch in the order of ONNX: input, output, forget, cell."""
    i, f, c, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, c])


def _activation(graph: _Graph, layer: nn.Module, x: str) -> str:
    if isinstance(layer, nn.ELU):
        return graph.op("Elu", x, alpha=float(layer.alpha))
    if isinstance(layer, nn.LeakyReLU):
        return graph.op("LeakyRelu", x, alpha=float(layer.negative_slope))
    if isinstance(layer, nn.SiLU):
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if isinstance(layer, nn.GELU) and layer.approximate == "none":
        half, root = (graph.weight(torch.tensor(value), exact=True) for value in (0.5, math.sqrt(0.5)))
        normal = graph.op("Mul", graph.op("Erf", graph.op("Mul", x, root)), half)
        return graph.op("Mul", x, graph.op("Add", normal, half))
    name = type(layer).__name__
    if name in _SAME:
        return x if name == "Identity" else graph.op(_SAME[name], x)
    raise ConfigError(
        f"seanet.activation or final_activation is {name}, which is not written as ONNX; choose one of: {_ALLOWED}."
    )
