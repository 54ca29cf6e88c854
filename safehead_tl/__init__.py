"""safehead_tl finds, shows and tests the attention heads that carry a model's refusals.

It implements *On the Role of Attention Heads in Large Language Model Safety* (ICLR 2025) on
TransformerLens. `public` lists the names; torch and all else are imported with the first that is
asked for, so that the command's help need not wait for them, nor who asks for a module of it.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec

__version__ = _version("safehead-tl")

if _typing.TYPE_CHECKING:
    from safehead_tl.public import *
else:

    def __getattr__(name: str) -> _typing.Any:
        own = f"{__name__}.{name}"
        special = name.startswith("__")
        if not special and _find_spec(own):
            return _import_module(own)
        if "__all__" not in globals() and (name == "__all__" or not special):
            public = _import_module("safehead_tl.public")
            globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(globals() if __getattr__("__all__") else ())
