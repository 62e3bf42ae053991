"""Draws pictures, encodes them in every way that libjpeg-turbo's cjpeg and Pillow know, and says what Pillow decodes.

    python make.py FOLDER      # needs Pillow 12, numpy and cjpeg (libjpeg-turbo-progs)
"""
import io, json, subprocess, sys, tarfile, zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(1, 1), (7, 5), (8, 8), (15, 17), (16, 33), (40, 23), (67, 48)]
SAMPLINGS = ["1x1", "2x1", "2x2", "1x2", "4x1", "1x4", "2x2,2x1,2x1", "1x1,2x2,2x2"]
ENCODINGS = {
    "quality 5": ["-quality", "5"],
    "quality 75": ["-quality", "75"],
    "quality 100": ["-quality", "100"],
    "optimised": ["-quality", "90", "-optimize"],
    "progressive": ["-quality", "80", "-progressive"],
    "progressive, restarts": ["-quality", "80", "-progressive", "-restart", "1"],
    "restarts by block": ["-quality", "60", "-restart", "1B"],
    "restarts by row": ["-quality", "60", "-restart", "1"],
    "arithmetic": ["-quality", "70", "-arithmetic"],
    "arithmetic, progressive": ["-quality", "70", "-arithmetic", "-progressive"],
    "baseline tables": ["-quality", "3", "-baseline"],
    "fast transform": ["-quality", "85", "-dct", "fast"],
}


def picture(width, height, seed):
    """Gradients with an edge and a little noise: all of a JPEG's coefficients matter."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x * 7 + y * 13) % 256], axis=2)
    base[(x + 2 * y) % 11 < 3] = [250, 20, 60]
    return Image.fromarray(np.clip(base + random.normal(0, 12, base.shape), 0, 255).astype(np.uint8))


def encoded(image, flags):
    ppm = io.BytesIO()
    image.save(ppm, "ppm")
    return subprocess.run(["cjpeg", *flags], input=ppm.getvalue(), capture_output=True, check=True).stdout


def pillow(image, **options):
    to = io.BytesIO()
    image.save(to, "jpeg", **options)
    return to.getvalue()


def main(folder):
    files = {}
    for w, h in SIZES:
        image = picture(w, h, w * h)
        for sampling in SAMPLINGS:
            for name, flags in ENCODINGS.items():
                files[f"{w}x{h} {sampling} {name}"] = encoded(image, [*flags, "-sample", sampling])
        files[f"{w}x{h} grey"] = encoded(image.convert("L"), ["-quality", "80"])
        files[f"{w}x{h} grey, progressive"] = encoded(image.convert("L"), ["-quality", "80", "-progressive"])
        files[f"{w}x{h} rgb"] = encoded(image, ["-quality", "80", "-rgb"])
        files[f"{w}x{h} cmyk"] = pillow(image.convert("CMYK"), quality=80)
        files[f"{w}x{h} cmyk, progressive"] = pillow(image.convert("CMYK"), quality=80, progressive=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        files[f"{w}x{h} turned by EXIF"] = pillow(image, quality=80, exif=exif)
        ycck = bytearray(pillow(image.convert("CMYK"), quality=90))
        adobe = ycck.find(b"Adobe")
        ycck[adobe + 11] = 2
        files[f"{w}x{h} ycck"] = bytes(ycck)
    expected = {}
    with tarfile.open(folder / "sweep.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            rgb = Image.open(io.BytesIO(data)).convert("RGB")
            expected[name] = [*rgb.size, zlib.crc32(rgb.tobytes())]
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    (folder / "expected.json").write_text("{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in expected.items()) + "\n}\n")
    print(len(files), "files")


main(Path(sys.argv[1]))
