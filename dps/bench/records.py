"""Records of a benchmark: one flat dictionary a measurement, written as soon as it is known, as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from dps.errors import InputError
from feature_store.files import replace_file


class Records:
    """The measurements in a folder: ``bench.json`` (with the configuration) and ``bench.csv``."""

    def __init__(self, folder: Path, config: dict[str, Any], *, overwrite: bool = False) -> None:
        """Open the folder.

        Args:
            folder: Made if it is missing.
            config: The resolved configuration; records of another one are refused.
            overwrite: Forget what is there.

        Raises:
            InputError: If the folder holds records of another configuration.
        """
        self.folder = folder
        self._config = json.loads(json.dumps(config))
        self._records: dict[str, dict[str, Any]] = {}
        path = folder / "bench.json"
        if path.is_file() and not overwrite:
            held = json.loads(path.read_text())
            if held["config"] != self._config:
                raise InputError(
                    f"Expected {path} to be of the same configuration, but it is of another one: choose another "
                    "--output, or --overwrite true to measure anew."
                )
            self._records = {record["id"]: record for record in held["records"]}

    def __contains__(self, identity: str) -> bool:
        """Whether that measurement was made."""
        return identity in self._records

    def __iter__(self) -> Any:
        """Iterate over the records in the order of measurement."""
        return iter(self._records.values())

    def get(self, identity: str) -> dict[str, Any] | None:
        """Return a measurement, None if it was not made."""
        return self._records.get(identity)

    def of_case(self, case: str) -> list[dict[str, Any]]:
        """Return the measurements of a case."""
        return [record for record in self if record["case"] == case]

    def add(self, identity: str, record: dict[str, Any]) -> None:
        """Add a measurement and write all."""
        self._records[identity] = {"id": identity, **record}
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": self._config, "records": list(self)}, indent=1)
        replace_file(self.folder / "bench.json", text + "\n")
        columns = list(dict.fromkeys(column for line in self for column in line))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self)
        replace_file(self.folder / "bench.csv", table.getvalue())


_COLUMNS = (
    ("", "id", "{}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("x reference", "ratio", "{:,.0f}"),
    ("x generate", "generate_ratio", "{:.2f}"),
    ("ms/step", "ms_per_step", "{:.2f}"),
    ("floor share", "floor_share", "{:.2f}"),
    ("useful rows", "row_utilization", "{:.1%}"),
    ("accepted", "acceptance", "{:.1%}"),
    ("s/question", "seconds_per_question", "{:.2f}"),
    ("latency s", "latency_s", "{:.2f}"),
    ("peak GiB", "peak_memory_gib", "{:.1f}"),
)


def print_table(records: Records) -> None:
    """Print the records as a table, and the projection where there is one."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="left" if not heading else "right")
    for record in records:
        values = [(record.get(name), form) for _, name, form in _COLUMNS]
        table.add_row(*["" if value is None else form.format(value) for value, form in values])
    Console(width=160).print(table)
    for record in records:
        if record.get("projected_s") is not None:
            full = record["projected_full_rows_s"]
            print(
                f"{record['id']}: {record['projected_chains']:,} chains would take {record['projected_s'] / 60:.1f} "
                "minutes at the speed of the whole run"
                + (f", {full / 60:.1f} while rows are full." if full is not None else ".")
            )
    print(records.folder / "bench.json")
