"""Checkpoints: loaded without running their code, checked, converted, and transferred to other models."""
