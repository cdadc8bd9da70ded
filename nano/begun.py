"""What a folder of many runs was begun with. Its runs are named by what may differ in one folder; the rest
must not, for what is there is not made again."""

from __future__ import annotations

from argparse import Namespace

from utils import checkpoint

FILE = "begun.json"


def check(args: Namespace, *names: str) -> None:
    """Add a problem for each of the flags that --save_dir was begun with another value of."""
    file = args.save_dir and args.save_dir / FILE
    if not file or not file.exists():
        return
    try:
        before = dict(checkpoint.read_json(file))
    except (OSError, ValueError, TypeError) as why:
        args.problems.add(f"--save_dir: {file} cannot be read ({why!s:.80}); choose another folder")
        return
    for name, now in _values(args, names).items():
        if name in before and before[name] != now:
            args.problems.add(
                f"--{name}: {args.save_dir} was begun with {before[name]}, not {now}; go on with that, or"
                " choose another --save_dir"
            )


def note(args: Namespace, *names: str) -> None:
    """Write what `check` reads."""
    checkpoint.write_json(args.save_dir / FILE, _values(args, names))


def _values(args: Namespace, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(getattr(args, name)) for name in names}
