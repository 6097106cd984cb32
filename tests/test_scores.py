"""The scores, against pinned figures, by hand, and against the reference scorer."""
import math
import os
import shutil
import socket
import subprocess
import urllib.request

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from captioning import scores
from runtime import cli


needs_java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
MADE = {"1": "a man rides a horse", "2": "a dog", "3": "two red buses on a street",
        "4": "a cat sits on a mat near the door"}
TRUE = {"1": ["A man riding a horse.", "A man rides a brown horse!"],
        "2": ["The dog runs across the field.", "A dog is running"],
        "3": ["Two red buses, on a street.", "Buses in the city"],
        "4": ["A cat on a mat", "The cat sits on the mat."]}

PINNED = {"BLEU-1": 90.909, "BLEU-2": 87.039, "BLEU-3": 75.648, "BLEU-4": 62.989,
          "METEOR": 49.410, "ROUGE-L": 81.910, "CIDEr": 363.166}


# --- BLEU -----------------------------------------------------------------------------

def test_bleu_by_hand():
    """c = 3 words against r = 4: 2 of 3 words, 1 of 2 pairs, penalty exp(1 - 4/3)."""
    counts = scores.bleu_counts(["a b x"], [["a b c d"]])
    assert counts.tolist() == [[3, 4, 3, 2, 1, 0, 2, 1, 0, 0]]
    with_penalty = scores.bleu(counts[0])
    without = scores.bleu(counts[0], brevity=False)
    assert without[:2] == pytest.approx([100 * 2 / 3, 100 * math.sqrt(2 / 3 / 2)])
    assert with_penalty[:2] == pytest.approx(without[:2] * math.exp(1 - 4 / 3))
    assert without[2] < .01 and without[3] < .01


def test_captions_longer_than_the_references_get_no_penalty():
    counts = scores.bleu_counts(["a b c d e"], [["a b"]])
    assert scores.bleu(counts[0]) == pytest.approx(scores.bleu(counts[0], False))


def test_reference_of_the_closest_length_counts():
    assert scores.bleu_counts(["a b c"], [["a", "a b c d e f", "a b"]])[0, 1] == 2


def test_corpus_bleu_is_that_of_the_reference_scorer():
    random = np.random.RandomState(3)

    def sentence():
        return " ".join(random.choice(list("abcdef"), random.randint(1, 12)))
    made = {str(i): [sentence()] for i in range(40)}
    true = {str(i): [sentence() for _ in range(3)] for i in range(40)}
    expected, _ = Bleu(4).compute_score(true, made, verbose=0)
    counts = scores.bleu_counts([made[i][0] for i in sorted(made)],
                                [true[i] for i in sorted(made)])
    assert scores.bleu(counts.sum(0)) == pytest.approx(100 * np.array(expected))


def test_bleu_with_punctuation_by_hand():
    """`a dog runs .` has 4 of 4 words and 2 of 3 pairs of its references; no penalty.
    """
    true = {"1": ["A dog, running.", "One dog runs past the gate of the large house"]}
    for made in ("a dog runs", "A dog runs."):
        found = scores.averages(scores.score({"1": made}, true, java=False))
        assert found["BLEU-1 with punctuation"] == pytest.approx(100)
        assert found["BLEU-2 with punctuation"] == pytest.approx(100 * (2 / 3) ** .5)
        assert found["BLEU-1 with punctuation and brevity penalty"] == pytest.approx(
            100 * math.exp(1 - 5 / 4))  # the nearest reference is `a dog , running .`
        assert found["BLEU-1"] == pytest.approx(100)  # there a full stop is no word
    assert scores.with_punctuation("Don't stop: A-1, \"go\"!") == (
        "don't stop : a - 1 , \" go \" !")
    assert scores.punctuated(["", "a."], [["a ."], ["b"]])[0] == ["", "a ."]
    # These references rarely have full stops, so a caption does well without one
    made, true = scores.punctuated(["a dog runs"], [["a dog", "A dog runs.", "dogs"]])
    assert made == ["a dog runs"] and true == [["a dog", "a dog runs .", "dogs"]]


# --- all of them ----------------------------------------------------------------------

@needs_java
def test_scores_are_those_of_the_coco_tools():
    """Pinned: what pycocoevalcap 1.2 printed for these captions, called directly."""
    scored = scores.score(MADE, TRUE)
    assert scored.tokenizer == scores.PTB and scored.ids == ["1", "2", "3", "4"]
    found = scores.averages(scored)
    for name, value in PINNED.items():
        assert found[name] == pytest.approx(value, abs=.01), name
    assert found["BLEU-1 without brevity penalty"] >= found["BLEU-1"]


def test_perfect_captions_reach_the_top():
    true = {i: [group[0]] for i, group in TRUE.items()}
    found = scores.averages(scores.score({i: g[0] for i, g in true.items()}, true,
                                         java=False))
    for name in ("BLEU-1", "BLEU-4 without brevity penalty", "ROUGE-L"):
        assert found[name] == pytest.approx(100, abs=.01), name
    assert found["CIDEr"] > 500  # its scale goes to 1000


@needs_java
def test_tokenizer_keeps_captions_with_their_images():
    made = {"1": "", "2": "A b\u2028c\nd, egg.", "3": "..."}
    true = {"1": ["x"], "2": ["one\rtwo", "", "Three!"], "3": ["", ""]}
    made, true, name = scores.tokenize(made, true)
    assert name == scores.PTB
    assert made == {"1": [""], "2": ["a b c d egg"], "3": [""]}
    assert true == {"1": ["x"], "2": ["one two", "", "three"], "3": ["", ""]}


@needs_java
def test_empty_captions_are_scored_and_do_not_hang():
    made = dict(MADE, **{"5": ""})
    found = scores.averages(scores.score(made, dict(TRUE, **{"5": ["a ||| b", "a"]})))
    assert 0 < found["METEOR"] < 100 and 0 < found["BLEU-1"] < 100


def test_without_java_there_is_no_meteor_and_the_tokenizer_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scored = scores.score(MADE, TRUE)
    assert scored.tokenizer == scores.PLAIN and "Java" in scores.PLAIN
    found = scores.averages(scored)
    assert "METEOR" not in found and found["BLEU-1"] == pytest.approx(
        PINNED["BLEU-1"], abs=.01)  # both tokenizers split these captions alike


@pytest.mark.parametrize("true", [{}, {"1": ["a"], "2": [], "3": ["b"], "4": ["c"]}])
def test_image_without_references_is_refused(true):
    with pytest.raises(cli.UserError, match="no references .first: [12]"):
        scores.score(MADE, true, java=False)


def test_spice_that_cannot_run_is_left_out_with_a_line(monkeypatch, capsys):
    def broken():
        raise OSError("no\nnetwork")
    monkeypatch.setattr(scores, "Spice", broken)
    found = scores.averages(scores.score(MADE, TRUE, spice=True, java=False))
    assert found == scores.averages(scores.score(MADE, TRUE, java=False))
    assert "SPICE is left out: it could not run (no network)" in capsys.readouterr().err


def test_spice_whose_download_falls_silent_is_left_out(monkeypatch, capsys):
    with socket.socket() as silent:  # accepts connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)

        def downloads():
            urllib.request.urlopen(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setattr(scores, "Spice", downloads)
        monkeypatch.setattr(scores, "SILENCE", .2)
        assert "SPICE" not in scores.score(MADE, TRUE, spice=True, java=False).parts
    assert "SPICE is left out: it could not run (" in capsys.readouterr().err
    assert socket.getdefaulttimeout() is None


def test_java_that_does_not_end_is_killed(monkeypatch, capsys):
    monkeypatch.setattr(scores, "JAVA_SECONDS", (.2, 0))
    with scores.java_ends(3):
        process = subprocess.Popen(["sleep", "60"])
        assert process.wait(20) == -9
    assert "Java has not come to its end" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS",
                                  "_JAVA_OPTIONS"])
def test_java_is_told_to_write_english_whatever_its_variables_say(name, monkeypatch):
    monkeypatch.setenv(name, "-Duser.language=de")
    with scores.english_java():
        assert os.environ[name].endswith(scores.ENGLISH)
    assert os.environ[name] == "-Duser.language=de"


def test_captions_that_were_cut_are_a_habit():
    scored = scores.score(MADE, TRUE, java=False)
    cut = {i: i == scored.ids[0] for i in scored.ids}
    summary = scores.summarize(scored, MADE, TRUE, None, cut)
    assert summary["habits"][scores.CUT] == 100 / len(MADE)
    assert summary["habits_of_first_references"][scores.CUT] == 0
    assert scores.CUT not in scores.summarize(scored, MADE, TRUE, None)["habits"]


# --- intervals ------------------------------------------------------------------------

def many(images, seed, right=.6):
    """Captions that have each word of their reference with probability `right`."""
    random = np.random.RandomState(seed)
    true = {str(i): [" ".join(random.choice(list("abcdefgh"), 7))]
            for i in range(images)}
    made = {i: " ".join(w if random.rand() < right else "z" for w in c[0].split())
            for i, c in true.items()}
    return made, true


def test_intervals_hold_the_score_and_shrink_with_the_number_of_images():
    widths = []
    for images in (20, 320):
        scored = scores.score(*many(images, 1), java=False)
        point, between = scores.averages(scored), scores.intervals(scored)
        assert list(point) == list(between)
        for name, (low, high) in between.items():
            assert low <= point[name] <= high
        widths.append(np.diff(between["BLEU-1"])[0])
    assert 2.5 < widths[0] / widths[1] < 6.5  # the square root of 16


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    scored = scores.score(*many(400, 2), java=False)
    values = scored.parts["ROUGE-L"]
    low, high = scores.intervals(scored)["ROUGE-L"]
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=.15)


def test_weights_of_one_each_are_the_plain_average():
    scored = scores.score(*many(30, 3), java=False)
    point = scores.averages(scored)
    for name, values in scores.averages(scored, np.ones((2, 30))).items():
        assert values == pytest.approx([point[name]] * 2)


def test_paired_comparison_sees_what_differs_and_only_that():
    made, true = many(200, 4, .6)
    better = many(200, 4, .75)[0]  # the same references, drawn first with the same seed
    first, second = (scores.score(m, true, java=False) for m in (made, made))
    for difference, low, high, p in scores.compare(first, second).values():
        assert (difference, low, high, p) == (0, 0, 0, 1)
    second = scores.score(better, many(200, 4, .75)[1], java=False)
    difference, low, high, p = scores.compare(first, second)["BLEU-1"]
    assert 0 < low < difference < high and p < .01
    back = scores.compare(second, first)["BLEU-1"]
    assert back[0] == pytest.approx(-difference)


# --- habits ---------------------------------------------------------------------------

def test_habits_by_hand():
    found = scores.habits(["a a b", "a c", "a c"], {"a c"})
    assert list(found.values()) == pytest.approx(
        [7 / 3, 3, 200 / 3, 100 / 3, 100 / 7, 100 / 7, 0])
    ends = scores.habits(["dog with a", "dogs and", "a dog in", "a man with it"], None)
    assert list(ends.values())[-1] == 75
    assert list(scores.habits([""], set()).values())[:2] == [0, 0]
