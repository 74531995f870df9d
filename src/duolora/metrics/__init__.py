"""Encoders, similarities and transforms of the metrics, and data sets."""
