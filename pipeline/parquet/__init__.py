"""Parquet pages too large to be held whole: one leaf's values, decoded in pieces, beside what pyarrow reads."""
