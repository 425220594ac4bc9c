"""What transformers' own model tests are run on: GPT-2 as the control, and both heads, tied and untied.

Collected by test_transformers_model_tests.py in a process of its own, with transformers' test files beside it.
"""

import unittest

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM

# Which classes get labels is read from transformers' own table of names
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["harmonic_gpt2"] = "HarmonicGPT2ForCausalLM"
SIZE = {
    "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 97,
    "eos_token_id": 97, "pad_token_id": 98, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh",
}  # fmt: skip


class Tester:
    """The form that transformers' tests want a model in. batch 3, 7 tokens."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = SIZE["n_embd"], SIZE["n_layer"], SIZE["n_head"]
    vocab_size, encoder_seq_length, key_length = SIZE["vocab_size"], 7, 7

    def __init__(self, parent, config_class, **fields):
        self.parent, self.config_class, self.fields = parent, config_class, fields

    def get_config(self):
        return self.config_class(**SIZE, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 2)
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


class Case(ModelTesterMixin):
    config_class: type = HarmonicGPT2Config
    fields: dict = {}

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = Tester(self, self.config_class, **self.fields)


class ControlTest(Case, unittest.TestCase):
    all_model_classes = (GPT2LMHeadModel,)
    config_class = GPT2Config


class ControlUntiedTest(ControlTest):
    fields = {"tie_word_embeddings": False}


class HarmonicTest(Case, unittest.TestCase):
    all_model_classes = (HarmonicGPT2ForCausalLM,)


class HarmonicUntiedTest(HarmonicTest):
    fields = {"tie_word_embeddings": False}


class StandardTest(Case, unittest.TestCase):
    all_model_classes = (HarmonicGPT2ForCausalLM,)
    fields = {"similarity": "dot", "normalization": "softmax"}


class StandardUntiedTest(StandardTest):
    fields = {"similarity": "dot", "normalization": "softmax", "tie_word_embeddings": False}
