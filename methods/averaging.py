"""Better weights than those of the last step, to be validated and kept.

Their running average (Polyak & Juditsky 1992), in which the steps' noise is not:

    average <- d average + (1 - d) weights,    d = min(decay, t / (9 + t))

after step t, counted from 0: the first weights, which are random, are forgotten soon.

And the mean of these and the weights that the run has started from (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models"): what a second training has taught,
without all that it has made the model forget. Self-critical training sharpens captions
and shortens them; part of the way back they are richer, at hardly any loss.

    kept = s start + (1 - s) average
"""
import collections
import contextlib

import numpy as np

from runtime.tf import Variable


class Averaging:
    """An optimizer that knows better weights than those that it moves.

    What it remembers of each weight is among its slots, so checkpoints keep it.
    """

    def __init__(self, optimizer, model, decay=None, start_share=0.):
        """optimizer: what moves the weights of the Captioner. decay: below 1; None:
        there is no average, the weights take its place. start_share: s, below 1.
        """
        self.optimizer, self.weights = optimizer, model.weights
        self.decay, self.start_share = decay, start_share
        self.slots = collections.OrderedDict(
            (slot, collections.OrderedDict(
                (name, Variable(weight.numpy(), trainable=False, name=f"{slot}_{name}"))
                for name, weight in model.weights.items()))
            for slot, wanted in (("average", decay), ("start", start_share)) if wanted)
        self.name_of = {id(weight): name for name, weight in model.weights.items()}
        self.steps = Variable(np.float32(0), trainable=False, name="steps")

    def begin(self):
        """The run starts from the weights as they are now."""
        for name, start in self.slots["start"].items():
            start.assign(self.weights[name].numpy())

    def apply_gradients(self, gradients):
        """As the optimizer's; gradients: pairs with the weights."""
        self.optimizer.apply_gradients(gradients)
        if self.decay:
            t = float(self.steps.numpy())
            kept = min(self.decay, t / (9 + t))
            for name, average in self.slots["average"].items():
                average.assign_add((1 - kept) * (self.weights[name] - average))
        self.steps.assign_add(1.)

    def kept(self):
        """The better weights, {name: array}."""
        s, found = np.float32(self.start_share), {}
        for name, weight in self.slots.get("average", self.weights).items():
            found[name] = weight.numpy()
            if s:
                found[name] = s * self.slots["start"][name].numpy() + (
                    1 - s) * found[name]
        return found

    def get_slot_names(self):
        """As the optimizer's, and this one's."""
        return list(self.optimizer.get_slot_names()) + list(self.slots)

    def get_slot(self, weight, name):
        """As the optimizer's; None where there is none."""
        if name in self.slots:
            return self.slots[name][self.name_of[id(weight)]]
        return self.optimizer.get_slot(weight, name)

    def variables(self):
        """The optimizer's, what this one remembers, and the count of the steps."""
        return (list(self.optimizer.variables())
                + [variable for slot in self.slots.values()
                   for variable in slot.values()] + [self.steps])


@contextlib.contextmanager
def better(optimizer):
    """Inside, the weights are the better ones where the optimizer knows some."""
    if not isinstance(optimizer, Averaging):
        yield
        return
    moved = {name: weight.numpy().copy() for name, weight in optimizer.weights.items()}
    for name, value in optimizer.kept().items():
        optimizer.weights[name].assign(value)
    try:
        yield
    finally:
        for name, value in moved.items():
            optimizer.weights[name].assign(value)
