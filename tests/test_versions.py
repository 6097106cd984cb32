"""What one version of TensorFlow writes, another reads, with the same results.

The tests run in one environment and call a second one: OTHER_PYTHON=/path/to/python, or
the .venv-2 of `make env-2`, with TensorFlow 2 beside .venv's 1.10. Without one they are
skipped.
"""
import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from captioning import inception
from commands import ROOT, command
from runtime.tf import start, tf

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(scope="module")
def other():
    """The second environment's Python."""
    named = os.environ.get("OTHER_PYTHON")
    if named:
        return named
    for name in (".venv-2", ".venv"):
        python = os.path.join(ROOT, name, "bin", "python")
        if os.path.exists(python) and not os.path.samefile(
                os.path.join(ROOT, name), sys.prefix):
            return python
    pytest.skip("no second environment: `make env-2`, or OTHER_PYTHON=/path/to/python")


def call(python, function, *arguments):
    """Run a function of this file in the other environment; returns its stdout."""
    return subprocess.check_output(
        [python, "-c", f"import sys; sys.path[:0] = [{ROOT!r}, {HERE!r}]; "
         f"import test_versions; test_versions.{function}(*sys.argv[1:])", *arguments],
        universal_newlines=True)


def print_version():
    print("version", tf.__version__)


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ and tf.__version__[0] == "2",
                    reason="TensorFlow 2 is the baseline here: no Python 3.6")
def test_the_other_environment_has_another_version(other):
    assert call(other, "print_version").split()[-1] != tf.__version__


# --- checkpoints ----------------------------------------------------------------------

class Copy:
    """A folder with a copy of the pipeline's run and its drawn data."""

    def __init__(self, folder, source, python):
        self.folder, self.python = folder, python
        os.symlink(str(source / "drawn"), str(folder / "drawn"))
        shutil.copytree(str(source / "checkpoints"), str(folder / "checkpoints"))

    def go_on(self):
        """Train one epoch more than the run's 12; returns its row of the log."""
        command(self.folder, "train.py", "--data", "drawn", "--run", "toy", "--epochs",
                "13", "--units", "128", "--embedding", "128", "--batch-size", "16",
                "--dropout", "0", python=self.python)
        path = self.folder / "checkpoints" / "toy" / "log.csv"
        with open(str(path), newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 13
        return rows[-1]

    def captions(self, split, checkpoint):
        """Decode with one of the checkpoints: words (I, T) and alphas (I, T, L)."""
        command(self.folder, "evaluate.py", "--run", "toy", "--split", split,
                "--allow-seen", "--checkpoint", checkpoint, python=self.python)
        path = self.folder / "checkpoints" / "toy" / f"attention_{split}.npz"
        with np.load(str(path)) as arrays:
            return arrays["words"], arrays["alphas"]


@pytest.fixture(scope="module")
def copies(outputs, other, tmp_path_factory):
    """Two copies of the run, one for each environment."""
    return [Copy(tmp_path_factory.mktemp(name), outputs["folder"], python)
            for name, python in (("here", sys.executable), ("there", other))]


def assert_same_captions(copies, split, checkpoint, images):
    (words, alphas), (others, theirs) = [copy.captions(split, checkpoint)
                                         for copy in copies]
    assert len(words) == images and len(np.unique(words, axis=0)) > images / 3
    np.testing.assert_array_equal(words, others)
    assert np.ptp(alphas, axis=2).max() > .05  # the maps are not flat
    assert abs(alphas - theirs).max() < 1e-4


def test_checkpoint_gives_the_same_captions_and_attention_in_both(copies):
    assert_same_captions(copies, "train", "newest", 30)


def test_run_goes_on_in_the_other_and_comes_back(copies):
    here, there = copies
    mine, theirs = here.go_on(), there.go_on()
    for name in ("train_loss", "val_loss"):
        assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=1e-3)
    # Now the other version has written the newest checkpoint
    for name in ("settings.json", "newest.npz"):
        folders = [copy.folder / "checkpoints" / "toy" for copy in copies]
        shutil.copy(str(folders[1] / name), str(folders[0] / name))
    assert_same_captions(copies, "val", "newest", 8)


# --- features -------------------------------------------------------------------------

def assert_same_features(a, b):
    assert a.shape == b.shape and a.std() > .01
    assert abs(a - b).max() < 1e-3 * abs(b).max()
    assert abs(a - b[::-1]).max() > .1 * abs(b).max()  # pictures differ by more


def test_untrained_network_gives_the_same_features(outputs, copies):
    found = []
    for copy in copies:
        features = copy.folder / "features"
        features.mkdir()
        shutil.copy(str(outputs["folder"] / "drawn" / "features" / "calibration.npz"),
                    str(features))
        command(copy.folder, "extract_features.py", "--data", "drawn", "--weights",
                "random", "--splits", "val", "--dtype", "float32", "--features",
                "features", python=copy.python)
        found.append(np.stack([np.load(str(path)) for path in
                               sorted((features / "val").glob("*.npy"))]))
    assert len(found[0]) == 8
    assert_same_features(*found)


def write_weights(path):
    """Write random weights of InceptionV3 to an .h5 file in Keras 2's format."""
    tf.keras.backend.clear_session()
    model = inception.architecture()
    random = np.random.RandomState(5)
    inception.random_weights(model, 5)
    for norm in inception._in_order(model, tf.keras.layers.BatchNormalization):
        beta, mean, variance = norm.get_weights()
        norm.set_weights([random.normal(0, .3, beta.shape),
                          random.normal(0, .3, mean.shape),
                          random.uniform(.7, 1.5, variance.shape)])
    if tf.__version__.startswith("1."):
        model.save_weights(path)  # like the file that Keras downloads
    else:
        model.save(path)          # Keras 3 has no other way to that format


def write_features(weights, path):
    """Write the features of two pictures, made with the weights in a file."""
    small = np.random.RandomState(6).randint(0, 256, (2, 5, 5, 3))
    pixels = np.kron(small, np.ones((1, 60, 60, 1)))[:, :299, :299].astype(np.uint8)
    np.save(path, inception.inception(weights)(tf.constant(pixels)).numpy())


def answer(folder):
    """The other environment's part of the next test: read weights, write others."""
    start()
    write_features(os.path.join(folder, "here.h5"),
                   os.path.join(folder, "here_read_there.npy"))
    write_weights(os.path.join(folder, "there.h5"))


def test_weights_file_of_either_gives_the_same_features_in_both(other, tmp_path):
    folder = str(tmp_path)

    def path(name):
        return os.path.join(folder, name)

    write_weights(path("here.h5"))
    call(other, "answer", folder)
    write_features(path("here.h5"), path("here.npy"))
    write_features(path("there.h5"), path("there.npy"))
    for name in ("here_read_there.npy", "there.npy"):
        assert_same_features(np.load(path(name)), np.load(path("here.npy")))
