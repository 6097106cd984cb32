"""A run's lineage: its own training images, and those of the runs before it."""
import json
import os
import shutil
import types

import numpy as np
import pytest

from analysis import deletion
from captioning.decoded import (read_captions_of, read_source, refuse_other_images)
from captioning.lineage import (fingerprint, is_own_data, read_lineage, refuse_seen,
                                training_tokens)
from captioning.runs import read_run
from captioning.tokens import references_path, write_tokens
from commands import exit_status
from methods.neighbours import training_neighbours
from runtime import cli
from runtime.atomic import write_json
from worlds import COMMANDS, QUICK, TRAIN, VAL, refused


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# --- the record, with nothing trained -------------------------------------------------

def make_run(name, train, parent=None, lineage=None):
    """Write the files of a run that record its lineage."""
    os.makedirs(f"checkpoints/{name}")
    write_json(f"checkpoints/{name}/settings.json", {"start_from": parent})
    write_json(f"checkpoints/{name}/split.json", {"train": train, "val": ["val/9.jpg"]})
    if lineage:
        write_json(f"checkpoints/{name}/lineage.json", [
            {"run": run, "images": images, "references": {}}
            for run, images in lineage])
    return f"checkpoints/{name}"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The 150 images to be captioned, from one data set."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("data/val")
    for i in range(150):
        with open(f"data/val/{i}.jpg", "wb") as file:
            file.write(b"start" + bytes([i]) * 20000 + b"end")
    return {"data": "data", "tokens": "nowhere", "features": "data/features"}


IMAGES = [f"val/{i}.jpg" for i in range(150)]


def refusal(folder, source, images=IMAGES):
    with pytest.raises(cli.UserError) as error:
        refuse_seen(folder, "val", images, source)
    return str(error.value)


def test_image_is_known_by_its_content_whatever_it_is_called(source):
    shutil.copy("data/val/3.jpg", "data/val/copy.jpg")
    contents = [fingerprint("data", "none", image) for image in IMAGES]
    assert len(set(contents)) == 150
    assert fingerprint("data", "none", "val/copy.jpg") == contents[3]
    for at in (0, -1):  # the first bytes, the last
        with open("data/val/copy.jpg", "r+b") as file:
            file.seek(at, 0 if at == 0 else 2)
            file.write(b"X")
        assert fingerprint("data", "none", "val/copy.jpg") not in contents
        shutil.copy("data/val/3.jpg", "data/val/copy.jpg")


def test_features_stand_in_for_an_image_that_is_not_there(source):
    os.makedirs("f/val")
    for name, value in (("a", 1), ("b", 2), ("c", 1)):
        np.save(f"f/val/{name}.jpg.npy", np.full((2, 3), value))
    a, b, c = (fingerprint("gone", "f", f"val/{name}.jpg") for name in "abc")
    assert a == c != b and a.startswith("features ")
    assert fingerprint("gone", "f", "val/d.jpg") is None


def test_images_of_an_ancestor_are_refused_when_it_is_gone(source):
    folder = make_run("c", ["x/1.jpg"], "b", [
        ("c", {"x/1.jpg": None}), ("b", {"x/2.jpg": None}), ("a", {"val/7.jpg": None})])
    line = refusal(folder, source)
    assert "1 of 150 images of val were trained on by a, from which c comes" in line
    assert "val/7.jpg" in line and "--allow-seen" in line
    refuse_seen(folder, "val", IMAGES[8:], source)


def test_run_of_an_earlier_release_has_the_split_files_of_its_line(source, capsys):
    make_run("a", ["val/7.jpg"])
    make_run("b", ["x/2.jpg"], "a/")
    folder = make_run("c", ["x/1.jpg"], "b")
    assert [generation.run for generation in read_lineage(folder)] == ["c", "b", "a"]
    assert "trained on by a, from which c comes" in refusal(folder, source)
    shutil.rmtree("checkpoints/a")
    refuse_seen(folder, "val", IMAGES, source)
    assert "checkpoints/b: started from checkpoints/a, which is gone" in (
        capsys.readouterr().err)


def test_runs_that_started_from_each_other_come_to_an_end(source):
    make_run("a", ["x/1.jpg"], "b")
    folder = make_run("b", ["x/2.jpg"], "a")
    assert [generation.run for generation in read_lineage(folder)] == ["b", "a"]


def test_image_under_another_name_is_the_same_image(source):
    content = {f"coco/{i}.jpg": fingerprint("data", "", f"val/{i}.jpg")
               for i in (3, 4)}
    folder = make_run("a", list(content), lineage=[("a", content)])
    line = refusal(folder, source)
    assert "2 of 150 images" in line and "val/3.jpg, there coco/3.jpg" in line


def test_few_images_that_a_collection_has_twice_are_told(source, capsys):
    content = {"coco/3.jpg": fingerprint("data", "", "val/3.jpg")}
    refuse_seen(make_run("a", list(content), lineage=[("a", content)]), "val", IMAGES,
                source)
    assert "1 of 150 images of val were trained on by a under other names" in (
        capsys.readouterr().err)


def test_other_image_under_the_same_name_is_another_image(source):
    content = {"val/3.jpg": fingerprint("data", "", "val/4.jpg")}
    folder = make_run("a", list(content), lineage=[("a", content)])
    refuse_seen(folder, "val", IMAGES[:4], source)
    os.remove("data/val/3.jpg")  # cannot be compared
    assert "1 of 4" in refusal(folder, source, IMAGES[:4])


def test_split_of_one_data_set_goes_by_its_paths(source):
    """Duplicate pictures are the data set's own affair; step 3 separated the paths."""
    os.makedirs("tokens")
    write_tokens("tokens", "train", TRAIN)
    content = fingerprint("data", "", "val/0.jpg")
    images = {image: content for image in TRAIN.images.tolist()}
    folder = make_run("a", list(images), lineage=[("a", images)])
    refuse_seen(folder, "val", IMAGES[:4], dict(source, tokens="tokens"))
    assert "1 of 4" in refusal(folder, source, IMAGES[:4])


def test_spelling_of_a_path_does_not_matter(source):
    folder = make_run("a", ["./val//3.jpg"])
    assert "1 of 2" in refusal(folder, source, ["val/3.jpg", "val/4.jpg"])
    assert "1 of 2" in refusal(make_run("b", ["val/3.jpg"]), source,
                               ["val/./3.jpg", "val/4.jpg"])


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"run": "a"}]',
                                  '[{"run": "a", "images": [], "references": {}}]'])
def test_damaged_record_is_refused_in_one_line(text, source):
    folder = make_run("a", ["x/1.jpg"])
    with open(f"{folder}/lineage.json", "w") as file:
        file.write(text)
    assert f"{folder}/lineage.json: damaged" in refusal(folder, source)


# --- where the training data are ------------------------------------------------------

def tokens_of(folder, word="cat"):
    """Write TRAIN and VAL with these captions by people; returns the folder."""
    os.makedirs(folder)
    for name, split in (("train", TRAIN), ("val", VAL)):
        write_tokens(folder, name, split)
        write_json(references_path(folder, name), {i: [word] for i in split.image_ids})


def test_training_data_that_were_moved_are_found_by_content(source):
    tokens_of("t1")
    tokens_of("t2", "dog")
    folder = make_run("a", TRAIN.images.tolist())
    run = types.SimpleNamespace(folder=folder, settings={"tokens": "gone"})
    assert training_tokens(run, None, "t1") == "t1"
    assert training_tokens(run, "t2", "t1") == "t2"  # an earlier release: by path
    split = {"train": TRAIN.images.tolist(), "val": VAL.images.tolist()}
    write_json(f"{folder}/split.json", split)
    write_json(f"{folder}/lineage.json", [{"run": "a", "images": {}, "references": {
        name: "0" for name in split}}])
    with pytest.raises(cli.UserError, match="gone/references_train.json: not there"):
        training_tokens(run, "t1", "t2")
    assert not is_own_data(run, "t1") and not is_own_data(run, "t2")


# --- commands -------------------------------------------------------------------------

@pytest.fixture(autouse=True)
def no_run_of_its_own(monkeypatch):
    """Some of the commands have --ensemble in place of --run."""
    monkeypatch.setitem(COMMANDS, "evaluate.py", ())


@pytest.fixture
def twice(world):
    """A data set split twice, and `one`, trained on the first split."""
    for seed, words in (("0", ()), ("4", ("--vocabulary", "t0/vocabulary.tsv"))):
        assert world("tokenize_captions.py", "--train-split", "train", "--val-split",
                     "none", "--val-fraction", ".4", "--seed", seed, "--tokens",
                     "t" + seed, *words) == 0
    assert world("train.py", "--tokens", "t0", "--run", "one", *QUICK) == 0
    return world


def test_images_that_an_ancestor_saw_are_refused_everywhere(twice, capsys):
    flags = ("--tokens", "t4", "--run", "two", "--start-from", "one")
    line = refused(twice, capsys, "train.py", *flags)
    assert "of validation were trained on by one (one is train/" in line
    assert not os.path.exists("checkpoints/two")
    assert twice("train.py", *flags, *QUICK, "--allow-seen") == 0
    assert twice("train.py", *flags, *QUICK, "--epochs", "2") == 0  # it has begun
    assert twice("train.py", "--tokens", "t4", "--run", "new", *QUICK) == 0
    assert twice("evaluate.py", "--run", "new", "--allow-seen") == 0
    shutil.rmtree("checkpoints/one")
    for asked in (("--run", "two"), ("--run", "two", "--sample", "2"),
                  ("--ensemble", "new", "two"), ("--run", "new", "--compare", "two")):
        line = refused(twice, capsys, "evaluate.py", *asked)
        assert "trained on by one, from which two comes" in line
    assert twice("evaluate.py", "--run", "two", "--allow-seen") == 0


def test_each_member_of_an_ensemble_is_asked_of_the_images(twice, capsys):
    assert twice("train.py", "--tokens", "t4", "--run", "two", *QUICK) == 0
    assert "trained on by two (" in refused(twice, capsys, "evaluate.py", "--ensemble",
                                            "one", "two")


def test_each_member_of_an_ensemble_is_asked_of_the_features(world, capsys):
    shutil.copytree("checkpoints/a", "checkpoints/b")
    settings = read("checkpoints/b/settings.json")
    shutil.copytree("data/features", "f2")
    settings["features"] = "f2"
    settings["extractor"] = dict(settings["extractor"], weights="other.h5", digest="1")
    write_json("checkpoints/b/settings.json", settings)
    write_json("f2/extractor.json", settings["extractor"])
    line = refused(world, capsys, "evaluate.py", "--ensemble", "a", "b")
    assert "data/features: holds features of" in line and "checkpoints/b was" in line


def test_decoded_captions_say_what_made_them(world, capsys):
    shutil.copytree("checkpoints/a", "checkpoints/b")
    assert world("evaluate.py", "--ensemble", "a", "b", "--beam", "2", "--checkpoint",
                 "newest", "--look", "likeliest") == 0
    found = read_source(read_run("a"), "val_with_b")
    expected = {"data": "data", "tokens": "data/tokens", "features": "data/features",
                "split": "val", "with": ["b"], "checkpoint": "newest", "beam": 2,
                "look": "likeliest", "extractor": read("checkpoints/a/settings.json")[
                    "extractor"]}
    assert {key: found[key] for key in expected} == expected
    assert len(found["references"]) == 4
    assert read("checkpoints/a/scores_val_with_b.json")["source"] == expected
    assert world("evaluate.py", "--run", "a", "--sample", "2") == 0
    assert read("checkpoints/a/samples_val.json")["source"]["checkpoint"] == "best"


def delete(world, *flags):
    """Run analysis.deletion up to loading models; returns what it would test with."""
    world.monkeypatch.setattr(deletion, "start", lambda: None)
    world.monkeypatch.setattr("sys.argv", ["deletion.py", *flags])
    models = []
    world.monkeypatch.setattr(deletion, "find_names", lambda *_: [
        deletion.Name(0, 0, np.ones(64, bool))])
    world.monkeypatch.setattr(deletion, "drops", lambda model, *_: (
        models.append(model), np.zeros((1, 2, len(deletion.DELETED))))[1])
    return exit_status(deletion.main), models


def test_deletion_is_made_with_what_wrote_the_captions(world, capsys):
    shutil.copytree("checkpoints/a", "checkpoints/b")
    with np.load("checkpoints/a/best.npz") as file:
        arrays = dict(file, b_o=file["b_o"] + 1)
    np.savez("checkpoints/a/newest.npz", **arrays)
    assert world("evaluate.py", "--run", "a", "--checkpoint", "newest") == 0
    status, (model,) = delete(world, "--run", "a")
    assert status == 0
    np.testing.assert_array_equal(model.b_o.numpy(), arrays["b_o"])
    assert world("evaluate.py", "--ensemble", "a", "b") == 0
    status, (model,) = delete(world, "--run", "a", "--split", "val_with_b")
    assert status == 0 and len(model.models) == 2


def test_deletion_of_an_earlier_ensemble_or_of_other_features_is_refused(world, capsys):
    shutil.copy("checkpoints/a/attention_val.npz",
                "checkpoints/a/attention_val_with_b.npz")
    spoil("checkpoints/a/attention_val_with_b.npz", {"look": "expected"})
    assert delete(world, "--run", "a", "--split", "val_with_b")[0] == 2
    assert "did not write down what made it" in capsys.readouterr().err
    write_json("data/features/extractor.json", {"weights": "imagenet", "seed": 0})
    assert delete(world, "--run", "a")[0] == 2
    assert "holds features of" in capsys.readouterr().err


def spoil(path, source):
    with np.load(path) as file:
        arrays = dict(file, source=np.array(json.dumps(source)))
    np.savez(path, **arrays)


def test_captions_of_another_data_set_are_not_compared(world, capsys):
    """Even if paths and ids are the same."""
    shutil.copytree("checkpoints/a", "checkpoints/c")
    path = "checkpoints/c/attention_val.npz"
    source = read_source(read_run("c"), "val")
    first = sorted(source["references"])[0]
    spoil(path, dict(source, references=dict(source["references"], **{first: "0"})))
    for script, *flags in (("evaluate.py", "--run", "a"), ("analysis.report",)):
        assert f"c: its image {first} (val/scene" in refused(
            world, capsys, script, *flags, "--compare", "c")
    spoil(path, {"data": "data"})  # an earlier release does not say
    assert world("evaluate.py", "--run", "a", "--compare", "c") == 0


def test_other_data_with_the_same_names_have_results_of_their_own(world):
    shutil.copytree("data", "b")
    path = references_path("b/tokens", "val")
    write_json(path, {i: ["a cat"] for i in read(path)})
    before = world.files()
    assert world("evaluate.py", "--run", "a", "--tokens", "b/tokens", "--features",
                 "b/features") == 0
    after = world.files()
    assert all(after[path] == content for path, content in before.items())
    assert "./checkpoints/a/attention_val_of_b.npz" in after


def test_consensus_finds_data_that_were_moved(world, capsys):
    os.rename("data", "moved")
    for kind in ("beam", "neighbours"):
        assert world("evaluate.py", "--run", "a", "--tokens", "moved/tokens",
                     "--features", "moved/features", "--beam", "2", "--consensus",
                     kind) == 0
    assert "not told" not in capsys.readouterr().err


def test_training_images_without_features_are_counted(world, capsys):
    run = read_run("a")
    for name in sorted(os.listdir("data/features/train"))[:5]:
        os.remove("data/features/train/" + name)
    images = sorted(read_captions_of(run.folder, "val").values())
    training_neighbours(run, [image for image, _ in images], "val", "data/features")
    assert "5 of 8 training images of checkpoints/a have no sound features" in (
        capsys.readouterr().err)


def test_captions_without_a_record_are_compared_by_their_paths():
    ours = {"1": ("v/1", "a"), "2": ("v/2", None)}
    refuse_other_images("b", ours, {"1": ("v/1", "a"), "2": ("v/2", "b"),
                                    "3": ("v/1", "c")})
    for theirs in ({"1": ("v/1", "b")}, {"2": ("v/1", None)}):
        with pytest.raises(cli.UserError, match="another data set"):
            refuse_other_images("b", ours, theirs)
