"""What each flag of evaluate.py and the analyses does: measured, and by hand."""
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
from analysis import deletion, pointing, report
from analysis.deletion import Name, kept_cells, log_probs
from analysis.permutation import random_for, replace_alpha
from captioning import bootstrap, decode, figures, scores
from methods.consensus import training_rewards
from captioning.decode import Caption, sample_files
from captioning.decoded import read_decoded
from captioning.features import feature_path, read_features, write_features
from captioning.maps import entropy
from captioning.models import load_run
from methods.neighbours import training_neighbours
from methods.rewards import Rewards
from captioning.runs import read_run
from captioning.tokens import END, UNK, read_references
from commands import printed
from model import Captioner
from runtime.atomic import write_json
from test_neighbours import cosine
from test_report import data_of
from test_rewards import naive_f_mean
from test_wiring import write_chain
from worlds import SIZES, SMALL, TRAIN, VAL, VOCABULARY, Runs

CAT, DOG, RED, ON, A = range(4, 9)


def strengthen(path, seed):
    """Give a checkpoint large random weights."""
    random = np.random.RandomState(seed)
    with np.load(path) as file:
        arrays = {name: random.normal(0, 1, file[name].shape).astype("f4")
                  if "/" not in name and file[name].dtype == np.float32 else file[name]
                  for name in file.files}
    arrays["b_o"][END] = 2
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for the runs that `runs` trains once."""
    return str(tmp_path_factory.mktemp("kept") / "checkpoints")


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys, kept):
    """The runs a and b, whose best and newest weights all differ."""
    runs = Runs(tmp_path, monkeypatch, capsys, SMALL["shape"])
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Java takes seconds
    if not os.path.exists(kept):
        assert runs("a", 1, "--guidance", "0")[0] == 0
        shutil.copytree("checkpoints/a", "checkpoints/b")
        for seed, path in enumerate(("a/best", "a/newest", "b/best", "b/newest")):
            strengthen(f"checkpoints/{path}.npz", seed)
        shutil.copytree("checkpoints", kept)
    else:
        shutil.copytree(kept, "checkpoints")
    return runs


def run_command(runs, module, *flags):
    """Run a command, which must succeed."""
    runs.monkeypatch.setattr(module, "start", lambda: None, raising=False)
    runs.monkeypatch.setattr("sys.argv", [module.__name__, *flags])
    assert printed(runs.capsys, module.main)[0] == 0


def read_json(name):
    with open(os.path.join("checkpoints", "a", name)) as file:
        return json.load(file)


def decoded_of(name="val", features="data/features"):
    """The Decoded of run a, and each image's features and words."""
    decoded = read_decoded("checkpoints/a", name, VOCABULARY)
    return decoded, [(read_features(feature_path(features, str(image))),
                      words[:steps]) for image, words, steps in
                     zip(decoded.images, decoded.words, decoded.steps)]


# --- which models write ---------------------------------------------------------------

@pytest.mark.parametrize("models, checkpoint, look, flags", [
    ("a", "newest", None, ("--run", "a", "--checkpoint", "newest")),
    ("a", "best", "likeliest", ("--run", "a", "--look", "likeliest", "--beam", "2")),
    ("ab", "best", None, ("--ensemble", "a", "b", "--beam", "2")),
    ("ab", "newest", "likeliest", ("--ensemble", "a", "b", "--checkpoint", "newest",
                                   "--look", "likeliest"))])
def test_words_have_the_mean_probability_of_the_models_that_were_asked_for(
        models, checkpoint, look, flags, runs):
    run_command(runs, evaluate, *flags)
    decoded, images = decoded_of("val" if models == "a" else "val_with_b")
    assert decoded.images.tolist() == VAL.images.tolist()
    for (features, words), found in zip(images, decoded.log_probs):
        p = []
        for run in models:
            model = load_run(run, checkpoint, look=look).model
            p.append(np.exp(log_probs(model, features[None], words[None])[0]))
        np.testing.assert_allclose(np.exp(found[:len(words)]), np.mean(p, axis=0),
                                   atol=1e-4)


# --- samples --------------------------------------------------------------------------

def first_words():
    """The share of each first word among the samples; "" for an empty caption."""
    counts = collections.Counter((caption.split() + [""])[0] for group in read_json(
        "samples_val.json")["captions"].values() for caption in group)
    return {word: count / sum(counts.values()) for word, count in counts.items()}


@pytest.mark.parametrize("flags, logits, temperature", [
    ((), {"cat": 1, "dog": .8}, 1.),
    (("--temperature", ".1"), {"cat": 1, "dog": .8}, .1),
    (("--top-p", ".6"), {"cat": 1, "dog": .8}, 1.),
    (("--top-p", ".5"), {"cat": 1}, 1.)], ids=str)
def test_flags_of_samples_shape_what_is_drawn(flags, logits, temperature, runs):
    """Samples begin with UNK, cat, or a little less often dog; see write_chain."""
    write_chain("checkpoints/a/best.npz")
    run_command(runs, evaluate, "--run", "a", "--sample", "150", "--max-steps", "1",
                *flags)
    total = sum(math.exp(x / temperature) for x in logits.values())
    assert first_words() == pytest.approx({
        word: math.exp(x / temperature) / total for word, x in logits.items()}, abs=.06)


def test_samples_are_as_many_and_as_long_as_was_asked_for(runs):
    write_chain("checkpoints/a/best.npz")
    with np.load("checkpoints/a/best.npz") as file:
        arrays = dict(file)
    arrays["L_o"][0, A] = 1  # "a" is a caption that people have written
    np.savez("checkpoints/a/best.npz", **arrays)
    run_command(runs, evaluate, "--run", "a", "--sample", "50", "--max-steps", "3")
    found = read_json("samples_val.json")
    assert [len(group) for group in found["captions"].values()] == [50] * 4
    captions = [caption for group in found["captions"].values() for caption in group]
    assert max(len(caption.split()) for caption in captions) == 3
    seen = {caption for group in read_references("data/tokens", "train").values()
            for caption in group}
    assert "a" in seen and "a" in captions
    assert found["diversity"]["captions never seen in training, %"] == pytest.approx(
        np.mean([100 * (caption not in seen) for caption in captions]))


def test_images_that_look_the_same_get_samples_of_their_own(tmp_path):
    maps = np.random.RandomState(0).uniform(size=SMALL["shape"]).astype(np.float16)
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy", "d/a.npy")]
    for path in paths:
        write_features(path, maps)
    model = Captioner(SIZES._replace(features=5))

    def drawn(paths, seed):
        return [[tuple(c.words) for c in group] for group in sample_files(
            decode.Decoder(model), paths, 3, 4, 7, seed)]
    first = drawn(paths, 0)
    assert len({str(group) for group in first}) == 3 and first[0] == first[3]
    assert drawn(paths[1:2], 0) == first[1:2] != drawn(paths[1:2], 1)
    assert all(len(group) == 4 for group in first)


# --- consensus ------------------------------------------------------------------------

def write_these(runs, captions, *flags):
    """Make evaluate.py decode these Captions for every image."""
    with runs.monkeypatch.context() as patch:
        patch.setattr(decode.Decoder, "search", lambda self, features, **_: [
            list(captions) for _ in features])
        run_command(runs, evaluate, "--run", "a", *flags)


def caption(words, log_prob, alphas=None):
    """A Caption of these words, with their total log probability."""
    T = len(words)
    return Caption(words, np.full(T, log_prob / T, np.float32),
                   np.full((T, 6), 1 / 6, np.float32) if alphas is None else alphas,
                   None)


@pytest.mark.parametrize("consensus, short, long", [
    ("beam", [CAT, END], [DOG, RED, ON, A, DOG, END]),
    # No training caption has it, so only the model's own score counts
    ("neighbours", [UNK, END], [UNK, UNK, UNK, UNK, UNK, END])])
@pytest.mark.parametrize("power", [0, 1])
def test_length_power_counts_in_the_consensus(power, consensus, short, long, runs):
    """With power 1: -2 / 2 words is less than -3 / 6."""
    write_these(runs, [caption(short, -2), caption(long, -3)], "--beam", "2",
                "--consensus", consensus, "--length-power", str(power), "--n-best", "1")
    for _, words in decoded_of()[1]:
        assert words.tolist() == (long if power else short)
    for beam in read_json("nbest_val.json").values():
        assert [found["log_prob"] for found in beam] == [-3 if power else -2]


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
    near, shares = training_neighbours(read_run("a"), images, "some", runs.features)
    assert near.shape == shares.shape == (3, 4)
    for path, row, share, itself in zip(paths, near, shares, (None, 4, None)):
        x = mean(path) - centre
        cosines = {i: cosine(x, y - centre) for i, y in there.items() if i != itself}
        total = sum(math.exp(10 * value) for value in cosines.values())
        for i, part in zip(row, share):
            expected = math.exp(10 * cosines[i]) / total if i in cosines else 0
            assert part == pytest.approx(expected, rel=1e-3)
        assert row[share > 0].tolist() == sorted(cosines, key=cosines.get)[::-1]


# --- scores ---------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [(), ("--spice",)])
def test_spice_is_scored_where_it_is_asked_for(flags, runs):
    asked, real = [], scores.score
    runs.monkeypatch.setattr(scores, "score", lambda made, true, spice=False, **how: (
        asked.append(spice), real(made, true, **how))[1])
    run_command(runs, evaluate, "--run", "a", *flags)
    assert asked == [bool(flags)]


def test_images_that_nobody_has_described_are_captioned_and_not_scored(runs):
    references = read_references("data/tokens", "val")
    del references["2"]
    write_json("data/tokens/references_val.json", references)
    passed, real = [0], decode.Decoder.search

    def search(*arguments, **more):  # it takes five seconds
        passed[0] += 5
        return real(*arguments, **more)
    with runs.monkeypatch.context() as patch:
        patch.setattr(decode.Decoder, "search", search)
        patch.setattr("time.time", lambda: 1e9 + passed[0])
        run_command(runs, evaluate, "--run", "a")
    summary = read_json("scores_val.json")
    assert decoded_of()[0].image_ids.tolist() == ["0", "1", "2", "3"]
    assert summary["image_ids"] == ["0", "1", "3"] and summary["epoch"] == 1
    assert summary["images_per_second"] == .8
    run_command(runs, evaluate, "--run", "a", "--sample", "2")
    assert sorted(read_json("samples_val.json")["captions"]) == ["0", "1", "2", "3"]


def test_features_that_are_not_finite_are_not_captioned(runs):
    array = np.load(feature_path(runs.features, VAL.images[2]))
    array[1, 0, 3] = np.nan
    np.save(feature_path(runs.features, VAL.images[2]), array)
    for flags in ((), ("--sample", "2")):
        runs.monkeypatch.setattr(evaluate, "start", lambda: None)
        runs.monkeypatch.setattr("sys.argv", ["evaluate.py", "--run", "a", *flags])
        status, _, errors = printed(runs.capsys, evaluate.main)
        line = errors.splitlines()[-1]
        assert status == 2 and "val/2.jpg" in line and "not finite" in line


# --- where the cells lie --------------------------------------------------------------

WORDS = [A, DOG, END]


ALPHAS = np.array([[.1, .1, .1, .1, .1, .5], [.4, .05, .3, .15, .06, .04],
                   [.2, .2, .2, .2, .1, .1]], np.float32)


def look(runs, tokens, *flags):
    """Captions "a dog", whose second word looks mostly at the first cell.

    Only that cell's middle lies in the dog's box; if the cells tiled the picture, it
    would not. The features are not those of the training.
    """
    split = os.path.dirname(tokens.images[0])
    shutil.copytree("data/features", "other")
    for path in [feature_path("other", image) for image in tokens.images]:
        np.save(path, 3 - np.load(path))
    write_these(runs, [caption(WORDS, -2, ALPHAS)], "--features", "other", *flags)
    os.mkdir("data/annotations")
    ids = range(len(tokens.images))
    write_json(f"data/annotations/instances_{split}.json", {
        "images": [{"id": i, "width": 100, "height": 50} for i in ids],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [45, 15, 10, 10]}
                        for i in ids]})


@pytest.fixture
def looked(runs):
    """As in `look`, with validation's tokens in another folder."""
    shutil.copytree("data/tokens", "elsewhere/tokens")
    look(runs, VAL, "--tokens", "elsewhere/tokens")
    os.symlink(os.path.abspath("data/annotations"), "elsewhere/annotations")
    return runs


@pytest.fixture
def seeds(monkeypatch):
    """The seeds of all bootstraps."""
    found, real = set(), bootstrap.resample
    monkeypatch.setattr(bootstrap, "resample", lambda count, seed: (
        found.add(seed), real(count, seed))[1])
    return found


def test_pointing_counts_the_cells_where_the_network_looks(looked, seeds):
    shutil.move("data/annotations", "boxes/annotations")
    run_command(looked, pointing, "--run", "a", "--seed", "7", "--data", "boxes")
    found = read_json("pointing_val.json")
    assert found["peak"][0] == 1 and seeds == {7}
    assert found["peak_uniform"][0] == pytest.approx(1 / 6, abs=1e-4)


def assert_falls(split, cells, seed):
    """Check the drops in deletion.py's file, word by word; returns how many."""
    found, model = read_json(f"deletion_{split}.json"), load_run("a").model
    falls, random = collections.defaultdict(list), np.random.RandomState(seed)
    first = Name(0, 1, np.arange(6) == 0)
    for features, words in decoded_of(split, "other")[1]:
        def log_p(kept):
            keep = np.ones((1, 3, 6))
            keep[0, 1] = kept
            return log_probs(model, features[None], words[None], keep)[0, 1]
        kept = {"most": [~np.isin(np.arange(6), np.argsort(-ALPHAS[1])[:cells])],
                "boxes": [np.arange(6) > 0], "outside": [np.arange(6) == 0],
                "random": kept_cells(first, ALPHAS[1], cells, random)["random"]}
        for what, each in kept.items():
            falls[what].append(log_p(1) - np.mean([log_p(keep) for keep in each]))
    for what, values in falls.items():
        assert found["at_the_word"][what][0] == pytest.approx(np.mean(values), abs=1e-3)
    each = [entry["drops"]["1"] for entry in found["of_each_word"].values()]
    assert each == pytest.approx(falls["most"], abs=2e-3)
    assert abs(np.subtract(falls["most"], falls["boxes"])).max() > 1e-2 or cells == 1
    assert_replaced(found, split, seed)
    return len(each)


def assert_replaced(found, split, seed):
    """The figures of other weights are those of the second words, and of all."""
    model, (decoded, images) = load_run("a").model, decoded_of(split, "other")
    each = np.array([replace_alpha(model, features, words, random_for(image, seed))
                     for image, (features, words) in zip(decoded.images.tolist(),
                                                         images)])  # (images, 3, 2, 2)
    assert (found["all_words"], found["all_images"]) == (3 * len(each), len(each))
    for key, values in (("replaced", each[:, 1]), ("replaced_of_all", each)):
        for i, what in enumerate(("permuted", "even")):
            for j, figure in enumerate(("fall", "distance")):
                mean, low, high = found[key][what][figure]
                assert mean == pytest.approx(values[..., i, j].mean(), abs=1e-3)
                assert low < mean < high and abs(mean) > 1e-2


@pytest.mark.parametrize("cells", [1, 3])
def test_deletion_takes_so_many_cells_where_the_network_looks(cells, looked, seeds):
    run_command(looked, deletion, "--run", "a", "--cells", str(cells), "--seed", "7")
    assert assert_falls("val", cells, 7) == 4 and seeds == {7}


def test_analyses_are_of_the_split_that_was_asked_for(runs):
    look(runs, TRAIN, "--split", "train", "--allow-seen")
    run_command(runs, deletion, "--run", "a", "--split", "train", "--cells", "2")
    run_command(runs, pointing, "--run", "a", "--split", "train")
    assert assert_falls("train", 2, 0) == 6
    assert read_json("pointing_train.json")["words"] == 6


def test_report_knows_where_the_network_looks(looked):
    draw_pictures()
    run_command(looked, report, "--run", "a")
    with open("checkpoints/a/report_val.html", encoding="utf-8") as file:
        for card in data_of(file.read()):
            found, = card["runs"]
            assert found["grid"] == [[.4, .2, 2], [.5, .15, 3]]
            assert found["entropies"] == [round(100 * value) for value in entropy(
                ALPHAS[:2])]


def draw_pictures():
    """Write the validation images, all black."""
    os.makedirs("data/val")
    for image in VAL.images:
        Image.new("RGB", (200, 100)).save(os.path.join("data", str(image)))


def test_figure_is_brightest_where_the_network_looked(runs):
    alphas = np.zeros((3, 6), np.float32)
    alphas[:, 1] = 1  # the middle column's centre is at 65 % of the width
    write_these(runs, [caption(WORDS, -2, alphas)])
    draw_pictures()
    heats, real = [], figures.overlay
    runs.monkeypatch.setattr(figures, "overlay", lambda picture, heat, *rest: (
        heats.append(heat), real(picture, heat, *rest))[1])
    run_command(runs, plot_attention, "--run", "a", "--count", "1")
    assert len(heats) == 2
    for heat in heats:
        width = heat.shape[1]
        assert heat.max(axis=0).argmax() / width == pytest.approx(.65, abs=.03)
