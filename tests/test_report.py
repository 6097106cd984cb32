"""The report: what is on the page, and what it does in a real browser."""
import json
import os
import re
import shutil
import time

import numpy as np
import pytest

from analysis import report
from captioning.decoded import (read_decoded, read_scores, read_source, write_decoded,
                                write_nbest, write_scores)
from captioning.runs import read_run
from captioning.tokens import END, read_references
from runtime.atomic import write_json
from worlds import World, refused

HOSTILE = ("</script><script>window.hacked = 1</script>"
           "<img src=x onerror='hacked = 2'> & \"")
RUN = "checkpoints/a/"


def write_run(name, captions, cell):
    """Write a run that decoded these captions; word t looks at `cell` + t."""
    run = read_run(name)
    decoded = read_decoded(run.folder, "val", run.vocabulary)
    I, T = len(captions), max(map(len, captions)) + 1
    words, alphas = np.zeros((I, T), np.int32), np.full((I, T, 64), .001, np.float32)
    for i, caption in enumerate(captions):
        words[i, :len(caption)] = run.vocabulary.encode(caption)
        words[i, len(caption)] = END
        for t in range(len(caption)):
            alphas[i, t, (cell + t) % 64] = 1
    write_decoded(run.folder, "val", decoded._replace(
        words=words, alphas=alphas, betas=np.full((I, T), .75),
        steps=np.array([len(c) + 1 for c in captions], np.int32),
        log_probs=np.full((I, T), np.log(.25), np.float32)), read_source(run, "val"))
    scores = read_scores(run.folder, "val")
    scores["of_each_image"]["CIDEr"] = [30., 10., 40., 20.]
    write_scores(run.folder, "val", scores)


@pytest.fixture
def page(made, tmp_path, monkeypatch):
    """A function that makes the report with extra flags and returns its path."""
    shutil.copytree(str(made), str(tmp_path / "w"))
    world = World(tmp_path / "w", monkeypatch)
    references = read_references("data/tokens", "val")
    references[sorted(references)[0]][0] = HOSTILE
    write_json("data/tokens/references_val.json", references)
    shutil.copytree("checkpoints/a", "checkpoints/b")
    write_run("a", [["red", "ring"], ["a", "blue", "cross"], [], ["red"] * 9], 9)
    write_run("b", [["green", "square"]] * 4, 36)

    def make(*flags):
        assert world("analysis.report", "--run", "a", *flags) == 0
        return os.path.join(os.getcwd(), RUN, "report_val.html")
    make.world = world
    return make


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)'
                                r"</script>", text, re.S).group(1))


def test_page_has_scores_curves_settings_captions_and_references(page):
    text = read(page())
    for words in ("BLEU-4 without brevity penalty", "CIDEr", "words a caption",
                  "learning rate", "data:image/png;base64,", "4 of 4 images"):
        assert words in text
    assert text.count("<article") == text.count("data:image/jpeg;base64,") == 4
    assert re.findall(r">(\w+)</button></li>", text)[:5] == ["red", "ring", "a", "blue",
                                                             "cross"]


def test_maps_come_as_bytes_with_the_peak_where_the_model_looked(page):
    found = data_of(read(page()))
    maps = [np.frombuffer(report.base64.b64decode(text), np.uint8)
            for text in found[1]["runs"][0]["maps"]]
    assert [int(np.argmax(m)) for m in maps] == [9, 10, 11]
    assert all(m.max() == 255 and len(m) == 64 for m in maps)
    assert found[1]["runs"][0]["probabilities"] == [.25] * 3
    assert found[1]["runs"][0]["betas"] == [.75] * 3


def test_hostile_captions_are_text(page):
    text = read(page())
    assert "<script>window.hacked" not in text and "<img src=x" not in text
    assert "&lt;/script&gt;&lt;script&gt;window.hacked" in text


def test_nothing_is_loaded_from_elsewhere(page):
    text = read(page())
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "default-src 'none'" in text


def test_fewer_images_are_drawn_with_the_seed(page):
    first, again, other = (read(page("--count", "2", "--seed", seed))
                           for seed in ("0", "0", "3"))
    assert first == again != other and first.count("<article") == 2


def test_candidates_of_the_beam_are_listed(page):
    decoded = read_decoded(RUN, "val", read_run("a").vocabulary)
    write_nbest(RUN, "val", {str(decoded.image_ids[0]): [
        {"caption": "red ring", "log_prob": -1.5},
        {"caption": "blue ring", "log_prob": -2.25}]})
    text = read(page())
    assert "2 candidates of the\nbeam" in text and "(log p -2.25)" in text


def test_each_word_has_the_entropy_of_its_map(page):
    found = data_of(read(page()))[1]["runs"][0]["entropies"]
    alpha = np.r_[1, np.full(63, .001)]
    assert found[:2] == [round(100 * -(alpha * np.log(alpha)).sum() / np.log(64))] * 2


def write_drops(words):
    """As deletion.py does, for the image captioned "a blue cross"."""
    decoded = read_decoded(RUN, "val", read_run("a").vocabulary)
    row = [i for i, steps in enumerate(decoded.steps) if steps == 4][0]
    write_json(RUN + "deletion_val.json", {"words": 1, "of_each_word": {
        str(decoded.image_ids[row]): {"words": words + [END], "drops": {"2": 1.25}}}})


@pytest.mark.parametrize("caption, drop", [("a blue cross", 1.25),
                                           ("a red cross", None)])
def test_drop_is_shown_unless_the_caption_is_another_by_now(page, caption, drop):
    write_drops(read_run("a").vocabulary.encode(caption.split()))
    assert data_of(read(page()))[1]["runs"][0]["drops"] == [None, None, drop]


def test_boxes_are_those_of_the_picture_and_of_what_each_word_names(page):
    with open("data/annotations/instances_val.json") as file:
        content = json.load(file)
    decoded = read_decoded(RUN, "val", read_run("a").vocabulary)
    image, = [item for item in content["images"]
              if str(item["id"]) == decoded.image_ids[0]]
    shapes = {item["id"]: item["name"] for item in content["categories"]}
    true = [(shapes[item["category_id"]],
             [round(x / image["width"], 4) for x in item["bbox"]])
            for item in content["annotations"] if item["image_id"] == image["id"]]
    write_run("a", [["red", true[0][0]]] * 4, 9)
    found = data_of(read(page()))[0]
    assert found["boxes"] == [box for _, box in true]
    assert found["runs"][0]["boxes"] == [
        [], [box for shape, box in true if shape == true[0][0]]]


def test_data_without_boxes_make_a_page_without_them(page):
    os.remove("data/annotations/instances_val.json")
    text = read(page())
    assert 'id="boxes"' not in text and data_of(text)[0]["boxes"] == []


@pytest.mark.parametrize("flags, spoil, words", [
    (("--compare", "none"), None, "no such run"),
    (("--count", "0"), None, "at least 1"), ((), "loss.png", "loss.png"),
    ((), "attention_val.npz", "run evaluate.py"),
    ((), "scores_val.json", "run evaluate.py")])
def test_what_is_not_there_is_refused_in_one_line(flags, spoil, words, page, capsys):
    if spoil:
        os.remove(RUN + spoil)
    assert words in refused(page.world, capsys, "analysis.report", *flags)
    assert not os.path.exists(RUN + "report_val.html")


def test_scores_of_other_images_are_refused_in_one_line(page, capsys):
    scores = read_scores(RUN, "val")
    write_scores(RUN, "val", dict(scores, image_ids=["77"] + scores["image_ids"][1:]))
    assert "of other images" in refused(page.world, capsys, "analysis.report")


@pytest.mark.parametrize("name, content", [
    (name, content) for name in ("scores_val.json", "nbest_val.json")
    for content in ("", "[1]", '{"a": 1}', '{"a": [{"caption": 1}]}')] + [
        ("deletion_val.json", content)
        for content in ("", "[1]", '{"of_each_word": [1]}')])
def test_damaged_files_are_refused_in_one_line(name, content, page, capsys):
    with open(RUN + name, "w") as file:
        file.write(content)
    assert name in refused(page.world, capsys, "analysis.report")


# --- in a browser ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu",
                 "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options)
    yield driver
    driver.quit()


@pytest.fixture
def opened(page, browser):
    """A function that makes the report and opens it; no console error may occur."""
    def open_it(*flags):
        browser.get_log("browser")
        browser.get("file://" + page(*flags))
        return browser
    yield open_it
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert browser.execute_script("return window.hacked") is None
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in loaded)


def buttons(driver, caption):
    return driver.find_elements("css selector", ".words")[
        caption].find_elements("tag name", "button")


def darkness(driver, caption):
    """The map's opacity over a card's picture, in 8 x 8 cells; None without a map."""
    return driver.execute_script("""
        const card = document.querySelectorAll(".words")[arguments[0]].closest(".card");
        const canvas = card.querySelector("canvas");
        if (canvas.dataset.word === undefined) return null;
        const context = canvas.getContext("2d"), found = [];
        for (let y = 0; y < 8; y++) for (let x = 0; x < 8; x++)
            found.push(context.getImageData((37.5 + 32 * x) / 299 * canvas.width,
                (37.5 + 32 * y) / 299 * canvas.height, 1, 1).data[3]);
        return found;""", caption)


def point_at(driver, button):
    from selenium.webdriver.common.action_chains import ActionChains
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(driver).move_to_element(button).perform()


def marked(driver):
    return [b.text for b in driver.find_elements("css selector", ".words button.on")]


def order(driver):
    return [int(card.get_attribute("data-number")) for card in
            driver.find_elements("css selector", ".card") if card.is_displayed()]


def test_pointing_at_a_word_shows_where_the_model_looked(opened):
    driver = opened()
    assert darkness(driver, 1) is None and marked(driver) == []
    for word, cell in ((1, 10), (2, 11)):
        point_at(driver, buttons(driver, 1)[word])
        found = darkness(driver, 1)
        assert int(np.argmin(found)) == cell and found[cell] < 100 < 200 < found[50]
        assert marked(driver) == [["a", "blue", "cross"][word]]
    facts = driver.find_elements("css selector", ".word-facts")[1].text
    assert facts == ("3 of 3: probability 0.25, gate 0.75, most at the upper middle, "
                     "entropy 10 %")
    point_at(driver, driver.find_element("css selector", "h1"))
    assert marked(driver) == [] and darkness(driver, 1) is None


def test_key_draws_the_boxes_and_takes_them_away(opened):
    from selenium.webdriver.common.keys import Keys
    driver = opened()

    def on_the_edge():  # the middle of the first box's upper side
        return driver.execute_script("""
            const [x, y, w] = data[0].boxes[0];
            const canvas = document.querySelector(".card canvas");
            return [...canvas.getContext("2d").getImageData(
                (x + w / 2) * canvas.width, y * canvas.height, 1, 1).data];""")
    body = driver.find_element("css selector", "body")
    for drawn in (True, False):
        body.send_keys("b")
        assert (on_the_edge()[3] > 0) == drawn
    driver.find_element("id", "boxes").click()
    assert on_the_edge()[3] > 0
    word = driver.find_element("id", "word")
    word.send_keys("b", Keys.BACKSPACE)  # a letter typed in a field is no shortcut
    assert on_the_edge()[3] > 0


def test_drop_of_a_word_is_told(page, browser):
    write_drops(read_run("a").vocabulary.encode("a blue cross".split()))
    browser.get("file://" + page())
    point_at(browser, buttons(browser, 1)[2])
    assert browser.find_elements("css selector", ".word-facts")[1].text.endswith(
        "; without the cells looked at most, log p falls by 1.25 nats")


def test_keyboard_alone_steps_through_a_caption(opened):
    from selenium.webdriver.common.keys import Keys
    driver = opened()
    field = driver.find_element("css selector", "button[type=reset]")
    driver.execute_script("arguments[0].focus()", field)
    field.send_keys(Keys.TAB)
    assert marked(driver) == ["red"]
    for key, word in ((Keys.ARROW_RIGHT, "ring"), (Keys.ARROW_RIGHT, "ring"),
                      (Keys.ARROW_LEFT, "red"), (Keys.END, "ring")):
        driver.switch_to.active_element.send_keys(key)
        assert marked(driver) == [word]
        assert driver.switch_to.active_element.get_attribute("aria-pressed") == "true"
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert marked(driver) == []


@pytest.mark.parametrize("value, expected", [
    ("number up", [0, 1, 2, 3]), ("score down", [2, 0, 3, 1]),
    ("score up", [1, 3, 0, 2]), ("length down", [3, 1, 0, 2]),
    ("length up", [2, 0, 1, 3])])
def test_cards_are_sorted(value, expected, opened):
    driver = opened()
    driver.find_element("css selector", f"option[value='{value}']").click()
    assert order(driver) == expected


@pytest.mark.parametrize("field, text, expected", [
    ("word", "red", [0, 3]), ("word", " CROSS ", [1]), ("word", "re", []),
    ("low", "25", [0, 2]), ("high", "20", [1, 3]), ("short", "2", [0, 1, 3]),
    ("long", "0", [2])])
def test_cards_are_filtered(field, text, expected, opened):
    driver = opened()
    driver.find_element("id", field).send_keys(text)
    assert order(driver) == expected
    assert driver.find_element("id", "count").text == f"{len(expected)} of 4 images"
    driver.find_element("css selector", "button[type=reset]").click()
    time.sleep(.2)
    assert order(driver) == [0, 1, 2, 3]


def test_two_runs_stand_side_by_side(opened):
    driver = opened("--compare", "b")
    captions = [[b.text for b in buttons(driver, i)] for i in range(4)]
    assert captions == [["red", "ring"], ["green", "square"], ["a", "blue", "cross"],
                        ["green", "square"]]
    point_at(driver, buttons(driver, 3)[1])  # the other run's map on the same picture
    assert int(np.argmin(darkness(driver, 3))) == 37
    driver.find_element("css selector", "option[value='gain down']").click()
    assert len(order(driver)) == 4


@pytest.mark.parametrize("width", [320, 390, 768, 1300])
def test_page_fits_windows_of_any_width(width, opened):
    driver = opened()
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth "
                                     "<= window.innerWidth")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_picture_and_control_has_a_name_for_a_screen_reader(opened):
    driver = opened()
    assert driver.execute_script("""
        return [...document.querySelectorAll("img")].every(image => image.alt)
            && [...document.querySelectorAll("input, select")].every(
                control => control.labels.length)
            && [...document.querySelectorAll("article")].every(
                card => card.getAttribute("aria-label"))""")
    alts = [image.get_attribute("alt") for image in
            driver.find_elements("css selector", ".picture img")]
    assert any(HOSTILE in alt for alt in alts)
