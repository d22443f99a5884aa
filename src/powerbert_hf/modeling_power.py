# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the models of both backbones share: building, `set_retention`, the forward of base model and classifier."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, is_tracing
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_powerbert import RETENTION_FIELDS, RetentionConfig
from .elimination import PoWERModelOutput, RetentionEncoderMixin
from .encoder import ranking_attention
from .packing import Packed, pack, surplus
from .varlen import takes_varlen

# A single input has no padding, and as short as this nothing else to win by packing, in half precision.
_SHORT = 128

# Whose hooks take word-vectors without padding; the last is what torch counts operations with.
_TAKE_PACKED = (capture_outputs.__module__, "powerbert_hf.profiling", "torch.utils.module_tracker")
# Whose modules act on each word-vector by itself, or are ours.
_WHOSE = (__name__.partition(".")[0], "transformers", "torch", "peft")


def _is_watched(*parts: Any) -> bool:
    """Whether a module in these is to see padded inputs: by a hook, as of Captum, or as somebody's own.

    Or as one that was compiled by itself, which would be compiled anew for each list of lengths.
    """
    of_all = (*every_module._global_forward_hooks.values(), *every_module._global_forward_pre_hooks.values())
    if any(getattr(hook, "__module__", None) not in _TAKE_PACKED for hook in of_all):
        return True
    # Not `modules()`, which takes more than twice as long, and this is asked of every batch.
    modules = list(parts)
    while modules:
        module = modules.pop()
        if module._forward_pre_hooks or module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            return True
        if "forward" in module.__dict__:
            return True
        # Quantisers have linear layers of their own.
        if type(module).__module__.partition(".")[0] not in _WHOSE and not isinstance(module, nn.Linear):
            return True
        hooks = module._forward_hooks
        if hooks and any(getattr(hook, "__module__", None) not in _TAKE_PACKED for hook in hooks.values()):
            return True
        modules.extend(child for child in module._modules.values() if child is not None)
    return False


@dataclass
class PoWERSequenceClassifierOutput(SequenceClassifierOutput):
    """`SequenceClassifierOutput` and the three fields of [`PoWERModelOutput`].

    But in off mode, encoder L hands on [CLS] alone, so `kept_positions[-1]` and `hidden_states[-1]` have length 1. The
    penalty leaves encoder L out, but with `retention_soft_extract="published"`; without gradients there is none.
    """

    kept_positions: tuple[Tensor, ...] | None = None
    retention_penalty: Tensor | None = None
    ranking_divergence: Tensor | None = None


class RetentionModelMixin(PreTrainedModel):
    """What every PoWER model can do, with or without a head."""

    # Upstream's loss ignores `num_items_in_batch`; the Trainer would still skip its own division by the accumulation.
    accepts_loss_kwargs = False
    # A stock checkpoint has none, and a hard model wants none.
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [r"retention_weights$"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"retention_weights$"]

    def __init__(self, config: RetentionConfig, *args: Any, **kwargs: Any) -> None:
        # Not by its class: as code beside a checkpoint in a folder, each file is a package of its own.
        if not hasattr(config, "validate_retention"):
            needed = type(self).config_class.__name__
            raise ValueError(
                f"{type(self).__name__} needs a {needed}, got a {type(config).__name__}; pass "
                f"`{needed}(**config.to_dict())`, or none to have it read from the checkpoint."
            )
        if beside := sorted({"retention", *RETENTION_FIELDS} & kwargs.keys()):
            raise ValueError(
                f"`{beside[0]}` is read with the model's configuration, got a `config` beside it; pass it to the "
                "configuration's `from_pretrained`."
            )
        # `from_pretrained` sets fields one by one, after the configuration was checked.
        config.validate_retention()
        # Old checkpoints ask for it here, once: upstream's constructors would answer in modules that are replaced.
        checkpointing = getattr(config, "gradient_checkpointing", False)
        if checkpointing:
            del config.gradient_checkpointing
        with init.no_init_weights():
            super().__init__(config, *args, **kwargs)
            self.replace_modules()
        if checkpointing:
            self.config.gradient_checkpointing = True
        self.post_init()

    def replace_modules(self) -> None:
        """Put our subclasses in the place of those upstream modules that differ."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RetentionEncoderMixin) and module.retention_weights is not None:
            init.ones_(module.retention_weights)

    @staticmethod
    def _finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        for name, saved, wanted in loading_info.mismatched_keys:
            if name.endswith("retention_weights") and not load_config.ignore_mismatched_sizes:
                raise ValueError(
                    f"`retention_length` must be that of the checkpoint's retention weights ({saved[-1]}), got "
                    f"{wanted[-1]}; leave it out, or pass `ignore_mismatched_sizes=True` to let them start at 1 again."
                )
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    def significance_of_all(self, hidden_states: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """The attention that each word-vector receives in all encoders of a model that eliminates nothing.

        Args:
            hidden_states: L or more of (B, T, D), what each encoder receives, as `output_hidden_states=True` has it.
            mask: (B, T), nonzero where real; `None` if all are.

        Returns:
            (B, T) in float32, the sum over the encoders.
        """
        real = None if mask is None else mask.bool()
        encoders = zip(self.base_model.encoder.encoders(), hidden_states, strict=False)
        return torch.stack(
            [ranking_attention(encoder).significance_of(states, real) for encoder, states in encoders]
        ).sum(dim=0)

    @property
    def retention_weights(self) -> nn.Parameter | None:
        """`r` (L, R) in soft mode, else `None`."""
        return self.base_model.encoder.retention_weights

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Upstream's; with `push_to_hub=True` as [`push_to_hub`] does it.

        Weights have the names of today. Upstream goes back to those that the checkpoint had, `LayerNorm.gamma` of the
        oldest, by which `Trainer` does not find them when it goes on from a checkpoint (transformers 5.23).
        """
        kwargs.setdefault("save_original_format", False)
        if kwargs.get("push_to_hub") and kwargs.get("private") is None:
            kwargs["private"] = True
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **kwargs: Any) -> Any:
        """Upstream's, with a model card and `retention.json`; a new repository is private unless `private=False`."""
        return super().push_to_hub(repo_id, private=private is None or private, **kwargs)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Where `push_to_hub` and `save_pretrained(push_to_hub=True)` of transformers 5.23 send what they saved."""
        try:
            # Not by an import statement: the file would be sent along with this one, where code is.
            card = import_module(f"{__package__}.card")
        except ModuleNotFoundError:
            # This is such code.
            pass
        else:
            card.add_card(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def set_retention(
        self, config: Sequence[int | float] | None, unit: str | None = None, length: int | None = None
    ) -> None:
        """Run with another retention configuration from now on, in hard mode, or with `None` as the stock model.

        It is set in `config`, so a model that was built from the same object runs with it, too.

        Args:
            config: one entry per encoder, never increasing, or an array of them; `None` keeps all word-vectors.
            unit: `"words"` or `"fraction"`; `None` leaves the unit as it is.
            length: the retention length; `None` leaves it as it is.

        Raises:
            ValueError: for a configuration that cannot be run; the model stays as it was.
        """
        changes = {
            "retention_config": _plain(config),
            "retention_unit": self.config.retention_unit if unit is None else unit,
            "retention_length": self.config.retention_length if length is None else _plain(length),
            "retention_mode": None,
        }
        proposal = copy.copy(self.config)
        try:
            for name, value in changes.items():
                setattr(proposal, name, value)
        except StrictDataclassFieldValidationError as error:
            said = str(error.__cause__ or error).partition(". Errors:")[0]
            raise ValueError(f"{' '.join(said.split())}; pass another.") from error
        proposal.validate_retention()
        for name, value in changes.items():
            setattr(self.config, name, value)
        self.base_model.encoder.register_parameter("retention_weights", None)


def _plain(config: Any) -> Any:
    """Numbers, or entries of an array or a tensor as numbers, which alone can be written to a file."""
    config = config.tolist() if hasattr(config, "tolist") else config
    if isinstance(config, str) or not isinstance(config, Sequence):
        return config
    return [entry.item() if hasattr(entry, "item") else entry for entry in config]


class RetentionBaseModelMixin(RetentionModelMixin):
    """The forward of both base models."""

    def pool(self, hidden_states: Tensor) -> Tensor | None:
        """The host's pooler on (B, K, D): (B, D), or `None` without one."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cls_only: bool = False,
        output_kept_positions: bool = False,
        wanted_significance: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoWERModelOutput:
        """`BertModel.forward` and `AlbertModel.forward` (transformers 5.23), less decoding, plus three arguments.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), nonzero where real.
            token_type_ids: (B, T).
            position_ids: (B, T).
            inputs_embeds: (B, T, E), in place of `input_ids`.
            cls_only: whether only [CLS] is read of the result; then encoder L computes that alone, but in off mode.
                Without gradients, and with nothing else asked for, the word-vectors are packed and [CLS] is all that
                returns.
            output_kept_positions: whether to return which word-vectors leave each encoder.
            wanted_significance: (B, T), what a teacher's word-vectors receive, see [`significance_of_all`]; then the
                output says how far from it the encoders rank.
            kwargs: as upstream.

        Raises:
            ValueError: for neither or both of `input_ids` and `inputs_embeds`, or for inputs of a shape or length that
                the model does not take; where word-vectors are eliminated or positions asked for, for a mask that is
                not (B, T), for several inputs in a row, or for a configuration that does not fit the model; on a CPU
                also for numbers of no word-piece.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if not torch.compiler.is_compiling():
            self._check_inputs(inputs, position_ids)
        asked = {**kwargs, "output_kept_positions": output_kept_positions, "wanted_significance": wanted_significance}
        if cls_only and self._can_pack(inputs, attention_mask, asked):
            cls = self._packed_cls(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            return PoWERModelOutput(last_hidden_state=cls, pooler_output=self.pool(cls))
        embedded = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
        )
        if self.config.active_retention_mode == "off":
            # Flash attention tells inputs that share a row apart by them.
            kwargs["position_ids"] = position_ids
        elif any(kwargs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")):
            raise ValueError(
                "Each input must have a row of its own where word-vectors are eliminated, got several in one "
                '(`cu_seq_lens_q`); pad them, or use another `attn_implementation` than "flash_attention_2".'
            )
        outputs = self.encoder(
            embedded, attention_mask, cls_only, output_kept_positions, wanted_significance, **kwargs
        )
        outputs.pooler_output = self.pool(outputs.last_hidden_state)
        return outputs

    def _check_inputs(self, inputs: Any, position_ids: Tensor | None) -> None:
        """Say what upstream leaves to the operators that fail."""
        form, longest = ("(B, T)", "(B, T, E)")[inputs.is_floating_point()], self.config.max_position_embeddings
        if inputs.dim() != form.count(",") + 1 or 0 in inputs.shape:
            raise ValueError(f"Inputs must be {form}, each at least 1, got {tuple(inputs.shape)}; pass a batch.")
        if position_ids is None and inputs.shape[1] > longest:
            raise ValueError(
                f"Inputs must have at most {longest} word-vectors, as many as the model has positions, got "
                f"{inputs.shape[1]}; truncate them."
            )
        # A wrapper of the embeddings, as of PEFT, need not say.
        known = getattr(self.get_input_embeddings(), "num_embeddings", self.config.vocab_size)
        # Elsewhere a look at the numbers would wait for the device; a tensor that is only traced has none.
        look = inputs.device.type == "cpu" and form == "(B, T)" and not is_tracing(inputs)
        lowest, highest = (bound.item() for bound in inputs.aminmax()) if look else (0, 0)
        if lowest < 0 or highest >= known:
            raise ValueError(
                f"`input_ids` must lie between 0 and {known - 1}, got {lowest} to {highest}; use the model's own "
                "tokenizer."
            )

    def _can_pack(self, inputs: Any, attention_mask: Tensor | None, asked: Mapping[str, Any]) -> bool:
        """Whether [CLS] may be computed on packed word-vectors: nobody will see that they were not padded."""
        if torch.is_grad_enabled() or self.training or is_tracing(inputs):
            return False
        if self.config.active_retention_mode == "soft":
            return False
        if any(getattr(self.config, f"output_{name}", False) for name in ("hidden_states", "attentions")):
            return False
        # `merge_with_config_defaults` adds the last one, which means nothing here.
        if {name for name, value in asked.items() if value is not None and value is not False} - {"use_cache"}:
            return False
        # Any other implementation is one that the user means to have called.
        if self.config._attn_implementation not in ("eager", "sdpa"):
            return False
        # What is packed goes past the encoder's own forward: a wrapper may have put another there.
        if not isinstance(self.encoder, RetentionEncoderMixin):
            return False
        # Where all word-vectors stay, a hook on the model itself, or another pooler, may read each of them.
        off = self.config.active_retention_mode == "off"
        if _is_watched(self) if off else _is_watched(self.embeddings, self.encoder):
            return False
        # Without a word-vector at position 0 there is no [CLS] to begin with.
        if attention_mask is not None and not (
            attention_mask.shape == inputs.shape[:2] and attention_mask[:, 0].all()
        ):
            return False
        # Quantised embeddings have it behind a method, somebody's own perhaps not at all.
        if not isinstance(self._first_weight, Tensor):
            return False
        device = self._first_weight.device
        if device.type not in ("cpu", "cuda"):
            return False
        if len(inputs) == 1 and inputs.shape[1] <= _SHORT and self._product_dtype != torch.float32:
            return False
        head_size = self.config.hidden_size // self.config.num_attention_heads
        return device.type == "cpu" or takes_varlen(device, self._product_dtype, head_size)

    @property
    def _first_weight(self) -> Any:
        """For its device and dtype: a replica of `nn.DataParallel` has no parameters to ask."""
        return getattr(self.get_input_embeddings(), "weight", None)

    @property
    def _product_dtype(self) -> torch.dtype:
        device = self._first_weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._first_weight.dtype

    def _packed_cls(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Any,
    ) -> Tensor:
        """(B, 1, D): [CLS] after the last encoder."""
        inputs = inputs_embeds if input_ids is None else input_ids
        shape = inputs.shape[:2]
        others = [part for part in (token_type_ids, position_ids) if part is not None]
        one = all(len(part) == 1 for part in (inputs, *others))
        whole = one and (attention_mask is None or attention_mask.all())
        if whole and not surplus(shape[1], self._product_dtype, inputs.device):
            # Packed as it is.
            embedded = self.embeddings(
                input_ids=input_ids,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
            )
            return self.encoder.forward_packed(embedded, Packed([shape[1]]))
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=inputs.device)
        if position_ids is None:
            position_ids = self.embeddings.position_ids[:, : shape[1]]
        packed, rows, places = pack(attention_mask.to(inputs.device, torch.bool), self._product_dtype)

        def take(values: Tensor | None) -> Tensor | None:
            """(B, T) or (1, T), and what follows, to (1, S)."""
            return None if values is None else values.expand(*shape, *values.shape[2:]).flatten(0, 1)[rows][None]

        embedded = self.embeddings(
            input_ids=take(input_ids),
            token_type_ids=take(token_type_ids),
            position_ids=take(position_ids),
            inputs_embeds=take(inputs_embeds),
        )
        cls = self.encoder.forward_packed(embedded, packed)
        return cls[places.to(cls.device)]


class RetentionSequenceClassifierMixin(RetentionModelMixin):
    """The forward of both classifiers, and the way back to upstream's."""

    upstream_class: type[PreTrainedModel]

    def __init__(self, config: RetentionConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Upstream reads it off the name of the class; somebody's subclass has any.
        self.loss_type = getattr(self, "loss_type", None) or "ForSequenceClassification"

    def to_stock(self) -> PreTrainedModel:
        """A copy as upstream's class: the same weights, nothing eliminated, nothing of this package left."""
        ours = RETENTION_FIELDS | {"model_type", "architectures", "auto_map"}
        fields = {name: value for name, value in self.config.to_dict().items() if name not in ours}
        with init.no_init_weights():
            stock = self.upstream_class(self.upstream_class.config_class(**fields))
        weights = {name: value for name, value in self.state_dict().items() if not name.endswith("retention_weights")}
        stock.load_state_dict(weights)
        return stock.to(self.device, self.dtype).train(self.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_kept_positions: bool = False,
        wanted_significance: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoWERSequenceClassifierOutput:
        """`BertForSequenceClassification.forward` (transformers 5.23), less the outputs that it drops.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), nonzero where real.
            token_type_ids: (B, T).
            position_ids: (B, T).
            inputs_embeds: (B, T, E), in place of `input_ids`.
            labels: (B,), or (B, labels) for several labels; the loss follows `config.problem_type` as upstream.
            output_kept_positions: whether to return which word-vectors leave each encoder.
            wanted_significance: (B, T), as the base model takes it.
            kwargs: as upstream.
        """
        outputs = self.base_model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cls_only=True,
            output_kept_positions=output_kept_positions,
            wanted_significance=wanted_significance,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return PoWERSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            kept_positions=outputs.kept_positions,
            retention_penalty=outputs.retention_penalty,
            ranking_divergence=outputs.ranking_divergence,
        )
