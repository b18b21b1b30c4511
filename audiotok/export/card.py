"""The card of an exported model: `README.md` of its folder, as Hugging Face's hub shows it.

All of it comes from the run: what cannot be read is left out or named as unknown, and nothing is estimated. Paths of
this machine stay out.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from audiotok import __version__
from audiotok.checkpoint import LAST, PRETRAINED_PREFIX, own_models
from audiotok.data.manifest import read_manifest
from audiotok.errors import AudiotokError
from audiotok.files import read_json
from audiotok.interchange import huggingface
from audiotok.models.encodec import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.results.experiments import BEST_BY
from audiotok.results.metrics import known_metric
from audiotok.results.protocols import describe, read_protocol
from audiotok.results.records import Experiment, read_experiment
from audiotok.results.tables import format_value
from audiotok.text import clean_text, spoken_duration
from audiotok.utils.commit import current_commit
from audiotok.utils.export import networks_of

CARD = "README.md"
_SPLITS = ("train", "valid", "evaluate", "generate")
_DEPENDENCE = ("mmd", "mmd_p", "mi", "nmi", "mi_groups", "mi_delay", "mi_groups_delay", "mi_p", "tc_tree")
_TRAINING = ("losses", "mmd", "optim", "schedule", "balancer", "adversarial")  # sections that the card shows
_FOLDERS = re.compile(r"(?<![\w.])[~/][^\s,\]]*/(?=[^\s,\]/])")  # of absolute paths
_LIBRARY = {"audiocraft": "audiocraft", "huggingface": "transformers", "safetensors": "audiotok", "onnx": "onnx"}


@dataclass(frozen=True)
class Source:
    """A model that is exported, and where it is from."""

    name: str  # a few letters, for the title
    source: str  # as `audiotok export` reads it
    path: Path  # its file, or its folder
    cfg: DictConfig  # of the whole experiment, or of the networks alone
    model: EncodecModel


def card(source: Source, format: str, *, half: bool = False) -> str:
    """The card as Markdown, beginning with the front matter of Hugging Face's hub.

    Args:
        source: an experiment, whose folder is read, or a file that says nothing of its training.
        format: of the folder that the card is for.
        half: whether its weights are float16.
    """
    parts = [_front_matter(format), f"# {source.name}: EnCodec at {source.model.sample_rate / 1000:g} kHz\n"]
    record = _record(source)
    about = _origin(source) if record is None else _experiment(record, source.cfg)
    parts += [*_model(source, half), *_loading(source, format), *about]
    return "\n".join([*parts, *_configuration(source.cfg), *_licence()])


def unfinished(source: Source) -> str:
    """What the experiment lacks that a model is of, `has not completed (…)`; "" if nothing, or if it is of none."""
    record = _record(source)
    return "" if record is None else _lacking(record)


def _record(source: Source) -> Experiment | None:
    """The experiment of audiotok whose checkpoint a source is; other programs write a history, too."""
    folder = source.path.parent
    ours = source.path.name == LAST and any((folder / name).exists() for name in ("frozen.json", "status.json"))
    return read_experiment(folder) if ours and (folder / "history.json").exists() else None


def _lacking(record: Experiment) -> str:
    return "" if record.state == "COMPLETED" else f"has not completed (state {record.state})"


def _section(cfg: DictConfig, name: str) -> Mapping[str, Any]:
    """A section of a configuration, which may be of anybody; empty if it is no section."""
    section = cfg.get(name)
    return section if isinstance(section, DictConfig) else {}


def _front_matter(format: str) -> str:
    tags = ["audio", "neural-audio-codec", "encodec", "audiotok"]
    fields = yaml.safe_dump({"library_name": _LIBRARY[format], "tags": tags}, sort_keys=False)
    return f"---\nlicense:  # to fill in, such as mit or cc-by-4.0\n{fields}---\n"


def _model(source: Source, half: bool) -> Iterator[str]:
    model, quantizer = source.model, source.model.quantizer
    parameters = sum(value.numel() for value in model.parameters())
    causal = "causal" if model.causal else "not causal"
    yield f"- **Networks**: SEANet, {parameters / 1e6:.3g} million parameters, {causal}"
    channels = {1: "mono", 2: "stereo"}.get(model.channels, f"{model.channels} channels")
    volume = ", brought to unit volume clip by clip" if model.renormalize else ""
    yield f"- **Audio**: {model.sample_rate} Hz, {channels}{volume}"
    if isinstance(quantizer, ResidualVectorQuantizer):
        kbps = model.num_codebooks * math.log2(quantizer.bins) * model.frame_rate / 1000
        yield (
            f"- **Codes**: {model.num_codebooks} codebooks of {quantizer.bins} codes, {model.frame_rate:g} frames a "
            f"second: {kbps:.4g} kb/s"
        )
    yield f"- **Weights**: {'float16, to be read as float32' if half else 'float32'}"
    yield f"- **Written by** audiotok {__version__} ({current_commit() or 'no commit'})\n"


# --- How to load it ---


def _loading(source: Source, format: str) -> Iterator[str]:
    yield "## How to load it\n"
    yield "This folder is of one format; the others are written by `audiotok export`. `FOLDER` is where it lies.\n"
    model = source.model
    wav = f"wav = torch.zeros(1, {model.channels}, {model.sample_rate})  # [B, C, T], a second"
    for each, code in _SNIPPETS.items():
        here = "this folder" if each == format else f"`audiotok export {source.name} --format {each}`"
        yield f"{_PROGRAMS[each]} ({here}):\n"
        if each == "huggingface":
            try:
                config, _ = huggingface.config_and_weights(source.cfg, model.state_dict())
            except AudiotokError as error:
                yield f"not for this model: {error}\n"
                continue
            code = code.format(rate=model.sample_rate, bandwidth=config["target_bandwidths"][-1])
            code = code.replace("CLIP", "wav[0, 0]" if model.channels == 1 else "wav[0]")
        if each == "onnx" and model.renormalize:
            code = code.replace("(codes,)", "codes, scale").replace('"codes": codes', '"codes": codes, "scale": scale')
        yield f"```python\n{code.replace('WAV', wav)}```\n"


_PROGRAMS = {
    "audiocraft": "AudioCraft",
    "huggingface": "Transformers",
    "safetensors": "audiotok, which reads the folders of the other two as well",
    "onnx": "onnxruntime",
}
_SNIPPETS = {
    "audiocraft": """\
import torch
from audiocraft.models import CompressionModel

model = CompressionModel.get_pretrained("FOLDER")
WAV
codes, scale = model.encode(wav)
wav = model.decode(codes, scale)
""",
    "huggingface": """\
import torch
from transformers import AutoFeatureExtractor, EncodecModel

model = EncodecModel.from_pretrained("FOLDER")
extractor = AutoFeatureExtractor.from_pretrained("FOLDER")
WAV
inputs = extractor(raw_audio=CLIP.numpy(), sampling_rate={rate}, return_tensors="pt")
encoded = model.encode(inputs["input_values"], inputs["padding_mask"], bandwidth={bandwidth})
wav = model.decode(encoded.audio_codes, encoded.audio_scales, inputs["padding_mask"]).audio_values
""",
    "safetensors": """\
import torch
from audiotok.models import CompressionModel

model = CompressionModel.get_pretrained("FOLDER")
WAV
codes, scale = model.encode(wav)
wav = model.decode(codes, scale)
""",
    "onnx": """\
import onnxruntime
import torch

encoder = onnxruntime.InferenceSession("FOLDER/encoder.onnx")
decoder = onnxruntime.InferenceSession("FOLDER/decoder.onnx")
WAV
(codes,) = encoder.run(None, {"wav": wav.numpy()})
(wav,) = decoder.run(None, {"codes": codes})
""",
}


# --- Where it is from ---


def _experiment(record: Experiment, cfg: DictConfig) -> Iterator[str]:
    yield "## Training\n"
    yield f"An experiment of audiotok, signature `{record.sig}`, commit `{record.commit or 'unknown'}`.\n"
    if overrides := _overrides(record.folder):
        yield f"- **Overrides**: {overrides}"
    if source := cfg.get("continue_from"):
        yield f"- **Continued from** `{_without_path(str(source).removeprefix(PRETRAINED_PREFIX))}`"
    epochs, updates = (_section(cfg, "optim").get(name) for name in ("epochs", "updates_per_epoch"))
    lacking = f"; it {found}" if (found := _lacking(record)) else ""
    yield f"- **Length**: {record.epochs} of {epochs} epochs of {updates} updates{lacking}"
    if math.isfinite(record.duration_s):
        yield f"- **Time**: {spoken_duration(record.duration_s)}"
    if record.amended:
        yield f"- **Amended** since it was made: {record.amended}"
    best, column = _best_epoch(record)
    if best:
        yield f"- **Weights** of epoch {best}, the best by {column}"
    losses = [f"{name} {weight:g}" for name, weight in _section(cfg, "losses").items() if _is_number(weight) and weight]
    yield f"- **Losses** and their weights: {', '.join(losses)}\n"
    yield from _data(cfg, record.folder)
    yield from _metrics(record, best)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _overrides(folder: Path) -> str:
    """What makes the signature, as text; of paths the last part alone."""
    delta = (read_json(folder / "frozen.json") or {}).get("delta")
    pairs = (
        [each for each in delta or [] if isinstance(each, list) and len(each) == 2] if isinstance(delta, list) else []
    )
    return ", ".join(f"`{clean_text(str(key))}={_without_path(value)}`" for key, value in pairs)


def _without_path(value: Any) -> str:
    if isinstance(value, str) and not value.startswith("//sig/"):
        value = _FOLDERS.sub("…/", value)  # before long texts are cut
    text = format_value(tuple(value) if isinstance(value, list) else value)
    return text if text.startswith("//sig/") else _FOLDERS.sub("…/", text)


def _best_epoch(record: Experiment) -> tuple[int, str]:
    """The epoch that the weights are of, the last one of equals as in training, and by which metric; 0 if unknown."""
    for column in BEST_BY:
        stage, _, name = column.partition(".")
        values = [(epoch.get(stage) or {}).get(name) for epoch in record.history]
        found = [(value, number) for number, value in enumerate(values, start=1) if value is not None]
        if found:
            return min(found, key=lambda pair: (pair[0], -pair[1]))[1], column
    return 0, ""


def _data(cfg: DictConfig, folder: Path) -> Iterator[str]:
    yield "## Data\n"
    choices = (read_json(folder / "frozen.json") or {}).get("choices")
    if isinstance(choices, dict) and choices.get("dset"):
        yield f"`dset={clean_text(str(choices['dset']))}`\n"
    rows = []
    for split in _SPLITS:
        manifest = _section(cfg, "datasource").get(split)
        try:
            tracks = read_manifest(manifest) if isinstance(manifest, str) else []
        except AudiotokError:
            tracks = []
        if tracks:
            rates = sorted({track.sample_rate for track in tracks})
            hours = sum(track.duration for track in tracks) / 3600
            rows.append((split, str(len(tracks)), f"{hours:.3g}", ", ".join(map(str, rates))))
        elif manifest:
            rows.append((split, "unknown", "unknown", "unknown"))
    yield _table(("split", "tracks", "hours", "sample rates in Hz"), rows)
    if any(row[1] == "unknown" for row in rows):
        yield "Unknown: their manifests were not there when this card was made.\n"


def _metrics(record: Experiment, best: int) -> Iterator[str]:
    measured = [(number, epoch["evaluate"]) for number, epoch in enumerate(record.history, 1) if epoch.get("evaluate")]
    yield "## Quality\n"
    if not measured:
        yield "Not measured: the run has had no evaluate stage.\n"
        return
    number, values = measured[-1]
    later = " The weights are of a later epoch, which was not evaluated." if best > number else ""
    yield f"Evaluate stage of epoch {number}, with the best weights until then.{later}"
    yield f"Protocol: {describe(read_protocol(record)) or 'unknown'}.\n"
    dependent = {name: value for name, value in values.items() if name in _DEPENDENCE}
    yield _values({name: values[name] for name in values if name not in dependent}, values)
    yield "## Dependence of the codebooks\n"
    yield "Of independent codebooks all but the p-values are near 0: see docs/dependence.md of audiotok.\n"
    yield _values(dependent, values) if dependent else "Not measured.\n"


def _values(shown: Mapping[str, float], values: Mapping[str, float]) -> str:
    rows = []
    for name, value in shown.items():
        metric = known_metric(f"evaluate.{name}")
        plain = not name.endswith("_err") and "_q" not in name and name not in ("protocol", "duration")
        if metric is not None and plain:
            error = values.get(f"{name}_err")
            text = format_value(value) + ("" if error is None else f" ± {format_value(error)}")
            rows.append((name, text, metric.unit, metric.description))
    return _table(("metric", "value ± standard error", "unit", "what it is"), rows)


def _origin(source: Source) -> Iterator[str]:
    yield "## Where it is from\n"
    own = own_models()
    if source.path in own.values():
        text = source.path.with_suffix(".md").read_text(encoding="utf-8")
        yield "A model that comes with audiotok. Its card there:\n"
        yield text.partition("\n")[2].replace("\n## ", "\n### ").strip() + "\n"
        return
    yield (
        f"Made of `{clean_text(source.path.name)}`, of which networks and weights alone are read: on what it was "
        "trained, how, and how well it does is not known here. To fill in by those who know.\n"
    )


def _configuration(cfg: DictConfig) -> Iterator[str]:
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    shown = networks_of(cfg) | {name: values[name] for name in _TRAINING if name in values}
    yield "## Configuration\n"
    yield f"```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}```\n"


def _licence() -> Iterator[str]:
    yield "## Licence\n"
    yield "To fill in, here and as `license` at the head of this file: of the weights, and of the music behind them."
    yield ""


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headers, ("---",) * len(headers), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
