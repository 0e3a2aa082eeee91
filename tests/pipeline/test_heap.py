"""What keep_heap is for: arrays that are freed and made again are not mapped and cleared anew. In a process of its own."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pipeline.heap import keep_heap
{call}
for turn in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8 << 20, np.uint8) for _ in range(3)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Pages that the sixth turn of making and freeing three arrays of 8 MB had to be given."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt, and nothing is asked of it")
def test_freed_arrays_are_kept_for_the_next() -> None:
    assert faults("keep_heap()") < 50 < faults("")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no malloc_trim, and nothing is asked of it")
def test_what_is_kept_can_be_given_back() -> None:
    script = SCRIPT.format(call="keep_heap()").replace("print(", "give_back()\nprint(")
    script = script.replace("import keep_heap\n", "import give_back, keep_heap\n")
    resident = "\nprint([line for line in open('/proc/self/status') if line.startswith('VmRSS')][0].split()[1])"
    kept, given = (int(subprocess.run([sys.executable, "-c", text + resident], capture_output=True, text=True, check=True)
                       .stdout.split()[-1]) for text in (script.replace("give_back()\n", ""), script))
    assert kept - given > 20_000  # kB: of the three arrays
