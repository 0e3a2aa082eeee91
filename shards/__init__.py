"""Shard format, version 1: the contract between the offline pipeline and the trainer.

This package is numpy and the standard library only. The pipeline writes through it, the trainer reads through it, and
neither knows the other. A finished directory holds

    train-000000.tar ...   val-000000.tar ...     samples, in packed order
    X.tar.idx, X.idx       offsets of samples for Megatron-Energon and for DALI (shards.index)
    rows.npy, rows-val.npy one entry per packed row (shards.table); all the trainer needs to find its data
    samples.parquet        one line per sample, for people
    rejects.parquet        one line per source row left out, with its reason
    tokenizer.json         the exact tokenizer
    manifest.json          written last (shards.manifest): its existence means that the directory is complete
    README.md, .nv-meta/   a data card for `load_dataset`, and Energon's description

Tar. A shard is a plain USTAR archive: regular files only, mode 0644, owner 0, mtime 0, no directories, two zero blocks at
the end and zeros up to a multiple of 10,240 bytes (shards.tar). Keys look like `train-000003-000127` (split, shard, position in
the shard): no dot, no double underscore, unique over all shards. One sample is these consecutive members, in this order:

    KEY.json         UTF-8, one line, keys sorted; a stable schema, see below
    KEY.ids.npy      int32 [n]   token ids, every image already expanded to its placeholder tokens
    KEY.mask.npy     uint8 [n]   shards.masks: 0 never a target, 1 text outside the answers, 2 answer text
    KEY.0.jpg|png    the first image, fitted inside its mode and never scaled up (shards.geometry.stored_size)
    KEY.0.tiles.jpg|png   gundam mode with tiles only: the image stretched to (640 w, 640 h)
    KEY.1.jpg|png    the second image, and so on

    KEY.json = {"source": str, "row": str,
                "messages": [{"role": str, "content": str, "parts": [{"kind": str, "text": str}]}],
                "images": [{"message": int, "offset": int, "mode": str, "width": int, "height": int, "source_width": int,
                            "source_height": int, "tiles": [w, h], "placeholders": int}],
                "cut": str, "meta": str}

`content` carries a literal "<image>" where an image stands: image k stands at character `offset` of message `message`; any
other "<image>" is ordinary text. `parts` is empty unless the message uses tools (kinds text, python, output). `width` and
`height` are those of the stored picture, `source_*` those of the original, upright. `tiles` is [0, 0] without tiles. `cut` is
empty, or says what the sequence length took off. `meta` is a JSON object as a string.

Packed rows. The samples of one packed row stand next to each other in the tar, so that a row is one byte range: from the
header of its first member to the end of its last member's padding (shards.reader.read_row takes just these bytes). The
tokens of a row sum to at most `seq_len`; attention never crosses a sample's boundary and positions restart at 0 there.

Targets. The label at position t is ids[t + 1]; it is trained iff mask[t + 1] >= 1 (`all`) or == 2 (`answer`). The last
position of a sample has no label. So the last placeholder of an image predicts the first text token after it, and nothing
ever predicts a placeholder (shards.masks.targets).

Versions. `manifest.json` carries `format_version`; a reader refuses one that it does not know.
"""

FORMAT_VERSION = 1
