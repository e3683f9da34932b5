"""Predictions on a log that nothing was trained on: the universal model, with tables counted from
that log.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.load("universal").fit_tables("my_logs.parquet")           # doctest: +SKIP
>>> model.predict().to_table()                                                  # doctest: +SKIP
>>> state = model.state("7")                                                    # doctest: +SKIP
>>> model.update(state, {"time": "2024-05-01 08:10", "event": "news"})          # doctest: +SKIP
>>> model.predict(state).to_table()                                             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from behavegpt.config import check_settings
from behavegpt.counted_model import CountedModel
from behavegpt.data.given import Moment, check_names
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.errors import ConfigError
from behavegpt.explain import Source, Why, explain, refuse_states
from behavegpt.explanations import Explanations
from behavegpt.filters import choose_from, without_seen
from behavegpt.ingest.asked import named_given, read_asked
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.histories import EventData, rows_as_columns
from behavegpt.ingest.users import as_states
from behavegpt.option_types import MOST_BEHAVIORS
from behavegpt.options import EmbedOptions, ExplainOptions, PredictOptions
from behavegpt.predictions import Predictions, most_probable
from behavegpt.timing.answer import Times, times_of
from behavegpt.universal.counted import count_log
from behavegpt.user_embeddings import UserEmbeddings

if TYPE_CHECKING:
    from behavegpt.generation.result import Generated

NO_THRESHOLDS = (
    "thresholds are learned on a validation split, and a log that is only counted has none; "
    "use prior_correction, or a trained model."
)
VECTORS = ("last", "behaviors")  # parts of a user's vector


class UniversalPredictor(CountedModel):
    """The universal model answers by the tables of a log."""

    def fit_tables(
        self,
        logs: EventData,
        schema: EventSchema | None = None,
        given: Sequence[str] = (),
        **settings: Any,
    ) -> UniversalPredictor:
        """Count a log: files, a DataFrame, an Arrow table, a mapping of columns or a list of event
        dicts, all of it past.

        Columns are guessed where neither `schema` nor `settings` of EventSchema (user="uid",
        tz="Europe/London", ...) name them. `given`: `time`, `location` or both, for states that are
        asked about a time and a place. Raises ConfigError and DataError.
        """
        # columns have types that can be guessed, which rows of a list have not
        if isinstance(logs, (list, tuple)) and logs and isinstance(logs[0], Mapping):
            logs = rows_as_columns(logs)
        # another predictor: this one, shared by many logs, counts nothing
        schema = schema or guess_schema(logs, settings)[0]
        return UniversalPredictor(self.model, count_log(logs, schema, check_names(given)))

    def reading(self, **changes: Any) -> UniversalPredictor:
        """The predictor for logs whose columns are named, or whose times are written, otherwise;
        see `Predictor`."""
        return UniversalPredictor(
            self.model, replace(self.log, tokenizer=self.tokenizer.reading(changes))
        )

    def predict(
        self,
        events: EventData | None = None,
        top_k: int = 5,
        *,
        at: Any = None,
        location: Any = None,
        on_user: Callable[[int, int], None] | None = None,
        interrupt: Callable[[], None] = lambda: None,
        **decision: Any,
    ) -> Predictions:
        """The `top_k` most probable next behaviors of each user; arguments as in
        `Predictor.predict`.

        `events`: histories with the columns of the counted log, a state or a list of states, None
        for the users of the log itself. Where nothing was counted yet, the tables come from
        `events`. `at`, `location`: the time and the place that are asked about, for all users or by
        user; the log is counted again for it where it was counted with nothing given. `decision`:
        prior_correction, and filters. Raises ConfigError, also for `thresholds`, and DataError.
        """
        # all options before the events are counted, which may take long
        options = check_settings(PredictOptions, {"top_k": top_k, **decision}, "predict")
        if options.thresholds:
            raise ConfigError(NO_THRESHOLDS)

        # may be another predictor: this one may be shared, and stays as it is
        counted, events = self._counted_for(events, named_given(at, location))
        counted._check_asked(at, location)
        if events is not None and as_states(events) is None:
            events = counted.encode(events)
        choice = counted._without_seen(choose_from(options, counted.tokenizer), events)
        # from here on what was counted answers, whichever predictor was asked
        asked, tables = counted._asked(events, at, location), counted.log.tables
        # batch by batch: of all users together the logits would not fit
        pieces = (
            (batch.position, self.model.logits(batch.memory, tables))
            for batch in asked.batches(interrupt)
        )
        # frequencies of the log itself, with which its rare behaviors are rare
        shift = options.prior_correction * torch.log(torch.from_numpy(tables.prior))
        return most_probable(pieces, counted.tokenizer, asked, choice, shift, on_user)

    def explain(
        self,
        events: EventData | None = None,
        last: int = 16,
        *,
        at: Any = None,
        location: Any = None,
        interrupt: Callable[[], None] = lambda: None,
        **decision: Any,
    ) -> Explanations:
        """Why each user's most probable next behavior; see `Predictor.explain`.

        `events` as for `predict`, states excepted. Raises ConfigError, also for a saved model
        without `events`, and DataError.
        """
        options = check_settings(ExplainOptions, {"last": last, **decision}, "explain")
        if options.thresholds:
            raise ConfigError(NO_THRESHOLDS)
        # counts cannot tell which event was which
        refuse_states(events)
        counted, events = self._counted_for(events, named_given(at, location))
        counted._check_asked(at, location)

        encoded = counted.log.histories if events is None else counted.encode(events)
        if encoded is None:
            raise ConfigError(
                "a saved model knows states, no histories; give those that are to be explained."
            )
        asked = None
        if counted.given:
            asked, _ = read_asked(counted.tokenizer, encoded.users, at, location)

        tables, shares = counted.log.tables, counted.log.shares

        def pieces(histories: EncodedHistories, moment: Moment | None) -> Any:
            for batch in counted.log.asked(histories, moment).batches(interrupt):
                yield batch.position, self.model.logits(batch.memory, tables)

        choice = without_seen(choose_from(options, counted.tokenizer), encoded, None)
        shift = options.prior_correction * torch.log(torch.from_numpy(tables.prior))
        source = Source(pieces, counted.tokenizer, self.model.mixer, shares)
        return explain(source, encoded, Why(choice, shift, options.last), asked)

    def when(
        self,
        events: EventData | EncodedHistories | None = None,
        within: str = "7d",
        top_k: int = 5,
        *,
        now: Any = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> Times:
        """The time to each user's next event, and the behaviors most probable `within` a span; see
        `Predictor.when`.

        Times are not what the universal weights know: they are learned from the gaps of the counted
        log, as `behavegpt when` learns those of a prepared folder. `events` as for `predict`,
        states excepted; `now` not before the end of that log. Raises ConfigError and DataError.
        """
        counted, events = self._counted_for(events, ())
        # the log was counted for this question: its own predictor answers
        if counted is not self:
            return counted.when(events, within, top_k, now=now, interrupt=interrupt)
        own = self.log.histories
        if events is None and own is None:
            raise ConfigError(
                "a saved model knows states, no histories; give those whose next event is asked "
                "for."
            )

        # `times_of` cuts histories at `now` itself, and then asks what follows
        def predict(encoded: EncodedHistories, top: int) -> Predictions:
            return self.predict(encoded, top, interrupt=interrupt)

        return times_of(
            # a function: learning the gaps takes seconds, which a mistake in `now` must not cost
            lambda: self.log.timing,
            self.tokenizer,
            lambda: own if events is None and own is not None else self.encode(events),
            predict,
            now,
            within=within,
            top_k=top_k,
        )

    def _counted_for(
        self, events: EventData | None, given: tuple[str, ...]
    ) -> tuple[UniversalPredictor, EventData | None]:
        """Who answers, and about which events: where nothing was counted yet, or with nothing
        given, another predictor."""
        if self._log is None and events is not None:
            return self.fit_tables(events, given=given), None
        if given and not self.given and as_states(events) is None:
            # the log is counted again: what is given of a target changes which counts speak of it
            return UniversalPredictor(self.model, self.log.knowing(given)), events
        return self, events

    def embed(
        self,
        events: Any = None,
        pool: Sequence[str] = ("last",),
        interrupt: Callable[[], None] = lambda: None,
    ) -> UserEmbeddings:
        """Each user's vector (D,): `last`, the hidden units that decide which counts are believed,
        knows no label.

        `behaviors` are log-probabilities of what follows, of the most frequent behaviors. `events`
        as for `predict`. Raises ConfigError for other parts, and for a log that was counted with a
        time or a place given, and DataError.
        """
        # the counts would stand at a moment that only a prediction has
        if self.given:
            raise ConfigError(
                f"this log was counted with the {' and '.join(self.given)} of the event that is "
                "predicted given, which a vector does not know; count it without: fit_tables(log)."
            )
        # a trained model has more parts, so the options allow them
        for part in check_settings(EmbedOptions, {"pool": pool}, "embed").pool:
            if part not in VECTORS:
                raise ConfigError(
                    f"the universal model has no part {part!r}; it has {' and '.join(VECTORS)}."
                )

        asked, tables = self._asked(events), self.log.tables
        users, vectors = [], []
        for batch in asked.batches(interrupt):
            # labels are numbered by frequency, so the first are the most frequent
            parts = [
                self.model.vectors(batch.memory, tables, part)[:, :MOST_BEHAVIORS] for part in pool
            ]
            users.append(batch.position)
            vectors.append(torch.cat(parts, 1).numpy())

        # back into the order of the users
        order = np.argsort(np.concatenate(users), kind="stable")
        return UserEmbeddings(asked.users, np.concatenate(vectors)[order])

    def generate(
        self,
        events: Any = None,
        steps: int = 50,
        *,
        on_user: Callable[[int, int], None] | None = None,
        interrupt: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Generated:
        """The next `steps` events of each user: behaviors are drawn from the model, times and
        places from the past.

        `events` as for `predict`, states excepted; options as for `Predictor.generate`. Raises
        ConfigError, also for a saved model without `events`: times and places are drawn from
        histories.
        """
        from behavegpt.generation.settings import GenerationSettings
        from behavegpt.universal_generation import roll_out_states  # takes seconds to import

        # None stands for the default, as the command line and the service pass it
        chosen = {name: value for name, value in options.items() if value is not None}
        settings = check_settings(GenerationSettings, {"steps": steps, **chosen}, "generate")

        # times and places come from histories, of which states keep counts alone
        encoded = self.log.histories if events is None else self.encode(events)
        if encoded is None:
            raise ConfigError(
                "a saved model knows states, no histories; give the histories to be continued."
            )
        return roll_out_states(self.model, self.log, encoded, settings, on_user, interrupt)
