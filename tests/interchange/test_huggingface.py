"""EnCodec of Transformers: held against `transformers.EncodecModel` itself, tiny and with random weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import EncodecConfig, EncodecFeatureExtractor
from transformers import EncodecModel as TheirModel

from audiotok.errors import CheckpointError, ConfigError
from audiotok.interchange import huggingface
from audiotok.models import EncodecModel, get_compression_model
from audiotok.quantization import ResidualVectorQuantizer

SHAPES: dict[str, dict[str, Any]] = {
    "mono": {"sampling_rate": 1600, "use_causal_conv": False, "pad_mode": "constant", "target_bandwidths": [3.2]},
    "causal": {"sampling_rate": 1200, "target_bandwidths": [0.6, 1.2, 2.4], "trim_right_ratio": 0.5},
    "stereo": {
        **{"sampling_rate": 2400, "audio_channels": 2, "use_causal_conv": False, "norm_type": "time_group_norm"},
        **{"normalize": True, "chunk_length_s": 0.1, "overlap": 0.01, "target_bandwidths": [2.4, 4.8]},
    },
}
SMALL = {"num_filters": 2, "hidden_size": 4, "upsampling_ratios": [4, 2], "num_lstm_layers": 1, "codebook_size": 16}
CODEBOOKS = {"mono": 4, "causal": 4, "stereo": 4}


def model_of(shape: str, **options: Any) -> TheirModel:
    """A model of Transformers with random weights, and codebooks that are spread over its latents."""
    torch.manual_seed(0)
    model = TheirModel(EncodecConfig(**{**SMALL, **SHAPES[shape], **options})).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.1 * torch.randn_like(value) if name.endswith("bias") else 0)
        latent = model.encoder(torch.randn(1, model.config.audio_channels, 4000))[0]
        spread_codebooks(latent, [layer.codebook for layer in model.quantizer.layers])
    return model


@torch.no_grad()
def spread_codebooks(latent: Tensor, books: Iterable[Any]) -> None:
    """Spread the vectors of codebooks as a latent [D, T] is, the first around its mean, each next one narrower."""
    centre, width = latent.mean(dim=1), latent.std(dim=1)
    for number, book in enumerate(books):
        book.embed.copy_((centre if number == 0 else 0) + width * torch.randn(book.embed.shape) / 2**number)
        book.embed_avg.copy_(book.embed * 3)
        book.cluster_size.fill_(3.0)


def noise(model: EncodecModel, frames: int = 21, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.channels, frames * 8 + 3, generator=generator, dtype=torch.float32)


@torch.no_grad()
def sure(model: EncodecModel, wav: Tensor) -> Tensor:
    """Frames [B, T'] of which no code hangs on rounding: its two nearest vectors are not about equally far."""
    latent, _ = model.encode_latent(wav)
    residual, found = latent.transpose(1, 2).double(), torch.tensor(True)
    assert isinstance(model.quantizer, ResidualVectorQuantizer)
    for book in model.quantizer.vq.codebooks(model.num_codebooks):
        embed = book.embed.double()
        distances = (residual[:, :, None] - embed).square().sum(dim=3)
        nearest, second = distances.topk(2, dim=2, largest=False).values.unbind(dim=2)
        size = residual.square().sum(dim=2) + embed.square().sum(dim=1).max()  # what float32 rounds by
        found = found & (second - nearest > 1e-5 * size)
        residual = residual - embed[distances.argmin(dim=2)]
    return found


def built(folder: Path) -> EncodecModel:
    cfg, weights = huggingface.read_folder(folder)
    model = get_compression_model(OmegaConf.create(cfg)).eval()
    model.load_state_dict(weights)
    assert isinstance(model, EncodecModel)
    return model


def check_equal(ours: EncodecModel, theirs: TheirModel, bandwidth: float) -> None:
    """Codes are equal, and audio but for 1e-5, on one pass; Transformers' chunks are switched off."""
    wav = noise(ours)
    theirs.config.chunk_length_s = None
    with torch.no_grad():
        found = theirs.encode(wav, bandwidth=bandwidth)
        codes, scale = ours.encode(wav)
        frames = sure(ours, wav)
        assert frames.double().mean() > 0.9 and len(codes.unique()) > 8
        differ = (codes != found.audio_codes[0]).any(dim=1)
        assert codes.shape == found.audio_codes[0].shape and not (differ & frames).any()
        expected = theirs.decode(found.audio_codes, found.audio_scales).audio_values
        audio = ours.decode(found.audio_codes[0], scale)
        if scale is not None:
            torch.testing.assert_close(scale, found.audio_scales[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5)
    assert audio.std() > 1e-3


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_their_model_gives_the_same_codes_and_audio_here(tmp_path: Path, shape: str, shortcut: bool) -> None:
    theirs = model_of(shape, use_conv_shortcut=shortcut)
    theirs.save_pretrained(tmp_path)
    ours = built(tmp_path)
    assert (ours.sample_rate, ours.channels) == (theirs.config.sampling_rate, theirs.config.audio_channels)
    assert ours.num_codebooks == theirs.config.num_quantizers == CODEBOOKS[shape] and ours.cardinality == 16
    check_equal(ours, theirs, theirs.config.target_bandwidths[-1])


def test_their_chunks_are_ours_chunk_by_chunk(tmp_path: Path) -> None:
    theirs = model_of("stereo")
    theirs.save_pretrained(tmp_path)
    ours, length, stride = built(tmp_path), theirs.config.chunk_length, theirs.config.chunk_stride
    wav = noise(ours, frames=3 * length // 8)
    with torch.no_grad():
        found = theirs.encode(wav, bandwidth=4.8)
        for number in range(2):  # whole ones
            chunk = wav[..., number * stride : number * stride + length]
            codes, scale = ours.encode(chunk)
            differ, frames = (codes != found.audio_codes[number]).any(dim=1), sure(ours, chunk)
            assert not (differ & frames).any() and frames.double().mean() > 0.9
            torch.testing.assert_close(scale, found.audio_scales[number], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_there_and_back_is_the_same_to_the_last_bit(tmp_path: Path, shape: str) -> None:
    theirs = model_of(shape, use_conv_shortcut=shape != "mono")
    theirs.save_pretrained(tmp_path / "theirs")
    huggingface.write_folder(*huggingface.read_folder(tmp_path / "theirs"), tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = TheirModel.from_pretrained(tmp_path / "back")
    shared = {key: value for key, value in theirs.config.to_dict().items() if not key.startswith(("_", "transformers"))}
    assert {key: again.config.to_dict()[key] for key in shared} == shared
    extractor = EncodecFeatureExtractor.from_pretrained(tmp_path / "back")
    assert (extractor.feature_size, extractor.sampling_rate) == (
        again.config.audio_channels,
        again.config.sampling_rate,
    )
    assert (extractor.chunk_length_s, extractor.overlap) == (theirs.config.chunk_length_s, theirs.config.overlap)


OURS = {
    "compression_model": "encodec",
    "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 3200, "channels": 1},
    "seanet": {"dimension": 4, "n_filters": 2, "ratios": [4, 2], "lstm": 1, "n_residual_layers": 2},
    "rvq": {"n_q": 3, "bins": 16, "kmeans_init": False},
}


def ours_with(**sections: dict[str, Any]) -> tuple[dict[str, Any], EncodecModel]:
    cfg = {**OURS, **{name: {**OURS[name], **more} for name, more in sections.items()}}  # type: ignore[dict-item]
    torch.manual_seed(0)
    model = get_compression_model(OmegaConf.create(cfg)).eval()
    assert isinstance(model, EncodecModel)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.1 * torch.randn_like(value) if name.endswith("bias") else 0)
        if isinstance(model.quantizer, ResidualVectorQuantizer):
            latent, _ = model.encode_latent(torch.randn(1, 1, 4000))
            spread_codebooks(latent[0], model.quantizer.vq.codebooks(model.num_codebooks))
    return cfg, model


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rvq": {"n_q": 12, "q_dropout": True}},
        {"encodec": {"causal": True}, "seanet": {"causal": True, "true_skip": False, "pad_mode": "reflect"}},
        {"seanet": {"norm": "time_group_norm", "norm_params": {"eps": 1e-5}}, "encodec": {"renormalize": True}},
    ],
)
def test_our_model_gives_the_same_codes_in_transformers(tmp_path: Path, sections: dict[str, Any]) -> None:
    cfg, ours = ours_with(**sections)
    huggingface.write_folder(OmegaConf.create(cfg), ours.state_dict(), tmp_path / "out")
    theirs, info = TheirModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    bandwidths = theirs.config.target_bandwidths
    if sections.get("rvq"):
        counts = [theirs.quantizer.get_num_quantizers_for_bandwidth(bandwidth) for bandwidth in bandwidths]
        assert counts == [3, 6, 12]
    else:
        assert len(bandwidths) == 1  # what Transformers takes without a choice is all of it
    check_equal(ours, theirs.eval(), bandwidths[-1])


@pytest.mark.parametrize(
    ("rate", "ratios", "bins"), [(32000, [8, 5, 4, 4], 2048), (44100, [8, 8, 8], 1024), (7, [3], 2)]
)
def test_the_bandwidth_names_the_codebooks_whatever_the_rounding(rate: int, ratios: list[int], bins: int) -> None:
    seanet = {"ratios": ratios, "dimension": 1, "n_filters": 1, "compress": 1}
    cfg = {"encodec": {"quantizer": "rvq", "sample_rate": rate, "channels": 1}, "seanet": seanet}
    for n_q in range(1, 33):
        weights = {f"quantizer.vq.layers.{k}._codebook.embed": torch.zeros(bins, 1) for k in range(n_q)}
        config, _ = huggingface.config_and_weights(cfg, weights)
        given = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
        theirs = EncodecConfig(**given)
        assert theirs.num_quantizers == n_q
        per_codebook = theirs.frame_rate * theirs.codebook_nbits
        assert int(theirs.target_bandwidths[-1] * 1000 / per_codebook) == n_q


@pytest.mark.parametrize("kind", ["bin", "old names", "float16"])
def test_older_and_smaller_files(tmp_path: Path, kind: str) -> None:
    theirs = model_of("causal")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if kind == "float16":
        huggingface_weights = {name: value.half() for name, value in state.items()}
        theirs.load_state_dict({name: value.float() for name, value in huggingface_weights.items()})
    else:
        renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        huggingface_weights = {}
        for name, value in state.items():
            for new, old in renamed.items() if kind == "old names" else ():
                name = name.replace(new, old)
            huggingface_weights[name] = value
    (tmp_path / "model.safetensors").unlink()
    torch.save(huggingface_weights, tmp_path / "pytorch_model.bin")
    check_equal(built(tmp_path), theirs, 2.4)


def test_a_configuration_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    theirs = TheirModel(EncodecConfig(num_filters=2, hidden_size=4))
    theirs.save_pretrained(tmp_path)
    kept = {"model_type": "encodec", "num_filters": 2, "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert built(tmp_path).num_codebooks == theirs.config.num_quantizers == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "musicgen"}, "of model_type 'musicgen'; only 'encodec'"),
        ({"num_filters": "many"}, "has num_filters=many"),
        ({"num_filters": True}, "has num_filters=True"),
        ({"norm_type": "batch_norm"}, "norm_type=batch_norm"),
        ({"target_bandwidths": []}, r"target_bandwidths=\[\]"),
        ({"target_bandwidths": [float("inf")]}, "target_bandwidths"),
        ({"codebook_dim": 8}, "codebook_dim=8 with hidden_size=4"),
        ({"upsampling_ratios": [10**9] * 20}, "upsampling_ratios whose product, the hop, is more than a second"),
        ({"upsampling_ratios": [2] * 5000}, "upsampling_ratios="),
    ],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model_of("mono").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        huggingface.read_folder(tmp_path)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    model_of("mono").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for bad in (b"", content[:-1], b"\xff" * 8 + content[8:], content[:9] + b"}" + content[10:]):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match="is damaged or is no safetensors file"):
            huggingface.read_folder(tmp_path)
    file.write_bytes(content)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        huggingface.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rvq": {"bins": 12}}, r"rvq\.bins \(a power of two\)"),
        ({"seanet": {"lstm": 0}}, r"seanet\.lstm"),
        ({"seanet": {"activation": "ReLU", "activation_params": {}}}, r"seanet\.activation \(ELU\)"),
        ({"seanet": {"activation_params": {"alpha": 2.0}}}, r"alpha: 1\.0"),
        ({"seanet": {"norm": "none"}}, r"seanet\.norm"),
        ({"seanet": {"norm": "time_group_norm", "norm_params": {"eps": 1e-3}}}, r"seanet\.norm_params"),
        ({"seanet": {"disable_norm_outer_blocks": 1}}, "disable_norm_outer_blocks"),
        ({"seanet": {"decoder": {"final_activation": "Tanh"}}}, r"seanet\.final_activation \(none\)"),
        ({"seanet": {"decoder": {"n_residual_layers": 1}}}, r"seanet\.encoder and seanet\.decoder"),
        ({"encodec": {"quantizer": "no_quant"}}, r"encodec\.quantizer"),
    ],
)
def test_what_transformers_lacks_is_not_written(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    cfg, model = ours_with(**sections)
    with pytest.raises(ConfigError, match=message):
        huggingface.write_folder(cfg, model.state_dict(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
