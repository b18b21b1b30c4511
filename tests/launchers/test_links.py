"""Links in the folder of a grid: those by signature are read, those by parameters are for people."""

from pathlib import Path

from audiotok.launchers.links import linked, readable_name, write_links, write_readable_links
from audiotok.results import grid_signatures

SIG, OTHER = "7d863fc7", "0a1b2c3d"


def test_an_experiment_has_a_link_to_read_beside_its_signature(tmp_path: Path) -> None:
    folder = tmp_path / "grids" / "sweep"
    folder.mkdir(parents=True)
    for sig in (SIG, OTHER):
        (tmp_path / "xps" / sig).mkdir(parents=True)
    (folder / "note").write_text("mine")
    write_links(folder, "xps", [SIG])
    write_readable_links(folder, "xps", {SIG: "losses.mmd=10 rvq.n_q=4", OTHER: "losses.mmd=0"})
    name = f"losses.mmd=10,rvq.n_q=4-{SIG}"
    assert {path.name for path in folder.iterdir()} == {"note", SIG, name}
    assert (folder / name).resolve() == tmp_path / "xps" / SIG and not (folder / name).readlink().is_absolute()
    assert linked(folder) == {SIG} and grid_signatures(tmp_path, "sweep") == [SIG]
    write_links(folder, "xps", [OTHER])  # and leaves the other kind as it is
    write_readable_links(folder, "xps", {SIG: "losses.mmd=10", OTHER: "losses.mmd=0"})
    assert {path.name for path in folder.iterdir()} == {
        "note", SIG, OTHER, f"losses.mmd=10-{SIG}", f"losses.mmd=0-{OTHER}"
    }  # fmt: skip
    (folder / OTHER).unlink()  # it left the grid
    write_readable_links(folder, "xps", {SIG: "losses.mmd=10", OTHER: "losses.mmd=0"})
    assert {path.name for path in folder.iterdir()} == {"note", SIG, f"losses.mmd=10-{SIG}"}


def test_a_name_is_short_ascii_that_needs_no_quotes() -> None:
    evil = readable_name("mmd.sigmas=[0.1, 5.0] label=$(rm -r /)/ä'\"", SIG)
    assert evil == f"mmd.sigmas=0.1+5.0,label=_rm,-r-{SIG}"
    assert readable_name("../..", SIG) == f"run-{SIG}" == readable_name("", SIG)
    assert len(readable_name("x" * 1000, SIG)) < 140
