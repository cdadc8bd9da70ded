"""The judge, against a server of our own on this machine. Run: python -m pytest tests/test_judge.py"""

import asyncio
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, jsonl
from test_metrics import prediction

from eval import judge
from eval.metrics import generation_scores
from eval.results import judge_api
from eval.results.summary import summarise

KEY = "sk-secret-0123456789"


# ---------------------------------------------------------------- a judge that does as it is told
class Server(ThreadingHTTPServer):
    """Chat completions. `behave(texts, times)`, texts being the question, correct_answer and reply asked
    about and times how often they came before, gives the judge's words, or (status, headers, body), or None
    to hang up. `asked`: (path, headers, body) of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.behave, self.lock = [], lambda texts, times: said(score(texts)), threading.Lock()

    def handle_error(self, *_):
        """Clients that were killed are no news."""

    def texts(self):
        return [json.loads(body["messages"][1]["content"]) for _, _, body in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet: two would wait for each other (Nagle)

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = json.loads(body["messages"][1]["content"])
        with server.lock:
            times = server.texts().count(texts)
            server.asked.append((self.path, dict(self.headers), body))
        answer = server.behave(texts, times)
        if answer is None:
            self.close_connection = True
            return
        status, headers, text = (200, {}, completion(answer)) if isinstance(answer, str) else answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode("ascii"))

    def log_message(self, *_):
        pass


def completion(text, end="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
    return json.dumps({"model": "judge-2024", "choices": [choice]})


def score(texts):
    return zlib.crc32(texts["reply"].encode()) % 10 + 1


def said(number):
    return json.dumps({"score": number})


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where the cache is made
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(judge_api, "BACKOFF", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# ---------------------------------------------------------------- results to judge
def answer(split, person, task, modality, reply, truth):
    question = {"question": f"Où travaille {person} ?\u2028", "reply": reply, "truth": truth}
    about = {"correct": reply == truth}
    if task == "generation":
        about = {"scores": generation_scores(reply, truth)}
    return prediction(split, task, modality, person, **question, **about)


def write(model, replies=None, people=1, splits=("forget",)):
    """<model>/zero_shot/forget05: one choice and two generated answers per person and split; replies: those
    about the pictures of some people."""
    folder, every = model / "zero_shot" / "forget05", []
    folder.mkdir(parents=True)
    for split in splits:
        lines = []
        for person in map(str, range(people)):
            reply = (replies or {}).get(person, f"{model.name} says {split} {person} is a baker")
            lines.append(answer(split, person, "classification", "image", "A", "B"))
            for modality, text in (("image", reply), ("text", f"as text: {reply}")):
                lines.append(answer(split, person, "generation", modality, text, f"{person} is a pilot"))
        text = "".join(each.line() for each in lines)
        (folder / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
        every += lines
    results = {
        "benchmark": "MLLMU-Bench", "model": str(model), "method": model.name, "forget_ratio": 5,
        "shot": "zero_shot", "seed": 42, "mcq": "letter", "splits": summarise(every),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return folder


def contents(folder):
    """{name: bytes} of every file in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines_of(folder, split="forget"):
    return jsonl(folder / f"predictions_{split}.jsonl")


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def grades(folder):
    return [line["scores"].get("factuality") for line in lines_of(folder) if "scores" in line]


def command(server, *words):
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return [*map(str, words), "--judge_url", address, "--judge_model", "judge"]


def run(server, *words, yes=True):
    judge.main(judge.parse_args([*command(server, *words), *["--yes"] * yes]))


def ends(server, *words, yes=True):
    """The message that the run ends with."""
    with pytest.raises(SystemExit) as end:
        run(server, *words, yes=yes)
    return end.value.args[0]


# ---------------------------------------------------------------- scores
def test_scores_means_and_what_was_asked(server, tmp_path, capsys):
    folder = write(tmp_path / "GA", people=3, splits=("forget", "test"))
    before, old = {s: lines_of(folder, s) for s in ("forget", "test")}, results_of(folder)
    run(server, tmp_path / "GA")

    every = [line for lines in before.values() for line in lines if line["task"] == "generation"]
    for line in every:
        line["scores"]["factuality"] = score(line)
    for split in before:  # nothing else has changed, nor its order
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in before[split])
        assert (folder / f"predictions_{split}.jsonl").read_text(encoding="utf-8") == text
    new = results_of(folder)
    for split in before:
        for modality in ("image", "text"):
            scores = [score(e) for e in every if (e["split"], e["modality"]) == (split, modality)]
            entry = new["splits"][split]["generation"][modality]
            assert (entry.pop("factuality"), entry.pop("judged")) == (round(sum(scores) / 3, 2), 3)
    about = new.pop("judge")
    assert new == old  # all other numbers stand as they were
    assert about == {
        "model": "judge", "served": ["judge-2024"], "url": f"127.0.0.1:{server.server_port}",
        "prompt": about["prompt"], "body": {"temperature": 0, "seed": 42, "max_tokens": 32}, "answers": 12,
        "judged": 12, "empty": 0,
    }  # fmt: skip

    assert len(server.asked) == 12
    for path, headers, body in server.asked:
        assert path == "/v1/chat/completions" and "Authorization" not in headers
        assert body.keys() == {"model", "messages", "temperature", "seed", "max_tokens"}
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    wanted = [{"question": e["question"], "correct_answer": e["truth"], "reply": e["reply"]} for e in every]
    assert sorted(server.texts(), key=str) == sorted(wanted, key=str)
    assert "GA: factuality forget image" in capsys.readouterr().out


def test_nothing_is_asked_about_twice(server, tmp_path):
    same = {"0": "a pilot", "1": "a pilot"}  # other truths: not the same answer
    for name in ("GA", "NPO"):
        write(tmp_path / name, same, people=2)
    run(server, tmp_path / "GA", tmp_path / "NPO")
    assert len(server.asked) == 4  # two people, as picture and as text
    assert len(jsonl(tmp_path / "runs/judge_cache.jsonl")) == 4
    before = contents(tmp_path)
    run(server, tmp_path / "NPO", yes=False)  # nothing to pay for, nothing to confirm
    assert len(server.asked) == 4 and contents(tmp_path) == before
    run(server, tmp_path / "NPO", "--judge_cache", "other/new.jsonl")
    assert len(server.asked) == 8 and len(jsonl(tmp_path / "other/new.jsonl")) == 4


def test_what_makes_an_answer_the_same():
    def key(url="http://a/v1", model="m", body="{}", **fields):
        words = ["GA", "--judge_url", url, "--judge_model", model, "--judge_body", body]
        judge_ = judge_api.Judge(judge.parse_args(words))
        assert body != "{}" or judge_.prompt == "1732ccfbb259", "scores of other words"
        scores = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 0.5)
        asked = {"question": "q", "truth": "t", "reply": "r", "scores": scores} | fields
        return judge_.key(prediction("forget", "generation", "text", **asked))

    assert key() == key(url="https://b:1/v1") == key(id="another")
    other = [key(model="n"), key(body='{"seed": 1}'), key(question="x"), key(truth="x"), key(reply="x")]
    assert len({key(), *other}) == 6


def test_another_judge_replaces_all_scores(server, tmp_path, capsys):
    folder = write(tmp_path / "GA", people=2)
    run(server, tmp_path / "GA")
    prompt = results_of(folder)["judge"]["prompt"]
    lost = lines_of(folder)[1]["reply"]
    server.behave = lambda texts, times: "no idea" if texts["reply"] == lost else said(10)
    assert "1 answers have no score" in ends(server, tmp_path / "GA", "--judge_body", '{"seed": 1}')
    assert grades(folder) == [None, 10, 10, 10]  # and not what the other judge gave it
    about = results_of(folder)["judge"]
    assert about["prompt"] != prompt and (about["answers"], about["judged"]) == (4, 3)
    assert results_of(folder)["splits"]["forget"]["generation"]["image"]["judged"] == 1
    why = "no score: forget/0/generation/image/0: no score from 1 to 10 in 'no idea' (asked 3 times)"
    assert why in capsys.readouterr().err

    server.asked.clear()  # the same command asks only about the one
    server.behave = lambda texts, times: said(2)
    run(server, tmp_path / "GA", "--judge_body", '{"seed": 1}')
    assert [texts["reply"] for texts in server.texts()] == [lost] and grades(folder) == [2, 10, 10, 10]


def test_an_empty_reply_is_asked_about(server, tmp_path):
    folder = write(tmp_path / "GA", {"0": " "})
    fields = {"max_tokens": None, "temperature": None, "max_completion_tokens": 500}
    run(server, tmp_path / "GA", "--judge_body", json.dumps(fields))
    assert server.asked[0][2].keys() == {"model", "messages", "seed", "max_completion_tokens"}
    assert " " in [texts["reply"] for texts in server.texts()]
    assert grades(folder)[0] == score({"reply": " "}) and results_of(folder)["judge"]["empty"] == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('{"score": 7}', 7), ("7", 7), (" 10\n", 10), ("10/10", 10), ("7/10", 7), ("**7 / 10**", 7),
        ("7 out of 10.", 7), ('```json\n{"score": 1}\n```', 1), ("Score: 7.", 7), ("I say 7. So: 7", 7),
        ("", None), ("seven", None), ("0", None), ("11", None), ("−7", None), ("7.5", None), ("7/5", None),
        ("70%", None), ("7-8", None), ("7 or 8", None), ("1 0", None), ("07", None), ("7/100", None),
        ("On a scale of 1 to 10: 7", None), ('{"score": 7, "facts": 3}', None), ("1e1", None), ("<7", None),
    ],
)  # fmt: skip
def test_what_is_a_score(text, number):
    assert judge_api.read_score(text) == number


# ---------------------------------------------------------------- what may go wrong
def test_an_answer_without_a_score_is_asked_again(server, tmp_path):
    folder = write(tmp_path / "GA")
    cut_short = (200, {}, completion('{"score": 1', "length"))
    words = ["7 or 8", cut_short]
    server.behave = lambda texts, times: words[times] if times < 2 else said(9)
    run(server, tmp_path / "GA", "--judge_concurrency", 1)
    assert len(server.asked) == 6 and grades(folder) == [9, 9]
    again = server.asked[1][2]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert (again[2]["content"], again[3]["content"]) == ("7 or 8", judge_api.REMINDER)


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "7"}, "slow down"), (503, {"Retry-After": "soon"}, ""), None, "slow",
        (200, {}, "<html>"), (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": [7]}}]}'),
    ],
    ids=["429", "503", "hangs-up", "slow", "html", "no-choice", "parts"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, tmp_path, monkeypatch, trouble):
    folder = write(tmp_path / "GA")
    gate, pauses, sleep = threading.Event(), [], asyncio.sleep

    async def paused(seconds):
        pauses.append(seconds)
        await sleep(0)

    def behave(texts, times):
        if trouble == "slow" and not times:
            gate.wait(60)
        return said(4) if times else trouble

    monkeypatch.setattr(judge_api.asyncio, "sleep", paused)
    server.behave = behave
    run(server, tmp_path / "GA", "--judge_timeout", 2 if trouble == "slow" else 60)
    gate.set()
    assert grades(folder) == [4, 4] and len(server.asked) == 4
    assert trouble is None or trouble[0] != 429 or pauses.count(7) == 2  # as asked, not BACKOFF


def test_a_question_that_never_works_and_many(server, tmp_path, capsys):
    folder = write(tmp_path / "GA")
    bad = lines_of(folder)[1]["reply"]
    server.behave = lambda texts, times: (500, {}, "too\nhard") if texts["reply"] == bad else said(3)
    assert "1 answers have no score" in ends(server, tmp_path / "GA", "--judge_retries", 2)
    assert len(server.asked) == 4 and grades(folder) == [None, 3]
    assert "answers 500: too hard (tries: 3)" in capsys.readouterr().err

    folder = write(tmp_path / "NPO", people=20)
    before = contents(folder)
    server.behave = lambda texts, times: (400, {}, "max_tokens is not supported")  # which is not tried again
    code = ends(server, tmp_path / "NPO")
    assert "--judge_body: 8 questions in a row" in code and "max_tokens is not supported" in code
    assert len(server.asked) < 20 and contents(folder) == before
    server.server_close()  # nobody at the address
    assert "ConnectError" in ends(server, tmp_path / "NPO", "--judge_retries", 1)


@pytest.mark.parametrize(
    ("status", "flag"), [(401, "--judge_key_env"), (404, "--judge_url or --judge_model")]
)
def test_what_cannot_pass_ends_the_run_at_once(server, tmp_path, capfd, monkeypatch, status, flag):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    folder = write(tmp_path / "GA", people=10)
    before = contents(folder)
    server.behave = lambda texts, times: (status, {}, f"Incorrect API key: {KEY}")
    code = ends(server, tmp_path / "GA", "--judge_concurrency", 2)
    assert code.startswith(f"{flag}: 127.0.0.1:{server.server_port} answers {status}")
    assert len(server.asked) <= 2 and contents(folder) == before
    assert KEY not in code + "".join(capfd.readouterr())


def test_an_evaluation_that_was_run_anew_meanwhile_is_left_alone(server, tmp_path):
    folder = write(tmp_path / "GA")
    file = folder / "predictions_forget.jsonl"
    new = answer("forget", "0", "generation", "image", "new", "x")

    def behave(texts, times):
        file.write_text(new.line(), encoding="utf-8")
        return said(1)

    server.behave = behave
    assert "1 answers have no score" in ends(server, tmp_path / "GA")
    assert jsonl(file) == [new.fields()]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OTHER_KEY"])
def test_the_key_is_sent_and_never_shown(server, tmp_path, capfd, monkeypatch, name):
    monkeypatch.setenv(name, f"{KEY}\n")  # as `export X="$(cat file)"` does not, but an .env file may
    write(tmp_path / "GA")
    # a server that repeats it
    server.behave = lambda texts, times: said(7) if times else f"{KEY} gives 7?"
    run(server, tmp_path / "GA", "--judge_key_env", name)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.asked)
    shown = "".join(capfd.readouterr())
    assert f"key from ${name}" in shown and KEY not in shown
    assert not [path for path, data in contents(tmp_path).items() if KEY.encode() in data]


# ---------------------------------------------------------------- stopping and going on
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_ends_in_the_same_files(server, tmp_path, how):
    folder = write(tmp_path / "GA", people=16)
    shutil.copytree(folder, tmp_path / "whole")
    before, cache, gate = contents(folder), tmp_path / "cache.jsonl", threading.Event()

    def behave(texts, times):
        if len(server.asked) > 8:
            gate.wait(100)
        return said(score(texts))

    server.behave = behave
    words = ["--yes", "--judge_cache", cache, "--judge_concurrency", 2]
    script = [sys.executable, str(ROOT / "eval/judge.py"), *command(server, tmp_path / "GA", *words)]
    process = subprocess.Popen(script, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 100
    while (not cache.is_file() or cache.read_bytes().count(b"\n") < 6) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(how)
    try:
        errors = process.communicate(timeout=100)[1]
    finally:
        process.kill()
        gate.set()
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in errors and (how == signal.SIGKILL or "scores so far are in the cache" in errors)
    kept = cache.read_bytes().count(b"\n")
    assert 6 <= kept < 32 and contents(folder) == before

    with cache.open("ab") as file:
        file.write(b'{"key": "12')  # as a kill in the middle of a line leaves it
    server.asked.clear()
    run(server, tmp_path / "GA", "--judge_cache", cache)
    assert len(server.asked) == 32 - kept
    assert len(jsonl(cache)) == 32 and cache.read_bytes().endswith(b"}\n")
    run(server, tmp_path / "whole", "--judge_cache", tmp_path / "fresh.jsonl")
    assert contents(folder) == contents(tmp_path / "whole") != before


def test_one_run_at_a_time_has_the_cache(server, tmp_path):
    write(tmp_path / "GA")
    with (tmp_path / "cache.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "in use" in ends(server, tmp_path / "GA", "--judge_cache", "cache.jsonl")
        run(server, tmp_path / "GA", "--judge_cache", "cache.jsonl", "--dry_run", "True")  # which only reads
    assert not server.asked
    for data in (b"notes", b'{"a": 1}\n', b'{"key": 1}\n{"key'):  # files that are no cache are left alone
        (tmp_path / "mine").write_bytes(data)
        assert "--judge_cache: mine is no file" in ends(server, tmp_path / "GA", "--judge_cache", "mine")
        assert (tmp_path / "mine").read_bytes() == data and not server.asked
    assert ends(server, tmp_path / "GA", "--judge_cache", tmp_path).startswith("--judge_cache: ")


# ---------------------------------------------------------------- before it starts
def test_a_dry_run_asks_and_writes_nothing(server, tmp_path, capsys):
    for name in ("GA", "NPO"):
        write(tmp_path / name, {"0": "a pilot"}, people=2)
    run(server, tmp_path / "GA")
    before, asked = contents(tmp_path), len(server.asked)
    prices = ["--judge_price_in", 0.5, "--judge_price_out", 2]
    capsys.readouterr()
    run(server, tmp_path / "GA", tmp_path / "NPO", "--dry_run", "True", *prices, yes=False)
    out = capsys.readouterr().out
    assert len(server.asked) == asked and contents(tmp_path) == before
    assert "generated answers: 8, 6 different, 4 of them in the cache\n" in out
    tokens = int(out.split("2 requests, about ")[1].split()[0])
    run(server, tmp_path / "NPO")
    letters = [len(m["content"]) for _, _, body in server.asked[asked:] for m in body["messages"]]
    assert tokens == round(sum(letters) / 4)
    assert f"{(tokens * 0.5 + 2 * judge.SCORE_TOKENS * 2) / 1e6:.4f} USD" in out


@pytest.mark.parametrize(("typed", "terminal"), [("y\n", True), ("n\n", True), ("", True), ("y\n", False)])
def test_somebody_has_to_confirm(server, tmp_path, monkeypatch, typed, terminal):
    write(tmp_path / "GA")
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)
    if typed == "y\n" and terminal:
        run(server, tmp_path / "GA", yes=False)
        assert len(server.asked) == 2
    else:
        code = ends(server, tmp_path / "GA", yes=False)
        assert "not started" in code if terminal else code.startswith("--yes: ")
        assert not server.asked and contents(tmp_path) == before


def test_all_mistakes_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BAD_KEY", f"{KEY}\nx")
    file = write(tmp_path / "broken") / "predictions_forget.jsonl"
    file.write_text(file.read_text().replace('"reply": "as', '"answer": "as'))
    (write(tmp_path / "lost") / "predictions_forget.jsonl").unlink()
    before = contents(tmp_path)
    folders = [str(tmp_path / name) for name in ("broken", "lost", "nowhere")]
    args = judge.parse_args(
        [*folders, "--judge_url", "ftp://host/v1", "--judge_key_env", "BAD_KEY", "--judge_concurrency", "0",
         "--judge_price_in", "1", "--judge_body", '{"model": "x"}']
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        judge.main(args)
    errors = capsys.readouterr().err
    for part in (
        "--judge_url: ", "--judge_model is missing", "--judge_key_env: $BAD_KEY", "--judge_concurrency: 0",
        "--judge_price_in and", "--judge_body: ", "no generated answers",
        "broken/zero_shot/forget05/predictions_forget.jsonl, line 3: no prediction",
        "lost/zero_shot/forget05/predictions_forget.jsonl: no such file", "nowhere: no such folder",
    ):  # fmt: skip
        assert errors.count(part) == 1, part
    assert end.value.code == 2 and len(errors.splitlines()) == 10 and KEY not in errors
    assert contents(tmp_path) == before


def test_addresses():
    assert judge.is_address("http://[::1]:8000/v1") and judge.is_address("https://api.openai.com/v1/")
    for wrong in ("localhost:8000/v1", "http:///v1", "https://me:pw@h/v1", "https://h/v1?key=pw", "http://h:x/v1",
                  "http://h/v1/chat/completions", "http://h:70000/v1"):  # fmt: skip
        assert not judge.is_address(wrong), wrong
