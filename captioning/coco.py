"""A data set in COCO's layout: its images, captions and boxes.

    <data>/annotations/captions_<split>.json
    <data>/annotations/instances_<split>.json     boxes, where there are any
    <data>/<split>/<file name>
"""
import json
import math
import os
import posixpath
import re
import typing

from captioning.pictures import upright_boxes
from runtime import atomic, cli

FAQ = 'docs/faq.md, "My own data"'


class Image(typing.NamedTuple):
    """One image of a data set, with the captions that people wrote for it."""
    id: typing.Union[int, str]
    file_name: str                # inside the split's folder
    captions: typing.List[str]    # as written: neither tokenized nor lower-cased
    folder: str = ""              # of the image, below the data set

    @property
    def path(self):
        """Its normalized path below the data set, e.g. train2014/COCO_1.jpg."""
        return posixpath.normpath(f"{self.folder}/{self.file_name}")


def is_inside(name):
    """Whether a relative file name stays inside the folder it is joined to."""
    return bool(name) and not re.match(r"[/\\]|\w:|.*\0", name) and (
        ".." not in re.split(r"[/\\]", name))


def advice(data, of=""):
    """How to get what a data set lacks, for a message: step 1 downloads only COCO.

    of: the name of a split, or of a file. data: the folder, which may be missing.
    """
    if not os.path.isdir(data or "."):
        return ("get COCO's with download_coco.py, or drawn ones with `make demo`; for "
                f"your own see {FAQ}, and --data")
    if (re.search(r"(train|val)20(14|17)\b", of)
            or os.path.isdir(os.path.join(data, "archives"))):
        return "run download_coco.py again"
    return f"see {FAQ}"


def again(path):
    """What to do about a damaged annotations file, for a message."""
    return f"correct it, or {advice(os.path.dirname(os.path.dirname(path)), path)}"


def splits(data):
    """The sorted names of the splits in folder `data` that have captions.

    Raises UserError if there are none.
    """
    folder = os.path.join(data, "annotations")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    names = [re.fullmatch(r"captions_(.+)\.json", name) for name in found
             if not name.endswith("_results.json")]  # what a run has generated
    if not any(names):
        raise cli.UserError(f"{folder}: no captions_SPLIT.json there; {advice(data)}")
    return sorted(name.group(1) for name in names if name)


def annotations_path(data, kind, split):
    """The path of a split's captions or instances (kind)."""
    return os.path.join(data, "annotations", f"{kind}_{split}.json")


def image_path(data, split, file_name):
    """The path of the image called `file_name` in the annotations of `split`."""
    return os.path.join(data, split, file_name)


def split_of(image):
    """The split whose folder an image is in, from its path below the data set.

    That is the first folder: an image's file_name may contain further ones.
    """
    return image.replace(os.sep, "/").split("/")[0]


def read_captions(data, split, strays=None):
    """The images of a split as a list of Image, in the file's order.

    Captions keep their order too; an image without any has an empty list. Entries with
    the same file name are one image: their captions are joined, under the first id.
    strays: a list that captions of unlisted images are appended to, as lines; None:
    they are counted in a warning. Raises UserError, naming the file, if it is missing,
    not JSON, or not in COCO's captions format.
    """
    path = annotations_path(data, "captions", split)
    return images_of(read_json(path), path, split, strays)


def images_of(content, path, split, strays=None):
    """The list of Image in the content of a captions file; `path` is for messages."""
    captions, images, by_name = {}, [], {}
    for image in items(content, path, "images", id=(int, str), file_name=(str,)):
        key = str(image["id"])  # 5 and "5" are one id
        if key in captions:
            raise cli.UserError(f"{path}: two images with id {image['id']!r}; "
                                + again(path))
        if not is_inside(image["file_name"]):
            raise cli.UserError(f"{path}: file name {image['file_name']!r} leads out "
                                f"of the split's folder; {again(path)}")
        name = posixpath.normpath(image["file_name"])
        if name not in by_name:
            by_name[name] = Image(image["id"], name, [], split)
            images.append(by_name[name])
        captions[key] = by_name[name].captions
    lost = [] if strays is None else strays
    for item in items(content, path, "annotations", image_id=(int, str),
                      caption=(str,)):
        if str(item["image_id"]) in captions:
            captions[str(item["image_id"])].append(item["caption"])
        else:
            lost.append(f"{item['image_id']}\t{cli.one_line(item['caption'])}")
    if strays is None and lost:
        cli.warn(f"{path}: skipped {len(lost)} captions whose image_id no image has")
    if len(images) < len(captions):
        cli.warn(f"{path}: {len(captions) - len(images)} images are listed twice; "
                 "their captions were joined")
    return images


def whole_text(text):
    """Text that can be encoded: lone surrogates become U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def read_boxes(data, split):
    """The objects of a split: {image id: ((width, height), [(name, (x, y, w, h))])}.

    name: of the category. In pixels of the original image, from its upper left corner.
    An image without objects has no entry. Returns None if there is no
    instances_<split>.json. Raises UserError, naming the file, if it is not in COCO's
    instances format.
    """
    def without_outline(item):  # most of the file, and gigabytes in memory
        item.pop("segmentation", None)
        return item

    path = annotations_path(data, "instances", split)
    if not os.path.exists(path):
        return None
    content = read_json(path, without_outline)
    names = {item["id"]: item["name"]
             for item in items(content, path, "categories", id=(int, str), name=(str,))}
    sizes = {item["id"]: (item["width"], item["height"])
             for item in items(content, path, "images", id=(int, str), width=(int,),
                               height=(int,))}
    boxes = {}
    for item in items(content, path, "annotations", image_id=(int, str),
                      category_id=(int, str), bbox=(list,)):
        box = tuple(item["bbox"])
        if item["category_id"] not in names or len(box) != 4 or not all(
                type(value) in (int, float) and math.isfinite(value) for value in box
                ) or item["image_id"] not in sizes:
            raise cli.UserError(f"{path}: image {item['image_id']!r} has a bad box "
                                f"{box} or category {item['category_id']!r}; "
                                + again(path))
        _, found = boxes.setdefault(item["image_id"], (sizes[item["image_id"]], []))
        found.append((names[item["category_id"]], box))
    return boxes


def has_boxes(data, images):
    """Whether there are annotated boxes for all these images, paths below `data`."""
    return all(os.path.exists(annotations_path(data, "instances", split))
               for split in set(map(split_of, images)))


def read_objects(data, images, ids):
    """The size and objects of images: a list of ((width, height), [(name, box)]).

    images: their paths below `data`; ids: their ids, str. Boxes refer to the upright
    pictures. Raises cli.UserError if the images' splits have no boxes.
    """
    of_split = {}
    for split in sorted(set(map(split_of, images))):
        found = read_boxes(data, split)
        if found is None:
            raise cli.UserError(
                f"{annotations_path(data, 'instances', split)}: missing, so the places "
                f"of the objects are unknown; {advice(data, split)}")
        of_split[split] = {str(i): objects for i, objects in found.items()}
    return [upright_boxes(os.path.join(data, image),
                          *of_split[split_of(image)].get(i, ((1, 1), [])))
            for image, i in zip(images, ids)]


def read_json(path, keep=None):
    """The content of a JSON file, or UserError; keep: see load_json."""
    try:
        with atomic.reading(path, encoding="utf-8-sig") as file:
            return load_json(file, path, keep)
    except FileNotFoundError:
        data = os.path.dirname(os.path.dirname(path))
        raise cli.UserError(f"{path}: no such file; {advice(data, path)}")


def load_json(file, path, keep=None):
    """The content of an open JSON file; UserError naming `path` if it is not JSON.

    keep: called on every object as soon as it is parsed, returns its replacement, so
    that the unneeded parts of COCO's 330 MB of instances never pile up in memory.
    """
    try:
        return json.load(file, object_hook=keep)
    except (ValueError, RecursionError) as error:
        raise cli.UserError(f"{path}: not JSON, or cut off ({error}); {again(path)}")


def items(content, path, key, **types):
    """content[key], a list of objects with fields of the given types, or UserError.

    Text in these fields goes through whole_text.
    """
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise cli.UserError(f"{path}: has no list {key!r}; {again(path)}")
    for number, item in enumerate(listed):
        for field, allowed in types.items():
            # type(), not isinstance(): true and false are not numbers here
            if not isinstance(item, dict) or type(item.get(field)) not in allowed:
                raise cli.UserError(f"{path}: item {number} of {key!r} has no valid "
                                    f"{field!r}; {again(path)}")
            if isinstance(item[field], str):
                item[field] = whole_text(item[field])
    return listed
