"""The configuration of language models: presets are accepted, what cannot be used or does nothing is named."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from audiotok import train
from audiotok.experiments.overrides import leaves_of
from audiotok.models.codec_lm import get_language_model
from audiotok.models.lm import HEADS
from audiotok.models.patterns import PATTERNS, _pattern
from audiotok.modules.transformer import POSITIONS
from audiotok.schema import SCHEMA, lm
from tests.test_schema import changed, choices, config, hints

PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "config/solver/lm").glob("*.yaml"))
GIVEN = ["compression_model_checkpoint=demo", "dset=audio/demo"]
CODES = {"codec": "demo", "codec_hash": "0", "frame_rate": 50.0, "sample_rate": 32000, "channels": 1}


@pytest.fixture(scope="module")
def debug() -> dict[str, Any]:
    return config("solver=lm/debug", *GIVEN)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_accepted_and_all_their_keys_are_known(preset: str) -> None:
    cfg = config(f"solver=lm/{preset}", *GIVEN)
    assert SCHEMA.faults(cfg, allow=lambda key: False) == []
    for path, value in leaves_of(cfg):
        if path[0] not in ("slurm", "dora") and value != {}:
            assert any(".".join(path[:end]) in SCHEMA.keys for end in range(1, len(path) + 1)), path


def _model(preset: str, n_q: int, bins: int) -> nn.Module:
    _pattern.cache_clear()  # or it is one that was made on the CPU
    codes = {**CODES, "n_q": n_q, "bins": bins}
    with torch.device("meta"):
        return get_language_model(OmegaConf.create({**config(f"solver=lm/{preset}", *GIVEN), "codes": codes}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_builds_its_model(preset: str) -> None:
    assert sum(value.numel() for value in _model(preset, 4, 1024).parameters()) > 0


def test_musicgen_small_has_its_size() -> None:
    trunk = [v for k, v in _model("musicgen_small", 4, 2048).named_parameters() if k.startswith("transformer.")]
    assert sum(value.numel() for value in trunk) == pytest.approx(300e6, rel=0.02)


def test_choices_are_those_of_the_tables() -> None:
    assert tuple(choices(hints(lm.Lm)["pattern"])) == PATTERNS
    assert tuple(choices(hints(lm.Lm)["positions"])) == POSITIONS
    assert tuple(choices(get_args(lm.Heads)[0])) == HEADS


WRONG: dict[str, list[Any]] = {
    "compression_model_checkpoint": [3, ""],
    "lm.dim": [0, 16.5, "wide"],
    "lm.num_layers": [0, -1],
    "lm.dropout": [1.0, -0.1],
    "lm.pattern": ["unrolled", None],
    "lm.delays": ["none", [-1, 0], []],
    "lm.heads": ["chain", [], ["parallel", "serial"]],
    "lm.positions": ["alibi"],
    "lm.label_dropout": [1.5],
    "lm.no_context": ["yes"],
    "tokens.num_workers": [0],
    "generate.lm.temperature": [-1],
    "generate.lm.top_k": [-1, 2.5],
    "generate.lm.top_p": [0, 1.5],
    "generate.lm.seed": [-1],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_that_cannot_be_used_is_named(key: str, debug: dict[str, Any]) -> None:
    for value in WRONG[key]:
        (line,) = SCHEMA.faults(changed(debug, key, value))
        assert line.startswith(f"{key}=") and ": give " in line


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"compression_model_checkpoint": None}, "compression_model_checkpoint not set"),
    ({"lm.num_heads": 3}, "lm.dim=16, lm.num_heads=3: give channels that the heads divide"),
    ({"lm.positions": "rope", "lm.dim": 6}, "lm.dim=6, lm.num_heads=2: give an even number of channels of each head"),
    ({"lm.depth_heads": 3}, "lm.depth_dim=8, lm.depth_heads=3"),
    ({"lm.heads": ["chain"]}, 'lm.heads=["chain"]: give [parallel] or [parallel, chain]'),
    ({"lm.heads": ["parallel", "parallel"]}, "give [parallel] or [parallel, chain]"),
    ({"lm.pattern": "flatten", "lm.delays": [0, 1]}, "lm.delays=[0, 1], lm.pattern=flatten"),
    ({"generate.lm.guidance": 3.0}, "generate.lm.guidance=3.0, lm.labels=null"),
    ({"generate.lm.prompt_duration": 2.0}, "give less than the 2 s of a generated clip"),
    ({"dataset.valid.segment_duration": None}, "segment_duration=null of valid"),
    ({"dataset.generate.num_samples": None}, "num_samples=null of generate: give how many clips become audio"),
    ({"datasource.valid": None}, "datasource.valid not set"),
    ({"schedule.lr_scheduler": "cosine"}, "at most the 8 updates"),
]


@pytest.mark.parametrize(("values", "line"), TOGETHER)
def test_keys_that_do_not_go_together_are_named(values: dict[str, Any], line: str, debug: dict[str, Any]) -> None:
    cfg = debug
    for key, value in values.items():
        cfg = changed(cfg, key, value)
    found = SCHEMA.faults(cfg)
    assert any(line in one for one in found), found


def test_a_chain_head_that_is_not_there_has_no_faults(debug: dict[str, Any]) -> None:
    assert SCHEMA.faults(changed(changed(debug, "lm.heads", ["parallel"]), "lm.depth_heads", 3)) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["lm.heads=[parallel]", "lm.depth_dim=32"], 'lm.depth_dim=32 does nothing here: lm.heads=["parallel"]'),
        (["lm.label_dropout=0.2"], "lm.label_dropout=0.2 does nothing here: lm.labels=null"),
        (["dataset.min_segment_ratio=0.9"], "dataset.min_segment_ratio=0.9 does nothing here: windows of codes"),
        (["precision=bf16", "lm.autocast=false"], "lm.autocast=false does nothing here: precision=bf16"),
        (["generate.lm.temperature=0", "generate.lm.top_k=3"], "generate.lm.top_k=3 does nothing here"),
    ],
)
def test_an_override_that_does_nothing_is_named(overrides: list[str], line: str) -> None:
    checked = train.main.get_xp(["solver=lm/debug", *GIVEN, *overrides]).checked
    assert list(checked.faults) == []
    assert [one[: len(line)] for one in checked.idle] == [line]


def test_how_codes_are_made_is_not_part_of_the_signature() -> None:
    plain = train.main.get_xp(["solver=lm/debug", *GIVEN])
    assert (
        train.main.get_xp(["solver=lm/debug", *GIVEN, "tokens.num_workers=1", "tokens.batch_size=2"]).sig == plain.sig
    )
    assert train.main.get_xp(["solver=lm/debug", *GIVEN[1:], "compression_model_checkpoint=x"]).sig != plain.sig


def test_a_run_that_was_frozen_before_a_key_is_accepted(debug: dict[str, Any]) -> None:
    for name in ("lm", "tokens"):
        for key in debug[name]:
            cfg = {**debug, name: {other: value for other, value in debug[name].items() if other != key}}
            assert SCHEMA.faults(cfg) == [], key
