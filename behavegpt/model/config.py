"""BehaveGPTConfig: the model's shape, saved beside its weights."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

SPECIAL_IDS = 2  # padding and unknown; behavior class = vocabulary id - SPECIAL_IDS
GAP_BUCKETS = 56  # outputs of the gap head, as data/collate.py cuts the time to the next event
RETIRED = -1e4  # logit of a class that is never predicted: finite, so that a loss of it is too
# what may be given of the event that is predicted, as data/given.py takes it from a log
GIVEN_FIELDS = {"time": ("weekday", "slot"), "location": ("location",)}


@strict
class BehaveGPTConfig(PreTrainedConfig):
    """Shape of a BehaveGPT. The defaults are the paper's (section 4.1.4) where it states them; see
    docs/paper.md.

    `field_sizes` maps each input field to its number of ids, in the order of concatenation (eq. 2);
    the width of the transformer is `len(field_sizes) * embedding_size`, 4d for the paper's four
    fields.
    """

    model_type = "behavegpt"
    keys_to_ignore_at_inference = [
        "hidden_states",
        "last_hidden_state",
        "next_logits",
        "past_key_values",
    ]
    attribute_map = {"num_labels": "num_behaviors"}

    field_sizes: dict[str, int] | None = None
    # of concatenation; null: as in field_sizes (JSON sorts a mapping's keys)
    field_order: list[str] | None = None
    num_behaviors: int = 2
    # the classes are the events themselves, in the order of their ids
    behavior_is_event: bool = False
    # ids of what is known of the user, by feature; added to each event, so the width stays
    user_features: dict[str, int] | None = None
    embedding_size: int = 256  # d
    # 0: the event at hand alone, without the past but for the history head's counts
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    intermediate_size: int | None = None  # of the blocks' MLP; null: 4 * hidden_size
    head_size: int | None = None  # hidden units of the prediction MLP (eq. 3); null: hidden_size
    max_length: int = 90  # events the model looks back on, I in eq. 1
    # rope | learned | none | time: rope whose positions the time between events moves on
    position_encoding: str = "rope"
    # a position is a basket, a set of events, and predicts what is in the next one, see baskets.py
    baskets: bool = False
    gap: bool = False  # the time since the event before is embedded, see elapsed.py
    dropout: float = 0.1  # on embeddings and both residual branches; never on attention weights
    layer_norm_eps: float = 1e-5
    initializer_range: float | None = None  # of new weights; null: 0.02 * sqrt(1024 / hidden_size)
    history_head: bool = False  # the user's own past enters the logits, see history.HistoryFeatures
    # counts of the whole past, mixed with the logits by mixer.Mixer; instead of history_head
    memory: bool = False
    memory_experts: list[str] | None = None  # that are mixed; data/memory_past.py's EXPERTS
    # what is given of the event that is predicted: any of time (weekday and slot), location
    given: list[str] | None = None
    tied_head: bool = False  # the event embedding enters the logits
    next_heads: list[str] | None = None  # auxiliary heads: gap and fields but weekday
    retired: list[int] | None = None  # classes that are never predicted any more
    tokenizer_hash: str | None = None  # of the vocabulary and schema the ids belong to

    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        # configs of earlier versions name the gap head's size, which could not be chosen
        if kwargs.pop("gap_buckets", GAP_BUCKETS) != GAP_BUCKETS:
            raise ValueError(
                f"BehaveGPTConfig: gap_buckets is {GAP_BUCKETS}, as the data are cut; remove it."
            )
        self.field_sizes = dict(
            self.field_sizes or {"location": 3, "weekday": 7, "slot": 48, "event": 3}
        )
        self.field_order = list(self.field_order or self.field_sizes)
        if sorted(self.field_order) == sorted(self.field_sizes):
            self.field_sizes = {name: self.field_sizes[name] for name in self.field_order}

        # new lists: a default shared by all configs could be changed through one of them
        self.next_heads = list(self.next_heads or [])
        self.given = list(self.given or []) or None
        # sorted as JSON sorts them: a sum in another order rounds otherwise
        self.user_features = dict(sorted((self.user_features or {}).items())) or None
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.head_size = self.head_size or self.hidden_size

        # GPT-2's 0.02 suits widths about 1024; a narrow network begins on a plateau with it
        # (docs/baselines.md)
        self.initializer_range = self.initializer_range or round(
            0.02 * (1024 / max(1, self.hidden_size)) ** 0.5, 4
        )

        # checks the types, and calls validate_architecture
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the transformer: the field embeddings side by side."""
        return len(self.field_sizes or ()) * self.embedding_size

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a prepared log that the model reads: its fields, what is known of the user,
        past behaviors for the history head, and the time where it is told in seconds."""
        extra = ("behavior",) if self.history_head and not self.behavior_is_event else ()
        if self.reads_time:
            extra = (*extra, "time")
        # without duplicates: `behavior` can be an input field too
        return tuple(
            dict.fromkeys((*(self.field_order or ()), *(self.user_features or ()), *extra))
        )

    @property
    def reads_time(self) -> bool:
        """Whether the network reads the time between events."""
        return self.gap or self.position_encoding == "time"

    @property
    def ids_by_column(self) -> dict[str, int]:
        """Number of ids of each column that is embedded: fields, then features of the user."""
        return {**(self.field_sizes or {}), **(self.user_features or {})}

    def validate_architecture(self) -> None:
        """Refuse shapes that contradict each other; called by transformers after construction."""
        for message, holds in (self._shape_checks() | self._input_checks()).items():
            if not holds:
                raise ValueError(f"BehaveGPTConfig: {message}.")

    def _shape_checks(self) -> dict[str, bool]:
        """What must hold of the transformer's shape, by the message where it does not."""
        fields = self.field_sizes or {}
        return {
            "field_sizes must contain 'event'": "event" in fields,
            "field_order must name each of field_sizes once": sorted(self.field_order or ())
            == sorted(fields),
            "user_features may not name a field of the events": fields.keys().isdisjoint(
                self.user_features or {}
            ),
            f"hidden_size {self.hidden_size} ({len(fields)} fields x embedding_size "
            f"{self.embedding_size}) must be a multiple of 2 * num_attention_heads "
            f"{self.num_attention_heads}": (
                # 0 heads are reported by the next check; a modulo by 0 would raise
                self.num_attention_heads < 1
                or self.hidden_size % (2 * self.num_attention_heads) == 0
            ),
            "max_length, num_attention_heads and embedding_size must be at least 1": (
                min(self.max_length, self.num_attention_heads, self.embedding_size) >= 1
            ),
            f"num_hidden_layers must be at least 0, not {self.num_hidden_layers}": (
                self.num_hidden_layers >= 0
            ),
            f"dropout must be in [0, 1), not {self.dropout}": 0 <= self.dropout < 1,
            "position_encoding must be rope, learned, none or time": (
                self.position_encoding in ("rope", "learned", "none", "time")
            ),
            "a basket is a set at one moment: set gap and history_head to false, position_encoding "
            "to rope, learned or none, next_heads to [] and given to null": not self.baskets
            or not (self.reads_time or self.history_head or self.next_heads or self.given),
            "the time between events has no effect on counts alone: set gap to false and "
            "position_encoding to rope, or num_hidden_layers to at least 1": not (
                self.reads_time and self.memory and not self.num_hidden_layers
            ),
        }

    def _input_checks(self) -> dict[str, bool]:
        """What the heads, the memory and what is given need of the inputs."""
        fields = self.field_sizes or {}
        given = self.given or []
        return {
            "tied_head needs behavior_is_event: the classes must be the events": (
                not self.tied_head or self.behavior_is_event
            ),
            "memory replaces history_head; set one of them": not (
                self.memory and self.history_head
            ),
            "memory needs memory_experts, the names in behavegpt.data.memory_past.EXPERTS": (
                not self.memory or bool(self.memory_experts)
            ),
            f"retired must name some classes of {self.num_behaviors}, not all: {self.retired}": (
                set(self.retired or ()) < set(range(self.num_behaviors))
            ),
            f"given may name {' and '.join(GIVEN_FIELDS)}, each once, not {self.given}": (
                set(given) <= GIVEN_FIELDS.keys() and len(set(given)) == len(given)
            ),
            "given has no effect on history_head, which counts at the time and place of the last "
            "event; set history_head to false, or memory to true in its place": (
                not (given and self.history_head)
            ),
            f"given {self.given} needs these fields among the inputs: set inputs to all, memory to "
            "true, or take a log with locations": (
                self.memory
                or all(field in fields for name in given for field in GIVEN_FIELDS.get(name, ()))
            ),
            "history_head reads the time slot; set it to false, or inputs to all": (
                not self.history_head or "slot" in fields
            ),
            "behavior_is_event needs num_behaviors = events without padding and unknown": (
                not self.behavior_is_event
                or self.num_behaviors == fields.get("event", 0) - SPECIAL_IDS
            ),
            "next_heads may name gap and the fields of the model but weekday": all(
                name == "gap" or (name != "weekday" and name in fields)
                for name in self.next_heads or ()
            ),
        }


AutoConfig.register(BehaveGPTConfig.model_type, BehaveGPTConfig, exist_ok=True)
