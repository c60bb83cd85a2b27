"""In: OTLP over gRPC, the agent's ticks, and the durable spool both go to."""
