"""Step 1: download COCO's images and captions, all of them or a few thousand images.

    python download_coco.py                      # COCO 2014; 42 GB of free space
    python download_coco.py --num-images 6000    # 6,000 images of each split; 3 GB

Downloads archives, checked by length and MD5, or with --num-images single images. What
is already there is not downloaded again, and a broken transfer continues where it
stopped. With the same --seed, the N chosen images are among those of any larger N.

Writes, in COCO's own layout:
    DATA/annotations/captions_SPLIT.json     captions (of the chosen images only)
    DATA/annotations/instances_SPLIT.json    boxes and names of objects, likewise
    DATA/SPLIT/FILE_NAME                     the images
    DATA/archives/*.zip                      archives; those of images may be deleted
    DATA/failed_images_SPLIT.txt             images that failed, and why
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import concurrent.futures
import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import stat
import time
import urllib.parse
import zipfile
import zlib

import requests
from tqdm import tqdm

from captioning.coco import (annotations_path, image_path, images_of, is_inside,
                             load_json, read_captions, read_json)
from captioning.pictures import is_whole
from runtime import atomic, cli

MIRROR = "http://images.cocodataset.org"  # its https certificate is for another name
ARCHIVES = {  # address under the mirror: (bytes, MD5)
    "annotations/annotations_trainval2014.zip":
        (252872794, "0a379cfc70b0e71301e0f377548639bd"),
    "annotations/annotations_trainval2017.zip":
        (252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
    "zips/train2014.zip": (13510573713, "0da8c0bd3d6becc4dcb32757491aca88"),
    "zips/train2017.zip": (19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "zips/val2014.zip": (6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "zips/val2017.zip": (815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
}
IMAGE_SIZE = 165e3      # bytes of one image, on average
TIMEOUT = 30            # seconds without a byte
PAUSES = (1, 2, 4, 8)   # seconds before each new attempt
BLOCK = 1 << 18         # bytes


class Broken(Exception):
    """A transfer failed, perhaps only for now."""


def fetch(url, path, md5=None, size=None, progress=False):
    """Download `url` to `path`; return whether that was necessary.

    If `path` exists, it is complete and correct. The beginning of a broken transfer
    stays in `path`.partial (unlike with atomic.writing: 13 GB over a slow line are
    worth it) and only the rest is requested. A file whose MD5 is not `md5` becomes
    `path`.bad.

    Raises UserError naming the URL: at once for an answer like 404, and for transient
    errors (lost connection, short body, HTTP 5xx) after PAUSES without another byte.
    Raises OSError if the disk is full or the folder cannot be written.
    """
    if os.path.exists(path):
        return False
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial, furthest, pauses = path + atomic.PARTIAL, 0, iter(PAUSES)
    found = None
    while not found:
        try:
            found = receive(url, partial, size, progress)
        except (Broken, requests.RequestException) as error:
            arrived = os.path.getsize(partial) if os.path.exists(partial) else 0
            if arrived > furthest:
                furthest, pauses = arrived, iter(PAUSES)
            pause = next(pauses, None)
            why, offline = reason(error)
            if (pause is None or isinstance(error, ValueError)  # not a URL
                    or offline and progress and not arrived):
                raise cli.UserError(f"{url}: {why}; what has arrived is kept, run the "
                                    "same command again to continue")
            if progress:
                cli.warn(f"{url}: {why}; trying again in {pause} s")
            time.sleep(pause)
    if md5 not in (None, found):
        os.replace(partial, path + ".bad")
        raise cli.UserError(f"{url}: its MD5 is {found}, not {md5}; kept as {path}.bad "
                            "and not used; the same command downloads it anew")
    os.replace(partial, path)
    return True


def reason(error):
    """Why a transfer failed, in a few words, and whether the host name is unknown."""
    chain = [error]  # unwrap the layers of urllib3
    while not isinstance(chain[-1], ValueError) and (chain[-1].__cause__
                                                     or chain[-1].__context__):
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    error = next((one for one in reversed(chain) if isinstance(
        one, (OSError, ValueError, http.client.HTTPException))), error)
    if isinstance(error, socket.gaierror):
        return f"no such server, or no connection to the net ({error.strerror})", True
    return getattr(error, "strerror", None) or cli.one_line(error), False


def receive(url, partial, size, progress):
    """Request once what file `partial` lacks of `url`; return the MD5 of the whole.

    Raises Broken if it is still incomplete, UserError if trying again is no use.
    """
    md5, have = hashlib.md5(), 0
    if os.path.exists(partial):
        with open(partial, "rb") as file:
            for block in iter(lambda: file.read(BLOCK), b""):
                md5.update(block)
                have += len(block)
    if have and have == size:  # stopped just before it was renamed
        return md5.hexdigest()
    headers = {"Accept-Encoding": "identity"}  # Content-Length counts what we store
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        status, length = answer.status_code, answer.headers.get("Content-Length")
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if have and (status == 416 or status == 206 and (
                not start or int(start.group(1)) != have)):
            os.remove(partial)
            raise Broken("the server cannot continue where we stopped; starting over")
        if status >= 500 or status in (408, 429):
            raise Broken(f"HTTP status {status} {answer.reason}")
        if status not in (200, 206):
            raise cli.UserError(f"{url}: HTTP status {status} {answer.reason}")
        if status == 200:  # the whole file, whether we asked for its rest or not
            md5, have = hashlib.md5(), 0
        total = size if length is None else have + int(length)
        if size not in (None, total):
            raise cli.UserError(f"{url}: has {total} bytes, not {size}; see --mirror")
        # The beginning of a broken transfer is kept; its length is checked below.
        answer.raw.enforce_content_length = False
        with open(partial, "ab" if have else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True,
                desc=os.path.basename(url), disable=not progress) as bar:
            for block in answer.iter_content(BLOCK):
                file.write(block)
                md5.update(block)
                have += len(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())  # before it is renamed
    if have == 0 or total not in (None, have):
        raise Broken(f"the connection ended after {have} of {total} bytes")
    return md5.hexdigest()


def fetch_archive(data, name, mirror):
    """Download the archive `name` of ARCHIVES unless it is there; return its path."""
    path = os.path.join(data, "archives", os.path.basename(name))
    size, md5 = ARCHIVES[name]
    if not fetch(f"{mirror}/{name}", path, md5, size, progress=True):
        print(f"{path}: already there")
    return path


@contextlib.contextmanager
def opened(archive):
    """Open a zip file; UserError if it is broken or lacks a file."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise cli.UserError(f"{archive}: {error}; remove it and run the same command "
                            "again")


def unpack(archive, folder, names):
    """Unpack those files `names` of a zip that are missing; return how many.

    A file gets its name when it is complete and its CRC correct. Raises UserError, and
    unpacks nothing, if any name in the archive leads out of `folder`, is a link or
    occurs twice.
    """
    with opened(archive) as zipped:
        if len(set(zipped.namelist())) < len(zipped.namelist()):
            raise cli.UserError(f"{archive}: holds two files of one name; nothing was "
                                "unpacked")
        for member in zipped.infolist():
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            if is_link or not is_inside(member.filename):
                raise cli.UserError(f"{archive}: {member.filename!r} leads out of the "
                                    "folder; nothing was unpacked")
        missing = []
        for member in map(zipped.getinfo, names):
            path = os.path.join(folder, member.filename)
            if not (os.path.isfile(path) and os.path.getsize(path) == member.file_size):
                missing.append(member)
        with tqdm(total=sum(member.file_size for member in missing), unit="B",
                  unit_scale=True, desc="unpack", disable=not missing) as bar:
            for member in missing:
                path = os.path.join(folder, member.filename)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with zipped.open(member) as source, atomic.writing(path) as target:
                    shutil.copyfileobj(source, target, BLOCK)
                bar.update(member.file_size)
    return len(missing)


def get_whole(data, split, annotations, mirror):
    """Unpack the annotations of a split and download all of its images."""
    unpack(annotations, data, [annotations_path("", kind, split)
                               for kind in ("captions", "instances")])
    images = read_captions(data, split)
    # Judged by the images themselves, since their archives may have been deleted
    missing = [image.file_name for image in images
               if not is_whole(image_path(data, split, image.file_name))]
    there = len(images) - len(missing)
    print(f"{split}: {there} of {len(images)} images already there")
    if missing:
        archive = fetch_archive(data, f"zips/{split}.zip", mirror)
        unpack(archive, data, [f"{split}/{file_name}" for file_name in missing])


def get_some(data, split, annotations, args):
    """Download args.num_images of a split and reduce its annotations to these.

    args: the command's.
    """
    everything = load_member(annotations, annotations_path("", "captions", split))
    images = images_of(everything, annotations, split)
    # The first of one shuffled order: a larger number later keeps these images
    random.Random(args.seed).shuffle(images)
    chosen = images[:args.num_images]
    failed = fetch_images(data, split, chosen, args.mirror, args.workers, args.max_bad)
    ids = {image.id for image in chosen if image.file_name not in failed}
    for kind in ("captions", "instances"):
        cut(annotations, data, annotations_path("", kind, split), ids)


def fetch_images(data, split, images, mirror, workers, max_bad):
    """Download images in parallel; return {file name: why} for those that failed.

    The failed ones are also listed in data/failed_images_<split>.txt. Raises UserError
    as soon as more than the share `max_bad` of all have failed: then something else is
    wrong.
    """
    def fetch_image(file_name):
        path = image_path(data, split, file_name)
        if os.path.exists(path) and not is_whole(path):
            os.replace(path, path + ".bad")
        new = fetch(f"{mirror}/{split}/{urllib.parse.quote(file_name)}", path)
        check_picture(path)
        return new

    failed, new = {}, 0
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        names = {pool.submit(fetch_image, image.file_name): image.file_name
                 for image in images}
        try:
            for done in tqdm(concurrent.futures.as_completed(names), total=len(names),
                             unit=" images", desc=split):
                try:
                    new += done.result()
                except cli.UserError as error:
                    failed[names[done]] = cli.one_line(error)
                    if len(failed) > max_bad * len(images):
                        break
        finally:  # on Ctrl-C or a full disk, do not download the rest first
            for future in names:
                future.cancel()
    cli.left_out(os.path.join(data, f"failed_images_{split}.txt"),
                 [f"{name}\t{why}" for name, why in sorted(failed.items())],
                 len(images), max_bad, f"images of {split}",
                 "run the same command again")
    print(f"{split}: {new} images downloaded, "
          f"{len(images) - new - len(failed)} already there, {len(failed)} failed")
    return failed


def check_picture(path):
    """Rename a file that is not a picture to `path`.bad and raise UserError."""
    if not is_whole(path):
        os.replace(path, path + ".bad")
        raise cli.UserError(f"{path}: not a picture that Pillow can read")


def load_member(archive, name, keep=None):
    """The JSON in file `name` of a zip; `keep` as in load_json."""
    with opened(archive) as zipped, zipped.open(name) as member:
        return load_json(io.TextIOWrapper(member, "utf-8"), f"{archive}: {name}", keep)


def cut(archive, data, name, ids):
    """Write annotations file `name` of the zip into data, reduced to the images `ids`.

    All fields stay as they are. A file that already holds these images is left alone.
    """
    def of_ids(item):
        other = "image_id" in item and item["image_id"] not in ids
        return None if other else item

    path = os.path.join(data, name)
    with contextlib.suppress(cli.UserError, KeyError, TypeError):  # then write it anew
        if {image["id"] for image in read_json(path, of_ids)["images"]} == ids:
            print(f"{path}: already there")
            return
    content = load_member(archive, name, of_ids)
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [item for item in content["annotations"] if item]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic.writing(path) as file:
        file.write(json.dumps(content).encode())


def check_space(data, annotations, chosen, num_images):
    """Raise UserError unless the disk of `data` has room for everything still missing.

    annotations: that archive's name in ARCHIVES. chosen: the names of the splits.
    """
    def to_download(name):
        path = os.path.join(data, "archives", os.path.basename(name))
        return ARCHIVES[name][0] - sum(os.path.getsize(file)
                                       for file in (path, path + atomic.PARTIAL)
                                       if os.path.exists(file))

    need = to_download(annotations)
    if not all(os.path.exists(annotations_path(data, kind, split)) for split in chosen
               for kind in ("captions", "instances")):
        need += 3 * ARCHIVES[annotations][0]  # zipped text
    for split in chosen:
        size, folder = ARCHIVES[f"zips/{split}.zip"][0], os.path.join(data, split)
        there = len(os.listdir(folder)) * IMAGE_SIZE if os.path.isdir(folder) else 0
        if num_images:
            need += max(0, min(num_images * IMAGE_SIZE, size) - there)
        elif there < 0.95 * size:  # IMAGE_SIZE is no more exact than that
            need += to_download(f"zips/{split}.zip") + size - there
    free = shutil.disk_usage(data).free
    if need > free:
        raise cli.UserError(f"{data}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                            "are free; make room, or choose another --data or "
                            "--num-images")


def main():
    args = arguments()
    cli.print_heading(1, "download COCO")
    with cli.locked(args.data):
        download(args)
    cli.next_step("extract_features.py", "--data", args.data)


def download(args):
    """Download and prepare the chosen splits; args: the command's."""
    chosen = sorted({f"{split}{args.year}" for split in args.splits})
    name = f"annotations/annotations_trainval{args.year}.zip"
    check_space(args.data, name, chosen, args.num_images)
    annotations = fetch_archive(args.data, name, args.mirror)
    for split in chosen:
        if args.num_images:
            get_some(args.data, split, annotations, args)
        else:
            get_whole(args.data, split, annotations, args.mirror)
        images = read_captions(args.data, split)
        print(f"{split}: {len(images)} images, "
              f"{sum(len(image.captions) for image in images)} captions")


def arguments():
    parser = cli.parser(__doc__)
    parser.always("--data", default="data", help="folder of the data set")
    parser.always("--year", type=int, choices=(2014, 2017), default=2014,
                  help="release; the paper's is 2014")
    parser.always("--splits", nargs="+", choices=("train", "val"),
                  default=["train", "val"], help="which parts to download")
    parser.always("--num-images", type=cli.positive, otherwise="all",
                  help="images of each split")
    parser.add_argument("--seed", needs="--num-images", type=int, default=0,
                        help="of the shuffle that chooses the images")
    parser.add_argument("--workers", needs="--num-images", type=cli.positive,
                        default=16, help="single images downloaded at the same time")
    parser.add_argument("--max-bad", needs="--num-images", type=cli.share, default=.05,
                        help="share of single images that may fail")
    parser.always("--mirror", default=MIRROR,
                  help="server, or folder on one, laid out like COCO's")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
