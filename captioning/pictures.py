"""Pictures of any kind, as the network sees them and as people do."""
import numpy as np
from PIL import Image, ImageOps

from runtime import cli

UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError,  # what Pillow raises
              Image.DecompressionBombError)


def upright(path):
    """Any picture as a Pillow image in RGB, upright, on white where it is transparent.

    Raises one of UNREADABLE where Pillow cannot read it.
    """
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more, grey
            grey = np.asarray(image, np.float32)
            image = Image.fromarray((grey / (256 if grey.max() > 255 else 1))
                                    .clip(0, 255).astype(np.uint8))
        if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def read_square(path, side):
    """Any picture as uint8 (side, side, 3); see `upright`.

    Stretched, not cropped: the cells of the network then cover the whole picture.
    """
    return np.asarray(upright(path).resize((side, side), Image.BILINEAR))


def load_picture(path, longest_side):
    """A picture in its own proportions, as large as may be: uint8 (H, W, 3).

    longest_side: of the result, in pixels. Raises cli.UserError where it cannot be
    read.
    """
    try:
        image = upright(path)
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such picture; check the name")
    except UNREADABLE as error:
        raise cli.UserError(f"{path}: not a readable picture ({error}); convert it to "
                            "JPEG or PNG")
    scale = longest_side / max(image.size)
    size = tuple(max(1, int(round(side * scale))) for side in image.size)
    return np.asarray(image.resize(size, Image.LANCZOS))
