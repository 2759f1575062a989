"""``sparsebert learn``: learn masks on text, and compare them with hand-made ones.

`python_text` and `sources` get the text, `data` makes masked-language-modelling batches of it;
`run_learn` goes through the `phases` with these, and `learn_report` says what came out.
"""
