"""Where the cells of a CNN's last layer lie in the picture.

Convolutions and poolings without padding leave out the rim: the cells of InceptionV3 do
not tile the picture, but lie closer to its middle. Whatever is drawn or counted by cell
goes by their middles.
"""
import typing

import numpy as np


class Axis(typing.NamedTuple):
    """The middles of the cells along one side, as shares of the picture's side."""
    first: float  # of the first cell
    step: float   # from one to the next
    cells: int

    def middles(self):
        """The middles of the cells, float (cells,), in 0 ... 1."""
        return self.first + self.step * np.arange(self.cells)

    def cell_at(self, place):
        """The nearest cell to each place (0 ... 1), int."""
        nearest = np.rint((np.asarray(place) - self.first) / self.step).astype(int)
        return nearest.clip(0, self.cells - 1)


class Grid(typing.NamedTuple):
    """The cells of a picture, row by row: L = rows.cells * columns.cells."""
    rows: Axis     # from the top down
    columns: Axis  # from left to right

    @property
    def shape(self):
        """How many (rows, columns)."""
        return self.rows.cells, self.columns.cells


def even(rows, columns=None):
    """The Grid of cells that tile the picture: for features of unknown origin."""
    return Grid(*(Axis(.5 / cells, 1 / cells, cells)
                  for cells in (rows, columns or rows)))


def through(layers, side, first=.5, step=1.):
    """Follow the pixels of a side through layers: the middle of the first output, the
    distance to the next, both in pixels, and how many there are.

    layers: (kernel, stride, padding) of each, from the input on; padding: 'valid' or
    'same', as TensorFlow pads: what cannot be halved goes to the far end. side: inputs
    of the first layer. first, step: of these.
    """
    for kernel, stride, padding in layers:
        if padding == "valid":
            before, outputs = 0, (side - kernel) // stride + 1
        else:
            outputs = -(-side // stride)
            before = max(0, (outputs - 1) * stride + kernel - side) // 2
        first += step * ((kernel - 1) / 2 - before)
        step, side = step * stride, outputs
    return first, step, side
