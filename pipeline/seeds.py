"""Seeds derived by name, so that every random choice is a function of the recipe's seed and of what is chosen."""

import hashlib
import random


def derive(seed: int, *names: str | int) -> int:
    """A 64-bit seed for the choice called `names`; independent of the order in which choices are made."""
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rng(seed: int, *names: str | int) -> random.Random:
    """A generator seeded with `derive`."""
    return random.Random(derive(seed, *names))


def share(key: bytes, purpose: str) -> float:
    """A number from 0 to 1 that depends on a key alone: stable over rebuilds, recipes and machines."""
    digest = hashlib.blake2b(key, digest_size=8, person=purpose.encode()[:16]).digest()
    return int.from_bytes(digest, "little") / 2**64
