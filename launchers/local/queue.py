"""The book of local jobs: one record per job, a queue, and locks that show which processes live.

Standard library only. Everything stands under `<dora.dir>/local/`:

```
jobs/L7.json     the record of job L7, also copied to `job.json` in the experiment folder
queue/L7         there while L7 is not over; holds its environment and command, for its owner's eyes and hand only
drafts/L7        the same while L7 is being submitted; a submission that died is completed from it
locks/L7         flocked by the runner of L7 as long as it lives
locks/L7.stop    makes the runner of L7 stop it; holds the cause: CANCELLED or REQUEUED
locks/supervisor.1000  flocked by the one supervisor that this user (id) has in this folder
locks/submit     flocked for the instant of a submission, and while a supervisor decides to leave
```

Only a job that this user queued on this machine in this very folder is ever started (`JobStore.is_ours`): a folder may
be shared with others, a copy, or received from elsewhere.

Locks rather than process ids: the kernel releases a lock however its holder ends, and a process id may be reused. So a
record that is RUNNING while no process holds its lock is a job that vanished, and no reader shows RUNNING for ever. A
record leaves a state only under its lock, which makes "cancelled while it was starting" one or the other.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from audiotok.errors import LaunchError
from audiotok.files import UnreadableError, hold_lock, is_locked, open_at_once, read_json, read_text, write_json
from audiotok.status import JOB_FILE, State
from audiotok.status.judge import queued_elsewhere

_PRIVATE = ("command", "cwd", "folder", "log")  # what others must not change
_JOB_ID = re.compile(r"L[1-9][0-9]*")
VANISHED = "its process vanished (killed, or the machine restarted)"


@dataclass
class JobRecord:
    """One local job: all that its runner needs to know, and how it went. Times are unix seconds; paths are absolute."""

    job_id: str  # `L` and a number that grows by one with each submission
    sig: str  # of the experiment
    folder: str  # of the experiment
    log: str  # the file that the output of rank 0 goes to
    cwd: str
    command: list[str]
    name: str = ""  # of the experiment
    user: str = ""  # `name@host` of the submitter
    uid: int = -1  # its user id
    host: str = ""
    root: str = ""  # of the book that it was queued in
    inode: int = 0  # of its file in the queue, which no copy has
    gpus: int = 0  # number that it holds while it runs
    visible: list[str] = field(default_factory=list)  # GPUs of the machine
    gpu_ids: dict[str, str] = field(default_factory=dict)  # of these, what `launchers.local.claims` knows them by
    devices: list[str] = field(default_factory=list)  # of these, its own
    ranks: int = 1  # number of processes
    slots: int = 1  # it starts only while fewer jobs than this are running
    threads: int = 1  # for each of its processes
    grace_s: float = 10.0  # seconds between SIGTERM and SIGKILL when it is cancelled
    time_s: float = 0.0  # seconds that it may run at once; it is stopped `checkpoint_s` before, as on SLURM
    checkpoint_s: float = 0.0
    max_num_timeout: int = 0  # how often it is queued again at that limit
    timeouts: int = 0  # how often it was
    attempt: int = 0  # how often it was queued again for any reason
    state: str = "PENDING"  # RUNNING, or how it ended
    reason: str = ""
    exit_code: int | None = None  # minus the signal number if a signal ended it
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    lock: str = ""
    launcher: str = "local"
    code: dict[str, str] | None = None  # the snapshot that it runs
    needs: dict[str, str] = field(default_factory=dict)  # ids of the jobs that must complete first, by signature
    cancelled: float | None = None  # when one of our commands cancelled it

    @property
    def is_over(self) -> bool:
        """True once the state can no longer change."""
        return not State.of(self.state).live

    def to_json(self) -> dict[str, Any]:
        """The content of its file; `cancelled` is there only if it was."""
        return {name: value for name, value in asdict(self).items() if name != "cancelled" or value is not None}


class JobStore:
    """Reads and writes the book of one Dora folder; its `root` is `<dora.dir>/local`, made on first use."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).parent.resolve() / Path(root).name  # one path, whichever symlink leads there
        self.supervisor = f"supervisor.{os.getuid()}"  # its lock
        self._folders = [self.root / name for name in ("jobs", "queue", "drafts", "locks")]
        self.jobs, self.queue, self.drafts, self.locks = self._folders
        self._own: dict[str, bool] = {}

    def create(self) -> None:
        """Make the folders."""
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)

    def last_number(self) -> int:
        """The number of the latest job; only under `submitting()` it stays that."""
        return max(map(_number, self.jobs.iterdir()), default=0)

    def add(self, record: JobRecord, environ: Mapping[str, str]) -> None:
        """Queue a new job.

        Its environment may hold secrets, and others may write in a shared folder: so that and what it runs go to a
        private file, gone with the job.
        It is in `job.json` before it can start, and the draft is whole before it is in `job.json`: at whatever instant
        this is interrupted, the job is nowhere or `mend` completes it.
        """
        record.lock, record.submitted = str(self.locks / record.job_id), time.time()
        record.uid, record.host, record.root = os.getuid(), socket.gethostname(), str(self.root)
        draft = self.drafts / record.job_id
        draft.unlink(missing_ok=True)  # of a command that died
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"environ": dict(environ), **{name: getattr(record, name) for name in _PRIVATE}}, file)
            record.inode = os.fstat(file.fileno()).st_ino
        write_json(self._file(record.job_id), record.to_json(), sync=False)
        self._release(record)

    def mend(self) -> None:
        """Complete the submissions of this user's commands that died; only under `submitting()`."""
        for draft in self.drafts.iterdir():
            record = self.read(draft.name)
            if record is None or (self.is_ours(record) and read_json(draft) is None):
                draft.unlink()
            elif self.is_ours(record):
                self._release(record)

    def _release(self, record: JobRecord) -> None:
        write_json(Path(record.folder) / JOB_FILE, record.to_json(), sync=False)
        (self.drafts / record.job_id).replace(self.queue / record.job_id)

    def write(self, record: JobRecord) -> None:
        """Save a record, and its copy in the experiment folder unless that is elsewhere or of a later job."""
        content, sync = record.to_json(), record.started is not None  # a run must not be lost in a power cut
        write_json(self._file(record.job_id), content, sync=sync)
        copy = Path(record.folder) / JOB_FILE
        if self.is_here(record) and (read_json(copy) or {}).get("job_id") == record.job_id:
            write_json(copy, content, sync=sync)

    def finish(self, record: JobRecord, state: str, reason: str, exit_code: int | None = None) -> None:
        """Give a job its final state; only under its lock."""
        record.state, record.reason, record.exit_code, record.ended = state, reason, exit_code, time.time()
        if state == "CANCELLED":
            record.cancelled = record.ended
        self.write(record)
        self.forget(record.job_id)

    def finish_waiting(self, job_id: str, state: str, reason: str) -> bool:
        """Give a job that waits its final state; False if a runner has it."""
        with self.holding(job_id) as held:
            record = self.read(job_id) if held else None
            if record is not None and record.state == State.PENDING:
                self.finish(record, state, reason)
        return held

    def queue_again(self, record: JobRecord, reason: str, exit_code: int | None) -> None:
        """Put a job that was stopped at the end of the queue; only under its lock, which goes."""
        record.state, record.reason, record.exit_code, record.ended = "PENDING", reason, exit_code, time.time()
        record.devices, record.pid = [], None
        os.utime(self.queue / record.job_id)
        self.write(record)
        self._unlock(record.job_id)

    def forget(self, job_id: str) -> None:
        """Take a job that is over from the queue; only under its lock, which goes too."""
        (self.queue / job_id).unlink(missing_ok=True)
        self._unlock(job_id)

    def _unlock(self, job_id: str) -> None:
        for path in (self.stop_mark(job_id), self.locks / job_id):
            path.unlink(missing_ok=True)

    def read(self, job_id: str) -> JobRecord | None:
        """The record as it stands in the book; None if there is none or it is damaged."""
        if not _JOB_ID.fullmatch(job_id):
            return None
        try:
            content = read_json(self._file(job_id)) or {}
            record = JobRecord(**{key.name: content[key.name] for key in fields(JobRecord) if key.name in content})
        except TypeError:
            return None
        sound = record.launcher == "local" and record.job_id == job_id and isinstance(record.folder, str)
        return record if sound and isinstance(record.needs, dict) else None

    def checked(self, job_id: str) -> JobRecord | None:
        """The record, as NODE_FAIL if it is RUNNING and no process holds its lock, or waits in another folder."""
        record = self.read(job_id)
        if record is not None and record.state == State.PENDING and not self.is_here(record):
            record.state, record.reason = State.NODE_FAIL, queued_elsewhere(record.to_json())
        if record is None or record.state != State.RUNNING or self.is_held(job_id):
            return record
        record = self.read(job_id)  # it may have ended properly between the two looks
        if record is not None and record.state == State.RUNNING:
            record.state, record.reason = State.NODE_FAIL, VANISHED
        return record

    def is_here(self, record: JobRecord) -> bool:
        """True if it was queued in this very folder: not in one that this is a copy of, nor before a move."""
        entry, folder = self._entry(record.job_id), Path(os.path.normpath(record.folder))
        if record.root != str(self.root) or (entry is not None and entry.st_ino != record.inode):
            return False
        above = (folder, *folder.parents)
        return self.root.parent in above or any(one.resolve() == self.root.parent for one in above)

    def is_ours(self, record: JobRecord) -> bool:
        """True if this user queued it, on this machine and in this folder; anybody can write the words of a record."""
        entry, me = self._entry(record.job_id), os.getuid()
        mine = entry is not None and entry.st_uid == record.uid == me
        return mine and record.host == socket.gethostname() and self.is_here(record)

    def own(self) -> list[str]:
        """Of the unfinished jobs, those that are ours; a damaged record counts as ours if its file in the queue is."""
        for job_id in (found := self.unfinished()):
            if job_id not in self._own and (entry := self._entry(job_id)) is not None:
                record = self.read(job_id)
                self._own[job_id] = entry.st_uid == os.getuid() if record is None else self.is_ours(record)
        return [job_id for job_id in found if self._own.get(job_id)]

    def _entry(self, job_id: str) -> os.stat_result | None:
        """The file of a job in the queue, or its draft."""
        for folder in (self.queue, self.drafts):
            with suppress(OSError):
                return (folder / job_id).lstat()
        return None

    def unfinished(self) -> list[str]:
        """The ids in the queue, in the order they are to start."""
        found = []
        for path in self.queue.iterdir() if self.queue.is_dir() else ():
            with suppress(FileNotFoundError):  # it has ended meanwhile
                found.append((path.stat().st_mtime_ns, _number(path), path.name))
        return [name for _, number, name in sorted(found) if number]

    def environment(self, record: JobRecord) -> dict[str, str]:
        """The environment that a job of this user was queued with; what it runs is put into the record as it was then.

        Raises:
            OSError: if its private file is of another user, or cannot be read.
            ValueError: if it holds no JSON.
        """
        with open(self.queue / record.job_id, encoding="utf-8", opener=open_at_once) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise PermissionError(f"{file.name} belongs to another user")
            content = json.load(file)
        record.command, record.cwd, record.folder, record.log = (content[name] for name in _PRIVATE)
        return {key: str(value) for key, value in content["environ"].items()}

    def stop_mark(self, job_id: str) -> Path:
        """The file that makes the runner of a job stop it."""
        return self.locks / f"{job_id}.stop"

    def stop_cause(self, job_id: str) -> str | None:
        """Why a job is to stop, None if it is not."""
        with suppress(OSError, UnreadableError):
            return read_text(self.stop_mark(job_id)) or None
        return None

    def is_held(self, name: str) -> bool:
        """True if some process holds the lock of this job (or of a supervisor)."""
        return is_locked(self.locks / name)

    @contextmanager
    def holding(self, name: str, *, patience_s: float = 1.0) -> Iterator[bool]:
        """Hold a lock for the length of the block; yields False if another process keeps it.

        The patience bridges the readers of `is_held`, which touch the lock for an instant.
        """
        path = self.locks / name
        with ExitStack() as stack:
            try:
                held = stack.enter_context(hold_lock(path, patience_s=patience_s, poll_s=0.02))
            except OSError as error:
                need = "local jobs need a filesystem with flock for dora.dir"
                if isinstance(error, PermissionError):
                    need = "it is another user's, whose umask keeps others out: they share it by umask 002"
                raise LaunchError(f"cannot lock {path} ({error}); {need}.") from error
            yield held  # outside of the try: an error of the block is none of the lock

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Be the only one to submit, and keep the supervisor from leaving meanwhile."""
        self.create()
        with self.holding("submit", patience_s=60.0) as held:
            if not held:
                path = self.locks / "submit"
                raise LaunchError(f"another command has kept {path} for a minute; end it and try again.")
            yield

    def _file(self, job_id: str) -> Path:
        return self.jobs / f"{job_id}.json"


def _number(path: Path) -> int:
    """The number in the name of a job's file; 0 for any other file."""
    digits = path.stem.removeprefix("L")
    return int(digits) if path.stem != digits and digits.isdecimal() else 0
