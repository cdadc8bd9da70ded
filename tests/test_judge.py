"""The judge, against a server of our own on this machine. Run: python -m pytest tests/test_judge.py"""

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

from eval import judge
from eval.metrics import generation_scores
from eval.results import judge_api
from eval.results.predictions import Prediction
from eval.results.summary import summarise

KEY = "sk-secret-0123456789"


# ---------------------------------------------------------------- a judge that does as it is told
class Server(ThreadingHTTPServer):
    """Chat completions. `behave(texts, times)`, texts being the question, correct_answer and reply asked
    about and times how often they came before, gives the judge's words, or (status, headers, body), or None
    to hang up. `asked`: (path, headers, body, time) of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.behave, self.key = [], lambda texts, times: said(score(texts)), None
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """Clients that were killed are no news."""

    def texts(self):
        return [json.loads(body["messages"][1]["content"]) for _, _, body, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet: two would wait for each other (Nagle)

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = json.loads(body["messages"][1]["content"])
        with server.lock:
            times = server.texts().count(texts)
            server.asked.append((self.path, dict(self.headers), body, time.monotonic()))
        answer = server.behave(texts, times)
        if answer is None:
            self.close_connection = True
            return
        status, headers, text = (200, {}, completion(answer)) if isinstance(answer, str) else answer
        data = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def completion(text, end="stop"):
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "model": "judge-2024",
            "choices": [{"index": 0, "message": message, "finish_reason": end}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 6},
        }
    )


def score(texts):
    return zlib.crc32(texts["reply"].encode()) % 10 + 1


def said(number):
    return json.dumps({"score": number})


@pytest.fixture
def server(monkeypatch):
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
def line(split, person, task, modality, reply, truth):
    found = {
        "id": f"{split}/{person}/{task}/{modality}", "person": person, "split": split, "task": task,
        "modality": modality, "question": f"Où travaille {person} ?\u2028", "options": None,
        "prompt": "<image>\n...", "reply": reply, "choice": None, "truth": truth, "picture": None,
    }  # fmt: skip
    if task == "generation":
        return found | {"scores": generation_scores(reply, truth)}
    return found | {"choice": reply, "correct": reply == truth}


def write(model, replies=None, people=3, splits=("forget", "test"), shot="zero_shot"):
    """<model>/zero_shot/forget05: one choice and two generated answers per person and split."""
    folder = model / shot / "forget05"
    folder.mkdir(parents=True)
    lines = []
    for split in splits:
        for person in (f"{k:03d}" for k in range(people)):
            reply = (replies or {}).get((split, person), f"{model.name} says {split} {person} is a baker")
            lines.append(line(split, person, "classification", "image", "A", "B"))
            for modality in ("image", "text"):
                text = reply if modality == "image" else f"as text: {reply}"
                lines.append(line(split, person, "generation", modality, text, f"{person} is a pilot"))
    for split in splits:
        rows = [json.dumps(each, ensure_ascii=False) + "\n" for each in lines if each["split"] == split]
        (folder / f"predictions_{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    results = {
        "benchmark": "MLLMU-Bench", "model": str(model), "method": model.name, "forget_ratio": 5,
        "shot": shot, "seed": 42, "mcq": "letter", "cost": [{"seconds": 1.0}],
        "splits": summarise(Prediction(**each) for each in lines),
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


def argv(server, *words, yes=True):
    flags = ["--judge_url", server.url, "--judge_model", "judge", *(["--yes"] if yes else [])]
    return [str(word) for word in (*words, *flags)]


def run(server, *words, yes=True):
    judge.main(judge.parse_args(argv(server, *words, yes=yes)))


def ends(server, *words, yes=True):
    """The exit code or the message that the run ends with."""
    with pytest.raises(SystemExit) as end:
        run(server, *words, yes=yes)
    return end.value.code


# ---------------------------------------------------------------- scores
def test_scores_means_and_what_was_asked(server, tmp_path, capsys):
    folder = write(tmp_path / "GA")
    before = {split: (folder / f"predictions_{split}.jsonl").read_bytes() for split in ("forget", "test")}
    old = results_of(folder)
    run(server, tmp_path / "GA")

    every = []
    for split in ("forget", "test"):
        raw = (folder / f"predictions_{split}.jsonl").read_bytes()
        for found, then in zip(raw.split(b"\n"), before[split].split(b"\n"), strict=True):
            if not then or json.loads(then)["task"] != "generation":
                assert found == then
                continue
            judged, line = json.loads(found), json.loads(then)
            assert judged["scores"].pop("factuality") == score(line)
            assert json.dumps(judged, ensure_ascii=False).encode() == then  # nothing else, nor its order
            every.append(line)

    new = results_of(folder)
    for split in ("forget", "test"):
        for modality in ("image", "text"):
            scores = [score(e) for e in every if (e["split"], e["modality"]) == (split, modality)]
            entry = new["splits"][split]["generation"][modality]
            assert (entry.pop("factuality"), entry.pop("judged")) == (round(sum(scores) / 3, 2), 3)
    about = new.pop("judge")
    assert new == old  # all other numbers stand as they were
    assert about == {
        "model": "judge", "served": ["judge-2024"], "url": server.url.split("/")[2],
        "prompt": about["prompt"], "body": {"temperature": 0, "seed": 42, "max_tokens": 32}, "answers": 12,
        "judged": 12, "failures": 0, "empty": 0, "requests": 12, "prompt_tokens": 1200,
        "completion_tokens": 72,
    }  # fmt: skip

    assert len(server.asked) == 12
    for path, headers, body, _ in server.asked:
        assert path == "/v1/chat/completions" and "Authorization" not in headers
        assert body.keys() == {"model", "messages", "temperature", "seed", "max_tokens"}
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    wanted = [{"question": e["question"], "correct_answer": e["truth"], "reply": e["reply"]} for e in every]
    assert sorted(server.texts(), key=str) == sorted(wanted, key=str)
    assert "factuality forget image" in capsys.readouterr().out


def test_a_second_run_asks_nothing_and_changes_nothing(server, tmp_path):
    write(tmp_path / "GA")
    run(server, tmp_path / "GA")
    before = contents(tmp_path)
    run(server, tmp_path / "GA", yes=False)  # nothing to pay for, nothing to confirm
    assert len(server.asked) == 12 and contents(tmp_path) == before


def test_the_same_answer_in_two_results_is_asked_about_once(server, tmp_path):
    same = {("forget", "000"): "a pilot", ("forget", "001"): "a pilot"}  # other truths: not the same answer
    for name in ("GA", "NPO"):
        write(tmp_path / name, same, people=2, splits=("forget",))
    (tmp_path / "one").mkdir()
    shared = tmp_path / "one" / "new" / "cache.jsonl"
    run(server, tmp_path / "GA", tmp_path / "NPO", "--judge_cache", shared)
    assert len(server.asked) == 4 and len(jsonl(shared)) == 4  # two people, as picture and as text
    first = contents(tmp_path / "GA")

    server.asked.clear()
    run(server, tmp_path / "GA", tmp_path / "NPO")  # a cache in each model folder
    assert len(server.asked) == 4 and contents(tmp_path / "GA").items() > first.items()
    for name in ("GA", "NPO"):  # each of them whole by itself
        run(server, tmp_path / name)
        assert len(jsonl(tmp_path / name / "judge_cache.jsonl")) == len(server.asked) == 4

    write(tmp_path / "KL", same, people=2, splits=("forget",))
    run(server, tmp_path / "KL", tmp_path / "GA")  # what one cache knows goes into the other
    run(server, tmp_path / "KL")
    assert len(server.asked) == 4


def test_what_makes_an_answer_the_same():
    def key(url="http://a/v1", model="m", body="{}", **fields):
        words = ["GA", "--judge_url", url, "--judge_model", model, "--judge_body", body]
        asked = Prediction(**line("forget", "1", "generation", "text", "r", "t") | {"question": "q"} | fields)
        return judge_api.Judge.of(judge.parse_args(words)).key(asked)

    assert key() == key(url="https://b:1/v1") == key(split="test")
    words = ["GA", "--judge_url", "http://a/v1", "--judge_model", "m"]
    assert judge_api.Judge.of(judge.parse_args(words)).prompt == "1732ccfbb259", "scores of other words"
    other = [key(model="n"), key(body='{"seed": 1}'), key(question="x"), key(truth="x"), key(reply="x")]
    assert len({key(), *other}) == 6


def test_another_judge_replaces_all_scores(server, tmp_path, capsys):
    folder = write(tmp_path / "GA", people=2, splits=("forget",))
    run(server, tmp_path / "GA")
    prompt = results_of(folder)["judge"]["prompt"]
    lost = lines_of(folder)[1]["reply"]
    server.asked.clear()
    server.behave = lambda texts, times: "no idea" if texts["reply"] == lost else said(10)
    assert "1 answers have no score" in ends(server, tmp_path / "GA", "--judge_body", '{"seed": 1}')
    assert [line["scores"].get("factuality") for line in lines_of(folder) if "scores" in line] == [
        None,  # and not what the other judge gave it
        10, 10, 10,
    ]  # fmt: skip
    about = results_of(folder)["judge"]
    assert about["prompt"] != prompt and (about["judged"], about["failures"]) == (3, 1)
    assert results_of(folder)["splits"]["forget"]["generation"]["image"]["judged"] == 1
    assert (
        "no score: forget/000/generation/image: no score from 1 to 10 in 'no idea'" in capsys.readouterr().err
    )

    server.asked.clear()  # the same command asks only about the one
    server.behave = lambda texts, times: said(2)
    run(server, tmp_path / "GA", "--judge_body", '{"seed": 1}')
    assert [texts["reply"] for texts in server.texts()] == [lost]
    assert lines_of(folder)[1]["scores"]["factuality"] == 2
    assert results_of(folder)["judge"]["requests"] == 4 + judge_api.ASKS  # what the failure took counts


def test_an_empty_reply_is_asked_about(server, tmp_path):
    folder = write(tmp_path / "GA", {("forget", "000"): " "}, people=1, splits=("forget",))
    run(server, tmp_path / "GA")
    assert " " in [texts["reply"] for texts in server.texts()]
    assert lines_of(folder)[1]["scores"]["factuality"] == score({"reply": " "})
    assert results_of(folder)["judge"]["empty"] == 1


def test_request_fields(server, tmp_path):
    write(tmp_path / "GA", people=1, splits=("forget",))
    fields = {"max_tokens": None, "temperature": None, "max_completion_tokens": 500}
    run(server, tmp_path / "GA", "--judge_body", json.dumps(fields))
    assert server.asked[0][2].keys() == {"model", "messages", "seed", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('{"score": 7}', 7), ("7", 7), (" 10\n", 10), ("10/10", 10), ("7/10", 7), ("**7 / 10**", 7),
        ("7 out of 10.", 7), ('```json\n{"score": 1}\n```', 1), ("Score: 7.", 7), ("I say 7. So: 7", 7),
        ("", None), ("seven", None), ("0", None), ("11", None), ("-7", None), ("−7", None), ("7.5", None),
        ("7,5", None), (".7", None), ("7.5/10", None), ("7/5", None), ("70%", None), ("7-8", None),
        ("7 or 8", None), ("1 0", None), ("07", None), ("100", None), ("7/100", None), ("11/10", None),
        ("On a scale of 1 to 10: 7", None), ('{"score": 7, "facts": 3}', None), ("1e1", None), ("<7", None),
        ("７", None), ('{"score": true}', None),
    ],
)  # fmt: skip
def test_what_is_a_score(text, number):
    assert judge_api.read_score(text) == number


# ---------------------------------------------------------------- what may go wrong
def test_an_answer_without_a_score_is_asked_again(server, tmp_path):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))
    words = ["7 or 8", "11"]
    server.behave = lambda texts, times: words[times] if times < 2 else said(9)
    run(server, tmp_path / "GA", "--judge_concurrency", 1)
    assert len(server.asked) == 6
    again = server.asked[2][2]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert (again[2]["content"], again[3]["content"]) == ("11", judge_api.REMINDER)
    assert {line["scores"]["factuality"] for line in lines_of(folder) if "scores" in line} == {9}


def test_a_score_that_was_cut_short_is_none(server, tmp_path):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))
    server.behave = lambda texts, times: said(10) if times else (200, {}, completion('{"score": 1', "length"))
    run(server, tmp_path / "GA")
    assert {line["scores"]["factuality"] for line in lines_of(folder) if "scores" in line} == {10}


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "0.3"}, '{"error": {"message": "slow down"}}'),
        (500, {}, "oh"),
        (503, {"Retry-After": "soon"}, ""),
        (200, {}, "<html>no JSON</html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": ["7"]}}]}'),
        None,
        "slow",
    ],
    ids=["429", "500", "503", "html", "no-choice", "parts", "hangs-up", "slow"],
)
def test_what_may_pass_is_tried_again(server, tmp_path, trouble):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))

    def behave(texts, times):
        if times:
            return said(4)
        if trouble == "slow":
            time.sleep(1)
        return trouble

    server.behave = behave
    run(server, tmp_path / "GA", "--judge_timeout", 0.5 if trouble == "slow" else 20)
    assert {line["scores"]["factuality"] for line in lines_of(folder) if "scores" in line} == {4}
    assert len(server.asked) == 4 and results_of(folder)["judge"]["requests"] == 2  # 2 brought an answer
    if trouble and trouble[0] == 429:
        for reply in {texts["reply"] for texts in server.texts()}:
            first, second = (when for (*_, when), texts in zip(server.asked, server.texts(), strict=True)
                             if texts["reply"] == reply)  # fmt: skip
            assert second - first >= 0.3  # as asked, not BACKOFF


def test_a_question_that_never_works_stays_unjudged(server, tmp_path, capsys):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))
    bad = lines_of(folder)[1]["reply"]
    server.behave = lambda texts, times: (500, {}, "too\nhard") if texts["reply"] == bad else said(3)
    assert "1 answers have no score" in ends(server, tmp_path / "GA", "--judge_retries", 2)
    assert server.texts().count({**server.texts()[0], "reply": bad}) == 3
    scores = [line["scores"].get("factuality") for line in lines_of(folder) if "scores" in line]
    assert scores == [None, 3]
    assert "answers 500: too hard (tries: 3)" in capsys.readouterr().err
    assert jsonl(tmp_path / "GA" / "judge_cache.jsonl")[0]["score"] == 3


def test_a_refused_request_is_not_repeated(server, tmp_path):
    write(tmp_path / "GA", people=1, splits=("forget",))
    server.behave = lambda texts, times: (400, {}, "max_tokens is not supported")
    assert "2 answers have no score" in ends(server, tmp_path / "GA")
    assert len(server.asked) == 2


def test_many_failures_in_a_row_end_the_run(server, tmp_path):
    folder = write(tmp_path / "GA", people=10)
    before = contents(folder)
    server.behave = lambda texts, times: (400, {}, "max_tokens is not supported")
    code = ends(server, tmp_path / "GA")
    assert "--judge_body: 8 questions in a row" in code and "max_tokens is not supported" in code
    assert len(server.asked) < 20 and contents(folder) == before


@pytest.mark.parametrize(
    ("status", "flag"), [(401, "--judge_key_env"), (402, "--judge_key_env"), (403, "--judge_key_env"),
                         (404, "--judge_url or --judge_model"), (429, "--judge_key_env")],
)  # fmt: skip
def test_what_cannot_pass_ends_the_run_at_once(server, tmp_path, capfd, monkeypatch, status, flag):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    folder = write(tmp_path / "GA", people=10)
    before = contents(folder)
    body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": "insufficient_quota"}})
    server.behave = lambda texts, times: (status, {}, body)
    code = ends(server, tmp_path / "GA", "--judge_concurrency", 2)
    assert code.startswith(f"error: {flag}: 127.0.0.1:{server.server_port} answers {status}")
    assert len(server.asked) <= 2 and contents(folder) == before
    assert KEY not in code + "".join(capfd.readouterr())


def test_a_long_pause_ends_the_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_api, "LONGEST_PAUSE", 0.5)
    write(tmp_path / "GA", people=1, splits=("forget",))
    server.behave = lambda texts, times: (429, {"Retry-After": "1"}, "daily limit")
    code = ends(server, tmp_path / "GA")
    assert "asks for a pause of 1 s" in code and "daily limit" in code and len(server.asked) <= 2


def test_an_evaluation_that_was_run_anew_meanwhile_is_left_alone(server, tmp_path):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))
    file = folder / "predictions_forget.jsonl"

    def behave(texts, times):
        file.write_text("new\n")
        return said(1)

    server.behave = behave
    assert "changed while its answers were judged" in ends(server, tmp_path / "GA")
    assert file.read_text() == "new\n"


# ---------------------------------------------------------------- the key
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OTHER_KEY"])
def test_the_key_is_sent_and_never_shown(server, tmp_path, capfd, monkeypatch, name):
    monkeypatch.setenv(name, f"{KEY}\n")  # as `export X="$(cat file)"` does not, but an .env file may
    write(tmp_path / "GA", people=1, splits=("forget",))
    server.behave = lambda texts, times: (
        f"{KEY} gives 7?" if not times else said(7)
    )  # a server that repeats it
    run(server, tmp_path / "GA", *(["--judge_key_env", name] if name == "OTHER_KEY" else []))
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _, _ in server.asked)
    shown = "".join(capfd.readouterr())
    assert f"key from ${name}" in shown and KEY not in shown
    assert not [path for path, data in contents(tmp_path).items() if KEY.encode() in data]


# ---------------------------------------------------------------- stopping and going on
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_ends_in_the_same_files(server, tmp_path, how):
    folder = write(tmp_path / "GA", people=8)
    shutil.copytree(folder, tmp_path / "whole")
    before = contents(folder)
    cache = tmp_path / "GA" / "judge_cache.jsonl"

    gate = threading.Event()

    def behave(texts, times):
        if len(server.asked) > 8:
            gate.wait(20)
        return said(score(texts))

    server.behave = behave
    command = [sys.executable, str(ROOT / "eval/judge.py"), *argv(server, tmp_path / "GA")]
    process = subprocess.Popen(
        [*command, "--judge_concurrency", "2"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    until = time.monotonic() + 20
    while (not cache.is_file() or cache.read_bytes().count(b"\n") < 6) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(how)
    try:
        errors = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        gate.set()
    assert process.returncode == (-how if how == signal.SIGKILL else 1)
    assert "Traceback" not in errors and (how == signal.SIGKILL or "scores so far are in the cache" in errors)
    kept = cache.read_bytes().count(b"\n")
    assert 6 <= kept < 32 and contents(folder) == before

    with cache.open("ab") as file:
        file.write(b'{"key": "12')  # as a kill in the middle of a line leaves it
    server.asked.clear()
    run(server, tmp_path / "GA")
    assert len(server.asked) == 32 - kept
    assert len(jsonl(cache)) == 32 and cache.read_bytes().endswith(b"}\n")
    run(server, tmp_path / "whole", "--judge_cache", tmp_path / "fresh.jsonl")
    assert contents(folder) == contents(tmp_path / "whole") != before


def test_one_run_at_a_time_has_the_cache(server, tmp_path, capsys):
    folder = write(tmp_path / "GA", people=1, splits=("forget",))
    before = contents(folder)
    with (tmp_path / "GA" / "judge_cache.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert ends(server, tmp_path / "GA") == 2
        assert "error: --judge_cache: " in (said := capsys.readouterr().err) and "in use" in said
        run(server, tmp_path / "GA", "--dry_run", "True")  # which only reads
    assert not server.asked and contents(folder) == before
    run(server, tmp_path / "GA")
    assert len(server.asked) == 2


@pytest.mark.parametrize("data", [b"notes", b'{"a": 1}\n', b'{"key": 1}\n{"key', b'[1]\n{"key": "x"\n'])
def test_a_file_that_is_no_cache_is_left_alone(server, tmp_path, capsys, data):
    write(tmp_path / "GA", people=1, splits=("forget",))
    (tmp_path / "mine").write_bytes(data)
    assert ends(server, tmp_path / "GA", "--judge_cache", tmp_path / "mine") == 2
    assert "error: --judge_cache: " in capsys.readouterr().err
    assert (tmp_path / "mine").read_bytes() == data and not server.asked


# ---------------------------------------------------------------- before it starts
def test_a_dry_run_asks_and_writes_nothing(server, tmp_path, capsys):
    for name in ("GA", "NPO"):
        write(tmp_path / name, {("forget", "000"): "a pilot"}, people=2, splits=("forget",))
    run(server, tmp_path / "GA")
    before, asked = contents(tmp_path), len(server.asked)
    capsys.readouterr()
    prices = ["--judge_price_in", 0.5, "--judge_price_out", 2]
    run(server, tmp_path / "GA", tmp_path / "NPO", "--dry_run", "True", *prices, yes=False)
    said = capsys.readouterr().out
    assert len(server.asked) == asked and contents(tmp_path) == before
    assert "8 in 2 result(s), 6 different, 4 of them in the cache, 2 to ask about" in said
    tokens = int(said.split("2 requests, ")[1].split()[0])
    run(server, tmp_path / "NPO", "--judge_cache", tmp_path / "GA" / "judge_cache.jsonl")
    letters = [len(m["content"]) for _, _, body, _ in server.asked[asked:] for m in body["messages"]]
    assert tokens == round(sum(letters) / 4)
    assert f"{(tokens * 0.5 + 2 * judge.SCORE_TOKENS * 2) / 1e6:.4f} USD" in said


def test_nobody_there_to_confirm(server, tmp_path, capsys, monkeypatch):
    write(tmp_path / "GA", people=1, splits=("forget",))
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # a pipe is nobody
    assert ends(server, tmp_path / "GA", yes=False) == 2
    assert "error: --yes: nobody is there to confirm 2 requests" in capsys.readouterr().err
    assert not server.asked and contents(tmp_path) == before


@pytest.mark.parametrize(("typed", "asked"), [("y\n", 2), ("n\n", 0), ("\n", 0), ("", 0)])
def test_a_question_on_the_terminal(server, tmp_path, monkeypatch, typed, asked):
    write(tmp_path / "GA", people=1, splits=("forget",))
    before = contents(tmp_path)
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    if asked:
        run(server, tmp_path / "GA", yes=False)
    else:
        assert "not started" in ends(server, tmp_path / "GA", yes=False)
        assert contents(tmp_path) == before
    assert len(server.asked) == asked


def test_all_mistakes_at_once(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BAD_KEY", f"{KEY}\nx")
    for name in ("none", "broken", "lost"):
        write(tmp_path / name, people=1, splits=("forget",))
    file = tmp_path / "none" / "zero_shot" / "forget05" / "predictions_forget.jsonl"
    file.write_text(file.read_text().replace('"generation"', '"cloze"'))
    file = tmp_path / "broken" / "zero_shot" / "forget05" / "predictions_forget.jsonl"
    file.write_text(file.read_text().replace('"reply": "as', '"answer": "as') + '{"id":')
    (tmp_path / "lost" / "zero_shot" / "forget05" / "predictions_forget.jsonl").unlink()
    before = contents(tmp_path)
    folders = [str(tmp_path / name) for name in ("none", "broken", "lost", "nowhere")]
    args = judge.parse_args(
        [*folders, "--judge_url", "ftp://host/v1", "--judge_key_env", "BAD_KEY", "--judge_concurrency", "0",
         "--judge_cache", str(tmp_path), "--judge_price_in", "1", "--judge_body", '{"model": "x"}']
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        judge.main(args)
    errors = capsys.readouterr().err
    for part in (
        "--judge_url: ftp://host/v1", "--judge_model is missing", "--judge_key_env: $BAD_KEY",
        "--judge_concurrency: 0", f"--judge_cache: {tmp_path} is a folder", "--judge_price_in and",
        "--judge_body: model cannot be set", "none/zero_shot/forget05: no generated answers",
        "broken/zero_shot/forget05/predictions_forget.jsonl, line 3: no prediction",
        "lost/zero_shot/forget05/predictions_forget.jsonl: no such file", "nowhere: no such folder",
    ):  # fmt: skip
        assert errors.count(f"{part}") == 1, part
    assert end.value.code == 2 and len(errors.splitlines()) == 11 and KEY not in errors
    assert contents(tmp_path) == before and not server.asked


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:8000/v1", "http"), ("http:///v1", "host"), ("http://h:99999/v1", "port"),
        ("http://h:x/v1", "no address"),
        ("https://me:pw@h/v1", "--judge_key_env"), ("https://h/v1?key=pw", "--judge_key_env"),
        ("http://h/v1/chat/completions", "leave out"),
    ],
)  # fmt: skip
def test_addresses(tmp_path, capsys, url, why):
    write(tmp_path / "GA", people=1, splits=("forget",))
    with pytest.raises(SystemExit) as end:
        judge.main(judge.parse_args([str(tmp_path / "GA"), "--judge_url", url, "--judge_model", "m"]))
    errors = capsys.readouterr().err
    assert end.value.code == 2 and len(errors.splitlines()) == 1 and "pw" not in errors
    assert errors.startswith("error: --judge_url: ") and why in errors
