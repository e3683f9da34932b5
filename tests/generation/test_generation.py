"""Long-term generation: cache = no cache, nobody's future depends on others, all fields agree with
each other."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from behavegpt.cli import main
from behavegpt.data.collate import gap_buckets
from behavegpt.data.loader import columns_of
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.generation.calibration import WEIGHT, log_odds_of_slots, log_odds_of_users
from behavegpt.generation.constraints import (
    count_link,
    count_links,
    learn_links,
    load_links,
    save_links,
)
from behavegpt.generation.own_past import OwnPast
from behavegpt.generation.policies import choose_policies
from behavegpt.generation.rollout import roll_out
from behavegpt.generation.sampling import (
    Uniforms,
    agree,
    bucket_edges,
    choose,
    pick,
    time_grid,
    time_in_bucket,
)
from behavegpt.generation.settings import GenerationSettings
from behavegpt.ingest.prepare import prepare
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.option_types import span_seconds
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.model_folder import save_model
from tests.helpers import random_store

HEADS = ["event", "location", "gap", "slot"]
SHAPES = {
    "rope": {"history_head": True},
    "learned": {"position_encoding": "learned"},
    "event": {"behaviors": None, "history_head": True, "tied_head": True},
    "behavior": {"with_behavior": True, "history_head": True},
    "bare": {"next_heads": []},
    "no blocks": {"history_head": True, "num_hidden_layers": 0},
}


def network(
    store,
    *,
    behaviors=None,
    next_heads=HEADS,
    max_length=12,
    with_behavior=False,
    num_hidden_layers=2,
    **shape,
):
    """A model with random weights, large enough that every input matters."""
    torch.manual_seed(0)
    beside = {"behavior": len(store.vocabulary["behavior"])} if with_behavior else {}
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes() | beside,
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        embedding_size=8,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        max_length=max_length,
        next_heads=[
            name for name in next_heads if not (name == "event" and store.schema.behavior_is_event)
        ],
        **shape,
    )
    model = BehaveGPTForBehaviorPrediction(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def setting(name="rope", **more):
    """Store, model, tokenizer and the histories of all users of the store."""
    shape = SHAPES[name] | more
    store = random_store(seed=3, users=17, longest=40, behaviors=shape.get("behaviors", 5))
    model = network(store, **shape)
    return store, model, EventTokenizer.from_store(store, model.config.max_length), encoded(store)


def encoded(store, users=None):
    users = np.arange(store.manifest.users) if users is None else np.asarray(users)
    begin, length = store.offsets[users], np.diff(store.offsets)[users]
    index = np.concatenate([np.arange(b, b + n) for b, n in zip(begin, length, strict=True)])
    columns = {
        n: np.asarray(c)[index].astype(np.int64)
        for n, c in columns_of(store).items()
        if n != "split"
    }
    labels = pa.array([f"user {u}" for u in users])
    return EncodedHistories(labels, np.concatenate([[0], np.cumsum(length)]), columns, {}, {})


def same(a, b):
    assert len(a) == len(b) > 0
    for name, values in a.columns.items():
        assert np.array_equal(values, b.columns[name]), name


# ---- the cache, and reproducibility


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("keep", [None, 1, 12])
def test_cached_equals_rerun_token_for_token(name, keep):
    """Histories of 1 to 40 events, a window of 12 and 40 steps: every row starts its window anew
    several times."""
    store, model, tokenizer, histories = setting(name)
    links = learn_links(model, store)
    found = [
        roll_out(
            model, tokenizer, histories, GenerationSettings(steps=40, keep=keep, cache=cache), links
        )
        for cache in (True, False)
    ]
    assert len(found[0]) == 17 * 40
    same(*found)


def test_a_future_does_not_depend_on_the_batch():
    store, model, tokenizer, histories = setting()
    whole = roll_out(model, tokenizer, histories, GenerationSettings(steps=25, samples=2, seed=5))
    same(
        whole,
        roll_out(
            model, tokenizer, histories, GenerationSettings(steps=25, samples=2, seed=5, rows=3)
        ),
    )
    some = [4, 9, 11]
    fewer = roll_out(model, tokenizer, encoded(store, some), GenerationSettings(steps=25, seed=5))
    mine = np.isin(whole.columns["user"], some) & (whole.columns["sample"] == 0)
    for column in ("time", "event", "location", "behavior"):
        assert np.array_equal(whole.columns[column][mine], fewer.columns[column])
    shorter = roll_out(model, tokenizer, histories, GenerationSettings(steps=7, samples=2, seed=5))
    first = whole.columns["step"] < 7
    assert np.array_equal(whole.columns["event"][first], shorter.columns["event"])
    other = roll_out(model, tokenizer, histories, GenerationSettings(steps=25, samples=2, seed=6))
    assert (other.columns["event"] != whole.columns["event"]).mean() > 0.3
    one, two = (whole.columns["event"][whole.columns["sample"] == k] for k in (0, 1))
    assert (one != two).mean() > 0.3


def test_temperature_zero_is_a_naive_loop():
    """The most probable behavior, event and place again and again, with the time of the policy
    `typical`."""
    store, model, tokenizer, histories = setting("rope", max_length=60)
    options = GenerationSettings(steps=12, temperature=0, time="typical")
    found = roll_out(model, tokenizer, histories, options, count_links(store))
    links = count_links(store)
    for user in (0, 3, 8):
        low, high = histories.offsets[user : user + 2]
        events = {n: c[low:high].tolist() for n, c in histories.columns.items()}
        gap = int(np.median(np.diff(events["time"]))) if high - low > 1 else 86400
        mine = found.columns["user"] == user
        for step in range(12):
            inputs = {
                ("input_ids" if n == "event" else f"{n}_ids"): torch.tensor([events[n]])
                for n in events
            }
            with torch.no_grad():
                out = model(**{n: v for n, v in inputs.items() if n != "time_ids"})
            behavior = int(out.logits[0, -1].argmax()) + 2
            scores = {
                n: v.view(1, len(events["event"]), -1)[0, -1].clone()
                for n, v in out.next_logits.items()
            }
            scores["event"][:2] = scores["location"][:1] = -torch.inf
            event = int(
                scores["event"]
                .masked_fill(~allowed(links, "behavior", behavior, "event", 14), -1e9)
                .argmax()
            )
            place = int(
                scores["location"]
                .masked_fill(~allowed(links, "event", event, "location", 6), -1e9)
                .argmax()
            )
            now = events["time"][-1] + gap
            drawn = {"behavior": behavior, "event": event, "location": place, "time": now}
            for name, value in drawn.items():
                assert found.columns[name][mine][step] == value, (user, step, name)
            drawn |= {"weekday": (now // 86400 + 3) % 7, "slot": now % 86400 // 1800}
            for name in events:
                events[name].append(drawn[name])


def allowed(links, given, value, drawn, size):
    link = links[given, drawn]
    ids = link.ids[link.pointer[value] : link.pointer[value + 1]]
    return (
        torch.isin(torch.arange(size), torch.from_numpy(ids))
        if len(ids)
        else torch.ones(size, dtype=torch.bool)
    )


# ---- what is drawn


def test_fields_go_together_as_in_training():
    store, model, tokenizer, histories = setting()
    links = count_links(store)
    columns = columns_of(store)
    train = np.asarray(columns["split"]) == 0
    pairs = {
        (a, b): set(zip(columns[a][train].tolist(), columns[b][train].tolist(), strict=True))
        for a, b in (("behavior", "event"), ("event", "location"))
    }
    settings = GenerationSettings(steps=30)
    linked = roll_out(model, tokenizer, histories, settings, links)
    for (a, b), known in pairs.items():
        drawn = list(zip(linked.columns[a].tolist(), linked.columns[b].tolist(), strict=True))
        assert all(pair in known for pair in drawn), (a, b)
    assert linked.policies["event"] == "head, among those of the behavior in training"
    alone = roll_out(model, tokenizer, histories, settings)
    drawn = zip(alone.columns["behavior"].tolist(), alone.columns["event"].tolist(), strict=True)
    assert not all(pair in pairs["behavior", "event"] for pair in drawn), (
        "without links they contradict each other"
    )
    assert alone.policies["event"] == "head, whatever the behavior"
    assert min(linked.columns["event"].min(), linked.columns["behavior"].min()) >= 2, (
        "never padding or unknown"
    )


def test_lift_is_the_share_beside_an_id_over_the_share_anywhere():
    given = np.repeat([2, 3], [3000, 1000])
    drawn = np.repeat([2, 3, 3], [2700, 300, 1000])
    link = count_link(given, drawn, 4)
    lift = link.log_lift(torch.tensor([2, 3]), 5).exp()
    overall = np.array([2700, 1300]) / 4000
    assert lift[0, 2:4].numpy() == pytest.approx([0.9 / overall[0], 0.1 / overall[1]], rel=0.01)
    assert lift[1, 2:4].numpy() == pytest.approx([0, 1 / overall[1]], abs=0.01, rel=0.01)
    assert lift[:, [0, 1, 4]].eq(1).all()  # never seen: the head decides
    # weighed by the marginal, it sums to one
    assert (lift[:, 2:4].numpy() * overall).sum(1) == pytest.approx([1, 1], rel=1e-5)


def test_links_are_counted_and_saved(tmp_path):
    link = count_link(np.array([2, 2, 2, 3, 1, 3]), np.array([5, 5, 4, 4, 4, 1]), 5)
    assert link.allowed(torch.tensor([2, 3, 4]), 6).tolist() == [
        [False, False, False, False, True, True],
        [False, False, False, False, True, False],
        [True] * 6,
    ]
    assert link.most_frequent(np.array([2, 3, 4])).tolist() == [5, 4, 0]
    # an id that came after training goes with anything
    assert link.allowed(torch.tensor([9]), 6).all() and link.most_frequent(np.array([9])) == [0]
    assert not link.log_lift(torch.tensor([9, 4]), 6).any()
    head = torch.nn.Linear(3, 6)
    scores, ids = link.scores(head, torch.ones(2, 3), torch.tensor([9, 3]))
    assert ids[0].tolist() == [1, 2, 3, 4, 5] and ids[1, scores[1] > -torch.inf].tolist() == [4]
    store = random_store()
    links = learn_links(network(store), store)
    save_links(links, tmp_path)
    again = load_links(tmp_path)
    assert torch.equal(again.gap_odds, links.gap_odds)
    assert again.keys() == links.keys() == {("behavior", "event"), ("event", "location")}
    for pair, link in links.items():
        assert all(
            np.array_equal(a, b)
            for a, b in zip(vars(link).values(), vars(again[pair]).values(), strict=True)
        )
    (tmp_path / "links.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged"):
        load_links(tmp_path)
    assert load_links(tmp_path / "none") == {}


def test_few_scores_are_those_of_the_whole_head():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 30), torch.randn(5, 8)
    rng = np.random.default_rng(0)
    link = count_link(rng.integers(2, 6, 60), rng.integers(1, 30, 60), 7)
    given = torch.tensor([2, 5, 2, 6, 3])  # nothing is known of 6
    scores, ids = link.scores(head, hidden, given)
    dense = torch.full((5, 30), -torch.inf)
    for row in range(5):
        real = scores[row] > -torch.inf
        dense[row, ids[row][real]] = scores[row][real]
    allowed = link.allowed(given, 30)
    allowed[:, 0] = False
    torch.testing.assert_close(
        dense, head(hidden).masked_fill(~allowed, -torch.inf), atol=1e-6, rtol=1e-5
    )


def test_choices_follow_the_probabilities():
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)) * 2
    u = torch.from_numpy(np.random.default_rng(0).random(40_000))
    for temperature in (1.0, 0.5):
        drawn = torch.bincount(
            choose(logits.expand(len(u), -1), u, temperature), minlength=200
        ) / len(u)
        expected = (logits[0] / temperature).softmax(-1)
        assert (drawn - expected).abs().sum() < 0.06
    nucleus = choose(logits.expand(len(u), -1), u, top_p=0.6)
    ordered = logits[0].softmax(-1).sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.6).sum()) + 1
    assert set(nucleus.tolist()) == set(ordered.indices[:size].tolist())
    assert (choose(logits, u[:1], temperature=0) == logits.argmax()).all()


def test_pick_is_the_inverse_of_the_running_sum():
    rng = np.random.default_rng(1)
    weight = rng.random((500, 333)) * (rng.random((500, 333)) < 0.2)
    weight[:, 7] += 1e-3
    u = rng.random(500)
    found = pick(torch.from_numpy(weight), torch.from_numpy(u)).numpy()
    running = weight.cumsum(1)
    expected = (running <= (u * running[:, -1])[:, None]).sum(1)
    assert np.array_equal(found, expected)
    for extreme in (0.0, np.nextafter(1, 0)):
        at = pick(torch.from_numpy(weight), torch.full((500,), extreme)).numpy()
        assert (weight[np.arange(500), at] > 0).all()


def test_uniform_numbers_are_philox_by_user():
    one = Uniforms(7, ["a", "b"], np.array([0, 0]))
    two = Uniforms(7, ["b"], np.array([0]))
    assert np.array_equal(one(20, 8)[1], two(20, 8)[0])
    assert not np.array_equal(one(20, 8)[0], one(20, 8)[1])
    assert not np.array_equal(one(20, 8), one(21, 8))
    many = np.concatenate([one(step, 8).ravel() for step in range(500)])
    assert abs(many.mean() - 0.5) < 0.01 and abs(many.var() - 1 / 12) < 0.003


# ---- time


@pytest.mark.parametrize("tz", ["UTC", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("grid", [1, 60, 3600])
def test_drawn_times_lie_in_their_bucket_and_on_the_grid(tz, grid):
    """Over both changes of daylight-saving time; the bucket is that of data/collate.py."""
    schema = EventSchema(user="u", time="t", event="e", tz=tz)
    rng = np.random.default_rng(0)
    start = int(datetime(2024, 1, 1, tzinfo=ZoneInfo(tz)).timestamp())
    after = start + rng.integers(0, 366 * 86400 // grid, 4000) * grid
    gaps = rng.integers(0, 40 * 86400 // grid, 4000) * grid
    bucket = gap_buckets(gaps)
    slots = rng.random((4000, 48))
    u = rng.random((4000, 3))
    gap = time_in_bucket(bucket, after, np.full(4000, grid), slots, u, schema)
    again = gap_buckets(gap)
    zone = ZoneInfo(tz)
    walls = [
        datetime.fromtimestamp(t, UTC).astimezone(zone).replace(tzinfo=UTC)
        for t in (after + gap).tolist()
    ]
    on_grid = np.array([w.timestamp() % grid == 0 for w in walls])
    # a change of the clocks by an hour may leave a narrow bucket without a time on the grid
    assert on_grid.all()
    assert (again == bucket).mean() > (0.998 if grid == 3600 else 0.9999)


def test_all_buckets_have_edges_that_meet():
    seconds = np.arange(200_000)
    bucket = (2 * np.log2(1 + seconds)).astype(np.int64)
    low, high = bucket_edges(bucket)
    assert (low <= seconds).all() and (seconds < high).all()


def test_the_time_of_day_follows_the_weights():
    schema = EventSchema(user="u", time="t", event="e", tz="Europe/Paris")
    after = np.full(3000, 1_700_000_000)
    slots = np.zeros((3000, 48))
    slots[:, 16] = 1  # 8:00 to 8:30
    u = np.random.default_rng(0).random((3000, 3))
    for bucket in (33, 36, 40):
        gap = time_in_bucket(
            np.full(3000, bucket), after, np.ones(3000, np.int64), slots, u, schema
        )
        walls = [
            datetime.fromtimestamp(t, ZoneInfo("Europe/Paris")) for t in (after + gap).tolist()
        ]
        near = [
            abs((w - w.replace(hour=8, minute=15, second=0)).total_seconds()) < 3000 for w in walls
        ]
        assert np.mean(near) > 0.95
        if bucket == 40:  # 12 to 17 days ahead: every day is met
            assert len({w.date() for w in walls}) >= 5


def test_own_rates_by_hand():
    """Two events: what happened is weighed against what was expected; an unknown past changes
    nothing."""
    expected = torch.tensor(
        [[[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]], [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]]]
    )
    known = torch.tensor([[True, True], [False, False]])
    odds = log_odds_of_users(expected, torch.tensor([[1, 1], [0, 0]]), known).exp()
    mean = torch.tensor([0.7, 0.3])
    torch.testing.assert_close(
        odds[0, :2], (torch.tensor([0.0, 2.0]) + WEIGHT * mean) / ((2 + WEIGHT) * mean)
    )
    assert odds[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "split,same", [(0, False), (1, True), (2, True)], ids=["train", "valid", "test"]
)
def test_generation_learns_from_training_events_alone(split, same):
    """What goes together, how often, and the gaps by slot: other labels and times in another split
    change nothing."""
    store = random_store(seed=2, users=30, longest=40)
    model = network(store)
    before = learn_links(model, store)
    other = np.asarray(store.columns["split"]) == split
    rng = np.random.default_rng(0)
    for name, high in (("event", 14), ("location", 6), ("behavior", 7), ("slot", 48)):
        store.columns[name][other] = rng.integers(1, high, other.sum())
    store.columns["time"][other] += np.uint32(40_000)
    after = learn_links(model, store)
    for pair, link in before.items():
        parts = zip(vars(link).values(), vars(after[pair]).values(), strict=True)
        assert all(np.array_equal(a, b) for a, b in parts) == same, pair
    assert torch.equal(before.gap_odds, after.gap_odds) == same


def test_gaps_by_slot_are_those_of_training():
    """With the correction, the mean predicted gap at events of a slot is what training observed
    after that slot."""
    store = random_store(seed=1, users=60, longest=40)
    model = network(store, max_length=40)
    odds = log_odds_of_slots(model, store)
    assert odds.shape == (48, 56)
    mean, plain, seen = (np.zeros((48, 56)) for _ in range(3))
    for user in range(60):
        low = store.offsets[user]
        high = low + int((store.columns["split"][low : store.offsets[user + 1]] == 0).sum())
        rows = np.arange(low, high - 1)
        known = store.column("behavior")[rows + 1] >= 2
        if not known.any():
            continue
        fields = {
            n: torch.from_numpy(store.columns[n][rows].astype(np.int64))[None]
            for n in model.config.columns
        }
        with torch.no_grad():
            out = model(
                **{("input_ids" if n == "event" else f"{n}_ids"): v for n, v in fields.items()}
            )
        slot = fields["slot"][0]
        logits = out.next_logits["gap"].view(len(rows), -1)
        corrected, head = ((logits + more).softmax(-1).numpy() for more in (odds[slot], 0))
        time = store.columns["time"].astype(np.int64)
        for k in np.flatnonzero(known):
            mean[slot[k]] += corrected[k]
            plain[slot[k]] += head[k]
            seen[slot[k], int(2 * np.log2(1 + time[rows[k] + 1] - time[rows[k]]))] += 1
    often = seen.sum(1) > 15
    assert often.sum() > 3
    error, before = (
        np.abs(table - seen)[often].sum() / seen[often].sum() for table in (mean, plain)
    )
    assert error < 0.45 < 0.9 < before, "five pseudo-events keep some of the head's own"


def test_a_user_keeps_its_own_pace():
    """A model that expects the same gaps of all: the slow user's get longer, the quick one's
    shorter."""
    _, model, tokenizer, histories = setting()
    columns = {n: np.tile(c[:1], 80) for n, c in histories.columns.items()}
    columns["time"] = np.concatenate([np.arange(40) * 600, np.arange(40) * 6 * 86400])
    two = EncodedHistories(pa.array(["quick", "slow"]), np.array([0, 40, 80]), columns, {}, {})

    def median(personal):
        found = roll_out(
            model, tokenizer, two, GenerationSettings(steps=200, personal=personal)
        ).columns
        return [np.median(found["gap"][found["user"] == user]) for user in (0, 1)]

    plain, own = median(False), median(True)
    assert own[0] < plain[0] and own[1] > plain[1]


def test_gap_and_slot_agree():
    """From the two marginals of a joint distribution of this form, its conditionals come back."""
    from behavegpt.generation.sampling import _overlap

    generator = torch.Generator().manual_seed(0)
    overlap = _overlap(56, 48)
    assert torch.allclose(overlap.sum(1), torch.ones(56))
    now = torch.tensor([0, 13, 47])
    share = torch.rand(3, 56, generator=generator) ** 4 * (torch.arange(56) > 18)
    weight = torch.rand(3, 48, generator=generator)  # of the slots ahead
    joint = share[..., None] * overlap * weight[:, None]
    joint /= joint.sum((1, 2), keepdim=True)
    ahead = (now[:, None] + torch.arange(48)) % 48
    slot = torch.zeros(3, 48).scatter(1, ahead, joint.sum(1))
    found = agree(joint.sum(2), slot, now, rounds=200).gather(1, ahead)
    conditional = overlap * found[:, None]
    expected = joint / joint.sum(2, keepdim=True)
    likely = joint.sum(2) > 1e-3
    error = (conditional / conditional.sum(2, keepdim=True) - expected).abs().sum(2)[likely]
    assert error.max() < 0.02
    # weighting by the slots' probabilities alone does not do it
    naive = overlap * slot.gather(1, ahead)[:, None]
    assert (naive / naive.sum(2, keepdim=True) - expected).abs().sum(2)[likely].max() > 0.2


def test_the_grid_of_a_history_is_told_on_the_wall_clock():
    schema = EventSchema(user="u", time="t", event="e", tz="Asia/Kolkata")
    midnight = int((datetime(2024, 5, 1, tzinfo=UTC) - timedelta(hours=5, minutes=30)).timestamp())
    assert time_grid(np.array([midnight, midnight + 86400]), schema) == 86400
    assert time_grid(np.array([midnight, midnight + 7200]), schema) == 3600
    assert time_grid(np.array([midnight, midnight + 7260]), schema) == 60
    assert time_grid(np.array([midnight + 1]), schema) == 1


def test_weekday_and_slot_follow_the_local_clock():
    store, model, tokenizer, histories = setting()
    tokenizer.event_schema = store.schema.model_copy(update={"tz": "America/New_York"})
    found = roll_out(
        model, tokenizer, histories, GenerationSettings(steps=30, time="observed")
    ).columns
    zone = ZoneInfo("America/New_York")
    for time, weekday, slot in zip(found["time"], found["weekday"], found["slot"], strict=True):
        local = datetime.fromtimestamp(int(time), zone)
        assert (local.weekday(), (local.hour * 60 + local.minute) // 30) == (weekday, slot)


@pytest.mark.parametrize(
    "text,seconds", [("2 days", 172800), ("36 hours", 129600), ("90 min", 5400), ("1.5h", 5400)]
)
def test_time_spans(text, seconds):
    assert span_seconds(text) == seconds


def test_until_cuts_each_user_at_its_own_end():
    _, model, tokenizer, histories = setting()
    whole = roll_out(model, tokenizer, histories, GenerationSettings(steps=40)).columns
    cut = roll_out(
        model, tokenizer, histories, GenerationSettings(steps=40, until="9 days", rows=5)
    ).columns
    ends = histories.columns["time"][histories.offsets[1:] - 1] + 9 * 86400
    late = whole["time"] > ends[whole["user"]]
    gone = np.zeros(len(late), bool)
    for user in range(17):
        mine = np.flatnonzero(whole["user"] == user)
        gone[mine] = np.cumsum(late[mine]) > 0
    assert 0 < gone.mean() < 1
    for name in ("user", "time", "event", "location"):
        assert np.array_equal(whole[name][~gone], cut[name])


# ---- policies


def test_policies_without_heads():
    store, model, tokenizer, histories = setting("bare")
    links = count_links(store)
    for policy in ("observed", "typical"):
        settings = GenerationSettings(steps=20, time=policy, place=policy)
        found = roll_out(model, tokenizer, histories, settings, links)
        assert found.policies == {
            "behavior": "head",
            "time": policy,
            "location": policy,
            "event": "typical",
        }
        for user in range(17):
            low, high = histories.offsets[user : user + 2]
            mine = found.columns["user"] == user
            gaps = np.diff(histories.columns["time"][low:high])
            drawn = found.columns["gap"][mine]
            if not len(gaps):
                assert set(drawn) == {86400}
            elif policy == "observed":
                assert set(drawn) <= set(gaps) and (len(set(gaps)) < 5 or len(set(drawn)) > 1)
            else:
                assert set(drawn) == {int(np.median(gaps))}
            assert set(found.columns["location"][mine]) <= set(
                histories.columns["location"][low:high]
            )
    policies = choose_policies(model, tokenizer, GenerationSettings(), links)
    assert policies.describe()["time"] == "observed", "named in the output"


def test_places_are_those_of_like_events():
    columns = {
        "time": np.arange(8) * 10,
        "event": np.array([2, 2, 2, 3, 3, 9, 9, 9]),
        "location": np.array([5, 5, 6, 7, 7, 8, 8, 4]),
    }
    own = OwnPast(columns, np.array([0, 5]), np.array([5, 8]))
    place, found = own.like("location", "event", np.array([2, 3]), None)
    assert place.tolist() == [5, 8] and found.tolist() == [True, False]
    drawn = [
        own.like("location", "event", np.array([2, 9]), np.array([u, u]))[0]
        for u in np.linspace(0, 0.999, 60)
    ]
    assert {tuple(d) for d in drawn} == {(5, 8), (6, 4)}
    assert own.time_gap(None).tolist() == [10, 10]


def test_a_user_with_one_event_beside_a_long_history():
    columns = {n: np.arange(400) % 7 for n in ("event", "location")} | {"time": np.arange(400) * 10}
    own = OwnPast(columns, np.array([0, 399]), np.array([399, 400]))
    for u in (None, np.array([0.3, 0.9])):
        assert own.time_gap(u).tolist() == [10, 86400]
        assert own.like("location", "event", np.array([3, 3]), u)[0].tolist() == [3, 0]


# ---- raw labels in, raw labels out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared folder, a model folder with random weights, and the log."""
    place = tmp_path_factory.mktemp("generate")
    pq.write_table(small_log(users=40, events=3000, seed=2), place / "log.parquet")
    prepare([place / "log.parquet"], place / "data", SYNTHETIC_SCHEMA)
    store = open_store(place / "data")
    tokenizer = EventTokenizer.from_store(store, 12)
    model = network(store, history_head=True, tokenizer_hash=tokenizer.hash)
    save_model(model, tokenizer, place / "model")
    return place


def test_the_output_can_be_prepared_again(folder):
    predictor = load(folder / "model")
    found = predictor.generate(
        folder / "log.parquet", 30, links=count_links(open_store(folder / "data"))
    )
    table = found.to_table()
    assert table.column_names == ["user_id", "timestamp", "event", "location", "behavior"]
    assert "slot head" in table.schema.metadata[b"behavegpt.policies"].decode()
    pq.write_table(table, folder / "future.parquet")
    prepare([folder / "future.parquet"], folder / "again", SYNTHETIC_SCHEMA)
    store = open_store(folder / "again")
    assert store.manifest.events == len(found) == 30 * len(found.users)
    assert store.users().to_pylist() == found.users.to_pylist()
    time = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    assert np.array_equal(time, found.columns["time"])
    for name in ("weekday", "slot"):
        assert np.array_equal(store.columns[name], found.columns[name]), name


def test_predict_and_the_first_step_agree(folder):
    predictor = load(folder / "model")
    expected = predictor.predict(folder / "log.parquet", top_k=4)
    found = (
        predictor.generate(folder / "log.parquet", 2, probabilities=4)
        .probabilities_table()
        .to_pylist()
    )
    first = [row for row in found if row["step"] == 0]
    assert [row["behavior"] for row in first] == expected.labels.ravel().tolist()
    assert [row["rank"] for row in first[:4]] == [1, 2, 3, 4]
    np.testing.assert_allclose(
        [row["probability"] for row in first], expected.probabilities.ravel(), atol=1e-5
    )


def test_one_event_is_enough_and_none_is_refused(folder):
    predictor = load(folder / "model")
    row = pq.read_table(folder / "log.parquet").slice(0, 1).to_pylist()
    assert len(predictor.generate(row, 20)) == 20
    with pytest.raises(DataError, match="no usable event"):
        predictor.generate(pq.read_table(folder / "log.parquet").slice(0, 0), 5)
    with pytest.raises(DataError, match="no usable event"):
        predictor.generate([{**row[0], "timestamp": None}], 5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"steps": 0}, "steps"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"until": "soon"}, "2 days"),
        ({"time": "guess"}, "time"),
        ({"num_beams": 4}, "unknown setting 'num_beams'"),
        ({"steps": 10**9}, "steps"),
    ],
)
def test_bad_options_are_one_clear_error(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        load(folder / "model").generate(folder / "log.parquet", **options)


def test_missing_heads_are_named():
    store, model, tokenizer, histories = setting("bare")
    with pytest.raises(ConfigError, match=r"event head.*--data"):
        roll_out(model, tokenizer, histories, GenerationSettings())
    with pytest.raises(ConfigError, match="no gap head"):
        roll_out(model, tokenizer, histories, GenerationSettings(time="head"), count_links(store))
    with pytest.raises(ConfigError, match="no location head"):
        roll_out(model, tokenizer, histories, GenerationSettings(place="head"), count_links(store))


def test_the_command(folder, capsys):
    log, out = str(folder / "log.parquet"), folder / "out.csv"
    line = [
        "generate",
        str(folder / "model"),
        log,
        "--data",
        str(folder / "data"),
        "--until",
        "3 days",
    ]
    assert main([*line, "--samples", "2", "--out", str(out), "--probabilities", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert out.read_text().splitlines()[0].endswith('"sample"')
    assert len(out.read_text().splitlines()) == result["events"] + 1
    assert (folder / "out.probabilities.csv").exists()
    assert (
        main(
            [
                "generate",
                str(folder / "model"),
                log,
                "--steps",
                "1",
                "--policy",
                "observed",
                "place=head",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "time: observed" in printed.err and "location: head" in printed.err
    assert main(["generate", str(folder / "model"), log, "--policy", "sleep"]) == 2
    assert "observed" in capsys.readouterr().err


def test_pretraining_leaves_the_links_beside_the_model(folder, tmp_path):
    """So generation knows what goes together without the training data, and draws the same as with
    them."""
    shape = {
        "embedding_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_length": 16,
    }
    settings = {
        "out": str(tmp_path / "run"),
        "data": {"path": str(folder / "data")},
        "model": {**shape, "next_heads": ["event", "location", "gap"]},
        "train": {"steps": 1},
    }
    run = pretrain(PretrainSettings.model_validate(settings))
    predictor, store = load(run / "model"), open_store(folder / "data")
    found = predictor.generate(folder / "log.parquet", 5)
    assert found.policies["event"] == "head, among those of the behavior in training"
    assert found.policies["time"] == "head, by training's hours"
    learned = learn_links(predictor.model, store)
    assert found.to_table().equals(
        predictor.generate(folder / "log.parquet", 5, links=learned).to_table()
    )


@pytest.mark.gpu
def test_a_gpu_draws_about_what_a_cpu_draws():
    store, model, tokenizer, histories = setting()
    links = count_links(store)
    cpu = roll_out(model, tokenizer, histories, GenerationSettings(steps=20), links)
    gpu = roll_out(model.cuda(), tokenizer, histories, GenerationSettings(steps=20), links)
    assert (cpu.columns["event"] == gpu.columns["event"]).mean() > 0.9


def test_errors_are_of_the_family():
    assert issubclass(ConfigError, BehaveGPTError)
    assert Predictor.generate.__doc__
