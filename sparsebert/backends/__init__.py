"""The backends of `sparse_attention`, siblings behind one interface."""
