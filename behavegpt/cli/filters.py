"""Options that say which behaviors may be predicted, and the files that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Parser
from behavegpt.errors import DataError
from behavegpt.label_tables import GROUPS, read_label_table
from behavegpt.paths import local_path


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
        help=f"top k within each group; FILE is a CSV or parquet file with {GROUPS.columns}",
    )


def read_filters(arguments: Arguments) -> dict[str, Any]:
    """The filters as `predict` takes them. Raises DataError for a file that cannot be read."""
    filters: dict[str, Any] = {"exclude_seen": arguments.exclude_seen}
    for name in ("among", "exclude"):
        if getattr(arguments, name) is not None:
            filters[name] = read_labels(getattr(arguments, name))
    if arguments.per_group is not None:
        filters["per_group"] = read_label_table(arguments.per_group, GROUPS)
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
