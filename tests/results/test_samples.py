"""Audio files of experiments, as the generate stage leaves them."""

from collections.abc import Callable
from pathlib import Path

from audiotok.results import load_grid

GRID = "compression.encodec_mmd_demo"


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_one_row_per_file(root: Path, make_experiment: Callable[..., Path]) -> None:
    first = make_experiment("00000001", ["seed=1"]) / "samples"
    second = make_experiment("00000002", ["seed=0"]) / "samples"
    make_experiment("00000003", ["seed=3"])
    for name in ("b_0.0s.wav", "a_1.5s.wav"):
        for parent in ("reference", "epoch_0010", "epoch_0002"):
            _touch(first / parent / name)
    _touch(second / "epoch_0010" / "a_1.5s.FLAC")
    for name in ("reference/notes.txt", "reference/.hidden.wav", "epoch_x/a.wav", "other/a.wav", "epoch_0003/d.wav/x"):
        _touch(first / name)
    samples = load_grid(GRID, root).samples
    assert samples.drop(columns="path").astype(object).where(
        samples.drop(columns="path").notna(), None
    ).values.tolist() == [
        ["00000002", 10, "estimate", "a_1.5s"],
        ["00000001", None, "reference", "a_1.5s"],
        ["00000001", None, "reference", "b_0.0s"],
        ["00000001", 2, "estimate", "a_1.5s"],
        ["00000001", 2, "estimate", "b_0.0s"],
        ["00000001", 10, "estimate", "a_1.5s"],
        ["00000001", 10, "estimate", "b_0.0s"],
    ]
    assert samples["path"].tolist()[0] == second / "epoch_0010" / "a_1.5s.FLAC"
    assert all(path.is_file() for path in samples["path"])


def test_no_samples(root: Path, make_experiment: Callable[..., Path]) -> None:
    assert list(load_grid(GRID, root).samples.columns) == ["sig", "epoch", "kind", "clip", "path"]
    make_experiment("00000001")
    (root / "xps" / "00000001" / "samples").write_text("not a folder")
    assert load_grid(GRID, root).samples.empty


def test_a_name_that_is_no_text(root: Path, make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment("00000001") / "samples" / "reference"
    folder.mkdir(parents=True)
    Path(str(folder) + "/a\udcff.wav").touch()
    samples = load_grid(GRID, root).samples
    assert samples["clip"].tolist() == ["a?"]
    assert samples["path"][0].is_file()
