"""What each flag of train.py does to a run's steps: measured, and by hand."""
import argparse
import json
import os
import time

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

import train
from captioning import decode
from captioning.options import CONSTANTS
from methods import localiser, scheduled_sampling
from captioning.decode import Caption, decode_files
from captioning.features import feature_path, read_features
from methods.localiser import Localiser, fit, read_localiser
from captioning.maps import averages, totals
from methods.rewards import Rewards
from captioning.models import load_run
from captioning.tokens import END, read_references
from model import Captioner, Sizes
from runtime import ranks
from runtime.tf import AdamOptimizer
from test_localiser import pull
from test_self_critical import log_p
from worlds import SMALL, TRAIN, VAL, VOCABULARY, Runs, caption_batches, refusal

K, L, F = len(VOCABULARY), 6, 5
HARD = ("--attention", "hard", "--guidance", "0")
PLAIN = ("--dropout", "0", "--guidance", "0")


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys, SMALL["shape"])


@pytest.fixture
def steps(monkeypatch):
    """A run's steps, recorded and not taken: (trainer, batch, N, learning rate)."""
    found, rates = [], []

    def optimizer(rate):
        rates.append(rate)
        return AdamOptimizer(rate)

    def step(trainer, batch, N):
        found.append((trainer, batch, N, float(rates[-1].numpy())))
        return 1.
    monkeypatch.setitem(train.OPTIMIZERS, "adam", optimizer)
    monkeypatch.setattr(train.Trainer, "step", step)
    return found


def ends_well(result):
    assert result[0] == 0


def added(trainer, batch, N):
    """The loss beyond the cross-entropy, times N, the number of words in the batch."""
    total, cross_entropy = trainer.reduced_gradients(batch, N)[:2]
    assert N == batch.lengths.sum()
    return N * float((total - cross_entropy).numpy())


def captions_of(batch):
    """A key for each caption of a batch, and the indices of its words among the N,
    which are ordered by step, then by caption.
    """
    k = [int((batch.lengths > t).sum()) for t in range(batch.lengths[0])]
    features = batch.parcel.features.numpy()
    for row, length in enumerate(batch.lengths):
        words = batch.parcel.words.numpy()[row, :length + 1].tobytes()
        yield words + features[batch.image_of[row]].tobytes(), [
            sum(k[:t]) + row for t in range(length)]


# --- what the loss has beside the cross-entropy ---------------------------------------

def log_softmax(logits):
    logits = logits.numpy().astype(float)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_penalty_and_smoothing_weigh_as_much_as_their_flags_say(runs, steps):
    for run, flag in (("a", ("--penalty", ".7")), ("b", ("--label-smoothing", ".2"))):
        ends_well(runs(run, 1, *PLAIN, *flag))
    for trainer, batch, N, _ in steps[:3]:
        alphas = trainer.model.teacher_forcing(batch)[2]
        looked = np.zeros((len(batch.lengths), L))
        for alpha in alphas:
            looked[:len(alpha.numpy())] += alpha.numpy()
        assert added(trainer, batch, N) == pytest.approx(
            .7 * ((1 - looked) ** 2).sum(), rel=1e-3)
    assert len(steps) == 6
    for trainer, batch, N, _ in steps[3:]:
        logits, targets, _ = trainer.model.teacher_forcing(batch)
        log_p = log_softmax(logits)
        true = log_p[np.arange(N), np.array(targets.numpy())]
        assert added(trainer, batch, N) == pytest.approx(
            .2 * (true - log_p.mean(axis=1)).sum(), rel=1e-3, abs=1e-4)


def handmade(monkeypatch):
    """A Localiser to replace the one that a run fits to its images."""
    random = np.random.RandomState(8)
    row_of = np.full(K, 3, np.int32)
    row_of[[4, 6, 8]] = np.arange(3)
    found = Localiser(row_of, np.vstack([random.normal(size=(3, F)), np.zeros((1, F))]
                                        ).astype("f4"),
                      np.append(random.uniform(.2, .9, 3), 0).astype("f4"))
    monkeypatch.setattr(localiser, "fit_to", lambda *args: found)
    return found


def pull_of(found, trainer, batch):
    """What the localiser adds to the loss with weight 1, by loops."""
    alphas = [alpha.numpy() for alpha in trainer.model.teacher_forcing(batch)[2]]
    parcel = batch.parcel
    return pull(found, batch.replacing(
        features=parcel.features.numpy().astype("f4"), words=parcel.words.numpy()),
                alphas)


@pytest.mark.parametrize("weight", [.5, 3.])
def test_guidance_weighs_as_much_as_its_flag_says(weight, runs, steps, monkeypatch):
    found = handmade(monkeypatch)
    ends_well(runs("a", 1, "--dropout", "0", "--guidance", str(weight)))
    for trainer, batch, N, _ in steps:
        assert added(trainer, batch, N) == pytest.approx(
            weight * pull_of(found, trainer, batch), rel=1e-3)


def test_evidence_is_sought_in_the_training_images(runs, steps, monkeypatch):
    monkeypatch.setattr(localiser, "EVIDENT", -1)  # random images are weak evidence
    ends_well(runs("a", 1))
    means = [read_features(feature_path(runs.features, image)).astype(float).mean(0)
             for image in TRAIN.images]
    mentions = np.zeros((len(means), K), np.bool_)
    for words, length, image in zip(TRAIN.words, TRAIN.lengths, TRAIN.image_of):
        for word in words[1:length]:
            mentions[image, word] = True
    expected = fit(np.array(means, np.float32), mentions)
    for array, other in zip(read_localiser("checkpoints/a"), expected):
        np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reinforce, entropy", [(3., .5), (1., .002)])
def test_drawn_locations_earn_and_spread_as_the_constants_say(reinforce, entropy, runs,
                                                              steps, monkeypatch):
    monkeypatch.setitem(CONSTANTS, "reinforce", reinforce)
    monkeypatch.setitem(CONSTANTS, "entropy", entropy)
    ends_well(runs("a", 1, *HARD, "--dropout", "0"))
    soft = 0
    for trainer, batch, N, _ in steps:
        trainer.terms[-1].baseline.assign(-1.5)
        logits, targets, alphas = trainer.model.teacher_forcing(batch)
        alphas = np.concatenate([alpha.numpy() for alpha in alphas])
        log_p = log_softmax(logits)[np.arange(N), np.array(targets.numpy())]
        expected = 0.
        for _, places in captions_of(batch):
            draws = batch.parcel.draws.numpy()
            if draws[places[0]] < 0:  # the expected context
                soft += 1
                continue
            for t, place in enumerate(places):
                earned = sum(log_p[later] + 1.5 for later in places[t:])
                alpha = alphas[place].astype(float)
                s = np.flatnonzero(alpha.cumsum() > draws[place])[0]
                expected -= (reinforce * earned * np.log(alpha[s])
                             - entropy * (alpha * np.log(alpha)).sum())
        assert added(trainer, batch, N) == pytest.approx(expected, rel=1e-4)
    assert 0 < soft < 11


# --- what is drawn --------------------------------------------------------------------

def draws_of(steps):
    """{caption: its random numbers by epoch, None where the context is expected}."""
    found = {}
    for _, batch, *_ in steps:
        for key, places in captions_of(batch):
            draws = batch.parcel.draws.numpy()[places]
            found.setdefault(key, []).append(
                tuple(draws.tolist()) if draws[0] >= 0 else None)
            assert (draws >= 0).all() or (draws < 0).all()
    assert len(found) == 11
    return found


@pytest.mark.parametrize("share, low, high", [
    (.15, .05, .3), (.5, .35, .65), (.85, .7, .95)])
def test_so_many_captions_have_the_expected_context_and_others_in_each_epoch(
        share, low, high, runs, steps, monkeypatch):
    assert CONSTANTS["expected"] == .5
    monkeypatch.setitem(CONSTANTS, "expected", share)
    ends_well(runs("a", 5, *HARD))
    found = draws_of(steps)
    expected = [[draws is None for draws in each] for each in found.values()]
    assert low < np.mean(expected) < high
    assert any(0 < sum(each) < 5 for each in expected)  # differs between epochs
    drawn = [draws for each in found.values() for draws in each if draws]
    assert len(set(drawn)) == len(drawn) == 55 - np.sum(expected)
    count = len(steps)
    ends_well(runs("b", 1, *HARD, "--seed", "1"))
    others = [draws for each in draws_of(steps[count:]).values() for draws in each]
    assert not set(drawn) & set(filter(None, others))


def test_share_of_own_words_rises_from_none_and_they_are_drawn_anew(runs, steps,
                                                                    monkeypatch):
    shares, numbers = [], []

    def inputs(own_words, batch, uniforms, share):
        shares.append(share)
        numbers.extend(uniforms[:, 0, 0])
        return batch.parcel.words
    monkeypatch.setattr(scheduled_sampling.OwnWords, "inputs", inputs)
    ends_well(runs("a", 2, *PLAIN, "--scheduled-sampling", ".9"))
    assert shares == pytest.approx([0, .15, .3, .45, .6, .75])  # of two epochs of three
    assert len(set(numbers)) == 22  # eleven captions, twice
    first = set(numbers)
    ends_well(runs("b", 2, *PLAIN, "--scheduled-sampling", ".9", "--seed", "1"))
    assert not first & set(numbers[22:])
    assert all(batch.parcel.told is not None for _, batch, *_ in steps)


def test_order_dropout_and_first_weights_are_those_of_seed_and_epoch(runs, steps):
    ends_well(runs("a", 2, "--seed", "3", "--dropout", ".3", "--guidance", "0"))
    captions = caption_batches(TRAIN, runs.features)
    order = [(epoch, numbers) for epoch in (1, 2) for numbers in captions.epoch(
        4, np.random.RandomState([3, epoch]))]
    assert len(order) == len(steps) == 6
    model = Captioner(Sizes(K, F, 7, 7, 11, 11), seed=3, word_query=True)
    for (epoch, numbers), (trainer, batch, *_) in zip(order, steps):
        assert batch.lengths.tolist() == TRAIN.lengths[numbers].tolist()
        words = TRAIN.words[numbers, :batch.lengths[0] + 1]
        assert batch.parcel.words.numpy().tolist() == words.tolist()
        for mask, other in zip(batch.parcel.masks, captions.masks(
                numbers, .3, model.sizes, (3, epoch))):
            np.testing.assert_array_equal(mask.numpy(), other)
        for name, weight in model.weights.items():
            assert (weight.numpy() == trainer.model.weights[name].numpy()).all()


# --- the steps ------------------------------------------------------------------------

@pytest.mark.parametrize("norm", [.01, 5.])
def test_gradients_are_clipped_to_the_constants_norm(norm, runs, monkeypatch):
    assert CONSTANTS["clip"] == 5.
    monkeypatch.setitem(CONSTANTS, "clip", norm)
    norms = []

    class Recorder(AdamOptimizer):
        def apply_gradients(self, pairs, *args, **kwargs):
            pairs = list(pairs)
            norms.append(np.sqrt(sum((g.numpy() ** 2).sum() for g, _ in pairs)))
            return super().apply_gradients(pairs, *args, **kwargs)
    monkeypatch.setitem(train.OPTIMIZERS, "adam", Recorder)
    ends_well(runs("a", 1, *PLAIN, "--penalty", "500"))
    assert len(norms) == 4 and norms[0] == 0  # the call that creates its variables
    assert norms[1:] == pytest.approx([norm] * 3, rel=1e-3)


@pytest.mark.parametrize("minutes, saved", [(1, [False, False, True]),
                                            (2, [False] * 3)])
def test_checkpoint_is_written_after_so_many_minutes(minutes, saved, runs, monkeypatch):
    """Each of the three steps takes 35 seconds."""
    found, real = [], time.time

    def step(trainer, batch, N):
        found.append(os.path.exists(runs.file("a", "newest.npz")))
        return 1.
    monkeypatch.setattr(train.Trainer, "step", step)
    monkeypatch.setattr(time, "time", lambda: real() + 35 * len(found))
    ends_well(runs("a", 1, *PLAIN, "--save-minutes", str(minutes)))
    assert found == saved


def test_weights_are_averaged_with_the_flags_decay(runs, monkeypatch):
    seen, real = [], train.Trainer.step

    def step(trainer, batch, N):
        value = real(trainer, batch, N)
        seen.append(trainer.model.E.numpy().copy())
        return value
    monkeypatch.setattr(train.Trainer, "step", step)
    ends_well(runs("a", 1, *PLAIN, "--average", ".08", "--learning-rate", ".05"))
    first, second, third = seen  # t / (9 + t) is 0, .1 and 2 / 11
    expected = .08 * (.08 * first + .92 * second) + .92 * third
    np.testing.assert_allclose(runs.arrays("a", "best")["E"], expected, rtol=1e-4,
                               atol=1e-6)


@pytest.mark.parametrize("flags", [
    ("--dropout", "0", "--average", ".9"),
    ("--start-from", "first", "--self-critical", "2")], ids=str)
def test_weights_that_are_kept_are_those_that_were_validated(flags, runs):
    ends_well(runs("first", 1, *PLAIN))
    ends_well(runs("a", 2, "--guidance", "0", "--learning-rate", ".05", "--decay", "1",
                   "--select", "cider", *flags))
    run, newest = load_run("a"), load_run("a", "newest")
    row, captions = run.history[-1], caption_batches(VAL, runs.features)
    assert train.validate(run.model, captions, 3) == pytest.approx(row["val_loss"],
                                                                   abs=1e-5)
    assert abs(train.validate(newest.model, captions, 3)
               - newest.history[-1]["val_loss"]) > 1e-3
    found = decode_files(decode.Decoder(run.model), captions.paths, 2, quiet=True)
    attention = averages(totals(beam[0].alphas) for beam in found)
    assert row["val_entropy"] == pytest.approx(attention["entropy"], abs=.01)
    assert row["val_change"] == pytest.approx(attention["change"], abs=.01)


def assert_captions_per_second(run, captions):
    """Check the log's rate against the epoch's seconds before validation."""
    with np.load(f"checkpoints/{run}/previous.npz") as file:
        seconds = json.loads(str(file["progress"]))["seconds"]
    found = load_run(run, "newest").history[-1]["captions_per_second"]
    assert found == pytest.approx(captions / seconds, rel=1e-3, abs=.1)


# --- validation -----------------------------------------------------------------------

def test_so_many_validation_images_drawn_by_the_seed_are_captioned_and_scored(
        runs, steps, monkeypatch):
    """Each has its first caption; the model looks everywhere alike."""
    images = {read_features(feature_path(runs.features, image)).tobytes(): i
              for i, image in enumerate(VAL.images)}
    references = read_references("data/tokens", "val")
    seen = []

    def search(self, features, **_):
        seen.append([images[each.tobytes()] for each in features])
        words = [VAL.words[list(VAL.image_of).index(i)] for i in seen[-1]]
        words = [row[1:row.tolist().index(END) + 1].tolist() for row in words]
        return [[Caption(row, None, np.full((len(row), L), 1 / L), None)]
                for row in words]
    monkeypatch.setattr(decode.Decoder, "search", search)
    monkeypatch.setitem(CONSTANTS, "val_images", 3)
    for seed in "0123":
        result = runs("run" + seed, 1, *PLAIN, "--select", "cider", "--seed", seed)
        ends_well(result)
        assert "attention maps are flat (100 %" in result[2]
        row = load_run("run" + seed).history[0]
        true = {i: references[str(i)] for i in seen[-1]}
        made = {i: group[:1] for i, group in true.items()}
        assert row["val_bleu4"] == pytest.approx(100 * Bleu(4).compute_score(
            true, made, verbose=0)[0][3], abs=.01)
        assert row["val_cider"] == pytest.approx(100 * Cider().compute_score(
            true, made)[0], abs=.01)
        assert row["val_cider"] > row["val_bleu4"] + 1
    assert [len(set(group)) for group in seen] == [3] * 4
    assert len(set(map(frozenset, seen))) > 1


# --- self-critical training -----------------------------------------------------------

SELF_CRITICAL = ("--start-from", "first", "--guidance", "0", "--self-critical", "3")


def test_step_divides_by_the_samples(runs, steps):
    ends_well(runs("first", 1, *PLAIN))
    ends_well(runs("a", 1, *SELF_CRITICAL))
    trainer, batch, N, _ = steps[3]
    assert len(steps) == 3 + 2 and len(batch.lengths) == 3 * 4
    assert_captions_per_second("first", 11)
    assert_captions_per_second("a", 3 * 6)
    features, model = batch.parcel.features.numpy(), trainer.model
    value = 0.
    for weight, image, words, length in zip(
            batch.parcel.weights.numpy(), batch.image_of, batch.parcel.words.numpy(),
            batch.lengths):
        value -= weight * float(log_p(model, features[image][None],
                                      words[1:length + 1]).numpy())
    assert abs(value) > .1
    assert float(trainer.reduced_gradients(batch, N)[0].numpy()) == pytest.approx(
        value / 12, rel=1e-3)


# An image's own caption, the same reversed, and one word of it
WRITTEN = [TRAIN.words[9, 1:TRAIN.lengths[9] + 1].tolist()]
WRITTEN += [WRITTEN[0][-2::-1] + [END], WRITTEN[0][:1] + [END]]


@pytest.mark.parametrize("flags, bleu", [
    ((), 2.), (("--bleu-reward", "3"), 3.), (("--bleu-reward", "0"), 0.)])
def test_sample_earns_what_the_flag_weighs(flags, bleu, runs, steps, monkeypatch):
    def sample(self, features, uniforms, **_):
        assert uniforms.shape[:2] == (int(features.shape[0]), 3)
        return [[Caption(words, None, None, None) for words in WRITTEN]
                for _ in range(len(uniforms))]
    monkeypatch.setattr(decode.Decoder, "sample", sample)
    ends_well(runs("first", 1, *PLAIN))
    ends_well(runs("a", 1, *SELF_CRITICAL, *flags))
    references = read_references("data/tokens", "train")
    groups = [references[str(i)] for i in range(6)]
    written = [VOCABULARY.decode(words) for words in WRITTEN]
    total = 0.
    cider = Rewards(VOCABULARY, groups)
    for i, group in enumerate(groups):
        for words, text in zip(WRITTEN, written):
            with_end = [caption + " end" for caption in group]
            score = Bleu(4).compute_score({0: with_end}, {0: [text + " end"]},
                                          verbose=0)[0][3]
            total += (cider([words], [i])[0] + bleu * score) / 18
    assert runs.arrays("a")["train_reward"][0] == pytest.approx(total, rel=1e-4)


def test_defaults_are_those_of_the_recipes(runs, steps, monkeypatch):
    """Epochs, learning rates, dropout and guidance; the others have their own tests."""
    found = handmade(monkeypatch)

    def with_no_flags(run, *flags):
        monkeypatch.setattr("sys.argv", [
            "train.py", "--data", "data", "--run", run, "--select", "loss",
            "--embedding", "7", "--units", "11", *flags])
        count = len(steps)
        train.main()
        return steps[count:]
    before = with_no_flags("first")
    assert [rate for *_, rate in before] == pytest.approx(
        [1e-3 * .75 ** epoch for epoch in range(8)])  # one batch each: of 64
    kept = np.concatenate([batch.parcel.masks.Ey.numpy().ravel()
                           for _, batch, *_ in before]) > 0
    assert abs(kept.mean() - .6) < .05
    after = with_no_flags("a", "--start-from", "first", "--self-critical")
    assert [rate for *_, rate in after] == pytest.approx([5e-5] * 3)
    assert all(batch.parcel.masks.Ey is None for _, batch, *_ in after)
    assert all(len(batch.lengths) == 5 * 6 for _, batch, *_ in after)
    for (trainer, batch, *_), weight in ((before[0], 1.), (after[0], .05)):
        assert added(trainer, batch, int(batch.lengths.sum())) == pytest.approx(
            weight * pull_of(found, trainer, batch), rel=1e-2)


# --- several processes ----------------------------------------------------------------

@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_reads_images_of_its_own(processes, runs, monkeypatch):
    captions = caption_batches(TRAIN, runs.features)
    args = argparse.Namespace(batch_size=4, seed=5, features=runs.features)
    monkeypatch.setattr(ranks, "size", processes)
    monkeypatch.setattr(ranks, "gather", lambda value: [value] * processes)
    read, shares = [], []
    for rank in range(processes):
        monkeypatch.setattr(ranks, "rank", rank)
        order, mine, _ = train.plan_epoch(captions, args, 2)
        shares.append(mine)
        read.append({i for numbers in mine for i in TRAIN.image_of[numbers]})
    assert all(read) and sum(map(len, read)) == len(set.union(*read)) == 6
    for whole, *parts in zip(order, *shares):
        assert sorted(whole) == sorted(np.concatenate(parts))
    expected = captions.epoch(4, np.random.RandomState([5, 2]))
    assert [whole.tolist() for whole in order] == [x.tolist() for x in expected]


def test_run_of_which_only_some_processes_have_a_gpu_is_refused(runs, monkeypatch):
    monkeypatch.setattr(ranks, "size", 2)
    monkeypatch.setattr(ranks, "gather", lambda value: [True, value])
    line = refusal(runs("a", 1))
    assert "1 of 2 processes have no GPU; start 1," in line


@pytest.mark.parametrize("visible, shown", [(None, "1"), ("4,6", "6"), ("7", "7")])
def test_process_takes_the_gpu_of_its_number_on_its_host(visible, shown, monkeypatch):
    class Engine:
        rank, size = 3, 4
    for name, value in (("rank", 0), ("size", 1), ("engine", None), ("Horovod", Engine),
                        ("Mpi4py", Engine)):
        monkeypatch.setattr(ranks, name, value)
    for name, value in (("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"),
                        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    ranks.start()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shown
    assert (ranks.rank, ranks.size) == (3, 4)
