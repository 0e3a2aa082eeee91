"""How much of the tokenizer's own speed rendering keeps on text: conversations to ids and masks beside a bare encode_batch_fast.

    python -m benchmarks.render_text [--raw ../shared/data/hub] [--tokenizer tokenizer.json] [--rounds 7]

Both sides get the same texts in the same batches of 64 conversations, as a build does, one thread, in turns A B A B. A is what
the library's faster call (no offsets) takes for a batch's ids; B is pipeline.render on the conversations. Prints the medians of
CPU time and their ratio.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")

from pipeline.conversation import Conversation, Reject
from pipeline.render import render_conversations
from pipeline.tasks import GSM8K, SmolTalk
from pipeline.tokens import Tokenizer, load_tokenizer, prepare
from pipeline.train_tokenizer import train_bpe

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--tokenizer", default=None)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    sets = {}
    for task in (SmolTalk(raw=arguments.raw), GSM8K(raw=arguments.raw, max_samples=2000)):
        found: list[Conversation] = []
        for index in range(len(task)):
            try:
                found.append(task.conversation(index))
            except Reject:
                continue
        sets[task.spec.name] = found
    every = [message.content for found in sets.values() for conv in found for message in conv.messages]
    tokenizer = (load_tokenizer(arguments.tokenizer) if arguments.tokenizer
                 else prepare(train_bpe(every, vocab_size=16_384), name="own"))
    for name, found in sets.items():
        batches = [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
        texts = [[part.text for conv in batch for message in conv.messages for part in message.parts or ()]
                 + [message.content for conv in batch for message in conv.messages if not message.parts] for batch in batches]
        empty = [[()] * len(batch) for batch in batches]
        times: dict[str, list[float]] = {"bare": [], "render": []}
        for _ in range(arguments.rounds):
            start = time.process_time()
            tokens = sum(len(item.ids) for batch in texts
                         for item in tokenizer.inner.encode_batch_fast(batch, add_special_tokens=False))
            times["bare"].append(time.process_time() - start)
            fresh = Tokenizer(tokenizer.inner, name=tokenizer.name)  # that has not seen these texts
            start = time.process_time()
            for batch, none in zip(batches, empty):
                render_conversations(batch, none, fresh)
            times["render"].append(time.process_time() - start)
        own, ours = (statistics.median(values) for values in times.values())
        print(f"{name}: {len(found):,} conversations, {tokens:,} tokens; encode_batch_fast {tokens / own / 1e6:.2f} M tokens/s, "
              f"render {tokens / ours / 1e6:.2f} M tokens/s: {own / ours:.0%} of the tokenizer's own speed")


if __name__ == "__main__":
    main()
