"""Figures of attention: a picture, and where the model looked for each word.

As in the paper, a map is upsampled and smoothed with a Gaussian filter; it brightens
the picture where the model looked. Each cell's weight is drawn at the middle of what
that cell sees (captioning/grid.py). No display is needed.
"""
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter, map_coordinates

from captioning.grid import even
from runtime import atomic, cli, drawing

LONGEST_SIDE = 480   # pixels of the picture in the figure
COLUMNS = 5          # pictures in a row, the whole picture among them
TITLE = .3           # inches for the word above a picture
NOTE = .16           # inches for its probability below
FORMATS = ("png", "pdf", "svg")
DPI = 130
LONGEST = 65000      # pixels of a figure's side, at most: matplotlib's limit is 2 ** 16
BOX = "#ffcc33"
WARNING = "#b02a1a"
DARK = .3            # mean of a picture, of white: darker ones are lightened
COLOURS = ("light", "viridis", "inferno", "jet", "gray")


def upsample(alpha, size, grid=None):
    """Attention weights (L,) -> a smooth map float32 (height, width) in [0, 1].

    Interpolated between the cells' middles and extended to the rim, then smoothed with
    a Gaussian of half a cell. The highest value is 1. size: (width, height) in pixels.
    grid: the Grid of the L cells; None: a square of cells that tile the picture.
    """
    grid = grid or even(int(round(len(alpha) ** .5)))
    axes = list(zip(grid, (size[1], size[0])))
    y, x = (((np.arange(pixels) + .5) / pixels - axis.first) / axis.step
            for axis, pixels in axes)
    smooth = map_coordinates(np.asarray(alpha, np.float32).reshape(grid.shape),
                             np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
    smooth = gaussian_filter(smooth, [pixels * axis.step / 2 for axis, pixels in axes],
                             mode="nearest")
    return np.clip(smooth, 0, None) / max(smooth.max(), 1e-12)


def overlay(picture, heat, colours="light"):
    """Overlay a map (H, W) on a picture uint8 (H, W, 3) -> uint8 (H, W, 3).

    colours: 'light', the paper's light over dark, or the name of a matplotlib colour
    map, which is laid over the picture in grey.
    """
    if colours != "light":
        grey = picture.mean(axis=2, keepdims=True)
        coloured = ScalarMappable(cmap=colours).cmap(heat)[:, :, :3]
        return (.45 * grey + .55 * 255 * coloured).astype(np.uint8)
    heat = heat[:, :, None]
    light = picture * (.25 + .75 * heat)
    return (light + (255 - light) * .15 * heat).astype(np.uint8)


def lightened(picture):
    """A dark picture, lightened by the gamma that takes its mean to DARK, so that light
    and dark can be told apart below a map; others as they are.

    picture: uint8 (H, W, 3). Returns uint8 or float64 (H, W, 3).
    """
    mean = picture.mean() / 255
    if not 0 < mean < DARK:
        return picture
    return 255 * (picture / 255) ** (np.log(DARK) / np.log(mean))


def draw(picture, words, alphas, path, notes=None, layout="grid", colours="light",
         grid=None, boxes=None, remark=""):
    """Write one figure: the picture with its caption, then a map for every word.

    picture: uint8 (H, W, 3). words: list of T str. alphas: float32 (T, L). path: the
    extension, .png, .pdf or .svg, sets the format. notes: list of T str to print below
    the maps, or None. layout: 'grid' or 'strip', all in one row. colours: see
    `overlay`. grid: see `upsample`. boxes: drawn over the picture and over each map,
    T + 1 lists of (x, y, w, h) as fractions of the sides; None: no boxes. remark:
    printed below the caption. Raises cli.UserError for another extension.
    """
    kind = os.path.splitext(path)[1][1:].lower()
    if kind not in FORMATS:
        raise cli.UserError(f"{path}: a figure's name ends in ."
                            + ", .".join(FORMATS[:-1]) + f" or .{FORMATS[-1]}")
    with drawing.defaults(**{"svg.hashsalt": "attention"}):
        figure = lay_out(picture, words, alphas, notes, layout, colours, grid, boxes,
                         remark)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        # No creation date: the same figure gives the same file
        date = {"pdf": "CreationDate", "svg": "Date"}.get(kind)
        extra = {"metadata": {date: None}} if date else {}
        with atomic.writing(path) as file:
            figure.canvas.print_figure(
                file, dpi=min(DPI, int(LONGEST / max(figure.get_size_inches()))),
                format=kind, facecolor="white", **extra)


def lay_out(picture, words, alphas, notes, layout, colours, grid, boxes=None,
            remark=""):
    """The Figure that `draw` writes; the arguments are the same."""
    height, width = picture.shape[:2]
    columns = len(words) + 1 if layout == "strip" else min(COLUMNS, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    cell = 2.2 * np.array([1, height / width]) / max(1, (height / width) ** .5)
    cell = np.maximum(cell, .6)
    caption = " ".join(words) or "(an empty caption)"
    letters = int(9 * columns * cell[0])  # in a line: 9 an inch
    lines, more = -(-len(caption) // letters), -(-len(remark) // letters)
    heading, footing = .15 + .2 * (lines + more), NOTE if notes else 0
    row = cell[1] + TITLE + footing
    font = {"fontfamily": drawing.font_for(caption) or "DejaVu Sans"}
    figure = Figure(figsize=(columns * cell[0], rows * row + heading))
    FigureCanvasAgg(figure)
    share = 1 / np.tile(figure.get_size_inches(), 2)  # figure's units in an inch
    cells, below = [(picture, "", "")], lightened(picture)
    for alpha, word, note in zip(alphas, words, notes or [""] * len(words)):
        heat = upsample(alpha, (width, height), grid)
        cells.append((overlay(below, heat, colours), word, note))
    for i, (pixels, title, note) in enumerate(cells):
        y, x = divmod(i, columns)
        axes = figure.add_axes(share * (
            x * cell[0] + .04, (rows - 1 - y) * row + .04 + footing, cell[0] - .08,
            cell[1] - .04))
        axes.imshow(pixels, interpolation="bilinear")
        for left, top, wide, high in boxes[i] if boxes else ():
            axes.add_patch(Rectangle(
                (left * width - .5, top * height - .5), wide * width, high * height,
                fill=False, edgecolor=BOX, linewidth=1.3))
        axes.set_title(_plain(title), fontsize=11, pad=3, **font)
        axes.axis("off")
        if note:
            axes.text(.5, -.03 / cell[1], _plain(note), fontsize=7.5, color="#555555",
                      ha="center", va="top", transform=axes.transAxes)
    for text, above, count, style in (
            (caption, 0, lines, {"fontsize": 12, **font}),
            (remark, lines, more, {"fontsize": 10.5, "color": WARNING})):
        middle = heading / 2 + .2 * (above + (count - lines - more) / 2)
        figure.text(.012, 1 - middle / figure.get_figheight(), _plain(text),
                    va="center", ha="left", wrap=True, **style)
    return figure


def _plain(text):
    """Escape text so that matplotlib does not take it for mathematics."""
    return text.replace("$", r"\$")


def notes_of(log_probs, betas=None):
    """The notes below the maps: p(word), and beta if there is a gate."""
    chances = [f"p {np.exp(p):.2f}" for p in log_probs]
    return chances if betas is None else [
        f"{p}   \u03b2 {beta:.2f}" for p, beta in zip(chances, betas)]
