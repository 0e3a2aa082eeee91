"""Shards to device batches: order (which rows), store (their bytes), batch (arrays), loader (workers, prefetch)."""
