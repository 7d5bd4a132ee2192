"""The exception that conversions raise."""

from __future__ import annotations


class ConversionError(ValueError):
    """A model or a checkpoint cannot be converted. The message names the file, the setting or the tensor."""
