"""The benchmark against PyTorch, without PyTorch: its table and its refusals."""
import sys
import time

import numpy as np
import pytest

from benchmarks import bench, peers
from commands import exit_status
from model import Batch, Captioner, Parcel, Sizes
from runtime import cli


class Fake:
    """A peer that answers at once."""

    def __init__(self, key, losses=(1., 2.), captions=((1, 2),) * 128):
        self.key, self.name = key, key
        self.answers = {"losses": list(losses), "captions": [list(c) for c in captions]}

    def __call__(self, what):
        return self.answers.get(what, {"1": .5, "2": .25}.get(self.key, 1.))


def test_peers_that_are_the_same_model_pass(capsys):
    near = Fake("b", (1.00005, 2.), ((1, 2),) * 126 + ((1, 3),) * 2)
    peers.check([Fake("a"), near])
    assert "126 of 128 captions" in capsys.readouterr().out


def test_compiling_is_what_the_first_call_takes_longer(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(time, "time", lambda: clock[0])

    class Compiles(Fake):
        def __call__(self, what):
            clock[0] += 1 if self.answers.pop("begun " + what, None) else 31
            self.answers["begun " + what] = True
            return super().__call__(what)
    took = peers.check([Compiles("a"), Fake("b")])
    assert took == {(key, title): 30. if key == "a" else 0. for key in "ab"
                    for title in peers.COMPILED.values()}


@pytest.mark.parametrize("other", [
    Fake("b", losses=(1., 2.001)), Fake("b", losses=(1., float("nan"))),
    Fake("b", captions=((1, 2),) * 125 + ((1, 3),) * 3)])
def test_peers_that_are_not_the_same_model_are_refused(other):
    with pytest.raises(cli.UserError, match="not the same model"):
        peers.check([Fake("a"), other])


def test_table_has_the_ratios_and_says_which_floor_is_missed():
    found = peers.measure([Fake(key) for key in ("1", "2", "eager", "compile")], 2)
    assert found["2", "train"] == [4 * peers.SIZE * peers.BATCHES] * 2
    assert ("eager", "beam3") not in found and ("compile", "greedy") not in found
    training = "training, captions/s, ours with TensorFlow 2 against PyTorch eager"
    decoding = "greedy decoding, images/s, ours with TensorFlow 2 against PyTorch eager"
    rows = {row[0]: row[1:] for row in peers.rows_of(found)[1:]}
    assert rows[training] == ("4.00", "4.00 - 4.00", "at least 1.2")
    assert rows[decoding][0] == "4.00"
    found["2", "train"], found["2", "products"] = [1., 1.], [2., 2.]
    found["2", "self_critical"] = [.5, .6]
    rows = {row[0]: row[1:] for row in peers.rows_of(found)[1:]}
    assert "NOT REACHED" in rows[training][2]
    alone = "training step, against its matrix products alone, TensorFlow 2"
    assert rows[alone] == ("0.50", "0.50 - 0.50", "at least 0.75  NOT REACHED")
    against = "self-critical step, time against teacher-forced ones, TensorFlow 2"
    assert rows[against] == ("1.83", "1.67 - 2.00", "at most 1.6  NOT REACHED")
    assert rows[against[:-1] + "1"][2] == "at most 1.6"


def test_what_a_peer_cannot_do_is_left_out():
    """torchvision may be missing, or may not match torch."""
    peer = Fake("eager")
    peer.answers["inception"] = None
    found = peers.measure([Fake("2"), peer], 1)
    assert ("eager", "inception") not in found and ("2", "inception") in found
    assert not any(row[0].startswith("InceptionV3") for row in peers.rows_of(found))


def test_products_are_those_of_the_forward_pass():
    """Multiplications counted by hand, for two captions of 3 and 2 words."""
    K, F, D, m, n, A = sizes = Sizes(7, 6, 2, 3, 5, 4)
    L, words = 3, np.array([[1, 4, 5, 2], [1, 6, 2, 0]], np.int32)
    batch = Batch(Parcel(np.ones((2, L, F), "f2"), words), np.array([3, 2], np.int32),
                  np.arange(2, dtype=np.int32), np.arange(2))
    found = peers.products_of(Captioner(sizes), batch)
    word = (m * 3 * n + n * A + L * A + L * D + n + D * 3 * n + n * 3 * n
            + n * m + D * m + m * K)
    assert sum(np.prod(a) * b[-1] for a, b in found) == (
        2 * L * F * D + 2 * L * D * A + 2 * D * n + 5 * word)
    assert found[0] == ((2 * L, F), (F, D))
    assert np.isfinite(peers.multiply(found)).all()


def test_samples_have_rewards_and_no_more_words_than_said():
    drawing = peers.sampling(Captioner(bench.SIZES))
    features = np.random.RandomState(0).random_sample((2, 64, 2048)).astype("f2")
    batch, _, _ = drawing.draw(np.arange(2), features, (0,))
    assert batch.lengths.max() <= peers.SAMPLED_WORDS and len(batch.lengths) == 10
    assert np.isfinite(batch.parcel.weights.numpy()).all()


def test_process_that_ends_is_told_in_one_line():
    with pytest.raises(cli.UserError, match="ended while it was asked for name"):
        peers.Peer("a", [sys.executable, "-c", "pass"])


def test_without_pytorch_it_says_what_to_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert exit_status(peers.main) == 2
    assert "make bench-peers" in capsys.readouterr().err
