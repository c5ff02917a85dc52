"""YOLOv5's own scripts: their options checked, and run under the shim."""
