"""Tokenizers as they are found on the hub, made small: each with added tokens of its own that hostile text may name."""

from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.processors import TemplateProcessing

from pipeline.tokens import Tokenizer, prepare
from tests.pipeline.tiny import WORDS


def byte_level(vocab_size: int = 400) -> HFTokenizer:
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([WORDS * 20], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                                                    show_progress=False))  # fmt: skip
    return tokenizer


@cache
def smollm2_like() -> Tokenizer:
    """Special tokens of its own in front, as SmolLM2, and a template that would add one."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=64, pad_id=end, pad_token="<|endoftext|>")
    return prepare(tokenizer.to_str().encode(), name="smollm2-like")


@cache
def qwen_like() -> Tokenizer:
    """Added tokens that are not flagged special, among them names of ours; one that eats blanks around it."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>", "<|image|>", "<|user_start|>", "[PAD]"])
    tokenizer.add_tokens([AddedToken("<|pad|>", lstrip=True, rstrip=True), AddedToken("  ", normalized=False)])
    return prepare(tokenizer.to_str().encode(), name="qwen-like")


@cache
def whitespace_split() -> Tokenizer:
    """Another pre-tokenizer, with its own name for beginning of text."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}|\s+|[^\s\p{N}]+"), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.add_special_tokens(["<|bos|>", "</s>"])
    return prepare(tokenizer.to_str().encode(), name="split")


@cache
def unigram() -> Tokenizer:
    """A SentencePiece-like Unigram with blanks as U+2581, runs of them as added tokens, as Gemma's and T5's relatives have."""
    tokenizer = HFTokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    alphabet = [chr(code) for code in range(32, 127)] + ["\u2581", "\n", "\x00", "\u5b57"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      initial_alphabet=alphabet, show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator([WORDS * 20], trainer)
    tokenizer.add_tokens(["\u2581\u2581", "\n\n"])
    return prepare(tokenizer.to_str().encode(), name="unigram")


ZOO: dict[str, Callable[[], Tokenizer]] = {
    "smollm2-like": smollm2_like,
    "qwen-like": qwen_like,
    "split": whitespace_split,
    "unigram": unigram,
}
