"""Processes that bring shards up to date side by side.

They are plain child processes and not those of `multiprocessing`: forking would copy the threads' locks of a notebook,
and spawning would run the caller's script again. Each gets one shard at a time, so memory stays bounded, and leaves the
numbers in the cache, so little comes back through the pipe.
"""

import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO

from audiotok.results.block import Block
from audiotok.results.shards import Shard, load_shard

MAX_WORKERS = 4
_SERVE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from audiotok.results.workers import serve; serve()"

logger = logging.getLogger(__name__)


def load_shards(shards: Sequence[Shard], keys: Sequence[str], workers: int | None = None) -> list[list[Block]]:
    """Bring shards up to date, see `load_shard`, in as many processes as there are cores for us.

    What a process that dies (too little memory, say) leaves undone is done here.
    """
    count = min(workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS), len(shards))
    found: list[list[Block] | None] = [None] * len(shards)
    if count > 1:
        todo: SimpleQueue[int] = SimpleQueue()
        for index in range(len(shards)):
            todo.put(index)
        processes = [_start() for _ in range(count)]
        try:
            threads = [
                threading.Thread(target=_feed, args=(process, shards, keys, todo, found)) for process in processes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    return [load_shard(shard, keys) if blocks is None else blocks for shard, blocks in zip(shards, found, strict=True)]


def serve() -> None:
    """Answer on stdout what is asked on stdin, until it is closed; what anybody prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.freeze()
    for shard, keys in _messages(sys.stdin.buffer):
        pickle.dump(load_shard(shard, keys), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _start() -> "subprocess.Popen[bytes]":
    """A child that imports what we import; in a session of its own, so that Ctrl-C reaches us only."""
    path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE, json.dumps(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _feed(
    process: "subprocess.Popen[bytes]",
    shards: Sequence[Shard],
    keys: Sequence[str],
    todo: "SimpleQueue[int]",
    found: list[list[Block] | None],
) -> None:
    """Hand out shards to one process until none is left or it is gone."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            index = todo.get_nowait()
        except Empty:
            return
        try:
            pickle.dump((shards[index], keys), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            found[index] = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("a process that reads results is gone (%s); going on without it", error or "no answer")
            return


def _messages(stream: IO[bytes]) -> Iterator[tuple[Shard, Sequence[str]]]:
    with suppress(EOFError):
        while True:
            yield pickle.load(stream)
