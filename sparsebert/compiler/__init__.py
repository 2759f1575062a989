"""The mask compiler: from any binary mask to tiles whose cost is close to its non-zeros."""

from sparsebert.compiler.compile import compile_plan, compile_tiles, crop_plan

__all__ = ["compile_plan", "compile_tiles", "crop_plan"]
