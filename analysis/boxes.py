"""Decoded captions with the annotated boxes of their images: what the commands of this
folder share.
"""
import numpy as np

from captioning.coco import read_objects
from captioning.decoded import read_decoded, read_source
from captioning.runs import add_run_flag
from runtime import cli

POINTS = 16     # sample points per side of a cell, to measure its share inside boxes


def parser_of(doc):
    """A Parser with the flags that select decoded captions and their boxes."""
    parser = cli.parser(doc)
    add_run_flag(parser)
    parser.always("--split", type=cli.name, default="val",
                  help="which of the decoded splits, as for plot_attention.py")
    parser.always("--data", otherwise="that of the decoded captions",
                  help="data set in COCO's layout")
    return parser


def read_annotated(run, args):
    """A Run's Decoded, and the `read_objects` of its images; args: from `parser_of`."""
    decoded = read_decoded(run.folder, args.split, run.vocabulary)
    return decoded, read_objects(args.data or read_source(run, args.split)["data"],
                                 decoded.images.tolist(), decoded.image_ids.tolist())


def box_coverage(boxes, size, grid):
    """The share of each cell inside the boxes, and whether its middle is inside.

    boxes: (x, y, w, h) in pixels of an image of `size` (width, height). grid: a Grid; a
    point belongs to the cell with the nearest middle. Returns float (rows, columns),
    bool (rows, columns), and whether the image's centre is inside, bool.
    """
    def inside(x, y):
        hit = np.zeros(np.broadcast(x, y).shape, bool)
        for left, top, width, height in boxes:
            hit |= ((left <= x) & (x <= left + width)
                    & (top <= y) & (y <= top + height))
        return hit

    y, x = ((np.arange(cells * POINTS) + .5) / (cells * POINTS) for cells in grid.shape)
    cell = grid.rows.cell_at(y)[:, None], grid.columns.cell_at(x)
    share, count = np.zeros((2,) + grid.shape)
    np.add.at(share, cell, inside(x * size[0], y[:, None] * size[1]))
    np.add.at(count, cell, 1)
    y, x = grid.rows.middles(), grid.columns.middles()
    return (share / count, inside(x * size[0], y[:, None] * size[1]),
            bool(inside(np.array(size[0] / 2), np.array(size[1] / 2))))
