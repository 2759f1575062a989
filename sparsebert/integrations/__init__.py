"""SparseBERT inside other libraries: `sparsebert.integrations.huggingface.api`."""
