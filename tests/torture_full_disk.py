"""A full disk: a clear line, nothing damaged, and work continues once there is room.

A small tmpfs is filled up to a few bytes. Needs the right to mount one; not part of
`make test`: `make torture` runs it.
"""
import contextlib
import os
import shutil
import subprocess

import pytest

from torture_kills import clear, snapshot
from worlds import COMMANDS, World, shown, without_network

pytestmark = pytest.mark.fault("disk full, then room made")
OUTPUTS = {"demo.draw_scenes": ("other",), "extract_features.py": ("data/features",),
           "tokenize_captions.py": ("data/tokens",), "train.py": ("checkpoints/a",),
           "evaluate.py": ("checkpoints/a/*_val*",),
           "plot_attention.py": ("checkpoints/a/attention",)}


@contextlib.contextmanager
def small_disk(path, megabytes):
    os.mkdir(path)
    try:
        subprocess.check_output(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m",
                                 "tmpfs", path], stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tmpfs here: {error}")
    try:
        yield
    finally:
        os.chdir("/")
        subprocess.check_call(["umount", "--lazy", path])  # TensorBoard's file is open


def fill(path, leave):
    """Write a file that leaves `free` bytes of the disk."""
    free = shutil.disk_usage(os.path.dirname(path)).free
    with open(path, "wb") as file:
        file.write(bytes(max(0, free - leave)))


def size(folder, outputs):
    return sum(os.path.getsize(os.path.join(folder, path))
               for path in snapshot(folder, outputs))


@pytest.mark.parametrize("share", [0, .2, .5, .8])
@pytest.mark.parametrize("script", sorted(OUTPUTS))
def test_full_disk_is_told_and_with_room_the_work_is_done(script, share, made, tmp_path,
                                                          monkeypatch, capsys):
    disk = str(tmp_path / "disk")
    with small_disk(disk, 40):
        shutil.copytree(str(made), os.path.join(disk, "w"))
        world = World(os.path.join(disk, "w"), monkeypatch)
        without_network(monkeypatch)
        outputs, command = OUTPUTS[script], COMMANDS[script]
        clear(".", outputs)
        assert world(script, *command) == 0  # on a disk with room
        expected, needed = snapshot(".", outputs), size(".", outputs)
        clear(".", outputs)
        others = world.files()
        fill(os.path.join(disk, "ballast"), int(share * needed))
        capsys.readouterr()
        status = world(script, *command)
        errors = capsys.readouterr().err
        line = errors.splitlines()[-1]
        assert status == 2 and line.startswith(shown(script) + ": "), errors
        assert "No space left on device; make room on that disk" in line
        assert "Traceback" not in errors
        # Files under their own names are whole, and the rest is as it was
        for path, found in snapshot(".", outputs).items():
            if script != "train.py":  # an unfinished run has other weights
                assert path not in expected or found == expected[path]
        after = world.files()
        assert all(after[path] == digest for path, digest in others.items())
        os.remove(os.path.join(disk, "ballast"))
        assert world(script, *command) == 0
        assert snapshot(".", outputs) == expected
