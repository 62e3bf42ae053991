"""Writes what the operations of LAVIS's RandAugment make of a picture.

    python make.py

Needs salesforce-lavis 1.0.2 with the OpenCV that it asks for (4.5.5), and Pillow.
"""

import math
import pathlib

import numpy as np
from lavis.processors.randaugment import arg_dict, func_dict
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
LEVEL = 5
SHEAR, PIXELS, DEGREES = 0.15, 5.0, 15.0


def picture():
    """A small part of a photograph, wider than high, of low contrast; the darkest of every channel is 0."""
    photograph = Image.open(HERE.parent / "retrieval/images/coffee.png").convert("RGB")
    small = np.array(photograph.resize((40, 28), Image.BICUBIC)).astype(int)
    small = small - small.min(axis=(0, 1))
    return (small * [180, 140, 220] // small.max(axis=(0, 1))).astype(np.uint8)


def write(name, pixels):
    Image.fromarray(pixels).save(HERE / f"{name}.png", optimize=True)


def main():
    image = picture()
    write("picture", image)
    for name in ["Identity", "Brightness", "Sharpness"]:
        # At this level their factor is 1.
        assert np.array_equal(func_dict[name](image, *arg_dict[name](LEVEL)), image), name
    # The level's arguments, their sign drawn.
    for name, size in [("ShearX", SHEAR), ("TranslateX", PIXELS), ("Rotate", DEGREES)]:
        assert math.isclose(abs(arg_dict[name](LEVEL)[0]), size), name
    fill = arg_dict["Rotate"](LEVEL)[1]

    # -low overflows in LAVIS where the darkest, a uint8, is above 0, and the picture becomes white; its
    # comment says that it means Pillow's.
    stretched = func_dict["AutoContrast"](image)
    assert np.array_equal(stretched, np.array(ImageOps.autocontrast(Image.fromarray(image))))
    write("auto-contrast", stretched)
    raised = image // 2 + 30
    write("raised", raised)
    write("raised-auto-contrast", np.array(ImageOps.autocontrast(Image.fromarray(raised))))

    write("equalize", func_dict["Equalize"](image))
    for name, operation, size in [
        ("shear-x", "ShearX", SHEAR),
        ("shear-y", "ShearY", SHEAR),
        ("translate-x", "TranslateX", PIXELS),
        ("translate-y", "TranslateY", PIXELS),
        ("rotate", "Rotate", DEGREES),
    ]:
        for sign in [1, -1]:
            suffix = "plus" if sign == 1 else "minus"
            write(f"{name}-{suffix}", func_dict[operation](image, sign * size, fill))


main()
