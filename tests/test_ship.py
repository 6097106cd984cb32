"""A run that ships: smaller, as good, and nobody trains over it."""
import os
import shutil

from captioning.decoded import read_captions_of
from worlds import QUICK, refused


def test_shipped_run_writes_the_same_and_is_never_trained_over(world, capsys):
    assert world("evaluate.py", "--run", "a") == 0
    before = read_captions_of("checkpoints/a", "val")
    assert world("tools.ship_run", "--run", "a", "--name", "shipped") == 0
    assert os.path.getsize("checkpoints/shipped/best.npz") < .4 * os.path.getsize(
        "checkpoints/a/best.npz")
    shutil.rmtree("checkpoints/a")
    assert world("evaluate.py", "--run", "shipped") == 0
    assert read_captions_of("checkpoints/shipped", "val") == before
    with open("checkpoints/shipped/best.npz", "rb") as file:
        weights = file.read()
    for flags in ((), ("--epochs", "9"), ("--seed", "5")):
        assert "--start-from shipped" in refused(world, capsys, "train.py", "--run",
                                                 "shipped", *flags)
    with open("checkpoints/shipped/best.npz", "rb") as file:
        assert file.read() == weights
    assert not os.path.exists("checkpoints/shipped/best.npz.bad")
    assert world("train.py", "--run", "b", "--start-from", "shipped", *QUICK) == 0
    capsys.readouterr()
    assert world("tools.ship_run", "--run", "b", "--name", "shipped") == 2
    assert "there is a run of that name" in capsys.readouterr().err
