"""The six steps as real commands on drawn scenes: they must learn, not just end."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from commands import command, environment, words
from demo.draw_scenes import COLOURS, SHAPES
from demo.score_scenes import names_all, read_scenes
from runtime.tf import tf

SCRIPTS = ("download_coco.py", "extract_features.py", "tokenize_captions.py",
           "train.py", "evaluate.py", "plot_attention.py", "demo.draw_scenes",
           "demo.score_scenes", "analysis.pointing", "analysis.report")


def test_each_step_introduces_itself_and_names_the_next(outputs):
    for number, script in enumerate(SCRIPTS[1:6], 2):
        assert outputs[script].startswith(f"[{number}/6] ")
        if number < 6:
            assert f"python {SCRIPTS[number]}" in outputs[script]
    assert f"TensorFlow {tf.__version__} on " in outputs["train.py"]


def test_training_loss_falls_far_below_what_word_counts_would_give(outputs):
    folder = outputs["folder"]
    with open(str(folder / "drawn" / "tokens" / "vocabulary.tsv")) as file:
        counts = np.array([int(line.split("\t")[2]) for line in list(file)[3:]])
    shares = counts[counts > 0] / counts.sum()
    by_counts = -(shares * np.log(shares)).sum()   # the entropy of the word counts
    log = (folder / "checkpoints" / "toy" / "log.csv").read_text().splitlines()
    last = dict(zip(log[0].split(","), log[-1].split(",")))
    assert len(log) == 13 and float(last["train_loss"]) < .3 * by_counts
    assert float(last["val_loss"]) < .8 * by_counts


def test_captions_of_trained_scenes_name_what_is_in_them(outputs):
    folder = outputs["folder"]
    with open(str(folder / "drawn" / "annotations" / "instances_train.json")) as file:
        content = json.load(file)
    objects = {}
    for item in content["annotations"]:
        objects.setdefault(item["image_id"], []).append(
            (item["colour"], SHAPES[item["category_id"] - 1]))
    path = folder / "checkpoints" / "toy" / "captions_train_toy_results.json"
    results = json.loads(path.read_text())
    right = [names_all(r["caption"], objects[r["image_id"]]) for r in results]
    assert len(right) == 30 and np.mean(right) > .7  # by chance: about 1 in 50


def test_new_scenes_are_described_in_sentences_of_the_same_kind(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    results = json.loads((folder / "captions_val_toy_results.json").read_text())
    assert len(results) == 8
    for result in results:
        words = result["caption"].split()
        assert set(words) & set(COLOURS) and set(words) & set(SHAPES)
    scores = json.loads((folder / "scores_val.json").read_text())["scores"]
    assert 20 < scores["BLEU-4"] <= 100


def test_figures_of_the_demo_are_printed_with_their_baselines(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    found = json.loads((folder / "scenes_val.json").read_text())
    objects = read_scenes(str(outputs["folder"] / "drawn"))
    assert found["scenes"] == len(objects) == 8
    assert f"{found['right']:.0%} of 8 new scenes" in outputs["demo.score_scenes"]
    found = json.loads((folder / "pointing_val.json").read_text())
    assert found["words"] > 4 and set(found["categories"]) <= set(SHAPES)
    for name in ("peak", "mass"):
        for baseline in ("", "_uniform", "_centre"):
            value, low, high = found[name + baseline]
            assert 0 <= low <= value <= high <= 1
            assert f"{100 * value:.1f}" in outputs["analysis.pointing"]


def test_report_of_the_run_is_one_page_with_all_its_captions(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy"
    assert "open checkpoints/toy/report_val.html" in outputs["analysis.report"]
    assert (folder / "report_val.html").read_text(encoding="utf-8").count(
        "<article") == 8


def test_figures_of_the_split_and_of_a_picture_of_ones_own_are_drawn(outputs):
    folder = outputs["folder"] / "checkpoints" / "toy" / "attention"
    told = json.loads((folder / "own_captions.json").read_text())
    assert list(told) == ["drawn/val/scene_000001.png"]
    names = sorted(name for name in os.listdir(str(folder)) if name.endswith(".png"))
    assert len(names) == 3 and names[0] == "own_scene_000001.png"
    for name in names:
        with Image.open(str(folder / name)) as figure:
            pixels = np.asarray(figure.convert("RGB"), int)
        # The picture, in full light, and maps that are darker in most places
        shade = pixels.reshape(-1, 3).mean(axis=1)
        assert min(pixels.shape[:2]) > 100 and (shade < 150).mean() > .1


def test_scenes_drawn_anew_with_fewer_are_refused_in_one_line(outputs, tmp_path):
    shutil.copytree(str(outputs["folder"] / "checkpoints"),
                    str(tmp_path / "checkpoints"))
    name = os.path.join("drawn", "annotations", "instances_val.json")
    found = json.loads((outputs["folder"] / name).read_text())
    gone = found["images"].pop()["id"]
    found["annotations"] = [box for box in found["annotations"]
                            if box["image_id"] != gone]
    os.makedirs(str(tmp_path / "drawn" / "annotations"))
    (tmp_path / name).write_text(json.dumps(found))
    done = subprocess.run(
        [sys.executable, *words("demo.score_scenes"), "--run", "toy"],
        cwd=str(tmp_path), env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert f"has captions of scene {gone}, " in done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_does_and_every_default(script, tmp_path):
    out = command(tmp_path, script, "--help")
    name = script if script.endswith(".py") else "-m " + script
    assert f"python {name} " in out and ("--data" in out or "--run" in out)
    assert "(default:" in out
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_flags_are_refused(script, tmp_path):
    done = subprocess.run([sys.executable, *words(script), "--fast"],
                          cwd=str(tmp_path), env=environment(), stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 2 and "--fast" in done.stderr
    assert "Traceback" not in done.stderr
