"""Where the cells of a CNN's last layer lie in the picture.

Convolutions and poolings without padding leave out the rim: the cells of InceptionV3 do
not tile the picture, but lie closer to its middle. Whatever is drawn or counted by cell
goes by their middles.
"""
import typing

import numpy as np


class Grid(typing.NamedTuple):
    """The middles of the cells along either side, as shares of the picture's side."""
    first: float  # of the first cell
    step: float   # from one to the next

    def middles(self, side):
        """The middles of so many cells, float (side,), in 0 ... 1."""
        return self.first + self.step * np.arange(side)

    def cell_at(self, place, side):
        """The nearest of `side` cells to each place (0 ... 1), int."""
        found = np.rint((np.asarray(place) - self.first) / self.step).astype(int)
        return found.clip(0, side - 1)


def even(side):
    """The Grid of cells that tile the picture: for features of unknown origin."""
    return Grid(.5 / side, 1 / side)


def through(layers, first=.5, step=1.):
    """The middle of the first output and the distance to the next, in input pixels.

    layers: (kernel, stride, padding) of each, from the input on; padding: 'valid', or
    'same', for which the stride must be 1. first, step: of the input, its pixels.
    """
    for kernel, stride, padding in layers:
        if padding == "valid":
            first += step * (kernel - 1) / 2
        elif stride > 1:
            raise ValueError("the grid of a padded layer with a stride is not known")
        step *= stride
    return first, step
