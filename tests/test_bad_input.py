"""Bad input: one clear line that names it, exit status 2, and nothing half-written.

A small data set goes through all steps once. Each case spoils one thing in a copy of it
and runs one command, which must refuse and leave every other file as it was.
"""
import contextlib
import json
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from captioning.features import SHAPE, is_sound
from captioning.tokens import read_vocabulary
from worlds import COMMANDS, QUICK, refused

pytestmark = pytest.mark.fault("bad input")
# Only files that say what was wrong may appear
REPORTS = ("bad_features_train.txt", "unreadable_train.txt", "unreadable_val.txt",
           "skipped_train.txt", "skipped_val.txt", "strays_train.txt")


# --- ways to spoil a file -------------------------------------------------------------

CAPTIONS = "data/annotations/captions_train.json"


def put(path, content):
    """Write bytes or text."""
    def spoil():
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return spoil


def halve(path):
    def spoil():
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
    return spoil


def remove(path):
    def spoil():
        (shutil.rmtree if os.path.isdir(path) else os.remove)(path)
    return spoil


def edit(path, change):
    """Change the content of a JSON file in place: `change(content)`."""
    def spoil():
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        changed = change(content)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content if changed is None else changed, file)
    return spoil


def captions(change):
    return edit(CAPTIONS, change)


def every_caption(text):
    return captions(lambda content: [item.update(caption=text)
                                     for item in content["annotations"]] and None)


def array(path, change):
    """Replace the array in an .npy file by `change(array)`."""
    def spoil():
        values = change(np.load(path))
        with open(path, "wb") as file:
            np.save(file, values, allow_pickle=True)
    return spoil


def arrays(path, **changes):
    """Replace arrays of an .npz file by name."""
    def spoil():
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        for name, change in changes.items():
            content[name] = change(content[name])
        np.savez(path, **content)
    return spoil


def lines(path, change):
    """Replace the list of lines of a text file by `change(lines)`."""
    def spoil():
        with open(path, encoding="utf-8") as file:
            content = change(file.read().splitlines())
        put(path, "\n".join(content) + "\n")()
    return spoil


def objects(_):
    return np.array([{"a": 1}, None], object)


def png(width, height):
    """A PNG whose header claims a size, but without pixels."""
    def chunk(kind, content):
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(
        ">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b""))


def truncated_jpeg(path):
    def spoil():
        Image.new("RGB", (200, 200), "red").save(path, format="JPEG")
        halve(path)()
    return spoil


def nothing():
    pass


IMAGE = "data/train/scene_000001.png"
FEATURES = "data/features/train/scene_000001.png.npy"
VAL_FEATURES = "data/features/val/scene_000002.png.npy"
RUN = "checkpoints/a/"
KARPATHY = {"images": [{"filename": "x.jpg", "split": "train", "imgid": 0,
                        "sentences": [{"raw": "a dog"}]}]}


def tokens(*flags, words, spoil=nothing):
    return ("tokenize_captions.py", flags, spoil, words)


def features(*flags, words, spoil=nothing):
    return ("extract_features.py", flags, spoil, words)


def training(*flags, words, spoil=nothing):
    return ("train.py", flags, spoil, words)


def scoring(*flags, words, spoil=nothing):
    return ("evaluate.py", flags, spoil, words)


def drawing(*flags, words, spoil=nothing):
    return ("plot_attention.py", flags, spoil, words)


NAME = "captions_train.json"
CASES = {
    # --- annotations
    "no annotations": tokens(spoil=remove("data/annotations"), words="annotations"),
    "captions cut off": tokens(spoil=halve(CAPTIONS), words=NAME),
    "captions empty": tokens(spoil=put(CAPTIONS, ""), words=NAME),
    "captions no JSON": tokens(spoil=put(CAPTIONS, "a,b\n1,2\n"), words=NAME),
    "captions binary": tokens(spoil=put(CAPTIONS, b"\xff\xfe\x00"), words=NAME),
    "captions UTF-16": tokens(spoil=put(CAPTIONS, "{}".encode("utf-16")), words=NAME),
    "captions nested": tokens(spoil=put(CAPTIONS, "[" * 99999), words=NAME),
    "captions a list": tokens(spoil=put(CAPTIONS, "[]"), words="no list 'images'"),
    "no images": tokens(spoil=captions(lambda c: c.pop("images") and None),
                        words="no list 'images'"),
    "images no list": tokens(spoil=captions(lambda c: c.update(images={})),
                             words="no list 'images'"),
    "no list of captions": tokens(
        spoil=captions(lambda c: c.pop("annotations") and None),
        words="no list 'annotations'"),
    "image without id": tokens(
        spoil=captions(lambda c: c["images"][1].pop("id") and None),
        words="item 1 of 'images' has no valid 'id'"),
    "image id true": tokens(
        spoil=captions(lambda c: c["images"][2].update(id=True)),
        words="item 2 of 'images' has no valid 'id'"),
    "image id 1.5": tokens(spoil=captions(lambda c: c["images"][0].update(id=1.5)),
                           words="item 0 of 'images'"),
    "image a string": tokens(
        spoil=captions(lambda c: c["images"].__setitem__(0, "x.jpg")),
        words="item 0 of 'images'"),
    "file name a number": tokens(
        spoil=captions(lambda c: c["images"][0].update(file_name=7)),
        words="no valid 'file_name'"),
    "file name empty": tokens(
        spoil=captions(lambda c: c["images"][0].update(file_name="")),
        words="leads out"),
    "file name leads up": tokens(
        spoil=captions(lambda c: c["images"][0].update(file_name="../../x.jpg")),
        words="leads out"),
    "file name absolute": tokens(
        spoil=captions(lambda c: c["images"][0].update(file_name="/etc/passwd")),
        words="leads out"),
    "file name with a zero byte": tokens(
        spoil=captions(lambda c: c["images"][0].update(file_name="a\0.jpg")),
        words="leads out"),
    "two images of one id": tokens(
        spoil=captions(lambda c: c["images"][1].update(id=c["images"][0]["id"])),
        words="two images with id"),
    "caption null": tokens(
        spoil=captions(lambda c: c["annotations"][3].update(caption=None)),
        words="item 3 of 'annotations' has no valid 'caption'"),
    "caption of no image": tokens(
        spoil=captions(lambda c: c["annotations"][0].pop("image_id") and None),
        words="no valid 'image_id'"),
    "captions of other images": tokens(
        spoil=captions(lambda c: [item.update(image_id=item["image_id"] + 1000)
                                  for item in c["annotations"]] and None),
        words="strays_train.txt: lists 40 of 40 captions"),
    "no caption at all": tokens(spoil=captions(lambda c: c.update(annotations=[])),
                                words="not one caption"),
    "no image at all": tokens(
        spoil=captions(lambda c: c.update(images=[], annotations=[])),
        words="train"),
    "empty captions": tokens(spoil=every_caption(" \n "), words="not one caption"),
    "only punctuation": tokens(spoil=every_caption("?! ... --"),
                               words="not one caption"),
    "some empty captions": tokens(
        spoil=captions(lambda c: [item.update(caption="")
                                  for item in c["annotations"][:5]] and None),
        words="skipped_train.txt: lists 5 of "),
    "some captions of 400 words": tokens(
        spoil=captions(lambda c: [item.update(caption="red " * 400)
                                  for item in c["annotations"][:5]] and None),
        words="skipped_train.txt: lists 5 of "),
    "unknown training split": tokens("--train-split", "nope", words="no split nope"),
    "unknown validation split": tokens("--val-split", "nope", words="no split nope"),
    "no Karpathy file": tokens("--karpathy", "none.json", words="none.json"),
    "Karpathy file cut off": tokens("--karpathy", "k.json", words="k.json",
                                    spoil=put("k.json", '{"images": [')),
    "Karpathy file of another schema": tokens(
        "--karpathy", CAPTIONS, words="no valid 'filename'"),
    "Karpathy file of other images": tokens(
        "--karpathy", "k.json", words="has none of the 1 images",
        spoil=put("k.json", json.dumps(KARPATHY))),
    "data that is not there": tokens("--data", "nowhere", words="nowhere"),
    "tokens where a file is": tokens("--tokens", CAPTIONS, words=NAME),
    "vocabulary of 0 words": tokens("--vocab-size", "0", words="at least 1"),
    "vocabulary of -3 words": tokens("--vocab-size", "-3", words="at least 1"),
    "vocabulary of 100,000 words": tokens("--vocab-size", "99996",
                                          words="below 99996"),
    "vocabulary of many words": tokens("--vocab-size", "many", words="not a number"),
    "captions of 0 words": tokens("--max-words", "0", words="at least 1"),
    "0 examples": tokens("--num-examples", "0", words="at least 1"),
    "all for validation": tokens("--val-fraction", "1", words="below 1"),
    "share above 1": tokens("--max-bad", "1.5", words="at most 1"),
    "negative seed": tokens("--seed", "-1", words="at least 0"),
    "seed of 33 bits": tokens("--seed", "4294967296", words="at most 4294967295"),
    "unknown flag": tokens("--sed", "1", words="--sed"),
    "half a flag": tokens("--vocab", "9", words="--vocab"),
    # --- images and their network
    "images not there": features(
        spoil=lambda: (remove("data/train")(), remove("data/features/train")()),
        words="nor 7 others of the 8 images of train"),
    "image not there": features(spoil=lambda: (remove(IMAGE)(), remove(FEATURES)()),
                                words="nor 0 others of the 8 images of train"),
    "image empty": features(spoil=lambda: (put(IMAGE, "")(), remove(FEATURES)()),
                            words="1 of 8 images of train, more"),
    "image cut off": features(
        spoil=lambda: (truncated_jpeg(IMAGE)(), remove(FEATURES)()),
        words="1 of 8 images of train, more"),
    "image a text": features(
        spoil=lambda: (put(IMAGE, "<html>no</html>")(), remove(FEATURES)()),
        words="1 of 8 images of train, more"),
    "image a bomb": features(
        spoil=lambda: (put(IMAGE, png(60000, 60000))(), remove(FEATURES)()),
        words="1 of 8 images of train, more"),
    "image of 0 pixels": features(
        spoil=lambda: (put(IMAGE, png(0, 9))(), remove(FEATURES)()),
        words="1 of 8 images of train, more"),
    "image a folder": features(
        spoil=lambda: (remove(IMAGE)(), os.mkdir(IMAGE), remove(FEATURES)()),
        words="1 of 8 images of train, more"),
    "weights not there": features("--weights", "w.h5", "--features", "f",
                                  words="w.h5: no such weights"),
    "weights a text": features("--weights", "w.h5", "--features", "f",
                               spoil=put("w.h5", "no weights"), words="w.h5: not"),
    "other weights": features("--weights", "imagenet", words="choose another folder"),
    "another type": features("--dtype", "float32", words="choose another folder"),
    "record of the network damaged": features(
        spoil=put("data/features/extractor.json", "{"), words="extractor.json"),
    "record of the network a list": features(
        spoil=put("data/features/extractor.json", "[]"), words="extractor.json"),
    "features where a file is": features("--features", CAPTIONS, words=NAME),
    "batch of 0 images": features("--batch-size", "0", words="at least 1"),
    "batch of -1 images": features("--batch-size", "-1", words="at least 1"),
    "unknown type": features("--dtype", "int8", words="invalid choice"),
    "unknown split of images": features("--splits", "nope", words="captions_nope.json"),
    "negative share": features("--max-bad", "-.1", words="at least 0"),
    "share nan": features("--max-bad", "nan", words="not a finite number"),
    # --- tokens, features and runs
    "tokens not there": training(spoil=remove("data/tokens"), words="run tokenize"),
    "training tokens cut off": training(spoil=halve("data/tokens/train.npz"),
                                        words="train.npz"),
    "validation tokens empty": training(spoil=put("data/tokens/val.npz", ""),
                                        words="val.npz"),
    "tokens pickled": training(spoil=arrays("data/tokens/train.npz", words=objects),
                               words="train.npz"),
    "tokens of floats": training(
        spoil=arrays("data/tokens/train.npz", words=lambda w: w.astype(float)),
        words="do not fit together"),
    "tokens of another vocabulary": training(
        spoil=arrays("data/tokens/train.npz", vocabulary=lambda v: np.array("x")),
        words="does not belong to train.npz"),
    "word number too high": training(
        spoil=arrays("data/tokens/train.npz",
                     words=lambda w: w + np.int32(4000) * (w > 3)),
        words="train.npz: has words that are not in the vocabulary"),
    "vocabulary not there": training(spoil=remove("data/tokens/vocabulary.tsv"),
                                     words="vocabulary.tsv"),
    "vocabulary cut off": training(
        spoil=lines("data/tokens/vocabulary.tsv", lambda rows: rows[:9]),
        words="vocabulary.tsv"),
    "vocabulary of two equal words": training(
        spoil=lines("data/tokens/vocabulary.tsv", lambda rows: rows[:6] + [
            "5" + rows[5][1:]] + rows[7:]), words="vocabulary.tsv"),
    "vocabulary binary": training(spoil=put("data/tokens/vocabulary.tsv", b"\xff"),
                                  words="vocabulary.tsv"),
    "references cut off": training(
        "--select", "cider", "--run", "b",
        spoil=halve("data/tokens/references_val.json"), words="references_val.json"),
    "no features": training(spoil=remove("data/features"), words="run extract"),
    "features of another shape": training(
        spoil=array(FEATURES, lambda a: a[:, :, :7]), words="1 of 8 features of train"),
    "features of integers": training(
        spoil=array(FEATURES, lambda a: a.astype(int)), words="1 of 8 features"),
    "features cut off": training(spoil=halve(FEATURES), words="1 of 8 features"),
    "features empty": training(spoil=put(FEATURES, ""), words="1 of 8 features"),
    "features pickled": training(spoil=array(FEATURES, objects),
                                 words="1 of 8 features"),
    "features a pickle": training(
        spoil=put(FEATURES, pickle.dumps(np.zeros(SHAPE, np.float16))),
        words="1 of 8 features"),
    "features a text": training(spoil=put(FEATURES, "text"), words="1 of 8 features"),
    "run in a folder": training("--run", "../b", words="--run: '../b'"),
    "run without a name": training("--run", "", words="--run"),
    "run like a flag": training("--run=-b", words="--run: '-b'"),
    "settings damaged": training(spoil=put(RUN + "settings.json", "{"),
                                 words="settings.json"),
    "record of the images damaged": training(spoil=put(RUN + "split.json", "{}"),
                                             words="split.json"),
    "run of other sizes": training("--units", "5", words="another units, sizes"),
    "run of another seed": training("--seed", "5", words="another seed"),
    "batch of 0 captions": training("--batch-size", "0", words="at least 1"),
    "0 epochs": training("--epochs", "0", words="at least 1"),
    "all dropped out": training("--dropout", "1", words="below 1"),
    "learning rate nan": training("--learning-rate", "nan", words="finite"),
    "learning rate -1": training("--learning-rate", "-1", words="above 0"),
    "decay 2": training("--decay", "2", words="at most 1"),
    "guidance -1": training("--guidance", "-1", words="at least 0"),
    "a part that is none": training("--without", "gates", words="invalid choice"),
    "a recipe that is not there": training("@recipes/non.txt", words="non.txt"),
    "100000 units": training("--units", "100000", words="below 100000"),
    "penalty -1": training("--penalty", "-1", words="at least 0"),
    "unknown optimizer": training("--optimizer", "sgd", words="invalid choice"),
    # --- checkpoints and decoding
    "unknown run": scoring("--run", "b", words="no such run"),
    "checkpoint not there": scoring(spoil=remove(RUN + "best.npz"), words="best.npz"),
    "checkpoint cut off": scoring(spoil=halve(RUN + "best.npz"), words="best.npz"),
    "checkpoint empty": scoring(spoil=put(RUN + "best.npz", ""), words="best.npz"),
    "checkpoint pickled": scoring(spoil=arrays(RUN + "best.npz", progress=objects),
                                  words="best.npz"),
    "checkpoint of other sizes": scoring(
        spoil=arrays(RUN + "best.npz", U=lambda U: U[:2]), words="U has shape"),
    "checkpoint not finite": scoring(
        spoil=arrays(RUN + "best.npz", U=lambda U: U * np.nan),
        words="U is not finite"),
    "vocabulary of another run": scoring(
        spoil=lines(RUN + "vocabulary.tsv", lambda rows: rows[:-1]),
        words="put the run's own vocabulary back"),
    "settings not there": scoring(spoil=remove(RUN + "settings.json"),
                                  words="no such run"),
    "settings without sizes": scoring(
        spoil=edit(RUN + "settings.json", lambda c: c.pop("sizes") and None),
        words="settings.json"),
    "settings with a strange size": scoring(
        spoil=edit(RUN + "settings.json", lambda c: c["sizes"].update(hidden=-4)),
        words="settings.json"),
    "no test split": scoring("--split", "test", words="test.npz"),
    "split that was trained on": scoring("--split", "train", words="--allow-seen"),
    "references not there": scoring(spoil=remove("data/tokens/references_val.json"),
                                    words="references_val.json"),
    "references a list": scoring(spoil=put("data/tokens/references_val.json", "[1]"),
                                 words="references_val.json"),
    "references of other images": scoring(
        spoil=put("data/tokens/references_val.json", '{"x": ["a dog"]}'),
        words="references_val.json"),
    "features not finite": scoring(
        spoil=array(VAL_FEATURES, lambda a: a * np.nan), words="not finite"),
    "comparison with nothing": scoring("--compare", "b", words="b"),
    "beam 0": scoring("--beam", "0", words="at least 1"),
    "captions of 0 steps": scoring("--max-steps", "0", words="at least 1"),
    "length power -1": scoring("--length-power", "-1", words="at least 0"),
    "unknown split": scoring("--split", "dev", words="invalid choice"),
    "unknown checkpoint": scoring("--checkpoint", "last", words="invalid choice"),
    # --- figures
    "not decoded": drawing(spoil=remove(RUN + "attention_val.npz"),
                           words="attention_val.npz"),
    "attention cut off": drawing(spoil=halve(RUN + "attention_val.npz"),
                                 words="attention_val.npz"),
    "attention of another grid": drawing(
        spoil=arrays(RUN + "attention_val.npz", alphas=lambda a: a[:, :, :60]),
        words="maps of 60 cells"),
    "attention not finite": drawing(
        spoil=arrays(RUN + "attention_val.npz", alphas=lambda a: a * np.inf),
        words="attention_val.npz"),
    "attention of another vocabulary": drawing(
        spoil=arrays(RUN + "attention_val.npz", words=lambda w: w + 9000),
        words="attention_val.npz"),
    "unknown image": drawing("--images", "x.jpg", words="x.jpg"),
    "picture not there": drawing("--picture", "x.jpg", words="x.jpg"),
    "picture a text": drawing("--picture", CAPTIONS, words=NAME),
    "picture a folder": drawing("--picture", "data", words="data"),
    "picture of features of unknown origin": drawing(
        "--picture", IMAGE, spoil=lambda: (
            remove("data/features/extractor.json")(),
            edit(RUN + "settings.json", lambda c: c.update(extractor=None))()),
        words="extractor.json"),
    "image gone": drawing(spoil=remove("data/val"), words="no such picture"),
    "0 figures": drawing("--count", "0", words="at least 1"),
    # --- downloads and drawing
    # One image, since room for all of COCO is checked before contacting a server
    "no server": ("download_coco.py", ("--num-images", "1"), nothing,
                  "http://127.0.0.1:1"),
    "mirror no address": ("download_coco.py", ("--mirror", "coco"), nothing, "coco"),
    "unknown year": ("download_coco.py", ("--year", "1999"), nothing, "1999"),
    "0 images": ("download_coco.py", ("--num-images", "0"), nothing, "at least 1"),
    "0 workers": ("download_coco.py", ("--workers", "0"), nothing, "at least 1"),
    "split of no year": ("download_coco.py", ("--splits", "test"), nothing, "test"),
    "data where a file is": ("download_coco.py", ("--data", CAPTIONS), nothing, NAME),
    "0 scenes": ("demo.draw_scenes", ("--train", "0"), nothing, "at least 1"),
    "scenes of 3 pixels": ("demo.draw_scenes", ("--size", "3"), nothing, "at least 32"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_bad_input_gets_one_line_and_nothing_is_lost(name, world, capsys):
    script, flags, spoil, words = CASES[name]
    spoil()
    before = world.files()
    line = refused(world, capsys, script, *flags)
    assert words in line
    after = world.files()
    lost = [path for path in before if path not in after]
    changed = [path for path in before if path in after
               and before[path] != after[path]]
    new = [path for path in after if path not in before and after[path]
           and os.path.basename(path) not in REPORTS]
    assert (lost, changed, new) == ([], [], [])


@contextlib.contextmanager
def nobody():
    """Run without the administrator's right to open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("script, closed", [
    ("tokenize_captions.py", "data/tokens"), ("tokenize_captions.py", CAPTIONS),
    ("extract_features.py", "data/features"), ("train.py", "checkpoints/a"),
    ("train.py", "data/tokens/train.npz"), ("evaluate.py", "checkpoints/a"),
    ("evaluate.py", RUN + "best.npz"), ("plot_attention.py", "checkpoints/a")])
def test_what_may_not_be_opened_is_named(script, closed, world, capsys):
    for folder, _, names in os.walk(world.folder):
        os.chmod(folder, 0o777)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o666)
    parent = world.folder
    while parent != "/":  # pytest's folders are closed to other users
        parent = os.path.dirname(parent)
        if parent.startswith("/tmp/"):
            os.chmod(parent, 0o755)
    os.chmod(closed, 0o555 if os.path.isdir(closed) else 0)
    before = world.files()
    try:
        with nobody():
            line = refused(world, capsys, script)
    finally:
        os.chmod(closed, 0o755)
    assert closed in line or os.path.basename(closed) in line
    assert world.files() == before


# --- unusual, but not bad -------------------------------------------------------------

@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (1, 700)])
def test_picture_of_unusual_proportions_is_used(size, world):
    Image.new("RGB", size, "red").save(IMAGE)
    os.remove(FEATURES)
    assert world("extract_features.py", *COMMANDS["extract_features.py"]) == 0
    assert is_sound(FEATURES, SHAPE)


def test_first_frame_of_an_animation_is_used(world):
    frames = [Image.new("P", (9, 9), i) for i in range(3)]
    frames[0].save(IMAGE, format="GIF", save_all=True, append_images=frames[1:])
    os.remove(FEATURES)
    assert world("extract_features.py", *COMMANDS["extract_features.py"]) == 0
    assert is_sound(FEATURES, SHAPE)


def test_captions_in_any_script_are_words(world):
    every_caption("Красный круг 红 圆 kırmızı ÇEMBER دائرة")()
    assert world("tokenize_captions.py") == 0
    vocabulary = read_vocabulary("data/tokens")
    assert {"красный", "红", "圆", "دائرة"} <= set(vocabulary.index_word)


@pytest.mark.parametrize("name", ["with spaces", "größer", "'quote\"", "%s$x"])
def test_folder_of_any_name_goes_through_all_steps(name, world, capsys):
    shutil.rmtree("checkpoints")
    os.rename("data", name)
    shutil.rmtree(os.path.join(name, "tokens"))
    data = "--data=" + name
    for script, *flags in (
            ("extract_features.py", data, "--weights", "random"),
            ("tokenize_captions.py", data), ("train.py", data, "--run", "a", *QUICK),
            ("evaluate.py", "--run", "a"),
            ("plot_attention.py", "--run", "a", "--count", "1")):
        assert world(script, *flags) == 0, capsys.readouterr().err
    assert os.listdir("checkpoints/a/attention")


def test_image_of_any_name_goes_through_all_steps(world):
    names = ["a b.png", "ä.png", "-x.png", "#1%20.png"]
    for folder in ("data/features", "data/tokens", "checkpoints"):
        shutil.rmtree(folder)

    def rename(content):
        for image, name in zip(content["images"], names):
            os.rename(f"data/val/{image['file_name']}", f"data/val/{name}")
            image["file_name"] = name
    edit("data/annotations/captions_val.json", rename)()
    for script, *flags in (
            ("extract_features.py", "--weights", "random"), ("tokenize_captions.py",),
            ("train.py", "--run", "a", *QUICK), ("evaluate.py", "--run", "a"),
            ("plot_attention.py", "--run", "a", "--count", "4")):
        assert world(script, *flags) == 0
    assert sorted(os.listdir("checkpoints/a/attention")) == sorted(names)
