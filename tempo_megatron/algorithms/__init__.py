"""The mathematics of TEMPO: functions from tensors to tensors. They import torch and jaxtyping alone.

Signatures state dtypes and shapes (https://docs.kidger.site/jaxtyping): `Float[Tensor, "rows sequence"]` is a floating
tensor with one entry per row and position. Within one call, an axis name has one size. `rows` are responses. `sequence`
are positions of the padded prompt and response. A value that describes a token stands in the token's column. The unit
tests check every call against its signature (`tests/shapes.py`). A run does not, so the annotations cost nothing.
"""
