"""SmolTalk, MMLU, GSM8K, CustomJSON: layout as nanochat has it; markers are never searched for."""

from typing import Any

import pytest

from pipeline.conversation import Conversation, Reject
from pipeline.sources import KINDS


def run(kind: str, row: dict[str, Any]) -> Conversation:
    options = KINDS[kind].options()
    return KINDS[kind].convert(row, source="set", row_id="0", options=options)


def shape(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def talk(*messages: tuple[str | None, str | None]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], "source": "smol"}


def test_smoltalk() -> None:
    out = run("smoltalk", talk(("system", "Be brief."), ("user", "q <image>"), ("assistant", "a")))
    assert shape(out) == [("system", "Be brief."), ("user", "q <image>"), ("assistant", "a")]
    assert (out.images, out.anchors, out.meta) == ((), (), {"origin": "smol"})
    out = run("smoltalk", talk(("user", "q"), ("assistant", ""), ("user", "r"), ("assistant", "b"), ("user", "last")))
    assert (shape(out), out.dropped_turns) == ([("user", "r"), ("assistant", "b")], 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "no-answer"),
        ({"messages": []}, "no-answer"),
        ({}, "no-answer"),
        (talk(("user", "q")), "no-answer"),
        (talk(("user", "q"), ("assistant", None)), "no-answer"),
        (talk(("user", "q"), ("user", "r"), ("assistant", "a")), "roles"),
        (talk(("assistant", "a"), ("user", "q")), "roles"),
        (talk(("user", "q"), ("system", "s"), ("assistant", "a")), "roles"),
        (talk(("user", "q"), ("tool", "a")), "roles"),
        (talk((None, "q"), ("assistant", "a")), "roles"),
        ({"messages": [None]}, "roles"),
        ({"messages": [{"role": "user", "content": 3}]}, "layout"),
    ],
)
def test_smoltalk_rows_that_are_no_conversation(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as error:
        run("smoltalk", row)
    assert error.value.reason == reason


MMLU = {"question": "What is 2+2?", "subject": "arithmetic", "choices": ["3", "4", "5", "6"], "answer": 1}


def test_mmlu() -> None:
    prompt = ("Multiple Choice question: What is 2+2?\n- 3=A\n- 4=B\n- 5=C\n- 6=D\n\n"
              "Respond only with the letter of the correct answer.")  # fmt: skip
    assert shape(run("mmlu", MMLU)) == [("user", prompt), ("assistant", "B")]
    assert run("mmlu", MMLU).meta == {"subject": "arithmetic"}
    assert shape(run("mmlu", {"train": MMLU})) == shape(run("mmlu", MMLU))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"choices": ["a", "b"]}, "choices"), ({"choices": None}, "choices"), ({"answer": 4}, "no-answer"),
     ({"answer": None}, "no-answer"), ({"answer": -1}, "no-answer"), ({"question": None}, "no-question"),
     ({"choices": ["a", "b", 3, "d"]}, "layout")],
)  # fmt: skip
def test_mmlu_rows_that_cannot_be_asked(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as error:
        run("mmlu", {**MMLU, **change})
    assert error.value.reason == reason


def test_gsm8k_tool_parts() -> None:
    answer = "She sold 48/2 = <<48/2=24>>24 clips, <<48+24=72>>72 in all.\n#### 72"
    out = run("gsm8k", {"question": "How many?", "answer": answer})
    assert shape(out) == [("user", "How many?"), ("assistant", answer)]
    assert [(part.kind, part.text) for part in out.messages[1].parts] == [
        ("text", "She sold 48/2 = "), ("python", "48/2"), ("output", "24"), ("text", "24 clips, "), ("python", "48+24"),
        ("output", "72"), ("text", "72 in all.\n#### 72")]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("plain", []),
        ("<<1+1=2>>", [("python", "1+1"), ("output", "2")]),
        ("<<a=b=c>>", [("python", "a=b"), ("output", "c")]),
        ("<<7=>>x", [("python", "7"), ("output", ""), ("text", "x")]),
        ("<<>> and <<7>>", []),
        ("1 << 2 and 8 >> 1", []),
    ],
)
def test_gsm8k_odd_calls(answer: str, parts: list[tuple[str, str]]) -> None:
    out = run("gsm8k", {"question": "q", "answer": answer})
    assert [(part.kind, part.text) for part in out.messages[1].parts] == parts


def test_gsm8k_without_answer_or_question() -> None:
    for row, reason in (({"question": "q", "answer": None}, "no-answer"), ({"question": " ", "answer": "a"}, "no-question")):
        with pytest.raises(Reject) as error:
            run("gsm8k", row)
        assert error.value.reason == reason


def test_custom_json_is_text_whatever_it_says() -> None:
    out = run("custom_json", {"texts": [{"user": "<image> who?", "assistant": "me"}], "images": []})
    assert (shape(out), out.images) == ([("user", "<image> who?"), ("assistant", "me")], ())


def test_custom_json_does_not_lose_an_image_in_silence() -> None:
    with pytest.raises(Reject) as error:
        run("custom_json", {"texts": [{"user": "q", "assistant": "a"}], "images": [{"bytes": b"x", "path": "a.png"}]})
    assert error.value.reason == "too-many-images"
    assert 'kind = "jsonl"' in error.value.detail
