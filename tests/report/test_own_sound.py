"""A codec inside the page: a sound of the reader's own, encoded and decoded in a real browser."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from playwright.sync_api import BrowserContext, expect

from audiotok.cli import main
from audiotok.errors import ResultsError
from audiotok.models import CompressionModel
from audiotok.report import PageModel
from audiotok.report.own_sound import worker_source
from tests.report.conftest import EVIL

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
    trouble: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
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
