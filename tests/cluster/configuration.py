"""What the test cluster is configured to be: `slurm.conf`, `slurmdbd.conf` and `gres.conf`, and what tests may vary."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NODES = ("n1", "n2")


@dataclass(frozen=True)
class Options:
    """What sets one test cluster apart from another.

    Attributes:
        name: its ClusterName.
        accounting: with slurmdbd over MariaDB, so that sacct answers; without it the cluster is up much sooner.
        max_array_size: MaxArraySize; the largest index of an array is one less.
        min_job_age: seconds after which a job that is over leaves squeue.
        qos: limits of QOS `normal`, which all jobs have; enforced if there are any.
        changes: other lines of `slurm.conf`, which replace those here.
    """

    name: str = "audiotok"
    accounting: bool = True
    max_array_size: int = 1001
    min_job_age: int = 300
    qos: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, str] = field(default_factory=dict)


# cred_expire is also how long a job that is queued again waits: two minutes by default.
_SLURM_CONF = {
    "ClusterName": "{name}",
    "SlurmctldHost": "{host}(127.0.0.1)",
    "SlurmctldPort": "{slurmctld}",
    "SlurmUser": "root",
    "SlurmdUser": "root",
    "AuthType": "auth/munge",
    "AuthInfo": "socket={house}/munge.socket,cred_expire=6",
    "CredType": "cred/munge",
    "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
    "StateSaveLocation": "{root}/state",
    "SlurmdSpoolDir": "{root}/spool-%n",
    "SlurmctldPidFile": "{root}/slurmctld.pid",
    "SlurmdPidFile": "{root}/slurmd-%n.pid",
    "SlurmctldLogFile": "{root}/slurmctld.log",
    "SlurmdLogFile": "{root}/slurmd-%n.log",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "MpiDefault": "none",
    "SlurmdParameters": "config_overrides",
    "ReturnToService": "2",
    "KillWait": "5",
    "MinJobAge": "{min_job_age}",
    "MaxArraySize": "{max_array_size}",
    "GresTypes": "gpu",
    "JobAcctGatherType": "jobacct_gather/none",
}
_ACCOUNTING = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageTRES": "gres/gpu",
    "AccountingStorageHost": "127.0.0.1",
    "AccountingStoragePort": "{slurmdbd}",
    "AccountingStoragePass": "{house}/munge.socket",
}
_HARDWARE = """\
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=100000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=100000 Gres=gpu:2
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=patient Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
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


def files(options: Options, places: Mapping[str, str]) -> dict[str, str]:
    """Return the configuration files by name.

    Args:
        options: what the cluster is to be.
        places: `root` folder, the folder of the `house` that has authentication, `host` name, a port for every daemon.
    """
    lines = {**_SLURM_CONF, **(_ACCOUNTING if options.accounting else {})}
    lines |= {"AccountingStorageEnforce": "limits,qos"} if options.qos else {}
    lines |= options.changes
    text = "".join(f"{name}={value}\n" for name, value in lines.items()) + _HARDWARE
    values = {**places, "max_array_size": options.max_array_size, "min_job_age": options.min_job_age}
    values["name"] = options.name
    return {
        "slurm.conf": text.format(**values),
        "slurmdbd.conf": _SLURMDBD_CONF.format(**places),
        "gres.conf": _GRES_CONF,
    }
