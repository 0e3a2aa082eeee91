"""Image bytes of any kind -> the bytes a sample stores: checked, upright, gray or RGB, fitted inside a mode.

    from pipeline.images import fit_image
    fitted = fit_image(data, "base")          # raises pipeline.conversation.Reject with a reason

probe.py reads headers only, decode.py makes upright uint8 pixels, resize.py scales, encode.py chooses the format, fit.py
is the road through them. `benchmarks/images.py` measures it against the naive way.
"""

from pipeline.images.fit import FittedImage, fit_image
from pipeline.images.probe import Limits

__all__ = ["FittedImage", "Limits", "fit_image"]
