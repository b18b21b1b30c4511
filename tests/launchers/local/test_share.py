"""How a machine is divided among local jobs."""

from pathlib import Path

import pytest

from audiotok.errors import ConfigError
from audiotok.launchers.local.engine import _divide, _find_gpus


@pytest.mark.parametrize(
    ("gpus", "environ", "cores", "slots", "granted", "threads"),
    [
        (0, {"CUDA_VISIBLE_DEVICES": ""}, 8, 4, 0, 2),
        (0, {"CUDA_VISIBLE_DEVICES": ""}, 1, 1, 0, 1),
        (1, {"CUDA_VISIBLE_DEVICES": ""}, 8, 4, 0, 2),  # no GPU here: on the CPU
        (1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 16, 4, 1, 4),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 16, 4, 2, 4),  # two jobs of two processes
        (8, {"CUDA_VISIBLE_DEVICES": "5"}, 16, 1, 1, 16),
        (0, {"CUDA_VISIBLE_DEVICES": "0", "AUDIOTOK_LOCAL_SLOTS": "3"}, 16, 3, 0, 5),
        (1, {"CUDA_VISIBLE_DEVICES": "-1"}, 4, 2, 0, 2),
    ],
)
def test_share(gpus: int, environ: dict[str, str], cores: int, slots: int, granted: int, threads: int) -> None:
    portion = _divide(gpus, environ, cores=cores)
    assert (portion["slots"], portion["gpus"], portion["threads"]) == (slots, granted, threads)


@pytest.mark.parametrize(("cpus", "slots", "threads"), [(None, 4, 2), (1, 8, 1), (3, 2, 4), (64, 1, 8)])
def test_jobs_without_gpu_get_the_cores_they_ask_for(cpus: int | None, slots: int, threads: int) -> None:
    portion = _divide(0, {"CUDA_VISIBLE_DEVICES": ""}, cpus=cpus, cores=8)
    assert (portion["slots"], portion["threads"]) == (slots, threads)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLOTS", "0"), ("SLOTS", "-1"), ("SLOTS", "two"), ("GRACE_S", "soon"), ("GRACE_S", "-1"), ("GRACE_S", "nan")],
)
def test_numbers_that_are_none_are_named(name: str, value: str) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "", f"AUDIOTOK_LOCAL_{name}": value}
    with pytest.raises(ConfigError, match=f"AUDIOTOK_LOCAL_{name}='{value}'"):
        _divide(0, environ, cores=2)


def test_gpus_are_those_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {
        "works": "#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\necho '  MIG 1g'\n",
        "fails": "#!/bin/sh\necho 'GPU 0: A (UUID: x)'\nexit 9\n",
    }
    found = {}
    for name, script in scripts.items():
        program = tmp_path / name / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        found[name] = _find_gpus({})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (found, _find_gpus({})) == ({"works": ("0", "1"), "fails": ()}, ())
