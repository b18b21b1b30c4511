"""Seeded hostile inputs by kind: `python -m tests.fuzz.campaign audio --inputs 1000 --seed 1`.

A kind is a module beside this one with two functions. `make(dice, folder)` writes one input into an empty folder and
returns a line that describes it. `check(folder)` gives it to the product and returns when the result is right; it
raises AssertionError when the result is wrong, and lets the product's errors through: an `AudiotokError` refuses the
input, as it may; any other exception is a traceback that a user would see. An input of code to execute makes the file
`mark(folder)`. Each input has CPU_S, WALL_S and MEMORY_B in a process; a seed and a number give the same one.
"""

import argparse
import importlib
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from audiotok.errors import AudiotokError

KINDS = ("audio", "manifests", "checkpoints", "experiments", "profiles", "overrides")
CPU_S = 20  # a loop without end; of the processor, as a busy machine makes no hang
WALL_S = 60.0  # a read that waits without end
MEMORY_B = 4 << 30  # beyond what the process has mapped when it starts
ACCEPTABLE = ("right", "refused")  # the others: wrong, traceback, hang, executed


def mark(folder: Path) -> Path:
    """The file that an input makes if it is executed."""
    return folder / "EXECUTED"


def run(kind: str, inputs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Try so many inputs of a kind; the counts by outcome, and what was not acceptable, a text each."""
    module = importlib.import_module(f"tests.fuzz.{kind}")
    counts, faults = Counter[str](), list[str]()
    number = 0
    while number < inputs:  # a process serves until an input hangs or kills it
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(module, theirs, ours))
        process.start()
        theirs.close()
        alive = True
        while alive and number < inputs:
            ours.send((seed, number))
            try:
                alive = ours.poll(WALL_S)
                outcome, text = ours.recv() if alive else ("hang", f"more than {WALL_S:.0f} s")
            except EOFError:
                process.join()
                alive, slow = False, process.exitcode == -signal.SIGXCPU
                outcome = "hang" if slow else "traceback"
                text = f"more than {CPU_S} s of CPU" if slow else f"the process died (exit code {process.exitcode})"
            counts[outcome] += 1
            if outcome not in ACCEPTABLE:
                faults.append(f"{kind} seed {seed} input {number}: {outcome}: {text}")
                print(faults[-1], flush=True)
            number += 1
        process.kill()
        process.join()
        ours.close()
    return counts, faults


def _serve(module: ModuleType, pipe: Connection, other_end: Connection) -> None:
    other_end.close()  # or this process would outlive its parent
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_B, resource.RLIM_INFINITY))
    while True:
        try:
            seed, number = pipe.recv()
        except EOFError:
            return
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_S, resource.RLIM_INFINITY))
        with tempfile.TemporaryDirectory(prefix="audiotok-fuzz-", ignore_cleanup_errors=True) as folder:
            pipe.send(_try(module, random.Random(f"{seed} {number}"), Path(folder)))


def _try(module: ModuleType, dice: random.Random, folder: Path) -> tuple[str, str]:
    described = "an input that could not be made"
    try:
        described = module.make(dice, folder)
        module.check(folder)
        outcome, text = "right", ""
    except AudiotokError as error:
        lines = str(error).splitlines()
        outcome, text = ("refused", "") if lines else ("wrong", "an error without a message")
    except AssertionError as error:
        outcome, text = "wrong", str(error)
    except (Exception, SystemExit):
        outcome, text = "traceback", traceback.format_exc()
    if mark(folder).exists():
        outcome = "executed"
    return outcome, f"{described}: {text}"


def main() -> int:
    """Exit code 1 if an input was not right or refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}; all")
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed = False
    for kind in arguments.kinds:
        counts, faults = run(kind, arguments.inputs, arguments.seed)
        failed |= bool(faults)
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())
        print(f"{kind}, seed {arguments.seed}: {outcomes}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
