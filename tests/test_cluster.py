"""Which profile is chosen, and the folders it names, held against what Hydra makes of the same files."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiotok.cluster import (
    PROFILES,
    _read_profile,
    choose,
    cluster_name,
    dataset_paths,
    dump_paths,
    list_profiles,
    map_path,
    output_dir,
    settle,
)
from audiotok.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "default.yaml").write_text("# @package slurm\ngpus: 1\noutput_dir: outputs\ndataset_paths: {}\n")
    (folder / "alpha.yaml").write_text(
        "# @package slurm\ndefaults:\n  - /cluster/default\n  - _self_\n"
        "output_dir: ${oc.env:TEST_SCRATCH,/tmp}/${oc.env:TEST_NAME}/out\n"
        "dataset_paths: {/home/me/music: '${oc.env:TEST_NAME}', /home/me: /far/me}\n"
    )
    return folder


def scontrol(folder: Path, script: str) -> dict[str, str]:
    """A PATH with sbatch and an scontrol that counts how often it is called."""
    folder.mkdir()
    (folder / "sbatch").touch(mode=0o755)
    (folder / "scontrol").write_text(f"#!/bin/sh\necho x >> {folder}/calls\n{script}\n")
    (folder / "scontrol").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_the_environment_chooses_first(folder: Path) -> None:
    environ = {"AUDIOTOK_CLUSTER": "alpha", "SLURM_CLUSTER_NAME": "default", "PATH": ""}
    assert choose(environ, folder).name == "alpha"
    for name in ("beta", "../alpha", "alpha.yaml"):
        with pytest.raises(ConfigError, match=r"AUDIOTOK_CLUSTER=.*choose one of: alpha, default\."):
            choose({"AUDIOTOK_CLUSTER": name, "PATH": ""}, folder)


def test_the_name_of_the_cluster_chooses_next(folder: Path, tmp_path: Path) -> None:
    told = choose({"SLURM_CLUSTER_NAME": "alpha", "PATH": ""}, folder)
    assert told.name == "alpha" and "SLURM_CLUSTER_NAME" in told.how
    environ = scontrol(tmp_path / "bin", "printf 'Configuration data\\nClusterName             = alpha\\n'")
    for _ in range(3):
        told = choose(environ, folder)
        assert told.name == "alpha" and "scontrol" in told.how
    assert (tmp_path / "bin" / "calls").read_text() == "x\n"
    told = choose({"SLURM_CLUSTER_NAME": "gamma", "PATH": ""}, folder)
    assert told.name == "default" and "no gamma.yaml" in told.how
    (tmp_path / "bin" / "sbatch").unlink()
    assert cluster_name({"PATH": str(tmp_path / "bin")}) == ("", "there is no SLURM here")


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "printf '\\377'"])
def test_detection_never_fails(folder: Path, tmp_path: Path, script: str) -> None:
    told = choose(scontrol(tmp_path / "bin", script), folder)
    assert told.name == "default" and "does not give" in told.how


def test_a_slurm_that_hangs_is_given_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiotok.cluster.DETECTION_S", 0.2)
    assert choose(scontrol(tmp_path / "bin", "exec sleep 60"), folder).name == "default"


def test_what_is_detected_is_handed_down(folder: Path, tmp_path: Path) -> None:
    environ = {"SLURM_CLUSTER_NAME": "alpha", "PATH": ""}
    settle(environ, folder)
    assert environ["AUDIOTOK_CLUSTER"] == "alpha"
    plain = {"PATH": ""}
    settle(plain, folder)
    assert plain == {"PATH": ""}
    settle(wrong := {"AUDIOTOK_CLUSTER": "x", "PATH": ""}, tmp_path / "nowhere")  # a project without profiles
    assert wrong["AUDIOTOK_CLUSTER"] == "x"


@pytest.mark.parametrize("name", list_profiles())
def test_a_profile_is_read_as_hydra_composes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOTOK_CLUSTER", name)
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("AUDIOTOK_OUTPUT_DIR", raising=False)
    with initialize_config_dir(str(PROFILES.parent), version_base="1.3"):
        cfg = compose("config")
    assert _read_profile(name).values == OmegaConf.to_container(cfg.slurm, resolve=False)
    environ = {"AUDIOTOK_CLUSTER": name, "SCRATCH": "/scratch/me"}
    assert output_dir(environ) == Path(cfg.dora.dir)
    assert dataset_paths(environ) == OmegaConf.to_container(cfg.slurm.dataset_paths, resolve=True)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", "/elsewhere")
    assert output_dir({**environ, "AUDIOTOK_OUTPUT_DIR": "/elsewhere"}) == Path(cfg.dora.dir) == Path("/elsewhere")


def test_folders_of_the_environment(folder: Path, tmp_path: Path) -> None:
    environ = {"AUDIOTOK_CLUSTER": "alpha", "TEST_NAME": "ada"}
    assert output_dir(environ, folder) == Path("/tmp/ada/out")
    assert output_dir({**environ, "TEST_SCRATCH": "/s"}, folder) == Path("/s/ada/out")
    assert dataset_paths(environ, folder) == {"/home/me/music": "ada", "/home/me": "/far/me"}
    with pytest.raises(ConfigError, match="TEST_NAME is not set"):
        output_dir({"AUDIOTOK_CLUSTER": "alpha"}, folder)
    (folder / "alpha.yaml").write_text(
        "# @package slurm\ngpus: 1\noutput_dir: ${slurm.gpus}\ndataset_paths: ${oc.env:TEST_NAME}\n"
    )
    with pytest.raises(ConfigError, match=r"only .*oc\.env:NAME"):
        output_dir(environ, folder)
    with pytest.raises(ConfigError, match="give a mapping"):
        dataset_paths(environ, folder)
    assert output_dir({}, tmp_path / "nowhere") == Path("outputs")
    assert dataset_paths({"AUDIOTOK_CLUSTER": "beta"}, folder) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "alpha.yaml holds a list"),
        ("a: [", "alpha.yaml:2: it is not YAML"),
        ("defaults: [alpha]", r"alpha.yaml:2: defaults lead back to themselves \(alpha > alpha\)"),
        ("defaults: [/dset/music]", "alpha.yaml:2: .*give other profiles"),
        ("defaults: [{override /dset: music}]", "alpha.yaml:2: .*give other profiles"),
        ("defaults: [nowhere]", "alpha.yaml:2: .*which is not there; profiles are: alpha, default"),
    ],
)
def test_a_damaged_profile(folder: Path, text: str, said: str) -> None:
    (folder / "alpha.yaml").write_text(f"# @package slurm\n{text}")
    with pytest.raises(ConfigError, match=said):
        _read_profile("alpha", folder)


def test_what_a_launcher_says_goes_before_the_profile(folder: Path) -> None:
    environ = {"AUDIOTOK_CLUSTER": "alpha", "AUDIOTOK_DATASET_PATHS": dump_paths({"/a": "/b"})}
    assert dataset_paths(environ, folder) == {"/a": "/b"}
    with pytest.raises(ConfigError, match="is not JSON"):
        dataset_paths({"AUDIOTOK_DATASET_PATHS": "/a=/b"}, folder)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/music/a/b.wav", "/s/music/a/b.wav"),
        ("/home/me/music", "/s/music"),
        ("/home/me/musical/b.wav", "/far/musical/b.wav"),
        ("/home/me/x/../music/b.wav", "/s/music/b.wav"),
        ("/home/you/b.wav", "/home/you/b.wav"),
        ("relative/b.wav", "relative/b.wav"),
    ],
)
def test_the_longest_folder_wins_and_is_followed_once(path: str, expected: str) -> None:
    paths = {"/home/me": "/far", "/home/me/music/": "/s/music", "/s": "/never"}
    assert map_path(Path(path), paths) == Path(expected)


def test_a_relative_path_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert map_path(Path("data/x.jsonl"), {str(tmp_path / "data"): "/far"}) == Path("/far/x.jsonl")
