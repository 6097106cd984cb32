"""What step 3 promises: the words kept, the arrays, and who is in which split."""
import json
import os
import sys
import zipfile

import numpy as np
import pytest

import tokenize_captions as tc

from captioning.coco import Image
from captioning.tokens import (END, PAD, SPECIAL, START, UNK, Vocabulary,
                               read_references, read_tokens, read_vocabulary,
                               split_words)
from commands import ROOT, finished
from runtime import cli
from runtime.atomic import write_arrays


def images_of(*captions, first=1):
    """One Image for each list of captions."""
    return [Image(i, f"{i:03d}.jpg", list(group))
            for i, group in enumerate(captions, first)]


def numbered(count, first=1):
    """Images with 1 to 3 captions each; every image has a word of its own."""
    return images_of(*([f"a w{i} cat", "the dog", "one two three w7"][:1 + i % 3]
                       for i in range(first, first + count)), first=first)


def write_split(data, split, images):
    """Write COCO's captions_<split>.json."""
    os.makedirs(os.path.join(str(data), "annotations"), exist_ok=True)
    content = {"images": [{"id": i.id, "file_name": i.file_name} for i in images],
               "annotations": [{"id": 1, "image_id": i.id, "caption": caption}
                               for i in images for caption in i.captions]}
    with open(os.path.join(str(data), "annotations", f"captions_{split}.json"),
              "w", encoding="utf-8") as file:
        json.dump(content, file)


def command(data, *flags):
    return finished([sys.executable, os.path.join(ROOT, "tokenize_captions.py"),
                     "--data", str(data), *flags])


def refused(done):
    """The line with which a command refuses its input, without the script's name."""
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.split(": ", 1)[1]


def results(folder):
    """The vocabulary and the two splits that step 3 wrote."""
    folder = str(folder)
    return (read_vocabulary(folder),
            read_tokens(folder, "train"),
            read_tokens(folder, "val"))


def captions_of(tokens, vocabulary):
    """{file name: its captions, decoded}."""
    found = {}
    for row, image in zip(tokens.words, tokens.image_of):
        found.setdefault(os.path.basename(tokens.images[image]), []).append(
            vocabulary.decode(row))
    return found


def tokens_of(*captions, size=100):
    images = images_of(*captions)
    split = tc.split_captions(images, "train")
    vocabulary = tc.build_vocabulary(tc.count_words(split), 1, size)
    return vocabulary, tc.tokenize(images, split, "train", vocabulary, 9)[0]


# --- words ----------------------------------------------------------------------------

@pytest.mark.parametrize("caption, words", [
    ("A Man, a PLAN: (a canal)!", ["a", "man", "a", "plan", "a", "canal"]),
    ("  two \t  dogs  ", ["two", "dogs"]),
    ("first line\nsecond\r\nline.\n", ["first", "line", "second", "line"]),
    ("a man's hat", ["a", "man's", "hat"]),
    ("'quoted' and \"so\"", ["quoted", "and", "so"]),
    ("black-and-white", ["black", "and", "white"]),
    ("snake_case <end> 3 #tag", ["snake", "case", "end", "3", "tag"]),
    ("Ein ÄPFELCHEN über Nacht", ["ein", "äpfelchen", "über", "nacht"]),
    ("...", []), ("", [])])
def test_words_are_lower_case_without_punctuation_and_white_space(caption, words):
    assert split_words(caption) == words


def test_word_of_the_last_kept_rank_stays_and_the_next_becomes_unk():
    vocabulary, _ = tokens_of(["d d d d", "c c c b b a"], size=3)
    assert vocabulary.index_word[4:] == ["d", "c", "b"]
    assert vocabulary.encode(["b", "a"]) == [6, UNK]


def test_words_of_equal_frequency_are_ranked_alphabetically():
    vocabulary, _ = tokens_of(["pear fig apple kiwi pear"], size=3)
    assert vocabulary.index_word[4:] == ["pear", "apple", "fig"]


def test_counts_say_how_often_each_word_was_seen():
    images = images_of(["d d d d", "c c c b b a"])
    vocabulary = tc.build_vocabulary(tc.count_words(tc.split_captions(images, "train")),
                                     2, 2)
    assert vocabulary.counts == [0, 2, 2, 3, 4, 3]  # pad, start, end, UNK, d, c


def test_all_words_are_kept_where_there_are_fewer_than_wanted():
    vocabulary, tokens = tokens_of(["b a"], size=50)
    assert len(vocabulary) == 6 and UNK not in tokens.words


# --- arrays ---------------------------------------------------------------------------

def test_sequences_are_start_words_end_padding():
    vocabulary, tokens = tokens_of(["a b c d", "a"], ["b a"])
    a, b, c, d = vocabulary.encode(["a", "b", "c", "d"])
    np.testing.assert_array_equal(tokens.words, [[1, a, b, c, d, 2],
                                                 [1, a, 2, 0, 0, 0],
                                                 [1, b, a, 2, 0, 0]])
    assert tokens.lengths.tolist() == [5, 2, 3]
    assert tokens.image_of.tolist() == [0, 0, 1]
    assert vocabulary.index_word[:4] == ["<pad>", "<start>", "<end>", "UNK"]
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)


def test_no_caption_can_spell_a_special_token():
    vocabulary, tokens = tokens_of(["<pad> <start> <end> UNK unk"])
    assert SPECIAL == ("<pad>", "<start>", "<end>", "UNK")
    assert (tokens.words[0, 1:6] > UNK).all()
    assert vocabulary.decode(tokens.words[0]) == "pad start end unk unk"


def test_encode_and_decode_undo_each_other():
    vocabulary, tokens = tokens_of(["One red, red kite", "a man's"], ["kite"])
    assert [vocabulary.decode(row) for row in tokens.words] == [
        "one red red kite", "a man's", "kite"]
    words = vocabulary.index_word[4:]
    assert vocabulary.decode(vocabulary.encode(words)).split(" ") == words
    assert [vocabulary.word_index[w] for w in vocabulary.index_word] == list(
        range(len(vocabulary)))


def test_decoding_stops_at_the_first_end():
    vocabulary, _ = tokens_of(["a b"])
    a, b = vocabulary.encode(["a", "b"])
    assert vocabulary.decode([1, b, 3, a, 2, a, 2]) == "b UNK a"


def test_empty_and_too_long_captions_are_skipped_and_counted():
    images = images_of(["...", "a b c", "a b c d"], ["", "b"])
    split = tc.split_captions(images, "train")
    vocabulary = tc.build_vocabulary(tc.count_words(split), 5, 9)
    tokens, skipped = tc.tokenize(images, split, "train", vocabulary, 3)
    assert len(skipped) == 3 and len(tokens.words) == 2
    assert tokens.image_of.tolist() == [0, 1]
    with pytest.raises(cli.UserError, match="not one caption with 1 to 2 words"):
        long = images_of(["a b c"])
        tc.tokenize(long, tc.split_captions(long, "train"), "train", vocabulary, 2)


# --- the choice of images -------------------------------------------------------------

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_image_is_on_both_sides_and_each_is_on_one(seed):
    images = numbered(17)
    train, val = tc.split_by_image(images, .3, seed)
    names = [image.file_name for image in train + val]
    assert sorted(names) == [image.file_name for image in images]
    assert len(val) == 6  # 0.3 * 17, rounded up


def test_another_seed_splits_otherwise_and_the_same_seed_alike():
    images = numbered(17)
    again, first, other = (tc.split_by_image(images, .3, s)[1] for s in (4, 4, 5))
    assert again == first != other


@pytest.mark.parametrize("wanted", [1, 5, 11, 1000])
def test_num_examples_takes_whole_images_until_there_are_enough(wanted):
    images = numbered(13)
    kept = tc.limit(images, wanted, np.random.RandomState(0))
    counts = [len(image.captions) for image in kept]
    assert all(image in images for image in kept)  # with all their captions
    assert [i.id for i in kept] == sorted(i.id for i in kept)
    if wanted == 1000:
        assert kept == images
    else:  # one image fewer would not be enough, whichever came last
        assert wanted <= sum(counts) < wanted + 3


# --- damage ---------------------------------------------------------------------------

def one_line_naming(error, path):
    text = str(error.value)
    assert text.startswith(path) and "\n" not in text
    assert "tokenize_captions.py" in text


DAMAGES = {
    "header": lambda text: text[1:],
    "not a number": lambda text: text.replace("\t1\n", "\tx\n"),
    "a line is missing": lambda text: "\n".join(
        text.split("\n")[:6] + text.split("\n")[7:]),
    "a word is there twice": lambda text: text.replace("\tdog\t", "\tcat\t"),
    "special": lambda text: text.replace("<end>", "<fin>"),
    "empty word": lambda text: text.replace("\tdog\t", "\t\t"),
    "empty file": lambda text: "",
    "cut off": lambda text: text[:text.index("\tdog\t") + 2]}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_vocabulary_is_refused_in_one_line(damage, tmp_path):
    vocabulary = Vocabulary(["cat", "a", "dog", "the"], [0, 1, 1, 1, 5, 4, 1, 1])
    text = "index\tword\tcount\n" + "".join(
        f"{i}\t{word}\t{count}\n" for i, (word, count) in
        enumerate(zip(vocabulary.index_word, vocabulary.counts)))
    path = str(tmp_path / "vocabulary.tsv")
    with open(path, "w") as file:
        file.write(text)
    assert read_vocabulary(os.path.dirname(path)).index_word == vocabulary.index_word
    broken = DAMAGES[damage](text)
    assert broken != text
    with open(path, "w") as file:
        file.write(broken)
    with pytest.raises(cli.UserError) as error:
        read_vocabulary(os.path.dirname(path))
    one_line_naming(error, path)


def test_vocabulary_that_is_not_text_is_refused_in_one_line(tmp_path):
    path = str(tmp_path / "vocabulary.tsv")
    with open(path, "wb") as file:
        file.write(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(cli.UserError) as error:
        read_vocabulary(os.path.dirname(path))
    one_line_naming(error, path)


def test_missing_files_name_the_step_that_makes_them(tmp_path):
    folder = str(tmp_path)
    for name, read in (("vocabulary.tsv", lambda: read_vocabulary(folder)),
                       ("train.npz", lambda: read_tokens(folder, "train")),
                       ("references_val.json", lambda: read_references(folder, "val"))):
        with pytest.raises(cli.UserError) as error:
            read()
        one_line_naming(error, os.path.join(folder, name))


@pytest.fixture
def written(tmp_path):
    """A tokens file, and its arrays."""
    path = str(tmp_path / "train.npz")
    write_arrays(path, tokens_of(["a b c d", "a"], ["b a"])[1]._asdict(), compress=True)
    with np.load(path) as arrays:
        return path, {name: arrays[name] for name in arrays.files}


def test_tokens_come_back_as_they_were_written(written):
    path, _ = written
    vocabulary, tokens = tokens_of(["a b c d", "a"], ["b a"])
    back = read_tokens(os.path.dirname(path), "train")
    for name in ("words", "lengths", "image_of", "images", "image_ids"):
        np.testing.assert_array_equal(getattr(back, name), getattr(tokens, name))
        assert getattr(back, name).dtype == getattr(tokens, name).dtype
    assert back.vocabulary == vocabulary.digest()


@pytest.mark.parametrize("keep", [0, 1, 40, .3, .5, .9, .99])
def test_cut_off_tokens_are_refused_in_one_line(keep, written):
    path, _ = written
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:keep if isinstance(keep, int)
                           else int(keep * len(content))])
    with pytest.raises(cli.UserError) as error:
        read_tokens(os.path.dirname(path), "train")
    one_line_naming(error, path)


def test_tokens_with_a_flipped_byte_in_the_data_are_refused(written):
    path, _ = written
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("words.npy").header_offset + 30 + len("words.npy")
    with open(path, "r+b") as file:
        file.seek(offset + 12)
        byte = file.read(1)[0]
        file.seek(offset + 12)
        file.write(bytes([byte ^ 255]))
    with pytest.raises(cli.UserError) as error:
        read_tokens(os.path.dirname(path), "train")
    one_line_naming(error, path)


def test_pickled_objects_are_refused_and_never_run(written, tmp_path):
    path, arrays = written
    touched = str(tmp_path / "touched")

    class Evil:
        def __reduce__(self):
            return open, (touched, "w")

    np.savez(path, **dict(arrays, images=np.array([Evil(), Evil()])))
    assert not os.path.exists(touched)
    with pytest.raises(cli.UserError) as error:
        read_tokens(os.path.dirname(path), "train")
    one_line_naming(error, path)
    assert not os.path.exists(touched)


@pytest.mark.parametrize("name, value", [
    ("words", np.zeros((0, 6), np.int32)), ("words", np.zeros(6, np.int32)),
    ("words", np.zeros((3, 6), np.float32)), ("words", np.full((3, 6), -1, np.int32)),
    ("lengths", np.array([5, 2], np.int32)), ("lengths", np.array([6, 2, 3], np.int32)),
    ("lengths", np.array([5, 0, 3], np.int32)), ("lengths", np.array([5, 2, 3])),
    ("image_of", np.array([0, 0, 2], np.int32)),
    ("image_of", np.array([0, -1, 1], np.int32)),
    ("image_of", np.array([0., 0., 1.])),
    ("images", np.array(["a", "b", "c"])), ("images", np.array([1, 2])),
    ("image_ids", np.array(["a"]))])
def test_arrays_that_do_not_fit_together_are_refused(name, value, written):
    path, arrays = written
    np.savez(path, **dict(arrays, **{name: value}))
    with pytest.raises(cli.UserError) as error:
        read_tokens(os.path.dirname(path), "train")
    one_line_naming(error, path)


def test_tokens_without_one_of_the_arrays_are_refused(written):
    path, arrays = written
    del arrays["lengths"]
    np.savez(path, **arrays)
    with pytest.raises(cli.UserError) as error:
        read_tokens(os.path.dirname(path), "train")
    one_line_naming(error, path)


# --- the command ----------------------------------------------------------------------

def test_command_with_two_splits_takes_each_where_it_belongs(tmp_path):
    train, val = numbered(6), numbered(3, first=50)
    write_split(tmp_path, "train2014", train)
    write_split(tmp_path, "val2014", val)
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[3/6] tokenize captions\n")
    assert "python train.py --data" in done.stdout
    vocabulary, *both = results(tmp_path / "tokens")
    for tokens, images, split in zip(both, (train, val), ("train2014", "val2014")):
        assert tokens.images.tolist() == [f"{split}/{i.file_name}" for i in images]
        assert tokens.image_ids.tolist() == [str(i.id) for i in images]
        assert tokens.vocabulary == vocabulary.digest()
    assert captions_of(both[0], vocabulary) == {i.file_name: i.captions for i in train}


def test_vocabulary_comes_from_training_captions_only(tmp_path):
    write_split(tmp_path, "train", images_of(["a cat", "a dog"]))
    write_split(tmp_path, "val", images_of(["a zebra zebra zebra cat"], first=9))
    assert command(tmp_path).returncode == 0
    vocabulary, _, val = results(tmp_path / "tokens")
    assert sorted(vocabulary.index_word[4:]) == ["a", "cat", "dog"]
    assert captions_of(val, vocabulary) == {"009.jpg": ["a UNK UNK UNK cat"]}
    assert vocabulary.counts[UNK] == 0  # counted on training captions, too


def test_vocabulary_of_one_cut_split_comes_from_its_training_part(tmp_path):
    images = images_of(*([f"w{i}"] for i in range(10)))  # one word each, all different
    write_split(tmp_path, "train", images)
    assert command(tmp_path, "--val-fraction", "0.3").returncode == 0
    vocabulary, train, val = results(tmp_path / "tokens")
    assert len(train.images) == 7 and len(val.images) == 3
    assert set(train.images).isdisjoint(val.images)
    assert set(train.images) | set(val.images) == {
        f"train/{i.file_name}" for i in images}
    assert sorted(vocabulary.index_word[4:]) == sorted(
        i.captions[0] for i in images if f"train/{i.file_name}" in train.images)
    assert set(map(tuple, captions_of(val, vocabulary).values())) == {("UNK",)}


def test_vocab_size_of_the_command_counts_words_without_special_tokens(tmp_path):
    write_split(tmp_path, "train", images_of(["c c c b b a"]))
    write_split(tmp_path, "val", images_of(["a b c"], first=2))
    assert command(tmp_path, "--vocab-size", "2").returncode == 0
    vocabulary, train, _ = results(tmp_path / "tokens")
    assert vocabulary.index_word == list(SPECIAL) + ["c", "b"]
    assert captions_of(train, vocabulary) == {"001.jpg": ["c c c b b UNK"]}


def test_num_examples_of_the_command_is_of_both_splits_and_whole_images(tmp_path):
    everything = {}
    for split, images in (("train", numbered(30)), ("val", numbered(20, first=50))):
        write_split(tmp_path, split, images)
        everything.update((i.file_name, len(i.captions)) for i in images)
    assert command(tmp_path, "--num-examples", "20",
                   "--val-fraction", ".3").returncode == 0
    vocabulary, train, val = results(tmp_path / "tokens")
    assert 14 <= len(train.words) < 14 + 3 and 6 <= len(val.words) < 6 + 3
    for tokens in (train, val):
        assert {name: len(texts) for name, texts in
                captions_of(tokens, vocabulary).items()} == {
            os.path.basename(image): everything[os.path.basename(image)]
            for image in tokens.images}


@pytest.mark.parametrize("val", [0, 5])
def test_same_command_gives_the_same_bytes(val, tmp_path):
    write_split(tmp_path, "train", numbered(20))
    if val:
        write_split(tmp_path, "val", numbered(val, first=50))
    contents = []
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        folder = str(tmp_path / name)
        assert command(tmp_path, "--tokens", folder, "--num-examples", "21",
                       "--seed", seed).returncode == 0
        contents.append({})
        assert sorted(os.listdir(folder)) == [
            "references_train.json", "references_val.json", "train.npz", "val.npz",
            "vocabulary.tsv"]
        for file_name in os.listdir(folder):
            with open(os.path.join(folder, file_name), "rb") as file:
                contents[-1][file_name] = file.read()
    assert contents[0] == contents[1]
    assert contents[0]["train.npz"] != contents[2]["train.npz"]


@pytest.mark.parametrize("flags, words", [
    ((), "choose one with --train-split"),
    (("--train-split", "train2015"), "has no split train2015")])
def test_command_asks_which_of_two_training_splits(flags, words, tmp_path):
    for split in ("train2014", "train2017"):
        write_split(tmp_path, split, numbered(3))
    done = command(tmp_path, *flags)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tokenize_captions.py: ")


def test_one_image_cannot_be_split(tmp_path):
    write_split(tmp_path, "train", numbered(1))
    done = command(tmp_path)
    assert done.returncode == 2 and "one image cannot be split" in done.stderr


def test_damaged_annotations_leave_the_old_tokens_alone(tmp_path):
    write_split(tmp_path, "train", numbered(6))
    write_split(tmp_path, "val", numbered(3, first=50))
    assert command(tmp_path).returncode == 0
    folder = tmp_path / "tokens"
    before = results(folder)[1].words.tolist()
    with open(str(tmp_path / "annotations" / "captions_val.json"), "a") as file:
        file.write("}")
    done = command(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert results(folder)[1].words.tolist() == before


# --- Karpathy's splits ----------------------------------------------------------------

def karpathy(path, images):
    """Write a split file like Karpathy's: images are (split, name, captions, extra)."""
    content = {"dataset": "toy", "images": [
        dict({"filename": name, "split": split, "imgid": i,
              "sentences": [{"raw": caption, "tokens": caption.split()}
                            for caption in captions]}, **extra)
        for i, (split, name, captions, extra) in enumerate(images)]}
    path.write_text(json.dumps(content))
    return str(path)


FLICKR = [("train", "a.jpg", ["A cat.", "one cat"], {}),
          ("val", "b.jpg", ["a dog"], {}), ("test", "c.jpg", ["a cow"], {}),
          ("train", "d.jpg", ["a pig"], {})]
COCO = [("restval", "x.jpg", ["a cat"], {"filepath": "val2014", "cocoid": 71}),
        ("train", "y.jpg", ["a dog"], {"filepath": "train2014", "cocoid": 72}),
        ("val", "z.jpg", ["a cow"], {"filepath": "val2014", "cocoid": 73})]


def put(data, *paths):
    for path in paths:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(b"")


def test_karpathy_file_of_flickr_finds_the_images_wherever_they_are(tmp_path):
    data = tmp_path / "data"
    put(data, "Images/a.jpg", "Images/b.jpg", "more/c.jpg")
    file = karpathy(tmp_path / "dataset_flickr8k.json", FLICKR)
    done = command(data, "--karpathy", file)
    assert done.returncode == 0, done.stderr
    vocabulary, train, val = results(data / "tokens")
    test = read_tokens(str(data / "tokens"), "test")
    assert train.images.tolist() == ["Images/a.jpg", "images/d.jpg"]
    assert val.images.tolist() == ["Images/b.jpg"]
    assert test.images.tolist() == ["more/c.jpg"]
    assert sorted(vocabulary.index_word[4:]) == ["a", "cat", "one", "pig"]
    assert [t.image_ids.tolist() for t in (train, val, test)] == [["0", "3"], ["1"],
                                                                  ["2"]]


def test_karpathy_file_of_coco_trains_on_restval_and_names_ids_as_coco_does(tmp_path):
    data = tmp_path / "data"
    put(data, "train2014/y.jpg", "val2014/x.jpg", "val2014/z.jpg")
    file = karpathy(tmp_path / "dataset_coco.json", COCO)
    assert command(data, "--karpathy", file).returncode == 0
    _, train, val = results(data / "tokens")
    assert sorted(train.images) == ["train2014/y.jpg", "val2014/x.jpg"]
    assert sorted(train.image_ids) == ["71", "72"] and val.image_ids.tolist() == ["73"]
    assert not (data / "tokens" / "test.npz").exists()


def test_test_split_of_an_earlier_run_goes_away(tmp_path):
    data = tmp_path / "data"
    put(data, "i/a.jpg")
    file = karpathy(tmp_path / "k.json", FLICKR)
    assert command(data, "--karpathy", file).returncode == 0
    write_split(data, "train", numbered(6))
    assert command(data).returncode == 0
    assert sorted(os.listdir(str(data / "tokens"))) == [
        "references_train.json", "references_val.json", "train.npz", "val.npz",
        "vocabulary.tsv"]


@pytest.mark.parametrize("change", [
    {"filename": "../a.jpg"}, {"filename": 7}, {"sentences": "a cat"},
    {"sentences": [{"tokens": []}]}, {"sentences": ["a cat"]}, {"filepath": "/etc"},
    {"filepath": 7}, {"split": None}, {"imgid": None}])
def test_damaged_karpathy_file_is_refused_in_one_line(change, tmp_path):
    data = tmp_path / "data"
    put(data, "i/a.jpg")
    (split, name, captions, extra), *others = FLICKR
    file = karpathy(tmp_path / "k.json", [(split, name, captions, change)] + others)
    assert refused(command(data, "--karpathy", file)).startswith(file + ": ")
    assert not (data / "tokens").exists()


def test_karpathy_file_of_other_images_is_refused_in_one_line(tmp_path):
    data = tmp_path / "data"
    put(data, "i/other.jpg")
    file = karpathy(tmp_path / "k.json", FLICKR)
    assert "has none of the 4 images" in refused(command(data, "--karpathy", file))


# --- references -----------------------------------------------------------------------

def test_references_are_the_captions_as_people_wrote_them(tmp_path):
    write_split(tmp_path, "train", images_of(["A cat, sitting.", "!"]))
    write_split(tmp_path, "val", images_of(["\u00c4 dog"], [], first=5))
    assert command(tmp_path, "--max-bad", ".5").returncode == 0
    with open(str(tmp_path / "tokens" / "skipped_train.txt")) as file:
        assert file.read() == "train/001.jpg\t0 words\t!\n"
    tokens = str(tmp_path / "tokens")
    assert list(read_references(tokens, "train").values()) == [
        ["A cat, sitting.", "!"]]
    assert list(read_references(tokens, "val").values()) == [
        ["\u00c4 dog"]]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"1": "a"}',
                                     '{"1": [2]}', '{"1": []}'])
def test_damaged_references_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "references_val.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(cli.UserError) as error:
        read_references(str(tmp_path), "val")
    one_line_naming(error, str(path))
