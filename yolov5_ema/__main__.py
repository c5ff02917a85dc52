"""``python -m yolov5_ema``; under ``torchrun`` as well: ``torchrun … -m yolov5_ema train …``."""

import sys

from yolov5_ema.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
