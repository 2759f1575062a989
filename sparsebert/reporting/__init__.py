"""How results are timed and shown: spreads, tables, figures, pages, and where they come from."""
