"""The training images most similar to an image, against a plain loop and by hand."""
import math

import numpy as np
import pytest

from methods import neighbours
from methods.neighbours import nearest


def cosine(one, other):
    return one.dot(other) / math.sqrt(one.dot(one) * other.dot(other))


@pytest.mark.parametrize("count", [1, 4, 12, 60])
@pytest.mark.parametrize("piece", [2, 1000])
def test_nearest_are_those_of_a_plain_loop(count, piece, monkeypatch):
    monkeypatch.setattr(neighbours, "PIECE", piece)
    random = np.random.RandomState(count)
    x, others = random.normal(size=(5, 7)), random.normal(size=(12, 7)) + 3
    near, shares = nearest(x.astype(np.float32), others.astype(np.float32), [None] * 5,
                           count)
    centre = others.mean(axis=0)
    for i in range(5):
        cosines = [cosine(x[i] - centre, other - centre) for other in others]
        order = sorted(range(12), key=lambda j: -cosines[j])[:count]
        assert near[i].tolist() == order
        expected = np.array([math.exp(10 * cosines[j]) for j in order])
        np.testing.assert_allclose(shares[i], expected / expected.sum(), rtol=1e-4)


def test_sixty_are_neighbours_where_there_are_more():
    random = np.random.RandomState(4)
    near, shares = nearest(random.normal(size=(2, 5)), random.normal(size=(70, 5)),
                           [None] * 2)
    assert near.shape == shares.shape == (2, 60)


def test_image_is_no_neighbour_of_its_own():
    others = np.random.RandomState(1).normal(size=(6, 5)).astype(np.float32)
    near, shares = nearest(others[[4, 2]], others, [4, None], 3)
    assert 4 not in near[0] and near[1][0] == 2
    near, shares = nearest(others[[4]], others, [4])  # all the others are neighbours
    assert shares[0][near[0] == 4] == 0 and abs(shares.sum() - 1) < 1e-9
    near, shares = nearest(others[[0]], others[:1], [0])
    assert near.tolist() == [[0]] and shares.tolist() == [[0]]


def test_features_that_are_not_finite_are_no_neighbours():
    random = np.random.RandomState(2)
    others = random.normal(size=(6, 5)).astype(np.float32)
    x = random.normal(size=(3, 5)).astype(np.float32)
    expected = nearest(x, others[[0, 1, 2, 4, 5]], [None] * 3, 4)
    others[3, 1] = np.inf
    near, shares = nearest(x, others, [None] * 3, 4)
    np.testing.assert_array_equal(near, np.array([0, 1, 2, 4, 5])[expected[0]])
    np.testing.assert_allclose(shares, expected[1])
