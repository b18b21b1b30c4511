"""The solver of language models on real files: metrics, resuming, its codec, its cache of codes, what it refuses."""

import copy
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiotok import train
from audiotok.checkpoint import LAST, load_checkpoint, save_checkpoint
from audiotok.config_text import saved_text
from audiotok.data.audio import audio_info
from audiotok.data.manifest import read_manifest, write_manifest
from audiotok.data.tokens import TokenDataset, TokenSet
from audiotok.errors import AudiotokError, CheckpointError, ConfigError, DataError
from audiotok.files import hold_lock
from audiotok.models import CompressionModel, get_compression_model
from audiotok.models.codec_lm import CodecLM
from audiotok.models.fingerprint import codec_hash
from audiotok.models.pretrained import configuration_of
from audiotok.solvers import LMSolver, lm_data
from audiotok.solvers.averages import to_floats
from audiotok.solvers.builders import HELD_OUT_SEED
from audiotok.solvers.interruption import PROGRESS, Interrupted, StopSignals
from audiotok.solvers.precision import LossScale
from audiotok.status import read_status
from audiotok.tokenizing import tokenize
from tests.conftest import data_overrides
from tests.solvers.test_interruption import launch, stop_at, without_time
from tests.solvers.test_loggers import events
from tests.solvers.test_precision import without_compiler

Enter = Callable[..., AbstractContextManager[LMSolver]]
UPDATES, EPOCHS = 3, 2
FRAME_RATE, N_Q, BINS = 25, 2, 16
# Per epoch 3 updates, 2 steps of valid, 1 of evaluate; in the last one also steps of generate.
SMALL = [
    "solver=lm/debug",
    "device=cpu",
    f"optim.epochs={EPOCHS}",
    f"optim.updates_per_epoch={UPDATES}",
    "lm.dropout=0.2",
    "dataset.evaluate.num_samples=3",
    "evaluate.every=1",
    "generate.every=2",
    "schedule.lr_scheduler=cosine",
    "schedule.cosine.warmup=2",
]


@pytest.fixture(scope="module")
def make_codec(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that writes a codec of random weights as an exported file."""

    def make(seed: int = 0, *overrides: str) -> Path:
        cfg = train.main.get_xp(["solver=compression/debug", "rvq.kmeans_init=false", *overrides]).cfg
        torch.manual_seed(seed)
        weights = get_compression_model(cfg).state_dict()
        path = tmp_path_factory.mktemp("codec") / "codec.bin"
        save_checkpoint({"best_state": weights, "xp.cfg": saved_text(cfg, cfg), "exported": True}, path)
        return path

    return make


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Path]) -> Path:
    """A codec of 2 codebooks of 16 at 25 Hz."""
    return make_codec()


@pytest.fixture
def solver_in(music: Path, codec: Path) -> Enter:
    """Function of a Dora folder and overrides: a context with the solver of that experiment, inside it."""

    @contextmanager
    def enter(root: Path, *overrides: str) -> Iterator[LMSolver]:
        old, train.main.dora.dir = train.main.dora.dir, root
        try:
            given = [*SMALL, *data_overrides(music), f"compression_model_checkpoint={codec}", *overrides]
            xp = train.main.init_xp(train.main.get_xp(given))
            with xp.enter():
                solver = train.get_solver(xp.cfg)
                assert isinstance(solver, LMSolver)
                yield solver
        finally:
            train.main.dora.dir = old

    return enter


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, music: Path, codec: Path) -> Path:
    """Folder of an experiment that nothing interrupts."""
    old, train.main.dora.dir = train.main.dora.dir, tmp_path_factory.mktemp("whole")
    try:
        given = [*SMALL, *data_overrides(music), f"compression_model_checkpoint={codec}"]
        xp = train.main.init_xp(train.main.get_xp([*given, "logging.log_tensorboard=true", "logging.every=1"]))
        with xp.enter():
            train.get_solver(xp.cfg).run()
        return Path(xp.folder)
    finally:
        train.main.dora.dir = old


def test_its_loss_is_watched_and_what_it_draws_is_logged(whole: Path) -> None:
    courses = load_checkpoint(whole / LAST)["watch"]["courses"]
    assert {name: len(course["usual"]) for name, course in courses.items()} == dict.fromkeys(
        ("loss", "grad_norm"), UPDATES * EPOCHS
    )
    shown = events(whole)
    assert [point.step for point in shown.Scalars("step/loss")] == [*range(1, UPDATES * EPOCHS + 1)]
    assert [point.step for point in shown.Scalars("valid/ce")] == [1, 2]
    takes = {tag.split("/")[1] for tag in shown.Tags()["audio"]}
    drawn = {path.stem for path in (whole / "samples" / f"epoch_{EPOCHS:04d}").glob("*.wav")}
    assert takes and takes <= drawn
    prompted = [name for name in takes if name.startswith("prompted_")]
    assert prompted and {f"samples/{name}/reference" for name in prompted} <= {*shown.Tags()["audio"]}


def test_history_has_the_metrics_of_every_stage(whole: Path) -> None:
    history = json.loads((whole / "history.json").read_text())
    of_all = {"ce", "ce_q1", "ce_q2", "ce_chain", "ppl", "ppl_q1", "ppl_q2", "bits_frame", "bits_s", "bits_frame_chain"}
    assert [list(epoch) for epoch in history] == [
        ["train", "valid", "evaluate"],
        ["train", "valid", "evaluate", "generate"],
    ]
    for epoch in history:
        assert set(epoch["train"]) == of_all | {"loss", "grad_norm", "clipped", "duration"}
        assert set(epoch["valid"]) == of_all | {"duration"}
        assert set(epoch["evaluate"]) >= of_all | {"duration", "protocol"}
        for stage in ("train", "valid", "evaluate"):
            found = epoch[stage]
            assert found["ce"] == pytest.approx((found["ce_q1"] + found["ce_q2"]) / N_Q)
            assert found["ppl_q2"] == pytest.approx(math.exp(found["ce_q2"]))
            assert found["bits_frame"] == pytest.approx((found["ce_q1"] + found["ce_q2"]) / math.log(2))
            assert found["bits_s"] == pytest.approx(FRAME_RATE * found["bits_frame"])
            assert all(math.isfinite(value) for value in found.values())
        # The chain adds nothing before training, and in training counts once, without the first codebook.
        assert epoch["train"]["loss"] > epoch["train"]["ce"]
    assert history[1]["valid"]["ce"] < history[0]["valid"]["ce"], "it learns"


def test_evaluate_is_the_mean_over_windows_of_the_split(whole: Path, music: Path) -> None:
    lm = CodecLM.get_pretrained(whole)
    own = own_paths(music, "evaluate")
    sets = [TokenSet.open(path) for path in sorted((whole.parents[1] / "tokens").iterdir()) if path.is_dir()]
    assert len(sets) == 4 and {(one.n_q, one.bins, one.frame_rate) for one in sets} == {(N_Q, BINS, FRAME_RATE)}
    found = json.loads((whole / "history.json").read_text())[-1]["evaluate"]
    (tokens,) = (one for one in sets if [track.path for track in one.tracks] == own)
    windows = [
        (track, tokens.codes(track, start, FRAME_RATE))
        for track, entry in enumerate(tokens.tracks)
        for start in range(0, entry.frames - FRAME_RATE + 1, FRAME_RATE)
    ]
    windows = [windows[(2 * i + 1) * len(windows) // 6] for i in range(3)]  # evenly spread
    (valid,) = (one for one in sets if [track.path for track in one.tracks] == own_paths(music, "valid"))
    scale_chains(lm, valid)
    totals, counts = torch.zeros(3, N_Q, dtype=torch.float64), [0] * N_Q
    for _, codes in windows:
        with torch.no_grad():
            nll, alone = lm.nll(codes[None]), lm.alone.nll(codes[None]) if lm.alone is not None else None
        assert nll.chain is not None and alone is not None and alone.chain is not None
        for k in range(N_Q):
            for t in range(FRAME_RATE):
                if nll.mask[k, t]:
                    less = alone.parallel[0, k, t] - alone.chain[0, k, t]
                    totals[:, k] += torch.stack([nll.parallel[0, k, t], nll.chain[0, k, t], less])
                    counts[k] += 1
    parallel, chain, alone_gap = (row / torch.tensor(counts) for row in totals)
    assert found["ce"] == pytest.approx(float(parallel.mean()), rel=1e-5)
    assert found["bits_frame_chain"] == pytest.approx(float(chain.sum()) / math.log(2), rel=1e-5)
    assert found["gap"] == pytest.approx(float((parallel - chain).sum()) / math.log(2), abs=1e-5)
    assert found["gap_q2"] == pytest.approx(found["gap"]) and found["gap_recordings"] == len({t for t, _ in windows})
    assert found["gap_alone"] == pytest.approx(float(alone_gap.sum()) / math.log(2), abs=1e-5)
    assert found["gap_converged"] in (0.0, 1.0)


def own_paths(music: Path, split: str) -> list[str]:
    return [str(meta.path) for meta in read_manifest(music / f"{split}.jsonl.gz")]


def scale_chains(lm: CodecLM, valid: TokenSet) -> None:
    """Scale both chain heads by the factor of fewest bits over the 8 windows of valid."""
    data = TokenDataset(valid, frames=FRAME_RATE, num_samples=8, shuffle=False, seed=HELD_OUT_SEED)
    codes = torch.stack([data[i][0] for i in range(8)])
    for module in (lm, lm.alone):
        assert module is not None and module.depth is not None
        bits = {}
        for factor in (1, 0.75, 0.5, 0.25, 0):
            scaled = copy.deepcopy(module)
            assert scaled.depth is not None
            for parameter in scaled.depth.linears.requires_grad_(False).parameters():
                parameter.mul_(factor)
            with torch.no_grad():
                chain = scaled.nll(codes).chain
            assert chain is not None
            bits[factor] = float(chain[:, 1].sum())
        for parameter in module.depth.linears.requires_grad_(False).parameters():
            parameter.mul_(min(bits, key=lambda factor: bits[factor]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([1], [(1, [])]),
        ([2, 4], [(2, []), (3, ["train", "valid"])]),
        ([4, 15], [(3, ["train"]), (1, [])]),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, solver_in: Enter, stops: list[int], expected: list[tuple[int, list[str]]]
) -> None:
    found = []
    for step in stops:
        with solver_in(tmp_path) as solver, StopSignals() as stop:
            stop_at(solver, stop, step)
            with pytest.raises(Interrupted):
                solver.run()
            progress = load_checkpoint(solver.checkpoint_path)[PROGRESS]
            found.append((progress["updates"], list(progress["stages"])))
    with solver_in(tmp_path) as solver:
        solver.run()
        assert without_time(load_checkpoint(solver.checkpoint_path)) == without_time(load_checkpoint(whole / LAST))
    assert found == expected


@pytest.mark.parametrize(
    "overrides",
    [["precision=bf16", "optim.accumulate=2"], ["precision=fp16"], ["compile=true"]],
    ids=["bf16", "fp16", "compiled"],
)
def test_it_stops_and_goes_on_in_every_precision(
    tmp_path: Path, solver_in: Enter, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if overrides == ["compile=true"]:
        without_compiler(monkeypatch)
    monkeypatch.setattr(LossScale, "start", 2.0**6)  # too few updates to come down from 2^16
    given = [*overrides, "optim.epochs=1", "evaluate.every=null", "generate.every=null"]
    for stage in ("evaluate", "generate"):
        monkeypatch.setattr(LMSolver, stage, lambda self: {})
    torch._dynamo.utils.counters.clear()
    with solver_in(tmp_path / "whole", *given) as solver:
        solver.run()
        whole = load_checkpoint(solver.checkpoint_path)
    assert (torch._dynamo.utils.counters["frames"]["ok"] > 0) == ("compile=true" in overrides)
    with solver_in(tmp_path / "parts", *given) as solver, StopSignals() as stop:
        stop_at(solver, stop, 1)
        with pytest.raises(Interrupted):
            solver.run()
        assert load_checkpoint(solver.checkpoint_path)[PROGRESS]["updates"] in (1, 2)
    with solver_in(tmp_path / "parts", *given) as solver:
        solver.run()
        assert without_time(load_checkpoint(solver.checkpoint_path)) == without_time(whole)


def test_a_compiled_trunk_has_the_likelihood_of_the_other(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(monkeypatch)
    found, keys = [], []
    for compiled in ("false", "true"):
        with solver_in(tmp_path, "lm.dropout=0", f"compile={compiled}") as solver:
            solver.model.train()
            solver._current_stage = "train"
            solver.dataloaders["train"].set_epoch(1)
            batches = [*solver.dataloaders["train"]]
            found.append([to_floats(solver.run_step(batch)) for batch in batches[:2]])
            keys.append([*solver.model.state_dict()])
    assert keys[0] == keys[1]
    for plain, other in zip(*found, strict=True):
        assert other == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_two_ranks_train_and_measure_as_one(tmp_path: Path, music: Path, codec: Path) -> None:
    histories = []
    for ranks in (1, 2):
        root = tmp_path / str(ranks)
        root.mkdir()
        more = ["lm.dropout=0", f"compression_model_checkpoint={codec}"]
        given = [*SMALL, *more]
        assert launch(root, music, ranks, "0", "0", given=given) == [0] * ranks, (root / "0.log").read_text()
        (folder,) = (root / "xps").iterdir()
        status = read_status(folder)
        assert status is not None and status["state"] == "COMPLETED"
        histories.append(json.loads((folder / "history.json").read_text()))
    for one, two in zip(*histories, strict=True):
        for stage in ("train", "valid", "evaluate"):
            timeless = [{k: v for k, v in of[stage].items() if k != "duration"} for of in (one, two)]
            assert timeless[1] == pytest.approx(timeless[0], rel=1e-4), stage
    assert histories[0][-1]["evaluate"]["protocol"] == histories[1][-1]["evaluate"]["protocol"]


def test_codes_are_made_once_for_a_codec_and_a_manifest(
    tmp_path: Path, solver_in: Enter, make_codec: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    original = tokenize

    def counted(*args: Any, **kwargs: Any) -> Any:
        if not (args[2] / "tokens.json").exists():
            made.append(args[2])
        return original(*args, **kwargs)

    monkeypatch.setattr("audiotok.solvers.lm_data.tokenize", counted)
    with solver_in(tmp_path) as solver:
        first = solver.codes
        # Several processes at once: the first makes a set, the others wait for it.
        codec, cfg = solver.codec, solver.cfg
        threads = [
            threading.Thread(target=lm_data.get_token_sets, args=(cfg, codec, tmp_path / "other")) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == len(set(made)) == 8
    with solver_in(tmp_path, "seed=5") as solver:
        assert solver.codes == first
    assert len(made) == 8
    other = make_codec(1)
    with solver_in(tmp_path, f"compression_model_checkpoint={other}") as solver:
        assert solver.codes.codec_hash != first.codec_hash
    assert len(made) == 12


def test_what_waits_for_codes_of_another_process_says_so(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    waits = threading.Event()

    def logged(text: str, *values: object) -> None:
        messages.append(text % values)
        if text.startswith("waiting"):
            waits.set()

    with solver_in(tmp_path) as solver:
        monkeypatch.setattr(lm_data.logger, "info", logged)
        lm_data.get_token_sets(solver.cfg, solver.codec, tmp_path)  # all there, and nobody makes them
        assert messages == []
        folder = solver.tokens["valid"].folder
        with hold_lock(folder.with_name(f"{folder.name}.lock")):
            job = threading.Thread(target=lm_data.get_token_sets, args=(solver.cfg, solver.codec, tmp_path))
            job.start()
            assert waits.wait(60)
        job.join()
    manifest = solver.cfg.datasource.valid
    assert messages == [f"waiting for {folder}: another process makes the codes of {manifest}"]


def test_a_trained_model_is_used_with_its_codec_alone(whole: Path, tmp_path: Path, make_codec: Callable[..., Path],
                                                     codec: Path, solver_in: Enter) -> None:  # fmt: skip
    own, other = (codec_hash(CompressionModel.get_pretrained(path)) for path in (codec, make_codec(1)))
    lm = CodecLM.get_pretrained(whole, codec_hash=own)
    assert lm.codes.codec_hash == own and (lm.n_q, lm.bins, lm.codes.frame_rate) == (N_Q, BINS, FRAME_RATE)
    assert lm.generate(5, num_samples=2, head="chain").shape == (2, N_Q, 5)
    with pytest.raises(CheckpointError, match=f"{own[:12]}.*{other[:12]}"):
        CodecLM.get_pretrained(whole, codec_hash=other)
    with pytest.raises(CheckpointError, match="no section codes"):
        CodecLM.get_pretrained("demo")
    with pytest.raises(DataError, match="trained without labels"):
        lm.label_ids(["rock"])
    with solver_in(tmp_path, f"continue_from={whole}") as solver:
        solver.restore()
        assert all(torch.equal(v, lm.state_dict()[k]) for k, v in solver.model.state_dict().items())
    changed = [f"compression_model_checkpoint={make_codec(1)}", f"continue_from={whole}"]
    with solver_in(tmp_path, *changed) as solver, pytest.raises(CheckpointError, match="reads codes of codec"):
        solver.restore()
    wider = make_codec(0, "rvq.n_q=3")
    changed = [f"compression_model_checkpoint={wider}", f"continue_from={whole}"]
    with solver_in(tmp_path, *changed) as solver, pytest.raises(CheckpointError, match="reads codes of codec"):
        solver.restore()


def test_a_label_is_text_whatever_it_looks_like(
    tmp_path: Path, solver_in: Enter, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["${lm.dim}", "${oc.env:TOKEN}", "<b>", "=1+1", "null", "a\nb: c"]
    monkeypatch.setenv("TOKEN", "hunter2")
    manifests = []
    for split in ("train", "valid", "evaluate", "generate"):
        metas = read_manifest(music / f"{split}.jsonl.gz")
        path = tmp_path / f"{split}.jsonl"
        lines = [
            {"path": str(m.path), "duration": m.duration, "sample_rate": m.sample_rate, "channels": m.channels}
            for m in metas
        ]
        tagged = [line | {"mood": names[index % len(names)]} for index, line in enumerate(lines)]
        path.write_text("".join(json.dumps(line) + "\n" for line in tagged))
        manifests.append(f"datasource.{split}={path}")
        if split == "train":
            known = sorted({str(line["mood"]) for line in tagged})
    assert "${oc.env:TOKEN}" in known
    with solver_in(tmp_path, *manifests, "lm.labels=mood") as solver:
        state = {"best_state": {"model": solver.model.state_dict()}, "xp.cfg": solver.cfg_text}
        save_checkpoint(state, tmp_path / "lm.th")
        solver.check_source(configuration_of(state, tmp_path), tmp_path)  # such as on resuming
    assert "hunter2" not in solver.cfg_text
    assert list(CodecLM.get_pretrained(tmp_path / "lm.th").codes.labels) == known


@pytest.mark.parametrize(
    ("codec_of", "channels", "n_q"),
    [
        (["rvq.n_q=1"], 1, 1),
        (["channels=2", "encodec.renormalize=true"], 2, 2),
        (["seanet.norm=time_group_norm", "rvq.n_q=3"], 1, 3),
    ],
)
def test_codecs_of_other_kinds(
    codec_of: list[str], channels: int, n_q: int, tmp_path: Path, solver_in: Enter, make_codec: Callable[..., Path]
) -> None:
    given = [f"compression_model_checkpoint={make_codec(0, *codec_of)}", "optim.epochs=1", "generate.every=1"]
    with solver_in(tmp_path, *given, "schedule.lr_scheduler=null") as solver:
        solver.run()
        found, folder = solver.history[-1]["evaluate"], Path(solver.folder)
    names = [f"ce_q{k}" for k in range(1, n_q + 1)]
    assert [name for name in found if name.startswith("ce_q")] == names
    assert found["ce"] == pytest.approx(sum(found[name] for name in names) / n_q)
    if n_q == 1:  # nothing comes before the only codebook of a step: no gap, and one law for both heads
        assert "gap" not in found and found["bits_frame_chain"] == found["bits_frame"]
    else:
        assert found["gap"] == pytest.approx(found["bits_parallel"] - found["bits_chain"])
    for path in (folder / "samples/epoch_0001").glob("*.wav"):
        info = audio_info(path)
        assert (info.sample_rate, info.channels, info.frames) == (16_000, channels, 50 * 640)
        assert np.load(path.with_suffix(".npy")).shape == (n_q, 50)


def test_a_codec_does_not_continue_from_a_language_model(whole: Path, tmp_path: Path, music: Path) -> None:
    given = ["solver=compression/debug", "device=cpu", *data_overrides(music), f"continue_from={whole}"]
    old, train.main.dora.dir = train.main.dora.dir, tmp_path
    try:
        xp = train.main.init_xp(train.main.get_xp(given))
        with xp.enter(), pytest.raises(CheckpointError, match="is of a language model, not of a codec; continue from"):
            train.get_solver(xp.cfg).restore()
    finally:
        train.main.dora.dir = old


@pytest.mark.slow
def test_a_codec_that_has_changed_under_its_name_stops_the_resumed_run(
    tmp_path: Path, solver_in: Enter, make_codec: Callable[..., Path]
) -> None:
    path, other = make_codec(2), make_codec(3)
    with solver_in(tmp_path, f"compression_model_checkpoint={path}", "optim.epochs=1") as solver:
        solver.run()
    path.write_bytes(other.read_bytes())
    with (
        solver_in(tmp_path, f"compression_model_checkpoint={path}", "optim.epochs=1") as solver,
        pytest.raises(CheckpointError, match="reads codes of codec"),
    ):
        solver.run()


@pytest.mark.slow
def test_folders_are_labels(tmp_path: Path, solver_in: Enter, music: Path) -> None:
    manifests = []
    for split in ("train", "valid", "evaluate", "generate"):
        metas = read_manifest(music / f"{split}.jsonl.gz")
        moved = []
        for index, meta in enumerate(metas):
            path = tmp_path / "music" / ("ambient", "rock")[index % 2] / meta.path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(meta.path.read_bytes())
            moved.append(type(meta)(path, meta.duration, meta.sample_rate, meta.channels))
        manifests.append(f"datasource.{split}={write_manifest(tmp_path / 'music' / f'{split}.jsonl.gz', moved)}")
    with solver_in(tmp_path, *manifests, "lm.labels=folder", "optim.epochs=1") as solver:
        solver.run()
        folder = Path(solver.folder)
    lm = CodecLM.get_pretrained(folder)
    assert list(lm.codes.labels) == ["ambient", "rock"] and lm.num_labels == 2
    assert lm.label_ids(["rock", None, "ambient"]).tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="'jazz' is unknown to this language model: it knows ambient, rock"):
        lm.label_ids(["jazz"])
    # The codes are the same whatever the labels are.
    with solver_in(tmp_path, *manifests):
        assert len([path for path in (tmp_path / "tokens").iterdir() if path.is_dir()]) == 4
    with (
        solver_in(tmp_path, *manifests, "lm.labels=folder", f"continue_from={folder}") as solver,
    ):
        assert solver.restore()
    first = read_manifest(music / "generate.jsonl.gz")[0]
    jazz = tmp_path / "music/jazz" / first.path.name
    jazz.parent.mkdir()
    jazz.write_bytes(first.path.read_bytes())
    only = write_manifest(tmp_path / "music/jazz.jsonl.gz", [type(first)(jazz, first.duration, first.sample_rate, 1)])
    # Before the training, not in the stage after it.
    of_generate = pytest.raises(DataError, match="'jazz', which is not among those of training: ambient, rock")
    with of_generate, solver_in(tmp_path, *manifests[:3], f"datasource.generate={only}", "lm.labels=folder"):
        pass
    unseen = manifests[:1] + manifests[2:] + [f"datasource.valid={music}/valid.jsonl.gz"]
    unseen_labels = pytest.raises(DataError, match="not among those of training")
    with unseen_labels, solver_in(tmp_path, *unseen, "lm.labels=folder"):
        pass


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("compression_model_checkpoint=null", ConfigError, "compression_model_checkpoint not set"),
        ("compression_model_checkpoint=//sig/0123abcd", CheckpointError, "no experiment 0123abcd"),
        ("compression_model_checkpoint=/no/such.th", CheckpointError, "no checkpoint at /no/such.th"),
        ("dataset.segment_duration=60", DataError, "train of .*a window has 1500 frames"),
        ("lm.pattern=coarse_first lm.delays=[0,1]", ConfigError, "takes 1"),
        ("lm.delays=[0,1,2]", ConfigError, "takes 2"),
        ("lm.delays=[0,25]", ConfigError, "windows of 25 frames of train: pattern delay delays codebook 2 beyond"),
        ("dataset.valid.segment_duration=0.02", ConfigError, "windows of 1 frames of valid: .* codebook 2 beyond"),
        ("dataset.generate.segment_duration=60", DataError, "every track is shorter than the 60 s of a generated clip"),
        ("dataset.generate.num_samples=null", ConfigError, "num_samples=null of generate"),
        ("continue_from=demo", CheckpointError, "no checkpoint of a language model"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    tmp_path: Path, solver_in: Enter, override: str, kind: type[AudiotokError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught, solver_in(tmp_path, *override.split()) as solver:
        solver.restore()
    assert caught.value.exit_code == 2 and len(str(caught.value).splitlines()) == 1


def test_a_codec_in_training_is_not_taken_for_a_trained_one(tmp_path: Path, solver_in: Enter, codec: Path) -> None:
    folder = tmp_path / "xps" / "0123abcd"
    state = load_checkpoint(codec)
    weights = {"best_state": {"model": state["best_state"]}, "xp.cfg": state["xp.cfg"]}
    for epochs, best in ((0, {}), (1, weights["best_state"])):
        save_checkpoint({**weights, "best_state": best, "history": [{}] * epochs, PROGRESS: {}}, folder / LAST)
        refused = pytest.raises(CheckpointError, match=f"not trained yet: {epochs} of 2 epochs")
        with refused, solver_in(tmp_path, "compression_model_checkpoint=//sig/0123abcd"):
            pass
    save_checkpoint({**weights, "history": [{}] * 2}, folder / LAST)
    with solver_in(tmp_path, "compression_model_checkpoint=//sig/0123abcd") as solver:
        assert solver.codes.codec == "//sig/0123abcd" and solver.tokens["train"].signature == "0123abcd"
