"""From weights and images to detections."""
