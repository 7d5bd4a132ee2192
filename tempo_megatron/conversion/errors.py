"""What a conversion can fail with."""

from __future__ import annotations


class ConversionError(ValueError):
    """A Hugging Face model asks for something that the map of its family does not have; the message names it."""
