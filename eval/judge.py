r"""A factuality score from 1 to 10 for every generated answer, given by a judge model.

    python eval/judge.py runs/vanilla runs/GA runs/manifold --judge_url https://api.openai.com/v1 \
        --judge_model gpt-4o-mini --judge_price_in 0.15 --judge_price_out 0.60 --dry_run True
    python eval/judge.py runs/vanilla runs/GA runs/manifold --judge_url http://localhost:8000/v1 \
        --judge_model Qwen/Qwen2.5-7B-Instruct --yes

Asks any server with OpenAI's chat completions. From MLLMU-Bench (arXiv 2410.22108) come the scale of 1 to
10 for factuality and who gives it: a language model, gpt-4o-mini in the released code. Ours are the
prompt's wording, what each step of the scale means, temperature 0 with a fixed seed, and that the judge is
asked again where its answer holds no clear score. Question, truth and reply are sent, the picture is not.
Empty replies are asked about like any other: a score is never made up.

The score becomes scores.factuality of the lines of predictions_<split>.jsonl; the means go into
results.json, with an entry "judge". Every answer of the judge is kept in a cache: a stopped run goes on, and
the same answer in two results is asked about once. docs/judge.md: what the numbers mean and what they cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.results.judge_api import (
    SETTINGS,
    TOKENS,
    Cache,
    CacheError,
    Ended,
    Judge,
    JudgeAnswer,
    api_key,
    ask_all,
    conversation,
    score_among,
)
from eval.results.predictions import Prediction, read_predictions
from eval.results.read import Result, load_results
from eval.results.summary import summarise
from eval.tasks import FACTUALITY
from utils import checkpoint, cli

SCORE_TOKENS = 8  # of the judge's answer, for the estimate
CACHE = "judge_cache.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    p.add_argument("results", nargs="*", default=[], help="model folders, or folders with results.json")
    cli.add_filter_args(p)
    g = p.add_argument_group("judge")
    g.add_argument("--judge_url", help="address of the API, e.g. http://localhost:8000/v1; default: no judge")
    g.add_argument("--judge_model", help="the judge's name at that address, e.g. gpt-4o-mini")
    g.add_argument(
        "--judge_key_env",
        default="OPENAI_API_KEY",
        help="environment variable with the API key; default OPENAI_API_KEY, no key where it is not set",
    )
    g.add_argument("--judge_cache", help=f"file of the judge's answers; default {CACHE} in each model folder")
    g.add_argument(
        "--judge_concurrency", type=cli.number(int, 1, 64), default=4, help="requests at once; default 4"
    )
    g.add_argument(
        "--judge_retries",
        type=cli.number(int, 0, 20),
        default=5,
        help="further tries of a request that fails (429, 5xx, no connection, timeout); default 5",
    )
    g.add_argument(
        "--judge_timeout",
        type=cli.number(float, 0, above=True),
        default=60.0,
        help="seconds to wait for an answer; default 60",
    )
    g.add_argument(
        "--judge_body",
        type=request_fields,
        default={},
        help="JSON object of further request fields; null drops one; default {}: "
        + json.dumps(SETTINGS)[1:-1],
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
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        return cli.Bad(f"'{text}' is not JSON ({error})")
    if not isinstance(fields, dict):
        return cli.Bad(f'\'{text}\' is no JSON object such as {{"reasoning_effort": "low"}}')
    fixed = sorted({"model", "messages", "stream", "n"} & set(fields))
    return cli.Bad(f"{', '.join(fixed)} cannot be set here") if fixed else fields


def check_judge(args: argparse.Namespace) -> None:
    """Add to args.problems what is wrong with the judge's flags. Nothing is asked and nothing written."""
    problems = args.problems
    if not args.judge_url:
        problems.add("--judge_url is missing: address of the API, e.g. http://localhost:8000/v1")
    elif why := _url_problem(args.judge_url):
        problems.add(f"--judge_url: {why}")
    if not (args.judge_model or "").strip():
        problems.add("--judge_model is missing: the judge's name at --judge_url")
    key = api_key(args)
    if not key and args.judge_key_env != "OPENAI_API_KEY":
        problems.add(f"--judge_key_env: ${args.judge_key_env} is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        problems.add(f"--judge_key_env: ${args.judge_key_env} holds letters that no key has (not shown here)")
    if (args.judge_price_in is None) != (args.judge_price_out is None):
        problems.add("--judge_price_in and --judge_price_out: give both or neither")
    cache = Path(args.judge_cache) if args.judge_cache else None
    if cache and (cache.is_dir() or any(folder.is_file() for folder in cache.parents)):
        problems.add(f"--judge_cache: {cache} is a folder or lies under a file; give a file name")


def _url_problem(text: str) -> str | None:
    import httpx2

    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        return f"no address ({error})"
    if url.userinfo or url.query:  # not shown: it may be a secret
        return "give it without user, password and query; a key goes into the variable of --judge_key_env"
    if url.scheme not in ("http", "https") or not url.host or (url.port or 80) > 65535:
        return f"{text} is not http:// or https:// with a host and perhaps a port"
    if url.path.rstrip("/").endswith("/completions"):
        return f"{text}: leave out what follows /v1"
    return None


# ---------------------------------------------------------------- what there is to ask
@dataclass
class Sheet:
    """One result with its predictions by file."""

    result: Result
    cache: Path
    files: dict[Path, list[Prediction]]
    before: dict[Path, bytes]  # the files as they were read

    def predictions(self) -> list[Prediction]:
        return [p for found in self.files.values() for p in found]

    def generated(self) -> list[Prediction]:
        return [p for p in self.predictions() if p.task == "generation"]


def read_sheet(result: Result, args: argparse.Namespace) -> Sheet:
    """The result's predictions. What is missing or broken is added to args.problems."""
    cache = Path(args.judge_cache) if args.judge_cache else result.model_dir / CACHE
    sheet = Sheet(result, cache.resolve(), {}, {})
    broken = len(args.problems.lines)
    for split in result.splits:
        path = result.folder / f"predictions_{split}.jsonl"
        if not path.is_file():
            args.problems.add(f"results: {path}: no such file; run that evaluation again")
            continue
        sheet.before[path] = path.read_bytes()
        try:
            sheet.files[path] = list(read_predictions(path))
        except ValueError as error:
            args.problems.add(f"results: {error}")
    if len(args.problems.lines) == broken and not sheet.generated():
        args.problems.add(
            f"results: {result.folder}: no generated answers to judge; evaluate the task generation"
        )
    for folder in (result.folder, next(folder for folder in sheet.cache.parents if folder.is_dir())):
        if not (args.dry_run or os.access(folder, os.W_OK)):
            args.problems.add(f"results or --judge_cache: {folder}: no permission to write there")
    return sheet


def open_caches(sheets: list[Sheet], args: argparse.Namespace) -> dict[Path, Cache]:
    """The caches that exist are read and, but for a dry run, locked; others are made when a run starts."""
    caches = {}
    for path in sorted({sheet.cache for sheet in sheets}):
        try:
            caches[path] = Cache(path, read_only=args.dry_run)
        except CacheError as error:
            args.problems.add(f"--judge_cache: {error}")
    return caches


def judge_results(results: Sequence[Result], args: argparse.Namespace) -> int:
    """Score the generated answers of the results and write predictions and results.json anew.

    Input mistakes in the results are added to args.problems, which is stopped at. Returns how many lines stay
    without a score (0 after --dry_run). Raises SystemExit, with no result changed, where the judge cannot be
    asked, where nobody confirms, and at Ctrl-C.
    """
    sheets = [read_sheet(result, args) for result in results]
    caches = open_caches(sheets, args)
    try:
        args.problems.stop()
        judge = Judge.of(args)
        todo, users = open_questions(sheets, caches, judge)
        print(estimate(sheets, todo, judge, args), flush=True)
        if args.dry_run:
            return 0
        confirm(len(todo), args)
        for cache in caches.values():
            cache.lock()
        unscored = _ask_and_keep(todo, users, caches, judge, args)
        check_unchanged(sheets)
        return sum(write(sheet, caches[sheet.cache], judge, unscored) for sheet in sheets)
    except CacheError as error:
        raise SystemExit(f"error: --judge_cache: {error}") from error
    except Ended as error:
        raise SystemExit(f"error: {error}\nNo result was changed; scores so far are in the cache.") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped: no result was changed; scores so far are in the cache") from None
    finally:
        for cache in caches.values():
            cache.close()


def open_questions(
    sheets: list[Sheet], caches: dict[Path, Cache], judge: Judge
) -> tuple[dict[str, Prediction], dict[str, set[Path]]]:
    """({key: prediction} to ask about, {key: the caches that are to hold its answers})."""
    users: dict[str, set[Path]] = defaultdict(set)
    todo = {}
    for sheet in sheets:
        for p in sheet.generated():
            users[key := judge.key(p)].add(sheet.cache)
            if answers_to(key, caches) is None:
                todo[key] = p
    return todo, users


def answers_to(key: str, caches: dict[Path, Cache]) -> list[JudgeAnswer] | None:
    """The answers of the first cache that holds a score for the key."""
    held = (cache.answers[key] for cache in caches.values())
    return next((answers for answers in held if score_among(answers) is not None), None)


def _ask_and_keep(
    todo: dict[str, Prediction],
    users: dict[str, set[Path]],
    caches: dict[Path, Cache],
    judge: Judge,
    args: argparse.Namespace,
) -> dict[str, str]:
    """ask_all() with the answers put into the caches, each of which is whole by itself; says what it took."""
    for key in (key for key in users if key not in todo):
        known = list(answers_to(key, caches))
        for cache in (caches[path] for path in users[key]):
            if score_among(cache.answers[key]) is None:
                for answer in known:
                    cache.add(answer)
    answers = []

    def record(answer: JudgeAnswer) -> None:
        answers.append(answer)
        for path in users[answer.key]:
            caches[path].add(answer)

    unscored = asyncio.run(ask_all(todo, judge, args, record)) if todo else {}
    spent = _tokens(answers)
    if answers and None not in spent.values():
        cost = _dollars(*spent.values(), args)
        print(f"asked: {len(answers)} requests, {spent['prompt_tokens']} tokens in, "
              f"{spent['completion_tokens']} out{cost}")  # fmt: skip
    return unscored


def _tokens(answers: list[JudgeAnswer]) -> dict[str, int | None]:
    """What the server counted; None where it does not count."""
    counts = {name: [getattr(answer, name) for answer in answers] for name in TOKENS}
    return {name: None if None in each else sum(each) for name, each in counts.items()}


def _dollars(tokens_in: int, tokens_out: int, args: argparse.Namespace) -> str:
    if args.judge_price_in is None:
        return ""
    dollars = (tokens_in * args.judge_price_in + tokens_out * args.judge_price_out) / 1e6
    return f", {dollars:.4f} USD"


def estimate(sheets: list[Sheet], todo: dict[str, Prediction], judge: Judge, args: argparse.Namespace) -> str:
    """How much there is to ask, before anything is."""
    generated = [p for sheet in sheets for p in sheet.generated()]
    distinct = len({judge.key(p) for p in generated})
    asked = [conversation(p.question, p.truth, p.reply) for p in todo.values()]
    letters = sum(len(message["content"]) for messages in asked for message in messages)
    key = f"key from ${args.judge_key_env}" if api_key(args) else "no key"
    tokens = round(letters / 4), SCORE_TOKENS * len(todo)
    return "\n".join(
        (
            f"judge: {judge.model} at {judge.host}, {key}, prompt {judge.prompt}",
            f"generated answers: {len(generated)} in {len(sheets)} result(s), {distinct} different,"
            f" {distinct - len(todo)} of them in the cache, {len(todo)} to ask about",
            f"estimate: {len(todo)} requests, {tokens[0]} tokens in (letters / 4), {tokens[1]} out"
            f"{_dollars(*tokens, args)}; questions asked again come on top",
        )
    )


def confirm(requests: int, args: argparse.Namespace) -> None:
    """Go on where nothing is to be asked, with --yes, or when somebody at the terminal says so."""
    if not requests or args.yes:
        return
    if not sys.stdin.isatty():
        args.problems.add(f"--yes: nobody is there to confirm {requests} requests; start with --yes")
        args.problems.stop()
    print("Start? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SystemExit("not started: nothing was asked and nothing changed")


# ---------------------------------------------------------------- writing
def check_unchanged(sheets: list[Sheet]) -> None:
    """Raise Ended where an evaluation was run anew meanwhile: its lines must not be replaced by old ones."""
    for path, before in (item for sheet in sheets for item in sheet.before.items()):
        if not path.is_file() or path.read_bytes() != before:
            raise Ended(f"{path} changed while its answers were judged; start again")


def write(sheet: Sheet, cache: Cache, judge: Judge, unscored: dict[str, str]) -> int:
    """Write the result's files anew, each of them whole or not at all, results.json last; how many
    predictions have no score. One that has none now loses the score that another judge gave it."""
    generated = sheet.generated()
    answers = {judge.key(p): cache.answers[judge.key(p)] for p in generated}
    for p in generated:
        p.scores.pop(FACTUALITY, None)
        if (score := score_among(answers[judge.key(p)])) is not None:
            p.scores[FACTUALITY] = score
    for path, found in sheet.files.items():
        checkpoint.write_whole(path, "".join(p.line() for p in found).encode())
    missing = [p for p in generated if FACTUALITY not in p.scores]
    requests = [answer for each in answers.values() for answer in each]
    file = sheet.result.folder / "results.json"
    results = checkpoint.read_json(file)
    results["splits"] = summarise(sheet.predictions())
    results["judge"] = {
        "model": judge.model,
        "served": sorted({answer.served for answer in requests}),
        "url": judge.host,
        "prompt": judge.prompt,
        "body": {name: value for name, value in judge.body.items() if name != "model"},
        "answers": len(generated),
        "judged": len(generated) - len(missing),
        "failures": len(missing),
        "empty": sum(not p.reply.strip() for p in generated),
        "requests": len(requests),
        **_tokens(requests),
    }
    checkpoint.write_json(file, results)
    _say(sheet.result, results["splits"], file)
    for p in missing:
        print(f"no score: {p.id}: {unscored[judge.key(p)]}", file=sys.stderr)
    return len(missing)


def _say(result: Result, splits: dict[str, dict], file: Path) -> None:
    cells = [
        f"{split} {modality} {entry['factuality']:.2f} ({entry['judged']})"
        for split, tasks in splits.items()
        for modality, entry in tasks.get("generation", {}).items()
        if "factuality" in entry
    ]
    print(f"{result.label}: factuality {', '.join(cells) or 'of no answer'}; saved {file}")


def main(args: argparse.Namespace) -> None:
    if not args.results:
        args.problems.add("results: name at least one result folder, e.g. runs/GA")
    check_judge(args)
    results = load_results(args.results, args.problems, shot=args.shot, forget_ratio=args.forget_ratio)
    missing = judge_results(results, args)
    if missing:
        raise SystemExit(f"error: {missing} answers have no score; the same command asks about them again")


if __name__ == "__main__":
    main(parse_args())
