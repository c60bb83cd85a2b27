"""joulegram's own metrics: every name in one table, in the Collector's habit (docs/configuration.md lists them)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from joulegram_pipeline.trouble import LastTrouble


class Metrics:
    """The counters of one sidecar, on a registry of its own so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.last_refusal = LastTrouble()
        """Of the receivers."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"joulegram_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"joulegram_{name}", text, labels, registry=self.registry)

        self.accepted_spans = counter("receiver_accepted_spans", "Spans acknowledged: on disk.")
        self.accepted_requests = counter("receiver_accepted_requests", "Requests acknowledged, by signal.", "signal")
        self.refused_requests = counter(
            "receiver_refused_requests", "Requests refused, by signal and reason.", "signal", "reason"
        )
        self.invalid_spans = counter(
            "receiver_invalid_spans", "Spans that break OTLP: forwarded as they came, not joined.", "reason"
        )
        self.in_flight_bytes = gauge("receiver_in_flight_bytes", "Bytes of requests being handled.")
        self.plaintext_listeners = gauge(
            "receiver_plaintext_listeners", "OTLP listeners without TLS that others than this machine can reach."
        )
        self.certificate_days_left = gauge(
            "receiver_certificate_days_left", "Days until the certificate of a listener expires.", "protocol"
        )
        self.reload_failures = counter(
            "receiver_reload_failures", "Changed certificate and token files that could not be used.", "file"
        )
        self.spool_bytes = gauge("spool_bytes", "Bytes of the spool on disk.")
        self.spool_healed_bytes = counter("spool_healed_bytes", "Bytes of torn records cut from the spool's end.")
        self.spool_queue_bytes = gauge("spool_queue_bytes", "Bytes of requests waiting for the disk.")
        self.spool_damaged_records = counter(
            "spool_damaged_records", "Records that were damaged on disk: set aside, not delivered."
        )
        self.spool_dropped_records = counter(
            "spool_dropped_records", "Records that a full spool dropped, by what they were.", "kind"
        )
        self.spool_sync_seconds = Histogram(
            "joulegram_spool_sync_seconds",
            "Time of one fdatasync of the spool.",
            buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
            registry=self.registry,
        )
        self.joined_spans = counter("processor_joined_spans", "Spans joined, by energy method.", "method")
        self.duplicate_spans = counter("processor_duplicate_spans", "Spans recognised as a retry and not joined again.")
        self.pending_spans = gauge("processor_pending_spans", "Spans waiting for their energy.")
        self.energy_gaps = counter("processor_energy_gaps", "Gaps in the energy of the node, by reason.", "reason")
        self.ledger_lines = counter("sink_ledger_lines", "Lines appended to the ledger.")
        self.run_documents = counter("sink_run_documents", "Documents written for runs, by kind.", "kind")
        self.run_document_failures = counter(
            "sink_run_document_failures", "Documents that could not be written, by kind.", "kind"
        )
        self.forwarded_requests = counter("sink_forwarded_requests", "Requests a destination took.", "destination")
        self.forward_failures = counter(
            "sink_forward_failures",
            "Sends that failed, by destination and by what became of the data.",
            "destination",
            "kind",
        )
        self.forward_rejected_items = counter(
            "sink_forward_rejected_items",
            "Spans, data points and records that a destination left out of what it took.",
            "destination",
        )
        self.forward_backlog_bytes = gauge(
            "sink_forward_backlog_bytes", "Bytes waiting for a destination.", "destination"
        )
        self.forward_oldest_age_s = gauge(
            "sink_forward_oldest_age_seconds", "Age of the oldest request a destination has not taken.", "destination"
        )

    def refuse(self, signal: str, reason: str) -> None:
        """Count a request that was refused, and remember what it was and why, in the words of the labels alone."""
        self.refused_requests.labels(signal, reason).inc()
        self.last_refusal.note(f"{signal} refused: {reason}")
