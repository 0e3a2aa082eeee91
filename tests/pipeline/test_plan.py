"""Plans: every selected row exactly once, dealt evenly, the same plan from disk and from the hub, errors that say what to run."""

import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.plan import MissingSetsError, Plan, make_plan
from pipeline.recipe import load_recipe
from tests.hub_server import HubServer
from tests.pipeline.made import TEXTS, make_raw, plan_of, row, write_recipe, write_set

REPO = "HuggingFaceM4/FineVision"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Row groups of the files of one source, and what a recipe asks of it."""

    files: tuple[tuple[int, ...], ...]
    quota: int | None
    rows: str | None
    repeats: int
    shard_samples: int
    seed: int


BOUND = st.one_of(st.none(), st.integers(0, 60))
SLICES = st.one_of(st.none(), st.tuples(BOUND, BOUND, st.one_of(st.none(), st.integers(1, 9))).map(
    lambda parts: ":".join("" if part is None else str(part) for part in parts)))
GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
CASES = st.builds(Case, files=st.lists(GROUPS, min_size=1, max_size=4).map(tuple), rows=SLICES,
                  quota=st.one_of(st.none(), st.integers(1, 80)), repeats=st.integers(1, 3),
                  shard_samples=st.integers(1, 40), seed=st.integers(0, 99))


def planned(plan: Plan) -> Counter[tuple[str, int]]:
    """How often the plan takes each (file name, row of the file)."""
    return Counter((plan.files[block.file].name, block.first + at) for blocks in plan.shards for block in blocks
                   for at in range(block.start, block.stop, block.step))


@given(CASES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_selected_row_exactly_once(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    root = tmp_path_factory.mktemp("plan")
    names = []
    for number, groups in enumerate(case.files):
        path = root / "raw" / REPO / "made" / f"train-{number:05d}-of-{len(case.files):05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("texts", TEXTS)])
        with pq.ParquetWriter(path, schema) as writer:
            for rows in groups:
                texts = pa.array([[{"user": "q", "assistant": "a"}]] * rows, TEXTS)
                writer.write_table(pa.table({"texts": texts}), row_group_size=rows)
        names += [(f"{REPO}/made/{path.name}", at) for at in range(sum(groups))]
    asked = {"quota": case.quota, "rows": case.rows}
    options = "".join(f"{key} = {value!r}\n" for key, value in asked.items() if value is not None)
    (root / "p.toml").write_text(f"shard_samples = {case.shard_samples}\nseed = {case.seed}\n[sources.made]\n"
                                 f"repeats = {case.repeats}\n{options}")
    plan = make_plan(load_recipe(str(root / "p.toml")), raw=root / "raw")
    start, stop, step = ([int(part) if part else None for part in (case.rows or "::").split(":")])
    selected = names[slice(start, stop, step)]
    wanted = len(selected) if case.quota is None else min(len(selected), -(-case.quota // case.repeats))
    found = planned(plan)
    assert set(found.values()) <= {1} and set(found) <= set(selected)
    assert len(found) == wanted == plan.sources[0].rows
    assert plan.sources[0].available == len(selected)
    if wanted == len(selected):
        assert set(found) == set(selected)
    groups_used = [(block.file, block.group) for blocks in plan.shards for block in blocks]
    assert len(groups_used) == len(set(groups_used))  # a row group is in one shard, so it is read once
    counts = [len(blocks) for blocks in plan.shards]
    assert max(counts) - min(counts) <= 1
    again = make_plan(load_recipe(str(root / "p.toml")), raw=root / "raw")
    assert again.shards == plan.shards and again.id == plan.id


def test_two_shards_differ_by_at_most_one_block_of_each_source(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    plan = plan_of(write_recipe(tmp_path), raw, overrides=["recipe.shard_samples=25"])
    assert len(plan.shards) >= 4
    for source in range(len(plan.recipe.sources)):
        counts = [sum(block.source == source for block in blocks) for blocks in plan.shards]
        assert max(counts) - min(counts) <= 1
    totals = [len(blocks) for blocks in plan.shards]
    assert max(totals) - min(totals) <= 1


def test_a_quota_above_the_rows_takes_all_and_says_so(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    plan = plan_of(write_recipe(tmp_path), raw, overrides=["scans.quota=1000"])
    scans = next(source for source in plan.sources if source.name == "scans")
    assert (scans.asked, scans.available, scans.rows) == (1000, 6, 6)


def test_a_small_quota_needs_few_files_and_a_fraction_less(tmp_path: Path) -> None:
    rows = [row([], [("q", "a")])] * 80
    write_set(tmp_path / "raw", "many", rows, files=8, group=5)
    recipe = write_recipe(tmp_path, "tokenizer = {tokenizer!r}\n[sources.many]\nquota = 20\n")
    assert len(plan_of(recipe, tmp_path / "raw").files) == 2
    half = plan_of(recipe, tmp_path / "raw", fraction=0.5)
    assert sum(planned(half).values()) == 10 and len(half.files) == 1
    assert set(planned(half)) <= set(planned(plan_of(recipe, tmp_path / "raw")))  # a part of the same choice


def test_the_seed_changes_the_choice_and_the_plan(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    recipe = write_recipe(tmp_path)
    plans = [plan_of(recipe, raw, seed=seed) for seed in (0, 0, 1)]
    assert plans[0].id == plans[1].id != plans[2].id
    assert plans[0].shards != plans[2].shards


def test_the_hub_and_the_disk_give_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw(tmp_path / "raw")
    recipe = write_recipe(tmp_path)
    with HubServer(raw) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
        remote = make_plan(load_recipe(str(recipe)), raw=tmp_path / "none", origin="hub")
    local = make_plan(load_recipe(str(recipe)), raw=raw)
    assert remote.shards == local.shards
    assert [file.name for file in remote.files] == [file.name for file in local.files]
    assert [file.identity for file in remote.files] == [file.identity for file in local.files]
    assert {key: value for key, value in remote.identity().items() if key != "revisions"} == {
        key: value for key, value in local.identity().items() if key != "revisions"}


def test_missing_sets_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    (tmp_path / "x.toml").write_text('[sources.docs]\n[sources.sroie]\n[sources.chem]\nrepo = "rendered/chem"\nquota = 50\n')
    recipe = load_recipe(str(tmp_path / "x.toml"))
    with pytest.raises(MissingSetsError) as caught:
        make_plan(recipe, raw=raw)
    assert set(caught.value.missing) == {"sroie", "chem"}
    assert "--subset sroie" in caught.value.commands[0] and "download" in caught.value.commands[0]
    assert "render-chem --n 50" in caught.value.commands[1] and "--allow-missing" in str(caught.value)
    plan = make_plan(recipe, raw=raw, allow_missing=True)
    assert set(plan.missing) == {"sroie", "chem"} and [source.rows for source in plan.sources] == [23, 0, 0]
    assert plan.identity()["missing"] == ["sroie", "chem"]
    with pytest.raises(MissingSetsError):  # nothing at all is no build
        make_plan(load_recipe(str(tmp_path / "x.toml"), subsets=["sroie"]), raw=raw, allow_missing=True)


def test_a_set_that_is_still_being_rendered_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "rendered" / "chem"
    write_set(tmp_path / "raw", "made", [row([], [("q", "a")])] * 3)
    folder.mkdir(parents=True)
    shutil.copy(next((tmp_path / "raw" / REPO / "made").glob("*.parquet")), folder / "train-00000-of-00002.parquet")
    (tmp_path / "x.toml").write_text('[sources.chem]\nrepo = "rendered/chem"\n')
    recipe = load_recipe(str(tmp_path / "x.toml"))
    assert make_plan(recipe, raw=tmp_path / "raw").missing == ()
    (folder / ".work").mkdir()
    with pytest.raises(MissingSetsError, match="has not finished"):
        make_plan(recipe, raw=tmp_path / "raw")
    assert make_plan(recipe, raw=tmp_path / "raw", allow_missing=True).sources[0].rows == 3
    (folder / "manifest.json").write_text("{}")
    assert make_plan(recipe, raw=tmp_path / "raw").missing == ()


def test_a_wrong_subset_name_is_no_missing_set(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[sources.sroi]\n")
    with pytest.raises(ValueError, match="sroie"):
        make_plan(load_recipe(str(tmp_path / "x.toml")), raw=tmp_path)


def test_a_bad_file_is_named_and_the_rest_planned(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "raw", "made", [row([], [("q", "a")])] * 30, files=3, group=5)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    recipe = write_recipe(tmp_path, "tokenizer = {tokenizer!r}\n[sources.made]\n")
    plan = plan_of(recipe, tmp_path / "raw")
    assert [(bad.name, bad.reason) for bad in plan.bad_files] == [(f"{REPO}/made/{paths[1].name}", "file-truncated")]
    assert plan.sources[0].rows == 20
    whole = plan.id
    paths[1].write_bytes(b"other rubbish")
    assert plan_of(recipe, tmp_path / "raw").id != whole


def test_the_commands_of_missing_sets_are_few_and_exact(tmp_path: Path) -> None:
    """One download for all, with the recipe's path and changes; as many molecules as the fraction takes."""
    tables = "".join(f"[sources.set{at}]\nrepo = \"me/set\"\n" for at in range(7))
    path = tmp_path / "my file.toml"
    path.write_text(f'name = "other"\n{tables}[sources.chem]\nrepo = "rendered/chem"\nquota = 1000\n')
    recipe = load_recipe(str(path), fraction=1 / 3, seed=4, overrides=["set1.quota=5"])
    with pytest.raises(MissingSetsError) as caught:
        make_plan(recipe, raw=tmp_path / "raw")
    fetch, render = caught.value.commands
    assert shlex.split(fetch) == ["pipeline", "download", "--recipe", str(path), "--set", "set1.quota=5", "--fraction", str(1 / 3),
                                  "--seed", "4", "--raw", str(tmp_path / "raw")]
    assert "--n 334" in render and "and 3 more" in str(caught.value)
