"""Large blocks come from memory that was freed before, once the process has asked for that."""

import platform
import subprocess as sp
import sys

import pytest

SCRIPT = """
import ctypes
import resource
import sys
import threading
from audiotok.utils.memory import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 2 MiB have few faults either way
if sys.argv[1] == "keep":
    keep_freed_memory()

import torch

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**23)  # 32 MB, 8192 pages of 4 kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults(20)  # until there is a block for each place in use
print(faults(10))

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=lambda: torch.ones(2**22))  # 16 MB, of what the other thread has freed
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these settings")
def test_freed_blocks_are_given_out_again() -> None:
    def faults(how: str, **environ: str) -> tuple[int, int]:
        done = sp.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, env=environ, check=True)
        first, second = map(int, done.stdout.split())
        return first, second

    kept, left = faults("keep"), faults("leave")
    assert kept[0] * 10 < left[0] and kept[1] * 10 < left[1]
    assert faults("keep", MALLOC_MMAP_MAX_="65536")[0] * 10 > left[0]  # the user's own choice stands
