"""The command line: a verb's options and the few lines that print its result. `__main__` assembles the verbs.

Not here: anything that a program would want to call.
"""
