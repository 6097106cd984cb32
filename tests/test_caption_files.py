"""All captions in one file: Kaggle's tables, other tables, Karpathy's splits."""
import json
import os
import re
import sys

import pytest
from PIL import Image

import tokenize_captions
from captioning.caption_files import read_caption_file
from captioning.coco import FAQ, advice, images_of
from captioning.tokens import read_tokens
from commands import ROOT, exit_status
from runtime import cli
from test_house import sources, strings

QUOTED = 'A "big" dog, and a man.'
TABLES = {
    "kaggle": f'image,caption\na.jpg,"{QUOTED.replace(chr(34), chr(34) * 2)}"\n'
              'b.jpg,one cat\na.jpg,two words\n',
    "other columns in another order":
        '\ufeffid;Caption;FILENAME;size\n7;"A ""big"" dog, and a man.";a.jpg;3\n'
        '8;one cat;b.jpg;4\n\n9;two words;a.jpg;3\n',
    "tabs, Windows": 'file_name\ttext\r\na.jpg\tA "big" dog, and a man.\r\n'
                     'b.jpg\tone cat\r\na.jpg\ttwo words\r\n',
    "Flickr30k": f'image_name| comment_number| comment\na.jpg| 0| {QUOTED}\n'
                 'b.jpg| 0| one cat\na.jpg| 1| two words\n',
    "Flickr8k.token": f'a.jpg#0\t{QUOTED}\nb.jpg#0\tone cat\na.jpg#1\ttwo words\n',
    "paths": '\nimage,caption\nImages/a.jpg,"A ""big"" dog, and a man."\n'
             './Images//b.jpg,one cat\nImages\\a.jpg,two words\n',
    "paths of another machine": 'path,caption\n/x/Images/a.jpg,"A ""big"" dog, and a '
                                'man."\nC:\\b.jpg,one cat\n/x/Images/a.jpg,two words\n'}


@pytest.fixture
def data(tmp_path):
    """A folder with pictures (empty files) in Images, where `write` puts tables."""
    (tmp_path / "Images").mkdir()
    for name in "abcdefgh":
        (tmp_path / "Images" / f"{name}.jpg").touch()
    return tmp_path


def write(data, content, name="captions.txt", encoding="utf-8"):
    path = data / name
    path.write_bytes(content.encode(encoding))
    return str(path)


def read(data, content, **how):
    return read_caption_file(write(data, content, **how), str(data))


def refusal(data, content, **how):
    with pytest.raises(cli.UserError) as found:
        read(data, content, **how)
    assert "captions.txt" in str(found.value) and "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_table_of_any_make_gives_the_images_with_their_captions(kind, data):
    groups = read(data, TABLES[kind])
    assert {name: [(image.path, image.captions) for image in images]
            for name, images in groups.items()} == {"train": [
                ("Images/a.jpg", [QUOTED, "two words"]), ("Images/b.jpg", ["one cat"])]}


def test_caption_may_have_lines_and_a_column_may_say_the_split(data):
    groups = read(data, 'caption,split,image\n"two\nlines",val,a.jpg\nx,test,b.jpg\n')
    assert groups["val"][0].captions == ["two\nlines"]
    assert groups["test"][0].path == "Images/b.jpg"


def test_images_may_lie_beside_the_table(data):
    (data / "z.jpg").touch()
    image, = read(data, "image,caption\nz.jpg,a dog\n")["train"]
    assert image.path == "z.jpg"


def test_rows_without_an_image_or_a_caption_are_told(data, capsys):
    groups = read(data, "image,caption\na.jpg,\n,a dog\nb.jpg\nc.jpg,a cat\n")
    assert [image.path for image in groups["train"]] == ["Images/c.jpg"]
    assert "skipped 3 rows" in capsys.readouterr().err


@pytest.mark.parametrize("content, how, words", [
    ("a.jpg,a dog\n", {}, "names the columns, as image,caption"), ("", {}, "names the"),
    ("image,caption\na.jpg,\u00e9\n", {"encoding": "latin-1"}, "save it as UTF-8"),
    ("image,caption\na.jpg,\u00e9\n", {"encoding": "utf-16"}, "save it as UTF-8"),
    ('image,caption\na.jpg,"a dog\nb.jpg,a cat\nc.jpg,"" a pig\n', {}, "never closed"),
    ("image,caption\nx.jpg,a dog\n", {}, "has none of the 1 images"),
    ("image,caption\nx/a.jpg,a dog\ny/a.jpg,a cat\n", {}, "are one file"),
    ("image,text,split\na.jpg,a dog,train\na.jpg,a cat,val\n", {}, "is in train an")])
def test_table_that_cannot_be_understood_is_refused_in_one_line(content, how, words,
                                                                data):
    assert words in refusal(data, content, **how)


def test_image_in_two_folders_is_asked_about(data):
    (data / "small").mkdir()
    (data / "small" / "a.jpg").touch()
    assert "is in Images and in small" in refusal(data, TABLES["kaggle"])


def test_folder_that_may_not_be_read_matters_only_where_images_are_missing(
        data, monkeypatch, capsys):
    (data / "lost+found").mkdir()
    listdir = os.listdir

    def refuse(path):
        if "lost+found" in path:
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)
    monkeypatch.setattr(os, "listdir", refuse)
    assert len(read(data, TABLES["kaggle"])["train"]) == 2
    assert capsys.readouterr().err == ""
    read(data, TABLES["kaggle"] + "gone.jpg,a pig\n")
    assert "1 images are not there, and lost+found cannot be read" in (
        capsys.readouterr().err)


# --- step 3 ---------------------------------------------------------------------------

@pytest.fixture
def step(data, monkeypatch):
    """Run step 3 on a table of eight images with two captions each: (train, val)."""
    write(data, "image,caption\n" + "".join(
        f"{name}.jpg,a {kind} {name}{name}\n" for name in "abcdefgh"
        for kind in ("dog", "cat")))
    monkeypatch.chdir(data)

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["tokenize_captions.py", "--data", ".",
                                          *flags])
        assert exit_status(tokenize_captions.main) == 0
        return [read_tokens("tokens", name).images.tolist()
                for name in ("train", "val")]
    return call


@pytest.mark.parametrize("flag", ["--captions", "--karpathy"])
def test_table_is_cut_by_image_with_fraction_and_seed(flag, step):
    quarter = (flag, "captions.txt", "--val-fraction", ".25")
    train, val = step(*quarter)
    assert len(train) == 6 and len(val) == 2 and not set(train) & set(val)
    assert step(*quarter) == [train, val]
    assert step(*quarter, "--seed", "5") != [train, val]
    assert len(step(flag, "captions.txt", "--val-fraction", ".5")[1]) == 4


def test_an_older_test_split_goes_when_a_table_has_none(step, data):
    images = [{"filename": f"{name}.jpg", "split": split, "imgid": i,
               "sentences": [{"raw": "a dog"}]} for i, (name, split) in
              enumerate([("a", "train"), ("b", "val"), ("c", "test")])]
    write(data, "\n" + json.dumps({"images": images}), "k.txt")  # JSON by content
    assert step("--captions", "k.txt") == [["Images/a.jpg"], ["Images/b.jpg"]]
    assert os.path.exists("tokens/test.npz")
    step("--captions", "captions.txt")
    assert not os.path.exists("tokens/test.npz")


# --- one image, one spelling ----------------------------------------------------------

def test_image_that_is_spelled_twice_is_one(data, capsys):
    content = {"images": [{"id": 1, "file_name": "d//e.jpg"},
                          {"id": 2, "file_name": "./d/e.jpg"}],
               "annotations": [{"image_id": 1, "caption": "a"},
                               {"image_id": 2, "caption": "b"}]}
    image, = images_of(content, "c.json", "train")
    assert (image.path, image.captions) == ("train/d/e.jpg", ["a", "b"])


def test_karpathy_s_images_of_two_spellings_are_never_on_both_sides(data):
    images = [{"filename": name, "split": split, "imgid": i, "filepath": folder,
               "sentences": [{"raw": "a dog"}]} for i, (folder, name, split) in
              enumerate([("Images", "a.jpg", "train"), ("./Images", "a.jpg", "val")])]
    assert "Images/a.jpg is in train and in val" in refusal(
        data, json.dumps({"images": images}))


# --- what the documents say -----------------------------------------------------------

def blocks(title):
    """The code blocks below a heading of the FAQ: [(language, text)]."""
    with open(os.path.join(ROOT, "docs", "faq.md"), encoding="utf-8") as file:
        section = file.read().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w*)\n(.*?)```", section, re.S)


@pytest.mark.parametrize("way", [0, 1])
def test_faq_s_own_data_go_through_the_steps_as_they_stand_there(way, tmp_path,
                                                                 monkeypatch):
    from worlds import QUICK, World, without_network
    world = World(tmp_path, monkeypatch)
    without_network(monkeypatch)
    tree, content, commands = blocks("My own data")[3 * way:3 * way + 3]
    captions, *pictures = tree[1].split()
    os.makedirs(os.path.dirname(captions))
    with open(captions, "w", encoding="utf-8") as file:
        file.write(content[1])
    for path in pictures:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new("RGB", (9, 7)).save(path)
    lines = [line.split() for line in commands[1].splitlines()]
    assert [line[1] for line in lines] == ["extract_features.py",
                                           "tokenize_captions.py", "train.py"]
    for _, script, *flags in lines:
        assert world(script, *flags, *(QUICK if script == "train.py" else ())) == 0
    assert os.path.exists("checkpoints/photos/best.npz")


def test_faq_has_the_sections_that_messages_name():
    assert blocks("My own data") and 'docs/faq.md, "My own data"' == FAQ


@pytest.mark.parametrize("folder, of, step_1", [
    ("Images", "train", False), ("Images", "val2014", True), ("Images", "", False),
    ("nowhere", "", True), ("archives", "", True)])
def test_only_cocos_data_are_to_be_had_from_step_1(folder, of, step_1, data):
    where = str(data / "Images") if folder == "Images" else str(data / "nowhere")
    if folder == "archives":
        (data / "archives").mkdir()
        where = str(data)
    words = advice(where, of)
    assert ("download_coco.py" in words) == step_1
    assert (FAQ in words) == (of != "val2014" and folder != "archives")


def test_no_other_message_sends_anybody_to_step_1():
    naming = {path: [text for text in strings(tree) if "download_coco" in text]
              for path, tree in sources().items() if path != "download_coco.py"}
    assert [path for path, found in naming.items() if found] == ["captioning/coco.py"]
    assert len(naming["captioning/coco.py"]) == 2  # both in `advice`


@pytest.mark.parametrize("name, words", [
    ("captions_train.json", 'see docs/faq.md, "My own data"'),
    ("captions_train2014.json", "run download_coco.py again")])
def test_damaged_annotations_of_ones_own_are_to_be_corrected(name, words, data):
    with pytest.raises(cli.UserError) as found:
        images_of({}, str(data / "annotations" / name), "train")
    assert str(found.value).endswith("; correct it, or " + words)
