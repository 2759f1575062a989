"""Masks: what may attend to what, exact, immutable and storable; and hand-made patterns.

`mask` has the AttentionMask, which builds on `packed_mask` (the frozen value and its parts) and
`bits` (packing). `patterns` are hand-made masks, made of `rules`; `mask_input` says what else may
be passed as a mask, and what to do with what may not. `positions` tells a line from an image's
grid, `provenance` where a mask comes from, `file` is how it is stored, `flex` its way from and to
FlexAttention. `drawing` (matplotlib), `images` (pixels), `html` (notebooks) and `summary` show it.
"""

from sparsebert.masks.mask import AttentionMask, as_mask

__all__ = ["AttentionMask", "as_mask"]
