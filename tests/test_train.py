"""What step 4 promises: batches, checkpoints, runs that resume as if never stopped."""
import contextlib
import csv
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

import train
from captioning import batches, checkpoints
from captioning.batches import tensors
from captioning.decode import Decoder
from captioning.features import SHAPE, feature_path
from captioning.options import CONSTANTS
from captioning.models import load_run
from captioning.resuming import settings_to_resume
from captioning.runs import read_split
from captioning.tokens import END, START, write_tokens
from methods.hard_attention import Reinforce
from methods.label_smoothing import LabelSmoothing
from model import Batch, Captioner, DoublyStochastic, Masks, Parcel, loss
from runtime import cli
from runtime.tf import AdamOptimizer, RMSPropOptimizer, tf, use
from worlds import (SIZES, TRAIN, VAL, VOCABULARY, Runs, caption_batches, refusal,
                    write_features)


def model_and_optimizer(seed=0, kind=AdamOptimizer, steps=0, slots=True):
    """A small model, its optimizer, and some steps of random gradients."""
    model, optimizer = Captioner(SIZES, seed=seed), kind(.01)
    if slots:
        checkpoints.create_optimizer_variables(model, optimizer)
    random = np.random.RandomState(seed)
    for _ in range(steps):
        optimizer.apply_gradients(
            [(tf.constant(random.normal(size=w.shape.as_list()).astype(np.float32)), w)
             for w in model.weights.values()])
    return model, optimizer


def values(variables):
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def equal(a, b):
    assert sorted(a) == sorted(b)
    return all(a[k].dtype == b[k].dtype and (a[k] == b[k]).all() for k in a)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("features"))
    write_features(folder, TRAIN)
    write_features(folder, VAL)
    return folder


# --- batches --------------------------------------------------------------------------

@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 50])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_caption_is_in_one_batch_with_others_of_like_length(batch_size, seed,
                                                                  features):
    captions = caption_batches(TRAIN, features)
    order = captions.epoch(batch_size,
                           None if seed is None else np.random.RandomState(seed))
    assert sorted(np.concatenate(order)) == list(range(11))
    assert sorted(map(len, order), reverse=True) == [
        min(batch_size, 11 - i) for i in range(0, 11, batch_size)]
    found = [TRAIN.lengths[numbers].tolist() for numbers in order]
    pure = [batch for batch in found if batch[0] == batch[-1]]
    mixed = sorted((b for b in found if b[0] != b[-1]), key=lambda b: -b[-1])
    lengths, counts = np.unique(TRAIN.lengths, return_counts=True)
    for length, count in zip(lengths, counts):  # as many of one length as possible
        assert sum(len(b) == batch_size and b[0] == length
                   for b in pure) >= count // batch_size
    for batch in mixed:
        assert batch == sorted(batch, reverse=True)   # the longest first
    for longer, shorter in zip(mixed, mixed[1:]):
        assert longer[-1] >= shorter[0]               # lengths do not overlap


def test_batches_change_with_the_generator_and_come_in_no_order_of_length(features):
    captions = caption_batches(TRAIN, features)
    first, again, other = (
        [numbers.tolist() for numbers in captions.epoch(2, np.random.RandomState(s))]
        for s in (3, 3, 6))
    assert first == again != other
    assert sorted(map(sorted, first)) != sorted(map(sorted, other))
    longest = [TRAIN.lengths[numbers[0]] for numbers in first]
    assert longest != sorted(longest, reverse=True)


def test_batch_holds_the_features_of_the_image_of_each_caption(features):
    captions = caption_batches(TRAIN, features)
    for numbers in captions.epoch(4, np.random.RandomState(0)):
        batch = captions.load(numbers)
        assert batch.parcel.features.dtype == np.float16
        alike = len(set(TRAIN.lengths[numbers])) == 1
        assert len(batch.parcel.features) == (
            len(numbers) if alike else len(set(TRAIN.image_of[numbers])))
        assert batch.parcel.words.shape == (len(numbers), batch.lengths.max() + 1)
        for row, number in enumerate(numbers):
            name = TRAIN.images[TRAIN.image_of[number]]
            np.testing.assert_array_equal(
                batch.parcel.features[batch.image_of[row]],
                np.load(feature_path(features, name)).reshape(64, SHAPE[-1]))
            n = TRAIN.lengths[number]
            assert batch.lengths[row] == n
            assert batch.parcel.words[row].tolist()[:n + 1] == TRAIN.words[
                number, :n + 1].tolist()
            assert (batch.parcel.words[row, n + 1:] == 0).all()


def test_batches_read_ahead_come_in_the_order_asked_for(features):
    captions = caption_batches(TRAIN, features)
    order = captions.epoch(1, np.random.RandomState(0))
    for numbers, batch in zip(order, captions.batches(order)):
        np.testing.assert_array_equal(batch.parcel.words,
                                      captions.load(numbers).parcel.words)
    assert len(list(captions.batches(order))) == 11


def test_captions_of_images_without_features_are_left_out_and_counted(features,
                                                                      tmp_path):
    folder = str(tmp_path)
    write_features(folder, TRAIN)
    for i in (0, 4):
        os.remove(feature_path(folder, TRAIN.images[i]))
    captions = caption_batches(TRAIN, folder)
    assert captions.missing == 2 and len(captions.captions) == 11 - 3 - 1
    assert set(TRAIN.image_of[np.concatenate(captions.epoch(3))]) == {1, 2, 3, 5}
    with pytest.raises(cli.UserError, match="run extract_features.py"):
        caption_batches(VAL, folder)


def test_validation_weighs_words_and_not_batches(features):
    captions = caption_batches(VAL, features)
    model, _ = model_and_optimizer(seed=5, steps=20)
    total = words = 0
    for number in range(len(VAL.words)):  # one caption at a time
        batch = tensors(captions.load(np.array([number])))
        nats = loss(model, batch)[1].numpy() * VAL.lengths[number]
        total, words = total + nats, words + VAL.lengths[number]
    for batch_size in (1, 2, 3, 64):
        assert abs(train.validate(model, captions, batch_size) - total / words) < 1e-4


# --- checkpoints ----------------------------------------------------------------------

HISTORY = [{"epoch": 1, "val_loss": 2.5}, {"epoch": 2, "val_loss": 2.25}]
INSIDE = checkpoints.Progress(HISTORY, 3, 1.25, 17, .5, 99)


def save(path, model, optimizer):
    variables = checkpoints.variables_of(model, optimizer)
    checkpoints.save_checkpoint(path, variables, INSIDE)


@pytest.mark.parametrize("kind", [AdamOptimizer, RMSPropOptimizer])
def test_checkpoint_brings_back_weights_optimizer_and_history(kind, tmp_path):
    path = str(tmp_path / "a.npz")
    model, optimizer = model_and_optimizer(1, kind, steps=3)
    save(path, model, optimizer)
    other, other_optimizer = model_and_optimizer(2, kind, steps=1)
    before = values(checkpoints.optimizer_variables(other, other_optimizer))
    assert checkpoints.load_checkpoint(
        path, checkpoints.variables_of(other, other_optimizer)) == INSIDE
    assert equal(values(other.weights), values(model.weights))
    slots = values(checkpoints.optimizer_variables(model, optimizer))
    assert equal(values(checkpoints.optimizer_variables(other, other_optimizer)), slots)
    assert not any((slots[name] == before[name]).all() for name in slots
                   if not name.startswith("momentum"))  # all zero
    assert len(slots) >= 2 * len(model.weights)
    # The next step is the same
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.apply_gradients([(tf.ones_like(w), w) for w in m.weights.values()])
    assert equal(values(other.weights), values(model.weights))


def test_checkpoint_holds_plain_arrays_and_no_pickles(tmp_path):
    path = str(tmp_path / "a.npz")
    model, optimizer = model_and_optimizer(steps=1)
    save(path, model, optimizer)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert all(array.dtype.kind in "fuU" for array in arrays.values())
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(arrays[name], weight.numpy())
    assert json.loads(str(arrays["progress"]))["history"] == HISTORY


def test_baseline_of_hard_attention_is_kept_and_read_where_it_was_before(tmp_path):
    """Earlier releases kept it with the progress."""
    path = str(tmp_path / "a.npz")
    model, optimizer = model_and_optimizer(steps=1)
    kept, other = Reinforce(1., 0.), Reinforce(1., 0.)
    kept.baseline.assign(-2.5)
    variables = checkpoints.variables_of(model, optimizer, [kept])
    checkpoints.save_checkpoint(path, variables, INSIDE)
    targets = checkpoints.variables_of(model, optimizer, [other])
    assert checkpoints.load_checkpoint(path, targets) == INSIDE
    assert other.baseline.numpy() == -2.5
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    del arrays["optimizer/baseline"]
    arrays["progress"] = np.array(json.dumps(dict(INSIDE._asdict(), baseline=-1.5)))
    np.savez(path, **arrays)
    assert checkpoints.load_checkpoint(path, targets) == INSIDE
    assert other.baseline.numpy() == -1.5


def test_model_alone_can_be_loaded(tmp_path):
    path = str(tmp_path / "a.npz")
    model, optimizer = model_and_optimizer(1, steps=1)
    save(path, model, optimizer)
    other = Captioner(SIZES, seed=2)
    assert checkpoints.load_checkpoint(path, other.weights) == INSIDE
    assert equal(values(other.weights), values(model.weights))


def checkpoint_bytes(tmp_path):
    path = str(tmp_path / "whole.npz")
    save(path, *model_and_optimizer(1, steps=1))
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("keep", [0, 3, .2, .9, .999])
def test_cut_off_checkpoint_is_refused_and_changes_nothing(keep, tmp_path):
    content = checkpoint_bytes(tmp_path)
    path = str(tmp_path / "a.npz")
    with open(path, "wb") as file:
        file.write(content[:int(keep * len(content)) if keep < 1 else keep])
    model, optimizer = model_and_optimizer(2)
    before = values(model.weights)
    with pytest.raises(cli.UserError) as error:
        checkpoints.load_checkpoint(
            path, checkpoints.variables_of(model, optimizer))
    assert str(error.value).startswith(path)
    assert equal(values(model.weights), before)


def test_pickled_checkpoint_is_refused_and_never_run(tmp_path):
    path, touched = str(tmp_path / "a.npz"), str(tmp_path / "touched")

    class Evil:
        def __reduce__(self):
            return open, (touched, "w")

    model, _ = model_and_optimizer()
    np.savez(path, **dict(values(model.weights), progress=np.array(Evil())))
    with pytest.raises(cli.UserError):
        checkpoints.load_checkpoint(path, model.weights)
    assert not os.path.exists(touched)


def test_checkpoint_of_other_sizes_is_refused_and_changes_nothing(tmp_path):
    path = str(tmp_path / "a.npz")
    save(path, *model_and_optimizer(1))
    other = Captioner(SIZES._replace(hidden=9), seed=2)
    before = values(other.weights)
    with pytest.raises(cli.UserError, match="this checkpoint is of another run"):
        checkpoints.load_checkpoint(path, other.weights)
    assert equal(values(other.weights), before)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(cli.UserError, match="no such checkpoint"):
        checkpoints.load_checkpoint(str(tmp_path / "a.npz"), Captioner(SIZES).weights)


@pytest.mark.parametrize("kind", [AdamOptimizer, RMSPropOptimizer])
def test_making_the_slots_changes_neither_weights_nor_the_first_steps(kind):
    prepared, optimizer = model_and_optimizer(1, kind)
    assert equal(values(prepared.weights), values(Captioner(SIZES, seed=1).weights))
    stepped, _ = model_and_optimizer(1, kind, steps=2)
    fresh, _ = model_and_optimizer(1, kind, steps=2, slots=False)
    assert equal(values(stepped.weights), values(fresh.weights))


# --- runs -----------------------------------------------------------------------------

@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def test_run_writes_what_its_help_lists(runs):
    status, out, _ = runs("a", 2)
    assert status == 0
    assert "train: 11 captions, 0 images without features left out" in out
    assert "python evaluate.py --run a\n" in out
    found = set(os.listdir(runs.file("a", "")))
    assert {n for n in found if not n.startswith("events")} == {
        "settings.json", "vocabulary.tsv", "split.json", "lineage.json", "newest.npz",
        "previous.npz", "best.npz", "log.csv", "loss.png", "localiser.npz"}
    assert any(name.startswith("events") for name in found)
    with open(runs.file("a", "log.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["val_loss"]) for row in rows] == runs.arrays("a")[
        "val_loss"].tolist()
    with Image.open(runs.file("a", "loss.png")) as image:
        assert image.format == "PNG" and min(image.size) > 200
    previous = runs.arrays("a", "previous")  # at the end of epoch 2, not yet validated
    assert previous["epoch"].tolist() == [1] and previous["words"] == sum(TRAIN.lengths)
    with open(runs.file("a", "settings.json")) as file:
        settings = json.load(file)
    assert settings["commit"] and settings["versions"]["tensorflow"] == tf.__version__
    assert settings["sizes"]["hidden"] == 11 and settings["run"] == "a"


def test_loss_falls_over_the_epochs(runs):
    assert runs("a", 6, "--learning-rate", ".02", "--dropout", "0")[0] == 0
    losses = runs.arrays("a")["train_loss"]
    assert losses[-1] < losses[0] - .2 and losses[-1] < np.log(len(VOCABULARY))


@pytest.mark.parametrize("flags", [(), ("--optimizer", "rmsprop", "--penalty", "1"),
                                   ("--without", "gate", "h0")])
def test_run_that_was_stopped_and_goes_on_is_the_run_that_was_never_stopped(flags,
                                                                            runs):
    assert runs("whole", 4, *flags)[0] == 0
    assert runs("parts", 2, *flags)[0] == 0
    half = runs.arrays("parts")
    status, out, _ = runs("parts", 4, *flags)
    assert status == 0 and "newest.npz, after epoch 2" in out
    assert "epoch 3:" in out and "epoch 2:" not in out
    assert equal(runs.arrays("parts"), runs.arrays("whole"))
    assert runs.arrays("whole")["epoch"].tolist() == [1, 2, 3, 4]
    assert not (half["U"] == runs.arrays("whole")["U"]).all()


def test_same_seed_gives_the_same_weights_and_another_seed_others(runs):
    for run, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert runs(run, 1, "--seed", seed)[0] == 0
    assert equal(runs.arrays("a"), runs.arrays("b"))
    assert not (runs.arrays("a")["W_1"] == runs.arrays("c")["W_1"]).any()


def test_best_checkpoint_is_that_of_the_lowest_validation_loss(runs):
    status, out, _ = runs("a", 7, "--learning-rate", ".1", "--dropout", "0",
                          "--seed", "2")
    assert status == 0
    losses = runs.arrays("a")["val_loss"].tolist()
    best = losses.index(min(losses)) + 1
    assert best < 7  # otherwise the newest would do
    assert runs.arrays("a", "best")["epoch"].tolist()[-1] == best
    assert f"best by loss: epoch {best}, validation loss {min(losses):.4f}" in out


def test_trained_run_is_read_back(runs):
    assert runs("a", 2)[0] == 0
    run = load_run("a", "newest")
    assert run.vocabulary.index_word == VOCABULARY.index_word
    assert run.history[-1]["epoch"] == 2 and run.model.sizes.hidden == 11
    arrays = runs.arrays("a")
    assert all((w.numpy() == arrays[name]).all()
               for name, w in run.model.weights.items())
    captions = caption_batches(VAL, runs.features)
    assert abs(train.validate(run.model, captions, 3)
               - run.history[-1]["val_loss"]) < 1e-4


@pytest.mark.parametrize("flags, word", [  # test_options.py tries all flags
    (("--units", "12"), "units"), (("--without", "gate"), "without"),
    (("--select", "cider"), "select")])
def test_other_settings_on_an_existing_run_are_refused(flags, word, runs):
    assert runs("a", 1)[0] == 0
    with open(runs.file("a", "settings.json")) as file:
        before = file.read()
    line = refusal(runs("a", 2, *flags))
    assert word in line and "--run" in line
    with open(runs.file("a", "settings.json")) as file:
        assert file.read() == before
    assert runs.arrays("a")["epoch"].tolist() == [1]


def test_precision_is_the_runs_and_needs_tensorflow_2(runs):
    result = runs("a", 1, "--precision", "mixed")
    try:
        if tf.__version__ < "2":
            assert "--precision mixed: needs TensorFlow 2" in refusal(result)
            return
        assert result[0] == 0 and np.isfinite(runs.arrays("a")["val_loss"]).all()
        assert tf.config.optimizer.get_experimental_options()["auto_mixed_precision"]
        assert "precision" in refusal(runs("a", 2, "--precision", "float32"))
        assert runs("a", 2)[0] == 0  # still mixed
        assert tf.config.optimizer.get_experimental_options()["auto_mixed_precision"]
    finally:
        if tf.__version__ >= "2":
            use()


def test_flags_that_are_left_out_on_resuming_are_those_of_the_run(runs):
    flags = ("--dropout", ".25", "--decay", ".5", "--average", ".9", "--penalty", ".5",
             "--without", "gate", "--label-smoothing", ".1")
    assert runs("whole", 2, *flags)[0] == 0 == runs("parts", 1, *flags)[0]
    status, out, errors = runs("parts", 2)
    assert status == 0 and "resuming from" in out, errors
    assert equal(runs.arrays("whole"), runs.arrays("parts"))
    with open(runs.file("parts", "settings.json")) as file:
        assert json.load(file)["penalty"] == .5
    assert settings_to_resume("checkpoints/parts")["epochs"] == 2


def test_run_that_has_no_checkpoint_begins_with_the_flags_that_are_given(runs):
    assert runs("a", 1, "--penalty", ".5")[0] == 0
    for name in ("newest", "best", "previous"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(runs.file("a", name + ".npz"))
    with open(runs.file("a", "newest.npz.partial"), "wb"):
        pass  # killed while writing the first one
    assert settings_to_resume("checkpoints/a") == {}
    assert runs("a", 1)[0] == 0
    with open(runs.file("a", "settings.json")) as file:
        assert json.load(file)["penalty"] == 0


def test_vocabulary_that_the_tokens_do_not_belong_to_is_refused(runs):
    path = os.path.join("data", "tokens", "vocabulary.tsv")
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("\tdog\t", "\tfox\t"))
    assert "does not belong to train.npz" in refusal(runs("a", 1))
    assert not os.path.exists("checkpoints")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_settings_are_refused_in_one_line(content, runs):
    assert runs("a", 1)[0] == 0
    with open(runs.file("a", "settings.json"), "w") as file:
        file.write(content)
    assert "settings.json" in refusal(runs("a", 2))
    with pytest.raises(cli.UserError, match="settings.json"):
        load_run("a")


def test_images_of_the_run_are_recorded_and_others_are_refused(runs):
    assert runs("a", 1)[0] == 0
    assert read_split(runs.file("a", "")) == {"train": TRAIN.images.tolist(),
                                              "val": VAL.images.tolist()}
    write_tokens(os.path.join("data", "tokens"), "val",
                 VAL._replace(images=VAL.images[::-1]))
    assert "other images" in refusal(runs("a", 2))


@pytest.mark.parametrize("content", [None, "{", "{}", '{"train": [1], "val": []}'])
def test_damaged_record_of_the_images_is_refused_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "split.json").write_text(content)
    with pytest.raises(cli.UserError, match="split.json: missing or damaged"):
        read_split(str(tmp_path))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".."])
def test_run_name_with_folders_is_refused(name, runs):
    assert "--run" in refusal(runs(name, 1))


def cut_off(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


@pytest.mark.fault("damaged checkpoint, passed over")
def test_damaged_newest_checkpoint_is_passed_over_for_the_previous(runs):
    assert runs("whole", 4)[0] == 0
    assert runs("a", 3)[0] == 0
    cut_off(runs.file("a", "newest.npz"))
    status, out, errors = runs("a", 4)
    assert status == 0 and "previous.npz, after epoch 2 and 3 batches" in out
    assert "warning: " in errors and "newest.npz" in errors
    assert equal(runs.arrays("a"), runs.arrays("whole"))


@pytest.mark.fault("damaged checkpoint, passed over")
def test_damaged_checkpoint_never_takes_the_place_of_the_sound_one(runs):
    assert runs("a", 2)[0] == 0
    cut_off(runs.file("a", "newest.npz"))
    assert runs("a", 2)[0] == 0  # from the previous one, the only one left
    assert runs.arrays("a")["epoch"].tolist() == [1, 2]
    assert runs.arrays("a", "previous")["epoch"].tolist() == [1]
    assert os.path.exists(runs.file("a", "newest.npz.bad"))


@pytest.mark.fault("damaged checkpoint, passed over")
def test_run_starts_anew_where_no_checkpoint_is_sound(runs):
    assert runs("whole", 2)[0] == 0
    assert runs("a", 2)[0] == 0
    for name in ("newest.npz", "previous.npz", "best.npz"):
        cut_off(runs.file("a", name))
    status, out, errors = runs("a", 2)
    assert status == 0 and "resuming" not in out and errors.count("warning: ") == 3
    assert equal(runs.arrays("a"), runs.arrays("whole"))


def test_nan_in_the_features_stops_the_run_and_keeps_the_checkpoint(runs):
    assert runs("a", 1)[0] == 0
    before = runs.arrays("a")
    path = feature_path(runs.features, TRAIN.images[2])
    array = np.load(path)
    array[3, 4, 5] = np.nan
    np.save(path, array)
    line = refusal(runs("a", 2))
    assert "epoch 2, batch " in line and "nan" in line
    assert path.split("data", 1)[1] + " is not finite" in line
    assert equal(runs.arrays("a"), before)
    assert np.isfinite(runs.arrays("a")["W_v"]).all()


def test_nan_in_the_validation_features_stops_the_run(runs):
    path = feature_path(runs.features, VAL.images[1])
    array = np.load(path)
    array[:] = np.nan
    np.save(path, array)
    line = refusal(runs("a", 1))
    assert "the validation loss is nan" in line
    assert path.split("data", 1)[1] + " is not finite" in line
    assert not os.path.exists(runs.file("a", "best.npz"))


def test_many_damaged_features_stop_the_run_and_are_listed(runs):
    path = feature_path(runs.features, TRAIN.images[2])
    cut_off(path)
    line = refusal(runs("a", 1))
    assert "1 of 6 features of train, more than --max-bad" in line
    with open(runs.file("a", "bad_features_train.txt")) as file:
        assert file.read().split("data", 1)[1] == path.split("data", 1)[1] + "\n"
    assert os.listdir(runs.file("a", "")) == ["bad_features_train.txt"]


def test_few_damaged_features_are_left_out_and_listed(runs, monkeypatch):
    path = feature_path(runs.features, TRAIN.images[2])
    whole = np.load(path)
    cut_off(path)
    monkeypatch.setitem(CONSTANTS, "max_bad", .2)
    status, out, errors = runs("a", 1)
    assert status == 0 and "train: 9 captions" in out
    assert "1 of 6 features of train are left out, listed in" in errors
    assert os.path.exists(runs.file("a", "bad_features_train.txt"))
    np.save(path, whole)
    status, out, _ = runs("a", 2)
    assert status == 0 and "train: 11 captions" in out
    assert not os.path.exists(runs.file("a", "bad_features_train.txt"))


def test_run_counts_the_images_without_features(runs):
    os.remove(feature_path(runs.features, TRAIN.images[0]))
    status, out, _ = runs("a", 1)
    assert status == 0
    assert "train: 8 captions, 1 images without features left out" in out


def test_missing_features_of_a_whole_split_are_refused(runs):
    for name in VAL.images:
        os.remove(feature_path(runs.features, name))
    assert "run extract_features.py" in refusal(runs("a", 1))


# --- the compiled step ----------------------------------------------------------------

def test_only_shapes_of_many_batches_are_compiled(features, monkeypatch):
    monkeypatch.setattr(batches, "WORTH_COMPILING", 3)
    captions = caption_batches(TRAIN, features)
    lengths, counts = np.unique(TRAIN.lengths, return_counts=True)
    shapes = {(1, n): count for n, count in zip(lengths, counts) if count >= 3}
    assert 0 < len(shapes) < len(lengths)
    assert captions.shapes(captions.epoch(1)) == shapes
    assert captions.shapes(captions.epoch(12)) == {}
    none = np.zeros(0, np.int64)
    assert captions.shapes(captions.epoch(1) + [none] * 9) == shapes


@pytest.mark.parametrize("dropout", [0., .5])
@pytest.mark.parametrize("terms", [[], [DoublyStochastic(.7)], [LabelSmoothing(.2)]])
def test_compiled_step_is_the_plain_step(dropout, terms):
    """The same losses and weights after three steps, to the last digits."""
    random = np.random.RandomState(8)
    words = random.randint(4, len(VOCABULARY), (5, 8)).astype(np.int32)
    words[:, 0], words[:, -1] = START, END
    lengths = np.full(5, 7, np.int32)
    found = []
    for shapes in ({}, {(5, 7): 1}, {(5, 7): batches.WORTH_XLA}):
        model, optimizer = model_and_optimizer(seed=2)
        trainer = train.Trainer(model, optimizer, terms)
        trainer.compile_for(shapes)
        noise = np.random.RandomState(9)
        losses = []
        for i in range(3):
            masks = Masks(*[
                (noise.random_sample(shape) >= dropout) / np.float32(1 - dropout)
                for shape in ((5, 1, 3), (35, 5), (35, 5)) if dropout])
            maps = np.random.RandomState(i).uniform(0, 2, (5, 64, SHAPE[-1]))
            losses.append(trainer.step(tensors(Batch(
                Parcel(maps.astype(np.float16), words, masks), lengths,
                np.arange(5, dtype=np.int32), np.arange(5))), 35))
        assert len(trainer.gradients.compiled) == len(shapes)
        found.append((losses, values(model.weights)))
    (expected, weights), *others = found
    for losses, compiled in others:
        assert losses == pytest.approx(expected, rel=1e-5)
        for name, value in weights.items():
            np.testing.assert_allclose(value, compiled[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("count, helps, xla", [
    (99, True, False), (100, True, True), (100, False, False)])
def test_xla_compiles_the_step_of_many_batches_where_it_helps(count, helps, xla,
                                                              monkeypatch):
    used = []

    def compiled(function, xla=False):
        used.append(xla)
        return function
    monkeypatch.setattr(batches, "compiled", compiled)
    monkeypatch.setattr(batches, "xla_helps_training", lambda: helps)
    double = batches.PerShape(lambda batch: 2 * batch.parcel.words)
    double.compile_for({(2, 3): count})
    words = np.ones((2, 4), np.int32)
    batch = Batch(Parcel(np.zeros((2, 1, 1)), words), np.array([3, 3]), np.arange(2),
                  np.arange(2))
    assert (double(batch) == 2 * words).all() and used == [xla]


def test_run_with_a_compiled_step_goes_on_as_if_never_stopped(runs, monkeypatch):
    monkeypatch.setattr(batches, "WORTH_COMPILING", 1)
    flags = ("--batch-size", "2")
    assert runs("whole", 3, *flags)[0] == 0
    assert runs("parts", 1, *flags)[0] == runs("parts", 3, *flags)[0] == 0
    assert equal(runs.arrays("parts"), runs.arrays("whole"))


# --- choosing the model ---------------------------------------------------------------

def test_best_checkpoint_is_that_of_the_highest_score(runs):
    status, out, _ = runs("a", 4, "--select", "cider", "--learning-rate", ".1",
                          "--dropout", "0")
    assert status == 0
    with open(runs.file("a", "log.csv")) as file:
        figures = [(float(row["val_cider"]), -float(row["val_loss"]))
                   for row in csv.DictReader(file)]  # ties go to the lower loss
    best = figures.index(max(figures)) + 1
    assert best < 4 and max(figures)[0] > min(figures)[0]  # else any epoch would do
    assert f"best by cider: epoch {best}, validation loss" in out
    assert runs.arrays("a", "best")["epoch"].tolist() == list(range(1, best + 1))


def test_validation_captions_are_decoded_and_scored_after_each_epoch(runs,
                                                                     monkeypatch):
    monkeypatch.setitem(CONSTANTS, "val_images", 3)
    status, out, _ = runs("a", 2, "--select", "cider")
    assert status == 0 and out.count(", CIDEr ") == 2
    run = load_run("a", "newest")
    captions = caption_batches(VAL, runs.features)
    references = {i: [VOCABULARY.decode(row[1:]) for row in
                      VAL.words[VAL.image_of == int(i)]] for i in VAL.image_ids}
    scorer = train.ValidationScorer(captions, references, VOCABULARY, 3, 0)
    assert len(scorer.ids) == len(set(scorer.ids)) == 3
    assert {k: run.history[-1][k] for k in (
        "val_bleu4", "val_cider", "val_entropy", "val_change")} == scorer(
            Decoder(run.model), 2)
    with Image.open(runs.file("a", "loss.png")) as image:
        assert image.size[0] > 3 * image.size[1]  # three panels


def test_training_stops_when_nothing_gets_better(runs):
    flags = ("--patience", "2", "--learning-rate", ".3", "--dropout", "0")
    status, out, _ = runs("a", 30, *flags)
    assert status == 0 and "no better for 2 epochs" in out
    losses = runs.arrays("a")["val_loss"].tolist()
    waits = [n - 1 - losses[:n].index(min(losses[:n]))
             for n in range(1, len(losses) + 1)]
    assert waits[-1] == 2 and max(waits[:-1]) < 2 and len(losses) < 30
    status, out, _ = runs("a", 30, *flags)
    assert status == 0 and runs.arrays("a")["val_loss"].tolist() == losses


# --- dropout --------------------------------------------------------------------------

@pytest.mark.parametrize("alike", [False, True])
def test_masks_of_a_caption_do_not_depend_on_its_batch(alike, features):
    captions = caption_batches(TRAIN, features)
    order = captions.epoch(3)
    numbers = next(batch for batch in order
                   if (len(set(TRAIN.lengths[batch])) == 1) == alike)
    together = captions.masks(numbers, .5, SIZES, (7, 1))
    D, m = SIZES.annotation, SIZES.embedding
    images, image_of = captions.images_of_batch(numbers)
    lengths = TRAIN.lengths[numbers]
    assert together.a.shape == (len(images), 1, D)
    assert together.Ey.shape == together.o.shape == (lengths.sum(), m)
    steps, row_of = np.nonzero(np.arange(lengths[0])[:, None] < lengths)
    for row, number in enumerate(numbers):
        alone = captions.masks(np.array([number]), .5, SIZES, (7, 1))
        np.testing.assert_array_equal(alone.a[0], together.a[image_of[row]])
        np.testing.assert_array_equal(alone.Ey, together.Ey[row_of == row])
        np.testing.assert_array_equal(alone.o, together.o[row_of == row])
    assert steps.tolist() == sorted(steps)


def test_masks_leave_out_the_share_that_is_asked_for_and_change_with_the_seed(features):
    captions = caption_batches(TRAIN, features)
    sizes = SIZES._replace(annotation=500, embedding=700)
    numbers = captions.epoch(11)[0]
    found = captions.masks(numbers, .3, sizes, (7, 1))
    for mask in found:
        assert mask.dtype == np.float32
        np.testing.assert_allclose(np.unique(mask), [0, 1 / .7], rtol=1e-6)
        assert abs((mask == 0).mean() - .3) < .03
    assert (found.Ey != found.o).any()
    for seed in ((8, 1), (7, 2)):
        for mask, other in zip(found, captions.masks(numbers, .3, sizes, seed)):
            assert .3 < (mask != other).mean() < .5   # independent ones differ in .42


# --- interruptions --------------------------------------------------------------------

BATCHES = 3  # in an epoch of TRAIN with batches of 4 captions


def on_step(monkeypatch, number, action):
    """Replace the training step `number` by `action(step function)`."""
    real, count = train.Trainer.step, [0]

    def step(self, *arguments):
        count[0] += 1
        run = lambda: real(self, *arguments)  # noqa: E731
        return action(run) if count[0] == number else run()
    monkeypatch.setattr(train.Trainer, "step", step)


def assert_stopping_changes_nothing(runs, monkeypatch, *flags):
    """A run 'parts', stopped within an epoch and resumed, equals the run 'whole'."""
    assert runs("whole", 2, *flags)[0] == 0
    with monkeypatch.context() as patch:
        on_step(patch, 2, lambda run: [run(), os.kill(os.getpid(), signal.SIGTERM)][0])
        assert runs("parts", 2, *flags)[0] == 130
    assert runs("parts", 2, *flags)[0] == 0
    whole, parts = runs.arrays("whole"), runs.arrays("parts")
    assert all((whole[key] == parts[key]).all() for key in whole)


def test_checkpoints_without_settings_are_not_taken_over(runs):
    assert runs("a", 1)[0] == 0
    before = runs.arrays("a")
    os.remove(runs.file("a", "settings.json"))
    assert "settings.json: missing" in refusal(runs("a", 2))
    assert equal(runs.arrays("a"), before)


def test_signal_after_the_last_step_of_an_epoch_stops_the_run(runs, monkeypatch):
    assert runs("whole", 2)[0] == 0
    with monkeypatch.context() as patch:
        on_step(patch, BATCHES,
                lambda run: [run(), os.kill(os.getpid(), signal.SIGTERM)][0])
        assert runs("a", 2)[0] == 130
    status, out, _ = runs("a", 2)
    assert status == 0 and f"after epoch 0 and {BATCHES} batches" in out
    assert equal(runs.arrays("a"), runs.arrays("whole"))
    with open(runs.file("a", "log.csv")) as file:
        for row in csv.DictReader(file):
            assert float(row["seconds"]) > 0


@pytest.mark.fault("Ctrl-C and SIGTERM in training")
@pytest.mark.parametrize("number, signum", [
    (number, cli.STOPPING[number % 3]) for number in range(1, 2 * BATCHES + 1)])
def test_run_stopped_by_a_signal_at_any_batch_goes_on_as_if_never_stopped(
        number, signum, runs, monkeypatch):
    """The signal comes in mid-step: the step finishes, then the state is saved."""
    assert runs("whole", 3)[0] == 0

    def interrupt(run):
        os.kill(os.getpid(), signum)
        return run()
    with monkeypatch.context() as patch:
        on_step(patch, number, interrupt)
        status, _, errors = runs("parts", 3)
    assert status == 130
    assert errors.endswith("python train.py --data data --run parts --epochs 3 "
                           "--embedding 7 --units 11 --batch-size 4 --select loss\n")
    epoch, batch = divmod(number - 1, BATCHES)
    stopped = runs.arrays("parts")
    assert stopped["epoch"].tolist() == list(range(1, epoch + 1))
    assert stopped["batch"] == batch + 1
    status, out, _ = runs("parts", 3)
    assert status == 0
    assert f"newest.npz, after epoch {epoch} and {batch + 1} batches" in out
    assert equal(runs.arrays("parts"), runs.arrays("whole"))
    assert equal(runs.arrays("parts", "best"), runs.arrays("whole", "best"))


@pytest.mark.parametrize("step", range(1, 2 * BATCHES + 1))
def test_checkpoints_are_written_inside_an_epoch(step, runs, monkeypatch):
    lost = tf.errors.InternalError(None, None, "GPU sync failed")
    on_step(monkeypatch, step, raising(lost))
    assert runs("a", 2, "--save-minutes", "1e-9")[0] == 3
    epochs, batches_done = divmod(step - 1, BATCHES)
    if step > 1:
        kept = runs.arrays("a")
        assert (len(kept["epoch"]), kept["batch"]) == (epochs, batches_done)
    else:
        assert not os.path.exists(runs.file("a", "newest.npz"))


def test_checkpoints_are_not_written_more_often_than_asked_for(runs, monkeypatch):
    on_step(monkeypatch, 2 * BATCHES,
            raising(tf.errors.InternalError(None, None, "GPU sync failed")))
    assert runs("a", 2)[0] == 3  # ten minutes have not passed since epoch 1
    kept = runs.arrays("a")
    assert (len(kept["epoch"]), kept["batch"]) == (1, 0)


def test_second_signal_does_not_wait(runs, monkeypatch):
    def interrupt(run):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on after the second signal")
    on_step(monkeypatch, 2, interrupt)
    assert runs("a", 1)[0] == 130
    assert not os.path.exists(runs.file("a", "newest.npz"))


def test_log_that_a_kill_has_prevented_is_written_when_the_run_goes_on(runs):
    assert runs("a", 2)[0] == 0
    for name in ("log.csv", "loss.png"):
        os.remove(runs.file("a", name))
    assert runs("a", 2)[0] == 0
    with open(runs.file("a", "log.csv")) as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert os.path.exists(runs.file("a", "loss.png"))


def test_epoch_begins_anew_where_the_images_have_changed_inside_it(runs, monkeypatch):
    with monkeypatch.context() as patch:
        on_step(patch, 2, lambda run: [run(), os.kill(os.getpid(), signal.SIGINT)][0])
        assert runs("a", 1)[0] == 130
    os.remove(feature_path(runs.features, TRAIN.images[3]))
    status, _, errors = runs("a", 1)
    assert status == 0 and "epoch 1 starts over" in errors
    assert runs.arrays("a")["epoch"].tolist() == [1]


# --- a GPU that drops out -------------------------------------------------------------

def raising(error):
    def action(run):
        raise error
    return action


@pytest.mark.fault("GPU lost or out of memory")
@pytest.mark.parametrize("error", [
    tf.errors.InternalError(None, None, "GPU sync failed"),
    tf.errors.InternalError(None, None, "Failed to memcopy into scratch buffer for "
                                        "device 0"),
    tf.errors.UnknownError(None, None, "Failed to get convolution algorithm. This is "
                                       "probably because cuDNN failed to initialize"),
    tf.errors.InternalError(None, None, "Blas GEMM launch failed : a.shape=(64, 512)"),
    tf.errors.UnknownError(None, None, "CUDA_ERROR_LAUNCH_FAILED: unspecified launch "
                                       "failure")])
def test_lost_gpu_ends_the_run_with_its_own_status_and_loses_nothing(error, runs,
                                                                     monkeypatch):
    assert runs("whole", 2)[0] == 0
    with monkeypatch.context() as patch:
        on_step(patch, BATCHES + 2, raising(error))
        status, _, errors = runs("a", 2, "--save-minutes", "1e-9")
    assert status == 3 and "Traceback" not in errors
    line = errors.splitlines()[-1]
    assert line.startswith("train.py: the GPU was lost (") and "runtime.restart" in line
    status, out, _ = runs("a", 2)
    assert status == 0 and "after epoch 1 and 1 batches" in out
    assert equal(runs.arrays("a"), runs.arrays("whole"))


@pytest.mark.fault("GPU lost or out of memory")
@pytest.mark.parametrize("error", [
    tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with "
                                                 "shape[64,64,512]\nHint: ..."),
    tf.errors.InternalError(None, None, "Dst tensor is not initialized."),
    tf.errors.UnknownError(None, None, "CUDA_ERROR_OUT_OF_MEMORY")])
def test_memory_that_ran_out_is_told_with_the_batch_size_to_set(error, runs,
                                                                monkeypatch):
    with monkeypatch.context() as patch:
        on_step(patch, 2, raising(error))
        line = refusal(runs("a", 1))
    assert "out of memory with --batch-size 4" in line
    assert "set --batch-size 2 or less" in line
    # The same name is fine: there is nothing yet for other settings to spoil
    assert runs("a", 1, "--batch-size", "2")[0] == 0
    assert "another batch size" in refusal(runs("a", 2))


def test_other_errors_of_tensorflow_are_bugs_and_not_hidden(runs, monkeypatch):
    on_step(monkeypatch, 1, raising(tf.errors.InternalError(None, None, "no such op")))
    with pytest.raises(tf.errors.InternalError):
        runs("a", 1)


@pytest.mark.fault("two runs on one folder")
def test_second_run_on_the_same_folder_says_so_and_stops(runs, monkeypatch):
    def start_another(run):
        before = runs.arrays("a")
        status, _, errors = runs("a", 3)
        assert status == 2 and errors.count("train.py: ") == 1
        assert f"train (process {os.getpid()} on " in errors
        assert equal(before, runs.arrays("a"))
        return run()
    on_step(monkeypatch, BATCHES + 2, start_another)
    assert runs("a", 2)[0] == 0
    assert runs("a", 3)[0] == 0
