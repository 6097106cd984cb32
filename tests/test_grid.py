"""Where the networks' cells lie: by their layers, and by what they really see."""
import numpy as np
import pytest

from captioning import inception, lite2
from captioning.features import cells_of, completed, grid_of
from captioning.grid import Axis, even, through
from runtime import cli
from runtime.tf import tf


def test_middles_of_padded_and_unpadded_layers_by_hand():
    assert through([(3, 1, "same")], 7) == (.5, 1, 7)
    assert through([(3, 1, "valid")], 7) == (1.5, 1, 5)     # pixels 0, 1, 2
    assert through([(2, 2, "valid")], 7) == (1, 2, 3)       # pixels 0 and 1, 2 and 3
    assert through([(3, 2, "valid"), (3, 2, "valid")], 11) == (3.5, 4, 2)
    # 8 pixels are padded by one at the far end only, 7 by one at either end
    assert through([(3, 2, "same")], 8) == (1.5, 2, 4)
    assert through([(3, 2, "same")], 7) == (.5, 2, 4)
    assert through([(5, 2, "same")], 8) == (1.5, 2, 4)


@pytest.mark.parametrize("side", [8, 9, 10, 13])
@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (5, 2), (5, 3)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_middle_of_a_layer_is_the_mean_of_what_its_cell_sees(padding, kernel, stride,
                                                             side):
    """By gradients, for a cell that sees no padding."""
    with tf.GradientTape() as tape:
        x = tf.ones((1, side, 1, 1))
        tape.watch(x)
        y = tf.nn.conv2d(x, tf.ones((kernel, 1, 1, 1)), [1, stride, 1, 1],
                         padding.upper())
        value = y[0, 1, 0, 0]
    seen = np.flatnonzero(tape.gradient(value, x).numpy()[0, :, 0, 0])
    first, step, cells = through([(kernel, stride, padding)], side)
    assert cells == y.shape[1] and len(seen) == kernel
    assert first + step == seen.mean() + .5


def test_even_cells_tile_the_picture():
    grid = even(2, 4)
    assert grid.shape == (2, 4) and even(3).shape == (3, 3)
    assert grid.rows.middles().tolist() == [.25, .75]
    assert grid.columns.middles().tolist() == [(k + .5) / 4 for k in range(4)]
    assert grid.columns.cell_at([0, .24, .26, .99, 1]).tolist() == [0, 0, 1, 3, 3]


def test_place_belongs_to_the_nearest_cell():
    axis = Axis(37.5 / 299, 32 / 299, 8)
    pixels = np.array([0, 53, 54, 85, 86, 245, 246, 298])
    assert axis.cell_at(pixels / 299).tolist() == [0, 0, 1, 1, 2, 6, 7, 7]


def test_records_say_where_the_cells_are():
    for record in ({"weights": "imagenet", "seed": 0},  # of earlier releases
                   {"weights": "a.h5", "seed": 0, "grid": [37.5, 32.]}):
        for axis in grid_of(completed(record)):
            assert axis.middles() * 299 == pytest.approx(37.5 + 32 * np.arange(8))
    other = {"network": "vgg16", "side": 224, "shape": [2, 3, 5],
             "grid": [[56, 112], [28, 56]]}
    rows, columns = grid_of(completed(other))
    assert rows.middles().tolist() == [.25, .75]
    assert columns.middles().tolist() == [.125, .375, .625]
    for bad in ({"shape": [2, 3]}, {"shape": [2, 0, 5]}, {"shape": [2., 3, 5]},
                {"grid": 3}, {"grid": [1, 2, 3]}):
        with pytest.raises((ValueError, TypeError)):
            completed(dict(other, **bad))


def test_run_knows_the_cells_that_it_attends_to():
    old = {"weights": "imagenet", "seed": 0}
    assert cells_of({"extractor": old}, 64).rows.first == 37.5 / 299
    assert cells_of({"extractor": None}, 64) == even(8)
    assert cells_of({"extractor": None, "shape": [2, 3, 5]}, 6) == even(2, 3)
    other = {"network": "vgg16", "side": 224, "shape": [2, 3, 5], "grid": [56, 64]}
    assert cells_of({"extractor": other, "shape": [2, 3, 5]}, 6).shape == (2, 3)
    for settings in ({"extractor": old}, {"extractor": other}):
        with pytest.raises(cli.UserError):
            cells_of(settings, 9)


@pytest.fixture(scope="module")
def network():
    """An InceptionV3 that sees only through the middles of its kernels."""
    tf.keras.backend.clear_session()
    model = inception.architecture()
    for layer in inception._in_order(model, tf.keras.layers.Conv2D):
        h, w, c_in, c_out = layer.kernel.shape.as_list()
        kernel = np.zeros((h, w, c_in, c_out), np.float32)
        kernel[(h - 1) // 2, (w - 1) // 2] = 1 / c_in
        layer.set_weights([kernel])
    return model


def test_grid_of_the_layers_is_the_one_that_is_recorded(network):
    assert inception.grid_of(network) == through(inception.LAYERS, 299) == (37.5, 32, 8)
    assert through(inception.LAYERS, 491) == (37.5, 32, 14)


def centroid_of(network, side, cell, repeats=3):
    """The centre of mass of |d cell / d pixel|: (y, x) in pixels."""
    random, total = np.random.RandomState(0), np.zeros((side, side))
    for _ in range(repeats):
        pixels = tf.constant(random.uniform(.4, .6, (1, side, side, 3)).astype("f4"))
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            value = tf.reduce_sum(network(pixels)[0, cell[0], cell[1]])
        total += abs(tape.gradient(value, pixels).numpy()).sum(axis=(0, 3))
    places = np.arange(side) + .5
    return [(total.sum(axis=1 - axis) * places).sum() / total.sum() for axis in (0, 1)]


@pytest.mark.parametrize("cell", [(0, 0), (1, 6)])
def test_what_a_cell_sees_lies_around_its_middle(cell, network):
    """Within 7 pixels of the computed middle, and not where even cells would lie.

    Max pooling and padding shift it a little.
    """
    for place, centroid in zip(cell, centroid_of(network, 299, cell)):
        assert abs(centroid - (37.5 + 32 * place)) < 7
        assert abs(centroid - 299 * even(8).rows.middles()[place]) > 9


@pytest.mark.parametrize("side, cell", [(228, (1, 6)), (132, (2, 3))])
def test_what_a_cell_of_lite2_sees_lies_around_its_middle(side, cell, monkeypatch):
    """Through the middles of its kernels, exactly there; even cells lie elsewhere."""
    random = np.random.RandomState(0)
    # Nothing is below 0 or above 6 here; 1.10 has no gradient of it in eager mode
    monkeypatch.setattr(tf.nn, "relu6", lambda x: x)

    def middle(*shape):
        kernel = np.zeros(shape, np.float32)
        kernel[shape[0] // 2, shape[1] // 2] = random.uniform(.1, .2, shape[2:])
        return kernel, np.full(shape[2] if shape[3] == 1 else shape[3], .1, np.float32)
    layers, before = [middle(3, 3, 3, 4)], 4
    for size, _, expansion, after, repeats in lite2.STAGES:
        for _ in range(repeats):
            inside = before if expansion == 1 else 4
            block = [middle(size, size, inside, 1), middle(1, 1, inside, 4)]
            layers.append(block if expansion == 1 else [middle(1, 1, 4, 4)] + block)
    layers.append(middle(1, 1, 4, 4))
    first, step, cells = through(lite2.LAYERS, side)
    assert (first, step, cells) == (3.5, 32, (side - 4) // 32 + 1)
    for place, centroid in zip(cell, centroid_of(
            lambda x: lite2.forward(layers, x), side, cell, 1)):
        assert centroid == pytest.approx(first + step * place, abs=.01)
        assert abs(centroid - side * even(cells).rows.middles()[place]) > 1
