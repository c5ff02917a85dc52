"""Checkpoints: opened under guard, checked, converted and transferred."""
