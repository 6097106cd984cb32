"""Captions of all images in one file, for --captions; the images are in folders.

Karpathy's split files (dataset_coco.json, dataset_flickr8k.json) say which images are
for training, validation and testing. A table has one row per caption:

    image,caption                    the first line names the columns, in any order,
    1000.jpg,"A dog, and a man."     with or without others; commas, semicolons, | or
    1000.jpg#0<tab>A dog .           tabs. Without such a line: Flickr8k.token.txt

All images of a table are for training, unless it has a column `split`.
"""
import csv
import io
import os
import posixpath
import re

from captioning.coco import FAQ, Image, is_inside, items, read_json, whole_text
from runtime import atomic, cli

NO_PICTURES = ("annotations", "archives", "features", "tokens")  # folders of a data set
# What a column of a table may be called
IMAGE = ("image", "image_name", "image_path", "file_name", "filename", "file", "path")
CAPTION = ("caption", "comment", "text", "sentence", "description")


def read_caption_file(path, data, strays=None):
    """Read a file of captions: {'train', perhaps 'val', 'test', 'restval': list of
    Image}. The image files are searched for in `data` and the folders below it.

    strays: a list that table rows without an image or a caption are appended to; None:
    they are counted in a warning. Raises UserError, naming the file, if it is not such
    a file, if an image is in two folders, or if no image exists.
    """
    if not os.path.exists(path):
        raise cli.UserError(f"{path}: no such file; see --captions")
    found = _Found(path, data)
    with atomic.reading(path, "rb") as file:
        is_json = file.read(99).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    if is_json or path.endswith(".json"):
        _read_karpathy(path, found)
    else:
        _read_table(path, found, strays)
    return found.groups()


class _Found:
    """Collects the images of a file of captions, found in the folders of `data`."""

    def __init__(self, path, data):
        self.path, self.data = path, data
        self._groups, self._taken = {}, {}
        self._lost = set()  # images that are in no folder
        self.folders, self._closed = {}, []
        for folder in [".", *sorted(os.listdir(data))]:
            try:
                names = os.listdir(os.path.join(data, folder))
            except (NotADirectoryError, FileNotFoundError):
                continue
            except OSError:  # a file system's lost+found
                self._closed.append(folder)
                continue
            if folder not in NO_PICTURES:
                for name in names:
                    self.folders.setdefault(name, []).append(folder)

    def add(self, split, identity, name, captions, folder=None):
        """Add captions of image `name`; folder: of the image, if the file gives it."""
        there = self.folders.get(name, [])
        if len(there) > 1 and folder is None:
            raise cli.UserError(f"{self.path}: {name} is in {' and in '.join(there)} "
                                f"below {self.data}, and the file does not say which; "
                                "move the others away")
        if folder is None and not there:
            self._lost.add(name)
        if folder is None:
            folder = there[0] if there else "images"
        image = Image(identity, name, [], folder)
        if image.path in self._taken:  # an image is one file: its captions are joined
            before, image = self._taken[image.path]
            if before != split:
                raise cli.UserError(f"{self.path}: {image.path} is in {before} and in "
                                    f"{split}; leave one of them out")
        else:
            self._groups.setdefault(split, []).append(image)
            self._taken[image.path] = split, image
        image.captions.extend(captions)
        return image

    def groups(self):
        """Check everything that was added, and return {split: list of Image}."""
        for name, group in self._groups.items():
            if len({str(image.id) for image in group}) < len(group):
                raise cli.UserError(f"{self.path}: two images of {name} have one id; "
                                    "correct it")
        if self._lost and self._closed:
            cli.warn(f"{self.data}: {len(self._lost)} images are not there, and "
                     f"{', '.join(self._closed)} cannot be read")
        if len(self._lost) == len(self._taken):
            raise cli.UserError(f"{self.data}: has none of the {len(self._lost)} "
                                f"images of {self.path}; put them into a folder there, "
                                "or see --data")
        return self._groups


def _read_karpathy(path, found):
    """Add the images of Karpathy's file, which gives their folder only for COCO."""
    for number, image in enumerate(items(read_json(path), path, "images",
                                         filename=(str,), split=(str,),
                                         sentences=(list,))):
        captions = [sentence.get("raw") if isinstance(sentence, dict) else None
                    for sentence in image["sentences"]]
        folder = image.get("filepath")
        identity = image.get("cocoid", image.get("imgid", image.get("sentid", number)))
        for fits, field in (
                (all(isinstance(caption, str) for caption in captions),
                 "'raw' text in its 'sentences'"),
                (type(identity) in (int, str), "'cocoid' or 'imgid'"),
                (folder is None or isinstance(folder, str) and is_inside(folder),
                 "'filepath'"),
                (is_inside(image["filename"]), "'filename'")):
            if not fits:
                raise cli.UserError(f"{path}: item {number} of 'images' has no valid "
                                    f"{field}; correct it")
        if isinstance(identity, str):
            identity = whole_text(identity)
        found.add(image["split"], identity, posixpath.normpath(image["filename"]),
                  map(whole_text, captions), folder and whole_text(folder))


def _read_table(path, found, strays):
    """Add the images of a table; strays: see `read_caption_file`."""
    lost, spelled = [] if strays is None else strays, {}
    for number, name, caption, split in _rows(path, found.folders):
        name = posixpath.normpath(name.strip().replace("\\", "/"))
        if name == "." or not caption.strip():
            lost.append(f"line {number}\t{cli.one_line(name + ' ' + caption)}")
            continue
        folder, base = posixpath.split(name)
        if not folder or not is_inside(name) or not os.path.exists(
                os.path.join(found.data, name)):
            folder = None
        image = found.add(split or "train", name, base, [caption], folder)
        if spelled.setdefault(image.path, name) != name:
            raise cli.UserError(f"{path}: line {number}: {name} and "
                                f"{spelled[image.path]} are one file, {image.path}, "
                                f"below {found.data}; name the images by their paths "
                                "there")
    if strays is None and lost:
        cli.warn(f"{path}: skipped {len(lost)} rows without an image or a caption, the "
                 f"first of them {lost[0]!r}")


def _rows(path, names):
    """Yield (line, image, caption, split or '') of a table; names: of all images."""
    try:
        with atomic.reading(path, encoding="utf-8-sig", newline="") as file:
            text = whole_text(file.read())
    except atomic.Damaged as error:
        raise cli.UserError(f"{path}: not UTF-8 ({error}); save it as UTF-8")
    first = next(filter(str.strip, text.splitlines()), "")
    if re.match(r"[^\t]+#\d+\t", first):
        for number, line in enumerate(text.splitlines(), 1):
            name, _, caption = line.partition("\t")
            if line.strip():
                yield number, name.rpartition("#")[0], caption, ""
        return
    delimiter, columns = _columns(path, first)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter,
                      skipinitialspace=True,  # Flickr30k's results.csv has no quotes
                      quoting=csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL)
    whole = filter(any, rows)
    try:
        next(whole)  # the names of the columns
        for row in whole:
            cells = [row[i] if i is not None and i < len(row) else "" for i in columns]
            for line in cells[1].splitlines()[1:]:
                if any(cell.strip() in names for cell in line.split(delimiter)):
                    raise csv.Error("a quotation mark before it is never closed")
            yield (rows.line_num, *cells)
    except csv.Error as error:
        raise cli.UserError(f"{path}: line {rows.line_num}: {error}; correct it")


def _columns(path, first):
    """The delimiter of a table, and its image, caption and split columns' indices.

    first: its first line.
    """
    for delimiter in ",;\t|":
        header = [cell.strip().lower() for cell in
                  next(csv.reader([first], delimiter=delimiter), [])]
        image, caption, split = (
            next((header.index(name) for name in known if name in header), None)
            for known in (IMAGE, CAPTION, ("split",)))
        if image is not None and caption is not None:
            return delimiter, (image, caption, split)
    raise cli.UserError(f"{path}: neither Karpathy's .json nor a table whose first "
                        f"line names the columns, as image,caption; see {FAQ}")
