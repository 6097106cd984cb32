"""No bad item ends a long job, and no error surfaces only after hours."""
import json
import os
import shutil
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import download_coco
import extract_features
from captioning import scores
from captioning.features import SHAPE
from captioning.pictures import Unreadable, load_picture, upright
from captioning.tokens import read_tokens
from commands import ROOT, environment, finished
from runtime import cli
from runtime.tf import tf
from worlds import COMMANDS, refused

EXTRACT = ("extract_features.py", *COMMANDS["extract_features.py"])


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def edit(path, change):
    content = json.loads(read(path))
    change(content)
    with open(path, "w") as file:
        json.dump(content, file)


# --- pictures -------------------------------------------------------------------------

def odd_exif(path):
    """A sound picture, on its side, whose EXIF resolution unit has the wrong type."""
    tags = [(0x112, 3, 1, b"\0\6\0\0"), (0x128, 4, 1, struct.pack(">I", 70000))]
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + b"".join(
        struct.pack(">HHI", *tag[:3]) + tag[3] for tag in tags) + b"\0" * 4
    Image.new("RGB", (64, 32), "red").save(path, exif=exif)


def half_webp(path):
    Image.radial_gradient("L").convert("RGB").save("whole.webp")
    with open("whole.webp", "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])


def test_sound_picture_with_odd_metadata_is_used_and_turned(tmp_path):
    path = str(tmp_path / "a.jpg")
    odd_exif(path)
    assert upright(path).size == (32, 64)
    assert load_picture(path, 64).shape == (64, 32, 3)


def test_twelve_bits_in_sixteen_are_not_black(tmp_path):
    path = str(tmp_path / "xray.png")
    deep = np.tile(np.linspace(0, 4095, 64), (8, 1)).astype(np.uint16)
    Image.fromarray(deep).save(path)
    assert np.asarray(upright(path)).max() > 250


def test_whatever_pillow_raises_is_an_unreadable_picture(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(path)
    for error in (struct.error("x"), KeyError("x"), ZeroDivisionError(), MemoryError(),
                  RuntimeError("")):
        def fail(*args, error=error):
            raise error
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", fail)
            with pytest.raises(Unreadable) as found:
                upright(path)
            assert str(found.value)


@pytest.mark.parametrize("spoil, used", [(odd_exif, True), (half_webp, False)])
def test_odd_picture_among_many_is_used_or_skipped(spoil, used, world, capsys):
    path = "data/train/scene_000003.png"
    os.rename(path, "data/train/x.jpg")
    spoil(path)
    shutil.rmtree("data/features")
    status = world(*EXTRACT, "--max-bad", ".2")
    errors = capsys.readouterr().err
    assert status == 0 and "Traceback" not in errors
    assert os.path.exists("data/features/train/scene_000003.png.npy") == used
    assert os.path.exists("data/features/unreadable_train.txt") != used


def test_nothing_that_escapes_while_pictures_are_read_hangs(world, capsys):
    def fail(path, side):
        raise RuntimeError("no such case was thought of")
    world.monkeypatch.setattr(extract_features, "read_square", fail)
    shutil.rmtree("data/features")
    line = refused(world, capsys, "extract_features.py")
    assert "lists" in line and "of 8 images of train" in line
    assert "no such case was thought of" in read("data/features/unreadable_train.txt")


def test_missing_images_are_told_before_the_network_is_built(world, capsys):
    def never(*args):
        pytest.fail("the network was built")
    world.monkeypatch.setattr(extract_features, "build", never)
    shutil.rmtree("data/train")
    shutil.rmtree("data/features/train")
    line = refused(world, capsys, "extract_features.py")
    assert "data/train/scene_000001.png: no such file, nor 7 others" in line
    assert "--splits" in line and "docs/faq.md" in line and "download" not in line


def test_no_more_is_computed_when_too_many_images_are_bad(world):
    asked = []
    world.monkeypatch.setattr(extract_features, "build", lambda *args: (
        lambda pixels: asked.append(1) or tf.zeros((1,) + SHAPE)))
    for i in range(1, 5):
        with open(f"data/train/scene_{i:06d}.png", "w") as file:
            file.write("no picture")
    shutil.rmtree("data/features")
    assert world(*EXTRACT, "--batch-size", "1", "--splits", "train") == 2
    assert len(asked) == 0  # the first two of eight were too many


def test_name_too_long_for_a_features_file_skips_one_image(world, capsys):
    name = "x" * 250 + ".png"
    os.rename("data/train/scene_000001.png", "data/train/" + name[:254])
    edit("data/annotations/captions_train.json", lambda content: content["images"][
        0].update(file_name=name[:254]))
    assert world(*EXTRACT, "--max-bad", ".2") == 0
    assert "too long" in read("data/features/unreadable_train.txt")


def test_empty_first_split_does_not_stop_untrained_weights(world):
    edit("data/annotations/captions_train.json",
         lambda content: content.update(images=[], annotations=[]))
    assert world(*EXTRACT, "--features", "f") == 0


@pytest.mark.parametrize("script, words", [
    ("analysis.report", "3 of 4 images"), ("plot_attention.py", "3 figures")])
def test_pictures_that_are_gone_are_left_out_of_what_is_drawn(script, words, world,
                                                              capsys):
    os.remove("data/val/scene_000002.png")
    capsys.readouterr()
    flags = ("--count", "4") if script == "plot_attention.py" else ()
    assert world(script, "--run", "a", *flags) == 0
    out, errors = capsys.readouterr()
    assert "left out: data/val/scene_000002.png: no such picture" in errors
    if script == "plot_attention.py":
        assert words in out
    else:
        assert read("checkpoints/a/report_val.html").count("<article") == 3


# --- a data set -----------------------------------------------------------------------

def test_captions_of_one_file_are_joined_and_never_on_both_sides(tmp_path):
    os.makedirs(str(tmp_path / "annotations"))
    (tmp_path / "annotations" / "captions_train.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i // 5}.jpg"} for i in range(50)],
        "annotations": [{"image_id": i, "caption": "a dog"} for i in range(50)]}))
    done = tokenize(tmp_path)
    assert done.returncode == 0 and "images are listed twice" in done.stderr
    train, val = (set(read_tokens(str(tmp_path / "tokens"), name).images)
                  for name in ("train", "val"))
    assert len(train | val) == 10 and not train & val
    assert len(read_tokens(str(tmp_path / "tokens"), "train").words) == 5 * len(train)


def tokenize(folder, *flags):
    return finished([sys.executable, os.path.join(ROOT, "tokenize_captions.py"),
                     "--data", str(folder), *flags], env=environment())


def one_line(done):
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return lines[-1]


def write_karpathy(folder, images, *places):
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in {image["filename"] for image in images}:
            (folder / place / name).touch()
    (folder / "k.json").write_text(json.dumps({"images": images}))
    return tokenize(folder, "--karpathy", str(folder / "k.json"))


def item(name, split, number, **more):
    return dict({"filename": name, "split": split, "imgid": number,
                 "sentences": [{"raw": "a dog"}]}, **more)


def test_image_on_both_sides_is_refused_in_step_3(tmp_path):
    line = one_line(write_karpathy(tmp_path, [
        item("a.jpg", "train", 0), item("b.jpg", "val", 0), item("a.jpg", "val", 1)],
        "Images"))
    assert "Images/a.jpg is in train and in val" in line
    assert not (tmp_path / "tokens" / "train.npz").exists()


def test_ids_twice_in_a_split_are_refused(tmp_path):
    assert "two images of val have one id" in one_line(write_karpathy(
        tmp_path, [item("a.jpg", "train", 0), item("b.jpg", "val", 5),
                   item("c.jpg", "val", "5")], "Images"))


def test_one_split_cannot_be_both(world, capsys):
    assert "cannot be both" in refused(world, capsys, "tokenize_captions.py",
                                       "--train-split", "train", "--val-split", "train")


def test_folder_that_the_split_file_names_is_believed(tmp_path):
    place = "images/train2014"
    done = write_karpathy(tmp_path, [
        item("a.jpg", "train", 0, filepath=place), item("b.jpg", "val", 1,
                                                        filepath=place)])
    assert done.returncode == 0, done.stderr  # the pictures are not needed here
    assert read_tokens(str(tmp_path / "tokens"), "train").images == [place + "/a.jpg"]


def test_image_in_two_folders_is_asked_about(tmp_path):
    line = one_line(write_karpathy(tmp_path, [item("a.jpg", "train", 0),
                                              item("b.jpg", "val", 1)],
                                   "Images", "thumbnails"))
    assert "is in Images and in thumbnails" in line


@pytest.mark.parametrize("change, words", [
    ({"sentences": [{"tokens": ["a"]}]}, "'raw'"), ({"imgid": 1.5}, "imgid"),
    ({"split": "dev"}, "it has dev, train")])
def test_users_own_split_file_is_told_which_field_is_wrong(change, words, tmp_path):
    images = [item("a.jpg", "train", 0), dict(item("b.jpg", "val", 1), **change)]
    line = one_line(write_karpathy(tmp_path, images, "Images"))
    assert words in line and "download" not in line


def test_stray_captions_are_listed_and_limited(world, capsys):
    def stray(content):
        for i, row in enumerate(content["annotations"][:6]):
            row["image_id"] = 1000 + i
    edit("data/annotations/captions_train.json", stray)
    assert "strays_train.txt: lists 6 of 40 captions" in refused(
        world, capsys, "tokenize_captions.py")
    assert read("data/tokens/strays_train.txt").startswith("1000\t")
    assert world("tokenize_captions.py", "--max-bad", ".2") == 0


def test_ids_that_differ_in_their_type_only_are_matched(world):
    edit("data/annotations/captions_train.json", lambda content: [
        row.update(image_id=str(row["image_id"])) for row in content["annotations"]])
    assert world("tokenize_captions.py") == 0
    assert len(read_tokens("data/tokens", "train").words) == 40


def test_images_without_captions_are_not_split(tmp_path):
    os.makedirs(str(tmp_path / "annotations"))
    (tmp_path / "annotations" / "captions_train.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(20)],
        "annotations": [{"image_id": i, "caption": "a dog"} for i in range(10)]}))
    done = tokenize(tmp_path)
    assert done.returncode == 0 and "10 images of train have no captions" in done.stdout
    assert sum(len(read_tokens(str(tmp_path / "tokens"), name).images)
               for name in ("train", "val")) == 10


def test_validation_can_be_cut_off_where_only_training_images_were_downloaded(
        world, capsys):
    shutil.rmtree("data/val")
    shutil.rmtree("data/features/val")
    assert world("tokenize_captions.py") == 0
    assert "--val-split none" in capsys.readouterr().err
    assert world("tokenize_captions.py", "--val-split", "none") == 0
    images = set(read_tokens("data/tokens", "val").images)
    assert images and all(image.startswith("train/") for image in images)


def test_results_beside_the_annotations_are_no_split(world):
    shutil.copy("checkpoints/a/captions_val_a_results.json", "data/annotations")
    assert world(*EXTRACT) == 0 == world("tokenize_captions.py")


def test_image_without_captions_is_captioned_and_not_scored(world, capsys):
    edit("data/annotations/captions_val.json", lambda content: content.update(
        annotations=[c for c in content["annotations"] if c["image_id"] != 3]))
    assert world("tokenize_captions.py") == 0
    assert world("evaluate.py", "--run", "a") == 0
    out, errors = capsys.readouterr()
    assert "1 of 4 images have no captions by people" in errors
    assert len(json.loads(read("checkpoints/a/captions_val_a_results.json"))) == 4
    assert json.loads(read("checkpoints/a/scores_val.json"))["images"] == 3
    assert world("analysis.report", "--run", "a") == 0


# --- Java -----------------------------------------------------------------------------

MADE = {"1": "a cat on a mat", "2": "a dog runs"}
TRUE = {"1": ["A cat on a mat.", "The cat sits."], "2": ["A dog runs fast.",
                                                         "Dogs run."]}
needs_java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")


def false_java(folder, body, monkeypatch):
    real = shutil.which("java")
    path = folder / "bin" / "java"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n" + body.replace("JAVA", str(real)) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@needs_java
@pytest.mark.parametrize("body", [
    'echo "Could not reserve enough space" >&2; exit 1',
    'case "$*" in *PTBTokenizer*) JAVA "$@" | head -3; exit 1;; esac; exec JAVA "$@"',
    'case "$*" in *PTBTokenizer*) exit 0;; esac; exec JAVA "$@"'])
def test_java_that_does_not_run_is_none(body, tmp_path, monkeypatch, capsys):
    plain = scores.score(MADE, TRUE, java=False)
    false_java(tmp_path, body, monkeypatch)
    found = scores.score(MADE, TRUE)
    assert found.tokenizer == scores.PLAIN
    assert scores.averages(found) == scores.averages(plain)
    assert "Java's tokenizer" in capsys.readouterr().err


@needs_java
def test_meteor_whose_java_fails_is_left_out(tmp_path, monkeypatch, capsys):
    right = scores.averages(scores.score(MADE, TRUE))
    false_java(tmp_path, 'case "$*" in *Xmx2G*) exit 1;; esac\nexec JAVA "$@"',
               monkeypatch)
    found = scores.averages(scores.score(MADE, TRUE))
    assert right.pop("METEOR") > 10 and found == right
    assert "METEOR is left out" in capsys.readouterr().err


@needs_java
def test_scores_are_the_same_on_a_desktop_with_decimal_commas(monkeypatch):
    right = scores.averages(scores.score(MADE, TRUE))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    assert scores.averages(scores.score(MADE, TRUE)) == right
    assert os.environ["JAVA_TOOL_OPTIONS"].endswith("country=DE")


def test_captions_are_written_before_they_are_scored(world):
    def fail(*args, **kwargs):
        raise cli.UserError("no scores today")
    os.remove("checkpoints/a/attention_val.npz")
    world.monkeypatch.setattr(scores, "score", fail)
    assert world("evaluate.py", "--run", "a") == 2
    assert os.path.exists("checkpoints/a/attention_val.npz")
    assert not os.path.exists("checkpoints/a/scores_val.json")  # not of old captions


def test_empty_captions_score_nothing_and_their_length_is_told(world, capsys):
    found = scores.averages(scores.score({"1": "", "2": ""}, TRUE, java=False))
    assert found["BLEU-1 with punctuation"] < 1e-3
    assert world("evaluate.py", "--run", "a", "--max-steps", "1") == 0
    out = capsys.readouterr().out
    assert "% of the words of the closest references" in out
    assert "with so few it says little" in out


def test_intervals_stay_between_0_and_100():
    made = {"1": "a cat on a mat", "2": "a dog runs", "3": "x"}
    true = dict(TRUE, **{"3": ["nothing of the kind"]})
    found = scores.score(made, true, java=False)
    found = found._replace(parts=dict(found.parts, METEOR=np.array([100., 90, 0])),
                           totals={"METEOR": 95.})
    assert all(0 <= low <= high <= 100 for name, (low, high)
               in scores.intervals(found).items() if name != "CIDEr")


# --- file systems ---------------------------------------------------------------------

def test_file_system_without_locks_gets_one_warning(world, tmp_path):
    source = tmp_path / "n.c"
    source.write_text("#include <errno.h>\n"
                      "int flock(int f, int o) { errno = 38; return -1; }\n")
    library = str(tmp_path / "n.so")
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    subprocess.check_call(["gcc", "-shared", "-fPIC", "-o", library, str(source)])
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "tokenize_captions.py")],
        env=environment(LD_PRELOAD=library), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 1
    assert "its file system has no locks" in done.stderr


def test_enough_room_is_not_asked_for_again_when_all_is_there(tmp_path, monkeypatch):
    name = "annotations/annotations_trainval2014.zip"
    monkeypatch.setitem(download_coco.ARCHIVES, name, (4, "x"))
    for path in ("archives/annotations_trainval2014.zip",
                 "annotations/captions_val2014.json",
                 "annotations/instances_val2014.json"):
        os.makedirs(os.path.dirname(str(tmp_path / path)), exist_ok=True)
        (tmp_path / path).write_text("full")
    monkeypatch.setattr(download_coco.shutil, "disk_usage",
                        lambda path: type("Usage", (), {"free": 0}))
    (tmp_path / "val2014").mkdir()
    for i in range(9):
        (tmp_path / "val2014" / f"{i}.jpg").write_text("")
    download_coco.check_space(str(tmp_path), name, ["val2014"], 5)
