"""A failing disk is not a damaged file: nothing is given up, renamed or made anew.

/proc/self/mem is a file that exists but cannot be read: "Input/output error".
"""
import errno
import os
import zipfile

import numpy as np
import pytest

from captioning import decoded, runs as run_files
from captioning.checkpoints import (Progress, load_checkpoint, load_newest,
                                    rotate_checkpoint, variables_of)
from captioning.coco import read_json
from captioning.features import (SHAPE, calibration_path, feature_path, find_features,
                                 is_sound, keep_calibration, read_features, read_record,
                                 record_path)
from captioning.inception import calibrate
from captioning.lite2 import read_state
from captioning.resuming import settings_to_resume
from captioning.tokens import (read_images, read_references, read_tokens,
                               read_vocabulary, references_path, tokens_path,
                               vocabulary_path)
from methods import localiser
from model import Captioner
from runtime import atomic, cli
from runtime.tf import tf
from worlds import SIZES, VOCABULARY, Runs, files_of, refusal

pytestmark = pytest.mark.fault("disk that cannot be read, then can")
UNREADABLE = "/proc/self/mem"
RUN = run_files.Run(".", {}, VOCABULARY)
READERS = {  # for every file: its path in a folder, and its reader
    "newest.npz": lambda: load_checkpoint("newest.npz", Captioner(SIZES).weights),
    localiser.localiser_path(""): lambda: localiser.read_localiser(""),
    calibration_path(""): lambda: calibrate(tf.keras.Sequential(), None,
                                            calibration_path("")),
    record_path(""): lambda: read_record(""), "w.pth": lambda: read_state("w.pth"),
    feature_path("", "a.jpg"): lambda: read_features("a.jpg.npy"),
    "b.npy": lambda: is_sound("b.npy", SHAPE),
    "c.npy": lambda: find_features("", ["c"], "val"),
    tokens_path("", "val"): lambda: read_tokens("", "val"),
    tokens_path("", "test"): lambda: read_images("", "test"),
    vocabulary_path(""): lambda: read_vocabulary(""),
    references_path("", "val"): lambda: read_references("", "val"),
    decoded.decoded_path("", "val"): lambda: decoded.read_decoded("", "val",
                                                                  VOCABULARY),
    decoded.decoded_path("", "test"): lambda: decoded.read_source(
        RUN._replace(folder=""), "test"),
    decoded.scores_path("", "val"): lambda: decoded.read_scores("", "val"),
    decoded.nbest_path("", "val"): lambda: decoded.read_nbest("", "val"),
    run_files.split_path(""): lambda: run_files.read_split(""),
    "checkpoints/a/settings.json": lambda: run_files.read_run("a"),
    "settings.json": lambda: settings_to_resume(""),
    "captions.json": lambda: read_json("captions.json")}


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def make_unreadable(path):
    """Make the disk fail to read this file; a sound copy stays beside it, as .sound."""
    if os.path.exists(path):
        os.rename(path, path + ".sound")
    os.symlink(UNREADABLE, path)


@pytest.mark.parametrize("path", sorted(READERS))
def test_reader_names_the_file_that_the_disk_does_not_give(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    make_unreadable(path)
    with pytest.raises(OSError) as error:
        READERS[path]()
    assert (error.value.errno, error.value.filename) == (errno.EIO, path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("path", sorted(READERS))
def test_reader_passes_on_why_a_file_is_not_opened(path, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb"):
        pass

    def refuse(name, *args, **kwargs):
        if str(name) == path:
            raise OSError(number, os.strerror(number), path)
        return whole(name, *args, **kwargs)
    whole = open
    for module in ("builtins", "io"):
        monkeypatch.setattr(f"{module}.open", refuse)
    with pytest.raises(OSError) as error:
        READERS[path]()
    monkeypatch.undo()
    assert (error.value.errno, error.value.filename) == (number, path)


def test_moment_in_which_the_disk_failed_is_not_taken_for_damage(tmp_path, monkeypatch):
    """zipfile turns it into an error of its own; later the file can be read again."""
    path = str(tmp_path / "a.npz")
    atomic.write_arrays(path, {"x": np.arange(3)})

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(zipfile, "_EndRecData", fail)
    with pytest.raises(OSError) as error, atomic.load_arrays(path):
        pass
    assert (error.value.errno, error.value.filename) == (errno.EIO, path)


def test_lack_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    path = str(tmp_path / "a.npz")
    atomic.write_arrays(path, {"x": np.arange(3)})
    with pytest.raises(OSError) as error, atomic.load_arrays(path):
        raise MemoryError
    assert (error.value.errno, error.value.filename) == (errno.ENOMEM, path)


def test_error_of_another_file_keeps_its_name(tmp_path):
    path, other = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    with open(path, "w"):
        pass
    with pytest.raises(OSError) as error, atomic.reading(path):
        raise OSError(errno.ENOSPC, "No space left on device", other)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, other)


def test_content_that_is_wrong_is_damage(tmp_path):
    path = str(tmp_path / "a.npz")
    atomic.write_arrays(path, {"x": np.arange(3)})
    with pytest.raises(atomic.Damaged), atomic.load_arrays(path) as arrays:
        arrays["y"]
    with open(path, "r+b") as file:
        file.truncate(20)
    with pytest.raises(atomic.Damaged), atomic.load_arrays(path):
        pass


@pytest.mark.parametrize("number, status", [
    (errno.EIO, 3), (errno.ESTALE, 3), (errno.ENOMEM, 3), (errno.ENOSPC, 2),
    (errno.EACCES, 2), (errno.EISDIR, 2)])
def test_another_process_may_try_again_where_the_disk_may_answer(number, status,
                                                                 capsys):
    def main():
        raise OSError(number, os.strerror(number), "a.npz")
    from commands import exit_status
    assert exit_status(main) == status
    line, = capsys.readouterr().err.splitlines()
    assert f": a.npz: {os.strerror(number)}" in line


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOTCONN])
def test_lock_that_fails_names_its_file(number, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(cli.fcntl, "flock", fail)
    with pytest.raises(OSError) as error, cli.locked(str(tmp_path)):
        pass
    assert error.value.errno == number
    assert os.path.dirname(error.value.filename) == str(tmp_path)


# --- training -------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["newest.npz", "settings.json", "split.json"])
def test_training_over_a_disk_that_fails_stops_and_changes_nothing(name, runs):
    assert runs("whole", 3)[0] == 0
    assert runs("a", 2)[0] == 0
    path = runs.file("a", name)
    make_unreadable(path)
    os.rename(path + ".sound", "kept")
    before = set(os.listdir(os.path.dirname(path)))
    status, _, errors = runs("a", 3)
    assert status == 3 and errors.splitlines()[-1] == (
        f"train.py: {path}: Input/output error; it may pass: run the same command "
        "again")
    assert set(os.listdir(os.path.dirname(path))) == before
    assert os.path.islink(path)
    os.replace("kept", path)  # the disk recovers
    assert runs("a", 3)[0] == 0
    one, other = runs.arrays("whole"), runs.arrays("a")
    assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("missing", [True, False])
def test_training_goes_on_from_the_best_epoch_where_no_other_checkpoint_is_sound(
        missing, runs):
    assert runs("whole", 3, "--learning-rate", ".1")[0] == 0
    assert runs("a", 2, "--learning-rate", ".1")[0] == 0
    best = files_of("checkpoints/a")["best.npz"]
    for name in ("newest.npz", "previous.npz"):
        if missing:
            os.remove(runs.file("a", name))
        else:
            with open(runs.file("a", name), "r+b") as file:
                file.truncate(99)
    status, out, errors = runs("a", 3)
    assert status == 0, errors
    epoch = int(out.split("best.npz, after epoch ")[1].split()[0])
    assert "no sound checkpoint but that of its best epoch" in errors
    one, other = runs.arrays("whole"), runs.arrays("a")
    assert all((one[key] == other[key]).all() for key in one)
    assert files_of("checkpoints/a")["best.npz"] == best or epoch < 3


def test_sound_weights_without_an_optimizer_are_never_given_up(runs):
    assert runs("a", 1)[0] == 0
    path = runs.file("a", "best.npz")
    with np.load(path) as arrays:
        atomic.write_arrays(path, {name: arrays[name] for name in arrays.files
                                   if not name.startswith("optimizer/")})
    for name in ("newest.npz", "previous.npz"):
        os.remove(runs.file("a", name))
    before = files_of("checkpoints/a")["best.npz"]
    assert "--start-from a" in refusal(runs("a", 2))
    assert files_of("checkpoints/a")["best.npz"] == before


def test_nothing_is_begun_where_the_disk_does_not_tell_what_there_is(tmp_path,
                                                                     monkeypatch):
    whole = os.stat

    def fail(path, *args, **kwargs):
        if str(path).endswith("newest.npz"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return whole(path, *args, **kwargs)
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(OSError, match="newest.npz"):
        load_newest(str(tmp_path), {})

    def unlistable(path):
        raise OSError(errno.EACCES, "Permission denied", path)
    monkeypatch.setattr(os, "listdir", unlistable)
    with pytest.raises(OSError, match="Permission denied"):
        run_files.is_begun(str(tmp_path))


def test_first_checkpoint_has_none_before_it(tmp_path):
    from test_train import model_and_optimizer
    rotate_checkpoint(str(tmp_path), variables_of(*model_and_optimizer(1, steps=1)),
                      Progress([], 1, 1., 2, 3., 4))
    assert os.listdir(str(tmp_path)) == ["newest.npz"]


def test_calibration_is_copied_whole(tmp_path):
    (tmp_path / "calibration.npz").write_bytes(b"statistics")
    (tmp_path / "run").mkdir()
    keep_calibration(str(tmp_path), str(tmp_path / "run"))
    assert files_of(tmp_path / "run") == {"calibration.npz": b"statistics"}
