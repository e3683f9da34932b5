"""Next-behavior prediction (paper, section 4.2): python eval/next_behavior.py RUN/model DIR [--out
metrics.json]

The model's weighted and macro precision and recall, HR@k and NDCG@k beside the count baselines, on
the same rows. The same as `behavegpt evaluate ... --baselines`.
"""

import sys

from behavegpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--baselines"]))
