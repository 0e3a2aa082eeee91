"""Generation equals what the training forward would choose, whatever else shares the batch; prompts are those of training."""

import numpy as np
import pytest
import torch

from tests.trainer.references import SPECIALS, randomise, tiny_tokenizer
from trainer.generate import Prompt, decode_answer, generate, load_tokenizer, render_prompt, special_ids
from trainer.model.config import SIZES
from trainer.model.vlm import VLM
from trainer.pixels import ImageViews, group_views

CONFIG = SIZES["micro"].with_tokens(vocab_size=97, image_token_id=SPECIALS["image"])


@pytest.fixture(scope="module")
def model() -> VLM:
    model = VLM(CONFIG)
    randomise(model, 4)
    return model.eval()


def picture(seed: int) -> ImageViews:
    return ImageViews(view=np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8))


def prompts() -> list[Prompt]:
    """Lengths 3 to 50: with one image, two images, none."""
    tokenizer = load_tokenizer(tiny_tokenizer())
    return [
        render_prompt("Read-me", [picture(1)], "micro", tokenizer, SPECIALS),
        Prompt(ids=(SPECIALS["bos"], 5, 6)),
        render_prompt("Compare", [picture(2), picture(3)], "micro", tokenizer, SPECIALS),
        Prompt(ids=tuple(range(20))),
    ]


def by_full_forward(model: VLM, prompt: Prompt, stop_id: int, count: int) -> list[int]:
    """Without cache, batch or padding: one whole pass a token."""
    ids: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.ids, *ids]]), pixel_values=group_views(prompt.images))
        if (token := int(logits[0, -1].argmax())) == stop_id:
            break
        ids.append(token)
    return ids


def test_batched_and_cached_equals_one_by_one(model: VLM) -> None:
    wanted = [by_full_forward(model, prompt, -1, 12) for prompt in prompts()]
    assert generate(model, prompts(), stop_id=-1, max_new_tokens=12) == wanted
    assert len({tuple(answer) for answer in wanted}) == 4


def test_stop_ends_each_text_on_its_own(model: VLM) -> None:
    """A token that the texts meet at different times serves as the stop; finished rows leave the batch."""
    free = generate(model, prompts(), stop_id=-1, max_new_tokens=12)
    for stop in {token for answer in free for token in answer}:
        cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
        assert generate(model, prompts(), stop_id=stop, max_new_tokens=12) == cut
    assert generate(model, prompts(), stop_id=-1, max_new_tokens=0) == [[], [], [], []]
    assert generate(model, [], stop_id=-1, max_new_tokens=5) == []


def test_temperature_draws_from_the_passed_generator(model: VLM) -> None:
    def draw(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompts(), stop_id=-1, max_new_tokens=12, temperature=3.0, generator=generator)

    before = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_layout() -> None:
    tokenizer = load_tokenizer(tiny_tokenizer())
    one = render_prompt("a<|bos|>", [picture(0)], "micro", tokenizer, SPECIALS)
    assert one.ids[:2] == (SPECIALS["bos"], SPECIALS["user_start"])
    assert one.ids[2:23] == (SPECIALS["image"],) * 21
    assert one.ids[-2:] == (SPECIALS["user_end"], SPECIALS["assistant_start"])
    assert SPECIALS["bos"] not in one.ids[1:]  # a special token's name in the text stays text
    placed = render_prompt("ab<image>c", [picture(0)], "micro", tokenizer, SPECIALS)
    assert placed.ids[2] == tokenizer.token_to_id("ab")
    assert placed.ids[3:24] == (SPECIALS["image"],) * 21
    assert SPECIALS["image"] not in render_prompt("what is <image>?", [], "micro", tokenizer, SPECIALS).ids
    with pytest.raises(ValueError, match="2 <image> markers for 1 images"):
        render_prompt("<image> and <image>", [picture(0)], "micro", tokenizer, SPECIALS)
    assert special_ids({"<|bos|>": 1, "pad": 2}) == {"bos": 1, "pad": 2}


@pytest.mark.parametrize(("text", "count"), [("Read.", 1), ("Compare\nthese", 3), ("x<image>y<image>", 2), ("no picture", 0)])
def test_prompt_is_the_pipelines_rendering(text: str, count: int) -> None:
    """The ids of a conversation as the pipeline renders it, up to its answer."""
    pytest.importorskip("pipeline.render")
    from pipeline.conversation import Conversation, Message
    from pipeline.render import render_conversations
    from pipeline.tokens import prepare

    full = text if "<image>" in text else "<image>\n" * count + text
    places, at = [], -1
    while count and (at := full.find("<image>", at + 1)) >= 0:
        places.append((0, at))
    conversation = Conversation(
        messages=(Message(role="user", content=full), Message(role="assistant", content="ok")),
        images=(b"",) * count,
        anchors=tuple(places),
        source="s",
        row="0",
    )
    rendered = render_conversations([conversation], [[21] * count], prepare(tiny_tokenizer(), name="tiny"))[0].ids.tolist()
    prompt = render_prompt(text, [picture(0)] * count, "micro", load_tokenizer(tiny_tokenizer()), SPECIALS)
    assert rendered[: len(prompt.ids)] == list(prompt.ids)
    assert rendered[len(prompt.ids) - 1] == SPECIALS["assistant_start"]


def test_answers_decode_without_special_tokens() -> None:
    tokenizer = load_tokenizer(tiny_tokenizer())
    ids = tokenizer.encode("ab-c", add_special_tokens=False).ids
    assert decode_answer([SPECIALS["bos"], *ids, SPECIALS["pad"]], tokenizer) == "ab-c"
