"""Loading any tokenizer file, and training one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer

from pipeline import tokens
from pipeline.tokens import SPECIAL_TOKENS, load_tokenizer, prepare
from pipeline.train_tokenizer import file_texts, train_bpe
from tests.pipeline.tiny import WORDS, tiny_tokenizer
from tests.pipeline.tokenizers_zoo import ZOO, byte_level


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


@given(st.lists(st.lists(st.text("ab \n", max_size=3) | st.text(min_size=20, max_size=50), max_size=6), min_size=1, max_size=4))
def test_short_texts_that_come_again_have_the_same_ids(batches: list[list[str]]) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_KNOWN", 3)
        for texts in batches:
            wanted = [item.ids for item in tokenizer.inner.encode_batch(texts, add_special_tokens=False)]
            assert tokenizer.encode_batch(texts) == wanted
            assert len(tokenizer._known) <= 3 + len(texts)


def test_a_lone_surrogate_does_not_stop_a_batch() -> None:
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(["ok", "a\ud800b"])] == ["ok", "a\ufffdb"]


@pytest.mark.parametrize("name", ZOO)
def test_the_shards_copy_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = ZOO[name]()
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.to_json())
    for again in (load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "tokenizer.json"))):
        assert again.sha256 == tokenizer.sha256
        assert again.specials == tokenizer.specials
        texts = ["the quick <|image|> fox", *SPECIAL_TOKENS, "<think>  x"]
        assert again.encode_batch(texts) == tokenizer.encode_batch(texts)


def test_settings_of_the_file_that_would_change_ids_are_off() -> None:
    tokenizer = ZOO["smollm2-like"]()
    assert len(tokenizer.encode_batch([WORDS * 4])[0]) > 16
    assert tokenizer.encode_batch([""]) == [[]]
    assert tokenizer.encode_batch(["a"]) == [[tokenizer.inner.token_to_id("a")]]


def test_existing_ids_are_kept_and_new_ones_follow() -> None:
    raw = byte_level().to_str()
    tokenizer = prepare(raw.encode(), name="x")
    before = HFTokenizer.from_str(raw).get_vocab_size()
    assert sorted(tokenizer.specials.as_dict().values()) == list(range(before, before + len(SPECIAL_TOKENS)))
    assert tokenizer.vocab_size == before + len(SPECIAL_TOKENS)


def test_markup_atoms_are_matched_in_text() -> None:
    raw = tiny_tokenizer().to_json()
    tokenizer = prepare(raw, name="x", atoms=["otsl"])
    plain = len(tiny_tokenizer().encode_batch(["<fcel>a<fcel>b<nl>"])[0])
    assert len(tokenizer.encode_batch(["<fcel>a<fcel>b<nl>"])[0]) == 5 < plain
    assert prepare(tokenizer.to_json(), name="y").encode_batch(["<fcel>a<nl>"]) == tokenizer.encode_batch(["<fcel>a<nl>"])
    with pytest.raises(ValueError, match="choose from otsl, doctags"):
        prepare(raw, name="x", atoms=["html"])


def test_a_vocabulary_that_spells_a_control_token_is_refused() -> None:
    data = json.loads(byte_level().to_str())
    data["model"] = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "<|bos|>": 1}}
    data["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    data["decoder"] = None
    with pytest.raises(ValueError, match=r"'<\|bos\|>' encodes to the control token"):
        prepare(json.dumps(data).encode(), name="words")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_tokenizer_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        load_tokenizer(str(path))


def test_a_missing_file_is_not_asked_of_the_hub() -> None:
    with pytest.raises(ValueError, match="no such file; give a"):
        load_tokenizer("./nowhere/tokenizer.json")


def test_training_gives_the_same_bytes_in_another_process_with_other_threads() -> None:
    code = ("import sys, hashlib; from pipeline.train_tokenizer import train_bpe; from tests.pipeline.tiny import WORDS;"
            "texts = [WORDS[k % 40:] + str(k * 7919 % 1009) for k in range(500)];"
            "print(hashlib.sha256(train_bpe(texts, vocab_size=600)).hexdigest())")  # fmt: skip
    seen = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("4", "2")):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=True)
        seen.add(done.stdout)
    assert len(seen) == 1


def test_training_keeps_its_size_and_says_what_is_too_small() -> None:
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("abcdefghij", k=4)) for _ in range(9)) for _ in range(3000)]
    assert prepare(train_bpe(texts, vocab_size=500), name="x").vocab_size == 500
    assert prepare(train_bpe(texts, vocab_size=500, atoms=["otsl"]), name="x").vocab_size == 500
    with pytest.raises(ValueError, match="at least 267"):
        train_bpe(texts, vocab_size=266)
    with pytest.raises(ValueError, match="no text"):
        train_bpe(["", ""])


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdef")
    (tmp_path / "b.jsonl").write_text('[{"role": "user", "content": "hi"}]\n\n{"text": ["x", 1, null]}\n')
    assert list(file_texts([tmp_path / "a.txt"], piece=4)) == ["abcd", "ef"]
    assert list(file_texts([tmp_path / "b.jsonl"])) == ["user", "hi", "x"]
    (tmp_path / "c.jsonl").write_text("{}\n{bad\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        list(file_texts([tmp_path / "c.jsonl"]))


@pytest.mark.parametrize("text", ["0" * 60_000, " " * 200_000, "a" * 200_000, "\n\t" * 50_000, "<|image|>" * 9000])
def test_odd_long_texts_take_bounded_time(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert tokenizer.specials.image not in ids
