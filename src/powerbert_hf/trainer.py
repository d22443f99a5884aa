# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer`, which in soft mode learns the retention weights too: by the penalty, or for a speed-up."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.trainer_pt_utils import LengthGroupedSampler, find_batch_size
from transformers.trainer_utils import has_length, unwrap_peft_model
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .agreement import log_probabilities
from .budget import Budget, learning_rate
from .callbacks import (
    BeforeTraining,
    ClampRetentionWeights,
    EndWithLastStep,
    FiniteGradients,
    HoldBudget,
    RefineMasses,
    TellSamplerEpoch,
    finite_masses,
    goes_on_from,
)
from .card import Facts, card_of, is_own, make_card
from .checkpoint import hub_id
from .processes import lengths_of_all
from .retention import retention_config_from_mass, retention_mass
from .retention_file import RetentionFile
from .stopping import Terminated

logger = logging.get_logger(__name__)

# Where neither a speed-up nor a lambda is asked for.
USUAL_LAMBDA = 1e-3
# Training rows, if a search has seen as many, that tell where word-vectors are worth most when a search has ended.
_REFINED_ROWS = 1024


@dataclass
class PoWERTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what the search of a configuration needs.

    The paper tunes lambda, in 1e-4 to 1e-3, and the retention weights' learning rate, in 1e-4 to 1e-2, per task
    (section 4); IBM's published values are in `powerbert_hf.tasks`.

    Args:
        speedup (`float`, *optional*):
            Predicted speed-up that the search ends at, such as 2. The masses are held to it, see [`Budget`], in place
            of a penalty.
        retention_lambda (`float`, *optional*):
            lambda in `loss + lambda * sum_j j * mass(j)`, in place of `speedup`; 1e-3 if neither is given.
        retention_learning_rate (`float`, *optional*):
            Learning rate of the retention weights. Adam moves a weight by at most this much a step, so the number of
            steps bounds how far a mass can fall; `None` sets 2 divided by the number of steps, with which a weight can
            just fall from 1 to 0 while the rate decays linearly. With `speedup` it is that of the masses' logarithms,
            and `None` sets 0.025 for up to 200 steps, and less by the root of their number for more, see
            [`budget.learning_rate`].
        retraining_learning_rate (`float`, *optional*):
            Learning rate of the third step, see [`steps.retrain`]; `None` takes `learning_rate`.
        distillation (`float`, *optional*):
            Share of the loss, from 0 to 1, that is the distance to the answers of a teacher, and to its rankings, see
            [`PoWERTrainer`].
        ranking_distillation (`bool`, *optional*, defaults to `True`):
            Whether the teacher's rankings are asked for, which takes time and memory: attention has a gradient then.
    """

    speedup: float | None = field(
        default=None,
        metadata={"help": "Predicted speed-up that the search ends at; 2 for a run without another goal."},
    )
    retention_lambda: float | None = field(
        default=None, metadata={"help": "In place of a speed-up: lambda in loss + lambda * sum_j j * mass(j)."}
    )
    retention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the retention weights; follows from the number of steps."}
    )
    retraining_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the re-training; 0.3 times --learning-rate on the command line, but for --paper."
        },
    )
    distillation: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss, in search and re-training, for answering as the fine-tuned model does, and "
            "ranking words as it does; 0.9 on the command line, but for --paper."
        },
    )
    ranking_distillation: bool = field(
        default=True,
        metadata={"help": "Whether --distillation asks for the fine-tuned model's ranking of words, too."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speedup is not None and self.retention_lambda is not None:
            raise ValueError(
                f"The search takes either `speedup` or `retention_lambda`, got {self.speedup} and "
                f"{self.retention_lambda}; leave one out."
            )
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise ValueError(f"`speedup` must be above 1 and finite, got {self.speedup}; 2 is usual.")
        if self.distillation is not None and not 0 <= self.distillation <= 1:
            raise ValueError(f"`distillation` must lie between 0 and 1, got {self.distillation}; 0 leaves it out.")
        if self.retention_lambda is not None and not 0 <= self.retention_lambda < math.inf:
            raise ValueError(
                f"`retention_lambda` must not be negative or infinite, got {self.retention_lambda}; 1e-3 is usual."
            )
        for name, source in (
            ("retention_learning_rate", "the number of steps"),
            ("retraining_learning_rate", "`learning_rate`"),
        ):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ValueError(
                    f"`{name}` must be above 0 and finite, got {rate}; leave it out to have it follow from {source}."
                )


def distillation_loss(answers: Tensor, wanted: Tensor, problem_type: str | None) -> Tensor:
    """How far the answers of a model are from those of its teacher.

    Args:
        answers: (B, C) logits.
        wanted: (B, C) logits, or values for a regression.
        problem_type: as in a model's configuration; `None` is a regression of a single column, else one class.

    Returns:
        A scalar: the mean Kullback-Leibler divergence of the teacher's distribution over classes, or over each of
        several labels, or the mean squared error of a regression. Zero for equal answers.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> distillation_loss(logits, logits + 5, "single_label_classification").abs() < 1e-6
        tensor(True)
    """
    answers, wanted = answers.float(), wanted.float()
    if problem_type == "regression" or (problem_type is None and wanted.shape[-1] == 1):
        return nn.functional.mse_loss(answers, wanted)
    given, aim = (log_probabilities(logits, problem_type).flatten(0, -2) for logits in (answers, wanted))
    return nn.functional.kl_div(given, aim, log_target=True, reduction="batchmean")


def check_not_sharded(trainer: Trainer) -> None:
    """Make sure that each process holds all weights of a model.

    Args:
        trainer: that will train it.

    Raises:
        ValueError: under FSDP or DeepSpeed.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "Retention weights are searched, and the steps of a recipe saved, where each process holds the whole "
            f"model, got {'FSDP' if trainer.is_fsdp_enabled else 'DeepSpeed'}; start `accelerate launch --multi_gpu` "
            "or `torchrun` without it."
        )


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` whose order follows from seed and epoch alone.

    Upstream draws it from torch's global generator, whose state at the epoch's beginning is no longer known where a
    training is resumed in the middle of an epoch: some rows would come twice and others not at all.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, generator=torch.Generator(), **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator.manual_seed(self.seed + epoch)


class PoWERTrainer(Trainer):
    """`Trainer` for any mode. In soft mode it trains the retention weights too, and logs the masses.

    They are trained with the penalty, or held to a budget for `args.speedup` (see [`Budget`]); `max_grad_norm` neither
    counts nor clips their gradients. In any other mode it trains as `Trainer` does, with the teacher's part of the
    loss where there is a teacher. The logs of soft mode hold, besides `loss`: `task_loss` (with the teacher's part),
    `retention_penalty`, without lambda, both averaged since the last log, `retention_mass_1` to `retention_mass_L`,
    and `predicted_speedup`, that of the configuration which these masses stand for, where there are lengths to predict
    it on. They reach TensorBoard, trackio and W&B as any scalar that `Trainer` logs.

    A search for `args.speedup` that has come to its last step ends with [`Budget.refine`], on training rows drawn at
    random (the first ones of a stream) and the weights that it has trained: `refined_from` and `refined_to` in the log
    are the losses before and after. The checkpoint of the last step, and what is logged with it, are from before.

    Args:
        args: for `Trainer`.
        teacher: a classifier whose answers `args.distillation` of the loss asks for; without it that is left out. Of
            one of this package that eliminates nothing the rankings are asked for too, see
            `retention.ranking_divergence`, where the model takes `wanted_significance` and
            `args.ranking_distillation` is not false.
        lengths: real word-vectors of inputs such as those that the model will see, on which `args.speedup` is
            predicted; `None` takes those of `train_dataset`. Of several processes all lengths count.
        kwargs: for `Trainer`.

    Raises:
        ValueError: for other training arguments, for retention weights that are out of reach, frozen, not float32 or
            would be sharded, for a search that would end with an earlier model, or for a speed-up that cannot be
            reached; in training, where any of this has changed since, or the loss is no longer finite.
        Terminated: in training, where a process was told to leave (`accelerator.set_trigger`) while masses were
            refined.
    """

    def __init__(
        self, *args: Any, teacher: PreTrainedModel | None = None, lengths: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, PoWERTrainingArguments):
            raise ValueError(
                f"`args` must be `PoWERTrainingArguments`, got {type(self.args).__name__}; they take what "
                "`TrainingArguments` take."
            )
        self._budget: Budget | None = None
        self._hold: HoldBudget | None = None
        self._refining = False
        self._predicted: Callable[[list[float]], float] | None = None
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        self._since_last_log: dict[str, Tensor] = {}
        self._steps_since_last_log = 0
        self._searches = self._retention_weights is not None
        for callback in (
            BeforeTraining(self._begin),
            FiniteGradients(self.accelerator),
            EndWithLastStep(),
            TellSamplerEpoch(),
        ):
            self.add_callback(callback)
        self._check_search()
        if self._searches or self.teacher is not None:
            # Parts of the loss are found by their names.
            self.model.config.return_dict = True
        if not self._searches:
            return
        check_not_sharded(self)
        if self.args.speedup is None:
            self.add_callback(ClampRetentionWeights())
            if lengths is not None:
                self._predicted = Budget(self.model.config, None, lengths).predicted
        else:
            lengths = lengths_of_all(self._lengths() if lengths is None else lengths)
            self._budget = Budget(self.model.config, self.args.speedup, lengths)
            self._predicted = self._budget.predicted
            self._hold = HoldBudget(self._budget)
            self.add_callback(self._hold)
            # Before those that report to a tracker, and close it or upload the model as the training ends.
            self.callback_handler.callbacks.insert(0, RefineMasses(partial(self._refine, self._budget)))

    def _check_search(self) -> None:
        """Refuse a search that would learn nothing, or something else."""
        weights = self._retention_weights
        if weights is None:
            if any(name.endswith("retention_weights") for name, _ in self.model.named_parameters()):
                raise ValueError(
                    "Retention weights must be where `PoWERTrainer` finds them, got a "
                    f"{type(self.model).__name__} that only holds a model with some; give it a property "
                    "`retention_weights` that returns those of this model, and its `config`."
                )
            return
        if weights.dtype != torch.float32:
            raise ValueError(
                f"Retention weights must be trained in torch.float32, got {weights.dtype}; load the model in float32 "
                "and set `bf16=True` or `fp16=True` for mixed precision, without `bf16_full_eval` or `fp16_full_eval`."
            )
        if not weights.requires_grad:
            raise ValueError(
                "Retention weights must be trained in a search, got frozen ones; set their `requires_grad`, or freeze "
                "and add adapters after it."
            )
        if self.args.load_best_model_at_end:
            raise ValueError(
                "`load_best_model_at_end` must be False in a search, got True: the best model is one that has lost "
                "little yet, and what has been learned since would be gone; leave it out."
            )

    def _begin(self) -> None:
        """What the constructor has settled must hold still; of an earlier training, nothing is left in the logs."""
        self._since_last_log, self._steps_since_last_log = {}, 0
        self._check_search()
        weights, budget = self._retention_weights, self._budget
        if (weights is not None) != self._searches:
            raise ValueError(
                "A `PoWERTrainer` trains the model that it was built with, in the mode that this had, got another "
                "mode; build a new one."
            )
        if weights is None:
            return
        asked, length = self.args.speedup, weights.shape[1]
        if (asked is None) != (budget is None) or (budget and (budget.speedup, budget.length) != (asked, length)):
            raise ValueError(
                "A search goes on as its `PoWERTrainer` was built, got another `speedup` "
                f"({asked}), or `retention_length` ({length}); build one for each, also for each trial."
            )

    @property
    def retention_config(self) -> list[int] | list[float]:
        """The configuration that the learned masses stand for; with a speed-up the one that has it.

        Raises:
            ValueError: for a model without retention weights, or for masses that are not finite.
        """
        weights = self._retention_weights
        if weights is None:
            raise ValueError('A configuration is learned in soft mode; load the model with `retention_mode="soft"`.')
        masses = finite_masses(weights)
        if self._budget is not None:
            return self._budget.reach(masses)
        if self.model.config.retention_soft_extract != "published":
            # Encoder L hands on [CLS] alone, whatever was learned there: only the paper's configurations show it.
            masses[-1] = 1.0
        return retention_config_from_mass(masses, self.model.config.retention_unit, weights.shape[1])

    def _lengths(self) -> list[int]:
        columns = getattr(self.train_dataset, "column_names", None) or ()
        # A stream may have no end.
        if "input_ids" not in columns or not has_length(self.train_dataset):
            raise ValueError(
                "A search for a `speedup` needs the `lengths` of inputs to predict it on, got None and a "
                "`train_dataset` without a column `input_ids`, or without a length; pass them to `PoWERTrainer`."
            )
        if "attention_mask" in columns:
            # Rows may have been padded already.
            return [int(sum(mask)) for mask in self.train_dataset["attention_mask"]]
        return [len(ids) for ids in self.train_dataset["input_ids"]]

    @property
    def _lambda(self) -> float:
        if self.args.speedup is not None:
            return 0.0
        return USUAL_LAMBDA if self.args.retention_lambda is None else self.args.retention_lambda

    @property
    def _retention_weights(self) -> nn.Parameter | None:
        return getattr(self.model, "retention_weights", None)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self._refining and has_length(rows):
            # Grouped by length, the longest would come first.
            return RandomSampler(rows)
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthGroupedSampler(sampler.batch_size, lengths=sampler.lengths, seed=seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Upstream's optimizer, with the retention weights in a group of their own, without weight decay."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        # A wrapped model may hold another tensor than `self.model`, so the parameter is found by its name.
        named = (self.model if model is None else model).named_parameters()
        weights = [parameter for name, parameter in named if name.endswith("retention_weights")]
        # What an earlier training has left is wrapped.
        inner = getattr(optimizer, "optimizer", optimizer)
        if weights and callable(getattr(inner, "train", None)):
            raise ValueError(
                f"Retention weights are set anew after each step, got {type(inner).__name__}, which keeps another "
                "copy of the weights; take another `optim`."
            )
        if created and weights:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if all(p is not w for w in weights)]
            rate = self.args.retention_learning_rate or self.args.learning_rate
            optimizer.add_param_group({"params": weights, "lr": rate, "weight_decay": 0.0, "retention": True})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Upstream's schedule; by default the retention weights' learning rate follows from the number of steps."""
        if self.lr_scheduler is None and self.args.retention_learning_rate is None:
            for group in (optimizer or self.optimizer).param_groups:
                # An optimizer of the user's own has no such group and keeps its rates.
                if group.get("retention"):
                    group["lr"] = 2.0 / max(1, num_training_steps)
                    if self._budget is not None:
                        group["lr"] = learning_rate(num_training_steps)
                    # That of an earlier training would be taken.
                    group["initial_lr"] = group["lr"]
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Upstream's, but not of an adapter alone, with which a search would begin anew."""
        folder = Path(resume_from_checkpoint)
        whole = any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
        if self._searches and not whole:
            raise ValueError(
                f"A search goes on from a checkpoint that holds its retention weights, got {folder} without; search "
                "without adapters, or in one go."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Upstream's, in a search for a speed-up with masses near those that are held, see [`HoldBudget`]."""
        with self._hold.moved(self.state) if self._hold and self.is_in_train else nullcontext():
            return super().training_step(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Upstream's, of the model's own weights.

        A word-vector that is hidden nearly wholly, but would be attended to a lot, has a gradient thousands of times
        as large as they have: with it in the norm, they would hardly learn. An optimizer that normalises gradients
        needs none of it clipped.
        """
        weights = self._retention_weights
        if weights is None or weights.grad is None:
            return super()._clip_grad_norm(model)
        gradient, weights.grad = weights.grad, None
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is not None:
            # Upstream's has taken the loss's scale off the others.
            gradient = (gradient / self.accelerator.scaler.get_scale()).nan_to_num(0.0, 0.0, 0.0)
        weights.grad = gradient
        return norm

    def _refine(self, budget: Budget) -> None:
        model, config = self.model, self.model.config
        batches = self._batches_to_refine_on()
        least = int(self.accelerator.gather(torch.tensor([len(batches)], device=self.args.device)).min())
        if least == 0:
            logger.warning("The masses are left as they were learned: no training rows are left to refine them on")
            return
        # As many in every process, since losses are summed over all of them.
        batches = batches[:least]
        wanted = [self._ask_teacher(inputs)[0] for inputs in batches]
        items = [self._get_num_items_in_batch([inputs], self.args.device) for inputs in batches]
        # The last batch may have a single row, which is not to count as much as all of another.
        rows = torch.tensor([float(find_batch_size(inputs)) for inputs in batches], device=self.args.device)
        shares = rows / rows.sum()
        silent = self.args.disable_tqdm or not self.is_local_process_zero()
        progress = tqdm(total=budget.trials, desc="refine", disable=silent, leave=False)

        def loss(entries: Sequence[float]) -> float:
            if self.accelerator.check_trigger():
                raise Terminated(f"told to leave while the masses were refined; {goes_on_from(self.args.output_dir)}")
            config.retention_config = list(entries)
            losses = []
            for inputs, answers, count in zip(batches, wanted, items, strict=True):
                with self.compute_loss_context_manager():
                    # Upstream takes the labels out where it smooths them.
                    found, outputs = self.compute_loss(
                        model, dict(inputs), return_outputs=True, num_items_in_batch=count
                    )
                    losses.append(self._with_teacher(found, outputs, answers).float())
            progress.update()
            return self.accelerator.reduce((torch.stack(losses) * shares).sum(), reduction="mean").item()

        masses = retention_mass(model.retention_weights.detach().cpu().double())
        mode, kept, training = config.retention_mode, config.retention_config, model.training
        config.retention_mode = "hard"
        model.eval()
        try:
            with torch.no_grad():
                weights, before, after = budget.refine(masses, loss)
                model.retention_weights.copy_(weights)
        finally:
            config.retention_mode, config.retention_config = mode, kept
            model.train(training)
            progress.close()
        self.log({"refined_from": before, "refined_to": after})

    def _batches_to_refine_on(self) -> list[dict[str, Any]]:
        together = 1 if self.accelerator.split_batches else self.args.world_size
        # Not longer than the search itself.
        trained_on = self.state.max_steps * self.args.gradient_accumulation_steps
        steps = min(-(-_REFINED_ROWS // (self._train_batch_size * together)), trained_on)
        self._refining = True
        try:
            return [self._prepare_inputs(inputs) for inputs in islice(self.get_train_dataloader(), steps)]
        except ValueError as error:
            # How accelerate says that an iterable which can be gone through once has been.
            logger.warning("%s", error)
            return []
        finally:
            self._refining = False

    def _ask_teacher(self, inputs: dict[str, Any], ranking: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """The teacher's answers, and what its word-vectors receive if that is asked for and it can tell."""
        if self.teacher is None or not self.args.distillation:
            return None, None
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        # In the precision of the model that is trained, which is autocast by itself.
        with torch.no_grad(), self.accelerator.autocast():
            if not (ranking and self._teaches_ranking):
                return self.teacher(**asked, return_dict=True).logits, None
            outputs = self.teacher(**asked, output_hidden_states=True, return_dict=True)
            mask = inputs.get("attention_mask")
            return outputs.logits, self.teacher.significance_of_all(outputs.hidden_states, mask)

    @property
    def _teaches_ranking(self) -> bool:
        """Whether the teacher can tell what to rank by, and the model ranks and can be told."""
        teacher: Any = self.teacher
        model: Any = unwrap_peft_model(self.model)
        return (
            self.args.ranking_distillation
            and hasattr(teacher, "significance_of_all")
            and teacher.config.active_retention_mode == "off"
            and getattr(model.config, "active_retention_mode", "off") != "off"
            and "wanted_significance" in signature(model.forward).parameters
        )

    def _with_teacher(self, loss: Tensor, outputs: Any, wanted: Tensor | None, steps: int = 1) -> Tensor:
        """The task's loss and how far answers and rankings are from the teacher's, which counts as one of `steps`."""
        if self.teacher is None or wanted is None:
            return loss
        # Upstream's loss notes it in the configuration of the model that it trains.
        problem_type = self.teacher.config.problem_type or self.model.config.problem_type
        far = distillation_loss(outputs["logits"], wanted, problem_type)
        if (apart := outputs.get("ranking_divergence")) is not None:
            # Of `nn.DataParallel` one for each replica that had rows.
            far = far + apart.mean()
        return (1 - self.args.distillation) * loss + self.args.distillation * far / steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss; while training, the teacher's part and, in soft mode, lambda times the penalty (3.3)."""
        answers = None
        if model.training:
            answers, significance = self._ask_teacher(inputs, ranking=True)
            if significance is not None:
                inputs = {**inputs, "wanted_significance": significance}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return (loss, outputs) if return_outputs else loss
        # What counts as divided by the whole accumulated batch, by the model or by a loss of the user's own, upstream
        # does not divide again.
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_model or self.compute_loss_func is not None
        steps = self.current_gradient_accumulation_steps if scaled else 1
        loss = self._with_teacher(loss, outputs, answers, steps)
        penalty = outputs.get("retention_penalty") if isinstance(outputs, dict) else None
        if penalty is not None:
            # Of `nn.DataParallel` one for each replica that had rows.
            for name, part in (("task_loss", loss * steps), ("retention_penalty", penalty)):
                self._since_last_log[name] = self._since_last_log.get(name, 0.0) + part.detach().mean()
            self._steps_since_last_log += 1
            loss = loss + self._lambda * penalty / steps
        return (loss, outputs) if return_outputs else loss

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, except that a new repository is private unless `hub_private_repo=False` is said."""
        if self.args.hub_private_repo is None:
            self.args.hub_private_repo = True
        super().init_hf_repo(*args, **kwargs)

    def create_model_card(self, tags: str | list[str] | None = None, **kwargs: Any) -> None:
        """Upstream's metadata on a card that shows the retention configuration; a card of your own stays.

        A model that eliminates nothing has upstream's card.

        Args:
            tags: see `Trainer.create_model_card`.
            kwargs: see there; `dataset_tags` and `dataset` name the data where it is not known by itself.
        """
        if getattr(self.model.config, "active_retention_mode", "off") != "hard":
            return super().create_model_card(tags=tags, **kwargs)
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, "README.md")
        written = card_of(path.parent)
        if written is None and self.hub_model_id is not None:
            written = card_of(self.hub_model_id, self.args.hub_token)
        # The name of a folder is nobody's business; an empty one is left out.
        base = kwargs.pop("finetuned_from", None) or hub_id(self.model.name_or_path) or ""
        retention = RetentionFile.of(self.model.config, base_model=base or None)
        retention.save(path.parent)
        if written is not None and is_own(written):
            path.write_text(written, encoding="utf-8")
            return
        found_by = [tags] if isinstance(tags, str) else list(tags or ())
        tasks = kwargs.pop("tasks", None) or "text-classification"
        summary = TrainingSummary.from_trainer(self, tags=found_by, finetuned_from=base, tasks=tasks, **kwargs)
        place = self.hub_model_id or Path(self.args.output_dir).name
        facts = Facts(place, retention, metadata=summary.create_metadata(), hyperparameters=summary.hyperparameters)
        path.write_text(str(make_card(facts)), encoding="utf-8")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Upstream's log, with the parts of the loss and the masses beside the training loss."""
        weights = self._retention_weights
        if "loss" in logs and self._since_last_log and weights is not None:
            for name, total in self._since_last_log.items():
                # Over all processes, as the loss is.
                mean = self.accelerator.reduce(total / self._steps_since_last_log, reduction="mean")
                logs[name] = mean.item()
            self._since_last_log, self._steps_since_last_log = {}, 0
            masses = retention_mass(weights.detach()).tolist()
            for encoder, mass in enumerate(masses, start=1):
                logs[f"retention_mass_{encoder}"] = mass
            if self._predicted is not None and all(map(math.isfinite, masses)):
                logs["predicted_speedup"] = self._predicted(masses)
        super().log(logs, start_time)
