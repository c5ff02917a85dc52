"""A script of a user's own that trains with workers that are started by the method in START_METHOD."""

import multiprocessing
import os

if __name__ == "__main__":
    multiprocessing.set_start_method(os.environ["START_METHOD"])
    from yolov5 import train

    train.main(train.parse_opt())
