"""Sources: each kind of data set is one small adapter from a parquet row to a Conversation.

To add one, write a module with a `KIND` (columns, options, a pure `convert`) and name it here. Nothing else knows kinds.
"""

from pipeline.sources import converted, custom_json, finevision, gsm8k, mmlu, smoltalk
from pipeline.sources.kind import Kind

KINDS: dict[str, Kind] = {
    "finevision": finevision.KIND,
    "smoltalk": smoltalk.KIND,
    "mmlu": mmlu.KIND,
    "gsm8k": gsm8k.KIND,
    "custom_json": custom_json.KIND,
    "jsonl": converted.JSONL,
    "llava_cc3m": converted.LLAVA_CC3M,
    "olmocr": converted.OLMOCR,
}
