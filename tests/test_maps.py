"""Entropy and change of attention maps by hand, and the warning about flat ones."""
import numpy as np
import pytest

from captioning.maps import averages, changes, complaint, entropy, totals


def test_map_that_moves_has_a_larger_distance():
    alphas = np.array([[1, 0], [0, 1], [.5, .5], [.5, .5]])
    assert changes(alphas).tolist() == [1, .5, 0]
    assert changes(alphas[:1]).shape == (0,)


def test_entropy_is_1_for_the_even_map_and_0_for_one_cell():
    np.testing.assert_allclose(
        entropy([[.25] * 4, [1, 0, 0, 0], [.5, .5, 0, 0]]), [1, 0, .5], atol=1e-9)


def test_averages_are_over_words_not_captions():
    sharp, flat = np.eye(4)[[0, 1]], np.full((3, 4), .25)
    found = averages(map(totals, [sharp, flat]))
    assert found["entropy"] == pytest.approx(100 * 3 / 5)
    assert found["change"] == pytest.approx(100 * 1 / 3)


def test_captions_of_one_word_have_no_change():
    assert averages([totals(np.eye(4)[:1])])["change"] == 0


@pytest.mark.parametrize("entropy, change, said", [
    (95, 30, "flat"), (60, 2, "hardly change"), (60, 30, None)])
def test_flat_and_still_maps_are_complained_of(entropy, change, said):
    found = complaint(entropy, change)
    assert found is None if said is None else said in found
