"""Evaluation protocols: YOLOv5's, COCO's and VisDrone's."""
