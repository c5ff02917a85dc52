"""The YOLOv5 that the commands run: where it is, what its source code says, and how it is patched."""
