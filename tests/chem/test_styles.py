"""Style files: what they may say, and that a seed always draws the same style."""

import random
from pathlib import Path

import pytest

from pipeline.chem.styles import KNOBS, PRESETS, load_style, parse_style, sample_style


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_draw_every_knob(name: str) -> None:
    style = sample_style(load_style(name), random.Random(1))
    assert set(style.values) == set(KNOBS)


def test_plain_is_black_and_white_without_effects() -> None:
    values = sample_style(load_style("plain"), random.Random(1)).values
    assert values["colour.palette"] == "black"
    assert not any(values[key] for key in ("effect.blur", "effect.noise", "effect.jpeg", "effect.scan"))


def test_same_seed_same_style_whatever_the_order_of_lines() -> None:
    one = parse_style("[bond]\nwidth = [0.02, 0.1]\n[canvas]\npadding = [0, 0.2]\n", "one")
    other = parse_style("[canvas]\npadding = [0, 0.2]\n[bond]\nwidth = [0.02, 0.1]\n", "other")
    assert sample_style(one, random.Random(5)).values == sample_style(other, random.Random(5)).values


def test_weights_are_kept() -> None:
    spec = parse_style('[canvas]\nmode = {square = 3, crop = 1}\n[stereo]\ncip = 0.25\n', "x")
    rng = random.Random(0)
    styles = [sample_style(spec, rng) for _ in range(4000)]
    assert 0.22 < sum(style.name("canvas.mode") == "crop" for style in styles) / 4000 < 0.28
    assert 0.22 < sum(style.flag("stereo.cip") for style in styles) / 4000 < 0.28


def test_acs_look_overrules_and_is_written_down() -> None:
    style = sample_style(parse_style("[look]\nacs = 1\n[bond]\nwidth = 0.1\n", "acs"), random.Random(0))
    assert (style.values["bond.width"], style.values["label.font"]) == (0.0417, "sans")
    assert '"label.size":0.694' in style.to_json()


@pytest.mark.parametrize(("text", "words"), [
    ("[bond]\nwdth = 0.1", "did you mean `bond.width`"),
    ("[canvas]\nmode = 'sqare'", "nearest: square"),
    ("[bond]\nwidth = 7", "must lie in"),
    ("[bond]\nwidth = [0.1, 0.02]", "a range is"),
    ("[stereo]\ncip = 1.5", "a chance is a number"),
    ("[canvas]\nmode = {square = -1}", "must be a number >= 0"),
    ("[canvas]\nmode = {square = 0}", "add up to nothing"),
    ("[canvas]\nmode = {square = nan}", "must be a number >= 0"),
    ("[canvas]\nmode = {square = inf}", "must be a number >= 0"),
    ("[effect]\nblur = {0.8 = 1}", 'numbers stand in quotes, as in {"0.5" = 1}'),
    ("width = 0.1", "below [bond]"),
    ("[bond\n", "not TOML"),
    ("[bond]\nwidth = true", "a number, a range"),
])
def test_errors_name_the_key_and_the_fix(text: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_style(text, "mine")
    assert "mine" in str(error.value)
    assert words in str(error.value)


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ValueError, match="plain, diverse, patent"):
        load_style("dverse")


def test_a_byte_order_mark_is_no_part_of_a_style(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbf")
    load_style(str(tmp_path / "s.toml"))
