"""Where the cells of a CNN's last layer lie in the picture.

Convolutions and poolings without padding leave out the rim: the cells of InceptionV3 do
not tile the picture, but lie closer to its middle. Whatever is drawn or counted by cell
uses the cells' middles.
"""
import typing

import numpy as np


class Axis(typing.NamedTuple):
    """The middles of the cells along one side, as fractions of the picture's side."""
    first: float  # middle of the first cell
    step: float   # distance from one middle to the next
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
        """The numbers of (rows, columns)."""
        return self.rows.cells, self.columns.cells


def even(rows, columns=None):
    """The Grid of cells that tile the picture: for features of unknown origin."""
    return Grid(*(Axis(.5 / cells, 1 / cells, cells)
                  for cells in (rows, columns or rows)))


def through(layers, side, first=.5, step=1.):
    """Trace a side's pixels through layers: returns the middle of the first output and
    the distance to the next, both in pixels, and the number of outputs.

    layers: a list of (kernel, stride, padding), from the input on; padding: 'valid' or
    'same', with an odd pixel at the far end, as in TensorFlow. side: number of inputs
    of the first layer. first, step: their first middle and distance.
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
