"""Writes cases.txt: what Pillow's resize makes of pseudo-random pixels. Run with Pillow 12.

Each line: filter, source width and height, target width and height, and the FNV-1a hash of the
result's bytes, one channel after the other.
"""

import pathlib

import PIL
from PIL import Image

SHAPES = [
    (160, 120, 56, 56),
    (97, 131, 64, 48),
    (50, 37, 91, 91),
    (224, 160, 30, 33),
    (33, 70, 90, 20),
    (40, 40, 40, 40),
    (31, 17, 31, 40),
    (1, 1, 7, 5),
    (1, 300, 9, 9),
    (300, 1, 9, 9),
    (23, 19, 1, 1),
    (2, 3, 64, 64),
    (640, 480, 224, 224),
]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MASK = (1 << 64) - 1


def pixels(count):
    """Bytes of a linear congruential generator; about a third are set to the extremes."""
    state, data = 1, bytearray()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        level = (state >> 33) % 384
        data.append(level if level < 256 else 255 * (level & 1))
    return bytes(data)


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def main():
    assert PIL.__version__.startswith("12."), PIL.__version__
    lines = []
    for width, height, to_width, to_height in SHAPES:
        image = Image.frombytes("RGB", (width, height), pixels(width * height * 3))
        for name, resample in FILTERS.items():
            resized = image.resize((to_width, to_height), resample)
            planes = b"".join(plane.tobytes() for plane in resized.split())
            lines.append(f"{name} {width} {height} {to_width} {to_height} {fnv1a(planes):016x}\n")
    pathlib.Path(__file__).with_name("cases.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
