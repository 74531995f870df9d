"""The paper's equations, one short file each: tensors, floats and callables in, tensors out.

choices        the words that options can be
lowrank        ΔW = scale · up · down, its SVD basis and exact sums
ziprank        masks over the rank (Definition 2)
ziplora        masks over the outputs or inputs (Definition 1, and ZipLoRA's own penalty)
layer_prior    first masks (Sec. 3.3.2) and the rank constraint (Eq. 1, Algorithm 1)
constyle       reconstruction and cycle consistency (Sec. 3.4), and the overall loss
oneshot        the masks of every module in closed form (ours)
"""
