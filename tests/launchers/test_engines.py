"""Which engine this machine submits with."""

from pathlib import Path

import pytest

from audiotok.errors import ConfigError
from audiotok.launchers.shepherd import detect


def test_slurm_is_found_by_sbatch_on_path(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}) == "local"
    (tmp_path / "sbatch").touch(mode=0o755)
    assert detect({"PATH": str(tmp_path)}) == "slurm"
    assert detect({"PATH": str(tmp_path), "AUDIOTOK_LAUNCHER": "local"}) == "local"
    assert detect({"PATH": "", "AUDIOTOK_LAUNCHER": "slurm"}) == "slurm"
    with pytest.raises(ConfigError, match="choose one of: local, slurm"):
        detect({"PATH": "", "AUDIOTOK_LAUNCHER": "kubernetes"})
