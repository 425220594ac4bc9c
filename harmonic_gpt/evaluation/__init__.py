"""How good a finished model is: perplexity, samples, the lens, and how interpretable it is.

Not here: files of runs (`runs`), or what the command line prints (`cli`).
"""
