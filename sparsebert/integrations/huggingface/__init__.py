"""HuggingFace models with sparse attention. A call of `sparsify` goes down this list:

    api              sparsify, densify, save_masks, load_masks
    discovery        which modules do self-attention, which model owns them, and what is refused
    position_check   whether position i of a mask is token i, by a `dry_run` on `example_inputs`
    mask_argument    the forms that masks come in
    configs          the copies of configurations that name our attention
    attached         what a sparse model carries: a mask in each attention module
    images           masks over the patches of an image
    lost_masks       warnings where masks would be lost or lie unused

A forward pass of the model then goes through these:

    model_rules      the model's own rules: padding, causality, windows, 4-D masks
    attention        what its layers call: the plan under these rules, or all scores
    padding          sequences that begin with padding, moved to the front and back
    dense            all scores, for what no plan can express

A mask is learned by `dam` (attach_dam, detach_dam), `trainer` (DAMTrainer), `dam_callback`; files
are written by `files` and `dam_files`.
"""
