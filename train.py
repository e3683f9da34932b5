"""Pretrain a behavior model: accelerate launch train.py configs/small.yaml data.path=DIR out=RUN
[--resume]

The same as `behavegpt train`, for `accelerate launch` on several GPUs or nodes; every setting can
be overridden by its dotted name. What it runs, in behavegpt/pretrain.py:

    store = open_store(settings.data.path)
    model = build_model(settings, store)
    loss = build_loss(settings.loss, store.behaviors.counts)
    trainer = Trainer(model, loss, store, settings.train, run)
    trainer.fit()
    run.save(trainer.best_model(), ...)

The loop is in behavegpt/training/trainer.py, a step in behavegpt/training/step.py, the forward in
behavegpt/model/behavegpt.py, the loss in behavegpt/losses/.
"""

import sys

from behavegpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
