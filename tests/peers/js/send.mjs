// Sends one `etl.job` with N children `etl.node.x` over OTLP: node send.mjs N
// Where to, over what and as which run is in OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL (grpc,
// http/protobuf or http/json) and KFM_RUN_ID, as for any job.

import { context, trace } from "@opentelemetry/api";
import { NodeSDK } from "@opentelemetry/sdk-node";

const nodes = Number.parseInt(process.argv[2] ?? "", 10);
if (!(nodes > 0)) throw new Error(`got ${process.argv[2]} spans to send, expected a positive integer`);
const runId = process.env.KFM_RUN_ID ?? "peer-js-run";

const sdk = new NodeSDK({ serviceName: "kfm.etl.peer_js" });
sdk.start();

const tracer = trace.getTracer("kfm.etl.peer_js");
const job = tracer.startSpan("etl.job", { attributes: { "job.id": runId, "job.type": "peer", "kfm.run_id": runId } });
const inJob = trace.setSpan(context.active(), job);
for (let index = 0; index < nodes; index += 1) {
  const attributes = { "kfm.run_id": runId, "kfm.node": "x", "kfm.component": "etl", "peer.index": index };
  tracer.startSpan("etl.node.x", { attributes }, inJob).end();
}
job.end();

await sdk.shutdown(); // sends what is left; throws if the receiver refused it
