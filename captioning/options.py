"""The table of train.py's options.

Each flag is added by one call that gives its type, its default (and that with
--self-critical), whether it is fixed or free, and its value in runs from before it
existed; the parser, `fixed` and `completed` follow from these. A fixed flag defines the
run: a resumed run must share its value. The others are free.
"""
import argparse
import functools
import os
import shlex

from captioning.runs import add_run_flag, run_name
from captioning.schedule import SELECT
from captioning.tokens import LARGEST
from runtime import cli, watchdog
from runtime.tf import add_precision_flag

FOLDERS = ("data", "tokens", "features")  # by default, the others are inside the first
# Settings that hardly anybody needs to change. Runs of earlier releases keep the values
# in their settings.
CONSTANTS = {
    "clip": 5.,          # largest global norm of the gradients (Pascanu et al. 2013)
    "max_bad": .05,      # share of damaged features files tolerated
    "val_images": 1000,  # validation images captioned after each epoch
    "expected": .5,      # share of the captions, see methods/hard_attention.py
    "reinforce": 1.,     # lambda_r, see there
    "entropy": .002,     # lambda_e, see there; alpha_entropy_c in the authors' code
}
START_SHARE = .6  # in self-critical training, see methods/averaging.py
# Former flags, and the values with which a run can be resumed without them
GONE = {"base_batch_size": (None,), "warm_up": (None,), "meteor_reward": (None, 0.)}
# Parts of the model that --without leaves out, and the settings of earlier releases
PARTS = {"gate": ("no_gate", True), "h0": ("initial_state", "zeros"),
         "state": ("no_state", True), "word-query": ("no_word_query", True)}
UNSAID = object()


class Parser(cli.Parser):
    """A parser whose flags are fixed or free, and may have a second default.

    An argument @FILE is replaced by the flags in that file: a recipe.
    """

    def __init__(self, doc):
        super().__init__(doc, fromfile_prefix_chars="@")

    def convert_arg_line_to_args(self, line):
        """Split a line of a recipe into words; # starts a comment."""
        return shlex.split(line, comments=True)

    def add_argument(self, *names, fixed=True, default=None, self_critical=None,
                     earlier=UNSAID, **kwargs):
        """See cli.Parser.

        fixed: whether the flag is fixed; or a condition, or several, any of which makes
        it so. self_critical: its default with --self-critical, if different. Both
        defaults are those of the recipe (docs/recipe-coco.md). earlier: its value in
        runs whose settings lack it because the flag came later.
        """
        two = self_critical is not None
        if two and "otherwise" not in kwargs:
            kwargs["otherwise"] = f"{default:g}; {self_critical:g} with --self-critical"
        elif default is not None and not two:
            kwargs["default"] = default
        action = super().add_argument(*names, **kwargs)
        action.fixed = (fixed,) if isinstance(fixed, str) else fixed
        action.defaults = (default, self_critical) if two else None
        action.earlier = earlier
        return action

    def fixed(self, settings):
        """The names of the arguments that are fixed in a run with these settings."""
        args = argparse.Namespace(**settings)
        return [action.dest for action in self._actions if action.dest != "help" and (
            action.fixed is True or action.fixed and any(
                self.holds(condition, args) for condition in action.fixed))]

    def settle(self, args, own):
        """Set flags that were left out to the run's own values, else their defaults,
        and add the constants.

        own: from `settings_to_resume`. If --data is given, the defaults of --tokens and
        --features follow it.
        """
        args.without = sorted(set(args.without or ()))
        share = START_SHARE if args.self_critical else 0.
        for name, value in dict(CONSTANTS, start_share=share).items():
            setattr(args, name, own.get(name, value))
        left_out = {action.dest: action for action in self._actions
                    if action.dest not in self.given}
        for name, action in left_out.items():
            if action.defaults and name not in own:
                setattr(args, name, action.defaults[bool(args.self_critical)])
        moved = os.path.realpath(args.data) != os.path.realpath(
            own.get("data", args.data))
        for name in FOLDERS[1:]:
            if moved and name in left_out:
                setattr(args, name, None)
            if getattr(args, name) is None:
                setattr(args, name, os.path.join(args.data, name))


def fixed(settings):
    """The names of the settings that a resumed run must share. settings: the run's."""
    return table().fixed(settings)


def completed(settings):
    """A run's settings, with those that earlier releases did not have filled in."""
    found = {action.dest: action.earlier for action in table()._actions
             if getattr(action, "earlier", UNSAID) is not UNSAID}
    found.update(CONSTANTS, start_share=0.)
    found.update((name, value) for name, value in settings.items() if not (
        name in CONSTANTS and value is None))  # None: it did not apply to the run
    if "without" not in settings:
        old = dict({"no_word_query": True}, **settings)
        found["without"] = [part for part, (name, value) in PARTS.items()
                            if old.get(name) == value]
    if found.get("start_from"):  # it may have been given as a path
        found["start_from"] = os.path.basename(os.path.normpath(found["start_from"]))
    return found


@functools.lru_cache(maxsize=None)
def table():
    """The Parser of train.py, for looking up its flags."""
    return build_parser(None)


def build_parser(doc):
    """The Parser of train.py; doc: its docstring."""
    parser = Parser(doc)
    for group, add in (("data", add_data_flags), ("model", add_model_flags),
                       ("training", add_training_flags),
                       ("attention", add_attention_flags),
                       ("self-critical", add_self_critical_flags),
                       ("saving", add_saving_flags)):
        parser.begin_group(group)
        add(parser)
    return parser


def add_data_flags(parser):
    """The run's name, its data, and what it starts from."""
    parser.always("--data", fixed=False, default="data",
                  help="data set in COCO's layout")
    parser.always("--tokens", fixed=False, otherwise="<data>/tokens",
                  help="folder of step 3")
    parser.always("--features", fixed=False, otherwise="<data>/features",
                  help="folder of step 2")
    add_run_flag(parser, fixed=False)
    parser.always("--start-from", type=run_name, metavar="RUN",
                  help="begin with the best weights of this run and a fresh optimizer; "
                       "the words must be the same (tokenize_captions.py --vocabulary)")
    parser.add_argument("--allow-seen", needs="--start-from", fixed=False,
                        action="store_true", help="validate on images that the other "
                        "run, or a run before it, was trained on")


def add_model_flags(parser):
    """The architecture of the model."""
    size = cli.number(int, at_least=1, below=LARGEST)
    parser.always("--embedding", type=size, default=512,
                  help="m and D: size of word embeddings and annotation vectors")
    parser.always("--units", type=size, default=512,
                  help="n and A: size of the GRU and of the attention")
    parser.always("--without", nargs="+", choices=sorted(PARTS), metavar="PART",
                  help="leave out parts of the model: gate, beta (section 4.2.1); h0, "
                       "the initial state from the mean annotation vector (3.1.2); "
                       "state, the GRU's recurrent input, as in the published "
                       "tutorial; word-query, the previous word in the attention's "
                       "query, which the paper does not have")


def add_training_flags(parser):
    """Optimization and regularization."""
    share = cli.number(float, at_least=0, below=1)
    parser.always("--epochs", fixed=("--schedule cosine", "--scheduled-sampling"),
                  type=cli.positive, default=8, self_critical=3, help="in all")
    parser.always("--batch-size", type=cli.positive, default=64,
                  help="captions per step, over all processes")
    parser.always("--seed", type=cli.seed, default=0,
                  help="of the initial weights, the order and dropout")
    parser.always("--optimizer", choices=("adam", "rmsprop"), default="adam",
                  help="the paper uses rmsprop for Flickr8k, adam for COCO")
    parser.always("--learning-rate", type=cli.number(float, above=0), default=1e-3,
                  self_critical=5e-5, help="of the optimizer")
    parser.always("--schedule", choices=("epochs", "plateau", "cosine"),
                  default="epochs", earlier="epochs",
                  help="how the learning rate falls: by --decay after each epoch; by "
                       "--decay after each epoch without improvement (--select); or "
                       "along a cosine to 0 at the end of --epochs")
    parser.add_argument("--decay", without="--schedule cosine",
                        type=cli.number(float, above=0, at_most=1), default=.75,
                        self_critical=1., help="factor on the learning rate")
    parser.add_argument("--dropout", without="--self-critical", type=share, default=.4,
                        self_critical=0., otherwise="0.4",
                        help="share of annotation channels, of embeddings and of the "
                             "deep output left out (section 4.3)")
    parser.add_argument("--label-smoothing", without="--self-critical", type=share,
                        default=0., earlier=0., metavar="SHARE",
                        help="share of each target that is spread over the vocabulary "
                             "(methods/label_smoothing.py)")
    parser.add_argument("--scheduled-sampling", without="--self-critical", type=share,
                        default=0., earlier=0., metavar="SHARE",
                        help="share of the previous words that are the model's own in "
                             "the last epoch; it rises from 0 "
                             "(methods/scheduled_sampling.py)")
    add_precision_flag(parser)


def add_attention_flags(parser):
    """Training of the attention."""
    weight = cli.number(float, at_least=0)
    parser.add_argument("--attention", without="--self-critical", earlier="soft",
                        choices=("soft", "hard"), default="soft",
                        help="hard: each word looks at one location (section 4.1); "
                             "best with --start-from a soft run")
    parser.always("--guidance", type=weight, default=1., self_critical=.05, earlier=0.,
                  help="lambda_g: how strongly the evidence for a word pulls its "
                       "attention (methods/localiser.py)")
    parser.always("--penalty", type=weight, default=0.,
                  help="lambda of the doubly stochastic loss (eq. 14)")


def add_self_critical_flags(parser):
    """Training towards the score (methods/self_critical.py)."""
    parser.always("--self-critical", type=cli.number(int, at_least=2), nargs="?",
                  const=5, metavar="SAMPLES",
                  help="train towards CIDEr-D with this many sampled captions per "
                       "image (5 if the number is left out); --batch-size then counts "
                       "images. Needs --start-from")
    parser.add_argument("--bleu-reward", needs="--self-critical",
                        type=cli.number(float, at_least=0), self_critical=2.,
                        otherwise="2", metavar="WEIGHT",
                        help="of BLEU-4 (0 to 1), added to CIDEr-D (0 to 10)")


def add_saving_flags(parser):
    """Which weights are validated and saved, and when."""
    parser.always("--average", type=cli.number(float, above=0, below=1), earlier=None,
                  metavar="DECAY",
                  help="validate and keep a running average of the weights "
                       "(methods/averaging.py), for example 0.999")
    parser.always("--select", choices=sorted(SELECT), default="cider",
                  help="the best epoch has the lowest validation loss or the highest "
                       "score of validation captions")
    parser.always("--patience", fixed=False, type=cli.positive, otherwise="never",
                  help="stop after this many epochs without improvement")
    parser.always("--save-minutes", fixed=False, type=cli.number(float, above=0),
                  default=10., help="between checkpoints inside an epoch")
    watchdog.add_flag(parser, fixed=False)
