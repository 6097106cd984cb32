"""A fault at each write of a command: it dies there, the disk is full, or the disk
fails. Then the same command ends as if nothing had happened, and other files stay as
they were, to the byte.

For runs that build on others: started from one, self-critical, shipped, in an ensemble.
Not part of `make test`: `make torture` runs it.
"""
import glob
import json
import os
import shutil
import typing

import numpy as np
import pytest
from PIL import Image

from faults import FAULTS, Server
from torture_kills import ENVIRONMENT, assert_whole, clear, snapshot
from worlds import SMALL, noise

# Which of a Disk's changes to strike: each state that can be left behind, once
STRUCK = {"kill": ("mkdir", "write", "replace", "remove"), "full": ("mkdir", "write"),
          "error": ("replace", "remove")}
ENDS = {"kill": (-9, ""),
        "full": (2, "No space left on device; make room on that disk"),
        "error": (3, "Input/output error; it may pass: run the same command again")}
CACHE = "data/features/"  # which a command can do without
SIZES = ("--embedding", "3", "--units", "4", "--select", "loss")
FROM = ("train.py", "--run", "b", *SIZES, "--batch-size", "400", "--start-from")
ENSEMBLE = ("evaluate.py", "--ensemble", "a", "c", "--beam")
SHIPPED = ("evaluate.py", "--run", "shipped", "--beam")
OWN = ("analysis.report", "--run", "shipped", "--pictures")
TRAINED = ("checkpoints/b", CACHE + "means_*")
DESCENDANT, TOGETHER, FROM_HERE = (f"each write: {what}" for what in (
    "run started from another", "ensemble", "shipped run"))


class Work(typing.NamedTuple):
    """A command to strike."""
    kind: str  # its name in the count of faults
    command: typing.Tuple[str, ...]
    outputs: typing.Tuple[str, ...]       # what it writes
    earlier: typing.Tuple[str, ...] = ()  # a command that has written there before
    faults: typing.Tuple[str, ...] = tuple(sorted(FAULTS))


WORK = {
    "start": Work(DESCENDANT, (*FROM, "a", "--epochs", "2", "--save-minutes", "1e-9"),
                  TRAINED),
    "self-critical": Work(
        DESCENDANT, (*FROM, "a", "--epochs", "1", "--self-critical", "2"), TRAINED,
        faults=("kill",)),
    "ensemble": Work(TOGETHER, (*ENSEMBLE, "3", "--n-best", "2"),
                     ("checkpoints/a/*_with_c*",), (*ENSEMBLE, "2", "--n-best", "1")),
    "ship": Work(FROM_HERE, ("tools.ship_run", "--run", "a", "--name", "b"),
                 ("checkpoints/b",)),
    "evaluate": Work(FROM_HERE, (*SHIPPED, "3", "--n-best", "2"),
                     ("checkpoints/shipped/*_val*",), (*SHIPPED, "2")),
    "start from shipped": Work(FROM_HERE, (*FROM, "shipped", "--epochs", "1"), TRAINED,
                               faults=("kill",)),
    "own pictures": Work(
        FROM_HERE, (*OWN, "mine"), ("checkpoints/shipped/*own*",
                                    "checkpoints/shipped/attention"), (*OWN, "other"))}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(str(tmp_path_factory.mktemp("server")), ENVIRONMENT)
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(server, tmp_path_factory):
    """A folder with the runs a, c and shipped, and pictures."""
    folder = str(tmp_path_factory.mktemp("made"))

    def do(*command):
        done = server(folder, command)
        assert done.status == 0, done.said
    do("demo.draw_scenes", "--data", "data", "--train", "64", "--val", "40", "--size",
       "32")  # enough for familiarity.npz to be written
    do("tokenize_captions.py")
    write_features(os.path.join(folder, "data"), dict(
        SMALL, network="inception-v3", weights="random", shape=(2, 3, 40), seed=0))
    trained = (*SIZES, "--batch-size", "64", "--learning-rate", ".05", "--dropout",
               "0", "--epochs", "2")  # short captions, whose figures are quick to draw
    do("train.py", "--run", "a", *trained)
    do("train.py", "--run", "c", *trained, "--seed", "1")
    do("tools.ship_run", "--run", "a", "--name", "shipped")
    for seed, name in enumerate(("mine/1.png", "mine/2.png", "other/2.png")):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.fromarray(noise(40, 30, seed)).save(path)
    return folder


def write_features(data, record):
    """Write random features of all pictures of a data set, as step 2 would."""
    random = np.random.RandomState(0)
    for picture in sorted(glob.glob(os.path.join(data, "*", "*.png"))):
        split, name = os.path.split(os.path.relpath(picture, data))
        os.makedirs(os.path.join(data, "features", split), exist_ok=True)
        np.save(os.path.join(data, "features", split, name + ".npy"),
                random.uniform(0, 2, record["shape"]).astype(np.float16))
    with open(os.path.join(data, "features", "extractor.json"), "w") as file:
        json.dump(record, file)
    np.savez(os.path.join(data, "features", "calibration.npz"), mean=np.zeros(3))


def others(folder, outputs):
    """The files that a command must leave alone: {path: (size, time)}; no locks."""
    own = tuple(path for pattern in outputs
                for path in glob.glob(os.path.join(folder, pattern)))
    found = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            if not name.startswith(".") and not path.startswith(own):
                status = os.stat(path)
                found[os.path.relpath(path, folder)] = (status.st_size,
                                                        status.st_mtime_ns)
    return found


def assert_old_or_new(now, old, new, done_before):
    """Check that scores never lie beside captions that are not theirs, and, if the
    command ran before, that each file is the old or the new one.
    """
    now = {path: found for path, found in now.items() if not path.endswith(".partial")}
    for path, found in now.items():
        assert not done_before or found in (old.get(path), new.get(path)), path
        if os.path.basename(path).startswith("scores_"):
            assert now in (old, new)


def can_do_without(kind, path):
    """Whether a command succeeds even if the disk refuses this change."""
    return kind == "replace" and path.startswith(CACHE) or path.endswith(".lock")


@pytest.mark.parametrize("name, fault", [
    pytest.param(name, fault, marks=pytest.mark.fault(work.kind))
    for name, work in sorted(WORK.items()) for fault in work.faults])
def test_fault_at_each_write_leaves_no_trace(name, fault, server, made, tmp_path,
                                             record_property):
    _, command, outputs, earlier, _ = WORK[name]
    before, after, folder = (str(tmp_path / at) for at in ("before", "after", "struck"))
    shutil.copytree(made, before)
    clear(before, outputs)
    if earlier:
        assert server(before, earlier).status == 0
    for copy in (after, folder):
        shutil.copytree(before, copy)
    whole = server(after, command)
    assert whole.status == 0, whole.said
    old, new = snapshot(before, outputs), snapshot(after, outputs)
    assert new and old != new and bool(old) == bool(earlier)
    rest, runs = others(before, outputs), os.path.join(folder, "checkpoints")

    struck = [at for at, (kind, _) in enumerate(whole.changes) if kind in STRUCK[fault]]
    record_property("faults", len(struck))
    for at in struck:
        where = f"{fault} at {whole.changes[at]}"
        clear(folder, ("checkpoints", *outputs))
        shutil.copytree(os.path.join(before, "checkpoints"), runs)
        done = server(folder, command, fault, at)
        status, line = ENDS[fault]
        if fault == "error" and can_do_without(*whole.changes[at]):
            status, line = 0, ""
        last = done.said.splitlines()[-1] if done.said else ""
        assert done.status == status and line in last, (where, done.said)
        assert_whole(runs)
        now = snapshot(folder, outputs)
        assert_old_or_new(now, old, new, bool(earlier))
        assert others(folder, outputs) == rest, where
        done = server(folder, command)
        if name == "ship" and now == new:  # only its lock was left to remove
            assert done.status == 2 and "a run of that name exists" in done.said
        else:
            assert done.status == 0, (where, done.said)
        now = snapshot(folder, outputs)
        assert {path for path in set(new) - set(now)} <= {
            path for path in new if status == 0 and path.startswith(CACHE)}, where
        assert now == {path: new[path] for path in now}, where
        assert others(folder, outputs) == rest, where
        assert not glob.glob(os.path.join(runs, "**", "*.partial"), recursive=True)
