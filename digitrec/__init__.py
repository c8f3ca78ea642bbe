"""Handwritten digits, from the pixels to a submission: `load_pretrained` gives a trained recogniser; the chapters are modules"""

__version__ = "0.1.0"


def __getattr__(name: str):
    "The light door: what needs more than Python is imported when it is asked for"
    if name == "load_pretrained":
        from .export import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), "load_pretrained"]
