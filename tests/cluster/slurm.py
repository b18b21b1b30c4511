"""A real SLURM of two nodes on this machine: up in seconds, gone without trace, with all that can go wrong on call.

Everything it writes stands in one folder, every port is free and on the loopback, and every daemon is a
child of this process, ended by its id. Each node has two cores and two "GPUs" (mapped to /dev/null and
/dev/zero), so `--gres=gpu:2` and CUDA_VISIBLE_DEVICES behave. Jobs in the partition `urgent` preempt those in `main`.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess as sp
import time
from pathlib import Path
from types import TracebackType

from tests.cluster.configuration import NODES, Options, files
from tests.cluster.daemons import Daemons, answers, free_ports, until

__all__ = ["NODES", "Options", "TestCluster"]

_PORTS = ("slurmctld", "slurmdbd", "mariadb", *NODES)
_DOWN = ("down", "drain", "fail", "unk")


class TestCluster:
    """Starts and stops the cluster; `environ` holds what a process needs to use it.

    Args:
        root: an empty folder, on a path short enough for a socket (below 90 characters).
        options: what it is to be.
        beside: a running cluster whose users and accounting it shares, so that commands reach both with `-M`.
    """

    __test__ = False

    def __init__(self, root: Path, options: Options | None = None, beside: "TestCluster | None" = None) -> None:
        self.root = root
        self.options = options or Options()
        self.environ = {"SLURM_CONF": str(root / "slurm.conf")}
        self._beside = beside
        self._places = {"root": str(root), "house": str(root), "host": socket.gethostname().split(".")[0]}
        self._places |= free_ports(_PORTS)
        if beside is not None:
            self._places |= {name: beside._places[name] for name in ("house", "slurmdbd")}
        self._daemons = Daemons(root, self.environ)

    def __enter__(self) -> "TestCluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bring up authentication, accounting, the controller and both nodes; returns when nodes are idle."""
        self._write_files()
        if self._beside is None:
            self._start_house()
        if self.options.accounting:
            self.run("sacctmgr", "-i", "add", "cluster", self.options.name)
        if self.options.qos:
            limits = [f"{name}={limit}" for name, limit in self.options.qos.items()]
            self.run("sacctmgr", "-i", "modify", "qos", "normal", "set", *limits)
        self._daemons.start("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self._daemons.wait("slurmd", lambda: self.node_states() == ["idle"] * len(NODES))

    def _start_house(self) -> None:
        """Start authentication and accounting."""
        munged = ["--force", f"--socket={self.root}/munge.socket", f"--key-file={self.root}/munge.key"]
        logs = [f"--{name}-file={self.root}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemons.start("munged", "munged", "--foreground", *munged, *logs)
        if self.options.accounting:
            self._start_database()
        self._daemons.wait("munged", lambda: (self.root / "munge.socket").exists())
        if self.options.accounting:
            self._daemons.start("slurmdbd", "slurmdbd", "-D")
            self._daemons.wait("slurmdbd", lambda: answers(self._places["slurmdbd"]))

    def stop(self) -> None:
        """End all daemons and what they started."""
        with contextlib.suppress(OSError, sp.SubprocessError):
            if self._daemons.is_up("slurmctld"):
                self.output("scancel", "--user=0")
                until(lambda: not self.output("squeue", "-h"), seconds=15.0)
        for node in NODES:
            self._kill_steps(node)
        self._daemons.stop()

    def clear(self) -> None:
        """Bring the cluster back to where it was in the beginning: all up, no job, both nodes idle."""
        changed = self._write_configuration()
        if not self._daemons.is_up("slurmctld"):
            self.start_controller()
        for node in NODES:
            if not self._daemons.is_up(node):
                self.start_node(node)
        if changed:
            self.run("scontrol", "reconfigure")
        self.output("scancel", "--user=0")
        # A report of a node that is lost with the controller is sent again only after a minute or more.
        if not until(self._is_clear, seconds=180.0):
            raise RuntimeError(f"not clear: {self.node_states()}; {self.output('squeue')}")

    def run(self, *command: str) -> str:
        """Run a command of the cluster and return its output.

        Raises:
            RuntimeError: if it fails, with what it said.
        """
        process = sp.run(command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {process.stdout} {process.stderr}")
        return process.stdout

    def output(self, *command: str) -> str:
        """Run a command of the cluster and return its output, "" if it fails."""
        with contextlib.suppress(RuntimeError, sp.TimeoutExpired):
            return self.run(*command)
        return ""

    def node_states(self) -> list[str]:
        """Return the states of the nodes, such as idle, mix, alloc, down."""
        return self.output("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split()

    def jobs(self, *states: str) -> dict[str, str]:
        """Return the states of the jobs that squeue shows, by `A_i` or `J`; those in these states only, if given."""
        listing = self.output("squeue", "-h", "-r", "-t", ",".join(states) or "all", "-o", "%i %T")
        return dict(line.split() for line in listing.splitlines())

    def preempt(self) -> str:
        """Submit a job that takes both nodes from the jobs in `main` for a moment; returns its id."""
        urgent = ("-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
        return self.run("sbatch", "--parsable", *urgent).strip()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemons.start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Have a node fall over: its daemon and all that ran there are killed with SIGKILL."""
        self._daemons.kill(node, signal.SIGKILL)
        self._kill_steps(node)

    def start_controller(self) -> None:
        """Start the controller with the state it had; returns when it answers."""
        self._daemons.start("slurmctld", "slurmctld", "-D")
        self._daemons.wait("slurmctld", lambda: bool(self.node_states()))

    def kill_controller(self) -> None:
        """Kill the controller with SIGKILL, once what it knows of its jobs is on disk."""
        self.save_state()
        self._daemons.kill("slurmctld", signal.SIGKILL)

    def forget_jobs(self) -> None:
        """Have the whole cluster fall over and come back with nothing known of its jobs, as after a lost disk."""
        self.kill_controller()
        for node in NODES:
            self.kill_node(node)
        for path in (self.root / "state").glob("job_state*"):
            path.unlink()
        self.start_controller()
        for node in NODES:
            self.start_node(node)

    def reset_ids(self) -> None:
        """Have the whole cluster installed anew: it knows no jobs, and counts their ids from 1 again."""
        self.kill_controller()
        for node in NODES:
            self.kill_node(node)
        shutil.rmtree(self.root / "state")
        (self.root / "state").mkdir()
        self._daemons.start("slurmctld", "slurmctld", "-D", "-c")
        self._daemons.wait("slurmctld", lambda: bool(self.node_states()))
        for node in NODES:
            self.start_node(node)

    def save_state(self) -> None:
        """Have the controller write down its jobs as they are now (it does so some seconds after a change)."""
        state, began = self.root / "state" / "job_state", time.time()
        self.run("scontrol", "reconfigure")
        until(lambda: state.exists() and state.stat().st_mtime > began, seconds=10.0)

    def change(self, **lines: str) -> None:
        """Change lines of slurm.conf while everything runs, until the next `clear`."""
        self._write_configuration(**lines)
        self.run("scontrol", "reconfigure")

    def _write_configuration(self, **lines: str) -> bool:
        """Write slurm.conf with some lines changed; tells whether that makes it another."""
        options = dataclasses.replace(self.options, changes={**self.options.changes, **lines})
        text, path = files(options, self._places)["slurm.conf"], self.root / "slurm.conf"
        changed = path.read_text() != text
        path.write_text(text)
        return changed

    def _is_clear(self) -> bool:
        if any(state.startswith(_DOWN) for state in self.node_states()):
            self.output("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME")
        return not self.jobs("PENDING", "RUNNING", "COMPLETING") and self.node_states() == ["idle"] * len(NODES)

    def _kill_steps(self, node: str) -> None:
        """Kill the processes of a node's jobs, and the daemons of their steps, which slurmd no longer looks after."""
        here = {f"SLURM_CONF={self.root}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ProcessLookupError, ValueError):
                if here <= set((folder / "environ").read_bytes().split(b"\0")):
                    parent = Path("/proc") / (folder / "stat").read_text().rpartition(")")[2].split()[1]
                    if (parent / "comm").read_text().startswith("slurmstepd"):
                        os.kill(int(parent.name), signal.SIGKILL)
                    os.kill(int(folder.name), signal.SIGKILL)

    def _write_files(self) -> None:
        for name in ("state", "database", *(f"spool-{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True)
        contents = {name: text.encode() for name, text in files(self.options, self._places).items()}
        for name, content in {**contents, "munge.key": os.urandom(128)}.items():
            (self.root / name).touch(mode=0o600)
            (self.root / name).write_bytes(content)

    def _start_database(self) -> None:
        """Make an empty database that only this folder's socket and one user on the loopback can reach."""
        data = ["--no-defaults", f"--datadir={self.root}/database", "--user=root"]
        self.run("mariadb-install-db", *data, "--skip-test-db")
        here = f"--socket={self.root}/mariadb.socket"
        network = ["--bind-address=127.0.0.1", f"--port={self._places['mariadb']}"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
        self._daemons.start(
            "mariadbd", "mariadbd", *data, here, *network, *small, f"--pid-file={self.root}/mariadb.pid"
        )
        client = ["mariadb", "--no-defaults", here, "-u", "root", "-e"]
        self._daemons.wait("mariadbd", lambda: bool(self.output(*client, "SELECT 1")))
        grant = "GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm'"
        self.run(*client, f"CREATE DATABASE slurm; {grant}")
