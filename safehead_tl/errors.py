"""The one exception of the toolkit: an input it cannot work with, and the way out."""


class SafeheadError(ValueError):
    """An input the toolkit refuses; the message names it and says what to do instead."""
