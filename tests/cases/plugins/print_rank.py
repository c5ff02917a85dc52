"""A script of a user's own that builds the model of the cfg in CFG, and says which block stands in row 7."""

import os

from yolov5.models.yolo import Model

model = Model(os.environ["CFG"])
print("rank", os.environ["RANK"], type(model.model[7]).__name__, flush=True)
