"""The tables of the paper: their rows, the tuning of methods, and what is written of the results."""
