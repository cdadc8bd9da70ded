"""Pictures as tables hold them, and what the model sees of them: upright, 8 bits a channel, RGB.

A picture stays encoded bytes until somebody needs the pixels. Every mode that Pillow reads is converted by
what its numbers mean; one whose black and white are not known is refused, by `problem` and `load` alike.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# how a photo's orientation tag says it is to be turned (names of PIL.Image.Transpose)
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
ON_ITS_SIDE = (5, 6, 7, 8)  # width and height change places
# what Pillow raises on bad bytes, beside DecompressionBombError
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An encoded picture and the place it came from, e.g. "forget_5 row 3 (ID 010)". Pictures are equal where
    their bytes are."""

    data: bytes
    source: str = field(compare=False)

    def load(self) -> Image:
        """The first frame as `rgb` has it. Raises one of UNREADABLE where `problem` tells of one."""
        with self._open() as image:
            return rgb(image)

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright. Raises OSError for a picture with a problem."""
        size, why = self._looked_at
        if size is None:
            raise OSError(why)
        return size

    def problem(self) -> str | None:
        """Why the picture cannot be read, or None."""
        return self._looked_at[1]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of its bytes, computed once."""
        return hashlib.sha256(self.data).digest()

    def _open(self) -> Image:
        from PIL import Image

        return Image.open(io.BytesIO(self.data))

    @cached_property
    def _looked_at(self) -> tuple[tuple[int, int] | None, str | None]:
        """Size and problem: all of it is decoded, once."""
        from PIL import Image

        try:
            with self._open() as image:
                if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                    return rgb(image).size, None
                # the whole file is read and its data are followed to their end, at an eighth of the size
                size = image.size[:: -1 if _orientation(image) in ON_ITS_SIDE else 1]
                image.draft("RGB", (32, 32))
                image.load()
                return size, None
        except (*UNREADABLE, Image.DecompressionBombError) as why:
            return None, f"unreadable image: {str(why) or type(why).__name__}"


def rgb(image: Image) -> Image:
    """8 bits a channel, turned as the orientation tag says, transparent parts over white.

    Opaque 8-bit pictures are those of Pillow's own conversion. Raises ValueError where the numbers have no
    known black and white: floating point, 32-bit integers, odd TIFFs.
    """
    image.load()  # a PNG may have its orientation behind the pixels; a TIFF is turned by this
    if image.mode.startswith("I") or image.mode == "F":
        plain = _grey(image)
    elif image.has_transparency_data:
        plain = _on_white(image)
    elif image.mode == "LAB":
        plain = _from_lab(image)
    else:
        plain = image.convert("RGB")
    turn = TURNS.get(_orientation(image))
    if turn is None:
        return plain
    from PIL.Image import Transpose

    return plain.transpose(Transpose[turn])


def _orientation(image: Image) -> int | None:
    return image.getexif().get(0x0112)


def _grey(image: Image) -> Image:
    """More than 8 bits a pixel: 0 to 65535, black to white."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels, whose black and white are not known")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # where Pillow has 16 bits under that name
        raise ValueError("32-bit pixels, whose black and white are not known")
    if image.format == "TIFF" and (image.tag_v2.get(258), image.tag_v2.get(262)) != ((16,), 1):
        raise ValueError("a TIFF of more than 8 bits whose white is not 65535")
    values = np.asarray(image).astype(np.int64)
    eight = (values + 128) // 257
    if "transparency" in image.info:  # the grey that is not to be seen
        eight[values == image.info["transparency"]] = 255
    return Image.fromarray(eight.astype(np.uint8)).convert("RGB")


def _on_white(image: Image) -> Image:
    from PIL import Image

    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    low, high = image.getchannel("A").getextrema()
    if high == 0:
        raise ValueError("all of it is transparent")
    if low == 255:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    lab, screen = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, screen, outputMode="RGB")
