"""Transformers' Seq2SeqTrainer with our batches, our loss, and limits in steps, epochs or minutes."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from spec2seq.errors import Spec2SeqError
from spec2seq.training.batches import BatchStream, Collator, TokenBudgetSampler, TokenizedPairs
from spec2seq.training.checkpoints import mark_whole, prune
from spec2seq.training.clock import Clock
from spec2seq.training.recipe import Recipe

# (model, batch, label smoothing, dtype) → smoothed loss and NLL, sums in nats, and the number of labels
Loss = Callable[[Any, dict[str, torch.Tensor], float, torch.dtype], tuple[torch.Tensor, torch.Tensor, int]]
ENDLESS = 10**9  # steps, where the limit is time or epochs


def arguments(recipe: Recipe, folder: Path) -> Seq2SeqTrainingArguments:
    """The part of the recipe that Transformers' own trainer does; logs, saves and limits are `Watch`'s."""
    config = recipe.training
    return Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=config.max_steps or ENDLESS, learning_rate=config.learning_rate,
        gradient_accumulation_steps=config.gradient_accumulation, weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1, adam_beta2=config.adam_beta2, adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm, seed=config.seed, optim="adamw_torch_fused",
        logging_strategy="no", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), ignore_data_skip=True,
        average_tokens_across_devices=False,
    )  # fmt: skip


def compute_dtype(precision: str) -> torch.dtype:
    """bfloat16 where the recipe asks for it, or for "auto" where the device multiplies in it; else float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if fast else torch.float32


class BudgetTrainer(Seq2SeqTrainer):
    """Trains on `rows` in token-budget batches; `clock` says how far it is and thereby the learning rate."""

    def __init__(self, recipe: Recipe, model: Any, rows: TokenizedPairs, sampler: TokenBudgetSampler, clock: Clock,
                 folder: Path, collate: Collator, loss: Loss):  # fmt: skip
        super().__init__(model=model, args=arguments(recipe, folder), train_dataset=rows)
        self.recipe, self.rows, self.sampler, self.clock = recipe, rows, sampler, clock
        self.dtype = compute_dtype(recipe.training.precision)
        self.model_accepts_loss_kwargs = True  # training_step divides by all labels of the accumulated batches itself
        self.collate, self.loss = collate, loss
        self.nll, self.nll_tokens = 0.0, 0  # of the steps since the last log
        self.step_nll, self.step_labels = torch.zeros((), device=self.args.device), 0  # of this step's batches so far
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        accumulation, count = self.recipe.training.gradient_accumulation, self.accelerator.num_processes
        start = self.clock.batches + self.accelerator.process_index
        stream = BatchStream(self.sampler, start, ENDLESS * accumulation, count)
        return torch.utils.data.DataLoader(self.rows, batch_sampler=stream, collate_fn=self.collate)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.clock.learning_rate_factor)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None):
        model = getattr(model, "module", model)  # what DistributedDataParallel would average, `_sum_up` adds
        with torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, plain, labels = self.loss(model, inputs, self.recipe.training.label_smoothing, self.dtype)
        self.step_nll += plain.detach()
        self.step_labels += labels
        return loss

    def training_step(self, model: Any, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # only now is it known how many labels the loss chose
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            if self.accelerator.num_processes > 1:
                self._sum_up(gradients)
            for gradient in gradients:
                gradient /= self.step_labels
            self.nll += self.step_nll
            self.nll_tokens += self.step_labels
            self.clock.tokens += self.step_labels
            self.clock.batches += self.recipe.training.gradient_accumulation * self.accelerator.num_processes
            self.step_nll, self.step_labels = torch.zeros_like(self.step_nll), 0
        return loss

    def _sum_up(self, gradients: list[torch.Tensor]) -> None:
        """Add gradients and counts up over all processes, and take the first one's clock."""
        seconds = self.clock.own_seconds() if self.accelerator.is_main_process else 0.0
        counts = torch.tensor([self.step_labels, seconds], dtype=torch.float64, device=self.args.device)
        for tensor in (counts, self.step_nll, *gradients):
            torch.distributed.all_reduce(tensor)
        labels, self.clock.agreed = counts.tolist()
        self.step_labels = round(labels)


class Watch(TrainerCallback):
    """Logs, validates, saves and stops by the clock. `report` takes one line of text."""

    def __init__(self, trainer: BudgetTrainer, validate: Callable[[], float | None], report: Callable[[str], None]):
        self.trainer, self.validate, self.report = trainer, validate, report
        self.clock, self.recipe = trainer.clock, trainer.recipe
        self.logged = self.saved = self.validated = self.clock.session_seconds()
        self.logged_tokens, self.score = self.clock.tokens, None
        self.bar = _bar()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        config, now = self.recipe.training, self.clock.session_seconds()
        self.clock.step = state.global_step
        over = self.clock.progress() >= 1
        stop = over or self.clock.session_over()
        save = now - self.saved >= 60 * config.save_minutes or stop
        if now - self.logged >= config.log_seconds or save:
            self._log(now)
        if save:
            self.score = None
            if over or now - self.validated >= 60 * self.recipe.evaluation.every_minutes:
                self.score, self.validated = self.validate(), self.clock.session_seconds()
            control.should_save = True
        control.should_training_stop = control.should_training_stop or stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            mark_whole(folder / f"checkpoint-{state.global_step}", self.clock, self.score)
            prune(folder, self.recipe.training.average)
        self.saved = self.clock.session_seconds()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _log(self, now: float) -> None:
        """Raises Spec2SeqError for a loss that is not finite, so that such weights are not saved."""
        trainer, clock = self.trainer, self.clock
        if self.bar is not None:
            self.bar.clear()
        loss = float(trainer.nll) / max(1, trainer.nll_tokens)
        if not math.isfinite(loss):
            raise Spec2SeqError(
                f"step {clock.step}: the loss is {loss}; checkpoints from before are in {trainer.args.output_dir}; a "
                "lower training.learning_rate may help"
            )
        rate = (clock.tokens - self.logged_tokens) / max(1e-9, now - self.logged)
        self.report(
            f"step {clock.step} epoch {clock.epochs():.3f} tokens {clock.tokens} nll {loss:.4f} "
            f"lr {trainer.lr_scheduler.get_last_lr()[0]:.2e} tokens/s {rate:.0f} "
            f"minutes {clock.elapsed() / 60:.1f} done {100 * min(1.0, clock.progress()):.1f}%"
        )
        trainer.nll, trainer.nll_tokens = 0.0, 0
        self.logged, self.logged_tokens = now, clock.tokens
        if self.bar is not None:
            self.bar.n = round(100 * min(1.0, clock.progress()), 1)
            self.bar.set_postfix(nll=f"{loss:.3f}", refresh=True)


def _bar() -> Any:
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=100, unit="%", desc="training")
