"""Raw pixels of an RDKit drawing, without the PNG encoder that costs ten times the drawing itself.

RDKit's `MolDraw2DCairo` offers its picture only as PNG text (28 ms at 1024x1024). The `cairo_t` inside the drawer is
found once at start: the drawer's memory is searched for a pointer to a structure that looks like one (every read by
`process_vm_readv`, which fails instead of crashing), cairo is asked for its image surface, and the two offsets are
kept. A self-test then compares the pixels with those of the public route on a coloured drawing; if anything differs or
is missing (another operating system, another RDKit build) the public route is used: slower, the same pixels.

    source = open_pixel_source()          # .route is "surface" or "public", .why says why not the first
    gray = source.gray(drawer, width, height, out)
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

Pixels = NDArray[np.uint8]
PUBLIC_ROUTE_VARIABLE = "RENDER_CHEM_PUBLIC_ROUTE"  # set to 1 to leave the raw route out (tests, doubts)
_DRAWER_BYTES = 4096  # a MolDraw2DCairo is 1,080 bytes in rdkit 2026.9
_PYBUF_READ = 0x100
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_FORMATS = (0, 1)  # CAIRO_FORMAT_ARGB32, CAIRO_FORMAT_RGB24: both are BGRx in little-endian memory


class SurfaceUnavailable(Exception):
    """The raw route cannot be used here; the message says why."""


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, kw_only=True)
class PublicSource:
    """Pixels by `GetDrawingText` and a PNG decoder: works everywhere."""

    why: str = ""
    route: str = "public"

    def bgrx(self, drawer: Any, width: int, height: int) -> Pixels:
        """uint8 [height, width, 4] in blue, green, red, unused order."""
        from PIL import Image

        with Image.open(BytesIO(drawer.GetDrawingText())) as image:
            rgb = np.asarray(image.convert("RGB"))
        assert rgb.shape == (height, width, 3), (rgb.shape, width, height)
        pixels = np.empty((height, width, 4), dtype=np.uint8)
        pixels[:, :, :3] = rgb[:, :, ::-1]
        pixels[:, :, 3] = 255
        return pixels


@dataclass(frozen=True, kw_only=True)
class SurfaceSource:
    """Pixels read where cairo keeps them. The array is a view: use it before the drawer goes."""

    cairo: Any
    object_offset: int
    cairo_offset: int
    why: str = ""
    route: str = "surface"

    def bgrx(self, drawer: Any, width: int, height: int) -> Pixels:
        """uint8 [height, width, 4] in blue, green, red, unused order."""
        drawer_address = ctypes.c_void_p.from_address(id(drawer) + self.object_offset).value
        assert drawer_address is not None
        context = ctypes.c_void_p.from_address(drawer_address + self.cairo_offset).value
        surface = self.cairo.cairo_get_target(context)
        self.cairo.cairo_surface_flush(surface)
        size = (self.cairo.cairo_image_surface_get_width(surface), self.cairo.cairo_image_surface_get_height(surface))
        assert size == (width, height), (size, width, height)
        stride = self.cairo.cairo_image_surface_get_stride(surface)
        data = self.cairo.cairo_image_surface_get_data(surface)
        # a ctypes array type for every new size would cost more than the whole call
        flat = np.frombuffer(_view(data, stride * height, _PYBUF_READ), dtype=np.uint8)
        return flat.reshape(height, stride // 4, 4)[:, :width]


PixelSource = PublicSource | SurfaceSource


def open_pixel_source() -> PixelSource:
    """The raw route when it passes its self-test on this machine, else the public one with the reason in `.why`."""
    if os.environ.get(PUBLIC_ROUTE_VARIABLE) == "1":
        return PublicSource(why=f"{PUBLIC_ROUTE_VARIABLE}=1 is set")
    try:
        source = _find()
        _self_test(source)
    except (SurfaceUnavailable, OSError, AttributeError, AssertionError) as error:
        return PublicSource(why=str(error) or type(error).__name__)
    return source


def _find() -> SurfaceSource:
    cairo, ranges = _load_cairo()
    width, height = 37, 53  # odd numbers, so that no other surface is taken for ours
    drawer = rdMolDraw2D.MolDraw2DCairo(width, height)
    for object_offset, address in _pointers(_peek(id(drawer), 256)):
        for cairo_offset, candidate in _pointers(_peek(address, _DRAWER_BYTES)):
            head = _peek(candidate, 48)
            if len(head) < 48:
                continue
            # struct cairo_t: reference count 1 and status 0 in the first word, then its user data, then a pointer to
            # the backend's table inside the library itself
            words = struct.unpack("<6Q", head)
            if words[0] != 1 or not any(low <= word < high for word in words[1:] for low, high in ranges):
                continue
            surface = cairo.cairo_get_target(candidate)
            if not surface or cairo.cairo_surface_get_type(surface) != 0:
                continue
            if cairo.cairo_image_surface_get_format(surface) not in _FORMATS:
                continue
            if (cairo.cairo_image_surface_get_width(surface), cairo.cairo_image_surface_get_height(surface)) == (
                width,
                height,
            ):
                return SurfaceSource(cairo=cairo, object_offset=object_offset, cairo_offset=cairo_offset)
    raise SurfaceUnavailable("no cairo context was found inside RDKit's drawer")


def _load_cairo() -> tuple[Any, list[tuple[int, int]]]:
    """The cairo library already in this process, with the address ranges it is mapped to."""
    try:
        with open("/proc/self/maps") as file:
            lines = [line.split(maxsplit=5) for line in file]
    except OSError as error:
        raise SurfaceUnavailable("this system has no /proc/self/maps") from error
    mapped = [fields for fields in lines if len(fields) == 6 and os.path.basename(fields[5]).startswith("libcairo")]
    if not mapped or struct.pack("=H", 1) != b"\x01\x00":
        raise SurfaceUnavailable("RDKit does not use a cairo library of its own, or the machine is big-endian")
    path = mapped[0][5].strip()
    bounds = [fields[0].split("-") for fields in mapped if fields[5].strip() == path]
    cairo = ctypes.CDLL(path)
    cairo.cairo_get_target.restype = ctypes.c_void_p
    cairo.cairo_get_target.argtypes = [ctypes.c_void_p]
    cairo.cairo_surface_flush.restype = None
    cairo.cairo_surface_flush.argtypes = [ctypes.c_void_p]
    cairo.cairo_surface_get_type.argtypes = [ctypes.c_void_p]
    cairo.cairo_image_surface_get_data.restype = ctypes.c_void_p
    for name in ("data", "width", "height", "stride", "format"):
        getattr(cairo, f"cairo_image_surface_get_{name}").argtypes = [ctypes.c_void_p]
    return cairo, [(int(low, 16), int(high, 16)) for low, high in bounds]


def _peek(address: int, length: int) -> bytes:
    """Up to `length` bytes at `address`; fewer, or none, where nothing is mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(length)
    local = _Span(ctypes.addressof(buffer), length)
    # a read that runs past a mapping's end fails as a whole: ask for the rest of the page then
    for size in (length, min(length, 4096 - address % 4096)):
        local.length = size
        remote = _Span(address, size)
        count = libc.process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if count > 0:
            return buffer.raw[:count]
    return b""


def _pointers(block: bytes) -> Iterator[tuple[int, int]]:
    """(offset, value) of every word that could be an aligned heap address."""
    for offset in range(0, len(block) - 7, 8):
        value = struct.unpack_from("<Q", block, offset)[0]
        if value >= 65536 and value % 8 == 0 and value < 1 << 47:
            yield offset, value


def _self_test(source: SurfaceSource) -> None:
    """Raises SurfaceUnavailable unless both routes give the same pixels for coloured drawings of two sizes."""
    molecule = Chem.MolFromSmiles("Clc1ccc(cc1)[C@H](N)C(=O)O")
    public = PublicSource()
    for width, height in ((91, 64), (64, 130)):
        drawer = rdMolDraw2D.MolDraw2DCairo(width, height)
        drawer.drawOptions().setBackgroundColour((0.9, 0.95, 1.0))
        drawer.DrawMolecule(molecule)
        drawer.FinishDrawing()
        raw = source.bgrx(drawer, width, height)[:, :, :3]
        if not np.array_equal(raw, public.bgrx(drawer, width, height)[:, :, :3]):
            raise SurfaceUnavailable("the raw pixels differ from those of GetDrawingText")
