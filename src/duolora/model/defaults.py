"""Defaults of sampling that help texts name as well; nothing is imported."""

STEPS = 25
"""Denoising steps of a picture."""
GUIDANCE = 5.0
"""The scale of classifier-free guidance; 1 is none."""
ATELIER_GUIDANCE = 3.0
"""Under more guidance than this, LoRAs on the small base overshoot (`docs/log.md`)."""
