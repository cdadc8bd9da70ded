"""The command line that all scripts share: flags are declared once, and every mistake is told at once.

Nothing here imports torch, so that `--help` and a wrong flag answer immediately.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import select
import sys
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NoReturn

from utils.released import MASK_SWITCHES, Released
from utils.run.ending import INTERRUPTED, NO_MEMORY, NO_ROOM, NOBODY_READS, Problems, fail
from utils.run.jsonl import parse as parse_json
from utils.run.screen import main_process

# bytes; the system's are 255 and 4096, and hidden neighbours are longer
LONGEST_NAME, LONGEST_PATH = 200, 3500
# the most that a number may be which memory is taken for, or which must fit into 32 bits (a seed)
MOST_EPOCHS, MOST_AT_ONCE, MOST_DEVICES, MOST_SEEDS = 10_000, 1_000_000, 1000, 2**32 - 1
SCORINGS = ("letter", "likelihood")  # of multiple choice: --mcq


@dataclass(frozen=True)
class Bad:
    """What a flag's converter returns for a value that it cannot read, so that parsing goes on and all are
    reported."""

    why: str


# ---------------------------------------------------------------- values
def boolean(text: str) -> bool | Bad:
    """`True` / `False` in any case, also 1/0 and yes/no."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return known.get(text.lower(), Bad(f"'{text}' is neither True nor False"))


def ratio(text: str) -> int | Bad:
    """A forget ratio in percent: `05` and `5` are the same."""
    return int(text) if _is_count(text) else Bad(f"'{text:.40}' is not a percentage such as 5 or 05")


def _is_count(text: str) -> bool:
    """Whether it is a whole number from 0 on, of no more digits than any that means something."""
    return text.isdecimal() and len(text) < 20


def number(kind: type, low: float, high: float = float("inf"), above: bool = False) -> Callable:
    """A converter for an int or a float in [low, high], or in (low, high] with `above`."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            return Bad(f"'{text:.40}' is not {'a whole number' if kind is int else 'a number'}")
        if low <= value <= high and value < float("inf") and not (above and value == low):
            return value
        span = f"above {low:g}" if above else f"at least {low:g}"
        return Bad(
            f"{text:.40} is out of range ({span}{f', at most {high:g}' if high < float('inf') else ''})"
        )

    return convert


def choice(*names: str) -> Callable:
    """A converter for one of a few words."""
    return lambda text: text if text in names else Bad(f"'{text}' is none of {', '.join(names)}")


def choices(*names: str) -> Callable:
    """A converter for some of a few words, separated by commas, in the order given here."""

    def convert(text: str):
        wanted = [word.strip() for word in text.split(",") if word.strip()]
        wrong = [word for word in wanted if word not in names]
        if wrong or not wanted:
            return Bad(f"'{text}': {', '.join(wrong) or 'nothing'} is none of {', '.join(names)}")
        return [name for name in names if name in wanted]

    return convert


def numbers(most: int) -> Callable:
    """A converter for 1 to `most` whole numbers from 0 on, separated by commas."""

    def convert(text: str):
        words = [word.strip() for word in text.split(",") if word.strip()]
        small = (_is_count(word) and int(word) <= MOST_DEVICES for word in words)
        if not 1 <= len(words) <= most or not all(small):
            return Bad(f"'{text:.40}' is no list of 1 to {most} numbers such as 0,1,2,3")
        return [int(word) for word in words]

    return convert


def part(text: str) -> tuple[int, int] | Bad:
    """`2/4`, the second of four parts, as (2, 4)."""
    number, _, parts = text.partition("/")
    if _is_count(number) and _is_count(parts) and 1 <= int(number) <= int(parts) <= MOST_DEVICES:
        return int(number), int(parts)
    return Bad(f"'{text:.40}' is no part such as 2/4, the second of four")


def _why_no_name(value: object) -> str | None:
    """Why a text names no file, folder or model; None for one that may, and for what is no text.

    An empty one is a shell variable that was not set, and would be the folder at hand.
    """
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return None
    if not value.strip():
        return "is empty, as of a variable that is not set"
    if value == "~" or value.startswith("~/"):
        return f"{value} begins with a ~ that the shell has not replaced: give the whole path, or $HOME"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        return f"{value[:80]!a} holds a line break, a control character, or what is not UTF-8"
    long = len(os.fsencode(value)) > LONGEST_PATH or any(
        len(os.fsencode(word)) > LONGEST_NAME for word in value.split("/")
    )
    if long:
        return f"{value[:40]}... is too long for a name"
    try:
        os.stat(value)
    except OSError as why:
        return f"{value} is a symbolic link that leads to itself" if why.errno == errno.ELOOP else None
    return None


def _check_surroundings() -> None:
    """Stop where what every command relies on is not there: a current folder, the launcher's numbers."""
    try:
        Path.cwd()
    except FileNotFoundError:
        fail("the current folder does not exist any more; change to one that does")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if not _is_count(os.environ.get(name, "0")):
            fail(f"the environment variable {name} is {os.environ[name]!r:.40}, no number; unset it")


def path(text: str) -> Path | Bad:
    """A file or folder."""
    why = _why_no_name(text)
    return Bad(why) if why else Path(text)


# ---------------------------------------------------------------- parser
def any_screen() -> None:
    """Print a question mark for what the screen's encoding lacks (α under LANG=C), instead of ending the
    run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who has started the command
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # standard error never fails: it escapes by itself; a file or a pipe, too, gets each line at once
        sys.stdout.reconfigure(errors="replace", line_buffering=True)


def quiet() -> None:
    """Keep the libraries' own notices (deprecations, tied weights in a state) off the screen; errors stay.

    Python's and the libraries' own settings (-W, TRANSFORMERS_VERBOSITY) go before.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|peft|huggingface_hub)\b")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _last_words(args, kind, why, trace) -> None:
    """How a command ends that nothing caught (sys.excepthook): one line for what comes from outside, and what
    was noted about it (add_note)."""
    notes = getattr(why, "__notes__", [])
    if isinstance(why, ModuleNotFoundError):
        requirements = Path(__file__).resolve().parent.parent / "requirements.txt"
        go_elsewhere(f"has no {why.name}", f"python -m pip install -r {requirements}")
    elif isinstance(why, KeyboardInterrupt):
        if main_process():
            print(f"stopped: {'; '.join(notes) or 'no result was written'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    elif isinstance(why, BrokenPipeError) and _nobody_reads():
        sys.exit(NOBODY_READS)
    elif is_memory(why):
        words = (str(why).splitlines() or [kind.__name__])[0]
        fail("; ".join([f"out of memory ({words})", *_memory_hints(args), *notes]), NO_MEMORY)
    elif reason := _why_no_room(why):
        where = getattr(why, "filename", None) or "the result"
        fail("; ".join([f"{where} cannot be written: {reason}", *notes]), NO_ROOM)
    else:
        sys.__excepthook__(kind, why, trace)


def go_elsewhere(lacks: str, fix: str) -> NoReturn:
    """Start the command again in the environment that demo.sh and test.sh have made; without one, a line that
    says what this Python lacks."""
    root = Path(__file__).resolve().parent.parent
    own = root / ".venv"
    if (own / "bin" / "python").is_file() and os.environ.get("VIRTUAL_ENV") != str(own):
        python = str(own / "bin" / "python")
        print(f"note: {sys.executable} {lacks}; going on with {python}", file=sys.stderr, flush=True)
        os.environ["VIRTUAL_ENV"] = str(own)  # once only
        os.execv(python, [python, *sys.argv])
    fail(f"{sys.executable} {lacks}: {fix}")


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that its reader has left (`| head`); what is still to be written is
    dropped then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def is_memory(why: BaseException) -> bool:
    """Torch's own kind on a GPU; on the CPU it is a RuntimeError."""
    named = type(why).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(why)
    return named or isinstance(why, MemoryError)


def _memory_hints(args) -> list[str]:
    """What needs less memory, of what the command has and does not do yet."""
    hints = {
        "batch_size": ("try a smaller --batch_size", 1),
        "gradient_accumulation_steps": ("with --gradient_accumulation_steps the step stays the same", None),
        "batch_tokens": ("fewer --batch_tokens", None),
        "gradient_checkpointing": ("--gradient_checkpointing True", True),
        "moments": ("--moments 8bit", "8bit"),
        "lora": ("--lora True", True),
        "blocks": ("more --blocks", None),
    }
    has = getattr(args, "defaults", {})
    return [words for name, (words, done) in hints.items() if name in has and getattr(args, name) != done]


def _why_no_room(why: BaseException) -> str | None:
    """Disk full, quota, file too large, read-only: as Python, safetensors or torch say it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    for code in codes:
        if getattr(why, "errno", None) == code or f"(os error {code})" in str(why):
            return os.strerror(code)
    by_torch = "inline_container" in str(why) or "PytorchStreamWriter" in str(why)  # gives no reason
    cut = (by_torch and "unexpected pos" in str(why)) or "basic_ios::clear: iostream error" in str(why)
    return "not all was written, as on a full disk" if cut else None


sys.excepthook = partial(_last_words, None)  # also while a script imports; parse() will give it the flags


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose help opens with the script's docstring. Whatever is printed from then on fits
    the screen."""
    any_screen()
    quiet()
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def flag(p, *names: str, default: bool, help: str) -> None:
    """A boolean flag: `--x`, `--x True` and `--x False` all work."""
    p.add_argument(
        *names, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help
    )


def model_name(text: str) -> str:
    """The type of flags that name a model; parse() collects them in `args.models`."""
    return text


def add_model_flag(p, name: str, **options) -> None:
    """A flag that names a model, a folder or a Hugging Face id: utils.checks looks at what it names."""
    p.add_argument(name, type=model_name, **options)


def parse(p: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags' values, and beside them

    problems: every mistake so far; checks of files add to it before `problems.stop()` is called. A value that
        cannot be read is a problem and stands as the default until then.
    defaults: {flag without dashes: default}, in the order of the help.
    models: {flag: name} of the flags that name a model.
    about: what the script does, the first words of its docstring.
    released: all switches of utils.released, also those that the script has no flag for.
    """
    required = [action for action in p._actions if action.required]
    for action in required:
        action.required = False  # collected below, together with the other mistakes
    _check_surroundings()
    argv, problems = sys.argv[1:] if argv is None else argv, Problems()
    args, unknown = p.parse_known_args([*_repeated(p, argv, problems), *argv])
    args.problems = problems
    for action in p._actions:
        value = getattr(args, action.dest, None)
        name = action.option_strings[0] if action.option_strings else action.dest
        for why in map(_why_no_name, value if isinstance(value, list) else [value]):
            value = Bad(why) if why else value
        if isinstance(value, Bad):
            args.problems.add(f"{name}: {value.why}")
            setattr(args, action.dest, action.default)  # so that the checks of files and folders can go on
        if action in required and value is None:
            args.problems.add(f"{name} is missing: {action.help}")
    for word, before in zip(unknown, ["", *unknown]):
        if word.startswith("-") or not before.startswith("-"):  # else it is the value of the flag before it
            args.problems.add(f"{word.partition('=')[0]}: unknown argument (see --help)")
    flags = [action for action in p._actions if action.dest != "help"]
    args.defaults = {action.dest: action.default for action in flags}
    args.models = {a.option_strings[0]: getattr(args, a.dest) for a in flags if a.type is model_name}
    switches = {f.name for f in fields(Released)} & args.defaults.keys()
    args.about = (p.description or "").strip().partition("\n\n")[0]
    args.released = Released(**{name: getattr(args, name) for name in switches})
    sys.excepthook = partial(_last_words, args)
    return args


OWN = ("config", "resume", "restart", "dry_run", "push_to_hub")  # of a command, not of the run that it starts


def _repeated(p: argparse.ArgumentParser, argv: list[str], problems: Problems) -> list[str]:
    """The flags of --config's run.json, as words that stand before those of the command line, which win."""
    own = {action.dest: action for action in p._actions if action.option_strings}
    if "config" not in own:
        return []
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    file = finder.parse_known_args(argv)[0].config
    if file is None or _why_no_name(file):
        return []
    words = []
    try:
        script, given = read_run(Path(file))
    except ValueError as why:
        problems.add(f"--config: {why}")
        return []
    if script != Path(sys.argv[0]).name:
        problems.add(f"--config: {file} is of a run of {script}, not of {Path(sys.argv[0]).name}")
        return []
    for name, value in given.items():
        if name not in own:
            problems.add(f"--config: {file} has --{name}, which {script} does not have")
        elif name not in OWN and value is not None:
            words.append(f"{own[name].option_strings[0]}={value}")
    return words


def read_run(file: Path) -> tuple[str, dict[str, object]]:
    """(script, flags) of a run.json. Raises ValueError, naming the file, where it is none."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        script, given = content["script"], content["arguments"]
        if not isinstance(script, str) or not isinstance(given, dict):
            raise TypeError("script or arguments of another kind")
    except OSError as why:
        raise ValueError(f"{file} cannot be read: {why.strerror}") from why
    except (ValueError, KeyError, TypeError) as why:
        raise ValueError(f"{file} is no run.json of a training or of masks ({why!r:.80})") from why
    return script, given


def settings(args: argparse.Namespace) -> dict[str, object]:
    """Every flag of the command with its value."""
    return {name: getattr(args, name) for name in args.defaults}


def given(args: argparse.Namespace) -> str:
    """The settings that are not as by default, in one line."""
    other = [f"--{name} {value}" for name, value in settings(args).items() if value != args.defaults[name]]
    return f"settings, where not as by default: {' '.join(other)}"


# ---------------------------------------------------------------- groups of flags
def add_model_args(p: argparse.ArgumentParser, vanilla: bool = True) -> None:
    """--model_id and, with `vanilla`, --vanilla_dir; precision and attention."""
    # what shared code finds where a script has no such flag
    p.set_defaults(vanilla_dir=None, grad_mask_path=None, lora=False, merge=True, quantize="none")
    g = p.add_argument_group("model")
    add_model_flag(g, "--model_id", required=True, help="original model: a folder or a Hugging Face id")
    if vanilla:
        add_model_flag(
            g,
            "--vanilla_dir",
            help="vanilla (fine-tuned) model to unlearn; default: --model_id is the vanilla model",
        )
    add_compute_args(g, mixed=True)


def add_compute_args(g, mixed: bool = False) -> None:
    """--dtype and --attn. mixed: also weights in fp32 with arithmetic in bf16."""
    g.add_argument(
        "--dtype",
        type=choice("auto", "fp32", "bf16", *["mixed"] * mixed),
        default="auto",
        help="weights and arithmetic; default auto: bf16 on a GPU, fp32 on the CPU"
        + "; mixed: weights in fp32, arithmetic in bf16, which is auto where all weights train on a GPU"
        * mixed,
    )
    g.add_argument(
        "--attn",
        type=choice("sdpa", "eager", "flash_attention_2"),
        default="sdpa",
        help="attention kernel; default sdpa; flash_attention_2 needs a GPU and the flash-attn package",
    )


def add_data_args(p: argparse.ArgumentParser, folder: str) -> None:
    """--data_split_dir, --forget_ratio, --skip_bad_rows."""
    g = p.add_argument_group("data")
    g.add_argument(
        "--data_split_dir",
        "--data_folder",
        "--data_dir",
        default=folder,
        help=f"benchmark folder; default {folder}; its neighbours are found by themselves",
    )
    add_ratio(g, "percentage of people to forget; default 5 (05 is the same)", default=5)
    flag(
        g,
        "--skip_bad_rows",
        default=False,
        help="leave out rows that cannot be read or shown to the model, and count them; default False",
    )


def add_retain_args(p: argparse.ArgumentParser) -> None:
    """--retain_fraction and --retain_text, of methods that take retain steps, in the group that was added
    last."""
    add_retain_fraction(p)
    flag(
        p._action_groups[-1],
        "--retain_text",
        default=False,
        help="retain steps also on the text questions that masks preserve, the people to forget included;"
        " default False",
    )


def add_mask_retain(p: argparse.ArgumentParser) -> None:
    """--mask_retain, in the group that was added last."""
    flag(
        p._action_groups[-1],
        "--mask_retain",
        default=False,
        help="retain steps, too, change only weights where the mask is 1; default False",
    )


def add_retain_fraction(p: argparse.ArgumentParser) -> None:
    """--retain_fraction, of what is shown the retain set, in the group that was added last."""
    p._action_groups[-1].add_argument(
        "--retain_fraction",
        type=number(float, 0, 100, above=True),
        default=100,
        help="percentage of the people to retain whose pictures are given, everywhere the same ones; default"
        " 100",
    )


def add_keep_text(p: argparse.ArgumentParser) -> None:
    """--keep_text, of the retrained model."""
    flag(
        p,
        "--keep_text",
        default=False,
        help="train on text-only questions about the people to forget, but not on their pictures; default"
        " False",
    )


def add_lora_args(p: argparse.ArgumentParser, default: bool) -> None:
    """--lora and its sizes; the adapter is merged into the weights on save."""
    g = p.add_argument_group("LoRA")
    flag(
        g,
        "--lora",
        default=default,
        help=f"train a LoRA adapter, merged on save; default {default}; False: all weights",
    )
    g.add_argument("--lora_r", type=number(int, 1, 65_536), default=16, help="rank; default 16")
    g.add_argument("--lora_alpha", type=number(float, 0, above=True), default=16, help="scale; default 16")


def add_train_args(p: argparse.ArgumentParser) -> None:
    """Where the run is saved, optimizer, schedule, loss tokens, seed, and how it is logged and continued."""
    p.set_defaults(task="training", benchmark_name=None)  # the name: where utils.checks knows it
    g = p.add_argument_group("training")
    g.add_argument("--save_dir", required=True, help="folder for the resulting model")
    g.add_argument(
        "--batch_size",
        type=number(int, 1, MOST_AT_ONCE),
        default=4,
        help="samples per process and forward; default 4",
    )
    g.add_argument(
        "--lr", type=number(float, 0, above=True), default=1e-5, help="peak learning rate; default 1e-5"
    )
    g.add_argument("--num_epochs", type=number(int, 1, MOST_EPOCHS), default=1, help="epochs; default 1")
    g.add_argument(
        "--moments",
        type=choice("fp32", "bf16", "8bit"),
        default="fp32",
        help="AdamW's moments; default fp32; bf16, rounded at random: half the memory; 8bit: a quarter",
    )
    g.add_argument(
        "--save_dtype",
        type=choice("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="precision of the saved weights; default auto: fp32, which keeps every step taken",
    )
    g.add_argument(
        "--max_grad_norm",
        type=number(float, 0),
        default=1.0,
        help="clip the gradient norm to this; default 1; 0: never",
    )
    _add_loss_args(g)
    add_seed(g, "fixes data order and dropout")
    g.add_argument(
        "--save_steps",
        type=number(int, 0),
        help="keep the whole training state every so many optimizer steps; default: every 15 minutes; 0: only"
        " on SIGTERM and SIGUSR1",
    )
    flag(g, "--resume", default=False, help="go on from the kept state; default False")


def _add_loss_args(g) -> None:
    """What a forward and backward over a batch is, in training and in saliency."""
    flag(
        g,
        "--ans_only",
        default=True,
        help="loss on the answer and its end-of-turn token; default True; False: on every text token",
    )
    flag(
        g,
        "--gradient_checkpointing",
        default=False,
        help="less memory, about a third more time; default False",
    )


def add_seed(p, does: str, default: int = 42) -> None:
    p.add_argument(
        "--seed", type=number(int, 0, MOST_SEEDS), default=default, help=f"{does}; default {default}"
    )


def add_ratio(p, help: str, default: int | None = None) -> None:
    """--forget_ratio, and the name that the paper's commands have for it."""
    p.add_argument("--forget_ratio", "--forget_split_ratio", type=ratio, default=default, help=help)


def add_forget_args(p: argparse.ArgumentParser, alpha: float = 1.0) -> None:
    """--forget_alpha, of the methods that alternate (utils.training.alternate)."""
    p.add_argument(
        "--forget_alpha",
        type=number(float, 0),
        default=alpha,
        help=f"weight α of the forgetting loss; default {alpha:g}; 0: no forget steps, only retain steps",
    )


def add_mask_path(p: argparse.ArgumentParser, required: bool = False) -> None:
    """--grad_mask_path, for Trainer.load_mask."""
    p.add_argument(
        "--grad_mask_path", required=required, help="mask file: which weights a forget step may change"
    )


def _last_group(p: argparse.ArgumentParser, *switches: str):
    """The help's last group: switches of utils.released, and what few runs need."""
    p.usage = "%(prog)s --flag value ..."
    g = p.add_argument_group(
        "as released, and rarely needed",
        "What the paper's released code computes otherwise (docs/as_released.md), and what serves few runs.",
    )
    for switch in (f for name in switches for f in fields(Released) if f.name == name):
        values = switch.metadata["values"]
        g.add_argument(
            f"--{switch.name}", type=choice(*values), default=switch.default, metavar="|".join(values),
            help=f"{switch.metadata['help']}; default {switch.default}",
        )  # fmt: skip
    g.add_argument(
        "--config",
        help="run.json of an earlier run, to repeat it: its flags are taken, those on the command line win",
    )
    flag(
        g,
        "--dry_run",
        default=False,
        help="print the plan (steps, weights, memory, disk, which GPUs fit) and stop; default False",
    )
    return g


def add_released_train_args(p: argparse.ArgumentParser, *own: str, forgets: bool = True) -> None:
    """The last group of a training script; own: this method's switches; forgets: it has forget steps."""
    g = _last_group(p, "loss_tokens", "answer_tokens", "answer_end", "schedule_every", "rounding", *own)
    g.add_argument("--lora_dropout", type=number(float, 0, 0.99), default=0.05, help="dropout; default 0.05")
    g.add_argument(
        "--lora_parts",
        type=choice("language", "vision", "both"),
        default="both",
        help="which part's linear layers get an adapter; default both",
    )
    flag(
        g,
        "--merge",
        default=True,
        help="merge the adapter into the saved weights; default True; False: save it alone, in peft's format",
    )
    g.add_argument(
        "--quantize",
        type=choice("none", "4bit"),
        default="none",
        help="frozen weights under an adapter; default none; 4bit: NF4 of bitsandbytes (QLoRA), a quarter of"
        " bf16's memory",
    )
    g.add_argument(
        "--gradient_accumulation_steps",
        type=number(int, 1, MOST_AT_ONCE),
        default=1,
        help="forwards per optimizer step; default 1",
    )
    g.add_argument(
        "--lr_schedule",
        type=choice("linear", "cosine", "constant"),
        default="linear",
        help="decay over all optimizer steps; default linear",
    )
    g.add_argument(
        "--warmup_ratio", type=number(float, 0, 1), default=0.0, help="share of steps to warm up; default 0"
    )
    g.add_argument("--weight_decay", type=number(float, 0), default=0.0, help="AdamW decay; default 0")
    g.add_argument(
        "--adam_eps", type=number(float, 0, above=True), default=1e-8, help="AdamW epsilon; default 1e-8"
    )
    g.add_argument(
        "--max_steps",
        type=number(int, 0),
        default=0,
        help="end after so many optimizer steps, to which the schedule is sized; default 0: all epochs",
    )
    p.set_defaults(max_forget_loss=None)
    if forgets:
        g.add_argument(
            "--max_forget_loss",
            type=number(float, 0, above=True),
            help="take no more forget steps once the cross-entropy of a forget batch, nats per answer token,"
            " is above this; default: no limit",
        )
    g.add_argument(
        "--report_to",
        type=choice("none", "tensorboard", "wandb", "trackio"),
        default="none",
        help="also log to this tracker, whose package must be installed; default none",
    )
    g.add_argument(
        "--push_to_hub",
        metavar="OWNER/NAME",
        help="also upload the finished model to this repository of the Hugging Face hub, private where it is"
        " new; needs a token (HF_TOKEN); default: not uploaded",
    )
    flag(g, "--restart", default=False, help="delete a kept state and begin anew; default False")
    flag(g, "--shuffle", default=True, help="shuffle each epoch by the seed; default True")
    g.add_argument(
        "--num_workers",
        type=number(int, 0, 256),
        default=2,
        help="threads that prepare batches ahead of the step; default 2; 0: none",
    )


def add_released_mask_args(p: argparse.ArgumentParser) -> None:
    """The last group of the mask scripts."""
    _last_group(p, *MASK_SWITCHES)


def add_mask_args(p: argparse.ArgumentParser) -> None:
    """What a mask is made with: Fisher kind, batch, threshold, how many weights at a time."""
    p.set_defaults(task="masks")
    g = p.add_argument_group("saliency")
    g.add_argument("--save_dir", required=True, help="folder for the mask files")
    g.add_argument(
        "--saliency",
        type=choice("ce", "log_odds", "fisher"),
        default="ce",
        help="whose gradients are squared: ce of the answer's tokens (default, as in the paper); their"
        " log_odds, which do not fade where the model is sure; fisher: ce of tokens drawn from the model",
    )
    g.add_argument(
        "--fisher",
        type=choice("batch", "sample"),
        default="batch",
        help="square each batch's gradient (default, as in the paper's code) or each sample's",
    )
    g.add_argument(
        "--batch_size", type=number(int, 1, MOST_AT_ONCE), default=4, help="samples per batch; default 4"
    )
    g.add_argument(
        "--threshold",
        type=number(float, 0, 1e30, above=True),
        default=1.0,
        help="salient where the ratio reaches it; default 1",
    )
    g.add_argument(
        "--mask_kind",
        type=choice("saliency", "topk", "random"),
        default="saliency",
        help="saliency (default); ablations of equal sparsity: topk of the forget gradients, or random",
    )
    g.add_argument(
        "--blocks",
        type=number(int, 1, 1000),
        default=1,
        help="go over the weights in so many blocks: sums (4 bytes per weight) of one block at a time, for as"
        " many times the time; default 1",
    )
    _add_loss_args(g)
    add_seed(g, "recorded with the mask")


def add_filter_args(p: argparse.ArgumentParser, shot: bool = True) -> None:
    """Which evaluations of the given model folders are taken: --forget_ratio and, with `shot`, --shot."""
    if shot:
        p.add_argument(
            "--shot",
            type=choice("zero_shot", "few_shot"),
            help="take only these evaluations of a model folder; default: all",
        )
    add_ratio(p, "take only evaluations of this percentage; default: all (05 and 5 are the same)")


def add_eval_args(p: argparse.ArgumentParser, splits: tuple[str, ...]) -> None:
    """Which model is evaluated, on which splits, how, and on which GPUs."""
    g = p.add_argument_group("evaluation")
    g.add_argument(
        "--evaluated_model", required=True, help="model to evaluate: a folder or a Hugging Face id"
    )
    g.add_argument("--original_model", help="gives the processor where --evaluated_model holds none")
    g.add_argument(
        "--output_dir", help="where <shot>/forget05/ is written; default: the evaluated model's folder"
    )
    g.add_argument(
        "--splits",
        type=choices(*splits),
        help=f"some of {','.join(splits)} (comma-separated); default: all that the benchmark has",
    )
    g.add_argument(
        "--vanilla_dir",
        help="vanilla model, evaluated before: differences to it, with intervals, are added to the results",
    )
    g.add_argument(
        "--gpus",
        type=numbers(most=8),
        default=[0],
        help="one worker for each of these GPUs, 1 to 8 (comma-separated, an id may be repeated); default 0;"
        " without a GPU as many CPU workers share the cores",
    )
    g.add_argument(
        "--part",
        type=part,
        default=(1, 1),
        metavar="K/N",
        help="answer the K-th of N shares, on machines with one file system; whoever is last writes the"
        " results; default 1/1: all",
    )
    g.add_argument(
        "--batch_size",
        type=number(int, 1, MOST_AT_ONCE),
        default=256,
        help="most questions answered at once; default 256",
    )
    g.add_argument(
        "--batch_tokens",
        type=number(int, 1, 2**31),
        default=32768,
        help="most tokens, replies included, kept in memory at once; default 32768; batches that do not fit"
        " into the GPU's memory are halved",
    )
    g.add_argument(
        "--mcq",
        type=choice(*SCORINGS),
        help="how multiple choice is scored; default letter, or what the nano.json of a nano benchmark names",
    )
    g.add_argument(
        "--max_new_tokens",
        type=number(int, 1, MOST_AT_ONCE),
        default=50,
        help="longest reply in tokens; default 50",
    )
    add_compute_args(g)
    add_seed(g, "fixes test pictures and few-shot examples")
