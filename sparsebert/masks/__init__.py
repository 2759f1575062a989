"""Masks: what may attend to what, exact, immutable and storable; and hand-made patterns."""

from sparsebert.masks.mask import AttentionMask, as_mask

__all__ = ["AttentionMask", "as_mask"]
