"""Pictures: what the model sees of every mode and orientation, and what is refused."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.Image import Transpose

from utils.reading.pictures import TURNS, UNREADABLE, Picture, rgb

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
GREY = NOISE.convert("L")


def encoded(image, kind="PNG", **options) -> Picture:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return Picture(out.getvalue(), "table row 0")


def near(image, like, most=1) -> bool:
    """Whether no value is more than `most` off."""
    return np.abs(np.asarray(image).astype(int) - np.asarray(like.convert("RGB")).astype(int)).max() <= most


# ---------------------------------------------------------------- modes
def lab(image):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


@pytest.mark.parametrize(
    ("image", "like", "most"),
    [
        (NOISE, NOISE, 0), (GREY, GREY, 0), (NOISE.convert("1"), NOISE.convert("1"), 0),
        (NOISE.convert("P"), NOISE.convert("P"), 0), (NOISE.convert("RGBA"), NOISE, 0),
        (NOISE.convert("RGBX"), NOISE, 0), (NOISE.convert("CMYK"), NOISE, 1), (GREY.convert("LA"), GREY, 0),
        (GREY.convert("LA").convert("La"), GREY, 0), (NOISE.convert("RGBA").convert("RGBa"), NOISE, 0),
        (NOISE.convert("PA"), NOISE.convert("P"), 0), (NOISE.convert("YCbCr"), NOISE, 4),
        (GREY.convert("HSV"), GREY, 1), (lab(GREY.convert("RGB")), GREY, 6),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)  # fmt: skip
def test_a_mode_is_converted_by_its_meaning(image, like, most):
    assert rgb(image).mode == "RGB" and near(rgb(image), like, most)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_shown_as_8(kind):
    """Pillow's own conversion cuts at 255, and nearly all turns white."""
    deep = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    picture = encoded(deep, kind)
    assert picture.problem() is None and near(picture.load(), GREY)


def test_16_bits_a_channel():
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    deep = (np.asarray(NOISE).astype(">u2") * 257).astype(">u2")  # Pillow writes no such file
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert near(Picture(b"\x89PNG\r\n\x1a\n" + body, "").load(), NOISE)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.new("F", (8, 8), 0.5), "floating-point"),
        (Image.new("I", (8, 8), 70000), "32-bit"),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "transparent"),
    ],
)
def test_what_has_no_known_black_and_white_is_refused(image, why):
    picture = encoded(image, "TIFF")
    assert why in picture.problem()
    with pytest.raises(ValueError, match=why):
        picture.load()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    """Below a transparent pixel lies any colour, often black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((40, 40, 40, 255), (0, 0, 4, 8))
    picture = encoded(image.convert(mode)) if mode != "P" else encoded(image.quantize(4))
    pixels = np.asarray(picture.load())
    assert (pixels[:, :4] == 40).all() and (pixels[:, 4:] == 255).all()


def test_a_transparent_grey():
    deep = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    assert (np.asarray(encoded(Image.new("L", (4, 4), 7), transparency=9).load()) == 7).all()
    first = int(np.asarray(deep)[0, 0])
    assert (np.asarray(encoded(deep, transparency=first).load())[0, 0] == 255).all()


def test_the_first_frame_of_several():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        picture = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(picture.load(), frames[0], 2), kind


# ---------------------------------------------------------------- orientation
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", [1, *TURNS, 9])
def test_a_photo_is_turned_as_datasets_turns_it(tag, kind):
    from datasets import Image as Feature

    exif = Image.Exif()
    exif[0x0112] = tag
    picture = encoded(NOISE, kind, exif=exif)
    theirs = Feature().decode_example({"bytes": picture.data, "path": None})
    assert near(picture.load(), theirs, 0)
    assert picture.size() == theirs.size == picture.load().size == (NOISE.size[:: -1 if 5 <= tag <= 8 else 1])
    if kind != "TIFF" and tag in TURNS:
        back = Transpose[TURNS[{6: 8, 8: 6}.get(tag, tag)]]
        assert near(picture.load().transpose(back), Picture(encoded(NOISE, kind).data, "").load(), 0)


# ---------------------------------------------------------------- problems
@pytest.mark.filterwarnings("ignore")  # Pillow's, about tags
def test_problem_and_load_agree():
    """On files cut short or changed anywhere: whatever passes the check can be loaded, at the size it has."""
    draw = random.Random(0)
    kinds = {"PNG": {}, "JPEG": {"progressive": True}, "GIF": {}, "WEBP": {}, "BMP": {}, "TIFF": {}}
    files = [encoded(NOISE, kind, **options).data for kind, options in kinds.items()]
    files += [encoded(NOISE, "JPEG").data, encoded(NOISE.convert("CMYK"), "JPEG").data]
    refused = 0
    for _ in range(30):
        for data in files:
            changed = bytearray(data[: draw.randrange(1, len(data)) if draw.random() < 0.5 else None])
            for _ in range(draw.randrange(4)):
                changed[draw.randrange(min(len(changed), draw.choice((60, 5000))))] = draw.randrange(256)
            picture = Picture(bytes(changed), "")
            if why := picture.problem():
                refused += 1
                assert why.startswith("unreadable image: ") and "\n" not in why
                with pytest.raises((*UNREADABLE, Image.DecompressionBombError)):
                    picture.load()
            else:
                assert picture.load().size == picture.size()
    assert 50 < refused < 230


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_a_damaged_jpeg_that_passes_can_be_shown(options):
    """It is looked at in an eighth of its size, for the time; what is told there is all that decoding it in
    full tells."""
    whole, chance, refused = encoded(NOISE, "JPEG", **options).data, random.Random(0), 0
    cut = [whole[:end] for end in range(2, len(whole), 3)]
    flipped = [bytearray(whole) for _ in range(300)]
    for data in flipped:
        data[chance.randrange(2, len(whole))] ^= 1 << chance.randrange(8)
    for data in [*cut, *flipped]:
        picture = Picture(bytes(data), "")
        if picture.problem():
            refused += 1
        else:
            picture.load()
    assert refused > len(cut) / 2
