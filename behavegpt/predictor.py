"""Predictor: raw labels in, labels and probabilities out, for any histories and any number of
users.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.load("runs/demo/model")                                   # doctest: +SKIP
>>> model.predict("my_logs.parquet", top_k=3).to_pandas()                       # doctest: +SKIP
>>> state = model.state("7", [{"timestamp": "2024-05-01 08:10", "app": "news"}])  # doctest: +SKIP
>>> model.update(state, {"timestamp": "2024-05-01 08:12", "app": "mail"})       # doctest: +SKIP
>>> model.predict(state).to_table()                                             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from behavegpt.config import check_settings
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import Moment
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.user_state import UserState
from behavegpt.decision import log_frequency, shift_of
from behavegpt.embeddings.pooling import user_vectors, widths
from behavegpt.explain import Source, Why, explain, refuse_states
from behavegpt.explanations import Explanations
from behavegpt.filters import Choice, choose_from, without_seen
from behavegpt.generation.constraints import Links
from behavegpt.generation.result import Generated
from behavegpt.generation.rollout import roll_out
from behavegpt.generation.settings import GenerationSettings
from behavegpt.history_batches import Histories, memory_of_histories
from behavegpt.history_logits import history_logits
from behavegpt.ingest.asked import check_asked
from behavegpt.ingest.histories import EventData
from behavegpt.ingest.users import as_states
from behavegpt.options import ExplainOptions, PredictOptions
from behavegpt.predictions import Predictions, most_probable
from behavegpt.timing.answer import Times, of_model, times_of
from behavegpt.trained_model import TrainedModel
from behavegpt.user_embeddings import UserEmbeddings


class Predictor(TrainedModel):
    """A trained model, ready to predict. The same user gets the same answer, whoever else is in
    the call."""

    def predict(
        self,
        events: EventData | EncodedHistories | UserState | Sequence[UserState],
        top_k: int = 5,
        *,
        at: Any = None,
        location: Any = None,
        on_user: Callable[[int, int], None] | None = None,
        interrupt: Callable[[], None] = lambda: None,
        **decision: Any,
    ) -> Predictions:
        """The `top_k` most probable next behaviors of each user.

        `events`: a pandas, polars or Arrow table or a mapping of columns with the training log's
        columns, a list of such rows, or files; a list of rows without the user column is one user's
        history; or a state or a list of states, for which no history is read. `at`, `location`: the
        time and place of the event to predict, for a model trained with `model.given`: one for all
        users, or a mapping of user to value; only the weekday and the slot of the time matter.
        `interrupt` is called between parts of the work; an exception from it stops the work.
        `decision`: prior_correction=tau > 0 favors rare behaviors, logits - tau * log(training
        frequency); thresholds=True uses the model's thresholds instead, see decision.py; and
        filters: among=["news"], exclude=[...], exclude_seen=True, per_group={"news": "reading"},
        see filters.py. Raises ConfigError and DataError.
        """
        # all options before the events are read, which may take long
        options = check_settings(PredictOptions, {"top_k": top_k, **decision}, "predict")
        shift, choice = self._decision(options, at, location)

        # a state's last events take the place of a history, its counts that of the memory
        encoded, memory, asked = self._asked(events, at, location)
        choice = without_seen(choice, encoded, as_states(events))
        # an iterator: of a million users no more than a batch has its logits in memory
        pieces = history_logits(self.model, encoded, memory, interrupt, asked)
        return most_probable(pieces, self.tokenizer, encoded, choice, shift, on_user)

    def explain(
        self,
        events: EventData | EncodedHistories,
        last: int = 16,
        *,
        at: Any = None,
        location: Any = None,
        interrupt: Callable[[], None] = lambda: None,
        **decision: Any,
    ) -> Explanations:
        """Explain each user's most probable next behavior: what the experts of the memory add to
        it, if the model has one, and what it loses without each of the `last` events; see
        explain.py.

        Arguments as for `predict`, except for states, which contain no history. Raises ConfigError
        and DataError.
        """
        options = check_settings(ExplainOptions, {"last": last, **decision}, "explain")
        shift, choice = self._decision(options, at, location)
        # a state keeps counts and the last events, of which none can be taken out
        refuse_states(events)
        refuse_baskets(self.tokenizer.event_schema, "explain")

        # without the memory at the ends: `pieces` asks for it with each set of variants
        encoded, _, asked = self._asked(events, at, location)

        def pieces(histories: EncodedHistories, moment: Moment | None) -> Any:
            # histories that lack an event are counted anew: the experts must not know it either
            spans = Histories(histories.columns, histories.offsets[:-1], histories.offsets[1:])
            memory = memory_of_histories(self.model, spans, moment)
            return history_logits(self.model, histories, memory, interrupt, moment)

        counts, memory = self.model.counts, self.model.memory_head
        source = Source(
            pieces,
            self.tokenizer,
            None if memory is None else memory.mixer,
            None if counts is None else counts.shares,
            # a model with memory looks at all events: any of them may carry the prediction
            self.model.config.max_length if counts is None else None,
        )
        why = Why(without_seen(choice, encoded, None), shift, options.last)
        return explain(source, encoded, why, asked)

    def _decision(
        self, options: PredictOptions, at: Any, location: Any
    ) -> tuple[torch.Tensor, Choice]:
        """What the decision rule takes off the logits (K,), and which behaviors may be predicted.
        Raises ConfigError, also for what the model cannot be told of the next event."""
        # frequencies of the training split, as they are kept with the vocabulary
        log_prior = log_frequency(self.tokenizer.behaviors.counts)
        shift = shift_of(options, log_prior, self.thresholds)
        choice = choose_from(options, self.tokenizer, self.model.config.retired)
        check_asked(self.given, at, location, "this model", "train with model.given")
        return shift, choice

    def when(
        self,
        events: EventData | EncodedHistories,
        within: str = "7d",
        top_k: int = 5,
        *,
        now: Any = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> Times:
        """The time to each user's next event, and the `top_k` behaviors most probable `within` a
        span, each with the probability of at least one such event.

        `events` as for `predict`, except for states. `now`: the current time, such as "2011-11-12
        09:00"; later events are ignored. By default, each user's last event. Raises ConfigError,
        also for a model without timing.json, and DataError. Docs: docs/when.md.
        """
        refuse_baskets(self.tokenizer.event_schema, "when")

        def predict(encoded: EncodedHistories, top: int) -> Predictions:
            return self.predict(encoded, top, interrupt=interrupt)

        return times_of(
            # called in this order: a model without times is refused before the log is read
            lambda: of_model(self.timing),
            self.tokenizer,
            lambda: self.encode(events),
            predict,
            now,
            within=within,
            top_k=top_k,
        )

    def shares(self, encoded: EncodedHistories) -> np.ndarray:
        """Probability (U, K) of each class as a user's next behavior, in the order of the
        vocabulary."""
        found = np.zeros((len(encoded.users), self.tokenizer.behaviors.classes), np.float32)
        memory = self._asked(encoded)[1]
        for users, logits in history_logits(self.model, encoded, memory, lambda: None):
            # in pieces: the logits of all users beside their probabilities would double the memory
            found[users] = logits.softmax(-1).numpy()
        return found

    def embed(
        self,
        events: EventData | EncodedHistories,
        pool: Sequence[str] = ("last",),
        interrupt: Callable[[], None] = lambda: None,
    ) -> UserEmbeddings:
        """Each user's vector (D,): by default the hidden state at the last event; other parts:
        embeddings/pooling.py.

        `events` and `interrupt` as for `predict`. Raises ConfigError and DataError.
        """
        # options before the events are read, which may take long
        widths(self.model, pool)

        encoded = self.encode(events)
        # whole histories: the pooling parts look back as far as each of them needs
        begin, end = encoded.offsets[:-1], encoded.offsets[1:]
        vectors = user_vectors(self.model, encoded.columns, begin, end, pool, interrupt=interrupt)
        return UserEmbeddings(encoded.users, vectors)

    def generate(
        self,
        events: EventData | EncodedHistories,
        steps: int = 50,
        *,
        links: Links | None = None,
        on_user: Callable[[int, int], None] | None = None,
        interrupt: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Generated:
        """The next `steps` events of each user, all fields together: `Generated` with `to_table()`.

        `events` and `interrupt` as for `predict`, at least one event a user. `options`:
        GenerationSettings, such as samples=5, temperature=.9, top_p=.95, until="2 days", seed=1,
        time="observed". `links`: valid combinations of labels, see generation/constraints.py; by
        default those stored with the model. Docs: docs/generation.md.
        """
        # None stands for the default, as the command line and the service pass it
        chosen = {name: value for name, value in options.items() if value is not None}
        given = {"steps": steps, **chosen}
        settings = check_settings(GenerationSettings, given, "generate")

        # an empty mapping of one's own is a choice: everything may go together
        links = self.links if links is None else links
        return roll_out(
            self.model, self.tokenizer, self.encode(events), settings, links, on_user, interrupt
        )
