"""The flags of train.py, and what becomes of them when a run is resumed.

Flags that are left out are the run's own then. A fixed flag is part of what the run is:
with another value it would be another run, which is refused. The others are free.
"""
import argparse
import os

from captioning.runs import (add_run_flag, run_folder, run_name,
                             settings_to_resume)
from captioning.schedule import SELECT
from captioning.tokens import LARGEST
from runtime import cli, watchdog
from runtime.tf import AdamOptimizer, RMSPropOptimizer, add_precision_flag

FOLDERS = ("data", "tokens", "features")  # the others are by default below the first
OPTIMIZERS = {"adam": AdamOptimizer, "rmsprop": RMSPropOptimizer}


class Parser(cli.Parser):
    """A parser whose flags are fixed or free, and may have a second default."""

    def add_argument(self, *names, fixed=True, default=None, self_critical=None,
                     **kwargs):
        """As cli.Parser's.

        fixed: whether the flag is; or conditions, a str or several, of which one makes
        it so. self_critical: its default with --self-critical, where that is another.
        Both defaults are those of the recipe (docs/recipe-coco.md).
        """
        two = self_critical is not None
        if two and "otherwise" not in kwargs:
            kwargs["otherwise"] = f"{default:g}; {self_critical:g} with --self-critical"
        elif default is not None and not two:
            kwargs["default"] = default
        action = super().add_argument(*names, **kwargs)
        action.fixed = (fixed,) if isinstance(fixed, str) else fixed
        action.defaults = (default, self_critical) if two else None
        return action

    def fixed(self, settings):
        """The names of the arguments that are fixed in a run of these settings."""
        args = argparse.Namespace(**settings)
        return [action.dest for action in self._actions if action.dest != "help" and (
            action.fixed is True or action.fixed and any(
                self.holds(condition, args) for condition in action.fixed))]

    def settle(self, args, own):
        """Give flags that were left out the run's own values, else their defaults.

        own: `settings_to_resume`. A given --data brings its tokens and features along.
        """
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


def arguments(doc):
    """The arguments of train.py; doc: its docstring. Raises cli.UserError where the
    run's name is none.
    """
    parser = build_parser(doc)
    own = settings_to_resume(run_folder(parser.parse_known_args()[0].run))
    names = {action.dest for action in parser._actions} - {"help", "run"}
    own = {name: value for name, value in own.items() if name in names
           and (name not in FOLDERS or isinstance(value, str))}
    parser.set_defaults(**own)
    args = parser.parse_args()
    parser.settle(args, own)
    return args


def fixed(settings):
    """The names of the settings that a resumed run must share. settings: the run's."""
    return build_parser(None).fixed(settings)


def build_parser(doc):
    """The Parser of train.py; doc: its docstring."""
    parser = Parser(doc)
    add_run_flags(parser)
    add_model_flags(parser)
    add_rate_flags(parser)
    add_loss_flags(parser)
    add_self_critical_flags(parser)
    add_choice_flags(parser)
    return parser


def add_run_flags(parser):
    """What is trained on, under which name, and how the process behaves."""
    parser.always("--data", fixed=False, default="data",
                  help="data set in COCO's layout")
    parser.always("--tokens", fixed=False, otherwise="<data>/tokens",
                  help="folder of step 3")
    parser.always("--features", fixed=False, otherwise="<data>/features",
                  help="folder of step 2")
    add_run_flag(parser, fixed=False)
    parser.always("--start-from", type=run_name, metavar="RUN",
                  help="begin with the weights of this run after its best epoch, and "
                       "a fresh optimizer; the words must be the same "
                       "(tokenize_captions.py --vocabulary)")
    parser.add_argument("--allow-seen", needs="--start-from", fixed=False,
                        action="store_true", help="validate on images that the other "
                        "run, or what it comes from, was trained on")
    parser.always("--epochs", fixed=("--schedule cosine", "--scheduled-sampling"),
                  type=cli.positive, default=8, self_critical=3, help="in all")
    parser.always("--batch-size", type=cli.positive, default=64,
                  help="captions of a step, of all processes together")
    parser.always("--seed", type=cli.seed, default=0,
                  help="of first weights, order and dropout")
    parser.always("--save-minutes", fixed=False, type=cli.number(float, above=0),
                  default=10., help="between two checkpoints inside an epoch")
    parser.always("--max-bad", fixed=False, type=cli.share, default=.05,
                  help="share of damaged features files tolerated")
    add_precision_flag(parser)
    watchdog.add_flag(parser, fixed=False)


def add_model_flags(parser):
    """What makes another model."""
    size = cli.number(int, at_least=1, below=LARGEST)
    parser.always("--embedding", type=size, default=512,
                  help="m, and D: size of word embeddings and annotation vectors")
    parser.always("--units", type=size, default=512,
                  help="n, and A: size of the GRU and of the attention")
    parser.always("--no-word-query", action="store_true",
                  help="keep the previous word from the attention, as the paper does")
    parser.always("--no-gate", action="store_true",
                  help="leave out beta (section 4.2.1)")
    parser.always("--no-state", action="store_true",
                  help="keep the state from the GRU, as the published tutorial does, "
                       "to see what that costs")
    parser.always("--initial-state", choices=("mean", "zeros"), default="mean",
                  help="h_0 from the mean annotation vector (3.1.2), or zeros")
    parser.add_argument("--attention", without="--self-critical",
                        choices=("soft", "hard"), default="soft",
                        help="hard: each word looks at one location (section 4.1); "
                             "best with --start-from a soft run")


def add_rate_flags(parser):
    """The optimizer, and how the learning rate changes (captioning/schedule.py)."""
    parser.always("--optimizer", choices=sorted(OPTIMIZERS), default="adam",
                  help="the paper takes rmsprop for Flickr8k, adam for COCO")
    parser.always("--learning-rate", type=cli.number(float, above=0), default=1e-3,
                  self_critical=5e-5, help="of the optimizer")
    parser.always("--base-batch-size", type=cli.positive,
                  help="the batch size that --learning-rate is meant for: a larger "
                       "batch takes larger steps in proportion")
    parser.always("--warm-up", type=cli.number(float, above=0), metavar="EPOCHS",
                  help="in which the learning rate rises from 0 to its height")
    parser.always("--schedule", choices=("epochs", "plateau", "cosine"),
                  default="epochs",
                  help="when the learning rate falls: by --decay after each epoch, by "
                       "--decay after each that --select finds no better, or along a "
                       "cosine to 0 at the end of --epochs")
    parser.add_argument("--decay", without="--schedule cosine",
                        type=cli.number(float, above=0, at_most=1), default=.75,
                        self_critical=1., help="factor on the learning rate")
    parser.always("--clip", type=cli.number(float, above=0), default=5.,
                  help="largest global norm of the gradients")


def add_loss_flags(parser):
    """What makes another loss of the same model."""
    weight = cli.number(float, at_least=0)
    share = cli.number(float, at_least=0, below=1)
    parser.add_argument("--dropout", without="--self-critical", type=share, default=.4,
                        self_critical=0., otherwise="0.4",
                        help="share of annotation channels, of embeddings and of the "
                             "deep output left out (section 4.3)")
    parser.always("--penalty", type=weight, default=0.,
                  help="lambda of the doubly stochastic loss (eq. 14)")
    parser.add_argument("--label-smoothing", without="--self-critical", type=share,
                        default=0., metavar="SHARE",
                        help="share of each target that all words of the vocabulary "
                             "get (Szegedy et al. 2016)")
    parser.add_argument("--scheduled-sampling", without="--self-critical", type=share,
                        default=0., metavar="SHARE",
                        help="share of the previous words that are the model's own at "
                             "the end of --epochs; it rises from 0 (Bengio et al. "
                             "2015)")
    parser.always("--guidance", type=weight, default=1., self_critical=.05,
                  help="lambda_g: how strongly the evidence for a word pulls its "
                       "attention (methods/localiser.py)")
    parser.add_argument("--expected", needs="--attention hard", type=cli.share,
                        default=.5, metavar="SHARE",
                        help="share of the captions that train with the expected "
                             "context")
    parser.add_argument("--reinforce", needs="--attention hard", type=weight,
                        default=1., metavar="LAMBDA_R",
                        help="weight of what a location earned")
    parser.add_argument("--entropy", needs="--attention hard", type=weight,
                        default=.002, metavar="LAMBDA_E",
                        help="weight of the entropy of the maps")


def add_self_critical_flags(parser):
    """Training towards the score (methods/self_critical.py)."""
    weight = cli.number(float, at_least=0)
    parser.always("--self-critical", type=cli.number(int, at_least=2), nargs="?",
                  const=5, metavar="SAMPLES",
                  help="train towards the score: so many captions (5 if the number is "
                       "left out) are drawn of each image, and earn CIDEr-D; "
                       "--batch-size counts images then. Needs --start-from")
    parser.add_argument("--bleu-reward", needs="--self-critical", type=weight,
                        self_critical=2., otherwise="2", metavar="WEIGHT",
                        help="of BLEU-4 (0 to 1), which is added to CIDEr-D (0 to 10)")
    parser.add_argument("--meteor-reward", needs="--self-critical", type=weight,
                        metavar="WEIGHT",
                        help="of METEOR's F-mean of equal words (0 to 1), which is "
                             "added, too, and pays for longer captions")


def add_choice_flags(parser):
    """Which weights are validated, and which are kept as the best."""
    parser.always("--average", type=cli.number(float, above=0, below=1),
                  metavar="DECAY",
                  help="validate, and keep as the best, a running average of the "
                       "weights (methods/averaging.py); 0.999, for example")
    parser.add_argument("--start-share", needs="--start-from",
                        type=cli.number(float, at_least=0, below=1), default=0.,
                        self_critical=.6, metavar="SHARE",
                        help="validate, and keep as the best, weights that have this "
                             "share of those of --start-from in them "
                             "(methods/averaging.py)")
    parser.always("--select", choices=sorted(SELECT), default="cider",
                  help="the best epoch is that of the lowest validation loss or the "
                       "highest score of validation captions")
    parser.add_argument("--val-images", without="--select loss", type=cli.positive,
                        default=1000,
                        help="validation images captioned after each epoch")
    parser.always("--patience", fixed=False, type=cli.positive, otherwise="never",
                  help="stop after so many epochs without a better one")
