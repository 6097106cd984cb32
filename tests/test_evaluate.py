"""What step 5 promises: captions, attention and scores of a run, as real commands."""
import json
import os
import shutil
import sys

import numpy as np
import pytest

from commands import ROOT, finished, printed

import evaluate
from captioning import models, scores
from captioning.decode import Caption, Decoder, decode_files
from captioning.decoded import pack, read_decoded
from captioning.features import SHAPE, feature_path, read_features
from captioning.tokens import END, Vocabulary
from runtime import cli

NOUNS = ("cat", "dog", "bus", "cow", "pig", "hen")


def command(folder, script, *flags):
    """Run one of the scripts in `folder`: (exit status, stdout, stderr)."""
    done = finished([sys.executable, os.path.join(ROOT, script), *flags],
                    cwd=str(folder))
    return done.returncode, done.stdout, done.stderr


def make_data(folder):
    """Make a tokenized data set whose features tell the noun of its captions."""
    random = np.random.RandomState(0)
    (folder / "data" / "annotations").mkdir(parents=True)
    for split, count, first in (("train", 24, 0), ("val", 7, 100)):
        images, sentences = [], []
        inside = "deep/" if split == "val" else ""  # a split's images may have folders
        (folder / "data" / "features" / split / inside).mkdir(parents=True)
        for i in range(first, first + count):
            noun = NOUNS[i % len(NOUNS)]
            images.append({"id": i, "file_name": f"{inside}{i}.jpg"})
            sentences += [{"id": 2 * i, "image_id": i, "caption": f"A {noun}."},
                          {"id": 2 * i + 1, "image_id": i,
                           "caption": f"There is a {noun}"}]
            features = random.uniform(0, .1, SHAPE).astype(np.float16)
            features[..., 10 * NOUNS.index(noun):10 * NOUNS.index(noun) + 10] += 2
            np.save(feature_path(str(folder / "data" / "features"),
                                 f"{split}/{inside}{i}.jpg"), features)
        (folder / "data" / "annotations" / f"captions_{split}.json").write_text(
            json.dumps({"images": images, "annotations": sentences}))
    assert command(folder, "tokenize_captions.py")[0] == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the data and a run, `small`, that has learned them."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_data(folder)
    status, out, errors = command(
        folder, "train.py", "--run", "small", "--epochs", "12", "--embedding", "11",
        "--units", "13", "--learning-rate", ".02", "--batch-size", "8",
        "--dropout", "0", "--decay", "1")
    assert status == 0, errors
    return folder


class Place:
    """A copy of the trained folder, with evaluate.py run in this process."""

    def __init__(self, path, monkeypatch, capsys):
        self.path, self.monkeypatch, self.capsys = path, monkeypatch, capsys

    def __truediv__(self, name):
        return self.path / name

    def __call__(self, *flags):
        """Evaluate `small`: (exit status, stdout, stderr)."""
        self.monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", "small", *flags])
        return printed(self.capsys, evaluate.main)


@pytest.fixture
def place(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(str(trained), str(tmp_path / "copy"))
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(evaluate, "start", lambda: None)
    return Place(tmp_path / "copy", monkeypatch, capsys)


@pytest.fixture
def no_java(monkeypatch):
    """As on a machine without Java, which is also much faster."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


def run_file(place, name):
    return place / "checkpoints" / "small" / name


def read_json(path):
    with open(str(path), encoding="utf-8") as file:
        return json.load(file)


def refusal(result):
    status, _, errors = result
    lines = [line for line in errors.splitlines() if line.startswith("evaluate.py: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in errors, errors
    return lines[0]


def test_command_writes_captions_attention_and_scores(place):
    status, out, errors = place("--beam", "2", "--n-best", "2", "--batch-size", "3")
    assert status == 0, errors
    assert out.startswith("[5/6] evaluate\n")
    assert "plot_attention.py --run small\n" in out
    results = read_json(run_file(place, "captions_val_small_results.json"))
    assert [r["image_id"] for r in results] == list(range(100, 107))
    for result in results:  # it has learned the noun
        assert result["caption"].split()[-1] == NOUNS[result["image_id"] % len(NOUNS)]
        assert set(result) == {"image_id", "caption"}
    summary = read_json(run_file(place, "scores_val.json"))
    assert summary["scores"]["BLEU-1"] > 90 and summary["images"] == 7
    assert f"{summary['scores']['CIDEr']:.2f}" in out
    assert set(summary["intervals"]) == set(summary["scores"])
    assert summary["beam"] == 2 and 1 <= summary["epoch"] <= 12
    assert summary["image_ids"] == [str(i) for i in range(100, 107)]
    assert all(len(v) == 7 for v in summary["of_each_image"].values())
    best = read_json(run_file(place, "nbest_val.json"))
    for result in results:
        beam = best[str(result["image_id"])]
        assert beam[0]["caption"] == result["caption"] and len(beam) == 2
        assert 0 >= beam[0]["log_prob"] > beam[1]["log_prob"]

    run = models.load_run("small")
    decoded = read_decoded(run.folder, "val", run.vocabulary)
    assert decoded.images.tolist() == [f"val/deep/{i}.jpg" for i in range(100, 107)]
    for i, result in enumerate(results):
        steps = decoded.steps[i]
        assert decoded.words[i, steps - 1] == END
        assert run.vocabulary.decode(decoded.words[i]) == result["caption"]
        np.testing.assert_allclose(decoded.alphas[i, :steps].sum(1), 1, rtol=1e-4)
        assert (decoded.alphas[i, steps:] == 0).all()


def test_consensus_keeps_the_caption_that_is_most_like_the_others(place, no_java):
    flags = ("--beam", "4", "--n-best", "4")
    assert place(*flags)[0] == 0
    plain = read_json(run_file(place, "nbest_val.json"))
    assert place(*flags, "--consensus")[0] == 0
    found = read_json(run_file(place, "nbest_val.json"))
    assert found != plain
    for i, beam in found.items():
        assert sorted(c["caption"] for c in beam) == sorted(
            c["caption"] for c in plain[i])
    assert read_json(run_file(place, "scores_val.json"))["consensus"] == "beam"
    results = read_json(run_file(place, "captions_val_small_results.json"))
    assert [r["caption"] for r in results] == [beam[0]["caption"]
                                               for beam in found.values()]


def test_consensus_needs_a_beam_and_the_references_of_training(place, no_java):
    assert "without --beam" in refusal(place("--consensus"))
    os.remove(str(place / "data" / "tokens" / "references_train.json"))
    assert "references_train.json" in refusal(place("--beam", "2", "--consensus"))


def test_consensus_of_neighbours_says_what_people_said_of_similar_images(place,
                                                                         no_java):
    flags = ("--beam", "6", "--n-best", "6", "--consensus", "neighbours")
    assert place(*flags)[0] == 0
    for i, beam in read_json(run_file(place, "nbest_val.json")).items():
        noun = NOUNS[int(i) % len(NOUNS)]  # as the features tell
        assert beam[0]["caption"].split()[-1] == noun
    assert read_json(run_file(place, "scores_val.json"))["consensus"] == "neighbours"


def test_consensus_of_neighbours_needs_the_images_of_training(place, no_java):
    flags = ("--beam", "2", "--consensus", "neighbours")
    os.remove(feature_path(str(place / "data" / "features"), "train/0.jpg"))
    assert place(*flags)[0] == 0  # one fewer
    split = read_json(run_file(place, "split.json"))
    split["train"] = split["train"][1:]
    run_file(place, "split.json").write_text(json.dumps(split))
    assert "data/tokens: has other training images" in refusal(place(*flags))


def test_candidates_of_an_earlier_beam_do_not_stay(place, no_java):
    assert place("--beam", "2", "--n-best", "2")[0] == 0
    assert run_file(place, "nbest_val.json").exists()
    assert place()[0] == 0
    assert not run_file(place, "nbest_val.json").exists()


def test_captions_are_those_of_one_image_at_a_time(place, no_java):
    assert place()[0] == 0
    results = read_json(run_file(place, "captions_val_small_results.json"))
    run = models.load_run("small")
    for result in results:
        path = feature_path("data/features", f"val/deep/{result['image_id']}.jpg")
        assert (read_features(path) > 1).any()
        (caption,), = decode_files(Decoder(run.model), [path], 1, quiet=True)
        assert run.vocabulary.decode(caption.words) == result["caption"]


def test_words_are_told_of_one_location_or_of_all(place, no_java):
    log_probs = {}
    for look in ("expected", "likeliest"):
        assert place("--look", look)[0] == 0
        assert read_json(run_file(place, "scores_val.json"))["look"] == look
        run = models.load_run("small")
        log_probs[look] = read_decoded(run.folder, "val", run.vocabulary).log_probs
    assert place()[0] == 0
    assert read_json(run_file(place, "scores_val.json"))["look"] == "expected"
    assert (log_probs["expected"][:, 1] != log_probs["likeliest"][:, 1]).any()


def test_images_that_were_trained_on_are_refused_unless_asked_for(place, no_java):
    line = refusal(place("--split", "train"))
    assert "24 of 24 images" in line and "--allow-seen" in line
    assert not run_file(place, "scores_train.json").exists()
    status, out, errors = place("--split", "train", "--allow-seen", "--max-steps", "3")
    assert status == 0, errors
    assert read_json(run_file(place, "scores_train.json"))["images"] == 24


def test_table_has_four_rows_of_bleu_and_the_others_are_a_line_each(capsys):
    values = {f"BLEU-{n}{how}": 10. * n + place for place, how in enumerate(
        ("", " without brevity penalty", " with punctuation")) for n in (1, 2, 3, 4)}
    values = dict(values, METEOR=5., CIDEr=6.)
    evaluate.show({"scores": values, "intervals": {name: (1, 2) for name in values},
                   "images": 99, "habits": {}, "habits_of_first_references": {}})
    lines = capsys.readouterr()[0].splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [
        "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "CIDEr"]
    assert lines[7:9] == [
        "BLEU-1 to 4 without brevity penalty: 11.00, 21.00, 31.00, 41.00",
        "BLEU-1 to 4 with punctuation: 12.00, 22.00, 32.00, 42.00"]


def test_run_is_compared_with_a_better_one(place, no_java):
    assert place()[0] == 0
    shutil.copytree(str(run_file(place, "")), str(place / "checkpoints" / "other"))
    status, out, errors = place("--compare", "other", "--max-steps", "1")
    assert status == 0, errors
    table = out.split("small minus other on 7 images:\n")[1].splitlines()
    rows = {line.split()[0]: line.split() for line in table if " to " in line}
    bleu = rows["BLEU-1"]
    assert len(bleu) == 6  # no variants, whose names have more words
    assert float(bleu[-5]) < 0 and float(bleu[-1]) < .05  # captions of one word


def test_images_without_features_are_counted_and_left_out(place, no_java):
    os.remove(feature_path("data/features", "val/deep/103.jpg"))
    status, _, errors = place()
    assert status == 0 and "1 of 7 images have no sound features" in errors
    ids = [r["image_id"] for r in read_json(run_file(
        place, "captions_val_small_results.json"))]
    assert ids == [100, 101, 102, 104, 105, 106]


def test_without_java_the_scores_are_marked(place, no_java):
    status, out, errors = place()
    assert status == 0 and errors.count("warning: no Java was found") == 1
    summary = read_json(run_file(place, "scores_val.json"))
    assert summary["tokenizer"] == scores.PLAIN and "METEOR" not in summary["scores"]
    assert scores.PLAIN in out


@pytest.mark.parametrize("flags, words", [
    (("--run", "none"), "no such run"), (("--split", "test"), "tokenize_captions.py"),
    (("--features", "nowhere"), "extract_features.py"),
    (("--checkpoint", "previous"), "previous.npz: no such checkpoint")])
def test_what_is_not_there_is_refused_in_one_line(flags, words, place):
    if "previous" in flags:
        os.remove(str(run_file(place, "previous.npz")))
    assert words in refusal(place(*flags))
    assert not run_file(place, "attention_val.npz").exists()


@pytest.mark.parametrize("flags", [
    ("--beam", "0"), ("--max-steps", "-1"), ("--batch-size", "x"), ("--split", "dev"),
    ("--length-power", "nan"), ("--unknown",), ("--n-best", "3", "--beam", "2")])
def test_flags_out_of_range_are_refused(flags, place):
    status, _, errors = place(*flags)
    assert status == 2 and flags[0] in errors and "Traceback" not in errors


# --- the file of attention ------------------------------------------------------------

VOCABULARY = Vocabulary(["a", "cat"], [0] * 6)

CAPTIONS = [Caption([5, 4, END], np.array([-.1, -.2, -.3], np.float32),
                    np.full((3, 9), 1 / 9, np.float32),
                    np.array([.5, .6, .7], np.float32)),
            Caption([END], np.array([-1.], np.float32), np.eye(9)[:1], None)]


def write(path, **changes):
    arrays = pack(CAPTIONS, ["val/a.jpg", "val/b.jpg"], ["7", "8"])._asdict()
    arrays.update(changes)
    np.savez(path, **arrays)


def test_decoded_captions_come_back_as_they_were(tmp_path):
    path = str(tmp_path / "attention_val.npz")
    write(path)
    decoded = read_decoded(str(tmp_path), "val", VOCABULARY)
    assert decoded.words.tolist() == [[5, 4, END], [END, 0, 0]]
    assert decoded.steps.tolist() == [3, 1]
    assert decoded.betas.tolist()[1] == [1, 1, 1]
    assert decoded.alphas[1, 0].tolist() == [1] + [0] * 8


@pytest.mark.parametrize("changes", [
    {"words": np.zeros(3, np.int32)}, {"steps": np.array([3, 9], np.int32)},
    {"steps": np.array([0, 1], np.int32)}, {"alphas": np.zeros((2, 3), np.float32)},
    {"images": np.array([1, 2])}, {"image_ids": np.array(["7"])},
    {"words": np.full((2, 3), -1, np.int32)}, {"betas": np.ones((1, 3))},
    {"log_probs": np.array([object()])}])
def test_damaged_attention_is_refused_in_one_line(changes, tmp_path):
    path = str(tmp_path / "attention_val.npz")
    write(path, **changes)
    with pytest.raises(cli.UserError) as error:
        read_decoded(str(tmp_path), "val", VOCABULARY)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 3, .3, .9])
def test_cut_off_attention_is_refused_in_one_line(keep, tmp_path):
    path = str(tmp_path / "attention_val.npz")
    write(path)
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.truncate(int(keep * size) if isinstance(keep, float) else keep)
    with pytest.raises(cli.UserError, match="damaged; run evaluate.py again"):
        read_decoded(str(tmp_path), "val", VOCABULARY)
