"""The words that options of the paper's equations can be; nothing is imported but `typing`."""

from typing import Literal

Role = Literal["content", "style", "neutral"]
"""Which LoRA leads in a layer (Sec. 3.3.1)."""
BlockMap = Literal["resolution", "literal", "released", "blora", "none"]
"""Which layers have which role (Sec. 3.3.1, see `model/blocks.py`)."""
Init = Literal["ones", "values", "all-ones", "split"]
"""How masks begin (Sec. 3.3.2)."""
Norm = Literal["diag", "vector"]
"""The nuclear norm of Eq. 1: of a diagonal matrix, or of a column."""
Reduction = Literal["mean", "sum"]
"""How Eq. 1 of all layers becomes one number."""
Gate = Literal["base", "content", "style", "merged", "content_masked", "style_masked"]
"""Which adapters are in force in a call of the network (Sec. 3.4)."""
Variant = Literal["masked", "teacher", "none"]
"""How the cycle reaches the masks (Sec. 3.4)."""
Multiplies = Literal["all", "cycle"]
"""What λ_cycle multiplies (Sec. 3.4)."""
Cycles = Literal["both", "style", "content"]
"""Which cycles count (Table 8)."""
MaskSide = Literal["output", "input"]
"""What ZipLoRA's masks act on (Definition 1; the authors' own)."""
Similarity = Literal["product", "cosine"]
"""ZipLoRA's penalty on masks that overlap."""
