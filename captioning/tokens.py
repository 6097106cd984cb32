"""Captions as word indices: the vocabulary, the padded arrays, and the references.

    <tokens>/vocabulary.tsv          index, word, count, as plain text
    <tokens>/<name>.npz              see Tokens for the contents
    <tokens>/references_<name>.json  the captions as written, for the scores
"""
import hashlib
import json
import os
import re
import typing
import unicodedata

import numpy as np

from runtime import atomic, cli

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "UNK")
LARGEST = 100000  # above any size of a model: a larger one means a damaged file
# A word of any script: letters and digits, with the marks that some scripts use for
# vowels and Hebrew's geresh (U+05F3); inside it joiners (U+200C, U+200D), apostrophes
# (man's is one word), Catalan's middle dot (U+00B7) and Hebrew's gershayim.
MARKS = "\u05f3" + "".join(chr(i) for i in range(0x20000)
                           if unicodedata.category(chr(i)) in ("Mn", "Mc"))
LETTER = rf"(?:[^\W_]|[{MARKS}])"
WORD = re.compile(rf"[^\W_]{LETTER}*(?:['\u200c\u200d\u00b7\u05f4]{LETTER}+)*")
ASCII_WORD = re.compile("[^\\W_]+(?:'[^\\W_]+)*")  # the same, five times as fast


class Tokens(typing.NamedTuple):
    """The captions of one split, as arrays."""
    words: np.ndarray      # int32 (captions, C + 1): start, words, end, padding
    lengths: np.ndarray    # int32 (captions,): words to predict, the end token included
    image_of: np.ndarray   # int32 (captions,): index into images and image_ids
    images: np.ndarray     # str (images,): paths below the data set
    image_ids: np.ndarray  # str (images,)
    vocabulary: str        # its digest
    is_number: np.ndarray  # bool (images,): whether the id is one in the annotations


class Vocabulary:
    """Words and indices: `index_word[i]` and `word_index[word]` are inverses."""

    def __init__(self, words, counts):
        """words: the kept words, most frequent first. counts: how often each occurs,
        after the counts of the four special tokens (pad, start, end, UNK).
        """
        self.index_word = list(SPECIAL) + list(words)
        self.word_index = {word: i for i, word in enumerate(self.index_word)}
        self.counts = list(counts)

    def __len__(self):
        return len(self.index_word)

    def encode(self, words):
        """A list of words -> their indices; UNK for those that were not kept."""
        return [self.word_index.get(word, UNK) for word in words]

    def decode(self, indices):
        """Indices -> a caption: up to the end token, without start and padding."""
        words = []
        for index in indices:
            if index == END:
                break
            if index not in (PAD, START):
                words.append(self.index_word[index])
        return " ".join(words)

    def words(self, indices):
        """A caption's indices -> its words, a list of str, without the end token."""
        return [self.index_word[i] for i in indices if i != END]

    def digest(self):
        """SHA-256 of the words in order, to compare vocabularies."""
        return hashlib.sha256("\n".join(self.index_word).encode("utf-8")).hexdigest()


def split_words(caption):
    """A caption's words: lower case, without punctuation; see `normalized`."""
    try:
        caption.encode("ascii")
    except UnicodeEncodeError:
        return WORD.findall(normalized(caption))
    return ASCII_WORD.findall(caption.lower())


def normalized(caption):
    """Lower case, Unicode NFC, with straight apostrophes and without soft hyphens."""
    lower = unicodedata.normalize("NFC", caption.lower())
    return lower.replace("\u2019", "'").replace("\u00ad", "")


def vocabulary_path(folder):
    """The path of the vocabulary of a folder of tokens, or of a run."""
    return os.path.join(folder, "vocabulary.tsv")


def write_vocabulary(folder, vocabulary):
    """Write a Vocabulary into a folder, for `read_vocabulary`."""
    with atomic.writing(vocabulary_path(folder), "w", encoding="utf-8") as file:
        file.write("index\tword\tcount\n")
        file.writelines(f"{i}\t{word}\t{count}\n" for i, (word, count) in
                        enumerate(zip(vocabulary.index_word, vocabulary.counts)))


def read_vocabulary(folder):
    """The Vocabulary of a folder. Raises cli.UserError if it is missing or damaged."""
    return read_words(vocabulary_path(folder))


def read_words(path):
    """The Vocabulary in a file. Raises cli.UserError if it is missing or damaged."""
    try:
        with atomic.reading(path, encoding="utf-8-sig") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        counts = [int(row[2]) for row in rows[1:]]
        words = [row[1] for row in rows[1:]]
        if (rows[0] != ["index", "word", "count"] or tuple(words[:4]) != SPECIAL
                or [int(row[0]) for row in rows[1:]] != list(range(len(words)))
                or len(set(words)) != len(words) or "" in words):
            raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no vocabulary there; run tokenize_captions.py")
    except (ValueError, IndexError):
        raise cli.UserError(f"{path}: not a vocabulary of this project, or damaged; "
                            "run tokenize_captions.py again")
    return Vocabulary(words[4:], counts)


def tokens_path(folder, name):
    """The path of a split's Tokens."""
    return os.path.join(folder, name + ".npz")


def write_tokens(folder, name, tokens):
    """Write the Tokens of a split, for `read_tokens`."""
    atomic.write_arrays(tokens_path(folder, name), tokens._asdict(), compress=True)


def read_tokens(folder, name):
    """The Tokens of a split. Raises cli.UserError if they are missing or damaged."""
    path = tokens_path(folder, name)
    try:
        with atomic.load_arrays(path) as arrays:
            tokens = Tokens(**{name: arrays[name] for name in Tokens._fields
                               if name in arrays.files or name != "is_number"},
                            **({} if "is_number" in arrays.files else {
                                "is_number": looks_like_numbers(arrays["image_ids"])}))
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no tokens there; run tokenize_captions.py")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged, or not of this project; run "
                            "tokenize_captions.py again")
    captions, columns = tokens.words.shape if tokens.words.ndim == 2 else (0, 0)
    fits = (captions > 0 and tokens.words.dtype == tokens.lengths.dtype == np.int32
            and tokens.image_of.dtype == np.int32
            and tokens.lengths.shape == tokens.image_of.shape == (captions,)
            and tokens.images.shape == tokens.image_ids.shape
            and tokens.images.ndim == 1 and tokens.images.dtype.kind == "U"
            and tokens.is_number.shape == tokens.images.shape
            and tokens.is_number.dtype == bool
            and tokens.lengths.min() >= 1 and tokens.lengths.max() < columns
            and tokens.words.min() >= 0
            and 0 <= tokens.image_of.min()
            and tokens.image_of.max() < len(tokens.images))
    if not fits:
        raise cli.UserError(f"{path}: its arrays do not fit together; run "
                            "tokenize_captions.py again")
    return tokens._replace(vocabulary=str(tokens.vocabulary))


def looks_like_numbers(ids):
    """Guess which ids of an earlier release's tokens were numbers, bool (images,)."""
    return np.array([re.fullmatch("0|[1-9][0-9]*", str(i)) is not None for i in ids],
                    bool)


def read_images(folder, name):
    """The images of a split's Tokens, a list of str; empty if there is no split."""
    try:
        with atomic.load_arrays(tokens_path(folder, name)) as arrays:
            return arrays["images"].tolist()
    except FileNotFoundError:
        return []
    except atomic.Damaged:
        raise cli.UserError(f"{tokens_path(folder, name)}: damaged, or not of this "
                            "project; run tokenize_captions.py again")


def references_path(tokens, name):
    """The path of a split's captions, as people wrote them."""
    return os.path.join(tokens, f"references_{name}.json")


def write_references(folder, name, images):
    """Write the captions of a split's Images, for `read_references`."""
    atomic.write_json(references_path(folder, name),
                      {str(image.id): image.captions for image in images
                       if image.captions})


def read_references(folder, name):
    """{image id: list of captions} of a split. Raises cli.UserError if they are missing
    or damaged.
    """
    path = references_path(folder, name)
    try:
        with atomic.reading(path, encoding="utf-8-sig") as file:
            references = json.load(file)
        if not references or not all(isinstance(group, list) and group and all(
                isinstance(caption, str) for caption in group)
                for group in references.values()):
            raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no references there; run tokenize_captions.py")
    except (ValueError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; run tokenize_captions.py again")
    return references
