"""Molecules into pictures: SMILES files -> chosen molecules -> RDKit drawings -> FineVision-format parquet.

The road of one molecule, one module a step:

    lines -> columns -> select (pool of workers: strings, molecules) -> buckets on disk
          -> render (pool of workers: styles, layout, draw, effects, png, targets) -> output

The parent (select, render, pool, output) never runs RDKit; a worker never imports pyarrow.
"""
