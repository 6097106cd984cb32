"""Small data sets and runs that several test files use."""
import hashlib
import json
import os
import shutil
import sys

import numpy as np

import download_coco
import evaluate
import extract_features
import plot_attention
import tokenize_captions
import train
from analysis import pointing, report
from captioning import inception
from captioning.batches import CaptionBatches
from captioning.features import SHAPE, feature_path, find_features, record_path
from captioning.tokens import (END, START, Tokens, Vocabulary, references_path,
                               write_tokens, write_vocabulary)
from commands import exit_status, printed
from demo import draw_scenes
from model import Sizes
from runtime.atomic import write_json
from runtime.tf import tf
from tools import ship_run

WORDS = ["cat", "dog", "red", "on", "a"]
VOCABULARY = Vocabulary(WORDS, [0, 9, 9, 0, 5, 4, 3, 2, 1])
SIZES = Sizes(vocabulary=len(VOCABULARY), features=SHAPE[-1], annotation=3,
              embedding=5, hidden=4, attention=6)


def tokens_of(folder, captions):
    """Tokens of random captions; `captions` lists their lengths, image by image."""
    random = np.random.RandomState(len(captions))
    lengths = np.array([n + 1 for group in captions for n in group], np.int32)
    words = np.zeros((len(lengths), lengths.max() + 1), np.int32)
    for row, n in zip(words, lengths):
        row[:n + 1] = [START] + list(random.randint(4, len(VOCABULARY), n - 1)) + [END]
    image_of = np.repeat(np.arange(len(captions)), [len(g) for g in captions])
    images = np.array([f"{folder}/{i}.jpg" for i in range(len(captions))])
    return Tokens(words, lengths, image_of.astype(np.int32), images,
                  np.array([str(i) for i in range(len(captions))]),
                  VOCABULARY.digest(), np.ones(len(captions), bool))


# Another network's record: the middles of its cells are at 40 and 60 % of the height,
# and at 50, 65 and 80 % of the width
SMALL = {"network": "small", "side": 100, "shape": (2, 3, 5),
         "grid": [[40, 20], [50, 15]]}
TRAIN = tokens_of("train", [(5, 2, 3), (4,), (1, 5), (3, 3, 2), (7,), (2,)])
VAL = tokens_of("val", [(4, 2), (6,), (3,), (1,)])


def write_features(folder, tokens, shape=SHAPE):
    """Write random float16 features of every image of some tokens."""
    random = np.random.RandomState(len(tokens.images))
    os.makedirs(os.path.join(folder, os.path.dirname(tokens.images[0])))
    for name in tokens.images:
        np.save(feature_path(folder, name),
                random.uniform(0, 2, shape).astype(np.float16))


def caption_batches(tokens, features):
    """CaptionBatches of these Tokens; features: the folder of step 2."""
    return CaptionBatches(tokens, *find_features(features, tokens.images, "these"))


def write_data(tmp_path, shape=SHAPE):
    """Write tokens and features of TRAIN and VAL to data/; returns the features folder.

    shape: that of the features; other than SHAPE, another network has made them.
    """
    features, tokens = str(tmp_path / "data" / "features"), tmp_path / "data" / "tokens"
    tokens.mkdir(parents=True)
    write_vocabulary(str(tokens), VOCABULARY)
    for split in (TRAIN, VAL):
        name = os.path.dirname(split.images[0])
        write_tokens(str(tokens), name, split)
        write_features(features, split, shape)
        write_json(references_path(str(tokens), name), {
            i: [VOCABULARY.decode(row[1:]) for row in
                split.words[split.image_of == int(i)]] for i in split.image_ids})
    if shape != SHAPE:
        write_json(record_path(features), dict(SMALL, shape=shape))
    return features


class Runs:
    """A tokenized data set on disk, with train.py run inside this process."""

    def __init__(self, tmp_path, monkeypatch, capsys, shape=SHAPE):
        self.path, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
        self.features = write_data(tmp_path, shape)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(train, "start", lambda: None)

    def __call__(self, run, epochs, *flags):
        """Train: (exit status, stdout, stderr)."""
        self.monkeypatch.setattr(sys, "argv", [
            "train.py", "--data", "data", "--run", run, "--epochs", str(epochs),
            "--embedding", "7", "--units", "11", "--batch-size", "4",
            *(() if "--select" in flags else ("--select", "loss")), *flags])
        return printed(self.capsys, train.main)

    def file(self, run, name):
        return os.path.join("checkpoints", run, name)

    def arrays(self, run, name="newest"):
        """All arrays of a checkpoint, and its progress without times."""
        with np.load(self.file(run, name + ".npz"), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != "progress"}
            progress = json.loads(str(file["progress"]))
        for key in ("epoch", "train_loss", "train_reward", "val_loss"):
            values = [row[key] for row in progress["history"] if key in row]
            if values or key != "train_reward":
                arrays[key] = np.array(values)
        for key in ("batch", "total", "words"):
            arrays[key] = np.array(progress[key])
        return arrays


def noise(width, height, seed=0):
    """A picture of noise, uint8 (height, width, 3)."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(
        np.uint8)


def some_alphas(count, locations=64, seed=1):
    """Random attention maps of `count` words, float32 (count, locations)."""
    return np.random.RandomState(seed).dirichlet(np.ones(locations), count).astype(
        np.float32)


def refusal(result):
    """The one line that a run ended with."""
    status, _, errors = result
    assert status == 2, errors
    assert "Traceback" not in errors and errors.count("train.py: ") == 1
    assert errors.endswith("\n") and errors.splitlines()[-1].startswith("train.py: ")
    return errors.splitlines()[-1]


def files_of(folder):
    """All files in a folder, {name: bytes}."""
    found = {}
    for here, _, names in os.walk(str(folder)):
        for name in names:
            path = os.path.join(here, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, str(folder))] = file.read()
    return found


# --- a data set that has gone through all steps ---------------------------------------

MAIN = {"demo.draw_scenes": draw_scenes.main, "download_coco.py": download_coco.main,
        "extract_features.py": extract_features.main,
        "tokenize_captions.py": tokenize_captions.main, "train.py": train.main,
        "evaluate.py": evaluate.main, "plot_attention.py": plot_attention.main,
        "analysis.report": report.main, "analysis.pointing": pointing.main,
        "tools.ship_run": ship_run.main}
QUICK = ("--epochs", "1", "--embedding", "3", "--units", "4", "--batch-size", "8",
         "--select", "loss")
COMMANDS = {  # each case's command, without the case's flags
    "demo.draw_scenes": ("--data", "other", "--train", "2", "--val", "1"),
    "download_coco.py": ("--data", "other", "--mirror", "http://127.0.0.1:1"),
    "extract_features.py": ("--weights", "random"), "tokenize_captions.py": (),
    "train.py": ("--run", "a", *QUICK), "evaluate.py": ("--run", "a"),
    "plot_attention.py": ("--run", "a"),
    "analysis.report": ("--run", "a")}


def shown(script):
    """The file name of a script, with which its messages begin."""
    return script if script.endswith(".py") else script.split(".")[-1] + ".py"


class World:
    """A folder with all files, and the commands run inside this process."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = str(folder), monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setattr(shutil, "which", lambda name: None)  # Java takes seconds
        monkeypatch.setattr(download_coco, "PAUSES", (0,))
        for module in (extract_features, train, evaluate):
            monkeypatch.setattr(module, "start", lambda: None)

    def __call__(self, script, *flags):
        """Run a command. Returns its exit status."""
        self.monkeypatch.setattr(sys, "argv", [shown(script), *flags])
        return exit_status(MAIN[script])

    def files(self):
        """All files and folders, {path: digest, or None for a folder}."""
        found = {}
        for folder, _, names in os.walk("."):
            found[folder] = None
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[path] = hashlib.md5(file.read()).hexdigest()
        return found


def fake_build(made, *args):
    """A quick network that takes any picture."""
    if made["weights"] not in ("random", "imagenet"):
        return inception.trained(made["weights"])
    return lambda pixels: tf.zeros([int(pixels.shape[0])] + list(made["shape"])) + .5


def without_network(patch):
    patch.setattr(extract_features, "build", fake_build)


def refused(world, capsys, script, *flags):
    """Run a command that must refuse. Returns its one line."""
    capsys.readouterr()
    status = world(script, *COMMANDS[script], *flags)
    out, errors = capsys.readouterr()
    # A progress bar draws over its own line; warnings come before the end.
    said = [line for line in errors.replace("\r", "\n").splitlines()
            if line and "/s]" not in line and not line.startswith("warning: ")]
    assert "Traceback" not in out + errors
    assert status == 2 and len(said) == 1, (status, errors)
    assert said[0].startswith(shown(script) + ": ")
    return said[0]
