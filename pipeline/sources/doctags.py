"""DocTags pages: checked, and kept as they are or written as Markdown with docling-core.

    <doctag><section_header_level_1><loc_52><loc_37><loc_225><loc_48>Title</section_header_level_1>
    <text>...</text><otsl>...</otsl><page_break>...</doctag>

Valid means: known tags, properly nested and closed, no text outside of them, every table valid OTSL. An answer of several
pages stays so: Markdown keeps "<page_break>" between them. Markdown leaves out boxes, page headers and footers, and the
pictures themselves, as docling-core does.

docling-core's reader drops what stands between a "<" and a later ">" in ordinary text, so such brackets are hidden from it
and put back. Cost: 5 to 10 ms a page.
"""

import re

from pipeline.conversation import PAGE_BREAK, Reject
from pipeline.sources.otsl import Table, markdown, parse_otsl, to_otsl

REASON = "doctags-invalid"
MAX_PAGES, MAX_TAGS = 200, 20_000  # a document, and a page, beyond these are defects

# What docling-core reads at the top of a page; the text of any other tag would be lost there.
_TOP = (
    "title", "document_index", "otsl", "checkbox_selected", "checkbox_unselected", "text", "page_header", "page_footer",
    "formula", "caption", "picture", "footnote", "code", "ordered_list", "unordered_list", "inline", "chart",
    "key_value_region", *(f"section_header_level_{level}" for level in range(1, 7)),
)  # fmt: skip
_INNER = ("list_item", "smiles")
_DOCUMENT = ("doctag", "doctags", "document")
_TAG = re.compile(
    rf"<(?P<close>/)?(?P<name>{'|'.join((*_DOCUMENT, *_TOP, *_INNER))}|(?:key|value)_\d+)>"
)
# Tags without a closing one, inside a block: places, a code's language, a picture's class, table cells, links.
_VOID = re.compile(r"<(?:loc_\d+|_[\w+#. -]{1,30}_|page_break|fcel|ecel|lcel|ucel|xcel|nl|ched|rhed|srow|link_\d+|"
                   r"[a-z]+(?:_[a-z]+)*_(?:chart|structure|picture|image|code|map|screenshot|table|drawing)|"
                   r"line|dot_line|vbar_categorical|hbar_categorical|logo|signature|stamp|icon|other)>")  # fmt: skip
_PLACE = re.compile(r"<loc_\d+>")
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # private use: stand for "<" and ">" of ordinary text


def convert_doctags(answer: str, form: str) -> str:
    """A DocTags answer as "keep" (checked only) or "markdown". Raises Reject("doctags-invalid")."""
    if _OPEN in answer or _CLOSE in answer:
        raise Reject(REASON, "private-use characters U+E0F0 or U+E0F1 in the text")
    pages = split_pages(answer)
    for page in pages:
        check_page(page)
    if form == "keep":
        return answer
    assert form == "markdown"
    from docling_core.types.doc.doctags import DocTagsDocument
    from docling_core.types.doc.document import DoclingDocument

    texts = []
    for page in pages:  # one by one: docling-core writes no break for a page without text
        tokens = DocTagsDocument.from_doctags_and_image_pairs([_quiet(page)], None)
        texts.append(_shown(markdown(DoclingDocument.load_from_doctags(tokens)).strip()))
    return (f"\n\n{PAGE_BREAK}\n\n").join(texts)


def split_pages(answer: str) -> list[str]:
    """The pages inside the document tag. Raises Reject when there is no such tag around everything."""
    text = answer.strip()
    for name in _DOCUMENT:
        if text.startswith(f"<{name}>") and text.endswith(f"</{name}>"):
            pages = text[len(name) + 2 : -len(name) - 3].split(PAGE_BREAK)
            if len(pages) > MAX_PAGES:
                raise Reject(REASON, f"{len(pages)} pages; the limit is {MAX_PAGES}")
            return pages
    raise Reject(REASON, f"no <doctag> around the answer: it starts with {text[:40]!r} and ends with {text[-20:]!r}")


def check_page(page: str) -> None:
    """Raises Reject unless the page's tags are closed in order, its text is inside of them and its tables are valid."""
    stack: list[str] = []
    at = 0
    for count, tag in enumerate(_TAG.finditer(page)):
        if count > MAX_TAGS:
            raise Reject(REASON, f"more than {MAX_TAGS} tags on a page")
        if not stack and _PLACE.sub("", page[at : tag.start()]).strip():
            raise Reject(REASON, f"text outside of a tag: {page[at : tag.start()].strip()[:40]!r}")
        name = tag["name"]
        if name in _DOCUMENT:
            raise Reject(REASON, f"<{name}> inside the document")
        if not tag["close"]:
            if not stack and name not in _TOP:
                raise Reject(REASON, f"<{name}> at the top of a page")
            stack.append(name)
        elif stack and stack[-1] == name:
            stack.pop()
        else:
            raise Reject(REASON, f"</{name}> closes {f'<{stack[-1]}>' if stack else 'nothing'}")
        at = tag.end()
    if stack:
        raise Reject(REASON, f"<{stack[-1]}> is not closed")
    if _PLACE.sub("", page[at:]).strip():
        raise Reject(REASON, f"text outside of a tag: {page[at:].strip()[:40]!r}")
    for table in _tables(page):
        parse_otsl(table)


def _tables(page: str) -> list[str]:
    return [match.group() for match in re.finditer(r"<otsl>.*?</otsl>", page, re.DOTALL)]


def _quiet(page: str) -> str:
    """The page with the "<" and ">" of ordinary text hidden, and its tables in the form docling-core reads rightly."""
    out, at = [], 0
    for match in re.finditer(r"<otsl>.*?</otsl>", page, re.DOTALL):
        out += [_hide(page[at : match.start()]), _plain_table(parse_otsl(match.group()))]
        at = match.end()
    return "".join([*out, _hide(page[at:])])


def _plain_table(table: Table) -> str:
    cells = to_otsl(Table(rows=table.rows, columns=table.columns, cells=tuple(
        type(cell)(code=cell.code, text=_swap(cell.text), row=cell.row, column=cell.column, rows=cell.rows,
                   columns=cell.columns) for cell in table.cells)))  # fmt: skip
    caption = f"<caption>{_swap(table.caption)}</caption>" if table.caption else ""
    return f"<otsl>{caption}{cells}</otsl>"


def _hide(text: str) -> str:
    """Text between tags with its brackets hidden; tags stay."""
    out, at = [], 0
    for tag in re.finditer(f"{_TAG.pattern}|{_VOID.pattern}", text):
        out += [_swap(text[at : tag.start()]), tag.group()]
        at = tag.end()
    return "".join([*out, _swap(text[at:])])


def _swap(text: str) -> str:
    return text.replace("<", _OPEN).replace(">", _CLOSE)


def _shown(text: str) -> str:
    return text.replace(_OPEN, "<").replace(_CLOSE, ">")
