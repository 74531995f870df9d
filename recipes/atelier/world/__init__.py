"""The world of the next base: pixel art of 32×32 pixels.

It takes the place of `duolora.atelier` once its base is better than the one that ships.
"""
