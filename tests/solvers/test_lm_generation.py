"""The generate stage of a language model, with a tiny one over the codes of a tiny codec, both with random weights."""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from audiotok.data.tokens import TokenSet
from audiotok.errors import ConfigError, DataError
from audiotok.metrics.frechet import LogMelFrames, Moments, distance_of_sets
from audiotok.models.codec_lm import CodecLM, CodeFormat
from audiotok.models.encodec import CompressionModel, get_compression_model
from audiotok.models.lm import Sampling
from audiotok.results.folders import samples_frame
from audiotok.solvers import lm_generation
from audiotok.solvers.lm_generation import Drawing, generate_clips

N_Q, BINS, RATE, HOP = 2, 8, 8000, 2048  # a frame of codes is one of the mel spectrogram
FRAMES, GIVEN = 30, 5  # of a clip, and of its prompt
FRAME_RATE = RATE / HOP
SECONDS = FRAMES / FRAME_RATE
FORM: dict[str, Any] = {"n_q": N_Q, "bins": BINS, "frame_rate": FRAME_RATE, "sample_rate": RATE, "channels": 1}


@pytest.fixture(scope="module")
def codec() -> CompressionModel:
    torch.manual_seed(0)
    size = {"ratios": [16, 16, 8], "channels": 1, "dimension": 4, "n_filters": 2, "n_residual_layers": 1, "lstm": 0}
    rvq = {"n_q": N_Q, "bins": BINS, "kmeans_init": False}
    encodec = {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": RATE, "channels": 1, "causal": False}
    cfg = {"compression_model": "encodec", "encodec": encodec, "seanet": size, "rvq": rvq}
    return get_compression_model(OmegaConf.create(cfg)).eval()


def language_model(heads: Sequence[str] = ("parallel", "chain"), labels: Sequence[str] = ()) -> CodecLM:
    torch.manual_seed(1)
    form = CodeFormat(codec="tiny", codec_hash="0" * 64, labels=labels, **FORM)
    lm = CodecLM(form, dim=8, num_heads=2, num_layers=1, heads=heads, depth_dim=8, depth_heads=2, depth_layers=1)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return lm.eval()


def write_tokens(
    folder: Path, frames: Sequence[int] = (100, 65, 31, 15), labels: Sequence[str | None] | None = None
) -> TokenSet:
    """A token set of tracks of so many frames."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rng.integers(BINS, size=(sum(frames), N_Q)).astype("<u2").tofile(folder / "codes-0.bin")
    starts = np.cumsum([0, *frames[:-1]]).tolist()
    tracks = [
        {"path": f"/music/album/{i}.ogg", "duration": count / FRAME_RATE, "frames": count, "label": label,
         "shard": 0, "start": start}
        for i, (count, start, label) in enumerate(zip(frames, starts, labels or [None] * len(frames), strict=True))
    ]  # fmt: skip
    shards = [{"file": "codes-0.bin", "frames": sum(frames)}]
    head = {"format": 1, "codec": "tiny", "codec_hash": "0" * 64, "signature": None}
    (folder / "tokens.json").write_text(json.dumps({**head, **FORM, "shards": shards, "tracks": tracks}))
    return TokenSet.open(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return write_tokens(tmp_path_factory.mktemp("set") / "tokens")


@pytest.fixture(scope="module")
def made(
    codec: CompressionModel, tokens: TokenSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """Folder and metrics of a stage that has written all of its clips."""
    folder = tmp_path_factory.mktemp("xp")
    return folder, generate(language_model(), codec, tokens, folder, num_samples=9)


def configuration(**lm: Any) -> DictConfig:
    batch_size, written = lm.pop("batch_size", 3), lm.pop("num_samples", 2)
    data = {"batch_size": batch_size, "num_samples": written, "segment_duration": lm.pop("seconds", SECONDS)}
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "seed": 0}
    options |= {"num_clips": 9, "prompt_duration": GIVEN / FRAME_RATE} | lm
    audio = {"format": "wav", "strategy": "clip"}
    return OmegaConf.create({"dataset": {"generate": data}, "generate": {"audio": audio, "lm": options}})


def generate(lm: CodecLM, codec: CompressionModel, tokens: TokenSet, folder: Path, **options: Any) -> dict[str, float]:
    return generate_clips(lm, codec, [tokens], configuration(**options), folder, 3, after_step=lambda: None)


def test_a_clip_is_the_same_in_every_batch_and_both_heads_share_their_random_numbers() -> None:
    lm = language_model()
    drawing = Drawing(frames=12, sampling=Sampling(top_k=5, top_p=0.9), guidance=1.0, seed=7)
    whole = drawing(lm, range(5), head="chain")
    assert whole.shape == (5, N_Q, 12)
    assert torch.equal(drawing(lm, [4, 1], head="chain"), whole[[4, 1]])
    other = Drawing(frames=12, sampling=drawing.sampling, guidance=1.0, seed=8)
    assert not torch.equal(other(lm, range(5), head="chain"), whole)
    first = drawing(lm, range(5), head="parallel")[:, 0, 0]
    assert torch.equal(first, whole[:, 0, 0])  # of the first codebook of the first step both heads have one law
    assert len({tuple(one.flatten().tolist()) for one in whole}) == 5


def test_a_generator_for_each_clip_draws_from_the_law() -> None:
    logits = torch.tensor([[0.0, 1.0, -1e9, 2.0]]).expand(8000, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in range(8000)]
    counts = Sampling().draw(logits, generators).bincount(minlength=4)
    wanted = 8000 * logits[0].softmax(0)
    assert counts[2] == 0
    chi2 = float(((counts - wanted).square() / wanted)[[0, 1, 3]].sum())
    assert chi2 < 13.8  # 2 degrees of freedom, p = 0.001
    greedy = Sampling(top_k=1).draw(logits, generators)
    assert (greedy == 3).all()


def test_audio_and_codes_lie_where_results_look_for_them(
    codec: CompressionModel, tokens: TokenSet, tmp_path: Path
) -> None:
    folder = tmp_path / "xp"
    generate(language_model(), codec, tokens, folder)
    found = samples_frame({"aaaa": folder})
    estimates, references = (found[found["kind"] == kind] for kind in ("estimate", "reference"))
    names = estimates["clip"].tolist()
    assert len(names) == 8 and set(estimates["epoch"]) == {3}  # two clips of each kind and head
    for kind in ("prompted", "unprompted"):
        for head in ("parallel", "chain"):
            assert sum(name.startswith(f"{kind}_{head}-") for name in names) == 2
    assert sorted(references["clip"]) == sorted(name for name in names if name.startswith("prompted"))
    for path in found["path"]:
        codes = torch.from_numpy(np.load(path.with_suffix(".npy")).astype(np.int64))
        wav, rate = soundfile.read(path, dtype="float32")
        assert codes.shape == (N_Q, FRAMES) and rate == RATE
        assert np.abs(codec.decode(codes[None])[0, 0].detach().numpy().clip(-1, 1) - wav).max() < 1e-3
    for path in references["path"]:
        source = json.loads(path.with_suffix(".json").read_text())
        track = [one.path for one in tokens.tracks].index(source["path"])
        true = tokens.codes(track, round(source["start_s"] * FRAME_RATE), FRAMES).numpy()
        assert np.array_equal(np.load(path.with_suffix(".npy")), true)
        drawn = np.load(folder / "samples/epoch_0003" / path.with_suffix(".npy").name)
        assert np.array_equal(drawn[:, :GIVEN], true[:, :GIVEN])
        assert not np.array_equal(drawn, true)
        assert source["prompt_s"] == pytest.approx(GIVEN / FRAME_RATE)


def test_distances_are_those_between_decoded_codes(
    codec: CompressionModel, tokens: TokenSet, made: tuple[Path, dict[str, float]]
) -> None:
    folder, metrics = made
    windows = [(0, 0), (0, 30), (0, 60), (1, 0), (1, 30), (2, 0)]  # (track, first frame); track 3 is too short

    def moments(codes: Tensor, begin: int) -> tuple[Moments, Moments]:
        wav = codec.decode(codes[None])[0, :, begin * HOP :].detach()
        return Moments.of(LogMelFrames(RATE)(wav)), Moments.of(codec.decode_latent(codes[None, :, begin:])[0].T)

    def drawn(start: str) -> list[Tensor]:
        paths = sorted((folder / "samples/epoch_0003").glob(f"{start}-*.npy"))
        return [torch.from_numpy(np.load(path).astype(np.int64)) for path in paths]

    for index, (name, relative) in enumerate((("fmd", False), ("fcd", True))):
        true = [moments(tokens.codes(*window, FRAMES), 0)[index] for window in windows]
        tracks = [true[0].merge(true[1]).merge(true[2]), true[3].merge(true[4]), true[5]]
        heads = []
        for head in ("parallel", "chain"):
            own = [moments(codes, 0)[index] for codes in drawn(f"unprompted_{head}")]
            assert len(own) == 9
            heads.append(distance_of_sets(own, tracks, relative=relative))
        for key, one in ((name, heads[0]), (f"{name}_chain", heads[1]), (f"{name}_gap", heads[0] - heads[1])):
            assert metrics[key] == pytest.approx(one.value, rel=1e-4, abs=1e-6)
            assert metrics[f"{key}_err"] == pytest.approx(one.error, rel=1e-4)
        assert metrics[f"{name}_prompted_gap"] == pytest.approx(
            metrics[f"{name}_prompted"] - metrics[f"{name}_prompted_chain"], rel=1e-6, abs=1e-9
        )
    assert len(metrics) == 2 * 2 * 3 * 2
    report = json.loads((folder / "generate.json").read_text())
    assert report["metrics"] == pytest.approx(metrics)
    assert report["settings"]["num_clips"] == 9 and report["epoch"] == 3


def test_a_model_that_continues_as_the_music_does_is_at_distance_0(
    codec: CompressionModel, tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = language_model(["parallel"])
    monkeypatch.setattr(lm, "generate", lambda frames, *, prompt, **_: _endings(tokens, prompt, frames))
    metrics = generate(lm, codec, tokens, tmp_path / "xp")
    for name in ("fmd_prompted", "fmd_prompted_err", "fcd_prompted", "fcd_prompted_err"):
        assert abs(metrics[name]) < 1e-6
    assert metrics["fmd"] > 1e-3


def _endings(tokens: TokenSet, prompt: Tensor | None, frames: int) -> Tensor:
    """What really follows each prompt, and three clips of one code."""
    if prompt is None:
        return torch.zeros(3, N_Q, frames, dtype=torch.long)
    every = [
        tokens.codes(t, s, frames) for t in range(3) for s in range(0, tokens.tracks[t].frames - frames + 1, FRAMES)
    ]
    return torch.stack([next(one for one in every if torch.equal(one[:, :GIVEN], codes)) for codes in prompt])


def test_batches_change_nothing(
    codec: CompressionModel, tokens: TokenSet, made: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder, wanted = made
    lm, steps = language_model(), list[int]()
    before = torch.random.get_rng_state()
    cfg = configuration(batch_size=4, num_samples=9)
    found = generate_clips(lm, codec, [tokens, tokens], cfg, tmp_path, 3, after_step=lambda: steps.append(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert codes_below(tmp_path) == codes_below(folder)
    assert len(steps) == 2 + 3 * 2 + 2 * 3


def codes_below(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*.npy"))}


def test_two_processes_make_what_one_makes(
    codec: CompressionModel,
    tokens: TokenSet,
    made: tuple[Path, dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, given, steps = language_model(), list[Any](), {0: 0, 1: 0}
    monkeypatch.setattr(lm_generation, "world_size", lambda: 2)

    def gather(own: dict[int, Any], rank: int) -> list[Any]:
        if rank == 0:
            return [own, given.pop(0)]
        given.append(own)
        return [own, {number - 1: one for number, one in own.items()}]  # the other's are to come; nothing reads these

    def after_step(rank: int) -> None:
        steps[rank] += 1

    for rank in (1, 0):  # one after the other
        monkeypatch.setattr(lm_generation, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(lm_generation, "is_source", lambda rank=rank: rank == 0)
        monkeypatch.setattr(lm_generation, "gather_objects", partial(gather, rank=rank))
        cfg = configuration(batch_size=4, num_samples=9)
        found = generate_clips(lm, codec, [tokens, tokens], cfg, tmp_path, 3, after_step=partial(after_step, rank))
    folder, wanted = made
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert steps[0] == steps[1] > 0
    assert codes_below(tmp_path) == codes_below(folder)


def test_labels_of_held_out_tracks_reach_the_model(codec: CompressionModel, tmp_path: Path) -> None:
    tokens, lm = (
        write_tokens(tmp_path / "tokens", labels=["b", None, "a", "a"]),
        language_model(["parallel"], labels=["a", "b"]),
    )
    seen: list[list[int]] = []
    lm.generate = _watching(lm.generate, seen)  # type: ignore[method-assign]
    found = generate(lm, codec, tokens, tmp_path / "xp", guidance=2.0, batch_size=16)
    assert "fmd" in found and "fmd_gap" not in found
    assert seen == [[1, 1, 1, 2, 2, 0, 1, 1, 1], [1, 1, 1, 2, 2, 0]]
    unknowing = language_model(["parallel"], labels=["b"])
    with pytest.raises(DataError, match="label 'a' is unknown"):
        generate(unknowing, codec, tokens, tmp_path / "xp")
    with pytest.raises(ConfigError, match="Guidance"):
        generate(language_model(["parallel"]), codec, tokens, tmp_path / "xp", guidance=2.0)


def _watching(generate: Callable[..., Tensor], seen: list[list[int]]) -> Callable[..., Tensor]:
    def watched(*args: Any, labels: Tensor, **options: Any) -> Tensor:
        seen.append(labels.tolist())
        return generate(*args, labels=labels, **options)

    return watched


def test_what_cannot_be_drawn_or_measured_has_a_reason(
    codec: CompressionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, lm = write_tokens(tmp_path / "tokens", (65, 15)), language_model()
    with pytest.raises(DataError, match=r"shorter than the 24.1 s of a generated clip, the longest has 16.6 s"):
        generate(lm, codec, tokens, tmp_path / "xp", seconds=24.0)
    with pytest.raises(ConfigError, match=r"prompt_duration=7.68: give less than the 7.68 s"):
        generate(lm, codec, tokens, tmp_path / "xp", prompt_duration=SECONDS)
    with caplog.at_level(logging.WARNING):
        assert generate(lm, codec, tokens, tmp_path / "xp", num_clips=3) == {}  # of one recording
    assert "left out 1 of 2 tracks" in caplog.text
    assert "fmd is left out: 90 frames in the generated set, 60 without its largest recording" in caplog.text
    assert "fcd is left out: 1 recordings in the reference set" in caplog.text
    assert len(list((tmp_path / "xp/samples/epoch_0003").glob("*.wav"))) == 8
