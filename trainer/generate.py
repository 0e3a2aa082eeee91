"""Text from a model: batched, with a key-value cache, each image encoded once.

    prompt = render_prompt("OCR this image.", [view_image(image, mode)], mode, tokenizer, specials)
    answers = generate(model, [prompt], stop_id=specials["assistant_end"], max_new_tokens=512)

Prompts of several lengths share a batch: shorter ones are filled up on the left, which no attention looks at, and their
positions start at 0 behind it, so a prompt's answer does not depend on its neighbours. When half of a batch has finished,
the rest goes on alone. Cost: one pass over the prompts, then one decoder step a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shards.geometry import placeholders
from trainer.model.decoder import LayerCache
from trainer.model.vlm import VLM
from trainer.pixels import ImageViews, group_views

MARKER = "<image>"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids up to where the answer begins, and the images of their placeholders, in order."""

    ids: tuple[int, ...]
    images: tuple[ImageViews, ...] = ()


def load_tokenizer(data: bytes) -> Tokenizer:
    """A tokenizer from tokenizer.json that reads special tokens in a text as plain text, as the shards were made."""
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises this class itself
        raise ValueError(f"tokenizer.json is damaged: {error}") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_ids(specials: dict[str, int]) -> dict[str, int]:
    """Special token ids by bare name: "<|bos|>" and "bos" both become "bos"."""
    return {name.strip("<|>"): index for name, index in specials.items()}


def render_prompt(
    text: str, images: Sequence[ImageViews], mode: str, tokenizer: Tokenizer, specials: dict[str, int]
) -> Prompt:
    """A user's turn as in training, open for the answer.

    Markers "<image>" say where the images stand; without any, each image stands on a line of its own before the text.
    ValueError for another number of markers than images.
    """
    if images and MARKER not in text:
        text = f"{MARKER}\n" * len(images) + text
    pieces = text.split(MARKER) if images else [text]
    if len(pieces) != len(images) + bool(not images) + bool(images):
        raise ValueError(f"the prompt has {len(pieces) - 1} {MARKER} markers for {len(images)} images")
    ids = [specials["bos"], specials["user_start"]]
    for index, piece in enumerate(pieces):
        if index:
            ids += [specials["image"]] * placeholders(mode, images[index - 1].grid)
        if piece:
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
    return Prompt(ids=(*ids, specials["user_end"], specials["assistant_start"]), images=tuple(images))


def generate(
    model: VLM,
    prompts: Sequence[Prompt],
    *,
    stop_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, without the stop token; all prompts go in one batch.

    temperature 0 takes the likeliest token; above, tokens are drawn with `generator` (on the model's device). The model
    must be in evaluation mode; on CUDA it runs in bfloat16.
    """
    assert not model.training
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    device = model.image_newline.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return _generate(model, prompts, stop_id, max_new_tokens, temperature, generator, device)


def _generate(
    model: VLM,
    prompts: Sequence[Prompt],
    stop_id: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> list[list[int]]:
    length = max(len(prompt.ids) for prompt in prompts)
    start = torch.tensor([length - len(prompt.ids) for prompt in prompts], device=device)  # where each prompt begins
    fill = [[0] * (length - len(prompt.ids)) for prompt in prompts]  # any id that is not a placeholder
    if model.config.image_token_id == 0:
        fill = [[1] * len(row) for row in fill]
    ids = torch.tensor([[*row, *prompt.ids] for row, prompt in zip(fill, prompts)], device=device)
    pixel_values = group_views([image for prompt in prompts for image in prompt.images])
    columns = torch.arange(length + max_new_tokens, device=device)
    keys, queries = columns[None, None, :length], columns[None, :length, None]
    mask = (keys <= queries) & ((keys >= start[:, None, None]) | (keys == queries))  # filling looks at itself: no empty row
    positions = (columns[None, :length] - start[:, None]).clamp(min=0)
    caches = [LayerCache(length + max_new_tokens) for _ in model.decoder.layers]
    x = model.embed(ids, None if pixel_values is None else pixel_values.to(device))
    hidden = model.decoder(x, positions, mask[:, None], caches)[:, -1]
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    finished: set[int] = set()
    for step in range(max_new_tokens):
        tokens = _choose(model.decoder.logits(hidden).float(), temperature, generator)
        for row, token in zip(rows, tokens.tolist()):
            if token == stop_id:
                finished.add(row)
            elif row not in finished:
                answers[row].append(token)
        live = [at for at, row in enumerate(rows) if row not in finished]
        if not live or step + 1 == max_new_tokens:
            break
        if 2 * len(live) <= len(rows):
            chosen = torch.tensor(live, device=device)
            tokens, start, rows = tokens[chosen], start[chosen], [rows[at] for at in live]
            for cache in caches:
                cache.keep(chosen)
        at = length + step
        mask = (columns[: at + 1] >= start[:, None])[:, None, None]
        hidden = model.decoder(model.embed(tokens[:, None], None), (at - start)[:, None], mask, caches)[:, -1]
    return answers


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token id for each row of logits [B, V]."""
    if temperature <= 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def decode_answer(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of an answer: its special tokens left out."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True)
    return str(text)
