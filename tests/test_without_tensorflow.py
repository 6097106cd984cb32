"""Commands that only read a decoded run work without TensorFlow and the scorers."""
import os
import sys

import numpy as np
import pytest

from captioning.coco import read_objects
from captioning.decoded import read_decoded, read_source, write_decoded
from captioning.runs import read_run
from captioning.tokens import END
from commands import environment, finished

# Make importing these fail, then do as python -m does
BARRED = """import runpy, sys
sys.modules.update(dict.fromkeys(["tensorflow", "pycocoevalcap"]))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def decoded(world):
    """A decoded run whose captions name one of the drawn things."""
    run = read_run("a")
    made = read_decoded(run.folder, "val", run.vocabulary)
    objects = read_objects("data", made.images.tolist(), made.image_ids.tolist())
    ids = {word: i for i, word in enumerate(run.vocabulary.index_word)}
    words = np.array([[ids["a"], ids[things[0][0]], END] for _, things in objects],
                     np.int32)
    count = len(words)
    write_decoded(run.folder, "val", made._replace(
        words=words, steps=np.full(count, 3, np.int32),
        alphas=np.full((count, 3, 64), 1 / 64, np.float32),
        log_probs=np.zeros((count, 3), np.float32),
        betas=np.ones((count, 3), np.float32)), read_source(run, "val"))
    return world


def run(folder, *words):
    return finished([sys.executable, "-c", BARRED, *words], env=environment(),
                    cwd=folder)


@pytest.mark.parametrize("words, said", [
    (("analysis.report", "--run", "a"), "MB; open checkpoints/a/report_val.html"),
    (("analysis.pointing", "--run", "a"), "on 4 words in the captions of 4 of 4"),
    (("demo.score_scenes", "--run", "a"), "0% of 4 new scenes"),
    (("plot_attention", "--run", "a", "--count", "1", "--boxes"), "1 figures; open")])
def test_command_needs_no_tensorflow(words, said, decoded):
    done = run(decoded.folder, *words)
    assert done.returncode == 0 and said in done.stdout
    assert "TensorFlow" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [
    ("evaluate", "--run", "a"), ("analysis.deletion", "--run", "a"),
    ("plot_attention", "--run", "a", "--picture", "data/val/scene_000001.png"),
    ("analysis.report", "--run", "a", "--pictures", "data/val/scene_000001.png")])
def test_command_that_needs_the_model_says_what_is_missing(words, decoded):
    done = run(decoded.folder, *words)
    assert done.returncode == 2 and "TensorFlow cannot be imported" in done.stderr


@pytest.mark.parametrize("words", [
    ("analysis.report", "--run", "a"), ("plot_attention.py", "--run", "a")])
def test_captions_of_a_run_whose_weights_are_gone_are_shown(words, decoded):
    for name in os.listdir("checkpoints/a"):
        if name in ("best.npz", "newest.npz", "previous.npz"):
            os.remove(f"checkpoints/a/{name}")
    assert decoded(*words) == 0
