"""Tiles: the format between the mask compiler and the backends."""
