"""What keep_heap is for: arrays that are freed and made again are not mapped and cleared anew. In a process of its own."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pipeline.heap import give_back, keep_heap
{call}
for turn in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8 << 20, np.uint8) for _ in range(3)]
    del arrays
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{then}
print(faults, next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
"""


def run(call: str = "", then: str = "") -> tuple[int, int]:
    """(pages that the sixth turn of making and freeing three arrays of 8 MB had to be given, kB resident in the end)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(call=call, then=then)], capture_output=True, text=True, check=True)
    faults, resident = done.stdout.split()
    return int(faults), int(resident)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of another C library nothing is asked")


@glibc
def test_freed_arrays_are_kept_for_the_next() -> None:
    assert run("keep_heap()")[0] < 50 < run()[0]


@glibc
def test_what_is_kept_can_be_given_back() -> None:
    assert run("keep_heap()")[1] - run("keep_heap()", "give_back()")[1] > 20_000  # kB: of the three arrays
