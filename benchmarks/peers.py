"""The peers' own environment, .venv-peers/ beside the checkout's: made once by the first benchmark that needs it.

    python -m benchmarks.peers            # makes it if it is not there, and tells what can be used

About 3 minutes and 2.4 GB. Everything at the versions of benchmarks/peers.txt, torch first, so that no peer brings another build.
litdata and mosaicml-streaming ask for torchvision, whose builds do not load beside every build of torch, for image sets and
transforms that are not used here: they are installed without dependencies, and those that they do use by name. What does not
install or import is kept with the first line of its error, for the results to list.
"""

import hashlib
import json
import subprocess
import sys
import venv
from dataclasses import dataclass

from benchmarks.common import ROOT

FOLDER = ROOT / ".venv-peers"
CONSTRAINTS = ROOT / "benchmarks" / "peers.txt"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One package: what to install, and a statement that uses it."""

    package: str
    probe: str
    needs: tuple[str, ...] = ()  # with their own dependencies
    alone: bool = False  # the package itself without its dependencies


COMMON = ("numpy", "pillow", "psutil", "simplejpeg", "tokenizers")  # of the lanes themselves, and of shards and trainer.pixels
PEERS = {
    "webdataset": Peer(package="webdataset", probe="from webdataset import WebLoader, ShardWriter"),
    "Energon": Peer(package="megatron-energon", probe="from megatron.energon import get_loader"),
    "datasets": Peer(package="datasets", probe="from datasets import load_dataset"),
    "DALI": Peer(package="nvidia-dali-cuda130", probe="from nvidia.dali import fn, pipeline_def"),
    "Ray Data": Peer(package="ray[data]", probe="import ray.data"),
    "litdata": Peer(package="litdata", probe="from litdata import StreamingDataset, optimize", alone=True,
                    needs=("boto3", "filelock", "lightning-utilities", "obstore", "requests", "tifffile")),
    "streaming": Peer(package="mosaicml-streaming", probe="from benchmarks.peers import import_mds; import_mds()", alone=True,
                      needs=("boto3", "brotli", "catalogue", "python-snappy", "tqdm", "transformers", "xxhash", "zstd")),
}


def import_mds() -> type:
    """streaming.MDSWriter, without running the package's __init__, which imports image sets made with torchvision."""
    import importlib.util

    spec = importlib.util.find_spec("streaming")
    if spec is None:
        raise ImportError("No module named 'streaming'")
    sys.modules["streaming"] = importlib.util.module_from_spec(spec)  # made, with its path, and not executed
    from streaming.base import MDSWriter

    return MDSWriter  # type: ignore[no-any-return]


def python() -> str:
    """The interpreter."""
    return str(FOLDER / "bin" / "python")


def _pip(*words: str) -> str:
    """An empty string, or the first line of the error."""
    command = [python(), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(CONSTRAINTS), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["pip failed"])[0] if done.returncode else ""


def _install(peer: Peer) -> str:
    if peer.needs and (error := _pip(*peer.needs)):
        return error
    return _pip("--no-deps", peer.package) if peer.alone else _pip(peer.package)


def _probe(peer: Peer) -> str:
    done = subprocess.run([python(), "-c", peer.probe], capture_output=True, text=True, check=False, cwd=ROOT)
    return (done.stderr.strip().splitlines() or ["failed"])[-1] if done.returncode else ""


def usable() -> dict[str, str]:
    """Every peer with its error, empty for those that can be used; makes the environment the first time."""
    wanted = hashlib.sha256(repr((COMMON, PEERS)).encode() + CONSTRAINTS.read_bytes()).hexdigest()[:16]
    stamp = FOLDER / f"peers-{wanted}.json"
    if not stamp.exists():
        print(f"making {FOLDER.name} (once, some minutes)", file=sys.stderr)
        venv.create(FOLDER, with_pip=True)
        torch = next(line for line in CONSTRAINTS.read_text("utf-8").splitlines() if line.startswith("torch=="))
        if error := _pip(torch) or _pip(*COMMON):
            raise RuntimeError(error)
        found = {name: _install(peer) or _probe(peer) for name, peer in PEERS.items()}
        stamp.write_text(json.dumps(found))
    return dict(json.loads(stamp.read_text("utf-8")))


def versions(*names: str) -> str:
    """Versions of the constraints file, which is what was installed."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text("utf-8").splitlines() if "==" in line)
    return ", ".join(f"{name} {pins[PEERS[name].package.split('[')[0]]}" for name in names)


def main() -> None:
    """Tell what can be used."""
    for name, error in usable().items():
        print(f"{name}: {error or 'ready'}")


if __name__ == "__main__":
    main()
