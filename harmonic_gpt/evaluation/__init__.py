"""What a finished model is worth: perplexity, samples, the lens, and how readable it is.

Not here: files of runs (`runs`), or what the command line prints (`cli`).
"""
