"""The report and the model card of a run, written from its result files; what is missing is left
out.

RUN/report.html           one file: no network, light and dark
RUN/model/README.md       the model card, as the Hugging Face Hub reads it
"""

from behavegpt.report.card import write_model_card
from behavegpt.report.page import write_report

__all__ = ["write_model_card", "write_report"]
