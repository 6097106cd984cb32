"""What each flag of evaluate.py and of the analyses does: measured, and by hand."""
import collections
import json
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import evaluate
import plot_attention
from analysis import deletion, pointing
from analysis.deletion import log_probs
from captioning import decode, figures
from captioning.consensus import training_rewards
from captioning.decode import Caption, sample_files
from captioning.decoded import read_decoded
from captioning.features import feature_path, read_features, write_features
from captioning.neighbours import training_neighbours
from captioning.rewards import Rewards
from captioning.runs import read_run
from captioning.tokens import END, UNK, read_references
from commands import printed
from model import Captioner, likeliest
from runtime.atomic import write_json
from test_neighbours import cosine
from test_rewards import naive_f_mean
from test_wiring import write_chain
from worlds import SIZES, SMALL, TRAIN, VAL, VOCABULARY, Runs

CAT, DOG, RED, ON, A = range(4, 9)


def strengthen(path, seed):
    """Give a checkpoint strong random weights."""
    random = np.random.RandomState(seed)
    with np.load(path) as file:
        arrays = {name: random.normal(0, 1, file[name].shape).astype("f4")
                  if "/" not in name and file[name].dtype == np.float32 else file[name]
                  for name in file.files}
    arrays["b_o"][END] = 2
    np.savez(path, **arrays)


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    """The runs a and b; their best and newest weights are four different ones."""
    runs = Runs(tmp_path, monkeypatch, capsys, SMALL["shape"])
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Java takes seconds
    assert runs("a", 1, "--guidance", "0")[0] == 0
    shutil.copytree("checkpoints/a", "checkpoints/b")
    for seed, path in enumerate(("a/best", "a/newest", "b/best", "b/newest")):
        strengthen(f"checkpoints/{path}.npz", seed)
    return runs


def run_command(runs, module, *flags):
    """Run it; it must succeed."""
    runs.monkeypatch.setattr(module, "start", lambda: None)
    runs.monkeypatch.setattr("sys.argv", [module.__name__, *flags])
    assert printed(runs.capsys, module.main)[0] == 0


def read_json(name):
    with open(os.path.join("checkpoints", "a", name)) as file:
        return json.load(file)


def decoded_of(name="val"):
    """The Decoded of the run a, and each image's features and words."""
    decoded = read_decoded("checkpoints/a", name, VOCABULARY)
    return decoded, [(read_features(feature_path("data/features", str(image))),
                      words[:steps]) for image, words, steps in
                     zip(decoded.images, decoded.words, decoded.steps)]


# --- which models write ---------------------------------------------------------------

@pytest.mark.parametrize("models, checkpoint, look, flags", [
    ("a", "newest", None, ("--run", "a", "--checkpoint", "newest")),
    ("a", "best", likeliest, ("--run", "a", "--look", "likeliest", "--beam", "2")),
    ("ab", "best", None, ("--ensemble", "a", "b", "--beam", "2")),
    ("ab", "newest", likeliest, ("--ensemble", "a", "b", "--checkpoint", "newest",
                                 "--look", "likeliest"))])
def test_words_have_the_mean_probability_of_the_models_that_were_asked_for(
        models, checkpoint, look, flags, runs):
    run_command(runs, evaluate, *flags)
    decoded, images = decoded_of("val" if models == "a" else "val_with_b")
    assert decoded.images.tolist() == VAL.images.tolist()
    for (features, words), found in zip(images, decoded.log_probs):
        p = []
        for run in models:
            model = read_run(run, checkpoint).model
            model.look = look
            p.append(np.exp(log_probs(model, features[None], words[None])[0]))
        np.testing.assert_allclose(np.exp(found[:len(words)]), np.mean(p, axis=0),
                                   atol=1e-4)


# --- samples --------------------------------------------------------------------------

def first_words():
    """The share of each first word of the samples; "" where there is none."""
    counts = collections.Counter((caption.split() + [""])[0] for group in read_json(
        "samples_val.json")["captions"].values() for caption in group)
    return {word: count / sum(counts.values()) for word, count in counts.items()}


@pytest.mark.parametrize("flags, logits, temperature", [
    ((), {"cat": 1, "dog": .8}, 1.),
    (("--temperature", ".1"), {"cat": 1, "dog": .8}, .1),
    (("--top-p", ".6"), {"cat": 1, "dog": .8}, 1.), (("--top-p", ".5"), {"cat": 1}, 1.),
    (("--allow-unk",), {"UNK": 3, "cat": 1, "dog": .8}, 1.)], ids=str)
def test_flags_of_samples_shape_what_is_drawn(flags, logits, temperature, runs):
    """The first words: UNK, or cat, or a bit more rarely dog; see write_chain."""
    write_chain("checkpoints/a/best.npz")
    run_command(runs, evaluate, "--run", "a", "--sample", "150", "--max-steps", "1",
                *flags)
    total = sum(math.exp(x / temperature) for x in logits.values())
    assert first_words() == pytest.approx({
        word: math.exp(x / temperature) / total for word, x in logits.items()}, abs=.06)


def test_samples_are_as_many_and_as_long_as_was_asked_for(runs):
    write_chain("checkpoints/a/best.npz")
    run_command(runs, evaluate, "--run", "a", "--sample", "50", "--max-steps", "3")
    groups = read_json("samples_val.json")["captions"]
    assert [len(group) for group in groups.values()] == [50] * 4
    assert max(len(caption.split()) for group in groups.values()
               for caption in group) == 3


def test_images_that_look_the_same_get_samples_of_their_own(tmp_path):
    maps = np.random.RandomState(0).uniform(size=SMALL["shape"]).astype(np.float16)
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy", "d/a.npy")]
    for path in paths:
        write_features(path, maps)
    model = Captioner(SIZES._replace(features=5))

    def drawn(paths, seed):
        return [[tuple(c.words) for c in group] for group in sample_files(
            model, paths, 3, 4, 7, seed)]
    first = drawn(paths, 0)
    assert len({str(group) for group in first}) == 3 and first[0] == first[3]
    assert drawn(paths[1:2], 0) == first[1:2] != drawn(paths[1:2], 1)
    assert all(len(group) == 4 for group in first)


# --- consensus ------------------------------------------------------------------------

def write_these(runs, captions, *flags):
    """Have evaluate.py decode these Captions of every image."""
    runs.monkeypatch.setattr(decode, "beam_search", lambda model, features, **_: [
        list(captions) for _ in features])
    run_command(runs, evaluate, "--run", "a", *flags)
    runs.monkeypatch.undo()
    runs.monkeypatch.chdir(runs.path)


def caption(words, log_prob, alphas=None):
    """A Caption of these words, with the log probability of all together."""
    T = len(words)
    return Caption(words, np.full(T, log_prob / T, np.float32),
                   np.full((T, 6), 1 / 6, np.float32) if alphas is None else alphas,
                   None)


@pytest.mark.parametrize("consensus, short, long", [
    ("beam", [CAT, END], [DOG, RED, ON, A, DOG, END]),
    # That no training image's captions have: only what the model thinks counts
    ("neighbours", [UNK, END], [UNK, UNK, UNK, UNK, UNK, END])])
@pytest.mark.parametrize("power", [0, 1])
def test_length_power_counts_in_the_consensus(power, consensus, short, long, runs):
    """By the power of 1: -2 / 2 words is less than -3 / 6."""
    write_these(runs, [caption(short, -2), caption(long, -3)], "--beam", "2",
                "--consensus", consensus, "--length-power", str(power), "--n-best", "1")
    for _, words in decoded_of()[1]:
        assert words.tolist() == (long if power else short)
    assert [len(beam) for beam in read_json("nbest_val.json").values()] == [1] * 4


def test_consensus_pays_thrice_the_f_mean_beside_cider_d(runs):
    references = read_references("data/tokens", "train")
    groups = [references[i] for i in TRAIN.image_ids]
    words = [ON, RED, DOG]
    found = training_rewards(read_run("a"))([words] * 6, np.arange(6))
    plain = Rewards(VOCABULARY, groups)([words] * 6, np.arange(6))
    expected = [3 * naive_f_mean(["on", "red", "dog"], None, group) for group in groups]
    np.testing.assert_allclose(found - plain, expected, rtol=1e-6)
    assert len(set(expected)) > 3


def test_neighbours_are_numbered_as_in_the_tokens_where_features_are_missing(runs):
    os.remove(feature_path(runs.features, TRAIN.images[1]))
    with open(feature_path(runs.features, TRAIN.images[3]), "w"):
        pass
    images = [VAL.images[0], TRAIN.images[4], VAL.images[2]]
    paths = [feature_path(runs.features, image) for image in images]

    def mean(path):
        return np.load(path).astype(float).mean(axis=(0, 1))
    there = {i: mean(feature_path(runs.features, TRAIN.images[i]))
             for i in (0, 2, 4, 5)}
    centre = np.mean(list(there.values()), axis=0)
    near, shares = training_neighbours(read_run("a"), images, paths)
    assert near.shape == shares.shape == (3, 4)
    for path, row, share, itself in zip(paths, near, shares, (None, 4, None)):
        x = mean(path) - centre
        cosines = {i: cosine(x, y - centre) for i, y in there.items() if i != itself}
        total = sum(math.exp(10 * value) for value in cosines.values())
        for i, part in zip(row, share):
            expected = math.exp(10 * cosines[i]) / total if i in cosines else 0
            assert part == pytest.approx(expected, rel=1e-3)
        assert row[share > 0].tolist() == sorted(cosines, key=cosines.get)[::-1]


# --- where the cells lie --------------------------------------------------------------

WORDS = [A, DOG, END]


@pytest.fixture
def looked(runs):
    """Captions "a dog": the second word looks at the first cell most, whose middle
    alone is in the dog's box. It would not be if the cells tiled the picture.
    """
    alphas = np.array([[.1, .1, .1, .1, .1, .5], [.4, .05, .3, .15, .06, .04],
                       [.2, .2, .2, .2, .1, .1]], np.float32)
    write_these(runs, [caption(WORDS, -2, alphas)])
    os.mkdir("data/annotations")
    write_json("data/annotations/instances_val.json", {
        "images": [{"id": i, "width": 100, "height": 50} for i in range(4)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [45, 15, 10, 10]}
                        for i in range(4)]})
    return runs, alphas


def test_pointing_counts_the_cells_where_the_network_looks(looked):
    runs, _ = looked
    run_command(runs, pointing, "--run", "a")
    found = read_json("pointing_val.json")
    assert found["peak"][0] == 1
    assert found["peak_uniform"][0] == pytest.approx(1 / 6, abs=1e-4)


@pytest.mark.parametrize("cells", [1, 3])
def test_deletion_takes_as_many_cells_and_those_where_the_network_looks(cells, looked):
    runs, alphas = looked
    run_command(runs, deletion, "--run", "a", "--cells", str(cells))
    found, model = read_json("deletion_val.json"), read_run("a").model
    falls = {"most": [], "boxes": [], "outside": []}
    for features, words in decoded_of()[1]:
        def log_p(deleted):
            keep = np.ones((1, 3, 6))
            keep[0, 1, deleted] = 0
            return log_probs(model, features[None], words[None], keep)[0, 1]
        for what, deleted in (("most", np.argsort(-alphas[1])[:cells]), ("boxes", [0]),
                              ("outside", [1, 2, 3, 4, 5])):
            falls[what].append(log_p([]) - log_p(deleted))
    for what, values in falls.items():
        assert found["at_the_word"][what][0] == pytest.approx(np.mean(values), abs=1e-3)
    each = [entry["drops"]["1"] for entry in found["of_each_word"].values()]
    assert each == pytest.approx(falls["most"], abs=2e-3)
    assert abs(np.subtract(falls["most"], falls["boxes"])).max() > 1e-2 or cells == 1


def test_figure_is_brightest_where_the_network_looked(runs):
    alphas = np.zeros((3, 6), np.float32)
    alphas[:, 1] = 1  # the middle column's middle is at 65 % of the width
    write_these(runs, [caption(WORDS, -2, alphas)])
    os.makedirs("data/val")
    for image in VAL.images:
        Image.new("RGB", (200, 100)).save(os.path.join("data", str(image)))
    heats, real = [], figures.overlay
    runs.monkeypatch.setattr(figures, "overlay", lambda picture, heat, *rest: (
        heats.append(heat), real(picture, heat, *rest))[1])
    run_command(runs, plot_attention, "--run", "a", "--count", "1")
    assert len(heats) == 2
    for heat in heats:
        width = heat.shape[1]
        assert heat.max(axis=0).argmax() / width == pytest.approx(.65, abs=.03)
