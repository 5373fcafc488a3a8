// Opens a run and prints its first steps, one JSON line each: what any language can read off the wire.
//
//   node client.mjs ADDRESS PROTO RUN_ID BATCH_ROWS NUM_STEPS
//
// Columns are little-endian arrays; a batch too large for one message comes in parts; samples are an
// Arrow IPC stream of the distinct rows.

import { createHash } from "node:crypto";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { tableFromIPC } from "apache-arrow";

const [address, proto, runId, batchRows, numSteps] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: true, longs: Number, defaults: true });
const { MiningService } = grpc.loadPackageDefinition(definition).coalface.v1;
const root = await import("protobufjs").then(({ default: pb }) => pb.load(proto));
const Batch = root.lookupType("coalface.v1.Batch");
const client = new MiningService(address, grpc.credentials.createInsecure());

const column = (bytes, Kind) =>
  new Kind(new Uint8Array(bytes).buffer); // a copy of its own: arrays must be aligned

function show(batch) {
  const rowIds = [...column(batch.row_ids, BigInt64Array)].map(Number);
  const samples = tableFromIPC(batch.payload);
  const images = new Map();
  const ids = samples.getChild("row_id");
  const image = samples.getChild("image");
  for (let place = 0; place < samples.numRows; place++) {
    images.set(Number(ids.get(place)), Buffer.from(image.get(place)));
  }
  const digest = createHash("sha256");
  for (const rowId of rowIds) digest.update(images.get(rowId));
  console.log(
    JSON.stringify({
      step: Number(batch.step),
      round_id: Number(batch.round_id),
      strategy: batch.strategy,
      row_ids: rowIds,
      identity_ids: [...column(batch.identity_ids, Int32Array)],
      group_offsets: [...column(batch.group_offsets, Int32Array)],
      anchors: [...column(batch.anchors, Int32Array)],
      positives: [...column(batch.positives, Int32Array)],
      negatives: [...column(batch.negatives, Int32Array)],
      similarities_ap: [...column(batch.similarities_ap, Float32Array)],
      tiers: [...column(batch.tiers, Uint8Array)],
      images_sha256: digest.digest("hex"),
    }),
  );
}

function read() {
  const call = client.StreamTriplets({
    run_id: runId,
    num_steps: Number(numSteps),
    world_size: 1,
    with_payload: true,
  });
  let parts = [];
  let numMessages = 0;
  let numParts = 0;
  call.on("data", (message) => {
    numMessages += 1;
    message.batches.forEach(show);
    if (!message.part) return;
    numParts += 1;
    parts.push(message.part.content);
    const whole = Buffer.concat(parts);
    if (whole.length < message.part.total_bytes) return;
    const wire = Batch.decode(whole);
    show(Object.fromEntries(Object.entries(Batch.fields).map(([camel, field]) => [snake(field.name), wire[camel]])));
    parts = [];
  });
  call.on("error", (error) => {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exit(1);
  });
  call.on("end", () => {
    console.log(JSON.stringify({ messages: numMessages, parts: numParts }));
    client.close();
  });
}

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

client.OpenRun({ run_id: runId, batch_rows: Number(batchRows) }, (error) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exit(1);
  }
  read();
});
