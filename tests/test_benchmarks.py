"""Every benchmark can be started: it imports, says in its docstring how to run it, and is in the suite; failures, packing, fits."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as suite
from benchmarks import common, complexity, packing, peers

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__main__")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_and_is_documented(name: str) -> None:
    text = importlib.import_module(f"benchmarks.{name}").__doc__
    assert text
    source = (ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")
    if "__main__" in source:
        assert f"python -m benchmarks.{name}" in text or f"python benchmarks/{name}.py" in text


def test_the_suite_names_modules() -> None:
    assert set(suite.SUITE) <= set(MODULES)


def test_a_failing_benchmark_does_not_stop_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(common, "RESULTS", results)
    monkeypatch.setattr(suite, "SUITE", {"packing": ["--no-such-option"], "loader_lanes": ["--said"]})  # the second runs nothing
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert suite.main() == 1
    assert "`python -m benchmarks.loader_lanes --said`; " in results.read_text("utf-8")
    told = capfd.readouterr().err
    assert "packing: failed with 2" in told
    assert "loader_lanes: done" in told
    assert told.rstrip().splitlines()[-1].startswith("failed: packing;")


def test_an_unknown_benchmark_names_the_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "lodaers"])
    assert suite.main() == 2
    assert "loaders" in capsys.readouterr().err


def test_a_lane_that_fails_is_not_run_again_and_is_listed() -> None:
    calls: list[str] = []

    def good() -> common.Told:
        calls.append("good")
        return {"s": len(calls)}

    def bad() -> common.Told:
        calls.append("bad")
        raise RuntimeError("no such module")

    told, failed = common.turns({"good": good, "bad": bad}, 3)
    assert calls == ["good", "bad", "good", "good"]
    assert common.median(told["good"], "s") == 3
    assert common.missing(failed) == ["Not measured: bad: `no such module`"]


def test_a_lane_of_another_process_says_why_it_failed() -> None:
    with pytest.raises(RuntimeError, match="No such file or directory"):
        common.lane("packing", ["best fit (ours)", "/absent", 10])


def test_packing_ways_on_five_numbers(tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps([[6, 1], [5, 0], [4, 0], [3, 0], [2, 1]]))
    best = packing.measure("best fit (ours)", str(path), 10)
    assert (best["rows"], best["computed"], best["held"]) == (2, 20, 20)
    # 20 tokens: 2 + 5 knapsacks, the emptiest first: one sample each, as nanoVLM's spare knapsacks do to a small buffer
    assert packing.measure("nanoVLM", str(path), 10)["rows"] == 5
    assert packing.measure("padded to batch", str(path), 10)["computed"] == 5 * 6
    assert packing.measure("padded to length", str(path), 10)["computed"] == 50


def test_knapsacks_hold_at_most_18_images() -> None:
    rows = packing.knapsacks([(10, 1)] * 200, 1000, buffer_rows=1024)
    assert max(sum(images for _, images in row) for row, _ in rows) <= 18
    assert sum(len(row) for row, _ in rows) == 200


def test_the_exponent_of_a_parabola() -> None:
    assert complexity.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_peers_are_pinned() -> None:
    pins = (ROOT / "benchmarks" / "peers.txt").read_text("utf-8")
    own = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    for name, peer in peers.PEERS.items():
        assert f"\n{peer.package.split('[')[0]}==" in pins, name
    for line in pins.splitlines():  # both sides of a comparison run the same numpy, torch and Pillow
        package, _, version = line.partition("==")
        assert own.get(package, version) == version, package
