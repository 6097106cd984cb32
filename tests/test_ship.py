"""A shipped run: smaller, as good, and safe from being trained over."""
import errno
import os
import shutil

import numpy as np
import pytest

from captioning import networks
from captioning.decoded import read_captions_of
from runtime import atomic
from worlds import QUICK, fake_build, files_of, refused


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
    assert "a run of that name exists" in capsys.readouterr().err


SHIP = ("tools.ship_run", "--run", "a", "--name", "shipped")


def test_shipped_run_captions_pictures_of_ones_own(world):
    """Also with an untrained network, which was calibrated."""
    world.monkeypatch.setattr(networks, "build", fake_build)
    assert world(*SHIP) == 0
    assert world("analysis.report", "--run", "shipped", "--pictures", "data/val") == 0


def test_ship_that_did_not_come_to_its_end_leaves_nothing(world, capsys):
    whole = os.fsync

    def fail(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith("settings.json.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(file)
    with world.monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert world(*SHIP) == 2
    assert os.listdir("checkpoints/shipped") == []
    # As left by a killed attempt with another run
    for name in ("best.npz", "familiarity.npz"):
        with open(f"checkpoints/shipped/{name}", "w"):
            pass
    assert world(*SHIP) == 0
    assert world("evaluate.py", "--run", "shipped") == 0
    assert not os.path.exists("checkpoints/shipped/familiarity.npz")


@pytest.mark.parametrize("name, spoil, said", [
    ("settings.json", os.remove, "no such run; there are: b"),
    ("settings.json", lambda path: os.truncate(path, 9), "damaged"),
    ("best.npz", os.remove, "no such checkpoint"),
    ("best.npz", lambda path: os.truncate(path, 99), "damaged"),
    ("best.npz", lambda path: atomic.write_arrays(path, {"W": np.array(1e9)}),
     "its weights are too large for float16")])
def test_run_that_cannot_ship_is_refused_in_one_line(name, spoil, said, world, capsys):
    shutil.copytree("checkpoints/a", "checkpoints/b")
    spoil(f"checkpoints/a/{name}")
    before = files_of("checkpoints")
    capsys.readouterr()
    assert world(*SHIP) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ship_run.py: checkpoints/a/{name}: ") and said in line
    assert files_of("checkpoints") == before
