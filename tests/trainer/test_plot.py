"""Curves: drawn from any log, also a short, cut or wild one."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from trainer import plot


def write_log(folder: Path, entries: list[dict[str, object]], tail: str = "") -> Path:
    """A run's folder with that log."""
    folder.mkdir()
    for name, steps in (("log.jsonl", True), ("events.jsonl", False)):
        mine = [entry for entry in entries if ("loss" in entry) == steps]
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in mine) + tail)
    return folder


def test_two_runs_become_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries: list[dict[str, object]] = [
        {"step": step, "loss": 3 / step, "lr": 1e-3, "grad_norm": 2.0, "sam_grad_norm": 0.1} for step in range(1, 30)]
    entries += [{"step": 10, "eval": {"kind": "evaluation", "loss": 0.5, "blind_loss": 0.9, "gap": 0.4, "vf_projector": 1e-3}},
                {"step": 11, "event": "warning", "text": "x"}]
    first, second = write_log(tmp_path / "a", entries, '{"step": 30, "lo'), write_log(tmp_path / "b", entries[:1])
    out = tmp_path / "both.png"
    assert plot.main([str(first), str(second), "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out)}
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.size == (2 * plot.WIDTH, 2 * plot.HEIGHT)
        assert len(image.getcolors(1 << 20) or ()) > 20


def test_runs_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for parent in "ab":
        (tmp_path / parent).mkdir()
        folders.append(str(write_log(tmp_path / parent / "run", [{"step": 1, "loss": 1.0}])))
    drawn, draw_runs = [], plot.draw_runs
    monkeypatch.setattr(plot, "draw_runs", lambda runs: drawn.append(list(runs)) or draw_runs(runs))
    assert plot.main(folders) == 0
    assert drawn == [folders]


def test_every_curve_of_two_runs_is_in_the_legend() -> None:
    curves = [plot.Curve(name=f"images exchanged {index}", points=[(0, 0), (1, 1)]) for index in range(len(plot.COLOURS))]
    legend = plot.panel("loss", curves).crop((0, 30, plot.WIDTH, 64)).getcolors(1 << 16) or ()
    assert {ImageColor.getrgb(colour) for colour in plot.COLOURS} <= {colour for _, colour in legend}


def test_flat_and_infinite_values_are_drawn(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "a", [{"step": 1, "loss": 0.0, "grad_norm": 0.0}, {"step": 2, "loss": 0.0}],
                       '{"step": 3, "loss": NaN}\n')
    assert plot.main([str(folder)]) == 0
    assert (folder / "curves.png").exists()


def test_an_empty_folder_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(tmp_path)]) == 1
    assert "holds no steps yet" in capsys.readouterr().err
    folder = write_log(tmp_path / "a", [{"step": 1, "loss": 1.0}])
    assert plot.main([str(folder), "--out", str(tmp_path)]) == 1
    assert f"Is a directory: '{tmp_path}'" in capsys.readouterr().err
