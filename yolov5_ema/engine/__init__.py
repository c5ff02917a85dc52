"""The shim in YOLOv5 and the adapter in ultralytics: blocks in their parsers, quirks and guards in their modules."""
