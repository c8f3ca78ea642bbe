"""Recognise handwritten digits: `load_pretrained()` returns a trained recogniser.

Each chapter of the book is a module, such as `digitrec.data` or `digitrec.training`.
"""

__version__ = "0.2.0"


def __getattr__(name: str):
    "Import `load_pretrained` at its first use, so that `import digitrec` imports nothing heavy."
    if name == "load_pretrained":
        from .export import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), "load_pretrained"]
