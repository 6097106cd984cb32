"""Texts that are not English, and desktops that are not American."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tokenize_captions
from captioning import curves, log, scores
from captioning.tokens import read_tokens, read_vocabulary, split_words
from commands import ROOT, environment
from runtime import cli, drawing, letters
from worlds import COMMANDS

CAPTIONS = "data/annotations/captions_train.json"


def replace_captions(change, path=CAPTIONS):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    for row in content["annotations"]:
        row["caption"] = change(row["caption"])
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


# --- words ----------------------------------------------------------------------------

@pytest.mark.parametrize("caption, words", [
    ("\u090f\u0915 \u0932\u093e\u0932 \u0915\u093f\u0924\u093e\u092c",  # Hindi
     ["\u090f\u0915", "\u0932\u093e\u0932", "\u0915\u093f\u0924\u093e\u092c"]),
    ("\u0e01\u0e34\u0e19 \u0e19\u0e49\u0e33",                           # Thai
     ["\u0e01\u0e34\u0e19", "\u0e19\u0e49\u0e33"]),
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0646\u062f",          # Persian
     ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0646\u062f"]),
    ("\u0130ki", ["i\u0307ki"]), ("un ve\u0301lo", ["un", "v\u00e9lo"]),
    ("un v\u00e9lo.", ["un", "v\u00e9lo"]), ("man\u2019s man's", ["man's", "man's"]),
    ("'quoted' rock'n'roll", ["quoted", "rock'n'roll"]),
    ("\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd!", ["\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd"]),
    ("a_b 3rd - \u200d", ["a", "b", "3rd"]),
    ("col\u00b7lecci\u00f3 \u00b7 a", ["col\u00b7lecci\u00f3", "a"]),   # Catalan
    ("\u05e6\u05f3\u05d9\u05e4\u05e1 \u05e7\u05d9\u05d8\u05e9\u05f3",     # Hebrew
     ["\u05e6\u05f3\u05d9\u05e4\u05e1", "\u05e7\u05d9\u05d8\u05e9\u05f3"]),
    ("\u05e6\u05d4\u05f4\u05dc", ["\u05e6\u05d4\u05f4\u05dc"]),
    ("Was\u00adser", ["wasser"])])
def test_words_keep_their_marks_and_joiners(caption, words):
    assert split_words(caption) == words
    assert scores.with_punctuation(caption).split(" ")[0] == (words[0] if caption[0]
                                                              != "'" else "'")


def test_a_scripts_words_are_whole_in_the_vocabulary(world):
    words = ["\u092f\u0939", "\u0939\u093f\u0928\u094d\u0926\u0940"]
    replace_captions(lambda caption: " ".join(words))
    assert world("tokenize_captions.py") == 0
    assert read_vocabulary("data/tokens").index_word[4:] == words


def test_captions_without_blanks_between_words_get_a_hint(world, capsys):
    replace_captions(lambda caption: "\u4e00\u53ea\u72d7\u5728\u8349\u5730\u4e0a\u8dd1")
    assert world("tokenize_captions.py") == 0
    assert "insert spaces" in capsys.readouterr().err


def test_half_a_letter_becomes_a_sign_that_can_be_written(world):
    replace_captions(lambda caption: caption + " \ud83d dog")
    assert world("tokenize_captions.py") == 0
    with open("data/tokens/references_train.json", encoding="utf-8") as file:
        assert "\ufffd dog" in json.load(file)["1"][0]


def test_half_a_letter_in_an_image_s_id_or_name_becomes_the_same_sign(world):
    with open(CAPTIONS, encoding="utf-8") as file:
        content = json.load(file)
    first = content["images"][0]["file_name"]
    os.rename("data/train/" + first, "data/train/\ufffd.png")
    content["images"][0].update(id="\ud83d", file_name="\ud83d.png")
    for row in content["annotations"]:
        if row["image_id"] == 1:
            row["image_id"] = "\ud83d"
    with open(CAPTIONS, "w", encoding="utf-8") as file:
        json.dump(content, file)
    assert world("tokenize_captions.py") == 0
    tokens = read_tokens("data/tokens", "train")
    assert tokens.image_ids[0] == "\ufffd" and tokens.images[0] == "train/\ufffd.png"
    with open("data/tokens/references_train.json", encoding="utf-8") as file:
        assert len(json.load(file)["\ufffd"]) == 5


def test_tokens_are_written_as_a_whole_or_not_at_all(world):
    def fail(*args):
        raise OSError(28, "No space left on device", "somewhere")
    before = world.files()
    replace_captions(lambda caption: caption + " again")
    world.monkeypatch.setattr(tokenize_captions, "write_references", fail)
    assert world("tokenize_captions.py") == 2
    before["./" + CAPTIONS] = world.files()["./" + CAPTIONS]
    assert world.files() == before


def test_byte_order_marks_are_passed_over(world):
    for path in (CAPTIONS, "data/tokens/vocabulary.tsv"):
        with open(path, "rb") as file:
            content = file.read()
        with open(path, "wb") as file:
            file.write(b"\xef\xbb\xbf" + content)
    assert world("train.py", "--run", "b", *COMMANDS["train.py"][2:]) == 0
    assert world("tokenize_captions.py") == 0


# --- figures --------------------------------------------------------------------------

def test_letters_of_the_default_font_need_no_other():
    assert drawing.font_for("A dog \u00e4\u00df\u00e9 \u043a\u043e\u0442") is None


def test_letters_that_no_font_has_are_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(cli, "warn", told.append)
    drawing._font_with.cache_clear()
    drawing._warn_once.cache_clear()
    drawing.font_for("a \U000e0041")
    drawing.font_for("b \U000e0042")
    assert len(told) == 1 and "install one" in told[0]


def test_font_that_has_the_letters_is_taken(monkeypatch):
    letters = {"/default.ttf": {ord("a")}, "/some.ttf": {ord("a"), 0x915},
               "/noto.ttf": {ord("a"), 0x915, 0x916}}
    monkeypatch.setattr(drawing.font_manager, "findfont", lambda name: "/default.ttf")
    monkeypatch.setattr(drawing, "_letters_of", lambda path: letters[path])
    monkeypatch.setattr(drawing.font_manager.fontManager, "ttflist", [
        type("Font", (), {"fname": path, "name": path}) for path in sorted(letters)])
    drawing._font_with.cache_clear()
    assert drawing.font_for("a \u0915\u0916") == "/noto.ttf"
    assert drawing.font_for("a a") is None
    drawing._font_with.cache_clear()


@pytest.mark.parametrize("line", ["text.usetex: True", "savefig.bbox: tight",
                                  "axes.facecolor: black", "font.size: 40"])
def test_settings_of_the_users_matplotlib_change_no_picture(line, made, tmp_path):
    (tmp_path / "matplotlibrc").write_text(line + "\n")
    body = ("import os; os.chdir({!r}); from captioning.log import write_log; "
            "import json; rows = [dict(epoch=e, train_loss=3. - e, val_loss=3., "
            "seconds=1) for e in (1, 2)]; write_log({!r}, rows, True)")
    pictures = []
    for name, config in (("own", str(tmp_path)), ("none", str(tmp_path / "none"))):
        os.makedirs(str(tmp_path / name))
        subprocess.check_call(
            [sys.executable, "-c", body.format(ROOT, str(tmp_path / name))],
            env=environment(MPLCONFIGDIR=config))
        with open(str(tmp_path / name / "loss.png"), "rb") as file:
            pictures.append(file.read())
    assert pictures[0] == pictures[1]


def test_picture_that_cannot_be_drawn_stops_no_training(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("latex was not found")
    monkeypatch.setattr(curves, "draw_curves", fail)
    history = [{"epoch": 1, "train_loss": 1., "val_loss": 2.}]
    log.write_log(str(tmp_path), history, True)
    assert "latex was not found" in capsys.readouterr().err
    assert os.listdir(str(tmp_path)) == ["log.csv"]


def test_report_lets_each_caption_run_its_own_way(world):
    assert world("analysis.report", "--run", "a") == 0
    with open("checkpoints/a/report_val.html", encoding="utf-8") as file:
        page = file.read()
    assert page.count('<ol class="words" dir="auto"') == 4
    assert page.count('<li dir="auto">') == 20


# --- the user's other settings --------------------------------------------------------

@pytest.mark.parametrize("setting", [{"image_data_format": "channels_first"},
                                     {"floatx": "float16"}])
def test_settings_of_the_users_keras_change_nothing(setting, tmp_path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(setting))
    body = ("from runtime.tf import tf; from captioning.inception import architecture; "
            "model = architecture(); print(model.output.shape, model.dtype "
            "if hasattr(model, 'dtype') else '', tf.keras.backend.floatx())")
    out = subprocess.check_output([sys.executable, "-c", body], stderr=subprocess.PIPE,
                                  env=environment(HOME=str(tmp_path))).decode()
    assert "8, 8, 2048" in out and out.split()[-1] == "float32"


@pytest.mark.skipif(sys.version_info >= (3, 7), reason="later ones need no locale")
@pytest.mark.parametrize("listed, chosen", [("C.utf8\nen_US.utf8", "C.UTF-8"),
                                            ("de_DE.utf8", "C.UTF-8"), ("", None)])
def test_any_utf8_locale_that_the_system_has_will_do(listed, chosen, monkeypatch):
    known = {"C.UTF-8"} if chosen else set()

    def setlocale(kind, name=None):
        if name is not None and name not in known | {"C"}:
            raise letters.locale.Error("unsupported locale setting")
        return "C"
    monkeypatch.setattr(letters.locale, "setlocale", setlocale)
    monkeypatch.setattr(letters.subprocess, "check_output",
                        lambda *args, **kwargs: listed.encode())
    assert letters.utf8_locale() == chosen


def test_locale_that_only_the_list_names_is_found(monkeypatch):
    def setlocale(kind, name=None):
        if name not in (None, "C", "de_DE.utf8"):
            raise letters.locale.Error("unsupported locale setting")
        return "C"
    monkeypatch.setattr(letters.locale, "setlocale", setlocale)
    monkeypatch.setattr(letters.subprocess, "check_output",
                        lambda *args, **kwargs: b"C\nPOSIX\nde_DE.utf8\n")
    assert letters.utf8_locale() == "de_DE.utf8"


def test_numbers_of_a_caption_are_read_in_any_locale():
    assert np.isclose(scores.averages(scores.score(
        {"1": "3 dogs"}, {"1": ["3 dogs"]}, java=False))["BLEU-1"], 100)
