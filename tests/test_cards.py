"""A finished model's card, its copy on the hub (for which a server here stands in), and a repeated run."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import RATIO, edited, run_script, weights
from test_golden import answered
from test_training import equal

from eval.answering import workers
from utils.loop import card, hub
from utils.masks import Mask

GA, MASKS = "MLLMU_GA.py", "data_process/MLLMU_gen_mask.py"


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


# ---------------------------------------------------------------- the card
def test_the_card_of_a_run(train_args, nano, tiny, tmp_path, monkeypatch):
    """What it is, the command, no path of this machine; evaluations add their numbers, each once."""
    run_script("MLLMU_GA_Diff.py", *train_args(retain_fraction=50))
    file = tmp_path / "run" / card.NAME
    text = file.read_text()
    front = front_matter(text)
    assert front["library_name"] == "transformers" and "base_model" not in front
    assert {"nano", "GA_Diff", "MLLMU-Bench", "machine-unlearning"} <= set(front["tags"])
    assert str(tmp_path.parent) not in text and str(nano) not in text and str(tiny["llava"]) not in text
    for told in (
        "# GA_Diff on nano MLLMU-Bench, forget 15 %", "A nano model", "(LLaVA-1.5)", "retain_fraction 50",
        "--model_id path_to_model_id --data_split_dir path_to_benchmark", "| seed | 42 |",
        "the base model", card.NONE_YET,
    ):  # fmt: skip
        assert told in text, told
    monkeypatch.setattr(workers, "answer_batches", answered)
    for shot in ("zero_shot", "few_shot", "zero_shot"):
        run_script(
            "eval/MLLMU_eval.py", "--evaluated_model", tmp_path / "run", "--data_split_dir",
            nano / "MLLMU-Bench", "--forget_ratio", RATIO, "--splits", "forget,real", "--shot", shot,
        )  # fmt: skip
    text = file.read_text()
    assert card.NONE_YET not in text and "## Limits" in text and front_matter(text) == front
    for shot in ("zero-shot", "few-shot"):
        assert text.count(f"### nano MLLMU-Bench, {shot}, forget 15 %") == 1
    results = json.loads((tmp_path / "run/zero_shot/forget15/results.json").read_text())
    vqa = results["splits"]["forget"]["classification"]["image"]
    low, high = vqa["interval"]
    assert f"{vqa['accuracy']:.1f} ({vqa['correct']}/{vqa['total']}) [{low:.1f}, {high:.1f}]" in text


def test_the_card_of_a_model_of_the_hub_and_of_an_adapter(train_args, tmp_path, monkeypatch):
    run_script(GA, *train_args(merge=False))
    front = front_matter((tmp_path / "run" / card.NAME).read_text())
    assert front["library_name"] == "peft"
    monkeypatch.setattr(card, "_public", lambda name: "owner/base")
    run_script(GA, *train_args(save_dir=tmp_path / "other"))
    assert front_matter((tmp_path / "other" / card.NAME).read_text())["base_model"] == "owner/base"


def test_a_card_of_somebody_else_is_left_alone(tmp_path):
    assert not card.add(tmp_path, "evaluation", "x") and not list(tmp_path.iterdir())
    (tmp_path / card.NAME).write_text("mine")
    assert not card.add(tmp_path, "evaluation", "x") and (tmp_path / card.NAME).read_text() == "mine"


# ---------------------------------------------------------------- the hub
HARNESSES = "/api/agent-harnesses"


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of the hub for an upload of plain files. files: {path: bytes} that came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.refuses = {}, [], 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((path, self.headers.get("Authorization"), body))
        if server.refuses:
            self._send({"error": "out of order"}, server.refuses)
        elif path.endswith("/repos/create"):
            self._send({"url": f"{server.url}/me/GA", "name": "me/GA"})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._send(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send({"commitUrl": f"{server.url}/me/GA/commit/1", "commitOid": "1", "success": True})
        else:
            self._send({})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"), b""))
        self._send({"id": "me/GA", "sha": "0", "siblings": []}, self.server.refuses or 200)

    def _send(self, content: dict, code: int = 200):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # what huggingface_hub asks once a day, without a token, and keeps
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"), raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_finished_model_is_pushed(server, train_args, tmp_path, capsys):
    run_script(GA, *train_args(push_to_hub="me/GA"))
    create = next(body for path, _, body in server.asked if path.endswith("/repos/create"))
    made = json.loads(create)
    assert made.get("private") is True or made.get("visibility") == "private"
    assert all(token == "Bearer hf_secret" for path, token, _ in server.asked if path != HARNESSES)
    assert {"config.json", "model.safetensors", "tokenizer.json", card.NAME} <= server.files.keys()
    assert not {"run.json", "log.jsonl"} & server.files.keys(), "they tell of this machine"
    saved = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert server.files["model.safetensors"] == saved
    assert f"pushed to {server.url}/me/GA" in capsys.readouterr().out


def test_a_hub_that_fails_costs_the_push_alone(server, train_args, tmp_path, capsys):
    server.refuses = 403
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(push_to_hub="me/GA"))
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert end.value.code == hub.NOT_WHOLE and (tmp_path / "run" / "run.json").is_file()
    assert line.startswith(f"error: {tmp_path / 'run'} is saved, but not pushed (")
    assert f"later: hf upload me/GA {tmp_path / 'run'} . --private --exclude run.json" in line


@pytest.mark.parametrize("script", [GA, "CLEAR_manifold.py"])
def test_a_push_that_cannot_work_is_told_before(script, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as end:
        run_script(script, "--model_id", "no", "--save_dir", tmp_path / "s", "--push_to_hub", "a/b/c")
    told = [line for line in capsys.readouterr().err.splitlines() if "--push_to_hub" in line]
    assert end.value.code == 2 and len(told) == 3
    assert "a/b/c is no name" in told[0] and "HF_HUB_OFFLINE" in told[1] and "HF_TOKEN" in told[2]


# ---------------------------------------------------------------- a run again
def test_a_repeated_run_is_equal_to_the_bit(train_args, tmp_path, capsys):
    run_script(GA, *train_args(lora_dropout=0.5, num_epochs=2, seed=7, max_grad_norm=0.3))
    file = tmp_path / "run" / "run.json"
    capsys.readouterr()
    run_script(GA, "--config", file, "--save_dir", tmp_path / "again")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "again"))
    said = capsys.readouterr().out
    assert f"note: as {file}, but for --save_dir {tmp_path / 'again'} ({tmp_path / 'run'})\n" in said
    assert "--seed 7" in said and "not those of that run" not in said
    before, after = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("run", "again"))
    after["arguments"] |= {name: before["arguments"][name] for name in ("save_dir", "config")}
    assert after["arguments"] == before["arguments"] and after["final_losses"] == before["final_losses"]
    run_script(GA, "--config", file, "--save_dir", tmp_path / "other", "--seed", 8, "--forget_ratio", 10)
    assert "the forget data are not those of that run" in capsys.readouterr().out


def test_masks_are_repeated_too(masks, tmp_path):
    run_script(MASKS, "--config", masks("llava") / "run.json", "--save_dir", tmp_path / "masks")
    before, after = (
        Mask.load(str(folder / "mllmu_both_mask.pt"), "llava")
        for folder in (masks("llava"), tmp_path / "masks")
    )
    assert after.fingerprint() == before.fingerprint() and after.about == before.about


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.update(script="MLLMU_NPO.py"), "is of a run of MLLMU_NPO.py, not of MLLMU_GA.py"),
        (lambda run: run["arguments"].update(lr="fast"), "--lr: 'fast' is not a number"),
        (lambda run: run["arguments"].update(beta=1), "has --beta, which MLLMU_GA.py does not have"),
        (lambda run: run.update(arguments=[1]), "is no run.json"),
        (lambda run: run["arguments"].update(save_dir=[1]), "--lr"),
    ],
)
def test_a_config_that_cannot_be_taken(change, said, train_args, tmp_path, capsys):
    (tmp_path / "run.json").write_text(
        json.dumps({"script": GA, "arguments": {"lr": 1e-4, "seed": 3}, "data": {}, "versions": {}})
    )
    with edited(tmp_path / "run.json") as run:
        change(run)
    argv = train_args() if said != "--lr" else train_args(lr="x")
    argv = [
        word
        for flag, word in zip(argv[::2], argv[1::2])
        if flag != "--lr" or said == "--lr"
        for word in (flag, word)
    ]
    with pytest.raises(SystemExit) as end:
        run_script(GA, *argv, "--config", tmp_path / "run.json")
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and any(said in line for line in lines), lines


def test_a_config_that_cannot_be_read(train_args, tmp_path, capsys):
    for content in (None, b"", b"{", b"\xff", b"[" * 99_999, b"3"):
        file = tmp_path / "run.json"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SystemExit) as end:
            run_script(GA, *train_args(), "--config", file)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith(f"error: --config: {file} ")


def test_the_config_s_own_folder_is_not_replaced(train_args, tmp_path, capsys):
    run_script(GA, *train_args())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_script(GA, "--config", tmp_path / "run" / "run.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --save_dir: ") and "(--config), which would be lost with it" in line
