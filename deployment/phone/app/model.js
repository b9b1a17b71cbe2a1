// The model, as the page sees it.

import { pixelsOf } from "./pixels.js";

const GUESSES = 5;
const calls = new Map();
let worker;
let settle;
let lastId = 0;
// From the start, because photos may be chosen before the model has arrived.
const loaded = new Promise((resolve, reject) => {
  settle = { resolve, reject };
});

/** Starts the worker; resolves when it can answer. Rejects where the model is missing or damaged. */
export function load() {
  worker = new Worker("recognizer.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.loaded) return settle.resolve();
    if (data.failed) return settle.reject(new Error(data.failed));
    const call = calls.get(data.id);
    calls.delete(data.id);
    if (data.error) call.reject(new Error(data.error));
    else call.resolve(data.probabilities);
  };
  worker.onerror = (event) => {
    const error = new Error(event.message || "a file of the app is missing");
    settle.reject(error);
    calls.forEach((call) => call.reject(error));
    calls.clear();
  };
  return loaded;
}

/** Returns {probabilities, milliseconds} of a canvas; the time is that from the pixels to the answer. */
export async function recognize(canvas) {
  await loaded;
  const start = performance.now();
  const image = pixelsOf(canvas);
  const id = ++lastId;
  const probabilities = await new Promise((resolve, reject) => {
    calls.set(id, { resolve, reject });
    worker.postMessage({ id, image }, [image.data.buffer]);
  });
  return { probabilities, milliseconds: performance.now() - start };
}

/** Returns the answer to the probabilities of all classes: the best guesses, and whether the first is to be believed. */
export function answerOf(probabilities, { class_names: names, threshold, score }) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const guesses = order.slice(0, GUESSES).map((label) => ({ name: names[label], probability: probabilities[label] }));
  const second = score === "margin" && order.length > 1 ? probabilities[order[1]] : 0;
  return { guesses, sure: probabilities[order[0]] - second >= (threshold ?? 0) };
}
