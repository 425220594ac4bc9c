"""GPT-2 with a harmonic (or another) unembedding head: transformers' own trunk, our head."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, GPT2Model, GPT2PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration_harmonic_gpt2 import HarmonicGPT2Config
from .harmonic_head import HarmonicHead


class HarmonicGPT2Model(GPT2Model):
    """The trunk alone: GPT-2's own, under a config that also names a head. For AutoModel and feature extraction."""

    config_class = HarmonicGPT2Config


class HarmonicGPT2ForCausalLM(GPT2PreTrainedModel, GenerationMixin):
    """Causal language model whose logits are those of `config.head`.

    The standard head has exactly GPT2LMHeadModel's logits and loss. Module names are GPT-2's (`transformer.wte`,
    `transformer.h.N`, `transformer.ln_f`, `lm_head.weight`), so that tools that address modules by name work unchanged.
    """

    config_class = HarmonicGPT2Config
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    # Logarithms: a rounding to bfloat16 would change what they stand for by a percent
    _keep_in_fp32_modules_strict: set[str] | list[str] | None = ["log_"]

    def __init__(self, config: HarmonicGPT2Config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.lm_head = self._new_head(config.vocab_size)
        self.post_init()

    def _new_head(self, vocab_size: int) -> HarmonicHead:
        config = self.config
        return HarmonicHead(
            config.n_embd,
            vocab_size,
            head=config.head,
            constants=config.head_spec.constants,
            hidden_scale=config.hidden_scale,
            learn=config.learn,
            prior=config.prior,
            allow_slow=config.allow_slow,
        )

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, HarmonicHead):
            init.normal_(module.weight, mean=0.0, std=self.config.center_std)
            for name, start in module.starts():
                init.copy_(getattr(module, name), start)
            if self.config.tie_word_embeddings:
                # The tie keeps wte's values, and the head comes after the trunk: this wins over GPT2Model's 0.02.
                # `init` leaves weights alone that were loaded from a checkpoint.
                init.normal_(self.transformer.wte.weight, mean=0.0, std=self.config.center_std)

    def _get_resized_lm_head(self, old_lm_head, new_num_tokens=None, transposed=False, mean_resizing=True):
        # transformers knows how to resize a Linear: lend it one, and take the weight back.
        if new_num_tokens is None:
            return old_lm_head
        n_classes, width = old_lm_head.weight.shape
        linear = nn.Linear(width, n_classes, bias=False, device="meta")
        linear.weight = old_lm_head.weight
        linear = super()._get_resized_lm_head(linear, new_num_tokens, transposed, mean_resizing)
        head = self._new_head(linear.weight.shape[0])
        assert isinstance(linear.weight, nn.Parameter)
        head.weight = linear.weight
        head.impl, head.label_smoothing, head.z_loss = old_lm_head.impl, old_lm_head.label_smoothing, old_lm_head.z_loss
        for name, _ in old_lm_head.starts():
            old = getattr(old_lm_head, name).data
            getattr(head, name).data = _resized(old, len(head.weight)) if name == "log_prior" else old
        return head

    def save_pretrained(self, *args, **kwargs):
        # For AutoModel (feature extraction) with trust_remote_code; this class adds itself
        trunk = {"AutoModel": f"{HarmonicGPT2Model.__module__.split('.')[-1]}.{HarmonicGPT2Model.__name__}"}
        self.config.auto_map = trunk | (getattr(self.config, "auto_map", None) or {})
        return super().save_pretrained(*args, **kwargs)

    def generate(self, *args, **kwargs):
        """As of GPT2LMHeadModel. What the head needs of the centers alone is computed once."""
        with ExitStack() as stack:
            for module in self.modules():  # PEFT may have wrapped and copied the head
                if isinstance(module, HarmonicHead):
                    stack.enter_context(module.generation())
            return super().generate(*args, **kwargs)  # type: ignore[misc]  # its type of self is a protocol

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values=None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        skip_logits: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """Arguments as of GPT2LMHeadModel, and:

        Args:
            labels: (B, T) token ids; shifted inside, so `labels=input_ids`. -100 is ignored.
            num_items_in_batch: the loss is a sum divided by this, instead of a mean (gradient accumulation, several
            ranks).
            logits_to_keep: 0 for all positions, k for the last k, or indices (T',).
            skip_logits: loss only, `logits=None`. Default: True in training with labels, so that no (B T, V) matrix is
            built. shift_labels (in kwargs, as for transformers' own loss): (B, T) targets that are already shifted:
            position t predicts
                shift_labels[:, t]. Instead of labels.

        Returns: loss in nats per token (scalar, float32) and logits (B, T, V) in float32: raw dot products for the
            standard head, log-probabilities for the others.
        """
        # Not in the signature: Trainer would expect every argument named *label* in each batch
        shift_labels = kwargs.pop("shift_labels", None)
        with_loss = labels is not None or shift_labels is not None
        if use_cache is None and self.training:
            use_cache = False  # transformers would fill a key-value cache that no one reads
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (B, T, D)

        loss = None
        if with_loss:
            if labels is not None and shift_labels is None:
                shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
            shift_labels = shift_labels.to(hidden_states.device)
            if num_items_in_batch is None:
                loss = self.lm_head(hidden_states, shift_labels)
            else:
                loss = self.lm_head(hidden_states, shift_labels, reduction="sum") / num_items_in_batch

        logits = None
        if skip_logits is None:
            skip_logits = self.training and with_loss
        if not skip_logits:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, keep])

        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _resized(log_prior: Tensor, n_classes: int) -> Tensor:
    """A log prior (V,) for another number of classes: new ones are as rare as the rarest."""
    if n_classes <= len(log_prior):
        return log_prior[:n_classes].clone()
    return torch.cat([log_prior, log_prior.min().expand(n_classes - len(log_prior))])


# save_pretrained copies these files beside the weights, so that `trust_remote_code=True` loads them without our package
HarmonicGPT2Config.register_for_auto_class()
HarmonicGPT2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# transformers' Trainer shifts labels by itself where it smooths them, of the classes that stand here
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(HarmonicGPT2Config.model_type, HarmonicGPT2ForCausalLM.__name__)
