"""The official clients against the same loopback hub: it answers as the hub does, and our code agrees with theirs.

They read HF_ENDPOINT when they are imported, so each runs in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.hub import api
from pipeline.hub.fetch import Want, bring_all
from pipeline.hub.record import load_record
from tests.hub.conftest import REPO
from tests.hub_server import Fault, HubServer, script

DATASETS = """
import json, sys
from datasets import get_dataset_config_names, load_dataset
import huggingface_hub
names = get_dataset_config_names(sys.argv[1])
rows = load_dataset(sys.argv[1], "docs", split="train")
api = huggingface_hub.HfApi()
tree = [(e.path, e.size, e.lfs.sha256) for e in api.list_repo_tree(sys.argv[1], "docs", repo_type="dataset", recursive=True)]
print(json.dumps({"names": names, "rows": len(rows), "columns": rows.column_names, "first": rows[0]["texts"],
                  "sha": api.dataset_info(sys.argv[1]).sha, "tree": tree}))
"""

CACHE = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download
hf_hub_download(sys.argv[1], "docs/train-00000-of-00004.parquet", repo_type="dataset")
snapshot_download(sys.argv[1], repo_type="dataset", allow_patterns=["geoqa*/*"])
"""


def client(code: str, hub: HubServer, home: Path) -> str:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
           "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", code, REPO], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_datasets_and_hub_client_see_what_we_see(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    # they retry a 429 by themselves; the storage redirect goes to another host name
    hub.state.faults = script({"/tree/": [Fault("429", retry_after="1")]})
    seen: dict[str, Any] = json.loads(client(DATASETS, hub, tmp_path / "home").strip().splitlines()[-1])
    assert seen["names"] == ["docs"], "the data card's one config"
    assert seen["rows"] == 40 + 41 + 42 + 43
    assert seen["columns"] == ["images", "texts", "source"]
    assert seen["first"][0]["user"] == "q0"
    assert seen["sha"] == api.resolve_revision(REPO)
    assert seen["tree"] == [[f.path, f.size, f.sha256] for f in api.list_files(REPO, "docs")]


def test_what_the_client_cached_is_not_fetched_again(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    client(CACHE, hub, tmp_path / "hf-home")
    revision = api.resolve_revision(REPO)
    wants = [Want(repo=REPO, revision=revision, file=f) for f in api.list_files(REPO, "", revision)]
    hub.clear()
    raw = tmp_path / "raw"
    how = {o.want.file.path: o.how for o in bring_all(wants, raw, {REPO: load_record(raw, REPO)})}
    assert how["docs/train-00000-of-00004.parquet"] == "reused"
    assert [how[path] for path in how if path.startswith("geoqa")] == ["reused", "reused"]
    assert list(how.values()).count("fetched") == 4, "three other files of docs, the README"
    for want in wants:
        data = want.place(raw).read_bytes()
        assert data == (hub_root / REPO / want.file.path).read_bytes()
        assert want.file.sha256 in (None, hashlib.sha256(data).hexdigest())
