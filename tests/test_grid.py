"""Where the cells of the network lie, by its layers and by what they really see."""
import numpy as np
import pytest

from captioning import inception
from captioning.grid import Grid, even, through
from runtime.tf import tf


def test_middles_of_padded_and_unpadded_layers_by_hand():
    assert through([(3, 1, "same")]) == (.5, 1)
    assert through([(3, 1, "valid")]) == (1.5, 1)     # pixels 0, 1, 2
    assert through([(2, 2, "valid")]) == (1, 2)       # pixels 0 and 1, 2 and 3
    assert through([(3, 2, "valid"), (3, 2, "valid")]) == (3.5, 4)
    with pytest.raises(ValueError):
        through([(3, 2, "same")])


def test_even_cells_tile_the_picture():
    assert even(8).middles(8).tolist() == [(k + .5) / 8 for k in range(8)]
    assert even(4).cell_at([0, .24, .26, .99, 1], 4).tolist() == [0, 0, 1, 3, 3]


def test_place_belongs_to_the_nearest_cell():
    grid = Grid(37.5 / 299, 32 / 299)
    pixels = np.array([0, 53, 54, 85, 86, 245, 246, 298])
    assert grid.cell_at(pixels / 299, 8).tolist() == [0, 0, 1, 1, 2, 6, 7, 7]


def test_records_say_where_the_cells_are():
    assert inception.cells(None, 8) == even(8)
    assert inception.cells({"weights": "random"}, 3) == even(3)
    for record in ({"weights": "imagenet"}, {"weights": "a.h5", "grid": [37.5, 32.]}):
        assert inception.cells(record, 8).middles(8) * 299 == pytest.approx(
            37.5 + 32 * np.arange(8))
    assert inception.cells({"weights": "x", "grid": [9., 8.]}, 8).first == 9 / 299
    assert inception.cells({"weights": "another CNN", "grid": [3.5, 32.], "side": 256},
                           8) == (3.5 / 256, 32 / 256)


@pytest.fixture(scope="module")
def network():
    """InceptionV3 that sees through the middles of its kernels only."""
    tf.keras.backend.clear_session()
    model = inception.architecture()
    for layer in inception._in_order(model, tf.keras.layers.Conv2D):
        h, w, c_in, c_out = layer.kernel.shape.as_list()
        kernel = np.zeros((h, w, c_in, c_out), np.float32)
        kernel[(h - 1) // 2, (w - 1) // 2] = 1 / c_in
        layer.set_weights([kernel])
    return model


def test_grid_of_the_layers_is_the_one_that_is_recorded(network):
    assert inception.grid_of(network) == inception.GRID


@pytest.mark.parametrize("cell", [(0, 0), (1, 6)])
def test_what_a_cell_sees_lies_around_its_middle(cell, network):
    """The centroid of |d cell / d pixel|: within 7 pixels of the computed middle, and
    not where even cells would be. (Maximum poolings choose, and padding bends, a bit.)
    """
    random = np.random.RandomState(0)
    total = np.zeros((299, 299))
    for _ in range(3):
        pixels = tf.constant(random.uniform(.4, .6, (1, 299, 299, 3)).astype("f4"))
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            value = tf.reduce_sum(network(pixels)[0, cell[0], cell[1]])
        total += abs(tape.gradient(value, pixels).numpy()).sum(axis=(0, 3))
    first, step = inception.GRID
    for axis, place in enumerate(cell):
        seen = total.sum(axis=1 - axis)
        centroid = (seen * (np.arange(299) + .5)).sum() / seen.sum()
        assert abs(centroid - (first + step * place)) < 7
        assert abs(centroid - 299 * even(8).middles(8)[place]) > 9
