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

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from behavegpt.checksums import seal
from behavegpt.config import check_settings
from behavegpt.data.given import Moment, check_names
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import UserState
from behavegpt.errors import ConfigError
from behavegpt.explain import Explanations, Source, Why, explain, refuse_states
from behavegpt.filters import Choice, choose_from, without_seen
from behavegpt.ingest.asked import check_asked, count_unknown, named_given, read_asked
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.histories import EventData, encode_histories, rows_as_columns
from behavegpt.ingest.users import KeepsStates, Users, as_states
from behavegpt.io import scratch
from behavegpt.options import MOST_BEHAVIORS, EmbedOptions, ExplainOptions, PredictOptions
from behavegpt.paths import local_path
from behavegpt.predictions import Predictions, most_probable
from behavegpt.timing.answer import Times, times_of
from behavegpt.universal.counted import (
    Asked,
    CountedLog,
    count_log,
    is_counted,
    read_counted,
    write_counted,
)
from behavegpt.universal.model import UniversalModel, load_universal, refuse_used, write_universal
from behavegpt.user_embeddings import UserEmbeddings

if TYPE_CHECKING:
    from behavegpt.generation.result import Generated
    from behavegpt.predictor import Predictor

UNIVERSAL = "universal"  # the name that stands for the shipped weights
NO_THRESHOLDS = (
    "thresholds are learned on a validation split, and a log that is only counted has none; "
    "use prior_correction, or a trained model."
)
VECTORS = ("last", "behaviors")  # parts of a user's vector


def is_universal(name: str | Path) -> bool:
    """Whether a model's name means the shipped weights: `universal`, or a folder of others of the
    kind."""
    path = Path(name)
    # a folder of the user's called `universal` comes before the shipped weights
    return (str(name) == UNIVERSAL and not path.is_dir()) or (path / "universal.json").is_file()


def load(
    folder: str | Path, device: str | torch.device | None = None
) -> Predictor | UniversalPredictor:
    """Open a model folder (see `predictor.load`), or a model that ships by its name: `universal`
    or `demo`."""
    if is_universal(folder):
        return load_zero_shot(folder)
    from behavegpt.predictor import load as load_trained  # takes seconds to import

    return load_trained(folder, device)


def load_zero_shot(name: str | Path = UNIVERSAL) -> UniversalPredictor:
    """The universal model by name or folder; it predicts once it has counted a log.

    A folder that `UniversalPredictor.save` wrote has counted one. Raises CheckpointError.
    """
    path = Path(name)
    if not path.is_dir():
        return UniversalPredictor(load_universal())
    model = load_universal(path)
    return UniversalPredictor(model, read_counted(path) if is_counted(path) else None)


class UniversalPredictor(KeepsStates):
    """The universal model, and what was counted from a log: its labels, its tables and the states
    of its users."""

    def __init__(self, model: UniversalModel, log: CountedLog | None = None) -> None:
        self.model = model
        self._log = log

    @property
    def log(self) -> CountedLog:
        """What was counted. Raises ConfigError before `fit_tables`."""
        if self._log is None:
            raise ConfigError(
                "no log has been counted yet: call fit_tables(log), or load a folder "
                "that `save` wrote."
            )
        return self._log

    @property
    def counted(self) -> bool:
        """Whether there is a log."""
        return self._log is not None

    @property
    def tokenizer(self) -> EventTokenizer:
        """Columns and labels of the counted log."""
        return self.log.tokenizer

    @property
    def tells_times(self) -> bool:
        """Whether `when` can learn times, or has."""
        return self.log.learned is not None or self.log.histories is not None

    @property
    def users(self) -> Users:
        """The users of the log, with their states."""
        return self.log.users

    def __repr__(self) -> str:
        if self._log is None:
            return "UniversalPredictor(no log counted yet)"
        return f"UniversalPredictor({self.tokenizer.behaviors.classes:,} behaviors counted)"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def given(self) -> tuple[str, ...]:
        """What must be told of the event that is predicted; empty before anything was counted."""
        return () if self._log is None else self._log.given

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

        given = named_given(at, location)
        counted, events = self._counted_for(events, given)
        if counted is not self:
            return counted.predict(
                events,
                top_k,
                at=at,
                location=location,
                on_user=on_user,
                interrupt=interrupt,
                **decision,
            )

        remedy = f"count the log again: fit_tables(log, given={list(given)})"
        check_asked(self.given, at, location, "this counted log", remedy)

        if events is not None and as_states(events) is None:
            events = self.encode(events)
        choice = self._without_seen(choose_from(options, self.tokenizer), events)
        asked, tables = self._asked(events, at, location), self.log.tables
        pieces = (
            (batch.position, self.model.logits(batch.memory, tables))
            for batch in asked.batches(interrupt)
        )
        shift = options.prior_correction * torch.log(torch.from_numpy(tables.prior))
        return most_probable(pieces, self.tokenizer, asked, choice, shift, on_user)

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
        refuse_states(events)
        given = named_given(at, location)
        counted, events = self._counted_for(events, given)
        if counted is not self:
            told = {"at": at, "location": location, "interrupt": interrupt}
            return counted.explain(events, last, **told, **decision)

        remedy = f"count the log again: fit_tables(log, given={list(given)})"
        check_asked(self.given, at, location, "this counted log", remedy)
        encoded = self.log.histories if events is None else self.encode(events)
        if encoded is None:
            raise ConfigError(
                "a saved model knows states, no histories; give those that are to be explained."
            )
        asked = None
        if self.given:
            asked, _ = read_asked(self.tokenizer, encoded.users, at, location)

        tables, shares = self.log.tables, self.log.shares

        def pieces(histories: EncodedHistories, moment: Moment | None) -> Any:
            for batch in self.log.asked(histories, moment).batches(interrupt):
                yield batch.position, self.model.logits(batch.memory, tables)

        choice = without_seen(choose_from(options, self.tokenizer), encoded, None)
        shift = options.prior_correction * torch.log(torch.from_numpy(tables.prior))
        source = Source(pieces, self.tokenizer, self.model.mixer, shares)
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
        if counted is not self:
            return counted.when(events, within, top_k, now=now, interrupt=interrupt)
        own = self.log.histories
        if events is None and own is None:
            raise ConfigError(
                "a saved model knows states, no histories; give those whose next event is asked "
                "for."
            )

        def predict(encoded: EncodedHistories, top: int) -> Predictions:
            return self.predict(encoded, top, interrupt=interrupt)

        return times_of(
            lambda: self.log.timing,
            self.tokenizer,
            lambda: own if events is None and own is not None else self.encode(events),
            predict,
            now,
            within=within,
            top_k=top_k,
        )

    def _without_seen(self, choice: Choice, events: Any) -> Choice:
        """The choice without what users had, of histories in ids, states, or None for the log's
        users."""
        histories, states = self.log.histories if events is None else events, as_states(events)
        if choice.exclude_seen and histories is None:
            states = list(self.users.values())  # a saved log has states alone
        return without_seen(choice, histories, states)

    def _counted_for(
        self, events: EventData | None, given: tuple[str, ...]
    ) -> tuple[UniversalPredictor, EventData | None]:
        """Who answers, and about which events: where nothing was counted yet, or with nothing
        given, another predictor."""
        if self._log is None and events is not None:
            return self.fit_tables(events, given=given), None
        if given and not self.given and as_states(events) is None:
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
        if self.given:
            raise ConfigError(
                f"this log was counted with the {' and '.join(self.given)} of the event that is "
                "predicted given, which a vector does not know; count it without: fit_tables(log)."
            )
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

    def encode(self, events: Any) -> EncodedHistories:
        """Histories in ids, as the other methods take them too. Raises DataError when no event is
        usable."""
        return encode_histories(self.tokenizer, events)

    def save(self, folder: str | Path, states: Iterable[UserState] | None = None) -> Path:
        """Write weights, labels, tables and states (default: those of all users of the log); `load`
        opens it.

        Replaces a folder of the kind, nothing else. Raises ConfigError.
        """
        path = local_path(folder)
        refuse_used(path)

        # in one rename: weights, labels, tables and states of one moment
        with scratch(path) as temporary:
            write_universal(self.model, temporary)
            write_counted(self.log, temporary, self.users.values() if states is None else states)
            seal(temporary)
        return path

    def _asked(self, events: Any, at: Any = None, location: Any = None) -> Asked:
        """Whose next behavior is asked for, at which time and place."""
        # who is asked about, and what asks once the moments are known
        states = as_states(events)
        ask: Callable[..., Asked]
        if events is None:
            users, ask = pa.array(list(self.users), pa.string()), self.log.everyone
        elif states is not None:
            users = pa.array([state.user for state in states], pa.string())
            ask = partial(self.log.asked_of_states, states)
        else:
            encoded = self.encode(events)
            users, ask = encoded.users, partial(self.log.asked, encoded)

        if not self.given:
            return ask()
        moments, unknown = read_asked(self.tokenizer, users, at, location)
        return count_unknown(ask(moments), unknown)
