"""Several processes: which engine spreads a run over them, and what it can carry.

`accelerate launch --config_file configs/...` chooses the engine and tells it by its environment:

    one process; DDP    every process holds the whole model
    FSDP2               every weight is cut over the processes, and its mask, gradient and optimizer state
                        with it (utils/loop/shards.py)
    ZeRO (DeepSpeed)    gradients and optimizer state lie in flat partitions that ignore where a weight begins

docs/engines.md has the table of what is carried. `check` looks at the environment alone, before anything
loads, so this file imports torch inside functions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from utils.run.ending import fail

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from utils.run.ending import Problems


@dataclass(frozen=True)
class Engine:
    """kind: "one", "ddp", "fsdp1", "fsdp2", "zero" or "other". stage: of ZeRO. precision: what the launcher
    was told of mixed precision."""

    kind: str
    stage: int = 0
    precision: str = "no"

    @property
    def title(self) -> str:
        names = {"one": "one process", "ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2"}
        return names.get(self.kind) or (f"DeepSpeed ZeRO-{self.stage}" if self.stage else "Megatron-LM")

    @property
    def sharded(self) -> bool:
        """Whether a process holds only its share of each weight, as a DTensor."""
        return self.kind == "fsdp2"


def said(name: str, default: str = "") -> str:
    return os.environ.get(name, default).lower()


def engine() -> Engine:
    """The engine that `accelerate launch` has chosen, from its environment."""
    precision = said("ACCELERATE_MIXED_PRECISION", "no")
    if said("ACCELERATE_USE_DEEPSPEED") == "true":
        return Engine("zero", int(said("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")), precision)
    if said("ACCELERATE_USE_MEGATRON_LM") == "true":
        return Engine("other", 0, precision)
    if said("ACCELERATE_USE_FSDP") == "true":
        return Engine("fsdp2" if said("FSDP_VERSION", "1") == "2" else "fsdp1", 0, precision)
    return Engine("ddp" if int(said("WORLD_SIZE", "1")) > 1 else "one", 0, precision)


# ---------------------------------------------------------------- what an engine cannot carry
WHY_NOT = {
    "fsdp1": "flattens the weights of a layer into one, which no mask can be over",
    "zero": "keeps gradients and optimizer state in flat partitions, which no mask can be over",
    "other": "is made for models of its own",
}


def check(problems: Problems) -> None:
    """Add a problem for an engine, or a setting of it, that nothing here can train under.

    Every process reads whole models, whatever the launcher says: with its ram-efficient loading all but one
    would hold unset memory, also of models that are never cut.
    """
    run = engine()
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if run.kind in WHY_NOT:
        problems.add(
            f"accelerate launch: {run.title} {WHY_NOT[run.kind]}; use --config_file configs/4gpu_fsdp2.yaml"
        )
    if run.sharded and said("FSDP_OFFLOAD_PARAMS") == "true":
        problems.add(
            "accelerate launch: fsdp_offload_params keeps weights on the CPU, their masks elsewhere; set"
            " it to false (--dtype bf16 --moments 8bit take the least memory)"
        )
    if run.sharded and said("FSDP_ACTIVATION_CHECKPOINTING") == "true":
        problems.add(
            "accelerate launch: fsdp_activation_checkpointing renames weights; set it to false and give"
            " --gradient_checkpointing True"
        )
    if run.precision != "no":
        problems.add(
            f"accelerate launch: mixed_precision {run.precision} changes the precision of weights unseen; set"
            " it to no, and choose with --dtype"
        )


# ---------------------------------------------------------------- the accelerator
# the others wait while the first process writes a state or a model, for which NCCL's 10 minutes are too few
PATIENCE = timedelta(hours=3)


def accelerator() -> Accelerator:
    """The accelerator of this process.

    Raises SystemExit where several processes were started that do not know of each other: each would do all
    of the work and write the same folder.
    """
    import torch
    from accelerate import (
        Accelerator,
        DistributedDataParallelKwargs,
        InitProcessGroupKwargs,
        PartialState,
    )
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # text-only batches leave the vision part without gradients
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    # on Apple's GPUs nothing was tried
    acc = Accelerator(cpu=torch.backends.mps.is_available(), kwargs_handlers=[unused, patience])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != acc.num_processes:
        fail(
            f"{started} processes were started, but they do not work together; on CPUs launch with"
            " ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    if engine().sharded and acc.device.type == "cpu":
        # accelerate shards on GPUs only and would go on with DDP without a word; torch shards on CPUs as well
        acc.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        acc.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return acc


def prepare(acc: Accelerator, model, optimizer: torch.optim.Optimizer):
    """(model, optimizer) as the engine wants them. Under FSDP2 the model's parameters are DTensors
    afterwards, and the optimizer's are those."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if acc.is_fsdp2:
        # a unit is what is gathered at once: the layers of both parts, whatever the family calls them
        layers = {type(m).__name__ for m in model.modules() if isinstance(m, GradientCheckpointingLayer)}
        acc.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
    return acc.prepare(model, optimizer)
