"""Pictures as an attack shows them: shaken, cut, covered, or with words written into them."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.reading.pictures import Picture

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Change = Callable[[Image, np.random.Generator], Image]

BAND = 0.25  # of a picture's height, for words


def noise(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian noise of 2 % of white in each channel of each pixel."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)  # (H, W, 3)
    shaken = values + rng.normal(0, 0.02 * 255, values.shape)
    return Image.fromarray(shaken.round().clip(0, 255).astype(np.uint8))


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian blur of a radius of 2 pixels where the shorter side has 336, the size LLaVA-1.5 looks at."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(2 * min(image.size) / 336))


def crop(image: Image, rng: np.random.Generator) -> Image:
    """The middle nine tenths of either side, at the size of the whole."""
    width, height = image.size
    box = (0.05 * width, 0.05 * height, 0.95 * width, 0.95 * height)
    return image.resize(image.size, box=box)


def occlusion(image: Image, rng: np.random.Generator) -> Image:
    """A grey square of 18 % of the picture, somewhere in it."""
    width, height = image.size
    side = min(round((0.18 * width * height) ** 0.5), width, height)
    place = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    covered = image.copy()
    covered.paste((127, 127, 127), (*place, place[0] + side, place[1] + side))
    return covered


def brightness(image: Image, rng: np.random.Generator) -> Image:
    """85 % of its brightness."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(0.85)


CHANGES: dict[str, Change] = {
    "noise": noise, "blur": blur, "crop": crop, "occlusion": occlusion, "brightness": brightness,
}  # fmt: skip


def written(image: Image, words: str) -> Image:
    """Black words on a white band over the lower quarter of the picture, as large as fit."""
    from PIL import ImageDraw, ImageFont

    image, (width, height) = image.copy(), image.size
    band = max(1, round(BAND * height))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height - band, width, height), fill="white")
    for size in range(band, 3, -1):
        font = ImageFont.load_default(size)
        letters = max(1, int(width / max(1.0, font.getlength("n"))))
        text = "\n".join(textwrap.wrap(words, letters))
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font, spacing=1)
        if right - left <= width and bottom - top <= band:
            break
    place = ((width - right - left) / 2, height - band / 2 - (bottom + top) / 2)
    draw.multiline_text(place, text, fill="black", font=font, spacing=1, align="center")
    return image


@dataclass(frozen=True)
class ChangedPicture(Picture):
    """A picture that is shown changed: by one of CHANGES, by the seed, or else with `words` written into it.
    Its bytes are those of the original; it is drawn anew by whoever looks at it, the same each time."""

    change: str = ""
    seed: int = 0
    words: str = ""

    def load(self) -> Image:
        import numpy as np

        if self.words:
            return written(super().load(), self.words)
        key = hashlib.sha256(f"{self.seed}/{self.change}".encode() + self.data).digest()
        return CHANGES[self.change](super().load(), np.random.default_rng(list(key)))
