"""One measurement each: a pair, a method, a seed."""
