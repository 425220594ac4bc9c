"""Libraries that not every verb needs: each belongs to an extra of the package."""

from importlib import import_module

from harmonic_gpt.errors import InputError


def require(extra: str, *modules: str) -> None:
    """Import modules that `pip install 'harmonic-gpt[extra]'` brings. Call it before the work that needs them, and
    import them in the function that uses them: a module of ours never imports them when it is imported itself.

    Raises InputError that names the module, why it cannot be imported, and the extra.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise InputError(f"{module} is needed here ({error}): pip install 'harmonic-gpt[{extra}]'") from error
