"""Reading pictures of any format, for the network and for people."""
import collections
import os

import numpy as np
from PIL import Image

from runtime import cli

# How Pillow turns a picture upright, by EXIF's orientation (tag 0x112)
UPRIGHT = {2: (Image.FLIP_LEFT_RIGHT,), 3: (Image.ROTATE_180,),
           4: (Image.FLIP_TOP_BOTTOM,), 5: (Image.TRANSPOSE,), 6: (Image.ROTATE_270,),
           7: (Image.TRANSVERSE,), 8: (Image.ROTATE_90,)}
# Brands of HEIF files, the format of phones
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SIDEWAYS = (Image.TRANSPOSE, Image.TRANSVERSE, Image.ROTATE_90, Image.ROTATE_270)


class Unreadable(Exception):
    """A picture that Pillow cannot read, for whatever reason."""


def upright(path):
    """Read any picture as a Pillow image: RGB, upright, white where it is transparent.

    16-bit grey is scaled by the bits in use (X-rays have 12 of 16), as are floats from
    0 to 1. Raises Unreadable if Pillow cannot read it.
    """
    try:
        with _opened(path) as image:
            image.load()
            return _rgb(_turned(image))
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise Unreadable(getattr(error, "strerror", None) or cli.one_line(error)
                         or type(error).__name__) from error


def _opened(path):
    """Image.open, which reads HEIC where pillow-heif is installed."""
    with open(path, "rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in HEIF:
        try:
            import pillow_heif
        except ImportError:
            raise Unreadable("HEIC is read where the package pillow-heif is installed")
        pillow_heif.register_heif_opener()
    return Image.open(path)


def _orientation(image):
    """The operations that turn an image upright, by EXIF; bad metadata are ignored."""
    try:
        return UPRIGHT.get(image.getexif().get(0x112), ())
    except Exception:
        return ()


def _turned(image):
    for how in _orientation(image):
        image = image.transpose(how)
    return image


def upright_boxes(path, size, objects):
    """The size and objects of a picture once it is turned upright.

    size: (width, height). objects: a list of (name, (x, y, w, h)). They refer to the
    picture as stored; if its sides differ from `size`, they are taken to be upright.
    """
    try:
        with _opened(path) as image:
            how = _orientation(image) if image.size == tuple(size) else ()
    except Exception:  # reported where the picture itself is read
        how = ()
    for turn in how:
        objects = [(name, _turned_box(box, size, turn)) for name, box in objects]
        if turn in SIDEWAYS:
            size = size[1], size[0]
    return size, objects


def _turned_box(box, size, turn):
    (x, y, w, h), (width, height) = box, size
    right, below = width - x - w, height - y - h  # from the other two sides
    return {Image.FLIP_LEFT_RIGHT: (right, y, w, h),
            Image.FLIP_TOP_BOTTOM: (x, below, w, h),
            Image.ROTATE_180: (right, below, w, h), Image.TRANSPOSE: (y, x, h, w),
            Image.TRANSVERSE: (below, right, h, w), Image.ROTATE_90: (y, right, h, w),
            Image.ROTATE_270: (below, x, h, w)}[turn]


def _rgb(image):
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more, grey
        grey = np.asarray(image, np.float32)
        grey = np.where(np.isfinite(grey), grey, 0)
        if image.mode == "F" and grey.max() <= 1:  # fractions of white
            grey = grey * 255
        highest = grey.max()
        if highest > 255:
            # All 16 bits, or as many as are in use: 12 in an X-ray
            grey = grey * (255 / (2 ** np.ceil(np.log2(highest + 1)) - 1))
        image = Image.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8))
    transparent = image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa")
    if transparent or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_square(path, side):
    """Read any picture as uint8 (side, side, 3); see `upright`.

    Stretched, not cropped, so that the network sees the whole picture.
    """
    return np.asarray(upright(path).resize((side, side), Image.BILINEAR))


def load_square(path, side, pixels=0):
    """`read_square` for one of the user's own pictures: raises cli.UserError.

    pixels: larger pictures are first reduced to this side, for a run that was trained
    on enlarged pictures; 0: they are not.
    """
    image = _or_refused(upright, path)
    if 0 < pixels < side:
        image = image.resize([min(pixels, length) for length in image.size],
                             Image.BILINEAR)
    return np.asarray(image.resize((side, side), Image.BILINEAR))


def side_of(path):
    """The side of a square with a picture's area, in pixels; 0 if it is unreadable."""
    try:
        with _opened(path) as image:
            return (image.size[0] * image.size[1]) ** .5
    except Exception:  # a damaged file makes Pillow raise almost anything
        return 0


def load_picture(path, longest_side):
    """Read a picture in its own proportions: uint8 (H, W, 3).

    longest_side: of the result, in pixels. Raises cli.UserError if it cannot be read.
    """
    image = _or_refused(upright, path)
    scale = longest_side / max(image.size)
    size = tuple(max(1, int(round(side * scale))) for side in image.size)
    return np.asarray(image.resize(size, Image.LANCZOS))


def _or_refused(read, path):
    """read(path), with its errors raised as cli.UserError."""
    if not os.path.exists(path):
        raise cli.UserError(f"{path}: no such picture; check the name")
    if os.path.isdir(path):
        raise cli.UserError(f"{path}: a folder, not a picture")
    try:
        return read(path)
    except Unreadable as error:
        raise cli.UserError(f"{path}: not a readable picture ({error}); if it is one, "
                            "convert it to JPEG or PNG")


def is_whole(path):
    """Whether a file is a complete picture. Raises OSError if the disk fails.

    A JPEG or PNG file is judged by its first and last bytes; anything else is decoded.
    """
    if not os.path.isfile(path) or not os.path.getsize(path):
        return False
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, os.path.getsize(path) - 2))
        if (start[:2], file.read()) in ((b"\xff\xd8", b"\xff\xd9"),
                                        (b"\x89P", b"\x60\x82")):
            return True
    try:
        upright(path)
        return True
    except Unreadable:
        return False


def titles(paths):
    """The names of the pictures' figures: without folder and extension, or with both
    where two would be equal. paths: of all pictures, a list of str.
    """
    def name(path):
        return os.path.splitext(os.path.basename(path))[0]
    counts = collections.Counter(name(path) for path in set(paths))
    found, taken = {}, set()
    for path in paths:
        if path not in found:
            title = name(path)
            if counts[title] > 1:
                title = path.replace(os.sep, "/").replace("/", "_")
            while title in taken:
                title += "_"
            taken.add(title)
            found[path] = title
    return [found[path] for path in paths]
