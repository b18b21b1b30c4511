"""`audiotok tokenize`: what it prints, exit codes, and the part that a task of a SLURM array makes."""

import json
import sys
from pathlib import Path

import pytest
import soundfile
from omegaconf import OmegaConf

from audiotok import cli
from audiotok.checkpoint import save_checkpoint
from audiotok.cli.tokenize import part_of_array
from audiotok.data.tokens import TokenSet
from audiotok.errors import ConfigError
from tests.codecs import RATE, config, save_codec, small_codec
from tests.conftest import chords


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tracks, their manifest and a codec; no experiments."""
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", chords(index, 1.0 + index, RATE)[:, :1], RATE)
    entries = [{"path": f"{index}.wav", "duration": 1.0 + index, "sample_rate": RATE} for index in range(3)]
    (tmp_path / "music.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    save_codec(tmp_path / "codec.bin")
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return tmp_path


def tokenize(folder: Path, *arguments: str, codec: str = "codec.bin", manifest: str = "music.jsonl") -> int:
    path = codec if codec.startswith("//") else str(folder / codec)
    return cli.main(["tokenize", path, str(folder / manifest), "--out", str(folder / "out"), *arguments])


def test_a_set_is_made_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(folder, "--label", "folder") == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("3 tracks, 0.00167 h encoded in ") and first.endswith(" times as fast as they play")
    assert second == f"{folder / 'out'}: 3 tracks, 0.00167 h, 1200 tokens (2 × 64 at 100 Hz), labels: 1"
    assert "\r" not in err, "no line of progress in a pipe"
    assert tokenize(folder, "--label", "folder") == 0
    assert capsys.readouterr().out == second + "\n"
    tokens = TokenSet.open(folder / "out")
    assert tokens.codec == str(folder / "codec.bin") and tokens.signature is None


def test_parts_are_joined_by_the_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(folder, "--part", "2/2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 and not (folder / "out/tokens.json").exists()
    assert tokenize(folder, "--part", "1/2") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{folder / 'out'}: 3 tracks")


def test_ctrl_c_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiotok.data.token_writer import TokenWriter

    add = TokenWriter.add

    def once(*arguments: object, **options: object) -> None:
        add(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(TokenWriter, "add", once)
    assert tokenize(folder, "--batch-size", "1") == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("the same command goes on from there")
    assert not (folder / "out/tokens.json").exists()
    monkeypatch.undo()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert tokenize(folder, "--batch-size", "1") == 0
    assert capsys.readouterr().out.startswith("2 tracks")


@pytest.mark.parametrize(
    ("codec", "manifest", "message"),
    [
        ("//sig/0a1b2c3d", "music.jsonl", "no experiment 0a1b2c3d in"),
        ("//sig/new", "music.jsonl", "checkpoint.th"),
        ("gone.bin", "music.jsonl", "no checkpoint at"),
        ("codec.bin", "gone.jsonl", "gone.jsonl does not exist"),
        ("codec.bin", "empty.jsonl", "empty.jsonl is empty"),
        ("codec.bin", "lost.jsonl", "2 of 2 tracks cannot be read"),
        ("codec.bin", "codec.bin", "not UTF-8 text"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, codec: str, manifest: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "outputs/xps/new").mkdir(parents=True)  # an experiment that is not trained
    (folder / "empty.jsonl").touch()
    lost = [{"path": f"lost{index}.wav", "duration": 1, "sample_rate": RATE} for index in range(2)]
    (folder / "lost.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lost))
    assert tokenize(folder, codec=codec, manifest=manifest) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]
    assert "Traceback" not in err and not (folder / "out/tokens.json").exists()


def test_a_set_of_another_codec_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(folder) == 0
    save_codec(folder / "other.bin", seed=1)
    before = (folder / "out/tokens.json").read_bytes()
    assert tokenize(folder, codec="other.bin") == 2
    assert "holds tokens of another codec" in capsys.readouterr().err
    assert (folder / "out/tokens.json").read_bytes() == before


@pytest.mark.parametrize("done", [1, 2])
def test_an_experiment_is_trained_to_its_end(folder: Path, done: int, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config()
    cfg.optim = {"epochs": 2}
    state = {"best_state": {"model": small_codec().state_dict()}, "history": [{}] * done}
    checkpoint = folder / "outputs/xps/0a1b2c3d/checkpoint.th"
    save_checkpoint({**state, "xp.cfg": OmegaConf.to_yaml(cfg)}, checkpoint)
    code = tokenize(folder, codec="//sig/0a1b2c3d")
    if done == 2:
        assert code == 0 and TokenSet.open(folder / "out").signature == "0a1b2c3d"
        return
    message = f"error: //sig/0a1b2c3d is not trained yet: 1 of 2 epochs are done; wait for it, or copy {checkpoint}"
    assert code == 2 and message in capsys.readouterr().err
    assert tokenize(folder, codec=str(checkpoint.relative_to(folder))) == 0, "its file, as it is now"


def test_a_terminal_shows_one_line_in_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiotok.cli.progress._EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert tokenize(folder, "--window", "0.5", "--batch-size", "1") == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert len(shown) == 13 and shown[-1] == "", "six seconds in windows of half of one, and the end"
    assert shown[0].startswith("  8% of 0.00167 h, ")
    assert shown[0].endswith("s left") and shown[-2].startswith("100% of 0.00167 h, ")


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2"])
def test_a_part_is_a_number_of_a_number(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["tokenize", "demo", "x", "--out", "y", f"--part={part}"])
    assert caught.value.code == 2 and "I/N expected" in capsys.readouterr().err


def array(index: int, least: int, most: int, count: int) -> dict[str, str]:
    values = {"ID": index, "MIN": least, "MAX": most, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_a_task_of_an_array_is_a_part() -> None:
    assert part_of_array({}) == (1, 1)
    assert [part_of_array(array(index, 0, 3, 4)) for index in range(4)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert part_of_array(array(7, 5, 7, 3)) == (3, 3)
    assert part_of_array(array(9, 9, 9, 1)) == (1, 1), "one task alone makes what is left of all parts"
    for wrong in (array(3, 1, 7, 2), array(9, 0, 3, 4), {"SLURM_ARRAY_TASK_ID": "1"}, {"SLURM_ARRAY_TASK_ID": "x"}):
        with pytest.raises(ConfigError, match="give --part I/N"):
            part_of_array(wrong)
