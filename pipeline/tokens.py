"""The tokenizer: any `tokenizers` file, with this project's special tokens appended and no way for text to become one.

The library matches added tokens inside text. `encode_special_tokens=True` stops that for tokens flagged special, is not
saved with the tokenizer, and does nothing for added tokens that are not flagged. So on loading every added token that
could act as a control token is flagged special, the switch is set, and a probe proves it: none of this project's special
tokens, spelled out in text, encodes to its own id.

    tokenizer = load_tokenizer("HuggingFaceTB/SmolLM2-135M")     # or tokenizer.json, or a folder that holds one
    tokenizer.specials.image                                     # id of <|image|>
    tokenizer.encode_batch(["text with <|image|> in it"])        # plain text ids, never the special one

Cost: loading a 49 k vocabulary takes 0.2 s.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from pipeline.conversation import clean_text

SPECIAL_TOKENS = (
    "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>", "<|python_start|>",
    "<|python_end|>", "<|output_start|>", "<|output_end|>", "<|image|>", "<|pad|>",
)  # fmt: skip

ATOMS: dict[str, tuple[str, ...]] = {
    # Table cells: one small table took 861 tokens as HTML, 521 as plain OTSL, 220 with these as atoms.
    "otsl": ("<otsl>", "</otsl>", "<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>", "<nl>", "<ched>", "<rhed>", "<srow>"),
    "doctags": (
        "<doctag>", "</doctag>", "<text>", "</text>", "<title>", "</title>", "<picture>", "</picture>", "<caption>",
        "</caption>", "<code>", "</code>", "<formula>", "</formula>", "<list_item>", "</list_item>", "<ordered_list>",
        "</ordered_list>", "<unordered_list>", "</unordered_list>", "<page_header>", "</page_header>", "<page_footer>",
        "</page_footer>", "<footnote>", "</footnote>", "<page_break>", "<chart>", "</chart>",
        *(f"<{slash}section_header_level_{level}>" for level in range(1, 7) for slash in ("", "/")),
        *(f"<loc_{place}>" for place in range(501)),
    ),
}  # fmt: skip

_BLANKS = " \t\r\n\u2581"  # U+2581 stands for a blank in SentencePiece vocabularies

_CHUNK = 1_000_000
"""Characters handed to the library at once, which bounds the memory of its results (up to 400 bytes a token)."""

_SHORT = 32
_KNOWN = 1 << 13
"""Texts of at most so many characters are encoded once, up to so many of them (4 MB, 30 in bad cases): prompts, letters of choices,
numbers come again and again, and the shortest costs the library 3 us."""


@dataclass(frozen=True, kw_only=True)
class Specials:
    """Ids of the special tokens, in the order of SPECIAL_TOKENS."""

    bos: int
    user_start: int
    user_end: int
    assistant_start: int
    assistant_end: int
    python_start: int
    python_end: int
    output_start: int
    output_end: int
    image: int
    pad: int

    def as_dict(self) -> dict[str, int]:
        """Name to id, as the manifest holds it."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class Tokenizer:
    """Encodes ordinary text only; special tokens are reached by their ids in `specials`."""

    def __init__(self, inner: HFTokenizer, *, name: str, revision: str = "") -> None:
        """inner: a tokenizer that `prepare` made ready. name, revision: what the plan records."""
        self.inner = inner
        self.name = name
        self.revision = revision
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.specials = Specials(**{item.name: vocabulary[token] for item, token in zip(fields(Specials), SPECIAL_TOKENS)})
        self._known: dict[str, list[int]] = {}
        self._probe()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as plain text: literal special tokens in it are spelled out, none is added. Not to be changed."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        known = self._known
        found = [known.get(text) if len(text) <= _SHORT else None for text in texts]
        fresh = [text for text, ids in zip(texts, found) if ids is None]
        encoded = self._encode(fresh)
        known.update([(text, ids) for text, ids in zip(fresh, encoded) if len(text) <= _SHORT])
        rest = iter(encoded)
        return [next(rest) if ids is None else ids for ids in found]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        out: list[list[int]] = []
        for chunk in _chunks(texts):
            try:
                encoded = self.inner.encode_batch_fast(chunk, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):  # a lone surrogate somewhere
                encoded = self.inner.encode_batch_fast([clean_text(text) for text in chunk], add_special_tokens=False)
            out += [item.ids for item in encoded]
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens spelled out: for pages and previews."""
        return str(self.inner.decode([int(i) for i in ids], skip_special_tokens=False))

    @cached_property
    def vocab_size(self) -> int:
        """Rows an embedding needs: the largest id plus one (ids may have holes)."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def to_json(self) -> bytes:
        """The tokenizer.json of a shard directory. The same tokenizer gives the same bytes."""
        return str(self.inner.to_str(pretty=False)).encode()

    @cached_property
    def sha256(self) -> str:
        """Hash of `to_json()`: two builds with the same one have the same ids."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def _probe(self) -> None:
        """Proves on this tokenizer that a literal control token of ours stays text."""
        own = dict(zip(SPECIAL_TOKENS, self.specials.as_dict().values()))
        for text, ids in zip(own, self.encode_batch([f"a{text}b {text}" for text in own])):
            if own[text] in ids:
                raise ValueError(f"tokenizer {self.name}: the text {text!r} encodes to the control token of that name; "
                                 "use a tokenizer whose vocabulary does not build it from ordinary text")  # fmt: skip


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts of at most _CHUNK characters together, or of one text."""
    start = size = 0
    for stop, length in enumerate(map(len, texts)):
        if size + length > _CHUNK and stop > start:
            yield list(texts[start:stop])
            start, size = stop, 0
        size += length
    if start < len(texts):
        yield list(texts[start:])


def prepare(raw: bytes, *, name: str, revision: str = "", atoms: Sequence[str] = ()) -> Tokenizer:
    """A Tokenizer from the bytes of a tokenizer.json.

    Special tokens that are absent are appended; `atoms` (keys of ATOMS) adds tags of table and page markup as tokens that
    text does match. Padding and truncation settings of the file are switched off.
    """
    wanted = [tag for atom in atoms for tag in _atom(atom)]
    try:
        data: dict[str, Any] = json.loads(raw)
        keep = {tag for tags in ATOMS.values() for tag in tags}
        for token in data.get("added_tokens") or []:
            # Runs of blanks and markup atoms are ordinary vocabulary; any other added token could be a control token.
            if token["content"].strip(_BLANKS) and token["content"] not in keep:
                token["special"] = True
        inner = HFTokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise ValueError(f"tokenizer {name}: not a readable tokenizer.json ({str(error)[:200]})") from error
    inner.no_padding()
    inner.no_truncation()
    inner.add_tokens([AddedToken(tag, normalized=False) for tag in wanted if inner.token_to_id(tag) is None])
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    inner.encode_special_tokens = True
    return Tokenizer(inner, name=name, revision=revision)


def load_tokenizer(name: str, *, revision: str | None = None, atoms: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer named by a tokenizer.json, a folder that holds one, or a hub id (`HF_ENDPOINT` is honoured).

    The hub's revision is pinned to a commit and kept in `.revision`. Raises ValueError with what to do when it cannot be
    had or used.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return prepare(path.read_bytes(), name=name, atoms=atoms)
    if path.suffix == ".json" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"tokenizer {name}: no such file; give a tokenizer.json, a folder that holds one, or a hub id")
    found, commit = _from_hub(name, revision)
    return prepare(found.read_bytes(), name=name, revision=commit, atoms=atoms)


def _atom(name: str) -> tuple[str, ...]:
    if name not in ATOMS:
        raise ValueError(f"tokenizer atoms {name!r}: choose from {', '.join(ATOMS)}")
    return ATOMS[name]


def _from_hub(name: str, revision: str | None, attempts: int = 5) -> tuple[Path, str]:
    """Path of the cached tokenizer.json and its commit; an answer of 429 or 5xx is tried again."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    advice = "give --tokenizer a tokenizer.json, a folder that holds one, or train one with `pipeline train-tokenizer`"
    for attempt in range(attempts):
        try:
            path = Path(hf_hub_download(name, "tokenizer.json", revision=revision))
            return path, path.parent.name  # .../snapshots/COMMIT/tokenizer.json
        except HFValidationError as error:
            raise ValueError(f"tokenizer {name!r}: neither a file nor a hub id; {advice}") from error
        except EntryNotFoundError as error:
            if not isinstance(error, LocalEntryNotFoundError):
                raise ValueError(f"tokenizer {name}: the hub's repository holds no tokenizer.json; {advice}") from error
            problem: Exception = error
            if not isinstance(error.__cause__, HfHubHTTPError):
                break  # offline, or no connection, which the client has tried for half a minute
        except (HfHubHTTPError, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403, 404):
                raise ValueError(f"tokenizer {name}: the hub answers {status} (wrong name, or HF_TOKEN needed); {advice}"
                                 ) from error  # fmt: skip
            problem = error
        if attempt + 1 < attempts:
            time.sleep(min(0.5 * 2**attempt, 5.0))
    reason = str(problem).splitlines()[0][:200]
    raise ValueError(f"tokenizer {name}: the hub cannot be reached ({reason}); {advice}") from problem
