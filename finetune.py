"""Adapt a model: accelerate launch finetune.py --mode new_behavior CONFIG base=MODEL data.path=DIR
out=RUN [--resume]

The same as `behavegpt finetune`, for `accelerate launch` on several GPUs or nodes; every setting
can be overridden by its dotted name. The modes are the table in behavegpt/adapt/transfer.py; the
work is in behavegpt/finetune.py.
"""

import sys

from behavegpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
