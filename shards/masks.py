"""The mask law: which tokens are ever learned, and how a mask becomes targets.

A mask code belongs to a token, not to the position before it. Worked example, `I` an image placeholder:

    ids     BOS  <user>  I  I  Q  </user>  <asst>  A  </asst>
    mask     0     1     0  0  1     1       1     2     2
    targets <user> -1   -1  Q </user> <asst> A  </asst>  -1      (loss "all")
            -1     -1   -1 -1  -1    -1      A  </asst>  -1      (loss "answer")

The second placeholder predicts `Q`: masking by the input token would lose that, and would train `<user>` to emit a placeholder.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

NOT_TARGET, TEXT, ANSWER = 0, 1, 2
CODES = (NOT_TARGET, TEXT, ANSWER)
IGNORE = -1

Loss = Literal["all", "answer"]


def targets(ids: npt.NDArray[Any], mask: npt.NDArray[Any], loss: Loss = "all") -> npt.NDArray[np.int64]:
    """Labels of one sample: int64 [n], ids shifted by one, IGNORE where the mask says so and at the last position."""
    least = {"all": TEXT, "answer": ANSWER}[loss]
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    trained = mask[1:] >= least
    labels[:-1][trained] = ids[1:][trained]
    return labels


def target_count(mask: npt.NDArray[Any], loss: Loss = "all") -> int:
    """How many labels `targets` leaves: the trained tokens but for a first one, which nothing predicts."""
    return int(np.count_nonzero(mask[1:] >= {"all": TEXT, "answer": ANSWER}[loss]))


def check(ids: npt.NDArray[Any], mask: npt.NDArray[Any], *, image_id: int, pad_id: int, bos_id: int,
          placeholders: int, vocab_size: int) -> None:
    """Raise ValueError if a sample breaks the mask law: shapes, codes, BOS, placeholders, padding, no target at all."""
    if ids.dtype != np.int32 or mask.dtype != np.uint8 or ids.ndim != 1 or ids.shape != mask.shape:
        raise ValueError(f"ids {ids.dtype}{ids.shape} and mask {mask.dtype}{mask.shape} must be int32 [n] and uint8 [n]")
    if len(ids) == 0 or ids[0] != bos_id or mask[0] != NOT_TARGET:
        raise ValueError("a sample starts with BOS, which is never a target")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise ValueError(f"token ids {ids.min()}..{ids.max()} outside the vocabulary of {vocab_size}")
    if int(mask.max()) > ANSWER:
        raise ValueError(f"mask code {mask.max()} is not one of {CODES}")
    if np.any(ids == pad_id):
        raise ValueError("padding inside a sample")
    images = ids == image_id
    if np.count_nonzero(images) != placeholders:
        raise ValueError(f"{np.count_nonzero(images)} placeholders where the images need {placeholders}")
    if np.any(mask[images] != NOT_TARGET):
        raise ValueError("an image placeholder is a target")
    if np.any(mask[1:][~images[1:]] == NOT_TARGET):
        raise ValueError("a text token is not a target")
    if not np.any(mask == ANSWER):
        raise ValueError("a sample without an answer token")
