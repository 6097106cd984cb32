"""Images' mean vectors: a features file is read once, and again after a change."""
import builtins
import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from captioning import mean_vectors as module
from captioning.features import feature_path, record_path
from captioning.mean_vectors import mean_vectors, means_path
from commands import environment
from methods import localiser
from runtime.atomic import write_json
from worlds import SMALL, TRAIN, caption_batches, write_features

SHAPE = SMALL["shape"]
IMAGES = TRAIN.images.tolist()


@pytest.fixture
def features(tmp_path):
    """A folder with the features of TRAIN's images."""
    folder = str(tmp_path / "features")
    write_features(folder, TRAIN, SHAPE)
    write_json(record_path(folder), SMALL)
    return folder


@pytest.fixture
def read(monkeypatch):
    """A growing list of the images whose features are read."""
    found, real = [], module.read_features
    monkeypatch.setattr(module, "read_features", lambda path: (
        found.append(path), real(path))[1])
    return found


def paths(features, images):
    return [feature_path(features, image) for image in images]


def expected(features, images):
    """The mean vectors by a loop over the cells, in float64."""
    found = []
    for path in paths(features, images):
        cells = np.load(path).astype(float).reshape(-1, SHAPE[2])
        found.append(sum(cells) / len(cells))
    return np.array(found)


def test_it_is_the_mean_of_all_cells(features, capsys):
    found = mean_vectors(features, IMAGES, "train")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(features, IMAGES), rtol=1e-6)
    assert "mean vectors of train" in capsys.readouterr().err


def test_second_reader_reads_no_features_and_has_the_same_numbers(features, read,
                                                                  capsys):
    some = [IMAGES[4], IMAGES[1]]
    first = mean_vectors(features, some, "train")
    assert sorted(read) == sorted(paths(features, some))
    whole = mean_vectors(features, IMAGES, "train")
    assert sorted(read) == sorted(paths(features, IMAGES))  # each once
    capsys.readouterr()
    again = mean_vectors(features, IMAGES[::-1], "train")
    assert len(read) == len(IMAGES) and capsys.readouterr().err == ""
    assert (again[::-1] == whole).all() and (whole[[4, 1]] == first).all()
    assert sorted(os.listdir(features)) == ["extractor.json", "means_train.npz",
                                            "train"]


def test_localiser_leaves_them_to_the_next_one(features, read):
    captions = caption_batches(TRAIN, features)
    localiser.fit_to(captions, 9, features)
    assert sorted(read) == sorted(captions.paths)
    mean_vectors(features, IMAGES, "train")
    assert len(read) == len(IMAGES)


def test_file_that_changed_is_read_again_and_no_other(features, read):
    before = mean_vectors(features, IMAGES, "train")
    del read[:]
    path = feature_path(features, IMAGES[2])
    np.save(path, np.load(path) + 1)
    now = mean_vectors(features, IMAGES, "train")
    assert read == [path]
    np.testing.assert_allclose(now, expected(features, IMAGES), rtol=1e-6)
    assert (now != before).all(axis=1).tolist() == [i == 2 for i in range(len(IMAGES))]


def test_file_that_is_gone_is_forgotten(features, read):
    mean_vectors(features, IMAGES, "train")
    path = feature_path(features, IMAGES[0])
    os.rename(path, path + ".kept")
    np.save(feature_path(features, "train/new.jpg"), np.ones(SHAPE, np.float16))
    mean_vectors(features, [*IMAGES[1:], "train/new.jpg"], "train")
    os.rename(path + ".kept", path)  # as it was, with the same time
    del read[:]
    mean_vectors(features, IMAGES, "train")
    assert read == [path]


def test_images_of_another_network_are_all_read_again(features, read):
    mean_vectors(features, IMAGES, "train")
    write_json(record_path(features), dict(SMALL, network="other"))
    mean_vectors(features, IMAGES, "train")
    assert len(read) == 2 * len(IMAGES)


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def flip(path):
    """Spoil the middle of the means, which the archive holds uncompressed."""
    with np.load(path) as arrays:
        row = arrays["means"][3].tobytes()
    with open(path, "r+b") as file:
        file.seek(file.read().index(row) + 1)
        file.write(b"\xff\xff")


def lacks_one(path):
    with np.load(path) as arrays:
        np.savez(path, **dict(arrays, means=arrays["means"][1:]))


def empty(path):
    os.truncate(path, 0)


@pytest.mark.fault("damaged file")
@pytest.mark.parametrize("spoil", [cut, flip, lacks_one, empty])
def test_damaged_file_is_made_anew(spoil, features, read):
    before = mean_vectors(features, IMAGES, "train")
    spoil(means_path(features, "train"))
    assert (mean_vectors(features, IMAGES, "train") == before).all()
    assert len(read) == 2 * len(IMAGES)
    assert (mean_vectors(features, IMAGES, "train") == before).all()
    assert len(read) == 2 * len(IMAGES)


def refuse(monkeypatch, number, ending=""):
    """Make the system refuse to write files with such a name."""
    real = builtins.open

    def refusing(path, mode="r", *args, **kwargs):
        if str(path).endswith(ending) and set(mode) & set("wa+"):
            raise OSError(number, os.strerror(number), path)
        return real(path, mode, *args, **kwargs)
    monkeypatch.setattr(builtins, "open", refusing)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_folder_that_cannot_be_written_serves_as_well(number, features, read,
                                                      monkeypatch, capsys):
    with monkeypatch.context() as patch:
        refuse(patch, number)
        for _ in range(2):
            found = mean_vectors(features, IMAGES, "train")
    np.testing.assert_allclose(found, expected(features, IMAGES), rtol=1e-6)
    assert sorted(os.listdir(features)) == ["extractor.json", "train"]
    assert len(read) == 2 * len(IMAGES)
    assert "warning" not in capsys.readouterr().err


def test_full_disk_stops_nobody(features, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        refuse(patch, errno.ENOSPC, ".partial")
        found = mean_vectors(features, IMAGES, "train")
    np.testing.assert_allclose(found, expected(features, IMAGES), rtol=1e-6)
    assert sorted(os.listdir(features)) == ["extractor.json", "train"]
    assert "means_train.npz: cannot be kept (No space left" in capsys.readouterr().err


def test_nothing_is_kept_of_a_half(features, read, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "mean_vector", stop)
        mean_vectors(features, IMAGES, "train")
    assert sorted(os.listdir(features)) == ["extractor.json", "train"]
    mean_vectors(features, IMAGES, "train")
    assert len(read) == len(IMAGES)


OTHER = """import os, sys, time
from captioning import mean_vectors as module
features, name, *images = sys.argv[1:]
count, real = [], module.read_features
def read(path):
    count.append(path)
    open(name + ".begun", "w").close()
    while not os.path.exists("go"):
        time.sleep(.01)
    return real(path)
module.read_features = read
print(len(module.mean_vectors(features, images, "train")), len(count))
"""


def test_process_that_comes_second_waits_for_the_first(features, tmp_path):
    def start(name):
        return subprocess.Popen([sys.executable, "-c", OTHER, features, name, *IMAGES],
                                env=environment(), cwd=str(tmp_path),
                                stdout=subprocess.PIPE, encoding="utf-8")
    first = start("first")
    while not (tmp_path / "first.begun").exists():
        assert first.poll() is None
        time.sleep(.01)
    second = start("second")
    time.sleep(3)  # long enough to start reading, if it did not wait
    (tmp_path / "go").write_text("")
    assert [process.communicate()[0].split() for process in (first, second)] == [
        ["6", "6"], ["6", "0"]]
