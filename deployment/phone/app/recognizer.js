// A worker: runs the model, so that the page stays responsive.

import * as ort from "./ort.js";

const WARM_UP_SIDE = 64; // pixels
let session;

async function bytesOf(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing (HTTP ${response.status})`);
  return response;
}

async function load() {
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  ort.env.logLevel = "fatal";
  const [packed, model] = await Promise.all([bytesOf("ort.bin"), bytesOf("model.onnx")]);
  ort.env.wasm.wasmBinary = await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  session = await ort.InferenceSession.create(await model.arrayBuffer(), { executionProviders: ["wasm"] });
  // The first run is slower: nobody waits for it here.
  await run({ data: new Uint8Array(WARM_UP_SIDE ** 2 * 3), height: WARM_UP_SIDE, width: WARM_UP_SIDE });
}

async function run({ data, height, width }) {
  const image = new ort.Tensor("uint8", data, [height, width, 3]);
  const { probabilities } = await session.run({ image });
  return probabilities.data;
}

const loaded = load();
loaded.then(
  () => self.postMessage({ loaded: true }),
  (error) => self.postMessage({ failed: String(error.message ?? error) }),
);

self.onmessage = async ({ data: { id, image } }) => {
  try {
    self.postMessage({ id, probabilities: await run(image) });
  } catch (error) {
    self.postMessage({ id, error: String(error.message ?? error) });
  }
};
