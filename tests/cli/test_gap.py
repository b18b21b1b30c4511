"""`audiotok gap`: from a codec and its token set to a table, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiotok.cli import main
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.models import CompressionModel
from audiotok.tokenizing import tokenize

RATE = 32_000


def tokens_of(folder: Path, names: range, seconds: int = 10) -> Path:
    """Token set of a few recordings of noise that rises and falls."""
    rng, metas = np.random.default_rng(names.start), []
    for name in names:
        path = folder / f"{name}.wav"
        loud = 0.2 * (1 + np.sin(np.arange(seconds * RATE) / RATE * (name + 1)))
        soundfile.write(path, rng.standard_normal(seconds * RATE) * loud * 0.2, RATE)
        metas.append(AudioMeta(path=path, duration=seconds, sample_rate=RATE, channels=1))
    manifest = folder / f"{names.start}.jsonl.gz"
    write_manifest(manifest, metas)
    out = folder / f"tokens{names.start}"
    tokenize(CompressionModel.get_pretrained("demo"), [manifest], out, codec="demo")
    return out


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokens_of(tmp_path_factory.mktemp("music"), range(5))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokens_of(tmp_path_factory.mktemp("others"), range(5, 7))


def test_table(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gap", "demo", "--tokens", str(tokens), "--updates", "2", "--seeds", "0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo, 4 × 1024 codes at 50 Hz, pattern delay"
    assert lines[1] == "recordings: 2 to fit, 1 to choose a state by, 2 measured; updates: 2, 2"
    rows = {words[0]: words for line in lines[4:] if (words := line.split())}
    assert list(rows)[:4] == ["gap", "gap_q2", "gap_q3", "gap_q4"] and "bits_chain" in rows
    bits, per_second = float(rows["bits_parallel"][1]), float(rows["bits_parallel"][5])
    assert rows["bits_parallel"][2] == "±" and per_second == pytest.approx(50 * bits, abs=0.1)
    assert 20 < bits < 60
    assert any(line.startswith("not converged: seed 0, 1;") for line in lines)
    assert "a first look: 2 updates are too few to judge by, a fit takes 300 or more" in lines


@pytest.mark.parametrize(("bits", "finds"), [(45.0, False), (39.0, True)])
def test_a_model_that_has_learned_nothing_of_use_is_named(
    bits: float, finds: bool, tokens: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("gap", "bits_chain", "gap_alone", "gap_alone_fall", "gap_recordings_fit", "gap_recordings_choose")
    found = {**dict.fromkeys(names, 0.0), "gap_recordings": 5.0, "gap_converged": 1.0, "gap_updates": 328.0}
    found |= {"bits_parallel": bits, "bits_alone": 39.6}
    monkeypatch.setattr("audiotok.metrics.factorisation_gap", lambda *_, **__: found)
    main(["gap", "demo", "--tokens", str(tokens)])
    assert ("no finding: the past makes" in capsys.readouterr().out) is not finds


def test_json_and_held_out(tokens: Path, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--held-out", str(others), "--updates", "2", "--pattern", "parallel", "--json"]
    assert main(["gap", "demo", "--tokens", str(tokens), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pattern"] == "parallel" and found["frame_rate"] == 50 and len(found["codec_hash"]) == 64
    (fit,) = found["fits"]
    assert (fit["gap_recordings_fit"], fit["gap_recordings_choose"], fit["gap_recordings"]) == (4, 1, 2)
    assert fit["gap"] == pytest.approx(fit["bits_parallel"] - fit["bits_chain"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "nowhere"], "nowhere"),
        (["--tokens", "OTHERS"], "2 recording(s) are too few for the factorisation gap"),
        (["--tokens", "TOKENS", "--held-out", "TOKENS"], "is in --tokens and in --held-out"),
        (["--tokens", "TOKENS", "--updates", "1"], "--updates 1: a fit takes 2 or more"),
        (["--tokens", "TOKENS", "--pattern", "zigzag"], "Pattern 'zigzag' is unknown"),
        (["--tokens", "SHORT"], "longest has 400"),
        (["--tokens", "SHORT", "--context", "64"], "1 recording(s) are too few"),
        (["--tokens", "TOKENS", "--context", "7"], "--context 7: a window takes 8 frames or more"),
        (["--tokens", "WRONG"], "tokens of another codec"),
        (["--tokens", "TOKENS", "--held-out", "LIAR"], "liar holds 2 × 1024 codes; demo has 4 × 1024, and "),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    tokens: Path,
    others: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in tokens.iterdir():
        (wrong / path.name).write_bytes(path.read_bytes())
    header = json.loads((tokens / "tokens.json").read_text())
    (wrong / "tokens.json").write_text(json.dumps(header | {"codec_hash": "0" * 64}))
    liar = tmp_path / "liar"  # of the right hash and another shape
    liar.mkdir()
    for path in others.iterdir():
        (liar / path.name).write_bytes(path.read_bytes())
    (liar / "tokens.json").write_text(json.dumps(json.loads((others / "tokens.json").read_text()) | {"n_q": 2}))
    places = {"TOKENS": tokens, "OTHERS": others, "WRONG": wrong, "LIAR": liar}
    if "SHORT" in options:
        places["SHORT"] = tokens_of(tmp_path, range(1), seconds=8)
    assert main(["gap", "demo", *(str(places.get(word, word)) for word in options)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("seeds", ["0,0", "1,01", "1,,2", "-1", "x", "9" * 20])
def test_seeds_are_numbers(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["gap", "demo", "--tokens", "x", f"--seeds={seeds}"])
    assert caught.value.code == 2 and "each once" in capsys.readouterr().err
