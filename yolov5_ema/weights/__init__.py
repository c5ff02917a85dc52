"""Weights of detectors: what a checkpoint holds, and how its tensors get into another model."""
