"""What step 6 promises: which images it draws, and the words under the maps."""
import sys

import numpy as np
import pytest
from PIL import Image

import plot_attention as pa
from captioning.decoded import Decoded
from captioning.runs import Run
from captioning.tokens import END, Vocabulary
from runtime import cli
from runtime.atomic import write_json
from worlds import noise, some_alphas


VOCABULARY = Vocabulary(["cat", "a", "dog"], [0, 1, 1, 0, 3, 2, 1])
WORDS = np.array([[5, 4, END, 0], [END, 0, 0, 0], [5, 6, 5, 4]], np.int32)
DECODED = Decoded(np.array(["val/a.jpg", "val/b.png", "val/c.jpg"]),
                  np.array(["1", "2", "3"]), WORDS, np.array([3, 1, 4], np.int32),
                  some_alphas(12).reshape(3, 4, 64), np.zeros((3, 4), np.float32),
                  np.ones((3, 4), np.float32))


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """The images that flags choose, from a run with scores."""
    each = {"CIDEr": [20., 5., 90.]}
    write_json(str(tmp_path / "scores_val.json"), {
        "scores": {"CIDEr": 1.}, "intervals": {"CIDEr": [0., 2.]}, "habits": {},
        "habits_of_first_references": {}, "image_ids": ["1", "2", "3"],
        "of_each_image": each})

    def choose(*flags, decoded=DECODED):
        monkeypatch.setattr(sys, "argv", ["plot_attention.py", *flags])
        return pa.choose_images(decoded, pa.arguments(), str(tmp_path))
    return choose


@pytest.mark.parametrize("flags, expected", [
    (("--images", "c.jpg", "a.jpg"), [2, 0]), (("--ids", "2", "1"), [1, 0]),
    (("--best", "1"), [2]), (("--worst", "1"), [1]), (("--best", "2"), [2, 0]),
    (("--best", "1", "--worst", "2"), [2, 0, 1]), ((), [0, 1, 2]),
    (("--worst", "5"), [2, 0, 1]), (("--best", "5"), [2, 0, 1]),
    (("--best", "2", "--worst", "2"), [2, 0, 1])])
def test_images_are_chosen_as_the_flags_say(flags, expected, chosen):
    assert chosen(*flags) == expected


@pytest.mark.parametrize("flags", [("--images", "a.jpg", "x.jpg"), ("--ids", "9")])
def test_image_that_was_not_decoded_is_named(flags, chosen):
    with pytest.raises(cli.UserError, match=f"^{flags[0]} {flags[-1]}: .*--picture"):
        chosen(*flags)


def test_images_are_drawn_at_random_without_repetition(chosen):
    many = DECODED._replace(images=np.array([f"{i}.jpg" for i in range(50)]))
    first, again, other = (chosen("--count", "9", "--seed", seed, decoded=many)
                           for seed in ("1", "1", "2"))
    assert first == again != other
    assert len(set(first)) == 9 and set(first) < set(range(50))


def test_split_is_drawn_with_the_words_before_the_end(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "val").mkdir(parents=True)
    for i, name in enumerate(DECODED.images):
        Image.fromarray(noise(20 + i, 30)).save(str(tmp_path / "data" / name))
    np.savez(str(tmp_path / "attention_val.npz"), **DECODED._asdict())
    calls = []
    real = pa.draw
    monkeypatch.setattr(pa, "draw", lambda *args: calls.append(args) or real(*args))
    run = Run(str(tmp_path), {"data": str(tmp_path / "data"), "without": []},
              VOCABULARY)
    monkeypatch.setattr(sys, "argv", ["plot_attention.py"])
    paths = pa.draw_split(run, pa.arguments())
    assert paths == [str(tmp_path / "attention" / f"{name}.png") for name in "abc"]
    assert capsys.readouterr().out.splitlines() == [
        f"{paths[0]}: a cat", f"{paths[1]}: ", f"{paths[2]}: a dog a cat"]
    for i, (picture, words, alphas, path, notes, *_) in enumerate(calls):
        assert notes == ["p 1.00   \u03b2 1.00"] * len(words)
        assert len(words) == len(alphas) == [2, 0, 4][i]
        np.testing.assert_array_equal(alphas, DECODED.alphas[i, :len(words)])
        with Image.open(path) as figure:
            assert figure.format == "PNG" and figure.convert("RGB").size
