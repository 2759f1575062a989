"""HuggingFace models: sparsify and densify, masks in files, learning masks."""
