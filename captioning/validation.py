"""Validation after an epoch: the model's loss, and the scores of the captions that it
decodes without teacher forcing.
"""
import numpy as np

from captioning import maps, scores
from captioning.decode import decode_files
from model import loss
from runtime import ranks, watchdog


def validate(model, captions, batch_size):
    """Cross-entropy of a split in nats per real word, without dropout or other terms.

    Processes take the batches in turn.
    """
    total, words = 0., 0
    order = captions.epoch(batch_size)
    batches = captions.batches(order[ranks.rank::ranks.size])
    for batch in watchdog.watched(batches, "batch", "validation"):
        _, cross_entropy, N = loss(model, batch)
        total, words = total + float(cross_entropy.numpy()) * N, words + N
    total, words = zip(*ranks.gather((total, words)))
    return sum(total) / sum(words)


class ValidationScorer:
    """Captions some validation images after an epoch, and scores the captions."""

    def __init__(self, captions, references, vocabulary, count, seed):
        """captions: CaptionBatches of the split. references: {image id: list of str}.
        count: number of images, sampled with the seed.
        """
        images = np.unique(captions.tokens.image_of[captions.captions])
        chosen = np.random.RandomState(seed).permutation(images)[:count]
        self.paths = [captions.paths[i] for i in chosen]
        self.ids = [str(captions.tokens.image_ids[i]) for i in chosen]
        self.references, self.vocabulary = references, vocabulary

    def __call__(self, decoder, batch_size):
        """BLEU-4 and CIDEr of greedy captions, entropy and change of their attention
        maps, all in percent: a row of the log.

        Captions are tokenized as for the vocabulary, not by the COCO tools, which take
        seconds to start: the figures to report are evaluate.py's. Processes share the
        images; rank 0 scores them.
        """
        mine = slice(ranks.rank, None, ranks.size)
        found = decode_files(decoder, self.paths[mine], batch_size, quiet=True)
        shares = ranks.gather({i: (self.vocabulary.decode(beam[0].words),
                                   maps.totals(beam[0].alphas))
                               for i, beam in zip(self.ids[mine], found)})
        row = None
        if ranks.rank == 0:
            texts, totals = ({i: pair[at] for share in shares
                              for i, pair in share.items()} for at in (0, 1))
            averages = scores.averages(scores.score(texts, self.references, java=False))
            attention = maps.averages(totals.values())
            row = {"val_bleu4": round(float(averages["BLEU-4"]), 3),
                   "val_cider": round(float(averages["CIDEr"]), 3),
                   "val_entropy": round(float(attention["entropy"]), 2),
                   "val_change": round(float(attention["change"]), 2)}
        return ranks.from_first(row)
