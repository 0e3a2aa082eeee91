"""A small hub made by the test itself, and an environment that points every client at it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.hub.retry import Retry
from tests.hub_server import HubServer

QUICK = Retry(tries=6, base=0.01, cap=0.05)
REPO = "HuggingFaceM4/FineVision"


def write_set(path: Path, rows: int, group: int, seed: int) -> None:
    """A parquet file in FineVision's layout: random bytes as images, two turns a row."""
    rng = np.random.default_rng(seed)
    table = pa.table({
        "images": pa.array([[{"bytes": rng.bytes(3000), "path": f"{i}.png"}] for i in range(rows)],
                           pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        "texts": pa.array([[{"user": f"q{i}", "assistant": "a" * (i + 1)}] * 2 for i in range(rows)],
                          pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        "source": pa.array(["made"] * rows),
    })
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """owner/name folders: six files in two sets (one with awkward letters), a README that is not LFS."""
    root = tmp_path_factory.mktemp("hub")
    base = root / REPO
    for k in range(4):
        write_set(base / "docs" / f"train-{k:05d}-of-00004.parquet", rows=40 + k, group=10, seed=k)
    for k in range(2):
        write_set(base / "geoqa+(mathv360k)" / f"train-{k:05d}-of-00002.parquet", rows=8, group=8, seed=10 + k)
    (base / "README.md").write_text("---\nconfigs:\n- config_name: docs\n  data_files: docs/train-*\n---\n# made\n")
    return root


@pytest.fixture
def hub(hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running hub over `hub_root`; HF_ENDPOINT, HF_HOME and the footer cache point at it and at empty folders."""
    with HubServer(hub_root, page=2) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield server
