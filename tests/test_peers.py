"""The benchmark beside PyTorch, without PyTorch: its table and its refusals."""
import sys

import pytest

from benchmarks import peers
from commands import exit_status
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


@pytest.mark.parametrize("other", [
    Fake("b", losses=(1., 2.001)), Fake("b", losses=(1., float("nan"))),
    Fake("b", captions=((1, 2),) * 125 + ((1, 3),) * 3)])
def test_peers_that_are_not_the_same_model_are_refused(other):
    with pytest.raises(cli.UserError, match="not the same model"):
        peers.check([Fake("a"), other])


def test_table_has_the_ratios_and_says_which_floor_is_missed():
    found = peers.measure([Fake(key) for key in ("1", "2", "eager", "compile")], 2)
    assert found["2", "train"] == [4 * peers.SIZE * peers.BATCHES] * 2
    assert ("eager", "beam") not in found
    training = "training, captions/s, ours with TensorFlow 2 against PyTorch eager"
    decoding = "greedy decoding, images/s, ours with TensorFlow 2 against PyTorch eager"
    rows = {row[0]: row[1:] for row in peers.rows_of(found)[1:]}
    assert rows[training] == ("4.00", "4.00 - 4.00", "at least 1.7")
    assert rows[decoding][0] == "4.00"
    found["2", "train"] = [1., 1.]
    rows = {row[0]: row[1:] for row in peers.rows_of(found)[1:]}
    assert "NOT REACHED" in rows[training][2]


def test_process_that_ends_is_told_in_one_line():
    with pytest.raises(cli.UserError, match="ended while it was asked for name"):
        peers.Peer("a", [sys.executable, "-c", "pass"])


def test_without_pytorch_it_says_what_to_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert exit_status(peers.main) == 2
    assert "make bench-peers" in capsys.readouterr().err
