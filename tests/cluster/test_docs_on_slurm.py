"""The commands of docs/launching.md that need SLURM, as they are written, on a real one."""

import os
import subprocess as sp

import pytest

from tests.cluster.slurm import TestCluster
from tests.pages import blocks

pytestmark = pytest.mark.cluster

COMMANDS = [command for block in blocks() for command in block.commands if block.page == "docs/launching.md"]
ON_SLURM = [command for command in COMMANDS if command.startswith(("scontrol ", "sinfo ", "sacctmgr "))]


@pytest.mark.parametrize("command", ON_SLURM)
def test_a_command_of_the_docs(command: str, cluster: TestCluster) -> None:
    environ = {**os.environ, **cluster.environ, "USER": "root"}
    done = sp.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr, done.stderr


def test_there_are_some() -> None:
    assert {command.split()[0] for command in ON_SLURM} == {"scontrol", "sinfo", "sacctmgr"}
