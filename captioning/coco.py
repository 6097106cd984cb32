"""A data set in COCO's layout: its images, captions and boxes.

    <data>/annotations/captions_<split>.json
    <data>/annotations/instances_<split>.json     boxes, where there are any
    <data>/<split>/<file name>

Karpathy's split files (dataset_coco.json, dataset_flickr8k.json) are read here, too.
"""
import json
import math
import os
import re
import typing

from captioning.pictures import upright_boxes
from runtime import cli

NO_PICTURES = ("annotations", "archives", "features", "tokens")  # folders of a data set
AGAIN = "correct it, or make the data set again with download_coco.py or `make demo`"


class Image(typing.NamedTuple):
    """One image of a data set, with the captions people wrote for it."""
    id: typing.Union[int, str]
    file_name: str                # inside the split's folder
    captions: typing.List[str]    # as written: neither tokenized nor lower-cased
    folder: str = ""              # of the image, below the data set

    @property
    def path(self):
        """Its path below the data set, e.g. train2014/COCO_1.jpg."""
        return f"{self.folder}/{self.file_name}"


def is_inside(name):
    """Whether a relative file name stays inside the folder it is joined to."""
    return bool(name) and not re.match(r"[/\\]|\w:|.*\0", name) and (
        ".." not in re.split(r"[/\\]", name))


def splits(data):
    """The sorted names of the splits in folder `data`: those that have captions.

    Raises UserError where there is none.
    """
    folder = os.path.join(data, "annotations")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    names = [re.fullmatch(r"captions_(.+)\.json", name) for name in found
             if not name.endswith("_results.json")]  # what a run has generated
    if not any(names):
        raise cli.UserError(f"{folder}: no captions_SPLIT.json there; make a data set "
                            "with download_coco.py or `make demo`, or see --data")
    return sorted(name.group(1) for name in names if name)


def annotations_path(data, kind, split):
    """Where the captions or the instances (kind) of a split are."""
    return os.path.join(data, "annotations", f"{kind}_{split}.json")


def image_path(data, split, file_name):
    """Where the image called `file_name` in the annotations of `split` is."""
    return os.path.join(data, split, file_name)


def split_of(image):
    """The split whose folder an image is in, by its path below the data set.

    In the folder there may be others: an image's file_name may have folders, too.
    """
    return image.replace(os.sep, "/").split("/")[0]


def read_captions(data, split, strays=None):
    """The images of a split as a list of Image, in the file's order.

    Captions keep their order too; an image without any has an empty list. An image is
    a file: captions of entries with one file name are joined, under the first's id.
    strays: a list that captions of images that are not listed are added to, as lines;
    None: they are counted in a warning. Raises UserError, naming the file, if it is
    missing, is not JSON, or is not what COCO calls captions.
    """
    path = annotations_path(data, "captions", split)
    return images_of(read_json(path), path, split, strays)


def images_of(content, path, split, strays=None):
    """The list of Image in the content of a captions file; `path` is for messages."""
    captions, images, by_name = {}, [], {}
    for image in items(content, path, "images", id=(int, str), file_name=(str,)):
        key = str(image["id"])  # 5 and "5" are one id
        if key in captions:
            raise cli.UserError(f"{path}: two images with id {image['id']!r}; {AGAIN}")
        if not is_inside(image["file_name"]):
            raise cli.UserError(f"{path}: file name {image['file_name']!r} leads out "
                                f"of the split's folder; {AGAIN}")
        name = whole_text(image["file_name"])
        if name not in by_name:
            by_name[name] = Image(image["id"], name, [], split)
            images.append(by_name[name])
        captions[key] = by_name[name].captions
    lost = [] if strays is None else strays
    for item in items(content, path, "annotations", image_id=(int, str),
                      caption=(str,)):
        caption = whole_text(item["caption"])
        if str(item["image_id"]) in captions:
            captions[str(item["image_id"])].append(caption)
        else:
            lost.append(f"{item['image_id']}\t{cli.one_line(caption)}")
    if strays is None and lost:
        cli.warn(f"{path}: skipped {len(lost)} captions whose image_id no image has")
    if len(images) < len(captions):
        cli.warn(f"{path}: {len(captions) - len(images)} images are listed twice; "
                 "their captions were joined")
    return images


def whole_text(text):
    """Text that can be written: halves of letters (lone surrogates) become U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def read_karpathy(path, data):
    """Karpathy's split file: {'train', 'val', 'test', maybe 'restval': list of Image}.

    The file names an image's folder only for COCO (filepath); images of Flickr are
    looked for in the folders of `data`. Raises UserError, naming the file, if it is not
    such a file, if an image is in two folders, or if not one of them is there.
    """
    content = read_json(path)
    listed = items(content, path, "images", filename=(str,), split=(str,),
                   sentences=(list,))
    folders = {}
    for entry in sorted(os.scandir(data), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name not in NO_PICTURES:
            for name in os.listdir(entry.path):
                folders.setdefault(name, []).append(entry.name)
    groups, taken = {}, {}
    for number, image in enumerate(listed):
        captions = [sentence.get("raw") if isinstance(sentence, dict) else None
                    for sentence in image["sentences"]]
        there = folders.get(image["filename"], [])
        folder = image.get("filepath", there[0] if there else "images")
        identity = image.get("cocoid", image.get("imgid", image.get("sentid", number)))
        for fits, field in (
                (all(isinstance(caption, str) for caption in captions),
                 "'raw' text in its 'sentences'"),
                (type(identity) in (int, str), "'cocoid' or 'imgid'"),
                (isinstance(folder, str) and is_inside(folder), "'filepath'"),
                (is_inside(image["filename"]), "'filename'")):
            if not fits:
                raise cli.UserError(f"{path}: item {number} of 'images' has no valid "
                                    f"{field}; correct it")
        if len(there) > 1 and "filepath" not in image:
            raise cli.UserError(
                f"{path}: {image['filename']} is in {' and in '.join(there)} below "
                f"{data}, and the file does not say which; move the others away")
        group = groups.setdefault(image["split"], [])
        found = Image(identity, image["filename"], [], folder)
        if found.path in taken:  # an image is one file: its captions are joined
            split, found = taken[found.path]
            if split != image["split"]:
                raise cli.UserError(f"{path}: {found.path} is in {split} and in "
                                    f"{image['split']}; leave one of them out")
        else:
            group.append(found)
            taken[found.path] = image["split"], found
        found.captions.extend(map(whole_text, captions))
    for name, group in groups.items():
        if len({str(image.id) for image in group}) < len(group):
            raise cli.UserError(f"{path}: two images of {name} have one id; correct it")
    if not any(image["filename"] in folders or "filepath" in image for image in listed):
        raise cli.UserError(f"{data}: has none of the {len(listed)} images of {path}; "
                            "put them into a folder there, or see --data")
    return groups


def read_boxes(data, split):
    """The objects of a split: {image id: ((width, height), [(name, (x, y, w, h))])}.

    name: of the category. In pixels of the original image, from its upper left corner.
    An image without objects has no entry. Returns None where there is no
    instances_<split>.json. Raises UserError, naming the file, if it is not what COCO
    calls instances.
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
                                f"{box} or category {item['category_id']!r}; {AGAIN}")
        _, found = boxes.setdefault(item["image_id"], (sizes[item["image_id"]], []))
        found.append((names[item["category_id"]], box))
    return boxes


def has_boxes(data, images):
    """Whether there are annotated boxes for all these images, paths below `data`."""
    return all(os.path.exists(annotations_path(data, "instances", split))
               for split in set(map(split_of, images)))


def read_objects(data, images, ids):
    """Of each image its size and objects: a list of ((width, height), [(name, box)]).

    images: their paths below `data`; ids: their ids, str. The boxes are those of the
    pictures as they stand upright. Raises cli.UserError where there are none for them.
    """
    of_split = {}
    for split in sorted(set(map(split_of, images))):
        found = read_boxes(data, split)
        if found is None:
            raise cli.UserError(
                f"{annotations_path(data, 'instances', split)}: missing, so the places "
                "of the objects are unknown; get it with download_coco.py")
        of_split[split] = {str(i): objects for i, objects in found.items()}
    return [upright_boxes(os.path.join(data, image),
                          *of_split[split_of(image)].get(i, ((1, 1), [])))
            for image, i in zip(images, ids)]


def read_json(path, keep=None):
    """The content of a JSON file, or UserError; `keep` as in load_json."""
    if not os.path.exists(path):
        raise cli.UserError(f"{path}: no such file; make the data set with "
                            "download_coco.py or `make demo`, or see --data")
    with open(path, encoding="utf-8-sig") as file:
        return load_json(file, path, keep)


def load_json(file, path, keep=None):
    """The content of an open JSON file; UserError naming `path` if it is not JSON.

    `keep` replaces every object as soon as it is parsed, so that what is not needed of
    COCO's 330 MB of instances never piles up in memory.
    """
    try:
        return json.load(file, object_hook=keep)
    except (ValueError, RecursionError) as error:
        raise cli.UserError(f"{path}: not JSON, or cut off ({error}); {AGAIN}")


def items(content, path, key, **types):
    """content[key], a list of objects with fields of the given types, or UserError."""
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise cli.UserError(f"{path}: has no list {key!r}; {AGAIN}")
    for number, item in enumerate(listed):
        for field, allowed in types.items():
            # type(), not isinstance(): true and false are no numbers here
            if not isinstance(item, dict) or type(item.get(field)) not in allowed:
                raise cli.UserError(f"{path}: item {number} of {key!r} has no valid "
                                    f"{field!r}; {AGAIN}")
    return listed
