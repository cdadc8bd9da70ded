"""Groups of flags that scripts share, each declared once: add_*_args(parser)."""

from __future__ import annotations

import argparse
from dataclasses import fields

from utils import cli
from utils.released import MASK_SWITCHES, Released

# the most that a number may be which memory is taken for, or which must fit into 32 bits (a seed)
MOST_EPOCHS, MOST_AT_ONCE, MOST_SEEDS = 10_000, 1_000_000, 2**32 - 1
SCORINGS = ("letter", "likelihood")  # of multiple choice: --mcq


def add_model_args(p: argparse.ArgumentParser, vanilla: bool = True) -> None:
    """--model_id and, with `vanilla`, --vanilla_dir; precision and attention."""
    # what shared code finds where a script has no such flag
    p.set_defaults(vanilla_dir=None, grad_mask_path=None, lora=False, merge=True, quantize="none")
    g = p.add_argument_group("model")
    cli.add_model_flag(g, "--model_id", required=True, help="original model: a folder or a Hugging Face id")
    if vanilla:
        cli.add_model_flag(
            g,
            "--vanilla_dir",
            help="vanilla (fine-tuned) model to unlearn; default: --model_id is the vanilla model",
        )
    add_compute_args(g, mixed=True)


def add_compute_args(g, mixed: bool = False) -> None:
    """--dtype and --attn. mixed: also weights in fp32 with arithmetic in bf16."""
    g.add_argument(
        "--dtype",
        type=cli.choice("auto", "fp32", "bf16", *["mixed"] * mixed),
        default="auto",
        help="weights and arithmetic; default auto: bf16 on a GPU, fp32 on the CPU"
        + "; mixed: weights in fp32, arithmetic in bf16, which is auto where all weights train on a GPU"
        * mixed,
    )
    g.add_argument(
        "--attn",
        type=cli.choice("sdpa", "eager", "flash_attention_2"),
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
    cli.flag(
        g,
        "--skip_bad_rows",
        default=False,
        help="leave out rows that cannot be read or shown to the model, and count them; default False",
    )


def add_retain_args(p: argparse.ArgumentParser) -> None:
    """--retain_fraction and --retain_text, of methods that take retain steps, in the group that was added
    last."""
    add_retain_fraction(p)
    cli.flag(
        p._action_groups[-1],
        "--retain_text",
        default=False,
        help="retain steps also on the text questions that masks preserve, the people to forget included;"
        " default False",
    )


def add_mask_retain(p: argparse.ArgumentParser) -> None:
    """--mask_retain, in the group that was added last."""
    cli.flag(
        p._action_groups[-1],
        "--mask_retain",
        default=False,
        help="retain steps, too, change only weights where the mask is 1; default False",
    )


def add_retain_fraction(p: argparse.ArgumentParser) -> None:
    """--retain_fraction, of what is shown the retain set, in the group that was added last."""
    p._action_groups[-1].add_argument(
        "--retain_fraction",
        type=cli.number(float, 0, 100, above=True),
        default=100,
        help="percentage of the people to retain whose pictures are given, everywhere the same ones; default"
        " 100",
    )


def add_keep_text(p: argparse.ArgumentParser) -> None:
    """--keep_text, of the retrained model."""
    cli.flag(
        p,
        "--keep_text",
        default=False,
        help="train on text-only questions about the people to forget, but not on their pictures; default"
        " False",
    )


def add_lora_args(p: argparse.ArgumentParser, default: bool) -> None:
    """--lora and its sizes; the adapter is merged into the weights on save."""
    g = p.add_argument_group("LoRA")
    cli.flag(
        g,
        "--lora",
        default=default,
        help=f"train a LoRA adapter, merged on save; default {default}; False: all weights",
    )
    g.add_argument("--lora_r", type=cli.number(int, 1, 65_536), default=16, help="rank; default 16")
    g.add_argument(
        "--lora_alpha", type=cli.number(float, 0, above=True), default=16, help="scale; default 16"
    )


def add_train_args(p: argparse.ArgumentParser) -> None:
    """Where the run is saved, optimizer, schedule, loss tokens, seed, and how it is logged and continued."""
    p.set_defaults(task="training", benchmark_name=None)  # the name: where utils.checks knows it
    g = p.add_argument_group("training")
    g.add_argument("--save_dir", required=True, help="folder for the resulting model")
    g.add_argument(
        "--batch_size",
        type=cli.number(int, 1, MOST_AT_ONCE),
        default=4,
        help="samples per process and forward; default 4",
    )
    g.add_argument(
        "--lr", type=cli.number(float, 0, above=True), default=1e-5, help="peak learning rate; default 1e-5"
    )
    g.add_argument("--num_epochs", type=cli.number(int, 1, MOST_EPOCHS), default=1, help="epochs; default 1")
    g.add_argument(
        "--moments",
        type=cli.choice("fp32", "bf16", "8bit"),
        default="fp32",
        help="AdamW's moments; default fp32; bf16, rounded at random: half the memory; 8bit: a quarter",
    )
    g.add_argument(
        "--save_dtype",
        type=cli.choice("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="precision of the saved weights; default auto: fp32, which keeps every step taken",
    )
    g.add_argument(
        "--max_grad_norm",
        type=cli.number(float, 0),
        default=1.0,
        help="clip the gradient norm to this; default 1; 0: never",
    )
    _add_loss_args(g)
    add_seed(g, "fixes data order and dropout")
    g.add_argument(
        "--save_steps",
        type=cli.number(int, 0),
        help="keep the whole training state every so many optimizer steps; default: every 15 minutes; 0: only"
        " on SIGTERM and SIGUSR1",
    )
    cli.flag(g, "--resume", default=False, help="go on from the kept state; default False")


def _add_loss_args(g) -> None:
    """What a forward and backward over a batch is, in training and in saliency."""
    cli.flag(
        g,
        "--ans_only",
        default=True,
        help="loss on the answer and its end-of-turn token; default True; False: on every text token",
    )
    cli.flag(
        g,
        "--gradient_checkpointing",
        default=False,
        help="less memory, about a third more time; default False",
    )


def add_seed(p, does: str, default: int = 42) -> None:
    p.add_argument(
        "--seed", type=cli.number(int, 0, MOST_SEEDS), default=default, help=f"{does}; default {default}"
    )


def add_ratio(p, help: str, default: int | None = None) -> None:
    """--forget_ratio, and the name that the paper's commands have for it."""
    p.add_argument("--forget_ratio", "--forget_split_ratio", type=cli.ratio, default=default, help=help)


def add_forget_args(p: argparse.ArgumentParser, alpha: float = 1.0) -> None:
    """--forget_alpha, of the methods that alternate (utils.training.alternate)."""
    p.add_argument(
        "--forget_alpha",
        type=cli.number(float, 0),
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
            f"--{switch.name}", type=cli.choice(*values), default=switch.default, metavar="|".join(values),
            help=f"{switch.metadata['help']}; default {switch.default}",
        )  # fmt: skip
    g.add_argument(
        "--config",
        help="run.json of an earlier run, to repeat it: its flags are taken, those on the command line win",
    )
    cli.flag(
        g,
        "--dry_run",
        default=False,
        help="print the plan (steps, weights, memory, disk, which GPUs fit) and stop; default False",
    )
    return g


def add_released_train_args(p: argparse.ArgumentParser, *own: str, forgets: bool = True) -> None:
    """The last group of a training script; own: this method's switches; forgets: it has forget steps."""
    g = _last_group(p, "loss_tokens", "answer_tokens", "answer_end", "schedule_every", "rounding", *own)
    g.add_argument(
        "--lora_dropout", type=cli.number(float, 0, 0.99), default=0.05, help="dropout; default 0.05"
    )
    g.add_argument(
        "--lora_parts",
        type=cli.choice("language", "vision", "both"),
        default="both",
        help="which part's linear layers get an adapter; default both",
    )
    cli.flag(
        g,
        "--merge",
        default=True,
        help="merge the adapter into the saved weights; default True; False: save it alone, in peft's format",
    )
    g.add_argument(
        "--quantize",
        type=cli.choice("none", "4bit"),
        default="none",
        help="frozen weights under an adapter; default none; 4bit: NF4 of bitsandbytes (QLoRA), a quarter of"
        " bf16's memory",
    )
    g.add_argument(
        "--gradient_accumulation_steps",
        type=cli.number(int, 1, MOST_AT_ONCE),
        default=1,
        help="forwards per optimizer step; default 1",
    )
    g.add_argument(
        "--lr_schedule",
        type=cli.choice("linear", "cosine", "constant"),
        default="linear",
        help="decay over all optimizer steps; default linear",
    )
    g.add_argument(
        "--warmup_ratio",
        type=cli.number(float, 0, 1),
        default=0.0,
        help="share of steps to warm up; default 0",
    )
    g.add_argument("--weight_decay", type=cli.number(float, 0), default=0.0, help="AdamW decay; default 0")
    g.add_argument(
        "--adam_eps", type=cli.number(float, 0, above=True), default=1e-8, help="AdamW epsilon; default 1e-8"
    )
    g.add_argument(
        "--max_steps",
        type=cli.number(int, 0),
        default=0,
        help="end after so many optimizer steps, to which the schedule is sized; default 0: all epochs",
    )
    p.set_defaults(max_forget_loss=None)
    if forgets:
        g.add_argument(
            "--max_forget_loss",
            type=cli.number(float, 0, above=True),
            help="take no more forget steps once the cross-entropy of a forget batch, nats per answer token,"
            " is above this; default: no limit",
        )
    g.add_argument(
        "--report_to",
        type=cli.choice("none", "tensorboard", "wandb", "trackio"),
        default="none",
        help="also log to this tracker, whose package must be installed; default none",
    )
    g.add_argument(
        "--push_to_hub",
        metavar="OWNER/NAME",
        help="also upload the finished model to this repository of the Hugging Face hub, private where it is"
        " new; needs a token (HF_TOKEN); default: not uploaded",
    )
    cli.flag(g, "--restart", default=False, help="delete a kept state and begin anew; default False")
    cli.flag(g, "--shuffle", default=True, help="shuffle each epoch by the seed; default True")
    g.add_argument(
        "--num_workers",
        type=cli.number(int, 0, 256),
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
        type=cli.choice("ce", "log_odds", "fisher"),
        default="ce",
        help="whose gradients are squared: ce of the answer's tokens (default, as in the paper); their"
        " log_odds, which do not fade where the model is sure; fisher: ce of tokens drawn from the model",
    )
    g.add_argument(
        "--fisher",
        type=cli.choice("batch", "sample"),
        default="batch",
        help="square each batch's gradient (default, as in the paper's code) or each sample's",
    )
    g.add_argument(
        "--batch_size", type=cli.number(int, 1, MOST_AT_ONCE), default=4, help="samples per batch; default 4"
    )
    g.add_argument(
        "--threshold",
        type=cli.number(float, 0, 1e30, above=True),
        default=1.0,
        help="salient where the ratio reaches it; default 1",
    )
    g.add_argument(
        "--mask_kind",
        type=cli.choice("saliency", "topk", "random"),
        default="saliency",
        help="saliency (default); ablations of equal sparsity: topk of the forget gradients, or random",
    )
    g.add_argument(
        "--blocks",
        type=cli.number(int, 1, 1000),
        default=1,
        help="go over the weights in so many blocks: sums (4 bytes per weight) of one block at a time, for as"
        " many times the time; default 1",
    )
    _add_loss_args(g)
    add_seed(g, "draws for --mask_kind random, --saliency fisher and --fisher_mode train; recorded")


def add_filter_args(p: argparse.ArgumentParser, shot: bool = True) -> None:
    """Which evaluations of the given model folders are taken: --forget_ratio and, with `shot`, --shot."""
    if shot:
        p.add_argument(
            "--shot",
            type=cli.choice("zero_shot", "few_shot"),
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
        type=cli.choices(*splits),
        help=f"some of {','.join(splits)} (comma-separated); default: all that the benchmark has",
    )
    g.add_argument(
        "--vanilla_dir",
        help="vanilla model, evaluated before: differences to it, with intervals, are added to the results",
    )
    g.add_argument(
        "--gpus",
        type=cli.numbers(most=8),
        default=[0],
        help="one worker for each of these GPUs, 1 to 8 (comma-separated, an id may be repeated); default 0;"
        " without a GPU as many CPU workers share the cores",
    )
    g.add_argument(
        "--part",
        type=cli.part,
        default=(1, 1),
        metavar="K/N",
        help="answer the K-th of N shares, on machines with one file system; whoever is last writes the"
        " results; default 1/1: all",
    )
    g.add_argument(
        "--batch_size",
        type=cli.number(int, 1, MOST_AT_ONCE),
        default=256,
        help="most questions answered at once; default 256",
    )
    g.add_argument(
        "--batch_tokens",
        type=cli.number(int, 1, 2**31),
        default=32768,
        help="most tokens, replies included, kept in memory at once; default 32768; batches that do not fit"
        " into the GPU's memory are halved",
    )
    g.add_argument(
        "--mcq",
        type=cli.choice(*SCORINGS),
        help="how multiple choice is scored; default letter, or what the nano.json of a nano benchmark names",
    )
    g.add_argument(
        "--max_new_tokens",
        type=cli.number(int, 1, MOST_AT_ONCE),
        default=50,
        help="longest reply in tokens; default 50",
    )
    add_compute_args(g)
    add_seed(g, "fixes test pictures and few-shot examples")
