"""Step 6: draw where the model looked for each word of a caption.

    python plot_attention.py --run baseline                     # some of the split
    python plot_attention.py --run baseline --images a.jpg      # of the split, by name
    python plot_attention.py --run baseline --picture mine.jpg  # a file of one's own

As in the paper, a map is upsampled and smoothed with a Gaussian filter; it brightens
the picture where the model looked. InceptionV3 saw the whole picture, stretched to a
square, so that the 8 x 8 map covers all of it too. No display is needed.

Reads:  checkpoints/<run>/attention_<split>.npz and the images; for --picture the
        weights of the run and the network that made its features
Writes: checkpoints/<run>/attention/<image>.png
"""
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

import atomic
import cli
from decode import beam_search
from evaluate import decoded_path, read_decoded
from extract_features import SHAPE, extractor, read_image
from tf_runtime import device_errors, start
from tokenize_captions import END
from train import read_run

LONGEST_SIDE = 480   # pixels of the picture in the figure
COLUMNS = 5          # pictures in a row, the whole picture among them
TITLE = .3           # inches for the word above a picture
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError,
              Image.DecompressionBombError)


def upsample(alpha, size):
    """Attention weights (L,) -> a smooth map float32 (height, width) in [0, 1].

    Bicubic interpolation and a Gaussian filter of half a cell; the highest value is 1.
    size: (width, height) in pixels. L must be a square number.
    """
    side = int(round(len(alpha) ** .5))
    assert side * side == len(alpha), "the locations must form a square"
    grid = Image.fromarray(np.asarray(alpha, np.float32).reshape(side, side))
    smooth = np.asarray(grid.resize(size, Image.BICUBIC))
    smooth = gaussian_filter(smooth, (size[1] / side / 2, size[0] / side / 2))
    return np.clip(smooth, 0, None) / max(smooth.max(), 1e-12)


def overlay(picture, heat):
    """Light over dark: uint8 (H, W, 3) and a map (H, W) -> uint8 (H, W, 3)."""
    heat = heat[:, :, None]
    light = picture * (.25 + .75 * heat)
    return (light + (255 - light) * .15 * heat).astype(np.uint8)


def load_picture(path):
    """A picture upright, its own proportions, at most LONGEST_SIDE: uint8 (H, W, 3).

    Raises cli.UserError where it cannot be read.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
            scale = LONGEST_SIDE / max(image.size)
            size = tuple(max(1, int(round(side * scale))) for side in image.size)
            return np.asarray(image.resize(size, Image.LANCZOS))
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such picture; check the name")
    except UNREADABLE as error:
        raise cli.UserError(f"{path}: not a readable picture ({error}); convert it to "
                            "JPEG or PNG")


def draw(picture, words, alphas, path):
    """Write one figure: the picture with its caption, then a map for every word.

    picture: uint8 (H, W, 3). words: list of T str. alphas: float32 (T, L).
    """
    height, width = picture.shape[:2]
    columns = min(COLUMNS, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    cell = 2.2 * np.array([1, height / width]) / max(1, (height / width) ** .5)
    cell = np.maximum(cell, .6)
    caption = " ".join(words) or "(an empty caption)"
    lines = -(-len(caption) // int(9 * columns * cell[0]))  # 9 letters an inch
    heading = .15 + .2 * lines
    row = cell[1] + TITLE
    figure = Figure(figsize=(columns * cell[0], rows * row + heading))
    canvas = FigureCanvasAgg(figure)
    share = 1 / np.tile(figure.get_size_inches(), 2)  # figure's units in an inch
    cells = [(picture, "")]
    for alpha, word in zip(alphas, words):
        cells.append((overlay(picture, upsample(alpha, (width, height))), word))
    for i, (pixels, title) in enumerate(cells):
        y, x = divmod(i, columns)
        axes = figure.add_axes(share * (x * cell[0] + .04, (rows - 1 - y) * row + .04,
                                        cell[0] - .08, cell[1] - .04))
        axes.imshow(pixels, interpolation="bilinear")
        axes.set_title(title.replace("$", r"\$"), fontsize=11, pad=3)
        axes.axis("off")
    figure.text(.012, 1 - .5 * heading / figure.get_figheight(),
                caption.replace("$", r"\$"), fontsize=12, va="center", ha="left",
                wrap=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic.writing(path) as file:
        canvas.print_figure(file, dpi=130, format="png", facecolor="white")


def choose(decoded, wanted, count, seed):
    """Indices of the images to draw: those named, else `count` drawn at random."""
    names = [os.path.basename(str(image)) for image in decoded.images]
    missing = [name for name in wanted or () if name not in names]
    if missing:
        raise cli.UserError(f"{missing[0]}: not among the {len(names)} decoded images "
                            "of this split; for a file of your own use --picture")
    if wanted:
        return [names.index(name) for name in wanted]
    chosen = np.random.RandomState(seed).permutation(len(names))[:count]
    return sorted(int(i) for i in chosen)


def visible(words, vocabulary):
    """The words of a caption without its end token, as text."""
    return [vocabulary.index_word[i] for i in words if i != END]


def draw_split(run, args):
    """Draw images of the split; return the paths of the figures."""
    decoded = read_decoded(decoded_path(run.folder, args.split), run.vocabulary)
    drawn = []
    for i in choose(decoded, args.images, args.count, args.seed):
        name = str(decoded.images[i])
        picture = load_picture(os.path.join(args.data or run.settings["data"], name))
        words = visible(decoded.words[i, :decoded.steps[i]], run.vocabulary)
        path = os.path.join(run.folder, "attention",
                            os.path.splitext(os.path.basename(name))[0] + ".png")
        draw(picture, words, decoded.alphas[i, :len(words)], path)
        print(f"{path}: {' '.join(words)}", flush=True)
        drawn.append(path)
    return drawn


def draw_own(run, args):
    """Caption pictures of one's own and draw them; return the paths of the figures."""
    pictures = [load_picture(source) for source in args.picture]  # before the network
    forward = extractor(args.features or run.settings["features"])
    drawn = []
    for source, picture in zip(args.picture, pictures):
        maps = forward(read_image(source)[None]).numpy()
        maps = maps.reshape(1, -1, SHAPE[-1])
        caption = beam_search(run.model, maps, args.beam)[0][0]
        words = visible(caption.words, run.vocabulary)
        path = os.path.join(run.folder, "attention", "own_" + os.path.splitext(
            os.path.basename(source))[0] + ".png")
        draw(picture, words, caption.alphas[:len(words)], path)
        print(f"{path}: {' '.join(words)}", flush=True)
        drawn.append(path)
    return drawn


def main():
    args = arguments()
    cli.introduce(6, "plot attention")
    start()
    run = read_run(args.run)
    with cli.alone(run.folder), device_errors(1):
        drawn = draw_own(run, args) if args.picture else draw_split(run, args)
    print(f"{len(drawn)} figures; open {drawn[0]}")


def arguments():
    parser = cli.parser(__doc__)
    positive = cli.number(int, at_least=1)
    parser.add_argument("--run", default="baseline", help="name below checkpoints/")
    parser.add_argument("--split", choices=("train", "val"), default="val",
                        help="which of the decoded splits")
    parser.add_argument("--images", nargs="+", metavar="NAME",
                        help="file names of the split (default: --count at random)")
    parser.add_argument("--picture", nargs="+", metavar="FILE",
                        help="any image files instead: captioned and drawn")
    parser.add_argument("--count", type=positive, default=8, help="images to draw")
    parser.add_argument("--seed", type=cli.number(int, at_least=0), default=0,
                        help="of the choice of images")
    parser.add_argument("--beam", type=positive, default=3, help="width, for --picture")
    parser.add_argument("--data", help="default: that of the run")
    parser.add_argument("--features", help="of --picture's network; default: the run's")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
