"""Where in which job of SLURM a task is, and where its ranks find each other. Standard library only."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from audiotok.launchers.child import ask

FIRST_PORT, PORTS = 12000, 20000  # below the ports that Linux gives to clients
ASK_S = 60.0  # a job gives SLURM so long for an answer


@dataclass(frozen=True)
class Place:
    """Where in which job this task is.

    Attributes:
        job_id: `A_i` in an array, else `J`; what SLURM is asked by.
        raw_id: as SLURM numbers it; that of the last task is the id of the whole array, so nothing is asked by it.
        index: line of `tasks.jsonl`.
        rank: of `world_size` tasks, and `local_rank` on its node.
        attempt: how many times the job was queued again before.
        nodes: list of its nodes, in SLURM's notation.
    """

    job_id: str
    raw_id: str
    index: int
    rank: int
    world_size: int
    local_rank: int
    attempt: int
    nodes: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Place":
        """Read what `srun` tells a task; KeyError if this is none."""
        raw_id, index = environ["SLURM_JOB_ID"], environ.get("SLURM_ARRAY_TASK_ID", "")
        return cls(
            job_id=f"{environ['SLURM_ARRAY_JOB_ID']}_{index}" if index else raw_id,
            raw_id=raw_id,
            index=int(index or 0),
            rank=int(environ["SLURM_PROCID"]),
            world_size=int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            attempt=int(environ.get("SLURM_RESTART_COUNT") or 0),
            nodes=environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"],
        )

    @property
    def port(self) -> int:
        """Port of the rendezvous: the same for all ranks, another for the next job and the next attempt."""
        return FIRST_PORT + (int(self.raw_id) + 7001 * self.attempt) % PORTS


def first_node(nodes: str) -> str:
    """Return the first name of a list of nodes; SLURM takes its notation apart."""
    listing, _ = ask(["scontrol", "show", "hostnames", nodes], ASK_S)
    return (listing.split() or [nodes])[0]


def address_of(node: str) -> str:
    """Return what the others reach a node by: its name, or the address that SLURM knows if the name means nothing."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        shown, _ = ask(["scontrol", "show", "node", "-o", node], ASK_S)
        found = re.search(r"\bNodeAddr=(\S+)", shown)
        return found[1] if found else node
    return node
