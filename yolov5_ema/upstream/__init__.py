"""The YOLOv5 that is driven, as it stands: where it is, what its source says, and how it is patched."""
