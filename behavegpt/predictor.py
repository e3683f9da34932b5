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

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behavegpt.baselines import network as _baselines  # noqa: F401 - so that their folders open too
from behavegpt.config import check_settings
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import Moment, in_order
from behavegpt.data.state_files import holds_states, load_states, save_states
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import TIME, StatesOfHistories, StateSpec, UserState, identity
from behavegpt.decision import Thresholds, load_thresholds, log_frequency, shift_of
from behavegpt.devices import choose_device
from behavegpt.embeddings.pooling import user_vectors, widths
from behavegpt.explain import Explanations, Source, Why, explain, refuse_states
from behavegpt.filters import choose_from, without_seen
from behavegpt.generation.constraints import Links, load_links
from behavegpt.generation.result import Generated
from behavegpt.generation.rollout import roll_out
from behavegpt.generation.settings import GenerationSettings
from behavegpt.history_batches import Histories, ReadsMemory, memory_of_histories
from behavegpt.history_logits import history_logits
from behavegpt.ingest.asked import check_asked, count_unknown, read_asked
from behavegpt.ingest.histories import EventData, encode_histories
from behavegpt.ingest.users import KeepsStates, Users, as_states
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import choose_backend
from behavegpt.model.precision import choose_precision
from behavegpt.options import ExplainOptions, PredictOptions
from behavegpt.paths import local_path
from behavegpt.predictions import Predictions, most_probable
from behavegpt.shipped import shipped_folder
from behavegpt.tabular import html_facts
from behavegpt.timing.answer import Times, of_model, times_of
from behavegpt.timing.files import load_gaps
from behavegpt.timing.gaps import Gaps
from behavegpt.training.model_folder import open_model
from behavegpt.user_embeddings import UserEmbeddings

# folder of a run -> what it holds
MODEL_FILES = {"model": "config.json", "adapter": "adapter_config.json"}


class Predictor(KeepsStates):
    """A model with its tokenizer. The same user gets the same answer, whatever else is in the
    call."""

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

    def reading(self, **changes: Any) -> Predictor:
        """The predictor for logs whose columns are named, or whose times are written, otherwise
        than in training.

        >>> reader = model.reading(user="uid", time="ts", time_format="%d/%m/%Y")   # doctest: +SKIP
        >>> reader.predict("logs.csv")                                              # doctest: +SKIP
        """
        # the same weights and labels: only how a log is read changes
        return self._with(self.tokenizer.reading(changes))

    def with_features(self, users: EventData) -> Predictor:
        """The predictor that knows what a table says of the users, for a model trained on data
        prepared with one: files or a frame with the user's column and the features', one row for a
        user.

        Users without a row, and values that are missing or new, are unknown; so is everybody
        without a table. Raises ConfigError for a model that reads no features, and DataError.
        """
        return self._with(self.tokenizer.with_features(users))

    def _with(self, tokenizer: EventTokenizer) -> Predictor:
        return Predictor(
            self.model, tokenizer, self.links, self.thresholds, self._known, self.timing
        )

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
        config, counts = self.model.config, self.model.counts

        # the time last, also where the model does not read it: a state must know when it ended
        columns = (*(name for name in config.columns if name != TIME), TIME)
        # states belong to what their ids, their length and their counts come from
        text = " ".join([self.tokenizer.hash, str(config.max_length), *columns])
        arrays = () if counts is None else (*counts.tables, counts.edges)

        return StateSpec(identity(text, arrays), counts, columns, config.max_length)

    def with_states(self, source: str | Path | EventData) -> Predictor:
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
        return Predictor(
            self.model, self.tokenizer, self.links, self.thresholds, known, self.timing
        )

    def save_states(self, folder: str | Path, states: Iterable[UserState] | None = None) -> Path:
        """Write states (default: those of all known users) as a folder for `with_states`.

        They belong to the vocabulary, the window and the counts of the model, not to its weights.
        Replaces a folder of the kind, nothing else. Raises ConfigError.
        """
        path = local_path(folder)
        save_states(path, list(self.users.values() if states is None else states), self.state_spec)
        return path

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
        history; or a state or a list of them, for which no history is read. `at`, `location`: the
        time and the place that are asked about, of a model trained with `model.given`: one for all
        users, or a mapping of user to value; of the time the weekday and the slot count.
        `interrupt` is called between pieces of the work; what it raises stops it. `decision`:
        prior_correction=tau > 0 lifts rare behaviors, logits - tau * log(training frequency);
        thresholds=True takes the model's own instead, see decision.py; and filters: among=["news"],
        exclude=[...], exclude_seen=True, per_group={"news": "reading"}, see filters.py. Raises
        ConfigError and DataError.
        """
        # all options before the events are read, which may take long
        options = check_settings(PredictOptions, {"top_k": top_k, **decision}, "predict")
        log_prior = log_frequency(self.tokenizer.behaviors.counts)
        shift = shift_of(options, log_prior, self.thresholds)
        choice = choose_from(options, self.tokenizer, self.model.config.retired)
        check_asked(self.given, at, location, "this model", "train with model.given")

        encoded, memory, asked = self._asked(events, at, location)
        choice = without_seen(choice, encoded, as_states(events))
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
        """Why each user's most probable next behavior: what the experts of the memory add to it,
        where the model has one, and what it loses without each of the `last` events; explain.py.

        Arguments as for `predict`, states excepted, which hold no history. Raises ConfigError and
        DataError.
        """
        options = check_settings(ExplainOptions, {"last": last, **decision}, "explain")
        log_prior = log_frequency(self.tokenizer.behaviors.counts)
        shift = shift_of(options, log_prior, self.thresholds)
        choice = choose_from(options, self.tokenizer, self.model.config.retired)
        check_asked(self.given, at, location, "this model", "train with model.given")
        refuse_states(events)
        refuse_baskets(self.tokenizer.event_schema, "explain")

        encoded, _, asked = self._asked(events, at, location)

        def pieces(histories: EncodedHistories, moment: Moment | None) -> Any:
            spans = Histories(histories.columns, histories.offsets[:-1], histories.offsets[1:])
            memory = memory_of_histories(self.model, spans, moment)
            return history_logits(self.model, histories, memory, interrupt, moment)

        counts, memory = self.model.counts, self.model.memory_head
        source = Source(
            pieces,
            self.tokenizer,
            None if memory is None else memory.mixer,
            None if counts is None else counts.shares,
            self.model.config.max_length if counts is None else None,
        )
        why = Why(without_seen(choice, encoded, None), shift, options.last)
        return explain(source, encoded, why, asked)

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

        `events` as for `predict`, states excepted. `now`: the time of asking, such as "2011-11-12
        09:00", after which nothing is read; by default each user's last event. Raises ConfigError,
        also for a model without timing.json, and DataError. Docs: docs/when.md.
        """

        refuse_baskets(self.tokenizer.event_schema, "when")

        def predict(encoded: EncodedHistories, top: int) -> Predictions:
            return self.predict(encoded, top, interrupt=interrupt)

        return times_of(
            lambda: of_model(self.timing),
            self.tokenizer,
            lambda: self.encode(events),
            predict,
            now,
            within=within,
            top_k=top_k,
        )

    def shares(self, encoded: EncodedHistories) -> np.ndarray:
        """Probability (U, K) of each class to be a user's next behavior, in the order of the
        vocabulary."""
        found = np.zeros((len(encoded.users), self.tokenizer.behaviors.classes), np.float32)
        memory = self._asked(encoded)[1]
        for users, logits in history_logits(self.model, encoded, memory, lambda: None):
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
        time="observed". `links`: what goes together, see generation/constraints.py; by default what
        stands beside the model. Docs: docs/generation.md.
        """
        # None stands for the default, as the command line and the service pass it
        chosen = {name: value for name, value in options.items() if value is not None}
        given = {"steps": steps, **chosen}
        settings = check_settings(GenerationSettings, given, "generate")

        links = self.links if links is None else links
        return roll_out(
            self.model, self.tokenizer, self.encode(events), settings, links, on_user, interrupt
        )

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


def model_folder(folder: str | Path) -> Path:
    """The `model` or `adapter` folder of a run's, the folder of a model that ships; any other
    folder as it is."""
    folder = shipped_folder(folder) or Path(folder)
    inside = {name: folder / name / file for name, file in MODEL_FILES.items()}

    # a run is recognized by its parts, so that a model folder may hold a folder `model` itself
    if any((folder / file).is_file() for file in MODEL_FILES.values()):
        return folder
    return next((path.parent for path in inside.values() if path.is_file()), folder)


def load(folder: str | Path, device: str | torch.device | None = None) -> Predictor:
    """Open a model folder, an adapter's, a run's, or the model that ships as `demo`; `device`
    defaults to a GPU where there is one.

    Raises CheckpointError when the folder is none of these, or is damaged, ConfigError for a device
    that is not there.
    """
    folder = model_folder(local_path(folder))
    if (folder / "adapter_config.json").is_file():
        from behavegpt.adapt.peft import open_adapter

        model, tokenizer = open_adapter(folder)
    else:
        model, tokenizer = open_model(folder)

    # bf16 and the fastest attention where the device has them
    place = choose_device(device)
    torch.nn.Module.to(model, place)
    half = choose_precision("auto", place) == "bf16"
    model.set_attn_implementation(choose_backend(place, half, model.config.max_length))
    thresholds, timing = load_thresholds(folder, tokenizer), load_gaps(folder, tokenizer)
    return Predictor(model, tokenizer, load_links(folder), thresholds, timing=timing)
