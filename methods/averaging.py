"""Weight averaging: which weights are validated and saved as the best.

Their running average (Polyak & Juditsky 1992), which removes the noise of the steps:

    average <- d average + (1 - d) weights,    d = min(decay, t / (9 + t))

after step t, counted from 0, so that the random initial weights are soon forgotten.

Optionally interpolated with the weights that the run started from (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models"), to keep what the second training taught
without everything that it made the model forget. Self-critical training makes captions
shorter and more alike; interpolated weights give richer ones, at hardly any loss.

    kept = s start + (1 - s) average
"""
import collections
import contextlib

import numpy as np

from runtime.tf import Variable


class Averaging:
    """Wraps an optimizer, and averages the weights that it updates.

    The averages are slots of the optimizer, so checkpoints include them.
    """

    def __init__(self, optimizer, model, decay=None, start_share=0.):
        """optimizer: updates the weights of the Captioner. decay: below 1; None: no
        running average, the weights themselves instead. start_share: s, below 1.
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
        """Take the current weights as those that the run starts from."""
        for name, start in self.slots["start"].items():
            start.assign(self.weights[name].numpy())

    def apply_gradients(self, gradients):
        """See the optimizer; gradients: pairs (gradient, weight)."""
        self.optimizer.apply_gradients(gradients)
        if self.decay:
            t = float(self.steps.numpy())
            kept = min(self.decay, t / (9 + t))
            for name, average in self.slots["average"].items():
                average.assign_add((1 - kept) * (self.weights[name] - average))
        self.steps.assign_add(1.)

    def kept(self):
        """The averaged weights, {name: array}."""
        s, found = np.float32(self.start_share), {}
        for name, weight in self.slots.get("average", self.weights).items():
            found[name] = weight.numpy()
            if s:
                found[name] = s * self.slots["start"][name].numpy() + (
                    1 - s) * found[name]
        return found

    def get_slot_names(self):
        """The names of the optimizer's slots, and of the averages."""
        return list(self.optimizer.get_slot_names()) + list(self.slots)

    def get_slot(self, weight, name):
        """A slot of the optimizer, or an average; None if there is none."""
        if name in self.slots:
            return self.slots[name][self.name_of[id(weight)]]
        return self.optimizer.get_slot(weight, name)

    def variables(self):
        """The optimizer's variables, the averages, and the step count."""
        return (list(self.optimizer.variables())
                + [variable for slot in self.slots.values()
                   for variable in slot.values()] + [self.steps])


@contextlib.contextmanager
def better(optimizer):
    """Inside, the model has the averaged weights, if the optimizer keeps any."""
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
