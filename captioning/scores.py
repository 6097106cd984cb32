"""Scores of generated captions by the COCO caption tools, and how certain they are.

BLEU-1 to 4, METEOR, ROUGE-L and CIDEr are pycocoevalcap's, with its tokenizer, against
all references of an image, in percent. BLEU is given four times: with the brevity
penalty of the COCO tools; without it, as the paper is understood to report it; and both
again on captions that keep their punctuation, as in the reference files published by
the paper's authors (arctic-captions, ref/), where each full stop is a word.
"""
import collections
import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import typing

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioning.bootstrap import interval, paired, resample
from captioning.tokens import WORD, normalized, split_words
from runtime import cli

N_GRAMS = (1, 2, 3, 4)
PTB = "PTB"
LAST = "end"           # the line that shows that Java has read everything
PLAIN = "lower case without punctuation (no Java ran for PTB)"
JAVA_SECONDS = 600, 3  # time limit for a score by Java, plus this for each caption
SILENCE = 60           # seconds without a byte after which SPICE's download is given up
JAVA_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
ENGLISH = (" -Duser.language=en -Duser.country=US -Duser.language.format=en"
           " -Duser.country.format=US")
# Words that cannot end an English sentence: articles, prepositions, conjunctions
OPEN = set("a an the and or but while as that of in on at with by for from to into "
           "onto over under near behind beside between across against above toward "
           "towards through along around".split())
CUT = "captions cut at --max-steps, %"  # a habit missing in earlier releases' files
WORD_OR_MARK = re.compile(WORD.pattern + r"|[^\w\s]")


class Scored(typing.NamedTuple):
    """The scores of some images, in a form that can be resampled."""
    ids: typing.List[str]  # the images, sorted
    # The counts of corpus BLEU, float64 (I, 10): words, words of the closest
    # reference, n-grams for n = 1 to 4, and those of them that a reference has
    bleu: np.ndarray
    punctuated: np.ndarray  # the same for captions with punctuation
    parts: typing.Dict[str, np.ndarray]  # {score: (I,)}, percent, of single images
    # Percent, over all images together, where that is not the mean of the parts
    totals: typing.Dict[str, float]
    tokenizer: str


def tokenize(candidates, references, java=True):
    """Tokenize captions for the scorers: {id: [str]}, {id: list of str}, and the
    tokenizer's name.

    candidates: {id: str}. references: {id: list of str}, at least one each. Java runs
    the Penn Treebank tokenizer of the COCO tools; without Java, `split_words` is used.
    """
    found = None
    if java and shutil.which("java"):
        # Both in one run of Java, which matches lines by number: one line per caption
        lines = {(i, 0): [caption] for i, caption in candidates.items()}
        lines.update(((i, 1), references[i]) for i in candidates)
        found = _penn_treebank(lines)
    if found is None:
        return ({i: [plain(caption)] for i, caption in candidates.items()},
                {i: [plain(caption) for caption in references[i]] for i in candidates},
                PLAIN)
    return ({i: found[i, 0] for i in candidates}, {i: found[i, 1] for i in candidates},
            PTB)


def _penn_treebank(lines):
    """{key: list of str} tokenized by Java; None if Java fails.

    A line of our own is added at the end: if it does not come back, Java has died on
    the way, and the missing lines would be taken for empty captions.
    """
    asked = {key: [{"caption": cli.one_line(caption)} for caption in group]
             for key, group in lines.items()}
    asked[LAST] = [{"caption": LAST}]
    try:
        with english_java(), java_ends(len(asked)):
            found = PTBTokenizer().tokenize(asked)
    except (OSError, ValueError, KeyError) as error:
        cli.warn(f"Java's tokenizer failed ({cli.one_line(error)})")
        return None
    if found.get(LAST) != [LAST] or any(len(found.get(key, ())) != len(group)
                                        for key, group in lines.items()):
        cli.warn("Java's tokenizer ended too early: does `java -version` run, and is "
                 "there memory left?")
        return None
    return found


@contextlib.contextmanager
def english_java():
    """Inside, Java programs format numbers as in English, whatever the locale."""
    changed = {name: os.environ[name] + ENGLISH for name in JAVA_VARIABLES
               if os.environ.get(name)}
    changed["LC_ALL"] = "C.UTF-8"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def downloads_end():
    """Inside, a connection that is silent for SILENCE seconds ends in an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def java_ends(captions):
    """Inside, programs that are started get a time limit of JAVA_SECONDS: then they are
    killed, and whoever waits for them notices that they are gone.

    captions: how many they have to process.
    """
    started, late, usual = [], threading.Event(), subprocess.Popen
    seconds = JAVA_SECONDS[0] + JAVA_SECONDS[1] * captions

    class Watched(usual):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            if late.is_set():
                self.kill()

    def end():
        late.set()
        cli.warn(f"Java has not come to its end in {seconds / 60:.0f} minutes: it is "
                 "killed")
        for process in started:
            process.kill()
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    subprocess.Popen = Watched
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        subprocess.Popen = usual


def plain(caption):
    """A caption in lower case without punctuation: the vocabulary's words."""
    return " ".join(split_words(caption))


def with_punctuation(caption):
    """A caption in lower case, with punctuation marks as separate words."""
    return " ".join(WORD_OR_MARK.findall(normalized(caption)))


def punctuated(candidates, references):
    """Tokenize with punctuation: a list of str, and a list of lists of str.

    candidates: list of str. references: list of lists of str. The vocabulary has no
    punctuation: if at least half of the references end in a full stop (nine of ten of
    Flickr8k's do), one is added to each generated caption.
    """
    true = [[with_punctuation(caption) for caption in group] for group in references]
    made = [with_punctuation(caption) for caption in candidates]
    if np.mean([caption.endswith(".") for group in true for caption in group]) >= .5:
        made = [caption if not caption or caption.endswith(".") else caption + " ."
                for caption in made]  # none for a caption of no words
    return made, true


def score(candidates, references, spice=False, java=True):
    """Score one caption for each image against its references. Returns Scored.

    candidates: {id: str}. references: {id: list of str}. spice: also SPICE, which is
    slow and needs 8 GB and two files that it downloads itself. java: False scores
    without METEOR and the Penn Treebank tokenizer (quickly, during training).

    METEOR or SPICE is left out, with a warning, if it cannot run. Raises cli.UserError
    if an image has no references.
    """
    lost = sorted(i for i in candidates if not references.get(i))
    if lost or not candidates:
        raise cli.UserError(f"{len(lost)} of {len(candidates)} captioned images have "
                            f"no references{f' (first: {lost[0]})' if lost else ''}")
    ids = sorted(candidates)
    made, true, tokenizer = tokenize({i: candidates[i] for i in ids}, references, java)
    parts, totals = collections.OrderedDict(), collections.OrderedDict()
    if tokenizer == PTB:
        try:
            with english_java(), java_ends(len(ids)), contextlib.closing(
                    _MeteorProcess()) as meteor:
                totals["METEOR"], parts["METEOR"] = meteor.compute_score(true, made)
        except (OSError, ValueError, AssertionError) as error:  # Java has ended
            cli.warn(f"METEOR is left out: its Java failed ({cli.one_line(error)})")
    parts["ROUGE-L"] = Rouge().compute_score(true, made)[1]
    parts["CIDEr"] = Cider().compute_score(true, made)[1]
    if spice:
        parts.update(_spice(true, made))
    with_marks = bleu_counts(*punctuated([candidates[i] for i in ids],
                                         [references[i] for i in ids]))
    return Scored(ids, bleu_counts([made[i][0] for i in ids], [true[i] for i in ids]),
                  with_marks,
                  {name: 100 * np.array(values) for name, values in parts.items()},
                  {name: 100 * value for name, value in totals.items()}, tokenizer)


class _MeteorProcess(Meteor):
    """Meteor whose Java process ends on close(), not on garbage collection."""

    def close(self):
        with contextlib.suppress(OSError):  # it may have ended before
            self.meteor_p.stdin.close()
        self.meteor_p.kill()
        self.meteor_p.wait()

    def __del__(self):
        pass


def _spice(true, made):
    """{'SPICE': list of each image's F, in the order of the ids}; {} if it fails."""
    try:
        with english_java(), java_ends(len(made)), downloads_end():
            _, each = Spice().compute_score(true, made)
        return {"SPICE": [image["All"]["f"] for image in each]}
    except Exception as error:  # its download, its Java and its reader can all fail
        cli.warn(f"SPICE is left out: it could not run ({cli.one_line(error)}); see "
                 "its notes in pycocoevalcap")
        return {}


# --- BLEU -----------------------------------------------------------------------------

def bleu_counts(candidates, references):
    """The counts of corpus BLEU, float64 (I, 10); see Scored.

    candidates: list of str. references: list of lists of str. Words between spaces.
    """
    scorer = BleuScorer(n=len(N_GRAMS))
    for candidate, group in zip(candidates, references):
        scorer += (candidate, group)
    rows = []
    for counts in scorer.ctest:
        closest = min((abs(n - counts["testlen"]), n) for n in counts["reflen"])[1]
        rows.append([counts["testlen"], closest] + counts["guess"] + counts["correct"])
    return np.array(rows, np.float64)


def bleu(counts, brevity=True):
    """Corpus BLEU-1 to 4 in percent, (..., 4), from counts of all images (..., 10).

    The geometric mean of the n-gram precisions (Papineni et al. 2002), times
    exp(1 - r / c) where the captions' c words are fewer than the references' r.
    """
    words, closest = counts[..., 0], counts[..., 1]
    guessed, right = counts[..., 2:6], counts[..., 6:]
    # The tiny numbers are those of the COCO tools, against division by 0 and log 0
    logs = np.log((right + 1e-15) / (guessed + 1e-9))
    values = 100 * np.exp(np.cumsum(logs, -1) / np.array(N_GRAMS))
    if brevity:
        ratio = (words + 1e-15) / (closest + 1e-9)
        values = values * np.exp(np.minimum(0, 1 - 1 / ratio))[..., None]
    return values


# --- averages and their intervals -----------------------------------------------------

def averages(scored, weights=None):
    """Every score over all images: an ordered {name: float or float64 (R,)}, percent.

    weights: (R, I), how often each image counts; None: once each.
    """
    once = weights is None
    weights = np.ones((1, len(scored.ids))) if once else weights
    found = collections.OrderedDict()
    for suffix, counts, brevity in (
            ("", scored.bleu, True), (" without brevity penalty", scored.bleu, False),
            (" with punctuation", scored.punctuated, False),
            (" with punctuation and brevity penalty", scored.punctuated, True)):
        for n, values in zip(N_GRAMS, bleu(weights.dot(counts), brevity).T):
            found[f"BLEU-{n}{suffix}"] = values
    for name, values in scored.parts.items():
        found[name] = weights.dot(values) / weights.sum(1)
        if name in scored.totals:  # METEOR gives long captions more weight than a mean
            found[name] = np.clip(found[name] + scored.totals[name] - values.mean(),
                                  0, 100)
    return collections.OrderedDict(
        (name, float(values[0]) if once else values) for name, values in found.items())


def intervals(scored):
    """95 % bootstrap intervals over images: {name: (low, high)}, percent."""
    drawn = averages(scored, resample(len(scored.ids)))
    return collections.OrderedDict(
        (name, interval(values)) for name, values in drawn.items())


def compare(first, second):
    """Paired bootstrap of two Scored of the same images: second minus first.

    Returns {name: result of bootstrap.paired}, in points.
    """
    assert first.ids == second.ids, "the same images are needed"
    weights = resample(len(first.ids))
    point = averages(first), averages(second)
    drawn = averages(first, weights), averages(second, weights)
    return collections.OrderedDict(
        (name, paired(point[0][name], point[1][name], drawn[0][name], drawn[1][name]))
        for name in point[0] if name in point[1])


# --- what the averages do not show ----------------------------------------------------

def habits(captions, training):
    """Statistics of captions' style: an ordered {what: float}.

    captions: list of str. training: a set of str, the captions trained on, or None;
    both normalized by `plain`.
    """
    words = [caption.split() for caption in captions]
    total = sum(map(len, words))
    again = sum(len(w) - len(set(w)) for w in words)
    found = collections.OrderedDict((
        ("words a caption", total / len(captions)),
        ("distinct words", len({word for w in words for word in w})),
        ("distinct captions, %", 100 * len(set(captions)) / len(captions)),
        ("captions never seen in training, %",
         100 * np.mean([caption not in (training or ()) for caption in captions])),
        ("repeated words, %", 100 * again / max(1, total)),
        ("words that repeat the one before, %", 100 / max(1, total) * sum(
            a == b for w in words for a, b in zip(w, w[1:]))),
        ("captions that end in a, with, and ..., %",
         100 * np.mean([bool(w) and w[-1] in OPEN for w in words]))))
    if training is None:
        del found["captions never seen in training, %"]
    return found


def summarize(scored, made, references, training, cut=None):
    """The scores with their intervals and the captions' habits: a dict for JSON.

    scored: Scored. made: {id: caption}. references: {id: list of captions}. training:
    the set of captions trained on, normalized by `plain`, or None. cut: {id: whether
    the caption was cut at --max-steps}, or None.
    """
    each = {name: values.round(3).tolist() for name, values in scored.parts.items()}
    each["BLEU-4"] = bleu(scored.bleu)[:, 3].round(3).tolist()
    people = {i: references[i][0] for i in scored.ids}
    first = [plain(people[i]) for i in sorted(people)]
    own, theirs = (habits(captions, training) for captions in (
        [made[i] for i in scored.ids], first))
    if cut is not None:
        own[CUT], theirs[CUT] = 100 * np.mean([cut[i] for i in scored.ids]), 0.
    return {
        "scores": averages(scored), "intervals": intervals(scored),
        "tokenizer": scored.tokenizer, "images": len(scored.ids),
        "length": round(100 * float(scored.bleu[:, 0].sum()
                                    / max(1, scored.bleu[:, 1].sum())), 1),
        "habits": own, "habits_of_first_references": theirs,
        "image_ids": scored.ids, "of_each_image": each}
