"""Mean hidden states against a direct loop."""

import torch

from harmonic_gpt.evaluation.activations import hidden_states, mean_states


def test_mean_states_are_those_of_a_direct_loop(loaded):
    examples = [[5], [7, 8, 9], [20, 21], [7, 8, 9, 10, 11]]
    for start in (None, 0):
        found = mean_states(loaded.model, examples, start, batch=3)
        assert len(found) == 3
        for k, example in enumerate(examples):
            row = torch.tensor([example if start is None else [start, *example]])
            for layer, states in enumerate(hidden_states(loaded.model, row)):
                expected = states[0, 0 if start is None else 1 :].mean(0)
                torch.testing.assert_close(found[layer][k], expected, atol=1e-5, rtol=1e-4)
