"""Which packed rows make up which step, and on which rank: arithmetic over the row table, no state.

The rows of a training run are an endless sequence. Position p of it is row `permutation(epoch)[p % rows]` with epoch =
p // rows, and step s reads positions s * batch_rows ... (s + 1) * batch_rows - 1: its global batch. So a row is seen exactly
once an epoch, no row is dropped at an epoch's end (the batch goes on in the next epoch), and resuming is starting at a step.
Ranks, workers and accumulation only divide a global batch; they never change it.

Worked example, 5 rows, batches of 2: positions 0 1 | 2 3 | 4 5 | ...; step 2 takes the last row of epoch 0 and the first of
epoch 1; one epoch is ceil(5 / 2) = 3 steps.

Several directories. Without weights they are one table. With weights each has its own endless sequence and a fixed pattern
of PERIOD positions says which directory comes next, so that every stretch of a run holds them in proportion. Inside one
directory nothing is reweighted: a packed row holds samples of several sources.

Cost: an epoch's permutation sorts one 64-bit hash a row (0.1 s for a million rows), once an epoch; dealing 1,280 rows to ranks
takes 1 ms a step.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

PERIOD = 10_000  # positions after which the pattern of a weighted mixture repeats: the resolution of weights

_GOLDEN = 0x9E3779B97F4A7C15
Ints = npt.NDArray[np.int64]


def derive(*parts: object) -> int:
    """A 64-bit key from any values: how every random choice here gets its own seed."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")


def hashes(key: int, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` outputs of splitmix64 seeded with `key`: uint64 [count].

    Written out here, so that an order does not change with numpy's version.
    """
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(count: int, *key: object) -> Ints:
    """An order of `count` things: int64 [count], a function of its arguments alone."""
    return np.argsort(hashes(derive(*key), count), kind="stable").astype(np.int64)


def windowed_permutation(shards: npt.NDArray[Any], window: int, seed: int, epoch: int, stream: int = 0) -> Ints:
    """The order of rows in an epoch: int64, where only `window` shards are mixed at a time, for a store read through a small cache.

    `shards` is the shard number of each row. Shards come in a permuted order, in groups of `window`; rows are permuted in
    their group. With window 0, or as large as the directory, this is a global shuffle.
    """
    names, of_row = np.unique(shards, return_inverse=True)
    if not window or window >= len(names):
        return permutation(len(shards), "rows", seed, stream, epoch)
    place = np.argsort(permutation(len(names), "shards", seed, stream, epoch))  # of each shard in the permuted order
    return np.lexsort((hashes(derive("rows", seed, stream, epoch), len(shards)), place[of_row] // window)).astype(np.int64)


def mixture_pattern(weights: Sequence[float]) -> Ints:
    """Which of the directories each of PERIOD positions takes: int64 [PERIOD], always the one furthest behind its share.

    ValueError for a weight that is not positive or too small to come up. Worked example: weights .75 and .25 give 0 1 0 0 ...
    """
    total = float(sum(weights))
    if not all(w > 0 and np.isfinite(w) for w in weights):
        raise ValueError(f"weights must be positive numbers, got {list(weights)}")
    share = np.array(weights, dtype=np.float64) / total
    if round(float(share.min()) * PERIOD) < 1:
        raise ValueError(f"weight {min(weights)} of {total} is below 1/{PERIOD}: leave that directory out")
    taken, pattern = np.zeros(len(weights)), np.empty(PERIOD, dtype=np.int64)
    for at in range(PERIOD):
        pattern[at] = np.argmax(share * (at + 1) - taken)
        taken[pattern[at]] += 1
    return pattern


def deal(costs: Sequence[int], hands: int) -> list[list[int]]:
    """Deal items to `hands` so that their counts differ by at most one and their summed costs are close.

    Returns for each hand the indices of its items, ascending. The dearest item goes to the least laden hand that still has
    room. Worked example: costs 9 5 4 1 to two hands -> [0, 3] (10) and [1, 2] (9).
    """
    room = [len(costs) // hands + (hand < len(costs) % hands) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    heap = [(0, hand) for hand in range(hands) if room[hand]]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, hand = heapq.heappop(heap)
        dealt[hand].append(item)
        if len(dealt[hand]) < room[hand]:
            heapq.heappush(heap, (load + costs[item], hand))
    return [sorted(hand) for hand in dealt]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a global batch is divided: `ranks` processes, `accumulation` micro-batches each, at most `rows` rows in one."""

    ranks: int
    accumulation: int
    rows: int


def split_batch(batch_rows: int, ranks: int, device_rows: int) -> Split:
    """The same number of micro-batches on every rank, none with more than `device_rows` rows.

    Worked example: 10 rows, 3 ranks, at most 2 at once: ranks hold 4, 3, 3 rows -> 2 micro-batches of at most 2.
    """
    most = -(-batch_rows // ranks)
    accumulation = -(-most // device_rows)
    return Split(ranks=ranks, accumulation=accumulation, rows=-(-most // accumulation))


class Order:
    """The steps of a run over one or several directories.

    `shards` and `patches` hold, per directory, the shard number and the image patches of each of its rows. `weights` mixes
    the directories; None makes them one table. `window` bounds the shards in use at a time (windowed_permutation).
    """

    def __init__(self, shards: Sequence[npt.NDArray[Any]], patches: Sequence[npt.NDArray[Any]], *, batch_rows: int, seed: int,
                 weights: Sequence[float] | None = None, window: int = 0) -> None:
        self.counts = [len(rows) for rows in shards]
        self.rows = sum(self.counts)
        if batch_rows < 1 or self.rows < batch_rows:
            raise ValueError(f"the directories hold {self.rows} packed rows, fewer than one global batch of {batch_rows}: "
                             f"pass --batch-rows {max(1, self.rows)} or less, or build more data")
        if weights is not None and len(weights) != len(shards):
            raise ValueError(f"{len(weights)} weights for {len(shards)} directories: give one each")
        self.batch_rows, self.seed, self.window = batch_rows, seed, window
        self._patches = [np.asarray(rows, dtype=np.int64) for rows in patches]
        # A stream's rows: their shards (those of different directories must not be taken for one another), and where they are.
        self._streams = [np.asarray(rows, dtype=np.int64) + (index << 32) for index, rows in enumerate(shards)]
        self._places = [np.stack([np.full(count, index), np.arange(count)], 1) for index, count in enumerate(self.counts)]
        if weights is None:
            self._streams, self._places = [np.concatenate(self._streams)], [np.concatenate(self._places)]
        self._pattern = np.zeros(1, dtype=np.int64) if weights is None else mixture_pattern(weights)
        self.shares = None if weights is None else [round(weight / sum(weights), 6) for weight in weights]
        # _before[d, i]: how often stream d comes among the first i positions of the pattern.
        chosen = self._pattern[None] == np.arange(len(self._streams))[:, None]
        self._before = np.concatenate([np.zeros((len(chosen), 1), np.int64), np.cumsum(chosen, axis=1)], axis=1)
        self._permutation = lru_cache(maxsize=2 * len(self._streams))(
            lambda stream, epoch: windowed_permutation(self._streams[stream], window, seed, epoch, stream))

    def steps(self, epochs: float) -> int:
        """Steps that read at least `epochs` times as many rows as there are."""
        return max(1, -int(-epochs * self.rows // self.batch_rows))

    def passes(self, steps: int) -> list[float]:
        """How many times each stream (each directory with weights, else all as one) is read through in that many steps."""
        return [self._drawn(stream, steps * self.batch_rows) / len(rows) for stream, rows in enumerate(self._streams)]

    def _drawn(self, stream: int, position: int) -> int:
        """How many of the first `position` positions fall to that stream."""
        cycles, rest = divmod(position, len(self._pattern))
        return cycles * int(self._before[stream, -1]) + int(self._before[stream, rest])

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The global batch of a step: (directory, row of its table) in order."""
        found = []
        for position in range(step * self.batch_rows, (step + 1) * self.batch_rows):
            stream = int(self._pattern[position % len(self._pattern)])
            epoch, index = divmod(self._drawn(stream, position), len(self._streams[stream]))
            directory, row = self._places[stream][self._permutation(stream, epoch)[index]].tolist()
            found.append((directory, row))
        return found

    def micro_batches(self, step: int, rank: int, split: Split) -> list[list[tuple[int, int]]]:
        """What `rank` reads in a step: `split.accumulation` lists of at most `split.rows` rows, image work balanced.

        Every rank computes this from the table alone. A list may be empty where there are fewer rows than ranks.
        """
        rows = self.batch(step)
        costs = [int(self._patches[directory][row]) for directory, row in rows]
        mine = deal(costs, split.ranks)[rank]
        hands = deal([costs[item] for item in mine], split.accumulation)
        return [[rows[mine[item]] for item in hand] for hand in hands]
