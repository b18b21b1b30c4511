"""docs/MAP.md names every source file and no other, and links between the docs resolve."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs/MAP.md").read_text()
DOCS = sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_LINE = re.compile(r"( *)(\S+) +\S")
_BRACES = re.compile(r"(.*)\{(.+)\}(.*)")
_PATH = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|md|toml))`")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def tree() -> Iterator[str]:
    """Paths of the tree; those of folders end in a slash."""
    (block,) = re.findall(r"^```\n(.*?)^```", MAP, re.DOTALL | re.MULTILINE)
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        match = _LINE.match(line)
        assert match is not None, f"{line!r} does not say what one finds there"
        indent, name = len(match[1]), match[2]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = (folders[-1][1] if folders else "") + name
        if name.endswith("/"):
            folders.append((indent, path))
        braces = _BRACES.fullmatch(path)
        yield from [f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(",")] if braces else [path]


def sources() -> set[str]:
    """Every source file; an `__init__.py` is its folder. Templates of `audiotok init` are no source files."""
    found = set()
    for top in ("audiotok", "launchers", "grids"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).parts
            if any((ROOT / Path(*parts[:end])).is_symlink() for end in range(1, len(parts))) or "project" in parts:
                continue
            name = "/".join(parts)
            found.add(name.removesuffix("__init__.py"))
    return found


def test_every_source_file_is_on_the_map_once() -> None:
    named = list(tree())
    assert len(named) == len(set(named))
    assert sources() - set(named) == set()


def test_every_folder_of_the_configuration_is_on_the_map() -> None:
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "config").rglob("*.yaml")}
    assert folders - set(tree()) == set()


def test_every_file_that_the_map_names_is_there() -> None:
    for name in tree():
        path = ROOT / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name
    for name in _PATH.findall(MAP):
        placeholder = re.search(r"NAME|KIND", name)
        assert placeholder or "/" not in name or (ROOT / name).is_file(), name


def test_every_name_in_the_tasks_is_in_the_code() -> None:
    files = [path for top in ("audiotok", "launchers", "grids", "tests") for path in (ROOT / top).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*files, *(ROOT / "config").rglob("*.yaml")])
    names = re.findall(r"`([A-Za-z_][\w.]*)`", MAP.partition("## To add")[2])
    parts = {part for name in names if "NAME" not in name and not _PATH.match(f"`{name}`") for part in name.split(".")}
    assert len(parts) > 30 and [part for part in parts if not re.search(rf"\b{part}\b", text)] == []


@pytest.mark.parametrize("page", DOCS, ids=str)
def test_links_between_docs_resolve(page: Path) -> None:
    for target in _LINK.findall((ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page.parent / target).exists(), target


def test_the_engine_in_the_docs_is_the_one_that_is_tested() -> None:
    shown = re.findall(r"```python\n(class .*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    assert len(shown) == 1 and shown[0] in (ROOT / "tests/fakes/third_engine.py").read_text()
