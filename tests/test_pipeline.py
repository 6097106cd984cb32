"""The six steps as real commands on drawn scenes: they must learn, not just end.

And what one version of TensorFlow writes, another reads, with the same results: these
tests run in one environment and call a second one, OTHER_PYTHON=/path/to/python, or the
.venv-2 of `make env-2`, with TensorFlow 2 beside .venv's 1.10. Without one they are
skipped.
"""
import csv
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from captioning import inception
from commands import ROOT, command, environment, printed, words
from demo.draw_scenes import COLOURS, SHAPES
from demo.score_scenes import names_all, read_scenes
from runtime.tf import start, tf

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = ("download_coco.py", "extract_features.py", "tokenize_captions.py",
           "train.py", "evaluate.py", "plot_attention.py", "demo.draw_scenes",
           "demo.score_scenes", "analysis.pointing", "analysis.report")


def main_of(script):
    """The main() of a script or module."""
    return importlib.import_module(script.replace(".py", "")).main


def test_each_step_introduces_itself_and_names_the_next(outputs):
    for number, script in enumerate(SCRIPTS[1:6], 2):
        assert outputs[script].startswith(f"[{number}/6] ")
        if number < 6:
            assert f"python {SCRIPTS[number]}" in outputs[script]
    assert f"TensorFlow {tf.__version__} on " in outputs["train.py"]


def test_training_loss_falls_far_below_what_word_counts_would_give(outputs):
    folder = outputs["folder"]
    with open(str(folder / "drawn" / "tokens" / "vocabulary.tsv")) as file:
        counts = np.array([int(line.split("\t")[2]) for line in list(file)[3:]])
    shares = counts[counts > 0] / counts.sum()
    by_counts = -(shares * np.log(shares)).sum()   # the entropy of the word counts
    log = (folder / "checkpoints" / "toy" / "log.csv").read_text().splitlines()
    last = dict(zip(log[0].split(","), log[-1].split(",")))
    assert len(log) == 13 and float(last["train_loss"]) < .3 * by_counts
    assert float(last["val_loss"]) < .8 * by_counts


def test_captions_of_trained_scenes_name_what_is_in_them(outputs):
    folder = outputs["folder"]
    with open(str(folder / "drawn" / "annotations" / "instances_train.json")) as file:
        content = json.load(file)
    objects = {}
    for item in content["annotations"]:
        objects.setdefault(item["image_id"], []).append(
            (item["colour"], SHAPES[item["category_id"] - 1]))
    path = folder / "checkpoints" / "toy" / "captions_train_toy_results.json"
    results = json.loads(path.read_text())
    right = [names_all(r["caption"], objects[r["image_id"]]) for r in results]
    assert len(right) == 30 and np.mean(right) > .7  # by chance: about 1 in 50


def test_new_scenes_are_described_in_sentences_of_the_same_kind(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    results = json.loads((folder / "captions_val_toy_results.json").read_text())
    assert len(results) == 8
    for result in results:
        words = result["caption"].split()
        assert set(words) & set(COLOURS) and set(words) & set(SHAPES)
    scores = json.loads((folder / "scores_val.json").read_text())["scores"]
    assert 20 < scores["BLEU-4"] <= 100


def test_figures_of_the_demo_are_printed_with_their_baselines(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    found = json.loads((folder / "scenes_val.json").read_text())
    objects = read_scenes(str(outputs["folder"] / "drawn"))
    assert found["scenes"] == len(objects) == 8
    assert f"{found['right']:.0%} of 8 new scenes" in outputs["demo.score_scenes"]
    found = json.loads((folder / "pointing_val.json").read_text())
    assert found["words"] > 4 and set(found["categories"]) <= set(SHAPES)
    for name in ("peak", "mass"):
        for baseline in ("", "_uniform", "_centre"):
            value, low, high = found[name + baseline]
            assert 0 <= low <= value <= high <= 1
            assert f"{100 * value:.1f}" in outputs["analysis.pointing"]


def test_report_of_the_run_is_one_page_with_all_its_captions(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    assert "open checkpoints/toy/report_val.html" in outputs["analysis.report"]
    assert (folder / "report_val.html").read_text(encoding="utf-8").count(
        "<article") == 8


def test_figures_of_the_split_and_of_a_picture_of_ones_own_are_drawn(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy" / "attention"
    told = json.loads((folder / "own_captions.json").read_text())
    assert list(told) == ["drawn/val/scene_000001.png"]
    names = sorted(name for name in os.listdir(str(folder)) if name.endswith(".png"))
    assert len(names) == 3 and names[0] == "own_scene_000001.png"
    for name in names:
        with Image.open(str(folder / name)) as figure:
            pixels = np.asarray(figure.convert("RGB"), int)
        # The picture, in full light, and maps that are darker in most places
        shade = pixels.reshape(-1, 3).mean(axis=1)
        assert min(pixels.shape[:2]) > 100 and (shade < 150).mean() > .1


def test_scenes_drawn_anew_with_fewer_are_refused_in_one_line(outputs, tmp_path):
    shutil.copytree(str(outputs["folder"] / "checkpoints"),
                    str(tmp_path / "checkpoints"))
    name = os.path.join("drawn", "annotations", "instances_val.json")
    found = json.loads((outputs["folder"] / name).read_text())
    gone = found["images"].pop()["id"]
    found["annotations"] = [box for box in found["annotations"]
                            if box["image_id"] != gone]
    os.makedirs(str(tmp_path / "drawn" / "annotations"))
    (tmp_path / name).write_text(json.dumps(found))
    done = subprocess.run(
        [sys.executable, *words("demo.score_scenes"), "--run", "toy"],
        cwd=str(tmp_path), env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert f"has captions of scene {gone}, " in done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_does_and_every_default(script, tmp_path, monkeypatch,
                                                        capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [words(script)[-1], "--help"])
    status, out, _ = printed(capsys, main_of(script))
    name = script if script.endswith(".py") else "-m " + script
    assert status == 0
    assert f"python {name} " in out and ("--data" in out or "--run" in out)
    assert "(default:" in out
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_flags_are_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [words(script)[-1], "--fast"])
    status, _, errors = printed(capsys, main_of(script))
    assert status == 2 and "--fast" in errors and len(errors.splitlines()) == 1
    assert os.listdir(str(tmp_path)) == []


# --- another version of TensorFlow ----------------------------------------------------

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
         f"import test_pipeline; test_pipeline.{function}(*sys.argv[1:])", *arguments],
        universal_newlines=True)


def print_version():
    print("version", tf.__version__)


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ and tf.__version__[0] == "2",
                    reason="TensorFlow 2 is the baseline here: no Python 3.6")
def test_the_other_environment_has_another_version(other):
    assert call(other, "print_version").split()[-1] != tf.__version__


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
