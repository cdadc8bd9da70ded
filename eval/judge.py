r"""A factuality score from 1 to 10 for every generated answer, given by a judge model.

    python eval/judge.py runs/vanilla runs/GA runs/manifold --judge_url https://api.openai.com/v1 \
        --judge_model gpt-4o-mini --judge_price_in 0.15 --judge_price_out 0.60 --dry_run True
    python eval/judge.py runs/vanilla runs/GA runs/manifold --judge_url http://localhost:8000/v1 \
        --judge_model Qwen/Qwen2.5-7B-Instruct --yes

Asks any server with OpenAI's chat completions. The scale and a language model that gives it are MLLMU-Bench's
(arXiv 2410.22108); the prompt, temperature 0 and asking again where no clear score came are ours. Question,
truth and reply are sent, the picture is not. The score becomes scores.factuality of the lines of
predictions_<split>.jsonl, the means go into results.json, with an entry "judge". Scores are kept in a cache:
a stopped run goes on, and nothing is asked about twice. docs/judge.md says what the numbers mean and cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.results.judge_api import SETTINGS, Cache, Judge, JudgeError, ask_all, conversation
from eval.results.predictions import Prediction, read_predictions
from eval.results.read import Result, load_results, read_answers, read_results
from eval.results.summary import summarise
from eval.tasks import FACTUALITY
from utils import checkpoint, cli, flags
from utils.run import folders, jsonl

SCORE_TOKENS = 8  # of the judge's answer, for the estimate
CACHE = "runs/judge_cache.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    p.add_argument("results", nargs="*", default=[], help="model folders, or folders with results.json")
    flags.add_filter_args(p)
    g = p.add_argument_group("judge")
    g.add_argument("--judge_url", required=True, help="address of the API, e.g. http://localhost:8000/v1")
    g.add_argument("--judge_model", required=True, help="the judge's name there, e.g. gpt-4o-mini")
    g.add_argument(
        "--judge_key_env",
        default="OPENAI_API_KEY",
        help="environment variable with the API key; default OPENAI_API_KEY, no key where it is not set",
    )
    g.add_argument("--judge_cache", default=CACHE, help=f"file of the judge's answers; default {CACHE}")
    g.add_argument(
        "--judge_concurrency", type=cli.number(int, 1, 64), default=4, help="requests at once; default 4"
    )
    g.add_argument(
        "--judge_retries",
        type=cli.number(int, 0, 20),
        default=5,
        help="further tries of a request that fails (429, 5xx, no connection, timeout); default 5",
    )
    wait = cli.number(float, 0, 86_400, above=True)
    g.add_argument("--judge_timeout", type=wait, default=60.0, help="seconds for an answer; default 60")
    g.add_argument(
        "--judge_body",
        type=request_fields,
        default={},
        help=f"JSON object of request fields to add to {json.dumps(SETTINGS)}; null drops one; default {{}}",
    )
    for way in ("in", "out"):
        g.add_argument(
            f"--judge_price_{way}",
            type=cli.number(float, 0),
            help=f"USD per million tokens {way}, for the estimate; default: no estimate of the cost",
        )
    cli.flag(g, "--yes", default=False, help="start without asking; default False: ask on the terminal")
    cli.flag(g, "--dry_run", default=False, help="say what would be asked, and stop; default False")
    return cli.parse(p, argv)


def request_fields(text: str) -> dict[str, Any] | cli.Bad:
    """A converter for --judge_body."""
    try:
        fields = jsonl.parse(text)
    except json.JSONDecodeError as error:
        return cli.Bad(f"'{text}' is not JSON ({error})")
    if not isinstance(fields, dict) or {"model", "messages", "stream", "n"} & set(fields):
        return cli.Bad(f"'{text}' is no JSON object, or sets model, messages, stream or n")
    return fields


def is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        more = url.username or url.query or url.fragment or "/completions" in url.path
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not more
    except ValueError:  # the port
        return False


def check_judge(args: argparse.Namespace) -> None:
    """Add to args.problems what is wrong with the judge's flags. Nothing is asked and nothing written."""
    if args.judge_url and not is_address(args.judge_url):  # not shown: it may hold a secret
        args.problems.add("--judge_url: give an address such as http://localhost:8000/v1, not more")
    key = os.environ.get(args.judge_key_env, "").strip()
    if not (key or args.judge_key_env == "OPENAI_API_KEY") or not (key.isascii() and key.isprintable()):
        args.problems.add(f"--judge_key_env: ${args.judge_key_env} is not set, or holds what is no key")
    if (args.judge_price_in is None) != (args.judge_price_out is None):
        args.problems.add("--judge_price_in and --judge_price_out: give both or neither")


def read_files(folder: Path, splits: Iterable[str]) -> dict[Path, list[Prediction]]:
    """A result's predictions by file. Raises ValueError, naming the file, where one is broken or missing."""
    paths = [folder / f"predictions_{split}.jsonl" for split in splits]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"{', '.join(missing)}: no such file")
    return {path: list(read_predictions(path)) for path in paths}


def generated(files: dict[Path, list[Prediction]]) -> list[Prediction]:
    return [p for found in files.values() for p in found if p.task == "generation"]


def estimate(asked: list[Prediction], todo: dict[str, Prediction], judge: Judge, args) -> str:
    """How much there is to ask, before anything is."""
    distinct = len({judge.key(p) for p in asked})
    messages = [each for p in todo.values() for each in conversation(p.question, p.truth, p.reply)]
    tokens = round(sum(len(message["content"]) for message in messages) / 4), SCORE_TOKENS * len(todo)
    price = ""
    if args.judge_price_in is not None:
        dollars = (tokens[0] * args.judge_price_in + tokens[1] * args.judge_price_out) / 1e6
        price = f", {dollars:.4f} USD"
    key = f"key from ${judge.key_env}" if judge.secret else "no key"
    return f"""judge: {judge.model} at {judge.host}, {key}, prompt {judge.prompt}
generated answers: {len(asked)}, {distinct} different, {distinct - len(todo)} of them in the cache
to ask: {len(todo)} requests, about {tokens[0]} tokens in (letters / 4), {tokens[1]} out{price}"""


def confirm(requests: int, args: argparse.Namespace) -> None:
    """Go on with --yes, or when somebody at the terminal says so."""
    if args.yes:
        return
    if not sys.stdin.isatty():
        args.problems.add(f"--yes: nobody is there to confirm {requests} requests; start with --yes")
        args.problems.stop()
    print("Start? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SystemExit("not started: nothing was asked and nothing changed")


def write(result: Result, cache: Cache, judge: Judge, unscored: dict[str, str]) -> int:
    """Write the result's files anew, each of them whole or not at all, results.json last; how many
    predictions have no score. One that has none now loses the score that another judge gave it.

    The files are read again: what an evaluation has written meanwhile is not replaced by older lines.
    """
    file = result.folder / "results.json"
    results = read_results(file)
    files = read_files(result.folder, results["splits"])
    asked, served = generated(files), set()
    for p in asked:
        p.scores.pop(FACTUALITY, None)
        if answer := cache.answers.get(judge.key(p)):
            p.scores[FACTUALITY] = answer.score
            served.add(answer.served)
    for path, found in files.items():
        checkpoint.write_whole(path, "".join(p.line() for p in found).encode())
    missing = [p for p in asked if FACTUALITY not in p.scores]
    results["splits"] = summarise(p for found in files.values() for p in found)
    results["judge"] = {
        "model": judge.model,
        "served": sorted(served),
        "url": judge.host,
        "prompt": judge.prompt,
        "body": judge.settings,
        "answers": len(asked),
        "judged": len(asked) - len(missing),
        "empty": sum(not p.reply.strip() for p in asked),
    }
    checkpoint.write_json(file, results)
    means = ""
    for split, tasks in results["splits"].items():
        for modality, entry in tasks.get("generation", {}).items():
            means += f" {split} {modality} {entry.get(FACTUALITY, 'none')} ({entry.get('judged', 0)}),"
    print(f"{result.label}: factuality{means} saved {file}")
    for p in missing:
        print(f"no score: {p.id}: {unscored.get(judge.key(p), 'written meanwhile')}", file=sys.stderr)
    return len(missing)


def main(args: argparse.Namespace) -> None:
    check_judge(args)
    results = load_results(args.results, args.problems, shot=args.shot, forget_ratio=args.forget_ratio)
    asked = []
    read_answers(results, args.problems)
    for result in results:
        try:
            asked += generated(read_files(result.folder, result.splits))
        except ValueError as error:
            args.problems.add(f"results: {error}; run that evaluation again")
    if not asked:
        args.problems.add("results: no generated answers in them; name evaluations of the task generation")
    for result in results:
        folders.check_writable(result.folder, "results", args.problems)
        if folders.is_held(folders.lock_file(result.folder)):
            args.problems.add(f"results: another run writes {result.folder} now; wait for it")
    folders.check_writable(Path(args.judge_cache).parent, "--judge_cache", args.problems)
    try:
        cache = Cache(Path(args.judge_cache))
    except JudgeError as error:
        args.problems.add(str(error))
    args.problems.stop()
    judge, unscored = Judge(args), {}
    try:
        todo = {key: p for p in asked if (key := judge.key(p)) not in cache.answers}
        print(estimate(asked, todo, judge, args), flush=True)
        if args.dry_run:
            return
        if todo:
            confirm(len(todo), args)
            with cache.writing():
                asking = ask_all(todo, judge, cache, args.judge_concurrency, args.judge_timeout)
                unscored = asyncio.run(asking)
    except JudgeError as error:
        cli.fail(f"{error}; no result was changed, scores so far are in the cache", error.code)
    except KeyboardInterrupt as stop:
        stop.add_note("no result was changed; scores so far are in the cache")
        raise
    try:
        missing = 0
        for result in results:
            with folders.alone(result.folder):
                missing += write(result, cache, judge, unscored)
    except ValueError as error:  # written by somebody since they were read above
        cli.fail(f"{error}; run that evaluation again, scores are in the cache")
    if missing:
        cli.fail(f"{missing} answers have no score; the same command asks about them again", code=1)


if __name__ == "__main__":
    main(parse_args())
