"""Load detectors and run them on images."""
