"""The hash of a codec: the same for the same codes and audio, another for any other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from audiotok.checkpoint import save_checkpoint
from audiotok.models import CompressionModel, EncodecModel, get_compression_model
from audiotok.models.fingerprint import codec_hash
from audiotok.utils.export import export_encodec
from tests.codecs import config
from tests.models.test_encodec import codec

DEMO = "1ab01789a06bba74d12d3b5cf3c5730434bcced5ef442540a0ba6cb17336d905"


def test_the_hash_of_the_demo_codec_stays() -> None:
    """Token sets on disk bear it: another one would make all of them useless."""
    assert codec_hash(CompressionModel.get_pretrained("demo")) == DEMO


def test_what_training_alone_uses_does_not_count() -> None:
    model = codec()
    before = codec_hash(model)
    for name, buffer in model.named_buffers():
        if name.endswith(("inited", "cluster_size", "embed_avg")):
            buffer.add_(1)
    model.set_num_codebooks(2)
    model.train()
    assert codec_hash(model) == before == codec_hash(codec())


def stride_apart(model: EncodecModel) -> None:
    model.sample_rate *= 2


def mirrored(model: EncodecModel) -> None:
    model.encoder.model[0].pad_mode = "reflect"  # type: ignore[index, union-attr]


def dilated(model: EncodecModel) -> None:
    model.encoder.model[1].block[1].conv.conv.dilation = (2,)  # type: ignore[index, union-attr]


def other_activation(model: EncodecModel) -> None:
    model.encoder.model[2] = torch.nn.SiLU()  # type: ignore[operator, assignment]


def renormalised(model: EncodecModel) -> None:
    model.renormalize = True


def weight(name: str) -> Callable[[EncodecModel], None]:
    def change(model: EncodecModel) -> None:
        value = model.state_dict()[name].flatten()
        value[-1] = torch.nextafter(value[-1], torch.tensor(9.0))

    return change


@pytest.mark.parametrize(
    "change",
    [
        stride_apart,
        mirrored,
        dilated,
        other_activation,
        renormalised,
        weight("encoder.model.0.conv.conv.bias"),
        weight("decoder.model.0.conv.conv.bias"),
        weight("quantizer.vq.layers.3._codebook.embed"),
    ],
)
def test_what_decides_codes_or_audio_counts(change: Callable[[EncodecModel], None]) -> None:
    model = codec()
    before = codec_hash(model)
    change(model)
    assert codec_hash(model) != before


def test_a_checkpoint_and_its_exported_file_have_the_same(tmp_path: Path) -> None:
    cfg = config()
    model = get_compression_model(cfg)
    state = {"best_state": {"model": model.state_dict()}, "model": {}, "xp.cfg": OmegaConf.to_yaml(cfg)}
    save_checkpoint(state, tmp_path / "checkpoint.th")
    exported = export_encodec(tmp_path, tmp_path / "codec.bin")
    hashes = {codec_hash(CompressionModel.get_pretrained(each)) for each in (tmp_path, exported)}
    assert hashes == {codec_hash(model)}
    rounded = export_encodec(tmp_path, tmp_path / "half.bin", half=True)
    assert codec_hash(CompressionModel.get_pretrained(rounded)) not in hashes
