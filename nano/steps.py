"""The steps of the demo, by its settings: which command makes what, and what it needs first."""

from __future__ import annotations

from pathlib import Path

from nano.settings import RATIO, Demo, evaluation
from nano.warm import Step, step

SETTINGS = Path("nano/settings.py")  # newer than a model: it is trained again
LABELS = {"manifold": "MMUnlearner", "vision_only": "MMUnlearner (vision only)"}
FIRST = ("GA", "manifold")  # of the methods


def steps(demo: Demo) -> list[Step]:
    """In the order of their urgency: first what the first table shows."""
    made, mask = demo.made / "run.json", demo.folder / "mask/run.json"
    vanilla = demo.folder / "vanilla/run.json"
    origin = ("--model_id", demo.original, "--data_split_dir")
    forget = ("--model_id", demo.original, "--vanilla_dir", vanilla.parent)
    forget += ("--data_split_dir", demo.splits, "--forget_ratio", RATIO)
    given = ("--retain_fraction", demo.retain) * (demo.retain != "100")

    def learn(name: str, script: str, *flags: str) -> Step:
        argv = (f"{demo.prefix}_{script}.py", *origin, demo.data, *flags)
        argv += ("--save_dir", demo.folder / name, *demo.learn, *demo.train)
        return step(name, argv, demo.folder / name / "run.json", [made], seconds=200)

    def unlearn(name: str) -> Step:
        of, needs = demo.methods[name], [vanilla, SETTINGS]
        argv = (f"{demo.prefix}_{of.script}.py", *forget, "--save_dir", demo.folder / name, *demo.forget)
        argv += ("--lr", of.lr, *demo.train, *given * of.has_retain_steps)
        if of.part:
            needs.append(mask)
            argv += ("--grad_mask_path", mask.parent / f"{demo.prefix.lower()}_{of.part}_mask.pt")
            argv += ("--mask_retain", "True") * of.inside
        return step(LABELS.get(name, name), argv, demo.folder / name / "run.json", needs, seconds=10)

    def evaluate(name: str) -> Step:
        argv = (f"eval/{demo.prefix}_eval.py", "--evaluated_model", demo.folder / name)
        argv += ("--original_model", demo.original, "--data_split_dir", demo.data, "--forget_ratio", RATIO)
        return step(f"questions to {LABELS.get(name, name)}", (*argv, "--mcq", "likelihood"),
                    results(demo, name), [demo.folder / name / "run.json"], seconds=12)  # fmt: skip

    gen_mask = (f"data_process/{demo.prefix}_gen_mask.py", *forget, "--save_dir", mask.parent)
    gen_mask += ("--batch_size", "4", *given)
    first = [name for name in FIRST if name in demo.methods]
    others = [name for name in demo.methods if name not in FIRST]
    return [
        step("benchmark", ("nano/make_nano.py", "--save_dir", demo.made, *demo.make), made, seconds=10),
        learn("vanilla", "finetune"),
        learn("retrained", "reference", "--keep_text", "True", "--forget_ratio", RATIO),
        step("mask", gen_mask, mask, [vanilla], seconds=15),
        *map(unlearn, first),
        *map(evaluate, ("vanilla", *first, "retrained")),
        *map(unlearn, others),
        *map(evaluate, others),
    ]


def results(demo: Demo, name: str) -> Path:
    return evaluation(demo.folder / name) / "results.json"
