"""Answers converted by option: synthdog's JSON to its text, OTSL to HTML or Markdown, DocTags to Markdown."""

import json
from typing import Any, Protocol

from pipeline.conversation import Reject

CHOICES = {
    "gt_parse": ("keep", "text"),
    "otsl": ("off", "keep", "html", "markdown"),
    "doctags": ("off", "keep", "markdown"),
}


class AnswerOptions(Protocol):
    """What of a source's options concerns its answers; values as in CHOICES."""

    @property
    def gt_parse(self) -> str: ...
    @property
    def otsl(self) -> str: ...
    @property
    def doctags(self) -> str: ...


def convert_answer(answer: str, options: AnswerOptions) -> str:
    """The answer as the options want it. Raises Reject when it cannot be converted or nothing is left."""
    if options.gt_parse == "text":
        answer = unwrap_gt_parse(answer)
    if options.otsl != "off":
        from pipeline.sources.otsl import convert_otsl  # docling-core takes a second to import

        answer = convert_otsl(answer, options.otsl)
    if options.doctags != "off":
        from pipeline.sources.doctags import convert_doctags

        answer = convert_doctags(answer, options.doctags)
    if not answer.strip():
        raise Reject("no-answer", "nothing is left of the answer when it is converted")
    return answer


def unwrap_gt_parse(answer: str) -> str:
    """`{"gt_parse": {"text_sequence": "..."}}` to its text; other strings in it are joined by line breaks, in order.

    An answer that is not JSON is already text and stays. Raises Reject("gt-parse") for JSON without gt_parse, or broken.
    """
    if not answer.lstrip().startswith("{"):
        return answer
    try:
        data = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise Reject("gt-parse", f"the answer is not JSON ({error})") from None
    if not isinstance(data, dict) or "gt_parse" not in data:
        raise Reject("gt-parse", "the answer's JSON has no gt_parse")
    parse = data["gt_parse"]
    if isinstance(parse, dict) and isinstance(parse.get("text_sequence"), str):
        return str(parse["text_sequence"])
    return "\n".join(_leaves(parse))


def _leaves(value: Any) -> list[str]:
    """Strings and numbers inside nested lists and objects. An explicit stack: hostile nesting must not end the worker."""
    found: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, str):
            found.append(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found.append(str(item))
    return found
