"""Weights of detectors: what a checkpoint holds, and how to copy its tensors into another model."""
