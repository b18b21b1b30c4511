"""The language model of one codec: which codes it reads, the names of its class labels, and how to load it."""

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from audiotok.data.tokens import MAX_BINS, MAX_N_Q
from audiotok.errors import CheckpointError, ConfigError, DataError
from audiotok.models.lm import LMModel
from audiotok.models.no_context import NoContextModel
from audiotok.models.pretrained import load_pretrained
from audiotok.schema.lm import Lm

_OF_DEPTH = ("depth_dim", "depth_heads", "depth_layers")
_NOT_OF_THE_MODEL = ("labels", "autocast")  # keys of the section `lm` that training and data read


@dataclass(frozen=True)
class CodeFormat:
    """What a language model has to know of its codec and its data; a checkpoint holds it as the section `codes`.

    Attributes:
        codec: name of the codec, as `CompressionModel.get_pretrained` reads it.
        codec_hash: of what decides its codes, see `audiotok.models.fingerprint`.
        n_q, bins: codebooks, and values of a code.
        frame_rate, sample_rate: of codes and audio, in Hz.
        channels: of the audio.
        labels: names of the class labels.
    """

    codec: str
    codec_hash: str
    n_q: Annotated[int, Field(strict=True, ge=1, le=MAX_N_Q)]
    bins: Annotated[int, Field(strict=True, ge=1, le=MAX_BINS)]
    frame_rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    sample_rate: Annotated[int, Field(strict=True, ge=1, le=10**8)]
    channels: Annotated[int, Field(strict=True, ge=1, le=1024)]
    labels: Sequence[str] = ()

    def check_codec(self, codec_hash: str, codec: str, owner: str) -> None:
        """CheckpointError, naming `owner`, if a codec is another one than that of these codes."""
        if codec_hash != self.codec_hash:
            raise CheckpointError(
                f"{owner} reads codes of codec {self.codec} ({self.codec_hash[:12]}…), not of {codec} "
                f"({codec_hash[:12]}…): give it that codec, or train a language model of this one"
            )


class CodecLM(LMModel):
    """`LMModel` over the codes of one codec.

    Args:
        codes: of that codec and of the labels of the training data.
        no_context: whether it has, as `alone`, the same heads without context, which are trained beside it.
        options: all other arguments of `LMModel`.
    """

    def __init__(self, codes: CodeFormat, *, no_context: bool = False, **options: Any) -> None:
        super().__init__(n_q=codes.n_q, bins=codes.bins, num_labels=len(codes.labels), **options)
        self.codes = codes
        of_depth = {key: options[key] for key in (*_OF_DEPTH, "dropout") if key in options}
        self.alone = NoContextModel(self, **of_depth) if no_context else None

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but those of `alone`."""
        return (value for name, value in self.named_parameters() if not name.startswith("alone."))

    def label_ids(self, names: Sequence[str | None]) -> Tensor:
        """Labels [B] for `nll` and `generate`; None stands for no label. DataError for a name training has not seen."""
        known = {name: number for number, name in enumerate(self.codes.labels)}
        unseen = sorted({name for name in names if name is not None} - known.keys())
        if unseen:
            have = f"it knows {', '.join(self.codes.labels)}" if known else "it was trained without labels"
            raise DataError(f"label {unseen[0]!r} is unknown to this language model: {have}.")
        ids = [self.no_label if name is None else known[name] for name in names]
        return torch.tensor(ids, device=self.out_norm.weight.device)

    @staticmethod
    def get_pretrained(
        name: str | Path, device: torch.device | str = "cpu", *, codec_hash: str | None = None
    ) -> "CodecLM":
        """Load a trained language model with its best weights, in evaluation mode.

        Args:
            name: //sig/SIG, a checkpoint, its folder, or any of these after //pretrained/.
            device: where to put it.
            codec_hash: of the codec that it shall be used with, to be checked.

        Raises:
            CheckpointError: as `audiotok.models.pretrained`, and for the language model of another codec.
        """
        model = load_pretrained(name, device, build=get_language_model)
        if codec_hash is not None:
            model.codes.check_codec(codec_hash, "the given one", str(name))
        return model


def get_language_model(cfg: DictConfig) -> CodecLM:
    """Make the language model that cfg describes, with fresh weights, on the CPU.

    Args:
        cfg: holds `lm` (arguments of `LMModel`) and `codes` (fields of `CodeFormat`).

    Raises:
        ConfigError: if one of these is missing, or holds what cannot be used.
    """
    codes, lm = get_code_format(cfg), _section(cfg, "lm")
    _checked(Lm, lm, "lm")  # a file of elsewhere has met no schema
    return CodecLM(codes, **{key: lm[key] for key in lm if key not in _NOT_OF_THE_MODEL})


def get_code_format(cfg: DictConfig) -> CodeFormat:
    """The section `codes` of a configuration; ConfigError if there is none of this form."""
    codes: CodeFormat = _checked(CodeFormat, _section(cfg, "codes"), "codes")
    if len(set(codes.labels)) < len(codes.labels):
        raise ConfigError("the section codes of the configuration cannot be used: labels holds one twice.")
    return codes


def _checked(form: Any, values: dict[str, Any], name: str) -> Any:
    """Values of a section as its form has them; ConfigError naming the first that cannot be used."""
    try:
        return TypeAdapter(form).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, found = ".".join(map(str, first["loc"])), reprlib.repr(first["input"])
        what = f"{key} is missing" if first["type"] == "missing" else f"{key}={found}: {first['msg']}"
        raise ConfigError(f"the section {name} of the configuration cannot be used: {what}.") from error


def _section(cfg: DictConfig, name: str) -> dict[str, Any]:
    values = OmegaConf.to_container(cfg[name], resolve=True) if isinstance(cfg.get(name), DictConfig) else None
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration has no section {name}: it is not of a language model.")
    return {str(key): value for key, value in values.items()}
