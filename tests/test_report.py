"""The report is one file that needs nothing else and cannot be broken by a label; the card is what
the Hub reads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from behavegpt import plots, report
from behavegpt.cli import main
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import Manifest
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.figures import title_of
from behavegpt.ingest.card import CardFacts, write_card
from behavegpt.report import facts, tables
from behavegpt.report.facts import window_of
from tests.test_plots import HOSTILE, fake_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "shop")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report.write_report(run).read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page: str) -> None:
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [tag for tag, _ in parsed.tags].count("script") == 1, "our own, without a source"
    assert len(images) == 6 and all(image["alt"] for image in images)
    assert "://" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_labels_are_shown_and_never_interpreted(page: str) -> None:
    assert page.count("<script") == 1 and "alert(" not in page.split("<script>")[1]
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 3
    assert any(HOSTILE in text for text in Page(page).text)
    assert "日本語 ラベル" in page


def test_the_page_says_what_was_run(page: str) -> None:
    text = " ".join(" ".join(Page(page).text).split())
    for expected in (
        "406,829 events, 4,372 users, 40 behaviors",
        "1,234,567 parameters, 4 layers, d = 32, up to 64 events, history head",
        "600 steps, loss dro",
        "2 min 12 s",
        "2026-01-02 03:06 UTC",
        "53,210 predictions",
        "the model reads at most the last 64 events",
        "one run with one seed (3)",
        "What happened: Food",
        "behavegpt.load(",
        "batch_events: 8192",
    ):
        assert expected in text, expected
    assert "None" not in text and "nan" not in text.split()


def test_the_table_is_sorted_and_marks_the_best(run: Path) -> None:
    models = json.loads((run / "eval" / "metrics.json").read_text())["models"]
    table = tables.metric_table(models)
    frame = (
        pd.DataFrame(models)
        .T.drop(columns="recall_by_decile")
        .astype(float)
        .sort_values("rec_w", ascending=False)
    )
    assert [row["name"] for row in table["rows"]] == [title_of(str(name)) for name in frame.index]
    for column, key in enumerate(tables.METRICS):
        marked = [row["name"] for row in table["rows"] if row["cells"][column][1]]
        assert marked == [title_of(str(frame[key].idxmax()))]
        others = frame.drop("behavegpt")[key].max()
        gain = f"{100 * (frame.loc['behavegpt', key] / others - 1):+.0f} %"
        assert table["gain"][column].replace("−", "-") == gain
    assert table["header"][0] == "weighted recall"
    assert table["rows"][-1]["cells"][-1] == ("–", False)


def test_every_behavior_has_a_row_with_what_it_is_taken_for(run: Path, page: str) -> None:
    frame = pd.read_csv(run / "eval" / "per_behavior.csv")
    ours = frame[(frame["model"] == "behavegpt") & (frame["support"] > 0)]
    ours = ours.sort_values("support", ascending=False, kind="stable")
    table = tables.behavior_table(run)
    assert table is not None and table["left_out"] == 0 and len(table["rows"]) == len(ours)
    assert table["header"][:2] == ["to predict", "recall"] and len(table["header"]) == 5
    for row, (_, line) in zip(table["rows"], ours.iterrows(), strict=True):
        numbers = [number for _, number in row["cells"]]
        assert numbers[0] == line["support"] and numbers[1] == pytest.approx(line["recall"])
        assert row["few"] == (line["support"] < 20)
    taken_for = {row["behavior"]: row["taken_for"] for row in table["rows"]}
    assert taken_for[HOSTILE] == [["日本語 ラベル", 7]]
    assert "confused with: 日本語 ラベル (7)" in page


@pytest.mark.parametrize(
    ("ours", "theirs", "rows", "said"),
    [
        (
            0.5,
            0.4,
            1000,
            "Overall, it is ahead of the best of the others by 25% (50.0% against 40.0%",
        ),
        (
            0.3,
            0.4,
            1000,
            "Overall, it is behind the best of the others by 25% (30.0% against 40.0%",
        ),
        (
            0.4,
            0.4,
            1000,
            "Overall, it is level with the best of the others (40.0% against 40.0%, markov).",
        ),
        (0.401, 0.4, 1000, "less than 3.1 percentage points may be due to chance."),
        (
            0.4,
            0.0,
            None,
            "Overall, it is ahead of the best of the others (40.0% against 0.0%, markov).",
        ),
    ],
)
def test_the_verdict_says_who_is_ahead_and_what_may_be_chance(
    ours: float, theirs: float, rows: int | None, said: str
) -> None:
    models = {"behavegpt": {"rec_w": ours, "hr@3": 0.6}, "markov": {"rec_w": theirs, "hr@3": 0.5}}
    sentences = tables.verdict(models, rows)
    assert sentences[0].startswith(f"The top prediction is correct for {ours:.1%}")
    assert sentences[0].endswith("among the top three for 60.0%.")
    assert any(said in sentence for sentence in sentences), sentences
    assert any("chance" in sentence for sentence in sentences) == (
        rows == 1000 and ours != 0.5 and ours != 0.3
    )
    assert tables.verdict({"markov": {"rec_w": 0.3}}, rows) == []


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (
            -0.012,
            0.002,
            "interval over users of −1.2 to +0.2 percentage points, so it may be due to chance.",
        ),
        (0.001, 0.021, "interval over users of +0.1 to +2.1 percentage points."),
    ],
)
def test_the_verdict_takes_intervals_where_there_are_some(
    low: float, high: float, said: str
) -> None:
    models = {"behavegpt": {"rec_w": 0.401}, "markov": {"rec_w": 0.4}, "prior": {"rec_w": 0.1}}
    difference = {"mean": 0.001, "low": low, "high": high, "ahead": 0.6}
    uncertainty = {"differences": {"markov": {"rec_w": difference}, "prior": {}}, "intervals": {}}
    last = tables.verdict(models, 1000, uncertainty)[-1]
    assert said in last and title_of("markov") in last


def test_intervals_and_examples_by_behavior_are_on_the_page(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    metrics["uncertainty"] = {
        "intervals": {"behavegpt": {"rec_w": [0.4012, 0.4388]}},
        "differences": {},
        "draws": 400,
    }
    (run / "eval" / "metrics.json").write_text(json.dumps(metrics))
    example = {
        "user": "u7",
        "history": [["Mon 2024-01-01 10:00", "e1", "tea"]],
        "predicted": [["cup", 0.61], ["tea", 0.2]],
        "actual": "cup",
    }
    wrong = example | {"user": "u8", "actual": "pot"}
    found = {"examples": [], "by_behavior": {HOSTILE: [example, wrong]}}
    (run / "eval" / "examples.json").write_text(json.dumps(found))
    text = report.write_report(run).read_text(encoding="utf-8")
    assert (
        "<small>0.401–0.439</small>" in text
        and "behaviors. The small numbers are 95 % intervals, bootstrapped over users (400 samples)"
        in text
    )
    assert "correct, for example: user u7 after tea; predicted cup 61 %, tea 20 %" in text
    assert "wrong, for example: user u8" in text


def test_names_stand_for_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In examples and in the table of behaviors, escaped; labels that share a name are told
    apart."""
    run = fake_run(tmp_path / "run")
    example = {
        "user": "u7",
        "history": [["Mon 2024-01-01 10:00", "22423", "Café & Bar no. 1"]],
        "predicted": [["Café & Bar no. 1", 0.61], ["Café & Bar no. 2", 0.2]],
        "actual": "Café & Bar no. 2",
    }
    found = {"examples": [example], "by_behavior": {"Café & Bar no. 0": [example]}}
    (run / "eval" / "examples.json").write_text(json.dumps(found))
    names = tmp_path / "names.csv"
    names.write_text(
        "code,name\n22423,<b>cake</b>\nCafé & Bar no. 0,Inn\n"
        "Café & Bar no. 1,Pub\nCafé & Bar no. 2,Pub\n",
        encoding="utf-8",
    )
    assert main(["report", str(run), "--names", str(names)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cake&lt;/b&gt;" in text and "<b>" not in text and "22423" not in text
    assert "<summary>Inn</summary>" in text
    assert "Pub (Café &amp; Bar no. 1) 61 %, Pub (Café &amp; Bar no. 2) 20 %" in text
    names.write_text("a,b,c\n1,2,3\n")
    assert main(["report", str(run), "--names", str(names)]) == 2
    assert "3 columns (a, b, c); write two columns, a label and its" in capsys.readouterr().err


def test_groups_stand_beside_the_best_other_model() -> None:
    line = {"group": "<at>", "rows": 1200, "users": 7}
    line |= {"rec_w": {"behavegpt": 0.5, "markov": 0.25, "counts": 0.4}}
    line |= {"ndcg@3": {"behavegpt": 0.6, "markov": 0.35, "counts": 0.5}}
    models = {"behavegpt": {"rec_w": 0.5}, "markov": {"rec_w": 0.2}, "counts": {"rec_w": 0.4}}
    models["added later"] = {"rec_w": 0.7}  # without figures by group
    [table] = tables.group_tables({"models": models, "groups": {"country": [line]}})
    assert table["title"] == "country"
    [row] = table["rows"]
    assert row == {"group": "<at>", "cells": ["1,200", "7", "0.500", "0.400", "0.600", "0.500"]}
    assert len(table["header"]) == len(row["cells"])
    assert tables.group_tables({}) == []  # an evaluation of before


def test_the_script_is_the_one_the_page_allows(page: str) -> None:
    script = page.split("<script>")[1].split("</script>")[0]
    found = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{found}'" in page and "default-src 'none'" in page


def test_missing_files_leave_their_sections_out(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "shop")
    for name in ("metrics.json", "per_behavior.csv", "confusion.json", "examples.json"):
        (run / "eval" / name).unlink()
    (run / "log.jsonl").unlink()
    text = report.write_report(run).read_text(encoding="utf-8")
    for heading in ("Results", "Figures", "Behavior by behavior", "Examples"):
        assert f"<h2>{heading}</h2>" not in text
    assert "<h2>Use the model</h2>" in text
    card = report.write_model_card(run).read_text(encoding="utf-8")
    assert "## Evaluation" not in card and "## Limits" in card


def test_a_run_that_is_still_going_can_be_reported(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "shop")
    for path in (run / "eval").iterdir():
        path.unlink()
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"finished": None, "seconds": None}))
    text = report.write_report(run).read_text(encoding="utf-8")
    assert "finished" not in text and "None" not in text
    (run / "run.json").write_text(json.dumps({"seed": 1, "config": {}}))
    report.write_report(run)
    report.write_model_card(run)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json"):
        report.write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json"):
        report.write_report(tmp_path)


def test_the_same_files_give_the_same_bytes(run: Path, page: str) -> None:
    assert report.write_report(run).read_text(encoding="utf-8") == page
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (60, "1 min 0 s"), (132.4, "2 min 12 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert facts.duration(seconds) == text


def manifest(content_hash: str) -> Manifest:
    schema = {
        "user": "customer",
        "time": "at",
        "event": "item",
        "location": "country",
        "behavior": "a|b",
    }
    return Manifest(
        format=1,
        event_schema=EventSchema.model_validate(schema | {"tz": "Europe/London"}),
        events=406_829,
        users=4_372,
        time_origin=0,
        split={"rule": "time:0.7,0.15,0.15", "events": [10, 2, 3]},
        columns={},
        vocabulary={},
        rejected={},
        content_hash=content_hash,
    )


def test_the_card_is_read_by_the_hub_and_holds_nothing_empty(run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    (tmp_path / "dataset.json").write_text(manifest("ab" * 32).model_dump_json())
    path = report.write_model_card(run, tmp_path)
    assert path == run / "model" / "README.md"
    card = ModelCard.load(path)
    assert card.data.library_name == "behavegpt" and "next-behavior-prediction" in card.data.tags
    assert card.data.license is None
    for expected in (
        "customer",
        "Europe/London",
        "time:0.7,0.15,0.15",
        "10, 2, 3",
        "406,829",
        "`a|b`",
        "## Limits",
    ):
        assert expected in card.text, expected
    for name in ("BehaveGPT", "user markov"):
        assert f"| {name} |" in card.text
    assert "None" not in card.text and "{{" not in card.text and "<script" not in card.text
    lines = card.text.splitlines()
    for index, line in enumerate(lines):
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        header = index + 1 < len(lines) and lines[index + 1].startswith("|---")
        assert header or not line.startswith("|") or all(cell.strip() for cell in cells), line
    tables = re.findall(r"(?:^\|.*\n)+", card.text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


EVIL = (
    "](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "![x](https://e.vil/p.png)",
    "<javascript:alert(1)>",
    "<img src=x onerror=alert(1)>",
    "[x]: javascript:alert(1)",
    "`](javascript:alert(1))",
    "| x | [y](javascript:alert(1))",
    "**bold** __bold__ ~~gone~~",
    "\\[x](javascript:alert(1))",
    "&lt;script&gt;",
    "x\n\n[x](javascript:alert(1))\n# heading",
    "https://e.vil and www.e.vil",
)


def rendered(markdown: str) -> Page:
    """The page that GitHub or the Hub would make of a card (which also sanitize it; we do not rely
    on that)."""
    body = markdown.split("\n---\n", 1)[-1]
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body))


@pytest.mark.parametrize("evil", EVIL)
def test_no_label_becomes_a_link_or_a_tag_of_a_card(
    evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "draw_all", lambda run, named: [])
    run = fake_run(tmp_path / "shop")
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["loss"]["name"] = facts["command"] = evil
    facts["versions"] = {"behavegpt": evil}
    facts["data"]["path"] = evil
    (run / "run.json").write_text(json.dumps(facts))
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    metrics |= {"remarks": [f"all targets are {evil!r}"], "protocol": {"split": evil}}
    metrics["models"][evil] = metrics["models"].pop("markov")
    (run / "eval" / "metrics.json").write_text(json.dumps(metrics))
    schema = manifest("ab" * 32).event_schema.model_copy(
        update={n: f"{n} {evil}" for n in ("user", "time", "event")}
    )
    described = manifest("ab" * 32).model_copy(
        update={"event_schema": schema, "rejected": {evil: 3}}
    )
    (tmp_path / "dataset.json").write_text(described.model_dump_json())
    words = Vocabulary(pa.array([evil]), np.array([7]))
    moved = described.model_copy(update={"split": described.split | {"boundaries": [0, 0]}})
    card = tmp_path / "data_card.md"
    fields = {"event": words, "behavior": words}
    unknown = dict.fromkeys(fields, np.zeros(3, int))
    facts_of_card = CardFacts(evil, moved, fields, unknown, np.array([15]), np.array([True]), 10)
    write_card(card, facts_of_card, min_events=1, min_count=1)
    for path in (report.write_model_card(run, tmp_path), card):
        page = rendered(path.read_text(encoding="utf-8"))
        assert not {"a", "img", "script", "s"} & {tag for tag, _ in page.tags}, path
        shown = " ".join("".join(page.text).split())
        assert " ".join(evil.split()).replace("`", "'") in shown.replace("`", "'"), (
            "and it is shown as it is"
        )
    assert "<a" not in report.write_report(run).read_text(encoding="utf-8")


def test_a_manifest_of_other_data_is_not_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(manifest("cd" * 32).model_dump_json())
    assert "Europe/London" not in report.write_model_card(run, tmp_path).read_text(encoding="utf-8")
    (tmp_path / "dataset.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"dataset\.json"):
        report.write_model_card(run, tmp_path)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"num_hidden_layers": 0, "memory": True}, "network, without transformer blocks, over"),
        ({"num_hidden_layers": 0}, "a model without transformer blocks over the event"),
        ({"num_hidden_layers": 4, "memory": True}, "a GPT-style transformer over"),
        ({}, "a GPT-style transformer over"),
    ],
)
def test_the_card_calls_no_model_without_blocks_a_transformer(
    model: dict[str, object], told: str, tmp_path: Path
) -> None:
    run = fake_run(tmp_path / "shop")
    known = json.loads((run / "run.json").read_text())
    known["config"]["model"] = model
    (run / "run.json").write_text(json.dumps(known))
    card = report.write_model_card(run).read_text(encoding="utf-8")
    assert told in card and "that predicts a user's next behavior" in card
    assert card.count("GPT-style transformer") == ("GPT-style" in told)


def test_the_verdict_is_as_sure_as_the_best_model_that_was_drawn_with_ours() -> None:
    """Another model's row may have been added later, as the demo adds the universal model's."""
    models = {
        name: {"rec_w": figure}
        for name, figure in (("behavegpt", 0.5), ("added", 0.499), ("markov", 0.4), ("hour", 0.1))
    }
    spans = {name: {"rec_w": {"low": 0.06, "high": 0.14}} for name in ("hour", "markov")}
    sentences = tables.verdict(models, 1000, {"differences": spans})
    assert (
        sentences[1]
        == "Overall, it is level with the best of the others (50.0% against 49.9%, added)."
    )
    assert sentences[-1].startswith("The overall difference from markov has a 95 % interval")
    assert sentences[-1].endswith("+6.0 to +14.0 percentage points.")


@pytest.mark.parametrize(("memory", "window"), [(False, 45), (True, None)])
def test_a_model_with_memory_reads_no_window_alone(memory: bool, window: int | None) -> None:
    record = {"config": {"model": {"max_length": 45, "memory": memory}}}
    assert window_of(record, {}) == window
    assert window_of({}, {"protocol": {"max_length": 45}}) == 45
