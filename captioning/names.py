"""Which words of a caption name which annotated category.

In data sets other than COCO, a category is named only by its own name and its plural.
"""
import numpy as np

# Other words that name COCO's categories, in the singular, besides a category's name.
# Words that people use for several categories (glass, plate, bat) are left out.
NAMES = {
    "person": "man woman boy girl child kid baby toddler lady guy gentleman player "
              "skier snowboarder surfer skateboarder rider batter pitcher catcher "
              "umpire worker officer policeman cyclist motorcyclist biker adult "
              "teenager crowd couple",
    "bicycle": "bike", "car": "automobile sedan suv taxi cab van minivan",
    "motorcycle": "motorbike moped scooter", "airplane": "plane jet aircraft airliner "
    "jetliner", "bus": "coach", "train": "locomotive subway tram trolley",
    "truck": "lorry pickup", "boat": "ship sailboat canoe kayak ferry yacht raft",
    "traffic light": "stoplight", "fire hydrant": "hydrant", "bird": "seagull pigeon "
    "duck goose parrot owl eagle swan", "cat": "kitten kitty", "dog": "puppy",
    "horse": "pony", "sheep": "lamb", "cow": "cattle bull calf ox", "bear": "cub",
    "backpack": "rucksack", "umbrella": "parasol", "handbag": "purse", "tie": "necktie",
    "suitcase": "luggage", "skis": "ski", "sports ball": "ball soccer~ball baseball "
    "basketball football", "baseball glove": "mitt glove", "surfboard": "surf~board",
    "tennis racket": "racket racquet", "wine glass": "wineglass", "cup": "mug",
    "donut": "doughnut", "hot dog": "hotdog", "couch": "sofa", "potted plant": "plant",
    "dining table": "table", "tv": "television", "laptop": "computer", "remote":
    "controller", "cell phone": "phone cellphone smartphone", "oven": "stove",
    "refrigerator": "fridge", "teddy bear": "teddy", "hair drier": "dryer"}
IRREGULAR = {"man": "men", "woman": "women", "child": "children", "person": "people",
             "policeman": "policemen", "gentleman": "gentlemen", "sheep": "sheep",
             "goose": "geese", "calf": "calves", "ox": "oxen", "knife": "knives",
             "mouse": "mice", "skis": "skis", "scissors": "scissors", "fish": "fish",
             "aircraft": "aircraft", "cattle": "cattle"}


def plural(name):
    """The plural of an English noun or of a phrase that ends in one."""
    *before, noun = name.split()
    if noun in IRREGULAR:
        noun = IRREGULAR[noun]
    elif noun.endswith(("s", "x", "z", "ch", "sh")):
        noun += "es"
    elif noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return " ".join(before + [noun])


def words_for(categories):
    """{tuple of words: category} for all names of these categories."""
    found = {}
    for category in categories:
        names = [name.replace("~", " ") for name in NAMES.get(category, "").split()]
        for name in [category] + names:
            for form in (name, plural(name)):
                found[tuple(form.split())] = category
    return found


def named(words, names):
    """The categories that a caption names: a list of (first, last, category).

    words: list of str. names: from `words_for`. first, last: indices of the name's
    words; its noun comes last. The longest name wins: a hot dog is not a dog.
    """
    found, at, longest = [], 0, max(map(len, names), default=0)
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            category = names.get(tuple(words[at:at + length]))
            if category is not None:
                found.append((at, at + length - 1, category))
                at += length - 1
                break
        at += 1
    return found


def boxes_of(words, size, objects):
    """All boxes of an image, then the boxes of what each word names: T + 1 lists of
    (x, y, w, h) as fractions of the sides.

    words: list of T str. size, objects: from coco.read_objects.
    """
    found = [[] for _ in range(len(words) + 1)]
    shares = [(name, tuple(np.divide(box, size + size))) for name, box in objects]
    found[0] = [box for _, box in shares]
    for first, last, category in named(words, words_for({name for name, _ in objects})):
        for place in range(first, last + 1):
            found[place + 1] = [box for name, box in shares if name == category]
    return found
