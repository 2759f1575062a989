"""The mask compiler: from any binary mask to tiles whose cost is close to its non-zeros."""
