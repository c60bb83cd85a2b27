"""Sends one `etl.job` with N children `etl.node.x` and as many spans of a web server: send.py PROTOCOL COMPRESSION N.

Run by an interpreter that has the exporter; where to, and as which run, is in OTEL_EXPORTER_OTLP_ENDPOINT and
KFM_RUN_ID.
"""

from __future__ import annotations

import importlib
import os
import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "http/json": "opentelemetry.exporter.otlp.json.http.trace_exporter",
}


def main() -> None:
    protocol, os.environ["OTEL_EXPORTER_OTLP_COMPRESSION"], count = sys.argv[1:]
    run_id = os.environ["KFM_RUN_ID"]
    exporter = importlib.import_module(EXPORTERS[protocol]).OTLPSpanExporter()
    results = []
    export = exporter.export

    def watched(spans: object) -> object:
        results.append(export(spans))
        return results[-1]

    exporter.export = watched
    provider = TracerProvider(resource=Resource.create({"service.name": "kfm.etl.peer_python"}))
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=100_000))
    tracer = provider.get_tracer("kfm.etl.peer_python")
    with tracer.start_as_current_span("etl.job", attributes={"job.id": run_id, "kfm.run_id": run_id}):
        for index in range(int(count)):
            with tracer.start_as_current_span("etl.node.x", attributes={"peer.index": index, "peer.int": 2**53 + 1}):
                pass
    for index in range(int(count)):
        with tracer.start_as_current_span("GET /", attributes={"peer.index": index}):
            pass
    provider.shutdown()
    if {*results} != {SpanExportResult.SUCCESS}:
        sys.exit(f"the receiver did not take everything: {results}")


if __name__ == "__main__":
    main()
