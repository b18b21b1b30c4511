"""A real SLURM of two nodes on this machine, with accounting: up in seconds, gone without trace.

Everything it writes stands in one folder, every port is free and on the loopback, and every daemon is a
child of this process, ended by its id. Each node has two cores and two "GPUs" (mapped to /dev/null and
/dev/zero), so `--gres=gpu:2` and CUDA_VISIBLE_DEVICES behave.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess as sp
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

PACKAGES = ("slurm-wlm", "munge", "slurmdbd", "mariadb-server")
DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
NODES = ("n1", "n2")
START_S = 40.0
_POLICY = Path("/usr/sbin/policy-rc.d")  # asked by Debian before it starts the daemon of a new package

_SLURM_CONF = """\
ClusterName=audiotok
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MaxArraySize=1001
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={root}/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=100000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=100000 Gres=gpu:2
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
PidFile={root}/slurmdbd.pid
LogFile={root}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
_GRES_CONF = "NodeName=n[1-2] Name=gpu File=/dev/null,/dev/zero\n"


class TestCluster:
    """Starts and stops the cluster; `environ` holds what a process needs to use it.

    Args:
        root: an empty folder, on a path short enough for a socket (below 90 characters).
    """

    __test__ = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"SLURM_CONF": str(root / "slurm.conf")}
        names = ("slurmctld", "slurmdbd", "mariadb", *NODES)
        self._values = {"root": str(root), "host": socket.gethostname().split(".")[0], **_free_ports(names)}
        self._daemons: list[tuple[str, sp.Popen[bytes]]] = []

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
        munged = ["--force", f"--socket={self.root}/munge.socket", f"--key-file={self.root}/munge.key"]
        files = [f"--{name}-file={self.root}/munge.{name}" for name in ("pid", "log", "seed")]
        self._spawn("munged", "--foreground", *munged, *files)
        self._start_database()
        self._wait("munged", lambda: (self.root / "munge.socket").exists())
        self._spawn("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self._answers("slurmdbd"))
        self.run("sacctmgr", "-i", "add", "cluster", "audiotok")
        self._spawn("slurmctld", "-D", "-c")
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node)
        self._wait("slurmd", lambda: self.output("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * 2)

    def stop(self) -> None:
        """End all daemons and what they started."""
        with contextlib.suppress(OSError, sp.SubprocessError):
            if self._daemons and (self.root / "slurmctld.pid").exists():
                self.output("scancel", "--user=0")
                self._until(lambda: not self.output("squeue", "-h"), seconds=15.0)
        for _, process in reversed(self._daemons):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except sp.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()

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

    def _write_files(self) -> None:
        for name in ("state", "database", *(f"spool-{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True)
        (self.root / "slurm.conf").write_text(_SLURM_CONF.format(**self._values))
        (self.root / "gres.conf").write_text(_GRES_CONF)
        secrets = {
            "slurmdbd.conf": _SLURMDBD_CONF.format(**self._values).encode(),
            "munge.key": os.urandom(128),
        }
        for name, content in secrets.items():
            (self.root / name).touch(mode=0o600)
            (self.root / name).write_bytes(content)

    def _start_database(self) -> None:
        """Make an empty database that only this folder's socket and one user on the loopback can reach."""
        data = ["--no-defaults", f"--datadir={self.root}/database", "--user=root"]
        self.run("mariadb-install-db", *data, "--skip-test-db")
        here = f"--socket={self.root}/mariadb.socket"
        network = ["--bind-address=127.0.0.1", f"--port={self._values['mariadb']}"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
        self._spawn("mariadbd", *data, here, *network, *small, f"--pid-file={self.root}/mariadb.pid")
        client = ["mariadb", "--no-defaults", here, "-u", "root", "-e"]
        self._wait("mariadbd", lambda: bool(self.output(*client, "SELECT 1")))
        grant = "GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm'"
        self.run(*client, f"CREATE DATABASE slurm; {grant}")

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self.root / f"{program}.out").open("ab") as output:
            process = sp.Popen(
                [program, *arguments],
                env={**os.environ, **self.environ},
                stdin=sp.DEVNULL,
                stdout=output,
                stderr=sp.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_the_tests,
            )
        self._daemons.append((program, process))

    def _answers(self, name: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self._values[name]))) == 0

    def _wait(self, program: str, ready: Callable[[], bool]) -> None:
        def ready_or_dead() -> bool:
            return ready() or any(process.poll() is not None for name, process in self._daemons)

        self._until(ready_or_dead, seconds=START_S)
        if not ready():
            logs = {path.name: path.read_text(errors="replace")[-1500:] for path in self.root.glob("*.out")}
            raise RuntimeError(f"{program} did not come up: {logs}")

    @staticmethod
    def _until(condition: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)


def _die_with_the_tests() -> None:
    """Have the kernel end a daemon when the process that started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def missing_reason(environ: Mapping[str, str]) -> str | None:
    """Tell why this machine cannot have the cluster, None if it can; installs the packages if need be."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    if all(shutil.which(program) for program in DAEMONS):
        return None
    if shutil.which("apt-get") is None:
        return f"a test cluster needs {', '.join(PACKAGES)} or Debian to install them"
    return _install(environ)


def _install(environ: Mapping[str, str]) -> str | None:
    """Install the packages, their daemons left alone; returns why it failed, None if it did not."""
    quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
    ours = not _POLICY.exists()  # a file that is there says already what its machine wants
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        for command in (install, ["apt-get", "update"], install):
            process = sp.run(command, env=quiet, capture_output=True, text=True)
            if process.returncode == 0 and command is install:
                return None
        return "apt-get could not install the cluster: " + process.stderr[-500:]
    finally:
        if ours:
            _POLICY.unlink()


def _free_ports(names: tuple[str, ...]) -> dict[str, str]:
    """Return a free port of the loopback for each name."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: str(one.getsockname()[1]) for name, one in zip(names, sockets, strict=True)}
