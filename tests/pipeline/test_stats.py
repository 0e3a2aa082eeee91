"""`pipeline stats` agrees with a plain count over every sample."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.build.state import open_build
from pipeline.cli import cli
from pipeline.inspect.collect import FILL_BINS, TOKEN_BINS, collect
from pipeline.inspect.terminal import plain, sparkline
from shards import table
from shards.reader import ShardReader
from shards.sample import Sample
from tests.pipeline.small_sets import run_build, small_plan, small_raw


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    plan = small_plan(small_raw(folder))
    run_build(plan, open_build(plan, str(folder / "shards"), fresh=False, work=None))
    return folder / "shards"


def samples(folder: Path) -> list[Sample]:
    return [sample for split, name in table.FILES.items() for row in table.load(folder / name)
            for sample in ShardReader(folder, split).read(row)]


def test_json_agrees_with_every_sample(built: Path) -> None:
    result = CliRunner().invoke(cli, ["stats", str(built), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    seen = samples(built)
    by_source = Counter(sample.meta["source"] for sample in seen)
    assert {name: source["samples"] for name, source in told["sources"].items()} == by_source
    for name, source in told["sources"].items():
        mine = [sample for sample in seen if sample.meta["source"] == name]
        lengths = sorted(len(sample.ids) for sample in mine)
        assert source["tokens"] == sum(lengths)
        assert source["tokens_max"] == lengths[-1]
        assert source["tokens_median"] == lengths[len(lengths) // 2]
        assert source["images"] == sum(len(sample.meta["images"]) for sample in mine)
        assert source["images_max"] == max(len(sample.meta["images"]) for sample in mine)
        assert source["answer_tokens"] == sum(int((sample.mask == 2).sum()) for sample in mine)
    assert sum(told["fill_histogram"]) == told["splits"]["train"]["rows"] + told["splits"]["val"]["rows"]
    assert told["bytes"] == sum(path.stat().st_size for path in built.glob("*.tar"))


def test_report_distributions(built: Path) -> None:
    report = collect(built)
    seen = samples(built)
    for source in report.sources:
        lengths = [len(sample.ids) for sample in seen if sample.meta["source"] == source.name]
        expected = Counter(int(np.searchsorted(TOKEN_BINS, length)) for length in lengths)
        assert {k: int(v) for k, v in enumerate(source.token_bins) if v} == expected
        assert source.sides.sum() == source.counts["images"]
    assert len(report.fill) == FILL_BINS
    assert report.row_samples.sum() == len(seen)


def test_text_for_people(built: Path) -> None:
    result = CliRunner().invoke(cli, ["stats", str(built)], catch_exceptions=False)
    for word in ("pages", "talk", "median", "full", "shards", "MB"):
        assert word in result.stdout


def test_terminal_helpers() -> None:
    assert plain("a\x1b[31m\u202eb\nc") == "a [31m b c"
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
