"""Pretrain a behavior model: accelerate launch train.py configs/small.yaml data.path=DIR out=RUN [--resume]

The same as `behavegpt train`, for `accelerate launch` on several GPUs or nodes; every setting can be overridden by its
dotted name. The work is in behavegpt/pretrain.py.
"""

import sys

from behavegpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
