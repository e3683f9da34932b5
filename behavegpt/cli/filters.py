"""Options that say which behaviors may be predicted, and the files that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Parser
from behavegpt.errors import DataError
from behavegpt.paths import local_path

GROUP_COLUMNS = "two columns, the behavior's label and its group"


def filter_arguments(parser: Parser) -> None:
    """`--among`, `--exclude`, `--exclude-seen` and `--per-group`."""
    group = parser.add_argument_group(
        "filters",
        "Filters do not change the order or the probabilities of the remaining behaviors.",
    )
    for name, what in (
        ("among", "predict only these behaviors"),
        ("exclude", "never predict these behaviors"),
    ):
        group.add_argument(
            f"--{name}",
            nargs="+",
            metavar="LABEL",
            help=f"{what}; @FILE reads labels from a text file, one per line",
        )
    group.add_argument(
        "--exclude-seen",
        action="store_true",
        help="leave out behaviors that the user's history already contains",
    )
    group.add_argument(
        "--per-group",
        type=Path,
        metavar="FILE",
        help=f"top k within each group; FILE is a CSV or parquet file with {GROUP_COLUMNS}",
    )


def read_filters(arguments: Arguments) -> dict[str, Any]:
    """The filters as `predict` takes them. Raises DataError for a file that cannot be read."""
    filters: dict[str, Any] = {"exclude_seen": arguments.exclude_seen}
    for name in ("among", "exclude"):
        if getattr(arguments, name) is not None:
            filters[name] = read_labels(getattr(arguments, name))
    if arguments.per_group is not None:
        filters["per_group"] = read_groups(arguments.per_group)
    return filters


def read_labels(texts: Sequence[str]) -> list[str]:
    """Labels, those of a file where a text is `@FILE`."""
    labels: list[str] = []
    for text in texts:
        if not text.startswith("@"):
            labels.append(text)
            continue
        path = local_path(text[1:])
        try:
            # utf-8-sig: a spreadsheet's byte order mark would make the first label unknown
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: not a text file of labels ({error}); write one label per line, in UTF-8."
            ) from None
        # as they stand, without strip: a label may begin or end with a space
        labels += [line for line in lines if line.strip()]
    return labels


def read_groups(path: Path) -> dict[str, str]:
    """Label -> group, of the two columns of a table. Raises DataError for another table."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            # all text: a column of numbers would lose how its labels are written
            names = csv.open_csv(path).schema.names
            types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            table = csv.read_csv(path, convert_options=types)
        columns = [column.cast(pa.string()).to_pylist() for column in table.columns]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not a table of groups ({error}); write a CSV or parquet file with "
            f"{GROUP_COLUMNS}."
        ) from None

    if len(columns) != 2:
        raise DataError(
            f"{path}: {len(columns)} columns ({', '.join(table.column_names)[:100]}); write "
            f"{GROUP_COLUMNS}."
        )
    groups: dict[str, str] = {}
    for label, group in zip(*columns, strict=True):
        if label in (None, "") or group in (None, ""):
            continue  # a behavior without a group is in none
        # in two groups it would be listed twice, and neither list be the one that was asked for
        if groups.setdefault(label, group) != group:
            raise DataError(
                f"{path}: the label {label!r} is in two groups, {groups[label]!r} and "
                f"{group!r}; assign it to one."
            )
    return groups
