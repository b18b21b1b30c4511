"""The code of a launch is kept once, whole, and without what is no code."""

import importlib.util
import multiprocessing
import os
import subprocess as sp
import sys
from pathlib import Path
from typing import Any

import pytest
from dora.conf import DoraConfig
from dora.main import DecoratedMain

import audiotok
from audiotok.errors import LaunchError
from audiotok.experiments import snapshot
from audiotok.experiments.snapshot import Snapshot, take_snapshot
from tests.utils.test_commit import git

CODE = {
    "mycodec/__init__.py": "",
    "mycodec/train.py": "def main():\n    return 7\n",
    "mycodec/config/config.yaml": "a: 1\n",
}


def project(folder: Path, **more: str) -> Path:
    """A project with its code and some more files."""
    for name, text in {**CODE, **more}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def entry_point(folder: Path, outputs: Path | None = None) -> DecoratedMain:
    """The entry point of a project in a folder."""
    spec = importlib.util.spec_from_file_location("mycodec.train", folder / "mycodec" / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = DecoratedMain(module.main, DoraConfig(dir=outputs or folder / "outputs"))
    main.package, main.main_module = "mycodec", "train"
    return main


def take(folder: Path, outputs: Path | None = None, log: list[str] | None = None) -> Snapshot:
    taken = take_snapshot(entry_point(folder, outputs), (log if log is not None else []).append)
    assert taken is not None
    return taken


def kept(taken: Snapshot, tree: str = "project") -> set[str]:
    """Names of the files and links of a tree in a snapshot."""
    top = taken.path / tree
    return {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_symlink() or path.is_file()}


@pytest.fixture(autouse=True)
def installed_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that snapshots hold the project alone."""
    monkeypatch.setattr(audiotok, "__file__", "/usr/lib/python3/site-packages/audiotok/__init__.py")


@pytest.fixture(params=["git", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = project(tmp_path / "project")
    if request.param == "git":
        git(made, "init", "-q")
        git(made, "add", ".")
        git(made, "commit", "-qm", "One")
    return made


def test_its_path_goes_by_the_link_to_the_results_that_a_container_mounts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (folder / "outputs").symlink_to(tmp_path / "scratch")
    taken = take(folder)
    assert taken.path.parent == folder / "outputs" / "code" and (taken.path / "project" / "mycodec").is_dir()
    assert taken.environ["AUDIOTOK_CODE"] == str(taken.path)
    assert taken.environ["PYTHONPATH"].startswith(str(taken.path))
    assert take(folder, tmp_path / "scratch").path.name == taken.path.name  # the link is no part of it


def test_launches_without_an_edit_share_one(folder: Path) -> None:
    log: list[str] = []
    first = take(folder, log=log)
    assert kept(first) == CODE.keys()
    assert take(folder, log=log).path == first.path and not log
    train = folder / "mycodec" / "train.py"
    train.write_text("def main():\n    return 8\n")
    second = take(folder)
    assert second.path != first.path and "return 7" in (first.path / "project/mycodec/train.py").read_text()
    train.write_text(CODE["mycodec/train.py"])
    assert take(folder).path == first.path
    train.chmod(0o755)
    assert take(folder).path != first.path
    other = take(project(folder.parent / "other" / "project"), folder / "outputs")
    assert other.path == first.path  # wherever the same code comes from


def test_what_is_no_code_is_left_out(folder: Path) -> None:
    more = (
        "outputs/xps/abc/history.json mycodec/music.wav mycodec/last.th data/x.npz .env .env.local server.pem id_rsa "
        ".netrc venv/pyvenv.cfg venv/lib/module.py mycodec/__pycache__/train.pyc older/xps/abc/history.json "
        "older/plans/grid.json sub/.ssh/config.txt credentials.json"
    )
    project(folder, **dict.fromkeys(more.split(), "x"), **{"mycodec/more.py": "", "notes.txt": "mine"})
    assert kept(take(folder)) == {*CODE, "mycodec/more.py", "notes.txt"}


def test_what_git_ignores_is_left_out_and_what_it_would_track_is_not(tmp_path: Path) -> None:
    folder = project(tmp_path / "project", **{".gitignore": "scratch/\n*.local.yaml\n"})
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "One")
    assert take(folder).commit == git(folder, "rev-parse", "--short", "HEAD").strip()
    names = ["scratch/a.py", "my.local.yaml", "mycodec/new.py", "data/list.jsonl", "ü ü.py"]
    project(folder, **dict.fromkeys(names, ""))
    (folder / "mycodec" / "config" / "config.yaml").unlink()  # tracked, and removed
    git(folder, "init", "-q", "vendor")
    (folder / "vendor" / "lib.py").touch()
    taken = take(folder)
    there = {".gitignore", "mycodec/__init__.py", "mycodec/train.py", *names[2:], "vendor/lib.py"}
    assert kept(taken) == there and taken.commit.endswith("-dirty")
    assert taken.as_json() == {"sha": taken.path.name, "path": str(taken.path), "commit": taken.commit}


def test_a_profile_that_git_ignores_is_kept(tmp_path: Path) -> None:
    folder = project(tmp_path / "project", **{".gitignore": "mine.yaml\n"})
    git(folder, "init", "-q")
    git(folder, "add", ".")
    project(folder, **{"mycodec/config/cluster/mine.yaml": "", "mycodec/config/cluster/key.pem": "", "mine.yaml": ""})
    assert kept(take(folder)) == {*CODE, ".gitignore", "mycodec/config/cluster/mine.yaml"}


def test_a_checkout_of_the_library_that_the_repository_ignores_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = "libs/audiotok/models/weights/demo.bin"
    folder = project(tmp_path / "project", **{".gitignore": "libs\n", "libs/audiotok/__init__.py": "1", weights: "w"})
    git(folder, "init", "-q")
    monkeypatch.setattr(audiotok, "__file__", str(folder / "libs/audiotok/__init__.py"))
    taken = take(folder)
    assert kept(taken) == {*CODE, ".gitignore"}
    assert kept(taken, "libs") == {"audiotok/__init__.py", "audiotok/models/weights/demo.bin"}  # jobs continue from it
    assert str(taken.path / "libs") in taken.environ["PYTHONPATH"].split(os.pathsep)


def test_a_project_that_its_repository_ignores_is_taken_by_itself(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("project\n")
    (tmp_path / "private.txt").touch()
    assert kept(take(project(tmp_path / "project"))) == CODE.keys()


def test_a_home_that_is_a_repository_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "private.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = take(project(tmp_path / "project"))
    assert kept(taken) == CODE.keys() and not list(taken.path.rglob("private.txt"))


def test_links_that_lead_outside_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("mine")
    links = {"out.py": secret, "up.py": Path("../secret.py"), "in.py": Path("mycodec/train.py"), "lib": Path("mycodec")}
    links |= {"folder": tmp_path, "chain.py": Path("up.py"), "absolute.py": folder / "mycodec/train.py"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.py")
    log: list[str] = []
    taken = take(folder, log=log)
    assert kept(taken) - CODE.keys() <= {"in.py", "lib", "lib/__init__.py", "lib/train.py", "pipe.py"}
    assert (taken.path / "project" / "in.py").readlink() == Path("mycodec/train.py")
    assert not [path for path in taken.path.rglob("*") if path.is_file() and path.read_text() == "mine"]
    assert "up.py (a link to outside of" in log[0] or "and " in log[0]


def test_a_large_file_is_left_out_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_FILE", 100)
    project(folder, **{"mycodec/large.py": "#" * 101, "mycodec/small.py": "#" * 100})
    log: list[str] = []
    assert kept(take(folder, log=log)) == {*CODE, "mycodec/small.py"}
    assert "mycodec/large.py (0 MB)" in log[0]


@pytest.mark.parametrize(("name", "value"), [("MAX_TOTAL", 1000), ("MAX_FILES", 20), ("_MAX_SEEN", 20)])
def test_what_is_too_large_is_one_line_with_what_to_do(
    folder: Path, name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, name, value)
    if name == "_MAX_SEEN" and (folder / ".git").exists():
        monkeypatch.setenv("PATH", "/nowhere")  # no git: as a folder outside of it
    project(folder, **{f"stuff/{number}.txt": "x" * 100 for number in range(30)})
    with pytest.raises(LaunchError) as caught:
        take(folder)
    message = str(caught.value)
    assert "code: live" in message and "\n" not in message and str(folder) in message
    assert name == "_MAX_SEEN" or ("stuff" in message and ".gitignore" in message)
    assert not (folder / "outputs").exists()


def test_a_disk_that_cannot_be_written_is_one_line(folder: Path) -> None:
    outputs = folder.parent / "full"
    outputs.mkdir()
    (outputs / "code").symlink_to("/proc/self")
    with pytest.raises(LaunchError, match=r"nothing was submitted.*code: live"):
        take(folder, outputs)


def test_it_is_read_only_and_mended_when_changed(folder: Path) -> None:
    (folder / "link.py").symlink_to("mycodec/train.py")
    (folder / "run.sh").touch(0o755)
    taken, tree = take(folder), Path("project/mycodec")
    files = [path for path in taken.path.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o222 == 0 for path in files)
    assert (taken.path / "project" / "run.sh").stat().st_mode & 0o100
    train = taken.path / tree / "train.py"
    train.chmod(0o644)
    train.write_text("edited")
    (taken.path / tree / "extra.py").touch()
    (taken.path / "project/link.py").unlink()
    (taken.path / tree / "config" / "config.yaml").unlink()
    (taken.path / tree / "__pycache__").mkdir()
    (taken.path / tree / "__pycache__" / "train.pyc").touch()
    log: list[str] = []
    assert take(folder, log=log).path == taken.path
    assert "Mended" in log[0] and "mycodec/train.py" in log[0]
    assert kept(taken) == {*CODE, "link.py", "run.sh", "mycodec/__pycache__/train.pyc"}
    assert train.read_text() == CODE["mycodec/train.py"] and train.stat().st_mode & 0o222 == 0
    assert (taken.path / "project/link.py").is_symlink()
    log.clear()
    take(folder, log=log)
    assert not log


def _take_in_a_process(folder: Path, barrier: Any, results: Any) -> None:
    audiotok.__file__ = "/usr/lib/python3/site-packages/audiotok/__init__.py"
    barrier.wait()
    results.put((str(take(folder).path), len(kept(take(folder)))))


def test_several_makers_at_once_make_one(folder: Path) -> None:
    project(folder, **{f"mycodec/module{number}.py": "x" * number for number in range(100)})
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    makers = [context.Process(target=_take_in_a_process, args=(folder, barrier, results)) for _ in range(4)]
    for maker in makers:
        maker.start()
    found = {results.get(timeout=60) for _ in makers}
    for maker in makers:
        maker.join()
    assert found == {(str(take(folder).path), len(CODE) + 100)}
    assert len(list((folder / "outputs" / "code").iterdir())) == 1


def test_a_maker_that_was_killed_leaves_nothing_in_the_way(folder: Path) -> None:
    path = take(folder).path
    draft = path.rename(path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp"))
    (draft / "project" / "half.py").touch()
    assert kept(take(folder)) == CODE.keys() and not draft.exists()


def test_modules_are_found_in_it_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(folder, **{"tools/tool.py": "", "venv/pyvenv.cfg": "", "venv/lib/python3/site-packages/a.py": ""})
    places = [folder, folder / "tools", folder / "venv/lib/python3/site-packages", tmp_path / "elsewhere"]
    monkeypatch.setattr(sys, "path", [*map(str, places), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    taken = take(folder)
    expected = [taken.path / "project", taken.path / "project/tools", tmp_path / "elsewhere"]
    assert taken.environ["PYTHONPATH"].split(os.pathsep) == list(map(str, expected))


def test_this_library_is_part_of_it_unless_it_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "AUDIOTOK_COMMIT" not in take(folder).environ
    library = tmp_path / "checkout" / "project"  # of the same name
    (library / "audiotok").mkdir(parents=True)
    (library / "audiotok" / "__init__.py").write_text("here = 1\n")
    monkeypatch.setattr(audiotok, "__file__", str(library / "audiotok" / "__init__.py"))
    taken = take(folder)
    assert kept(taken, "project-2") == {"audiotok/__init__.py"} and kept(taken) == CODE.keys()
    assert str(taken.path / "project-2") in taken.environ["PYTHONPATH"].split(os.pathsep)
    assert "AUDIOTOK_COMMIT" in taken.environ


def test_all_that_is_installed_needs_none(tmp_path: Path) -> None:
    installed = project(tmp_path / "site-packages")
    assert take_snapshot(entry_point(installed, tmp_path / "outputs"), print) is None
    assert not (tmp_path / "outputs").exists()


def test_a_configuration_outside_is_one_line(folder: Path, tmp_path: Path) -> None:
    main: Any = entry_point(folder)
    main.full_config_path = tmp_path / "config"
    with pytest.raises(LaunchError, match=r"config.*lies outside of.*code: live"):
        take_snapshot(main, print)


def run_job(taken: Snapshot, *words: str, cwd: Path) -> "sp.CompletedProcess[str]":
    environ = {**os.environ, **taken.environ}
    command = [sys.executable, "-P", "-m", "audiotok.experiments.job", *words]
    return sp.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


def test_a_job_runs_it_and_not_the_current_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "mycodec" / "train.py").write_text(
        "import sys, pathlib\ndef main():\n    print('old', sys.argv[1:], pathlib.Path.cwd())\n"
    )
    taken = take(folder)
    (folder / "mycodec" / "train.py").write_text("def main():\n    print('new')\n")
    done = run_job(taken, "mycodec.train", "a=1", "b='x y'", cwd=folder)
    assert done.stdout == f"""old ['a=1', "b='x y'"] {folder}\n""" and done.returncode == 0
    moved = taken.path.rename(tmp_path / "moved")
    done = run_job(taken, "mycodec.train", cwd=folder)
    assert done.returncode == 1 and done.stderr.startswith("error: the code of this job is gone")
    moved.rename(taken.path)
    (taken.path / "project" / "mycodec" / "train.py").unlink()
    taken.environ["PYTHONPATH"] += f"{os.pathsep}{folder}"
    (taken.path / "project" / "mycodec" / "__init__.py").unlink()
    done = run_job(taken, "mycodec.train", cwd=folder)
    assert done.returncode == 1 and "code: live" in done.stderr and "new" not in done.stdout
