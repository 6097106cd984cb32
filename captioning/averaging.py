"""A running average of the weights (Polyak & Juditsky 1992), which is often the better
model: the steps' noise is not in it.

    average <- d average + (1 - d) weights,    d = min(decay, t / (9 + t))

after step t, counted from 0: the first weights, which are random, are forgotten soon.
"""
import collections
import contextlib

import numpy as np

from runtime.tf import Variable


class Averaging:
    """An optimizer that also averages the weights that it moves.

    The averages are among its variables, so checkpoints keep them.
    """

    def __init__(self, optimizer, model, decay):
        """optimizer: what moves the weights of the Captioner. decay: below 1."""
        self.optimizer, self.weights, self.decay = optimizer, model.weights, decay
        self.averages = collections.OrderedDict(
            (name, Variable(weight.numpy(), trainable=False, name="average_" + name))
            for name, weight in model.weights.items())
        self.name_of = {id(weight): name for name, weight in model.weights.items()}
        self.steps = Variable(np.float32(0), trainable=False, name="steps")

    def apply_gradients(self, gradients):
        """As the optimizer's; gradients: pairs with the weights."""
        self.optimizer.apply_gradients(gradients)
        t = float(self.steps.numpy())
        kept = min(self.decay, t / (9 + t))
        for name, average in self.averages.items():
            average.assign_add((1 - kept) * (self.weights[name] - average))
        self.steps.assign_add(1.)

    def get_slot_names(self):
        """As the optimizer's, and "average"."""
        return list(self.optimizer.get_slot_names()) + ["average"]

    def get_slot(self, weight, name):
        """As the optimizer's; None where there is none."""
        if name == "average":
            return self.averages[self.name_of[id(weight)]]
        return self.optimizer.get_slot(weight, name)

    def variables(self):
        """The optimizer's, the averages, and the count of the steps."""
        return list(self.optimizer.variables()) + list(self.averages.values()) + [
            self.steps]

    def exchange(self):
        """Let weights and averages change places."""
        for name, average in self.averages.items():
            weight = self.weights[name].numpy().copy()
            self.weights[name].assign(average.numpy())
            average.assign(weight)


@contextlib.contextmanager
def averaged(optimizer):
    """Inside, the weights are the averages where the optimizer keeps some."""
    if not isinstance(optimizer, Averaging):
        yield
        return
    optimizer.exchange()
    try:
        yield
    finally:
        optimizer.exchange()
