"""Measures of how interpretable a model is, each a function of tensors and token ids.

Not here: loading, printing, drawing, or a word about training.
"""
