"""A codec inside the page: a sound of the reader's own, encoded and decoded in a real browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from playwright.sync_api import BrowserContext, Page, expect
from torch import Tensor

from audiotok.checkpoint import own_models
from audiotok.cli import main
from audiotok.errors import ResultsError
from audiotok.models import CompressionModel, EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.report import PageModel
from audiotok.report.own_sound import worker_source
from tests.codecs import config, save_codec
from tests.export.test_onnx import near_ties
from tests.report.conftest import EVIL, RATE, add_run, melody, wait_for, watched

NEAR = 1e-3  # of a squared distance: what two ways of adding up may decide differently
# What the worker sends, kept for the test.
SPY = """
window.sent = [];
const Plain = window.Worker;
window.Worker = class extends Plain {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", ({ data }) => sent.push(data));
  }
};
"""
POLICY = re.compile(r'Content-Security-Policy" content="([^"]*)"')


def test_a_page_without_a_model_allows_no_webassembly(reports: dict[str, Path]) -> None:
    text = (reports["demo"] / "index.html").read_text(encoding="utf-8")
    policy = POLICY.search(text)
    assert policy and "wasm" not in policy[1] and "worker" not in policy[1] and "own-file" not in text


@pytest.mark.browser
def test_a_sound_goes_through_the_codec_of_the_page(
    results: Path, tmp_path: Path, context: BrowserContext, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "demo.html"
    command = ["report", "demo", "--root", str(results), "--single-file", "--output", str(output), "--clips", "0"]
    with caplog.at_level("INFO"):
        assert main([*command, "--with-model", "demo"]) == 0
    assert re.search(
        r"model demo \(named by --with-model\): \d+\.\d MB in the page, and \d+\.\d MB of ONNX", caplog.text
    )
    policy = POLICY.search(output.read_text(encoding="utf-8"))
    assert policy and "'wasm-unsafe-eval'" in policy[1] and "'unsafe-eval'" not in policy[1]
    assert "connect-src" not in policy[1] and "default-src 'none'" in policy[1]

    model = CompressionModel.get_pretrained("demo")
    t = torch.arange(model.sample_rate) / model.sample_rate
    wav = 0.3 * (torch.sin(2 * torch.pi * 220 * t) + torch.sin(2 * torch.pi * 331 * t) * t)
    sound = io.BytesIO()
    soundfile.write(sound, wav.numpy(), model.sample_rate, format="WAV", subtype="FLOAT")

    page = context.new_page()
    trouble, requests = watched(page)
    page.goto(output.as_uri())
    expect(page.locator("#own")).to_contain_text(re.compile(r"holds the model, \d+\.\d MB of it"))
    page.locator("#own-file").set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    expect(page.locator("#own-problem")).to_have_text("a.wav: this browser finds no sound in it that it can decode.")
    page.locator("#own-file").set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": sound.getvalue()})
    expect(page.locator("#own-status")).to_have_text("Ready to play")
    expect(page.locator("#own-problem")).to_have_text("")
    with torch.inference_mode():
        codes, _ = model.encode(wav[None, None])
        expected = model.decode(codes)[0, 0, : len(wav)].numpy()
    expect(page.locator("#own-facts")).to_contain_text(f"{codes.shape[2]} frames × {codes.shape[1]} codebooks")
    with page.expect_download() as download:
        page.locator("#own-save").click()
    assert download.value.suggested_filename == "a_demo.wav"
    found, rate = soundfile.read(download.value.path())
    assert rate == model.sample_rate and found.shape == expected.shape
    # Two kernels may round a near tie of codes otherwise: then a few frames differ, and no others.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.1
    page.locator("#own-play").click()
    expect(page.locator("#own-play")).to_have_text("Pause")
    assert trouble == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [output.as_uri()]


@pytest.fixture(scope="module")
def model() -> EncodecModel:
    """The codec that comes with the package."""
    found = CompressionModel.get_pretrained("demo")
    assert isinstance(found, EncodecModel)
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one file with the model in it."""
    root = tmp_path_factory.mktemp("own")
    history = [{"valid": {"msspec": 1.0}, "evaluate": {"sisdr": 5.0}}]
    add_run(root, "g", "00000001", ["seed=1"], history, state="COMPLETED")
    command = ["report", "g", "--root", str(root), "--with-model", "demo", "--single-file"]
    assert main([*command, "--output", str(root / "page.html")]) == 0
    return root / "page.html"


@pytest.fixture
def page(context: BrowserContext, page_file: Path) -> Iterator[Page]:
    page = context.new_page()
    trouble, requests = watched(page)
    page.add_init_script(SPY)
    page.goto(page_file.as_uri())
    yield page
    assert trouble == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]


def received(page: Page, name: str) -> list[list[float]]:
    wait_for(page, f"sent.some((message) => message.{name})")
    found: list[list[float]] = page.evaluate(f"sent.find((message) => message.{name}).{name}.map((row) => [...row])")
    return found


def drop(page: Page, wav: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Drop a file of wav [T] on the box."""
    sound = io.BytesIO()
    soundfile.write(sound, wav, 32000, format="WAV", subtype="FLOAT")
    transfer = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "mine.wav"));
            return transfer;
        }""",
        base64.b64encode(sound.getvalue()).decode(),
    )
    page.dispatch_event("#own-drop", "drop", {"dataTransfer": transfer})


def tune(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Notes and noise [T] at 32 kHz."""
    at = np.arange(round(seconds * 32000))
    notes = np.interp(at * RATE / 32000, np.arange(round(seconds * RATE)), melody(3, seconds))
    noise = np.random.default_rng(0).normal(0, 0.02, len(at))
    return np.asarray(0.5 * notes + noise, dtype=np.float32)


def margins(model: EncodecModel, wav: Tensor, codes: Tensor) -> Tensor:
    """By how much [K, T] squared distance a code is farther than the nearest, given the codes before it."""
    assert isinstance(model.quantizer, ResidualVectorQuantizer)
    residual = model.encode_latent(wav)[0][0].T.double()
    found = []
    for codebook, row in zip(model.quantizer.vq.codebooks(model.num_codebooks), codes, strict=True):
        vectors = codebook.embed.double()
        distances = torch.cdist(residual, vectors) ** 2
        found.append(distances.gather(1, row[:, None])[:, 0] - distances.amin(1))
        residual = residual - vectors[row]
    return torch.stack(found)


@pytest.mark.browser
@torch.no_grad()
def test_codes_and_sound_are_those_of_torch(page: Page, model: EncodecModel) -> None:
    wav = tune(2.51)
    drop(page, wav)
    codes = torch.tensor(received(page, "codes"), dtype=torch.int64)
    given = torch.from_numpy(wav)[None, None]
    assert codes.shape == model.encode(given)[0][0].shape == (4, 126)
    assert margins(model, given, codes).max() < NEAR
    expected = model.decode(codes[None])[0, 0, : len(wav)]
    torch.testing.assert_close(torch.tensor(received(page, "wav"))[0], expected, atol=1e-4, rtol=0)
    expect(page.locator("#own-facts")).to_contain_text("2 kb/s")
    expect(page.locator("#own-facts")).to_contain_text("126 frames × 4 codebooks")
    assert page.locator("#own-codes").evaluate("canvas => [canvas.width, canvas.height]") == [126, 4]


@pytest.mark.browser
@torch.no_grad()
def test_a_long_sound_is_cut_and_computed_in_pieces(page: Page, model: EncodecModel, tmp_path: Path) -> None:
    wav = tune(31.0)
    soundfile.write(tmp_path / "long.wav", np.stack([wav, wav], 1), 32000, subtype="FLOAT")
    page.locator("#own-file").set_input_files(tmp_path / "long.wav")
    codes = torch.tensor(received(page, "codes"), dtype=torch.int64)
    one_pass = model.encode(torch.from_numpy(wav[: 30 * 32000])[None, None])[0][0]
    assert codes.shape == one_pass.shape
    assert (codes != one_pass).double().mean() < 0.005
    expect(page.locator("#own-notes")).to_contain_text("the first 30 of its 31.0 s, mono: the mean of both channels")
    expect(page.locator("#own-drawn")).to_have_text("the first 300 frames")


KINDS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True, "pad_mode": "reflect", "true_skip": False},
    "stereo, each clip at its volume": {"channels": 2, "renormalize": True, "norm": "time_group_norm"},
    "normalised over all of the clip": {"norm": "time_group_norm", "pad_mode": "reflect"},
}


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_of_codec_gives_the_codes_of_torch(tmp_path: Path, context: BrowserContext, kind: str) -> None:
    path = save_codec(tmp_path / "kind.bin", **KINDS[kind])
    model = CompressionModel.get_pretrained(path)
    add_run(tmp_path, "g", "00000001", ["seed=1"], [{"evaluate": {"sisdr": 5.0}}], state="COMPLETED")
    command = ["report", "g", "--root", str(tmp_path), "--single-file", "--output", str(tmp_path / "page.html")]
    assert main([*command, "--with-model", str(path)]) == 0
    page = context.new_page()
    trouble, _ = watched(page)
    page.add_init_script(SPY)
    page.goto((tmp_path / "page.html").as_uri())
    drift = torch.linspace(0.05, 1, 11 * model.sample_rate + 33)  # pieces of 10 s would be of other volumes
    wav = drift * torch.randn(model.channels, len(drift), generator=torch.Generator().manual_seed(0)) * 0.2
    soundfile.write(tmp_path / "a.wav", wav.T.numpy(), model.sample_rate, subtype="FLOAT")
    page.locator("#own-file").set_input_files(tmp_path / "a.wav")
    codes = torch.tensor(received(page, "codes"), dtype=torch.int64)
    own, scale = model.encode(wav[None])
    assert codes.shape == own[0].shape and len(codes.unique()) > 8
    assert near_ties(model, wav[None], codes[None]) < 0.05 * codes.shape[1]
    found = torch.tensor(received(page, "wav"))
    expected = model.decode(codes[None], scale)[0, :, : wav.shape[1]]
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert trouble == []


@pytest.mark.parametrize("rate", [600, 192000])
def test_a_rate_that_browsers_do_not_play_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: int
) -> None:
    cfg = config()
    cfg.encodec.sample_rate = rate
    torch.save({**torch.load(save_codec(tmp_path / "a.bin")), "xp.cfg": OmegaConf.to_yaml(cfg)}, tmp_path / "odd.bin")
    add_run(tmp_path, "g", "00000001", ["seed=1"], [{"evaluate": {"sisdr": 5.0}}], state="COMPLETED")
    assert main(["report", "g", "--root", str(tmp_path), "--with-model", str(tmp_path / "odd.bin")]) == 2
    assert f"has {rate} Hz; browsers play 8000 to 96000. Name another with --with-model" in capsys.readouterr().err


@pytest.mark.browser
def test_what_cannot_be_used_is_one_line(page: Page, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_text("no sound")
    soundfile.write(tmp_path / "many.wav", np.zeros((100, 4)), 32000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 32000, subtype="FLOAT")
    for name, line in [("no.wav", "no sound in it"), ("many.wav", "it has 4 channels"), ("nan.wav", "no numbers")]:
        page.locator("#own-file").set_input_files(tmp_path / name)
        expect(page.locator("#own-problem")).to_contain_text(f"{name}: ")
        expect(page.locator("#own-problem")).to_contain_text(line)
    expect(page.locator("#own-result")).to_be_hidden()


def test_the_model_is_the_best_run_or_the_one_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for sig, sisdr in (("00000001", 5.0), ("00000002", 7.0), ("00000003", 9.0)):
        history = [{"train": {"mmd": sisdr}, "evaluate": {"sisdr": sisdr}}]  # the MMD comes first in a table
        folder = add_run(tmp_path, "g", sig, [f"seed={sig[-1]}"], history, state="COMPLETED")
        if sig != "00000003":  # has no checkpoint any more
            shutil.copy(own_models()["demo"], folder / "checkpoint.th")
    command = ["report", "g", "--root", str(tmp_path), "--output", str(tmp_path / "page"), "--with-model"]
    with caplog.at_level("INFO"):
        assert main(command) == 0
    assert re.search(
        r"model 00000002 \(the run that is best by evaluate.sisdr\): \d\.\d MB in the page, and \d\.\d MB", caplog.text
    )
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert "Codec <code>00000002</code>, the run that is best by evaluate.sisdr" in page
    assert main([*command[:-1], "--metric", "train.mmd,evaluate.sisdr", "--with-model"]) == 0
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert "Codec <code>00000001</code>, the run that is best by train.mmd" in page
    assert main([*command, "00000001"]) == 0
    assert "Codec <code>00000001</code>, named" in (tmp_path / "page/index.html").read_text(encoding="utf-8")
    for sig in ("00000001", "00000002"):
        (tmp_path / "xps" / sig / "checkpoint.th").unlink()
    assert main(command) == 2
    assert "no run of g that counts has evaluate.sisdr and a checkpoint.th; name a model" in capsys.readouterr().err
    assert main([*command, "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(command[:-1]) == 0
    plain = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert "wasm-unsafe-eval" not in plain and "worker-src" not in plain and "own-heading" not in plain


def test_no_model_is_the_best_by_values_that_do_not_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sig, estimator in (("00000001", "closed"), ("00000002", "clips")):
        history = [{"train": {"mmd": 0.1}}]
        folder = add_run(tmp_path, "g", sig, [f"mmd.estimator={estimator}"], history, state="COMPLETED")
        shutil.copy(own_models()["demo"], folder / "checkpoint.th")
    command = ["report", "g", "--root", str(tmp_path), "--output", str(tmp_path / "page"), "--with-model"]
    assert main(command) == 2
    assert "has a better direction and was measured alike in all runs; name a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--with-model"], "no run of demo that counts has .* and a checkpoint.th; name a model"),
        (["demo", "--with-model", "//sig/00000000"], "no experiment 00000000"),
        (["demo", "--with-model", "nothing.bin"], "nothing.bin"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["report", *words, "--root", str(results), "--output", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0])
    assert not (tmp_path / "out").exists()


def test_names_of_a_model_stay_text_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    about = {"sample_rate": 32000, "frame_rate": 50.0, "channels": 1, "n_q": 4, "bins": 128}
    (tmp_path / "audiotok.json").write_text(json.dumps(about))
    with pytest.raises(ResultsError, match="holds no model as ONNX files"):
        PageModel.read(tmp_path, "a", "named")
    for part in ("encoder", "decoder"):
        (tmp_path / f"{part}.onnx").write_bytes(b"\0" * 10)
    model = PageModel.read(tmp_path, EVIL, "named")
    assert re.fullmatch(r"[\w.-]+", model.data()["name"])
    assert model.shape == "32000 Hz mono, 4 codebooks of 128 codes, 50 frames a second"


def test_the_worker_is_one_script_that_imports_nothing() -> None:
    source = worker_source()
    assert not re.search(r"^import\s|import\.meta", source, re.MULTILINE) and "const ort = {" in source
