"""A run knows what it was made from, by content and not by how a path is spelled."""
import json
import os
import shutil

import numpy as np
import pytest

from captioning import networks
from captioning.decoded import read_source
from captioning.features import read_record, same_network
from captioning.runs import find_run, read_run
from runtime import cli
from worlds import QUICK, fake_build, refused


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def results_of(run="a"):
    return sorted(name for name in os.listdir(f"checkpoints/{run}")
                  if name.endswith(("_results.json", ".npz", ".json"))
                  and name.startswith(("captions", "attention", "scores")))


def another_set(world, folder="b"):
    """A second data set, same ids and other pictures, through steps 0 to 3."""
    for script, *flags in (
            ("demo.draw_scenes", "--data", folder, "--train", "8", "--val", "4",
             "--size", "64", "--seed", "5"),
            ("extract_features.py", "--data", folder, "--weights", "random"),
            ("tokenize_captions.py", "--data", folder)):
        assert world(script, *flags) == 0
    for split in ("train", "val"):  # other names, as equal paths are the same images
        for name in os.listdir(f"{folder}/{split}"):
            for below in ("", "features/"):
                end = ".npy" if below else ""
                os.rename(f"{folder}/{below}{split}/{name}{end}",
                          f"{folder}/{below}{split}/b_{name}{end}")
        path = f"{folder}/annotations/captions_{split}.json"
        content = read(path)
        for image in content["images"]:
            image["file_name"] = "b_" + image["file_name"]
        with open(path, "w") as file:
            json.dump(content, file)
    shutil.copy("data/features/calibration.npz", f"{folder}/features")
    assert world("tokenize_captions.py", "--data", folder) == 0


# --- paths are not identity -----------------------------------------------------------

@pytest.mark.parametrize("spelled", ["data/", "./data", "moved"])
def test_run_is_resumed_and_scored_wherever_its_data_lie(spelled, world):
    if spelled == "moved":
        os.rename("data", "moved")
    flags = ("--data", spelled, "--run", "a", *QUICK, "--epochs", "2")
    assert world("train.py", *flags) == 0
    before = results_of()
    assert world("evaluate.py", "--run", "a", "--tokens", f"{spelled}/tokens",
                 "--features", f"{spelled}/features") == 0
    assert results_of() == before  # no new name: it is the run's own data set
    assert world("plot_attention.py", "--run", "a", "--count", "1") == 0
    assert world("analysis.report", "--run", "a") == 0


def test_captions_of_people_that_are_gone_leave_one_habit_out(world, capsys):
    os.remove("data/tokens/references_train.json")
    assert world("evaluate.py", "--run", "a") == 0
    assert "novelty is not reported" in capsys.readouterr().err
    assert "captions never seen in training, %" not in read(
        "checkpoints/a/scores_val.json")["habits"]


# --- other data -----------------------------------------------------------------------

def test_results_on_another_data_set_have_names_of_their_own(world, capsys):
    another_set(world)
    before = {name: open("checkpoints/a/" + name, "rb").read() for name in results_of()}
    capsys.readouterr()
    assert world("evaluate.py", "--run", "a", "--tokens", "b/tokens", "--features",
                 "b/features") == 0
    assert capsys.readouterr().out.endswith(
        "plot_attention.py --run a --split val_of_b\n")
    for name, content in before.items():  # nothing of the run's own was replaced
        assert open("checkpoints/a/" + name, "rb").read() == content
    assert "attention_val_of_b.npz" in results_of()
    assert "captions_val_of_b_a_results.json" in results_of()
    assert read_source(read_run("a"), "val_of_b")["data"].endswith("/b")
    assert world("plot_attention.py", "--run", "a", "--split", "val_of_b", "--images",
                 "b_scene_000001.png") == 0
    assert os.path.exists("checkpoints/a/attention/val_of_b_b_scene_000001.png")
    assert world("analysis.report", "--run", "a", "--split", "val_of_b") == 0
    with open("checkpoints/a/report_val_of_b.html", encoding="utf-8") as file:
        page = file.read()
    reference = read("b/tokens/references_val.json")["1"][0]
    assert "b_scene_000001.png" in page and reference in page


def test_captions_of_other_images_under_the_same_ids_are_not_compared(world, capsys):
    shutil.copytree("checkpoints/a", "checkpoints/c")
    with np.load("checkpoints/c/attention_val.npz") as file:
        arrays = dict(file)
    arrays["images"] = np.array(["x" + image for image in arrays["images"]])
    np.savez("checkpoints/c/attention_val.npz", **arrays)
    assert "captions of another data set cannot be compared" in refused(
        world, capsys, "evaluate.py", "--compare", "c")


# --- other features -------------------------------------------------------------------

def other_network():
    with open("data/features/extractor.json", "w") as file:
        json.dump({"weights": "imagenet", "dtype": "float16", "seed": 0}, file)


@pytest.mark.parametrize("script, flags", [
    ("evaluate.py", ()), ("train.py", ("--epochs", "3"))])
def test_features_of_another_network_are_refused_naming_both(script, flags, world,
                                                             capsys):
    other_network()
    line = refused(world, capsys, script, *flags)
    assert '"imagenet"' in line and '"random"' in line and "data/features" in line


def test_other_statistics_of_untrained_weights_are_another_network(world, capsys):
    np.savez("data/features/calibration.npz", mean=np.ones(3))
    assert "holds features of" in refused(world, capsys, "evaluate.py")


def test_records_are_of_one_network_by_content():
    weights = {"weights": "a.h5", "digest": "12", "seed": 0, "dtype": "float16"}
    assert same_network(weights, dict(weights, weights="b.h5", dtype="float32"))
    assert not same_network(weights, dict(weights, digest="13"))
    random = {"weights": "random", "seed": 0}
    assert not same_network(random, dict(random, seed=1))
    assert not same_network(dict(random, calibration="1"), dict(random,
                                                                calibration="2"))
    assert same_network(None, None) and not same_network(None, random)


def test_picture_of_ones_own_needs_no_features(world):
    world.monkeypatch.setattr(networks, "build", fake_build)
    picture = "data/val/scene_000001.png"
    record = read_record("data/features")
    assert read_run("a").settings["extractor"] == record
    shutil.rmtree("data/features")
    assert world("plot_attention.py", "--run", "a", "--picture", picture) == 0
    assert list(read("checkpoints/a/attention/own_captions.json")) == [picture]


# --- names and ids --------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a/", "checkpoints/a", "./checkpoints//a/"])
def test_folder_of_a_run_is_its_name(name, world, capsys):
    before = set(world.files())
    assert world("evaluate.py", "--run", name, "--compare", name) == 0
    assert "plot_attention.py --run a\n" in capsys.readouterr().out
    for script in ("plot_attention.py", "analysis.report"):
        assert world(script, "--run", name, *(
            ("--count", "1") if "plot" in script else ("--compare", name))) == 0
    assert set(world.files()) - before == {"./checkpoints/a/report_val.html"}
    assert world("train.py", "--run", "b", *QUICK, "--start-from", name) == 0
    assert read_run("b").settings["start_from"] == "a"
    assert world("evaluate.py", "--ensemble", name, "checkpoints/b") == 0
    assert "attention_val_with_b.npz" in results_of()


def test_run_that_started_from_a_folder_is_resumed(world):
    flags = ("train.py", "--run", "b", *QUICK, "--start-from", "a", "--epochs")
    assert world(*flags, "1") == 0
    settings = read("checkpoints/b/settings.json")
    with open("checkpoints/b/settings.json", "w") as file:
        json.dump(dict(settings, start_from="a/"), file)  # as earlier releases did
    assert world(*flags, "2") == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "x/a", "/", "/a", "-a",
                                  "checkpoints/x/a"])
@pytest.mark.parametrize("flag", ["--run", "--compare", "--ensemble"])
def test_what_is_no_name_of_a_run_is_refused_before_anything(flag, name, world, capsys):
    before = world.files()
    assert flag in refused(world, capsys, "evaluate.py", f"{flag}={name}")
    assert world.files() == before


def test_unknown_run_is_told_the_nearest_and_all_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cli.UserError, match="train.py --run demoo$"):
        find_run("demoo")
    for name in ("demo", "flickr8k"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "settings.json").write_text("{}")
    (tmp_path / "checkpoints" / "demooo").mkdir()  # only just begun
    for name, said in (("demoo", "; did you mean demo? there are: demo, flickr8k"),
                       ("Flickr-8k", "; did you mean flickr8k? there are: "),
                       ("xyz", "no such run; there are: demo, flickr8k")):
        with pytest.raises(cli.UserError) as error:
            find_run(name)
        assert said in str(error.value)


def karpathy(tmp, ids):
    """A split file whose val and test images lie in one folder, as COCO's do."""
    os.makedirs("k/photos")
    images = []
    for i, identity in enumerate(ids):
        name = f"{i}.png"
        shutil.copy("data/val/scene_000001.png", f"k/photos/{name}")
        split = ("train", "train", "val", "test")[i % 4]
        images.append({"filename": name, "split": split, "imgid": identity,
                       "sentences": [{"raw": "a red ring"}, {"raw": "a ring"}]})
    with open("k.json", "w") as file:
        json.dump({"images": images}, file)


def test_validation_and_test_of_one_folder_never_share_a_file(world, tmp_path):
    karpathy(tmp_path, range(8))
    data = ("--data", "k")
    for script, *flags in (
            ("extract_features.py", *data, "--karpathy", "k.json", "--weights",
             "random"), ("tokenize_captions.py", *data, "--karpathy", "k.json"),
            ("train.py", *data, "--run", "k", *QUICK),
            ("evaluate.py", "--run", "k"),
            ("evaluate.py", "--run", "k", "--split", "test")):
        assert world(script, *flags) == 0
    assert [name for name in results_of("k") if name.startswith("captions")] == [
        "captions_test_k_results.json", "captions_val_k_results.json"]


def test_ids_stay_as_the_annotations_have_them(world):
    for name, change in (("train", str), ("val", None)):
        path = f"data/annotations/captions_{name}.json"
        content = read(path)
        new = {image["id"]: ["000101", "\u00b2", 7, "b"][i % 4] if name == "val"
               else f"t{image['id']}" for i, image in enumerate(content["images"])}
        for image in content["images"]:
            image["id"] = new[image["id"]]
        for item in content["annotations"]:
            item["image_id"] = new[item["image_id"]]
        with open(path, "w") as file:
            json.dump(content, file)
    shutil.rmtree("data/tokens")
    assert world("tokenize_captions.py") == 0
    assert world("train.py", "--run", "ids", *QUICK) == 0
    assert world("evaluate.py", "--run", "ids") == 0
    found = read("checkpoints/ids/captions_val_ids_results.json")
    assert [row["image_id"] for row in found] == ["000101", "\u00b2", 7, "b"]


def test_folder_of_pictures_is_captioned_for_the_server(world, capsys):
    world.monkeypatch.setattr(networks, "build", fake_build)
    for name in os.listdir("data/val"):  # scene_000001.png to COCO_val_000001.png
        os.rename(f"data/val/{name}", f"data/val/COCO_val_{name[6:]}")
    with open("data/val/notes.txt", "w") as file:
        file.write("no picture")
    assert world("plot_attention.py", "--run", "a", "--picture", "data/val",
                 "--captions-only") == 0
    assert ("data/val: skipped 1 of 5 files (not pictures): notes.txt"
            in capsys.readouterr().out)
    found = read("checkpoints/a/captions_own_val_a_results.json")
    assert [row["image_id"] for row in found] == [1, 2, 3, 4]
    assert len(read("checkpoints/a/attention/own_captions.json")) == 4
