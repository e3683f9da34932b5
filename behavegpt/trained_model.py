"""A trained model and what stands beside it: tokenizer, thresholds, times, the users it knows.

`Predictor` asks it; here is how logs are read for it, and how states of users are made and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import Moment, in_order
from behavegpt.data.state_files import holds_states, load_states, save_states
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import TIME, StatesOfHistories, StateSpec, UserState, identity
from behavegpt.decision import Thresholds
from behavegpt.generation.constraints import Links
from behavegpt.history_batches import Histories, ReadsMemory, memory_of_histories
from behavegpt.ingest.asked import count_unknown, read_asked
from behavegpt.ingest.histories import EventData, encode_histories
from behavegpt.ingest.users import KeepsStates, Users, as_states
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.paths import local_path
from behavegpt.tabular import html_facts
from behavegpt.timing.gaps import Gaps


class TrainedModel(KeepsStates):
    """A model with its tokenizer, and the users whose states it was told."""

    def __init__(
        self,
        model: BehaveGPTForBehaviorPrediction,
        tokenizer: EventTokenizer,
        links: Links | None = None,
        thresholds: Thresholds | None = None,
        known: Mapping[str, UserState] | None = None,
        timing: Gaps | None = None,
    ) -> None:
        """`links`: which ids go together in training, for `generate`; `thresholds`: for
        `predict(..., thresholds=True)`; `known`: the states of users that can be asked for by
        name; `timing`: for `when`."""
        # eval: dropout would give another answer each time
        self.model, self.tokenizer, self.links = model.eval(), tokenizer, links
        self.thresholds, self._known, self.timing = thresholds, known or {}, timing

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._facts().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        return html_facts(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, object]:
        """What a notebook shows of it."""
        columns = "/".join(self.tokenizer.event_schema.roles.values())
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "parameters": f"{parameters:,}",
            "behaviors": f"{self.tokenizer.behaviors.classes:,}",
            "columns": columns,
            "device": self.model.device,
        }

    def reading(self, **changes: Any) -> Self:
        """The predictor for logs whose columns are named, or whose times are written, otherwise
        than in training.

        >>> reader = model.reading(user="uid", time="ts", time_format="%d/%m/%Y")   # doctest: +SKIP
        >>> reader.predict("logs.csv")                                              # doctest: +SKIP
        """
        # the same weights and labels: only how a log is read changes
        return self._with(tokenizer=self.tokenizer.reading(changes))

    def with_features(self, users: EventData) -> Self:
        """The predictor that knows what a table says of the users, for a model trained on data
        prepared with one: files or a frame with the user's column and the features', one row for a
        user.

        Users without a row, and values that are missing or new, are unknown; so is everybody
        without a table. Raises ConfigError for a model that reads no features, and DataError.
        """
        # the users' states stay: the same events give the same ids under the same labels
        return self._with(tokenizer=self.tokenizer.with_features(users))

    def _with(self, **parts: Any) -> Self:
        """The predictor with other parts."""
        # a copy, not a new one: a subclass may know more, as that of `fit` knows its run
        other = copy.copy(self)
        other.__dict__.pop("state_spec", None)  # made of the tokenizer
        other.__dict__.update(parts)
        return other

    @property
    def given(self) -> tuple[str, ...]:
        """What must be told of the event that is predicted: `time`, `location`, both or nothing."""
        return in_order(self.model.config.given or ())

    @property
    def tells_times(self) -> bool:
        """Whether `when` has learned times."""
        return self.timing is not None

    @property
    def users(self) -> Users:
        """The users that `with_states` made known; none at first."""
        return Users(self.tokenizer, self.state_spec, self._known)

    @cached_property
    def state_spec(self) -> StateSpec:
        """What a state holds: the last `max_length` events, of a model with memory also the
        counts."""
        refuse_baskets(
            self.tokenizer.event_schema, "a state, which an event is added to at a time,"
        )
        # a model without memory keeps no counts, so that its states stay small
        config, counts = self.model.config, self.model.counts

        # the time last, also where the model does not read it: a state must know when it ended
        columns = (*(name for name in config.columns if name != TIME), TIME)
        # states belong to what their ids, their length and their counts come from
        text = " ".join([self.tokenizer.hash, str(config.max_length), *columns])
        arrays = () if counts is None else (*counts.tables, counts.edges)

        return StateSpec(identity(text, arrays), counts, columns, config.max_length)

    def with_states(self, source: str | Path | EventData) -> Self:
        """The predictor that knows users: those of a folder that `save_states` wrote, or of logs.

        Raises CheckpointError where the states are damaged or another model's.
        """
        # a path is a folder of states or a log file, told apart by what lies in it
        folder = local_path(source) if isinstance(source, (str, Path)) else None
        known: Mapping[str, UserState]

        if folder is not None and holds_states(folder):
            known = load_states(folder, self.state_spec)
        else:
            known = StatesOfHistories(self.state_spec, self.encode(source))
        return self._with(_known=known)

    def save_states(self, folder: str | Path, states: Iterable[UserState] | None = None) -> Path:
        """Write states (default: those of all known users) as a folder for `with_states`.

        They belong to the vocabulary, the window and the counts of the model, not to its weights.
        Replaces a folder of the kind, nothing else. Raises ConfigError.
        """
        path = local_path(folder)
        # a list: writing while states are made would half write a folder if one cannot be
        save_states(path, list(self.users.values() if states is None else states), self.state_spec)
        return path

    def encode(self, events: EventData | EncodedHistories) -> EncodedHistories:
        """The histories in ids, as the other methods take them too. Raises DataError when no event
        is usable."""
        return encode_histories(self.tokenizer, events)

    def _asked(
        self, events: Any, at: Any = None, location: Any = None
    ) -> tuple[EncodedHistories, ReadsMemory | None, Moment | None]:
        """Histories (U,), those of states being their last events, what tells the counts at their
        ends, and the fields (U,) that are given of what follows."""
        states = as_states(events)
        encoded = self.encode(events) if states is None else self.state_spec.windows(states)

        asked = None
        if self.given:
            asked, unknown = read_asked(self.tokenizer, encoded.users, at, location)
            encoded = count_unknown(encoded, unknown)

        if states is not None:
            return encoded, self.state_spec.source(states, encoded.offsets, asked), asked

        # histories are counted now; a state has counted its own already
        histories = Histories(encoded.columns, encoded.offsets[:-1], encoded.offsets[1:])
        return encoded, memory_of_histories(self.model, histories, asked), asked
