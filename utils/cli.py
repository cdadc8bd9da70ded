"""The command line that all scripts share: kinds of values, and every mistake told at once (flags.py: flags).

Nothing here imports torch, so that `--help` and a wrong flag answer immediately.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from utils.released import Released
from utils.run import ending, screen
from utils.run.ending import Problems, fail
from utils.run.jsonl import parse as parse_json

# bytes; the system's are 255 and 4096, and hidden neighbours are longer
LONGEST_NAME, LONGEST_PATH = 200, 3500
MOST_DEVICES = 1000


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


def several(convert: Callable) -> Callable:
    """A converter for words separated by commas, each once, that `convert` takes. They stay as they were
    written, where they name folders."""

    def converted(text: str):
        words = [word for word in dict.fromkeys(text.split(",")) if word]
        bad = [found for found in map(convert, words) if isinstance(found, Bad)]
        return bad[0] if bad else words or Bad("names none")

    return converted


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


sys.excepthook = partial(
    ending.last_words, None
)  # also while a script imports; parse() will give it the flags


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose help opens with the script's docstring. Whatever is printed from then on fits
    the screen."""
    screen.any_screen()
    screen.quiet()
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
    sys.excepthook = partial(ending.last_words, args)
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
