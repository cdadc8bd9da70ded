"""A finished model on the Hugging Face hub: --push_to_hub, in the trainings.

Whether it can work is asked before anything loads; it is done when the model has its name here, so that a
network that fails costs nothing but the push.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from utils.run.ending import fail

# what tells of this machine (paths), and evaluations, which are whole tables of questions
KEPT_HERE = ("run.json", "log.jsonl", "zero_shot/*", "few_shot/*", "general/*", ".*")
NOT_WHOLE = 1  # exit code: the model is saved, its copy is missing


def check(args) -> None:
    """Add a problem unless --push_to_hub names a repository and there is a token to write it with."""
    name = args.push_to_hub
    if not name:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        args.problems.add(f"--push_to_hub: {name} is no name of a repository, such as owner/name")
    if constants.HF_HUB_OFFLINE:
        args.problems.add("--push_to_hub: HF_HUB_OFFLINE is set")
    if not get_token():
        args.problems.add("--push_to_hub: no token to write with; set HF_TOKEN, or run: hf auth login")


def push(folder: str | Path, name: str) -> None:
    """Upload a finished model to a repository, which is made, private, where there is none. Raises SystemExit
    with NOT_WHOLE, and the command to do it later, where that fails."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        api = HfApi()
        url = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=str(folder), ignore_patterns=list(KEPT_HERE),
            commit_message=f"Upload {Path(folder).resolve().name}",
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, HTTPError) as why:
        later = ["hf", "upload", name, str(folder), ".", "--private"]
        later += [word for pattern in KEPT_HERE for word in ("--exclude", pattern)]
        first = " ".join(str(why).split())[:200] or type(why).__name__
        fail(f"{folder} is saved, but not pushed ({first}); later: {shlex.join(later)}", NOT_WHOLE)
    print(f"pushed to {url}")
