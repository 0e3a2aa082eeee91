"""Worker processes end with their parent, and Ctrl-C ends them in silence."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import os, time
from pipeline.processes import open_pool

def identify(_):
    time.sleep(1)
    return os.getpid()

if __name__ == "__main__":
    with open_pool(2) as pool:
        try:
            print(*pool.map(identify, range(2)), flush=True)
            task = pool.submit(time.sleep, 60)  # one worker is at work, the other waits
            print("busy", flush=True)
            task.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert process.stdout is not None
    assert process.stderr is not None
    workers = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    assert process.stdout.readline() == "busy\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    assert process.wait(timeout=20) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert (len(gone), alive) == (len(workers), [])
    assert "Traceback" not in process.stderr.read()
