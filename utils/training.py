"""The run around a method: set-up, batches, the stepping loop, and the finished checkpoint.

    trainer = Trainer(args, data)                                        # seed, model, optimizer
    trainer.fit(alternate(Phase("forget", ...), Phase("retain", ...)))   # the order of the steps of one epoch
    trainer.save()

A phase is a data set with its loss and, perhaps, a mask. The loss returns one term per token or per sample
(utils/losses.py); each optimizer step follows the mean over all its terms, so that the same global batch
gives the same step however it is cut into accumulated forwards and processes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils import checkpoint, cli, families, models
from utils.adapters import lora
from utils.data import Sample
from utils.loop import card, engines, hub, state, tracking
from utils.loop.batches import Stream, loader
from utils.losses import token_nll
from utils.reading import weightless
from utils.run import folders
from utils.run.ending import DIVERGED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from utils.collate import Batch
    from utils.masks import Mask

    Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]

FORGET = "forget"  # the phase that --max_forget_loss halts


@dataclass
class Phase:
    """One kind of step: which samples, which loss, which weights may move (all without a mask), and whether
    --max_grad_norm holds."""

    name: str
    samples: list[Sample]
    loss: Loss
    mask: Mask | None = None
    clip: bool = True


# ---------------------------------------------------------------- the order of steps
@dataclass
class Order:
    """The phases of a run and, given how many batches each has, the sequence of steps of one epoch."""

    phases: tuple[Phase, ...]
    epoch: Callable[[dict[str, int]], Iterator[Phase]]


def once(phase: Phase) -> Order:
    """One epoch: every batch of one data set."""
    return Order((phase,), lambda batches: (phase for _ in range(batches[phase.name])))


def alternate(forget: Phase, retain: Phase, args) -> Order:
    """One epoch: once over the retain data, a forget step before every k-th retain step; the forget data
    cycle. With --forget_alpha 0 there are no forget steps.

    k = max(1, retain batches // forget batches), so that an epoch passes about once over both.
    """
    if not args.forget_alpha:
        return once(retain)

    def epoch(batches: dict[str, int]) -> Iterator[Phase]:
        every = max(1, batches[retain.name] // batches[forget.name])
        most = batches[forget.name] if args.released.forget_data == "once" else math.inf
        for i in range(batches[retain.name]):
            if i % every == 0 and i // every < most:
                yield forget
            yield retain

    return Order((forget, retain), epoch)


# ---------------------------------------------------------------- the trainer
WITH_WARMUP = {"constant": "constant_with_warmup"}  # the other has none, whatever is asked for


class Trainer:
    """Loads the vanilla model, steps it, and saves it. `data` are all samples of the run, for its
    manifest."""

    def __init__(self, args, data: dict[str, list[Sample]]):
        import torch
        from accelerate.utils import set_seed

        from utils.loop.optimizer import AdamW
        from utils.loop.update import UpdateSample

        self.args, self.started = args, time.monotonic()
        self.dtype = dtype = models.training_dtype(args)
        self.accelerator = engines.accelerator()
        set_seed(args.seed)
        self.vanilla = args.vanilla_dir or args.model_id
        self.processor = args.processor
        model = models.load_model(self.vanilla, dtype, args.attn, self.processor, args.quantize)
        if not args.lora and dtype == "bf16" and models.stored_dtype(self.vanilla) in ("float32", "float16"):
            self.say(
                f"note: the vanilla model's weights are rounded to {dtype} on loading, also outside a mask;"
                " --dtype mixed or fp32 does not"
            )
        self.family = families.family_of(model)
        weights = dict(model.named_parameters())
        self.update = UpdateSample({} if args.lora else weights)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model = self._adapt(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = AdamW(
            trained, compensated=args.released.rounding == "compensated",
            moments=models.pick_dtype(args.moments),
            lr=args.lr, weight_decay=args.weight_decay, eps=args.adam_eps,
        )  # fmt: skip
        # in 16 bits a file would lose what compensation has kept
        name = "bf16" if dtype == "bf16" and not self.optimizer.compensated else "fp32"
        name = name if args.save_dtype == "auto" else args.save_dtype
        self.save_dtype = models.pick_dtype(name)
        kept = models.stored_dtype(self.vanilla)
        if args.merge and name == "fp32" and kept in ("float16", "bfloat16"):
            self.say(
                f"saved in float32, twice the size of the vanilla model's files in {kept}; --save_dtype"
                f" {'fp16' if kept == 'float16' else 'bf16'} halves it, and rounds"
            )
        self.model, self.optimizer = engines.prepare(self.accelerator, model.train(), self.optimizer)
        self.accelerator.register_for_checkpointing(self.update)
        if args.lora:
            lora.keep_adapters_alone(self.accelerator)
        self.parameters = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        self.partial = folders.partial_folder(args.save_dir)
        self.manifest = checkpoint.manifest(args, data, self.accelerator) | {"vanilla": self.vanilla}
        about = {name: self.manifest[name] for name in ("arguments", "processes", "data")}
        about["inputs"] = state.inputs(args)
        self.state = state.State(args, self.accelerator, about)
        trained_weights = sum(p.numel() for p in trained)
        bits = lambda dtype: str(dtype).removeprefix("torch.")
        arithmetic = torch.bfloat16 if dtype == "mixed" else model.dtype
        self.say(
            f"model: {self.vanilla} ({self.family.title}), training {trained_weights:,} weights in"
            f" {bits(trained[0].dtype)}, arithmetic in {bits(arithmetic)}"
        )

    def _adapt(self, model: PreTrainedModel):
        """The model with the adapter of --lora, or with two under a mask."""
        if not self.args.lora:
            return model
        targets = families.lora_targets(model, self.args.lora_parts)
        return lora.add_lora(model, targets, self.args, self.args.mask)

    def say(self, line: str) -> None:
        self.accelerator.print(line)

    def load_mask(self) -> Mask | None:
        """The mask of --grad_mask_path, which utils.checks has read, on the device; None without that flag.
        Its coverage is printed."""
        mask = self.args.mask
        if mask is None:
            return None
        salient, named = mask.count()
        if self.args.lora:
            reached = mask.only(lora.adapted_layers(self.accelerator.unwrap_model(self.model))).count()[0]
            self.say(
                f"mask: the forget adapter reaches {reached:,} of {salient:,} salient weights"
                f" ({100 * reached / salient:.1f} %): those of linear layers that get an adapter"
            )
            return mask
        total = sum(p.numel() for p in self.parameters.values())
        self.say(f"mask: forget steps may change {salient:,} of {named:,} weights named, {total:,} in all")
        if mask.rules.unlisted == "train":
            self.say(f"as released: also the {total - named:,} weights that the mask does not name")
        return mask.shard(self.parameters).to(self.accelerator.device)

    @contextmanager
    def vanilla_model(self) -> Iterator[torch.nn.Module]:
        """The model in eval mode as it was loaded: without its adapter, or before the first step."""
        from utils.loop.shards import reshard

        model = self.accelerator.unwrap_model(self.model)
        with model.disable_adapter() if self.args.lora else nullcontext():
            yield model.eval()
            reshard(model)
        model.train()

    # ------------------------------------------------------------ the loop
    def fit(self, order: Order) -> None:
        """Step through `num_epochs` times the order. Raises SystemExit: DIVERGED when a loss is not finite,
        state.STOPPED when the run was told to stop and has kept its state."""
        with ExitStack() as held:
            held.enter_context(self.state.alone())
            self._steps(order)
            self.held = held.pop_all()  # until the model has its name

    def _steps(self, order: Order) -> None:
        from tqdm import tqdm
        from transformers import get_scheduler

        from utils.collate import Collator

        args, acc = self.args, self.accelerator
        global_batch = args.batch_size * acc.num_processes * args.gradient_accumulation_steps
        streams = {
            p.name: Stream(p.samples, global_batch, f"{args.seed}/{p.name}", args.shuffle)
            for p in order.phases
        }
        batches = {name: stream.batches_per_pass for name, stream in streams.items()}
        plan = [phase for _ in range(args.num_epochs) for phase in order.epoch(batches)]
        per_epoch = len(plan) // args.num_epochs
        plan = plan[: args.max_steps or None]
        schedule = get_scheduler(
            WITH_WARMUP.get(args.lr_schedule, args.lr_schedule),
            self.optimizer.optimizer,
            round(args.warmup_ratio * len(plan)),
            len(plan),
        )
        self.losses: dict[str, float] = {}
        self.halted: dict[str, float] | None = None  # since when there are no more forget steps, and why
        done = 0
        if progress := self.state.begin():
            schedule.load_state_dict(progress["schedule"])
            done, self.losses, self.halted = (progress[name] for name in ("step", "losses", "halted"))
        self.state.check_room(self.parameters.values(), self.save_dtype)
        drawn = {p.name: sum(q is p for q in plan[:done]) for p in order.phases}
        collate = Collator.of(args, self.processor, self.family)
        loaders = {
            p.name: loader(args, acc, streams[p.name].starting_at(drawn[p.name]), collate)
            for p in order.phases
        }
        self.say("steps: " + ", ".join(f"{sum(q is p for q in plan)} {p.name}" for p in order.phases))
        bar = tqdm(
            total=len(plan), initial=done, disable=not acc.is_main_process, unit="step", mininterval=1.0
        )
        tracked = tracking.tracker(args, acc, self.partial)
        with (self.partial / "log.jsonl").open("a", encoding="utf-8") as log, tracked as track, bar:
            for number, phase in enumerate(plan[done:], start=done + 1):
                if not (self.halted and phase.name == FORGET):
                    record = {"step": number, "phase": phase.name, "lr": schedule.get_last_lr()[0]}
                    record |= self._step(phase, next(loaders[phase.name]), number)
                    if args.lora and args.mask is not None:
                        lora.choose(self.parameters, forget=None)
                    self.losses[phase.name] = record["loss"]
                    record["seconds"] = round(time.monotonic() - self.started, 3)
                    if acc.is_main_process:
                        log.write(json.dumps(record) + "\n")
                        log.flush()
                    track(record)
                if args.released.schedule_every == "step" or number % per_epoch == 0:
                    schedule.step()
                bar.update()
                bar.set_postfix({name: f"{loss:.3g}" for name, loss in self.losses.items()}, refresh=False)
                if number < len(plan) and self.state.wanted(number):
                    content = {"schedule": schedule.state_dict(), "losses": self.losses}
                    self.state.keep(number, content | {"halted": self.halted})
        self.manifest |= {"steps": len(plan)} | ({"halted": self.halted} if self.halted else {})

    def _step(self, phase: Phase, forwards: list[tuple[Batch, bool]], number: int) -> dict[str, float]:
        """One optimizer step on one global batch; returns its loss and gradient norm."""
        import torch

        from utils.loop.shards import local
        from utils.masks import mask_gradients

        acc, mask = self.accelerator, phase.mask
        if self.args.lora and self.args.mask is not None:
            lora.choose(self.parameters, forget=mask is not None)
            mask = None  # it is in the forget adapter's forward
        total, count = torch.zeros((), device=acc.device), 0
        nll: list[torch.Tensor] = []
        for k, (batch, counts) in enumerate(forwards):
            last = k == len(forwards) - 1
            batch = batch.to(acc.device)
            # what is cut is summed at once: kept back, each process would hold a gradient of all weights
            with nullcontext() if last or acc.is_fsdp2 else acc.no_sync(self.model):
                with models.autocast(self.dtype):
                    terms = phase.loss(self.model, batch)  # (N,)
                value = terms.sum() * (1.0 if counts else 0.0)
                acc.backward(value)
            total, count = total + value.detach(), count + (terms.numel() if counts else 0)
            if self.args.max_forget_loss and phase.name == FORGET:
                found = self._nll(batch)
                nll += [found] if counts else []
        total, count = acc.reduce(
            torch.stack([total.double(), total.new_tensor(count).double()]), "sum"
        ).tolist()
        if not math.isfinite(total) or count == 0:
            self._diverged(phase, forwards, number, total)
        record = {"loss": total / count, "terms": int(count)}
        if self.args.max_forget_loss and phase.name == FORGET:
            record["ce"] = self._cross_entropy(nll)
            if record["ce"] > self.args.max_forget_loss:
                return record | self._halt(number, record["ce"])
        # DDP has averaged the gradients of sums over the processes; what the step follows is the mean over
        # all terms
        scale = acc.num_processes / count
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        clip_first = mask is not None and mask.rules.clip == "before_mask"
        if mask is not None and not clip_first:
            mask_gradients(self.parameters, mask)
        limit = (self.args.max_grad_norm if phase.clip else 0) or float("inf")
        norm = float(acc.clip_grad_norm_(self.parameters.values(), limit))
        if not math.isfinite(norm):
            self._diverged(phase, forwards, number, norm)
        if clip_first:
            mask_gradients(self.parameters, mask)
        if not self.args.lora:
            self.update.note_gradients(self.parameters)
        if mask is not None and mask.rules.masked_weights == "keep":
            bits = mask.bits
            self.optimizer.optimizer.step({p: bits[n] for n, p in self.parameters.items() if n in bits})
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return record | {"grad_norm": norm}

    def _nll(self, batch: Batch) -> torch.Tensor:
        """−log p of every labelled token, as the loss has found it, or asked again of a loss that is not made
        of utils.losses."""
        import torch

        if batch.nll is None:
            with torch.no_grad(), models.autocast(self.dtype):
                token_nll(self.model, batch)
        return batch.nll

    def _cross_entropy(self, nll: list[torch.Tensor]) -> float:
        """CE of a global batch: the mean over the labelled tokens of all its forwards and processes."""
        import torch

        tokens = torch.cat(nll).double() if nll else torch.zeros(0, device=self.accelerator.device).double()
        total = torch.stack([tokens.sum(), tokens.new_tensor(len(tokens))])
        total, count = self.accelerator.reduce(total, "sum").tolist()
        return total / count

    def _halt(self, number: int, ce: float) -> dict[str, bool]:
        """From this forget step on, which is not taken, there are none."""
        self.optimizer.zero_grad(set_to_none=True)
        self.halted = {"step": number, "ce": ce}
        self.say(
            f"\nno more forget steps from step {number} on: CE(forget) is {ce:.3g}, above --max_forget_loss"
            f" {self.args.max_forget_loss:g}"
        )
        return {"taken": False}

    def _diverged(self, phase: Phase, forwards, number: int, value: float) -> None:
        ids = [i for batch, _ in forwards for i in batch.ids]
        print(
            f"error: step {number}: the {phase.name} loss or gradient is {value}; batch: {', '.join(ids)}",
            file=sys.stderr,
        )
        print(state.kept(self.args.save_dir) or f"{state.NOTHING}; a lower --lr may help", file=sys.stderr)
        raise SystemExit(DIVERGED)

    # ------------------------------------------------------------ the result
    def save(self) -> None:
        """Write model, processor and run.json, and give the folder its final name; what moved is printed."""
        with self.held:
            self._save()
        self.say(f"saved {self.args.save_dir}")
        if self.args.push_to_hub and self.accelerator.is_main_process:
            hub.push(self.args.save_dir, self.args.push_to_hub)

    def _save(self) -> None:
        from utils.loop.shards import whole_weights

        acc = self.accelerator
        model, state = acc.unwrap_model(self.model), self.optimizer.optimizer.state
        self.update.join()
        weights = None
        if acc.is_fsdp2:  # what each process holds of a weight is a part; an adapter's base is read anew
            parts = {n: p for n, p in self.parameters.items() if p.requires_grad or not self.args.lora}
            weights = whole_weights(parts, state, keep=acc.is_main_process)
        if acc.is_main_process:
            if weights is not None:
                model = self._assembled(model, weights)
            elif not self.args.lora:
                model = self._exact(model, state)
            whole = self._merged(model) if self.args.lora else model
            self._report(dict(whole.named_parameters()))
            self._check_finite(whole.to(self.save_dtype) if self.args.merge else model)
            if self.args.merge:
                whole.save_pretrained(self.partial)
            else:
                lora.save_adapter(model, self.vanilla, self.partial, self.save_dtype)
            self.processor.save_pretrained(self.partial)
            if time.monotonic() - self.started > tracking.LONG:
                records = [json.loads(line) for line in (self.partial / "log.jsonl").open(encoding="utf-8")]
                tracking.draw_losses(records, self.partial / tracking.PICTURE)
            self.manifest |= {"final_losses": self.losses, **checkpoint.cost(self.started)}
            if self.args.benchmark_name:
                card.write(self.partial, self.args, self.manifest, self.family.title)
            checkpoint.write_json(self.partial / "run.json", self.manifest)
            folders.publish(self.partial, self.args.save_dir)
        acc.wait_for_everyone()

    def _check_finite(self, model) -> None:
        """Raises SystemExit, DIVERGED, for weights that the last step has taken out of their type's range."""
        if wrong := models.not_finite(model):
            cli.fail(
                f"NaN or infinity in {len(wrong)} of the trained model's tensors, first in {wrong[0]};"
                f" {state.NOTHING}; a lower --lr may help",
                DIVERGED,
            )

    def _exact(self, model, state):
        """The model on the CPU in fp32, with what compensation holds."""
        import torch

        model.to("cpu", torch.float32)
        for p, kept in state.items():
            if "compensation" in kept:
                p.data += kept["compensation"].to(p.data)
        return model

    def _assembled(self, model, weights: dict[str, torch.Tensor]):
        """A model that is not cut, of the same configuration, with these weights; on the meta device what no
        file holds: an adapter's base, and buffers that are computed."""
        fresh = self._adapt(weightless.hollow(model))
        saved = fresh.state_dict().keys() - dict(fresh.named_parameters()).keys()
        weights |= {n: b.cpu() for n, b in model.named_buffers() if n in saved}
        fresh.load_state_dict(weights, assign=True, strict=False)
        fresh.tie_weights()
        return fresh

    def _merged(self, adapted) -> PreTrainedModel:
        """The vanilla model, read anew in fp32 (for training it may have been rounded or quantized), with the
        adapter merged."""
        from utils.loop.update import UpdateSample

        model = models.load_model(self.vanilla, "fp32", self.args.attn)
        weights = dict(model.named_parameters())
        changing = {name: weights[name] for name in lora.adapted_layers(adapted)}
        self.update = UpdateSample(changing, whole=True)
        lora.merge(adapted, model)
        return model

    def _report(self, exact: dict[str, torch.Tensor]) -> None:
        """Which share of the weights moved, and what a file in 16 bits keeps of that."""
        found = self.manifest["update"] = self.update.report(exact, self.save_dtype)
        self.say(
            f"moved: {100 * found['moved']:.1f} % of the weights that had a gradient"
            f" ({found['weights_seen']:,} looked at)"
        )
        if not self.args.merge and found["saved_as"] != "float32":
            found["kept"] = None  # rounded are A and B, not their product
        if found["kept"] and found["saved_as"] != "float32":
            length, cosine = found["kept"]["length"], found["kept"]["cosine"]
            self.say(
                f"saved in {found['saved_as']}, which keeps {length:.2f} of the update's length (cosine"
                f" {cosine:.2f}); --save_dtype fp32 keeps all of it"
            )
