"""What a built shard directory holds, for people: numbers for the terminal and one HTML page.

collect.py gathers numbers from the manifest and the two parquet tables, pick.py chooses samples and finds them in the shards,
charts.py draws SVG, sample.py renders one sample, page.py puts the page together. Nothing but the directory is read.
"""
