"""Step 5: caption a split without teacher forcing, and score the captions.

    python evaluate.py --run baseline
    python evaluate.py --run baseline --beam 3

Each word is decoded from the model's own previous word, its state and the image, up to
the end token. BLEU is that of the COCO caption tools, with brevity penalty, against all
references of an image, in percent.

Reads:  checkpoints/<run>/, the tokens, features and annotations that the run names
Writes, below checkpoints/<run>/:
        captions_<split>_<run>_results.json   what the COCO server takes
        attention_<split>.npz                 see Decoded for what is inside
        scores_<split>.json                   the scores, and how they were made
"""
import collections
import os
import shutil
import time
import zipfile

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from tqdm import tqdm

import atomic
import cli
from decode import beam_search
from download_coco import read_captions
from extract_features import SHAPE, feature_path, read_features
from tf_runtime import start
from tokenize_captions import read_tokens, split_words
from train import read_run

Decoded = collections.namedtuple("Decoded", "file_names image_ids folder words steps "
                                            "alphas log_probs betas")
Decoded.__doc__ = """The captions of one split with their attention.

file_names, image_ids: str (I,). folder: str, the images' folder below the data set.
words: int32 (I, T), padded with 0. steps: int32 (I,): words, the end token among them.
alphas: float32 (I, T, L). log_probs, betas: float32 (I, T); betas 1 without a gate.
"""


# --- reading what this step writes ----------------------------------------------------

def decoded_path(folder, split):
    """Where the attention of a split stands in a run's folder."""
    return os.path.join(folder, f"attention_{split}.npz")


def read_decoded(path):
    """The Decoded of a run. Raises cli.UserError where it is missing or damaged."""
    try:
        with atomic.load_arrays(path) as arrays:
            decoded = Decoded(**{name: arrays[name] for name in Decoded._fields})
        I, T = decoded.words.shape
        if not (decoded.alphas.shape[:2] == (I, T) == decoded.log_probs.shape
                and decoded.steps.shape == decoded.file_names.shape == (I,)
                and decoded.file_names.dtype.kind == "U" and decoded.steps.max() <= T):
            raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no decoded captions there; run evaluate.py")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile,
            zipfile.zlib.error, NotImplementedError, RuntimeError):
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    return decoded._replace(folder=str(decoded.folder))


# --- the run --------------------------------------------------------------------------

def decode_split(model, paths, batch_size, width, max_steps):
    """Best Caption for each features file, in order; images of a batch side by side."""
    captions = []
    with tqdm(total=len(paths), desc="decode", unit="image") as bar:
        for i in range(0, len(paths), batch_size):
            maps = np.stack([read_features(p) for p in paths[i:i + batch_size]])
            found = beam_search(model, maps.reshape(len(maps), -1, SHAPE[-1]), width,
                                max_steps)
            captions += [hypotheses[0] for hypotheses in found]
            bar.update(len(maps))
    return captions


def pack(captions, names, ids, folder):
    """A list of Captions as the arrays of Decoded."""
    I, T = len(captions), max(len(caption.words) for caption in captions)
    L = captions[0].alphas.shape[1]
    decoded = Decoded(np.array(names), np.array(ids), np.array(folder),
                      np.zeros((I, T), np.int32),
                      np.array([len(c.words) for c in captions], np.int32),
                      np.zeros((I, T, L), np.float32), np.zeros((I, T), np.float32),
                      np.ones((I, T), np.float32))
    for i, caption in enumerate(captions):
        steps = len(caption.words)
        decoded.words[i, :steps] = caption.words
        decoded.alphas[i, :steps] = caption.alphas
        decoded.log_probs[i, :steps] = caption.log_probs
        if caption.betas is not None:
            decoded.betas[i, :steps] = caption.betas
    return decoded


def bleu(candidates, references):
    """Corpus BLEU-1 to 4 in percent, by the COCO caption tools.

    candidates: {image id: caption}. references: {image id: list of captions}.
    Returns ({'BLEU-1': ...}, name of the tokenizer). Java runs the Penn Treebank
    tokenizer of the COCO tools; without Java both sides go through `split_words`.
    """
    ids = sorted(candidates)
    made = {i: [{"caption": candidates[i]}] for i in ids}
    true = {i: [{"caption": caption} for caption in references[i]] for i in ids}
    if shutil.which("java"):
        tokenizer, name = PTBTokenizer().tokenize, "PTB"
    else:
        def tokenizer(captions):
            return {i: [" ".join(split_words(c["caption"])) for c in group]
                    for i, group in captions.items()}
        name = "lower case without punctuation (no Java was found for PTB)"
    scores, _ = Bleu(4).compute_score(tokenizer(true), tokenizer(made), verbose=0)
    return {f"BLEU-{n}": round(100 * s, 2) for n, s in enumerate(scores, 1)}, name


def main():
    args = arguments()
    cli.introduce(5, "evaluate")
    start()
    run = read_run(args.run, args.checkpoint)
    settings = run.settings
    data = args.data or settings["data"]
    features = args.features or settings["features"]
    tokens = read_tokens(os.path.join(args.tokens or settings["tokens"],
                                      args.split + ".npz"))
    paths = [feature_path(features, tokens.folder, str(n)) for n in tokens.file_names]
    images = [i for i, path in enumerate(paths) if os.path.exists(path)]
    if not images:
        raise cli.UserError(f"{os.path.join(features, tokens.folder)}: no features of "
                            "these images; run extract_features.py")
    if len(images) < len(paths):
        cli.warn(f"{len(paths) - len(images)} of {len(paths)} images have no "
                 "features and are left out")
    references = {str(image.id): image.captions
                  for image in read_captions(data, tokens.folder)}
    names = [str(tokens.file_names[i]) for i in images]
    ids = [str(tokens.image_ids[i]) for i in images]
    lost = [i for i in ids if not references.get(i)]
    if lost:
        raise cli.UserError(f"{data}: {len(lost)} images of {args.split}.npz have no "
                            f"captions there, the first is {lost[0]}; give the data "
                            "set that was tokenized with --data")
    begin = time.time()
    captions = decode_split(run.model, [paths[i] for i in images], args.batch_size,
                            args.beam, args.max_steps)
    seconds = time.time() - begin
    texts = {i: run.vocabulary.decode(c.words) for i, c in zip(ids, captions)}
    decoded = pack(captions, names, ids, tokens.folder)
    with atomic.writing(decoded_path(run.folder, args.split)) as file:
        np.savez_compressed(file, **decoded._asdict())
    results = os.path.join(run.folder,
                           f"captions_{tokens.folder}_{args.run}_results.json")
    atomic.write_json(results, [{"image_id": int(i) if i.isdigit() else i,
                                 "caption": texts[i]} for i in ids])
    scores, tokenizer = bleu(texts, references)
    report = os.path.join(run.folder, f"scores_{args.split}.json")
    atomic.write_json(report, {
        "scores": scores, "tokenizer": tokenizer, "images": len(ids),
        "split": args.split, "folder": tokens.folder, "beam": args.beam,
        "checkpoint": args.checkpoint, "epoch": run.history[-1]["epoch"]})
    lengths = decoded.steps - (decoded.words[np.arange(len(ids)),
                                             decoded.steps - 1] == 2)
    print(f"{len(ids)} images of {tokens.folder}, beam {args.beam}, "
          f"{len(ids) / seconds:.1f} images/s, {lengths.mean():.1f} words on average, "
          f"{len(set(texts.values()))} different captions, tokenizer: {tokenizer}")
    print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    print(f"written: {results}, {report}, {decoded_path(run.folder, args.split)}")
    cli.next_step("python", "plot_attention.py", "--run", args.run)


def arguments():
    parser = cli.parser(__doc__)
    positive = cli.number(int, at_least=1)
    parser.add_argument("--run", default="baseline", help="name below checkpoints/")
    parser.add_argument("--split", choices=("train", "val"), default="val",
                        help="which of the tokenized splits")
    parser.add_argument("--checkpoint", choices=("best", "newest", "previous"),
                        default="best", help="which weights of the run")
    parser.add_argument("--beam", type=positive, default=1,
                        help="width of the beam search; 1 is greedy")
    parser.add_argument("--max-steps", type=positive, default=50,
                        help="words after which a caption is cut")
    parser.add_argument("--batch-size", type=positive, default=64, help="images")
    parser.add_argument("--data", help="default: that of the run")
    parser.add_argument("--tokens", help="default: those of the run")
    parser.add_argument("--features", help="default: those of the run")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
