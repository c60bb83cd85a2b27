"""A nightly job as one would write it without joulegram: stock OpenTelemetry, three nodes, one STAC Item.

It reads the EPA eGRID and Ember figures that the joulegram package ships as files, imports none of it, and
works out how clean the power of each zone and of each year is, and how sure one can be of that.

    joulegram run -- python examples/nightly_etl.py    with energy and carbon; the STAC Item is patched
    python examples/nightly_etl.py                     alone; OTEL_EXPORTER_OTLP_ENDPOINT says where spans go

All that joulegram needs of a job is here: spans named `etl.job` and `etl.node.<name>`, the run id, and, where
a STAC Item is to be patched, its path in the root span's attribute `kfm.stac_item`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import random
import re
import statistics
from bisect import bisect_left
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.metrics import Counter
    from opentelemetry.trace import Tracer

TABLES = {
    "epa-egrid-subregion": "https://www.epa.gov/egrid",
    "ember-annual": "https://ember-energy.org/data/yearly-electricity-data/",
}
WHOLES = re.compile("egrid:US$|ember:")
"""The nation and the continents: sums of the zones beside them, so not zones themselves."""
LABELS = {"kfm.component": "etl", "kfm.domain": "energy", "kfm.pipeline_kind": "nightly"}
EXPORT_TIMEOUT_S = 3
"""A job must end although nobody takes its telemetry: so long for the spans, as long for the metrics."""


class Figure(NamedTuple):
    """What a table says of one zone in one year, in grams of CO2e per kWh."""

    table: str
    zone: str
    year: int
    g_per_kwh: float


class Estimate(NamedTuple):
    """One row of the result: a measure of a zone or a year, with its 95 % interval where it has one."""

    table: str
    group: str
    key: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None


def extract(tables: Path | None) -> list[Figure]:
    """Read every version of the tables; where two have the same zone and year, the later version holds."""
    if tables is None:
        spec = importlib.util.find_spec("joulegram_processor")  # finds the folder, imports nothing
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("joulegram is not installed: name the folder of its tables with --data")
        tables = Path(spec.submodule_search_locations[0]) / "tables"
    figures: dict[tuple[str, str, int], Figure] = {}
    for table in TABLES:
        paths = sorted(tables.glob(f"{table}/*/table.csv"))
        if not paths:
            raise FileNotFoundError(f"no {table}/*/table.csv in {tables}: name their folder with --data")
        for path in paths:
            with path.open(newline="", encoding="utf-8") as handle:
                for row in csv.DictReader(handle):
                    zone, year = row["region_key"], datetime.fromisoformat(row["start_utc"]).year
                    if not WHOLES.match(zone):
                        figures[table, zone, year] = Figure(table, zone, year, float(row["g_per_kwh"]))
    return sorted(figures.values(), key=lambda figure: (figure.table, figure.zone, figure.year))


def middle(draws: Sequence[float]) -> tuple[float, float]:
    """The bounds of the middle 95 % of bootstrap draws."""
    ordered = sorted(draws)
    return ordered[len(ordered) * 25 // 1000], ordered[len(ordered) * 975 // 1000]


def by_year(figures: Sequence[Figure], resamples: int) -> list[Estimate]:
    """The median zone of each year, its interval by bootstrap; the same figures always give the same rows."""
    groups: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for figure in figures:
        groups[figure.table, figure.year].append(figure.g_per_kwh)
    rows = []
    for (table, year), values in sorted(groups.items()):
        chance = random.Random(f"{table} {year}")  # noqa: S311 - a statistic, reproducible on purpose
        medians = [statistics.median(chance.choices(values, k=len(values))) for _ in range(resamples)]
        median = statistics.median(values)
        rows.append(Estimate(table, "year", str(year), "median_g_per_kwh", median, *middle(medians)))
    return rows


def by_zone(figures: Sequence[Figure], resamples: int) -> list[Estimate]:
    """Each zone's latest figure, and the share of zones that are cleaner, its interval by bootstrap."""
    latest: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for figure in figures:  # in order of years: the last one stays
        latest[figure.table][figure.zone] = figure.g_per_kwh
    rows = []
    for table, zones in latest.items():
        values = sorted(zones.values())
        chance = random.Random(table)  # noqa: S311 - as above
        cleaner: dict[str, list[int]] = {zone: [] for zone in zones}
        for _ in range(resamples):
            sample = sorted(chance.choices(values, k=len(values)))
            for zone, value in zones.items():
                cleaner[zone].append(bisect_left(sample, value))
        for zone, value in zones.items():
            counts = (bisect_left(values, value), *middle(cleaner[zone]))
            rows.append(Estimate(table, "zone", zone, "g_per_kwh", value))
            rows.append(Estimate(table, "zone", zone, "cleaner_zones", *(n / len(values) for n in counts)))
    return rows


def aggregate(run: Run, figures: Sequence[Figure], resamples: int) -> list[Estimate]:
    """By zone and by year at once, each in its own thread and its own span."""
    parent = context.get_current()  # a context does not cross threads by itself

    def step(estimate: Callable[[Sequence[Figure], int], list[Estimate]]) -> list[Estimate]:
        name = f"etl.step.{estimate.__name__}"
        with run.tracer.start_as_current_span(name, context=parent, attributes=run.labels):
            return estimate(figures, resamples)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return [row for rows in pool.map(step, (by_zone, by_year)) for row in rows]


def write_csv(rows: Sequence[Estimate], path: Path) -> None:
    """Write the data asset; an absent bound is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(Estimate._fields)
        writer.writerows([f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in rows)


def write_item(run_id: str, stac_version: str, years: Sequence[int], asset: Path) -> Path:
    """Write the STAC Item beside its data asset and return its path."""
    west, south, east, north = world = [-180.0, -90.0, 180.0, 90.0]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = {
        "type": "Feature",
        "stac_version": stac_version,
        "id": f"grid-intensity-{run_id}",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": world,
        "properties": {
            "title": "Carbon intensity of the grid, by zone and by year",
            "datetime": None,  # a range of years, not an instant
            "start_datetime": f"{min(years)}-01-01T00:00:00Z",
            "end_datetime": f"{max(years)}-12-31T23:59:59Z",
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "links": [{"rel": "via", "href": source, "type": "text/html"} for source in TABLES.values()],
        "assets": {"data": {"href": f"./{asset.name}", "type": "text/csv", "roles": ["data"]}},
    }
    path = asset.with_suffix(".item.json")
    path.write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")
    return path


class Run(NamedTuple):
    """One run's telemetry: where its spans come from, what they all carry, and a count of records."""

    id: str
    tracer: Tracer
    records: Counter
    labels: Mapping[str, str]

    @contextmanager
    def node(self, name: str) -> Iterator[Callable[[int], None]]:
        """A node's span; call what it yields with the number of records that came out."""
        labels = {**self.labels, "kfm.node": name}
        with self.tracer.start_as_current_span(f"etl.node.{name}", attributes=labels) as span:

            def records_out(count: int) -> None:
                span.set_attribute("records_out", count)
                self.records.add(count, {"kfm.node": name})

            yield records_out


@contextmanager
def init_otel(service_name: str, run_id: str) -> Iterator[Run]:
    """Telemetry of one run, sent where OpenTelemetry's variables say; leaving flushes it, in bounded time."""
    resource = Resource.create({"service.name": service_name, "kfm.run_id": run_id, "kfm.component": "etl"})
    traces, readers = TracerProvider(resource=resource), []
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S)))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(timeout=EXPORT_TIMEOUT_S)))
    else:
        print("OTEL_EXPORTER_OTLP_ENDPOINT is not set: no telemetry is sent")
    metrics = MeterProvider(resource=resource, metric_readers=readers)
    records = metrics.get_meter(service_name).create_counter("etl.records", unit="{record}")
    try:
        yield Run(run_id, traces.get_tracer(service_name), records, LABELS | {"kfm.run_id": run_id})
    finally:
        traces.shutdown()
        metrics.shutdown(timeout_millis=EXPORT_TIMEOUT_S * 1000)


def run_job(run: Run, args: argparse.Namespace) -> Path:
    """The job: a root span from its first moment, a span per node; an error marks its spans and goes on."""
    labels = {**run.labels, "job.id": run.id, "job.type": "nightly"}
    with run.tracer.start_as_current_span("etl.job", attributes=labels) as job:
        with run.node("extract") as records_out:
            figures = extract(args.data)
            records_out(len(figures))
        with run.node("aggregate") as records_out:
            rows = aggregate(run, figures, args.resamples)
            records_out(len(rows))
        with run.node("publish") as records_out:
            asset = args.out.absolute() / "grid-intensity.csv"
            asset.parent.mkdir(parents=True, exist_ok=True)
            write_csv(rows, asset)
            item = write_item(run.id, args.stac_version, [figure.year for figure in figures], asset)
            records_out(len(rows))
        job.set_attribute("kfm.stac_item", str(item))
    return item


def main() -> None:
    """Read the options, name the run, run it."""
    parser = argparse.ArgumentParser(description="How clean the power of each zone and each year is.")
    parser.add_argument("--data", type=Path, help="folder of the tables (default: those joulegram ships)")
    parser.add_argument("--out", type=Path, default="nightly-out", help="folder to publish in (%(default)s)")
    parser.add_argument("--stac-version", choices=("1.0.0", "1.1.0"), default="1.1.0")
    parser.add_argument("--resamples", type=int, default=20_000, help="of the bootstrap (%(default)s)")
    args = parser.parse_args()
    run_id = os.environ.get("KFM_RUN_ID") or datetime.now(UTC).strftime("etl-%Y%m%dT%H%M%SZ")
    with init_otel("kfm.etl.nightly", run_id) as run:
        item = run_job(run, args)
    print(f"run {run_id}: published {item}")


if __name__ == "__main__":
    main()
