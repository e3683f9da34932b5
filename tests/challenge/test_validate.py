"""The 50 submissions that were tried on the organizers' validator, and what they let pass or
crashed on."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from behavegpt.challenge.validate import validate
from behavegpt.cli import main
from behavegpt.datasets.challenge_files import ChallengeDirectory, open_directory
from behavegpt.user_embeddings import UserEmbeddings, seal
from tests.challenge.makers import make_directory, peak_of_command

N, D = 30, 16  # relevant clients of the small directory, dimensions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ChallengeDirectory:
    return open_directory(make_directory(tmp_path_factory.mktemp("validate") / "data"))


class Entry:
    """A valid entry that a case then spoils."""

    def __init__(self, folder: Path, relevant: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        self.folder, self.ids = folder, relevant
        self.vectors = rng.normal(size=(len(relevant), D)).astype(np.float16)
        self.save()

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.folder / "client_ids.npy", self.folder / "embeddings.npy"

    def save(self, ids: np.ndarray | None = None, vectors: np.ndarray | None = None) -> None:
        self.folder.mkdir(exist_ok=True)
        np.save(self.paths[0], self.ids if ids is None else ids, allow_pickle=True)
        np.save(self.paths[1], self.vectors if vectors is None else vectors, allow_pickle=True)

    def with_value(self, row: int, column: int, value: float) -> np.ndarray:
        vectors = self.vectors.copy()
        vectors[row, column] = value
        return vectors


class Case(NamedTuple):
    name: str
    spoil: Callable[[Entry], object]
    says: str | None  # None: accepted


def swapped(entry: Entry) -> None:
    entry.save(entry.vectors, entry.ids)


def torch_saved(entry: Entry) -> None:
    torch.save(torch.from_numpy(entry.vectors), entry.paths[1])


def doubled(entry: Entry) -> None:
    entry.paths[1].rename(entry.folder / "embeddings.npy.npy")


def unlink(index: int) -> Callable[[Entry], object]:
    return lambda e: e.paths[index].unlink()


def ids_as(dtype: str) -> Callable[[Entry], object]:
    return lambda e: e.save(ids=e.ids.astype(dtype))


def vectors_as(dtype: str) -> Callable[[Entry], object]:
    return lambda e: e.save(vectors=e.vectors.astype(dtype))


def vectors_of(*shape: int) -> Callable[[Entry], object]:
    return lambda e: e.save(vectors=np.random.default_rng(0).normal(size=shape).astype(np.float16))


def value(row: int, column: int, value: float) -> Callable[[Entry], object]:
    return lambda e: e.save(vectors=e.with_value(row, column, value))


def bytes_of(index: int, change: Callable[[bytes], bytes]) -> Callable[[Entry], object]:
    return lambda e: e.paths[index].write_bytes(change(e.paths[index].read_bytes()))


def overflow(e: Entry) -> None:
    with np.errstate(over="ignore"):
        e.save(vectors=(e.vectors.astype(np.float32) * 1e6).astype(np.float16))


def zipped(index: int) -> Callable[[Entry], object]:
    def spoil(e: Entry) -> None:
        np.savez(e.folder / "zip.npz", a=e.vectors)
        (e.folder / "zip.npz").replace(e.paths[index])

    return spoil


def folder_instead(e: Entry) -> None:
    e.paths[1].unlink()
    e.paths[1].mkdir()


def header(shape: str, held: int, dtype: str = "<f2") -> Callable[[Entry], object]:
    """A file whose header says `shape` and `dtype`, followed by `held` zero bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return lambda e: e.paths[1].write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(held)
    )


def version_three(e: Entry) -> None:
    with e.paths[1].open("wb") as file:
        np.lib.format.write_array(file, e.vectors, version=(3, 0))


def symlink_to_text(e: Entry) -> None:
    (e.folder / "notes.txt").write_text("not an array")
    e.paths[1].unlink()
    e.paths[1].symlink_to(e.folder / "notes.txt")


def masked(e: Entry) -> None:
    e.paths[1].write_bytes(pickle.dumps(np.ma.masked_array(e.vectors, e.vectors > 1)))


def structured(e: Entry) -> None:
    e.save(vectors=np.zeros(N, [("a", "f2"), ("b", "f2")]))


def no_folder(e: Entry) -> None:
    for path in e.paths:
        path.unlink()
    e.folder.rmdir()


def shuffled(e: Entry) -> None:
    UserEmbeddings(e.ids, e.vectors).save(e.folder)
    np.save(e.paths[1], e.vectors[::-1])


def resealed(e: Entry) -> None:
    shuffled(e)
    seal(e.folder)


OUTSIDER = 10**9
CASES = [
    Case("00 valid", lambda e: None, None),
    Case("00b permuted both", lambda e: e.save(e.ids[::-1], e.vectors[::-1]), None),
    Case("01 no client ids", unlink(0), r"client_ids\.npy is missing"),
    Case("02 no embeddings", unlink(1), r"embeddings\.npy is missing"),
    Case("03 float32", vectors_as("float32"), "holds float32, should be float16"),
    Case("04 float64", vectors_as("float64"), "holds float64, should be float16"),
    Case("05 int8", vectors_as("int8"), "holds int8, should be float16"),
    Case(
        "06 big-endian float16",
        vectors_as(">f2"),
        "float16 in foreign byte order.*should be float16",
    ),
    Case("07 ids int32", ids_as("int32"), "holds int32, should be int64"),
    Case("08 ids float64", ids_as("float64"), "holds float64, should be int64"),
    Case("09 ids text", ids_as("str"), "holds <U21, should be int64"),
    Case("10 ids uint64", ids_as("uint64"), "holds uint64, should be int64"),
    Case(
        "11 NaN",
        value(7, 3, np.nan),
        r"1 values are NaN.*row 7 \(client ID7\), column 3",
    ),
    Case(
        "12 inf",
        value(29, 0, np.inf),
        r"1 values are infinite.*row 29 \(client ID29\), c",
    ),
    Case("13 overflow", overflow, r"values are infinite; .*scale the vectors"),
    Case(
        "14 repeated id",
        lambda e: e.save(np.r_[e.ids[:-1], e.ids[:1]]),
        r"index 29 \(client ID0, also at index 0\)",
    ),
    Case(
        "15 repeated rows appended",
        lambda e: e.save(np.r_[e.ids, e.ids[3:5]], np.r_[e.vectors, e.vectors[3:5]]),
        r"2 clients occur more than once; .*index 30 \(client ID3, also at index 3\)",
    ),
    Case(
        "16 client missing",
        lambda e: e.save(e.ids[1:], e.vectors[1:]),
        "1 of 30 relevant clients are missing.*client ID0 ",
    ),
    Case(
        "17 unknown client",
        lambda e: e.save(np.r_[e.ids, OUTSIDER], np.r_[e.vectors, e.vectors[:1]]),
        r"1 clients are not among the relevant.*index 30 \(client 1000000000\)",
    ),
    Case(
        "18 id replaced",
        lambda e: e.save(np.r_[OUTSIDER, e.ids[1:]]),
        r"index 0 \(client 1000000000\)",
    ),
    Case("19 more vectors", vectors_of(N + 1, D), "has 30 clients but embeddings.npy has 31 rows"),
    Case("20 fewer vectors", vectors_of(N - 1, D), "has 30 clients but embeddings.npy has 29 rows"),
    Case("21 2049 dimensions", vectors_of(N, 2049), "2,049 dimensions, 2048 is the most"),
    Case("22 2048 dimensions", vectors_of(N, 2048), None),
    Case("23 0 dimensions", vectors_of(N, 0), "0 dimensions"),
    Case(
        "24 one-dimensional", vectors_of(N), r"1-dimensional \(shape \(30,\)\), should be a matrix"
    ),
    Case("25 three-dimensional", vectors_of(N, 2, 2), r"3-dimensional \(shape \(30, 2, 2\)\)"),
    Case(
        "26 ids (N, 1)",
        lambda e: e.save(e.ids[:, None]),
        r"2-dimensional \(shape \(30, 1\)\), should be one-dim",
    ),
    Case("27 ids scalar", lambda e: e.save(np.int64(5)), "client_ids.npy is 0-dimensional"),  # type: ignore[arg-type]
    Case("28 embeddings scalar", vectors_of(), "embeddings.npy is 0-dimensional"),
    Case("29 object array", vectors_as("object"), r"Python objects \(a pickle\)"),
    Case(
        "30 raw pickle", lambda e: e.paths[1].write_bytes(pickle.dumps(e.vectors)), "it is a pickle"
    ),
    Case(
        "31 npz embeddings",
        zipped(1),
        r"embeddings\.npy is not a \.npy file: it is an \.npz archive",
    ),
    Case("32 npz ids", zipped(0), r"client_ids\.npy is not a \.npy file: it is an \.npz archive"),
    Case("33 empty file", bytes_of(1, lambda b: b""), "not a .npy file: it is empty"),
    Case(
        "34 truncated",
        bytes_of(1, lambda b: b[:-10]),
        r"promises 960 bytes .* the file holds 950: it was cut off",
    ),
    Case("34b truncated header", bytes_of(1, lambda b: b[:50]), "header cannot be read"),
    Case(
        "35 trailing bytes",
        bytes_of(1, lambda b: b + b"garbage"),
        "holds 967: something was appended",
    ),
    Case("36 csv", bytes_of(1, lambda b: b"1,2\n3,4\n"), "does not begin like one"),
    Case("37 a folder", folder_instead, r"embeddings\.npy is a folder"),
    Case("38 Fortran order", lambda e: e.save(vectors=np.asfortranarray(e.vectors)), None),
    Case("39 structured", structured, "is a structured array"),
    Case("40 complex", vectors_as("complex64"), "holds complex64, should be float16"),
    Case("40b bool", vectors_as("bool"), "holds bool, should be float16"),
    Case("41 all zero", lambda e: e.save(vectors=e.vectors * 0), "all 30 vectors are zero"),
    Case(
        "41b all the same",
        lambda e: e.save(vectors=np.tile(e.vectors[:1], (N, 1))),
        "all 30 vectors are the same",
    ),
    Case("42 rows shuffled against ids", shuffled, "rows are in another order than their ids"),
    Case("42b and nobody can know", resealed, None),
    Case("43 empty arrays", lambda e: e.save(e.ids[:0], e.vectors[:0]), "client_ids.npy is empty"),
    Case(
        "44 header promises 4 TB",
        header("(2048000000000,)", 64),
        r"promises 4,096,000,000,000 bytes .* the file holds 64",
    ),
    Case("44b negative shape", header("(-30, -16)", 960), "header cannot be read"),
    Case("44c shape of booleans", header("(True, 480)", 960), "header cannot be read"),
    Case("44d a hundred axes", header(f"({'1,' * 100})", 2), "header cannot be read"),
    Case(
        "44e no rows of more bytes than there are",
        header(f"(0, {10**24})", 0),
        "header cannot be read",
    ),
    Case("44f values of no bytes", header("(30, 16)", 0, "|V0"), "holds .V0, should be float16"),
    Case("45 npy format 3.0", version_three, None),
    Case("46 symlink to text", symlink_to_text, "does not begin like one"),
    Case("47 masked array", masked, "it is a pickle"),
    Case("48 no folder", no_folder, r"client_ids\.npy is missing"),
    Case("49 files swapped", swapped, "the two files are swapped; rename them"),
    Case(
        "50 transposed",
        lambda e: e.save(vectors=e.vectors.T),
        r"16 x 30 for 30 clients: .* save vectors\.T",
    ),
    Case(
        "51 bits as integers",
        lambda e: e.save(vectors=e.vectors.view("uint16")),
        r"save vectors\.view\('float16'\)",
    ),
    Case(
        "52 torch.save",
        torch_saved,
        r"it is a file of torch\.save, a pickle, .* save tensor\.numpy\(\)",
    ),
    Case("53 .npy.npy", doubled, r"embeddings\.npy\.npy; rename it"),
    Case(
        "54 entry.json a folder",
        lambda e: (e.folder / "entry.json").mkdir(),
        r"entry\.json is a folder",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_submission(case: Case, data: ChallengeDirectory, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    case.spoil(entry)
    result = validate(entry.folder, data)
    assert result["ok"] == (case.says is None), result["problems"]
    if case.says:
        says = re.sub(r"ID(\d+)", lambda number: str(entry.ids[int(number[1])]), case.says)
        found = [text for text in result["problems"] if re.search(says, text)]
        assert len(found) == 1, result["problems"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda e: e.save(np.full(N, e.ids[0])), "more than once"),
        (lambda e: e.save(-e.ids - 1), "not among the relevant clients"),
        (lambda e: e.save(e.ids[:0], e.vectors[:0]), "is empty"),
        (lambda e: e.save(e.ids[:0], e.vectors[:0, :0]), "0 dimensions"),
        (lambda e: e.save(e.ids[:7], e.vectors[:7]), None),
    ],
)
def test_a_subset_is_still_checked(
    spoil: Callable[[Entry], None], says: str | None, data: ChallengeDirectory, tmp_path: Path
) -> None:
    """What theirs accepts once its check of the relevant clients is off."""
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    spoil(entry)
    result = validate(entry.folder, data, subset=True)
    assert result["ok"] == (says is None)
    assert says is None or any(says in text for text in result["problems"])
    assert says is not None or "23 of 30 relevant clients are missing" in result["warnings"][0]


def test_every_problem_is_told_at_once(data: ChallengeDirectory, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    vectors = entry.with_value(4, 1, np.nan)
    vectors[2, 5] = vectors[9, 0] = -np.inf
    entry.save(
        np.r_[entry.ids[:-2], OUTSIDER, entry.ids[0]].astype(np.int32), np.asfortranarray(vectors)
    )
    problems = validate(entry.folder, data)["problems"]
    starts = (
        "holds int32",
        "more than once",
        "not among",
        "are missing",
        "1 values are NaN",
        "2 values are infinite",
    )
    assert len(problems) == len(starts)
    for says, problem in zip(starts, problems, strict=True):
        assert says in problem
    assert "row 2 (client" in problems[-1]


def test_zeros_and_missing_checksums_are_worth_a_word(
    data: ChallengeDirectory, tmp_path: Path
) -> None:
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    entry.vectors[11:13] = -0.0
    entry.save()
    result = validate(entry.folder, data)
    assert result["ok"]
    assert re.search(
        rf"2 of 30 vectors are all zero, .* row 11 \(client {entry.ids[11]}\)",
        result["warnings"][0],
    )
    assert "no entry.json" in result["warnings"][1]
    (entry.folder / "entry.json").write_text("{}")
    assert "users differs" in validate(entry.folder, data)["problems"][0]


def test_the_first_line_counts_vectors_of_zeros(
    data: ChallengeDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    entry.vectors[3:8] = 0
    entry.save()
    assert main(["challenge", "validate", str(entry.folder), "--data", str(data.path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("valid (30 clients, 16 dimensions, 5 vectors all zero)")


def test_the_command(
    data: ChallengeDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    command = ["challenge", "validate", str(entry.folder), "--data", str(data.path)]
    assert main(command) == 0
    assert "valid (30 clients, 16 dimensions)" in capsys.readouterr().out
    entry.save(vectors=entry.vectors.astype(np.float32))
    assert main(command) == 1
    assert "NOT valid" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main([*command[:-1], str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["C", "F"])
def test_peak_memory_is_far_below_the_file(tmp_path: Path, order: str) -> None:
    """A sealed entry of 300 MB: the interpreter, numpy and arrow take about 100 MB of the peak."""
    rows, width = 150_000, 1024
    np.save(tmp_path / "client_ids.npy", np.arange(rows))
    vectors = np.lib.format.open_memmap(
        tmp_path / "embeddings.npy", "w+", np.float16, (rows, width), fortran_order=order == "F"
    )
    for start in range(0, rows if order == "C" else width, 1000):
        part = np.s_[start : start + 1000] if order == "C" else np.s_[:, start : start + 1000]
        vectors[part] = np.random.default_rng(start).normal(
            size=width if order == "C" else (rows, 1)
        )
    vectors.flush()
    del vectors
    seal(tmp_path)
    size = (tmp_path / "embeddings.npy").stat().st_size
    peak = peak_of_command(["challenge", "validate", str(tmp_path)])
    (tmp_path / "embeddings.npy").unlink()  # not to be kept with the last runs
    assert peak < 0.6 * size, f"{peak / 2**20:.0f} MiB for {size / 2**20:.0f} MiB"


def test_no_damage_makes_it_crash(data: ChallengeDirectory, tmp_path: Path) -> None:
    """Bytes of the header replaced, inserted or cut: the answer is a result, never an exception."""
    entry = Entry(tmp_path / "entry", data.relevant_clients)
    rng = np.random.default_rng(0)
    whole = [path.read_bytes() for path in entry.paths]
    refused = 0
    for turn in range(250):
        index = turn % 2
        text = bytearray(whole[index])
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, 130))
            part = (
                bytes(rng.integers(0, 256, rng.integers(0, 4), np.uint8))
                if rng.random() < 0.5
                else b"-9)(,'L{"[: place % 9]
            )
            text[place : place + int(rng.integers(0, 4))] = part
        entry.paths[index].write_bytes(text)
        refused += not validate(entry.folder, data)["ok"]
        entry.paths[index].write_bytes(whole[index])
    assert refused > 125
