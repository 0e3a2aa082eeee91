"""Recipes: shipped ones parse; every wrong key or value is named with the nearest right one; changes of the command line."""

import tomllib
from pathlib import Path

import pytest

from pipeline.recipe import RecipeError, load_recipe, nearest, shipped

GOOD = """
name = "mine"
mode = "base"
seq_len = 4096
[train]
lr = 5e-5
[sources.sroie]
quota = 100
[sources."geoqa+(mathv360k)"]
mode = "tiny"
bucket = "geometry and math"
[sources.talk]
kind = "smoltalk"
repeats = 2
"""


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_shipped_recipes_are_good() -> None:
    names = shipped()
    assert {"demo", "stage1", "stage2"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.sources and recipe.train and recipe.home is None


def test_a_users_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "mine" and [source.name for source in recipe.sources] == ["sroie", "geoqa+(mathv360k)", "talk"]
    sroie, geoqa, talk = recipe.sources
    assert (sroie.quota, recipe.mode_of(sroie), recipe.mode_of(geoqa)) == (100, "base", "tiny")
    assert sroie.prefix == "HuggingFaceM4/FineVision/sroie/train-"
    assert talk.repeats == 2 and talk.kind == "smoltalk" and talk.on_hub
    assert recipe.home == tmp_path


WRONG = {
    # the text that is changed -> (into what, the words of the message)
    "an unknown key": ('seq_len = 4096', 'seq_lenght = 4096', ["'seq_lenght'", "did you mean 'seq_len'"]),
    "an unknown source key": ("quota = 100", "qouta = 100", ["'qouta'", "[sources.sroie]", "did you mean 'quota'"]),
    "an unknown train key": ("lr = 5e-5", "learning_rat = 5e-5", ["'learning_rat'", "[train]"]),
    "another kind's option": ("quota = 100", "quota = 100\nmin_ratngs = {relevance = 3}", ["'min_ratngs'", "'min_ratings'"]),
    "an unknown mode": ('mode = "base"', 'mode = "bsae"', ["mode = 'bsae'", "did you mean 'base'"]),
    "an unknown source mode": ('mode = "tiny"', 'mode = "tiy"', ["mode = 'tiy'", "'tiny'", "geoqa"]),
    "an unknown kind": ('kind = "smoltalk"', 'kind = "smoltlk"', ["'smoltlk'", "'smoltalk'"]),
    "an unknown bucket": ('"geometry and math"', '"geometry"', ["bucket = 'geometry'", "geometry and math"]),
    "an unknown rule": ("quota = 100", 'overlong = "trim"', ["overlong = 'trim'", "truncate"]),
    "a text for a number": ("quota = 100", 'quota = "many"', ["quota = 'many'", "int"]),
    "a float for a number": ("quota = 100", "quota = 1.5", ["quota = 1.5", "int"]),
    "true for a number": ("quota = 100", "quota = true", ["quota = True", "int"]),
    "no rows": ("quota = 100", "quota = 0", ["quota = 0", "at least 1"]),
    "no repeats": ("repeats = 2", "repeats = 0", ["repeats = 0", "at least 1"]),
    "a short row": ("seq_len = 4096", "seq_len = 8", ["seq_len = 8", "64"]),
    "all validation": ("seq_len = 4096", "validation = 1.5", ["validation = 1.5", "share"]),
    "a number for a text": ('name = "mine"', "name = 3", ["name = 3", "str"]),
    "a name that leads out": ('name = "mine"', 'name = ".."', ["name = '..'", "plain name"]),
    "a name of two folders": ('name = "mine"', 'name = "a/b"', ["name = 'a/b'", "plain name"]),
    "no name": ('name = "mine"', 'name = ""', ["name = ''", "plain name"]),
    "a wrong slice": ("quota = 100", 'rows = "a:b"', ["rows = 'a:b'", "start:stop:step"]),
    "a negative slice": ("quota = 100", 'rows = "-5:"', ["rows = '-5:'", "from 0"]),
    "a slice without step": ("quota = 100", 'rows = "::0"', ["rows = '::0'", "from 1"]),
    "too many colons": ("quota = 100", 'rows = "1:2:3:4"', ["rows = '1:2:3:4'"]),
    "a path out of raw": ("quota = 100", 'repo = "../../etc"', ["'../../etc'", "plain relative"]),
    "an absolute path": ("quota = 100", 'repo = "/etc"', ["'/etc'"]),
    "a folder out of the set": ("quota = 100", 'folder = "a/../../b"', ["'a/../../b'"]),
    "train of a wrong type": ("lr = 5e-5", 'lr = "fast"', ["lr = 'fast'"]),
    "train is no table": ("[train]\nlr = 5e-5", "", None),
    "a wrong rating": ("quota = 100", "min_ratings = {relevance = 9}", ["relevance", "1 to 5"]),
    "a wrong axis": ("quota = 100", "min_ratings = {relevanc = 3}", ["relevanc"]),
}


@pytest.mark.parametrize("what", [what for what, case in WRONG.items() if case[2] is not None])
def test_what_is_wrong_is_named(tmp_path: Path, what: str) -> None:
    old, new, words = WRONG[what]
    assert old in GOOD and words is not None
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD.replace(old, new)))
    for word in words:
        assert word in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[sources.sroie]\r\nquota = 5\r\n")
    assert load_recipe(str(tmp_path / "mine.toml")).sources[0].quota == 5


@pytest.mark.parametrize(("text", "word"), [
    ("", "nothing to build"), ("a = [", "not TOML"), ("sources = 3", "table"), ("[sources]\nx = 3", "must be a table"),
    ('train = 3\n[sources.a]', "table"), ('"" = 1\n[sources.a]', "unknown key ''")])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        load_recipe(write(tmp_path, text))


def test_files_and_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(RecipeError, match="did you mean 'stage1'"):
        load_recipe("stage-1")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "latin.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError):
        load_recipe(str(tmp_path / "folder.toml"))


def test_set_changes_one_value(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    changes = ["sroie.quota=7", "geoqa+(mathv360k).quota=9", "train.lr=1e-3", "recipe.seq_len=512", "talk.bucket=text",
               'sroie.mode="tiny"', "sroie.min_ratings={relevance = 3}"]
    recipe = load_recipe(path, overrides=changes)
    assert [source.quota for source in recipe.sources] == [7, 9, None]
    assert recipe.train["lr"] == 1e-3 and recipe.seq_len == 512 and recipe.sources[2].bucket == "text"
    assert recipe.sources[0].mode == "tiny" and recipe.sources[0].options == {"min_ratings": {"relevance": 3}}
    assert load_recipe(path, overrides=["sroie.quota=all"]).sources[0].quota is None


@pytest.mark.parametrize(("override", "words"), [
    ("sroi.quota=7", ["'sroi'", "did you mean 'sroie'"]), ("sroie.qota=7", ["'qota'", "'quota'"]),
    ("sroie.quota", ["SOURCE.KEY=VALUE"]), ("quota=7", ["SOURCE.KEY=VALUE"]), ("", ["SOURCE.KEY=VALUE"]),
    ("sroie.quota=-1", ["quota = -1"]), ("recipe.sed=1", ["'sed'", "'seed'"]), ("train.lrr=1", ["'lrr'", "'lr'"])])
def test_a_wrong_set_is_named(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD), overrides=[override])
    for word in words:
        assert word in str(caught.value)


def test_subset_fraction_mode_seed_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, subsets=["talk", "sroie"], fraction=0.5, mode="small", seed=9, tokenizer="x")
    assert [source.name for source in recipe.sources] == ["sroie", "talk"]
    assert (recipe.fraction, recipe.seed, recipe.tokenizer) == (0.5, 9, "x")
    assert {recipe.mode_of(source) for source in load_recipe(path, mode="small").sources} == {"small"}
    with pytest.raises(RecipeError, match=r"'geoqa'; did you mean 'geoqa\+\(mathv360k\)'"):
        load_recipe(path, subsets=["geoqa"])
    for fraction in (0, -1, 1.01):
        with pytest.raises(RecipeError, match="--fraction"):
            load_recipe(path, fraction=fraction)
    with pytest.raises(RecipeError, match="--mode = 'huge'"):
        load_recipe(path, mode="huge")


def test_quota_and_fraction(tmp_path: Path) -> None:
    """The quota counts repeats; a fraction takes at least one row; nothing takes more than there is."""
    changes = ["geoqa+(mathv360k).repeats=3", "geoqa+(mathv360k).quota=10"]
    sroie, geoqa, _ = load_recipe(write(tmp_path, GOOD), overrides=changes).sources
    recipe = load_recipe(write(tmp_path, GOOD), fraction=0.25)
    assert recipe.asked(sroie, 1000) == 25 and recipe.asked(sroie, 0) == 25
    assert recipe.asked(geoqa, 1000) == 1  # ceil(10 / 3) = 4 rows, a quarter of them
    assert load_recipe(write(tmp_path, GOOD)).asked(geoqa, 1000) == 4
    _, _, talk = recipe.sources
    assert recipe.asked(talk, 10) == 3 and recipe.asked(talk, 1) == 1 and recipe.asked(talk, 0) == 0


def test_identity_holds_no_path(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), tokenizer=str(tmp_path / "tokenizer.json"))
    assert str(tmp_path) not in str(recipe.identity())
    assert recipe.identity() == load_recipe(write(tmp_path, GOOD)).identity()
    assert recipe.identity() != load_recipe(write(tmp_path, GOOD), seed=1).identity()
    tomllib.loads(GOOD)


def test_nearest_names() -> None:
    assert nearest("Tiny", ["tiny", "small"]) == "; did you mean 'tiny'?"
    assert nearest("zzz", ["tiny", "small"]) == "; there are tiny, small"
