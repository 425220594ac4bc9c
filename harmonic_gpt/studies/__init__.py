"""The paper's small experiments: toy points, algorithmic tasks, digits.

Not here: language models.
"""
