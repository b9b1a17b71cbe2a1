// The page: camera, photo, live recognition, answer.

import * as camera from "./camera.js";
import * as history from "./history.js";
import { install } from "./installation.js";
import { answerOf, load, recognize } from "./model.js";
import { $, element, percent, reasonOf, tell } from "./page.js";
import "./photos.js";
import { decode, draw, pixelsAreTrue, thumbnail } from "./pixels.js";

const LIVE_SIDE = 640; // pixels of a frame
const LIVE_FRAMES = 5; // over which live answers are averaged, so that they do not flicker
const LIVE_PAUSE = 150; // milliseconds between two frames, for the battery

let about; // model.json
let task = 0; // the number of the last thing that was asked for; what is older shows no answer
let live = false;
let problem = ""; // why there is no camera

// --- The answer ---------------------------------------------------------------------------------------------------

function showVerdict(verdict, detail = "", guesses = []) {
  $("result").classList.remove("unsure");
  $("verdict").textContent = verdict;
  $("detail").textContent = detail;
  $("guesses").replaceChildren(...guesses.map(guessItem));
  $("time").textContent = "";
}

function guessItem({ name, probability }) {
  const bar = element("progress", { max: 1, value: probability });
  bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
  return element("li", {}, bar, element("span", { textContent: name }), element("span", { textContent: percent(probability) }));
}

function showAnswer({ guesses, sure }, milliseconds) {
  const [best] = guesses;
  if (sure) showVerdict(best.name, "", guesses);
  else showVerdict("Not sure", "It may be one of these, another model, or no car. Let one car fill the picture.", guesses);
  $("result").classList.toggle("unsure", !sure);
  $("time").textContent = `Recognized on this device in ${Math.round(milliseconds)} ms.`;
}

// --- A photo ------------------------------------------------------------------------------------------------------

function showPhoto(blob) {
  if ($("photo").src) URL.revokeObjectURL($("photo").src);
  if (blob) $("photo").src = URL.createObjectURL(blob);
  else $("photo").removeAttribute("src");
  $("photo").hidden = !blob;
  $("video").hidden = Boolean(blob) || !camera.isOn();
  $("shutter").querySelector(".label").textContent = blob && camera.isOn() ? "Camera" : "Take photo";
}

async function answerCanvas(canvas) {
  setLive(false);
  const mine = ++task;
  tell("");
  $("note").textContent = "";
  showVerdict("Recognizing …");
  let photo, answer;
  try {
    photo = await thumbnail(canvas);
    if (mine === task) showPhoto(photo);
    const { probabilities, milliseconds } = await recognize(canvas);
    answer = answerOf(probabilities, about);
    if (mine === task) showAnswer(answer, milliseconds);
  } catch (error) {
    if (mine !== task) return;
    showVerdict("No answer");
    tell(`The photo could not be recognized: ${reasonOf(error)}.`);
    return;
  }
  try {
    await history.add({ photo, answer, time: Date.now() });
  } catch (error) {
    tell(`This photo is not kept among the last photos: ${reasonOf(error)}.`);
  }
}

async function answerFile(file) {
  if (!file) return;
  let picture, canvas;
  try {
    picture = await decode(file);
    canvas = draw(picture);
  } catch {
    tell(
      /hei[cf]/i.test(file.type + file.name)
        ? "This browser cannot read HEIC photos. Choose a JPEG, or take the photo here."
        : `${file.name || "This"} is no picture that this browser can read. Choose a JPEG, PNG or WebP photo.`,
    );
    return;
  } finally {
    picture?.close?.(); // 50 megapixels are 200 MB
  }
  await answerCanvas(canvas);
}

async function shoot() {
  if (!camera.isOn()) {
    if (problem) $("phone-camera").click();
    else await startCamera();
  } else if (!$("photo").hidden) {
    task++;
    showPhoto(null);
    showVerdict("Take or choose a photo of a car.");
  } else if ($("video").videoWidth) {
    await answerCanvas(draw($("video")));
  }
}

// --- The camera ---------------------------------------------------------------------------------------------------

async function startCamera() {
  problem = await camera.start(() => {
    setLive(false);
    $("live").hidden = true;
    $("video").hidden = true;
    $("note").textContent = "The camera was taken away. The button below starts it again.";
  });
  if ($("photo").hidden) {
    $("note").textContent = problem;
    showPhoto(null);
  }
  $("live").hidden = Boolean(problem);
}

function setLive(on) {
  const starts = on && !live;
  live = on;
  $("live").setAttribute("aria-pressed", String(on));
  $("answer").setAttribute("aria-live", on ? "off" : "polite"); // a screen reader would never stop talking
  if (starts) watch();
}

async function watch() {
  const mine = ++task;
  const frames = [];
  tell("");
  showPhoto(null);
  showVerdict("Recognizing …");
  while (mine === task) {
    try {
      const { probabilities, milliseconds } = await recognize(draw($("video"), LIVE_SIDE));
      if (mine !== task || !live) return;
      frames.push(probabilities);
      if (frames.length > LIVE_FRAMES) frames.shift();
      const mean = probabilities.map((_, label) => frames.reduce((sum, each) => sum + each[label], 0) / frames.length);
      showAnswer(answerOf(mean, about), milliseconds);
    } catch (error) {
      if (mine !== task) return;
      setLive(false);
      tell(`Live recognition has stopped: ${reasonOf(error)}.`);
      return;
    }
    await new Promise((resume) => setTimeout(resume, LIVE_PAUSE));
    if (document.hidden) await new Promise((resume) => document.addEventListener("visibilitychange", resume, { once: true }));
  }
}

// --- Start --------------------------------------------------------------------------------------------------------

function listen() {
  $("shutter").addEventListener("click", shoot);
  $("live").addEventListener("click", () => setLive(!live));
  $("choose").addEventListener("click", () => $("library").click());
  for (const id of ["library", "phone-camera"]) {
    $(id).addEventListener("change", async ({ target }) => {
      await answerFile(target.files[0]);
      target.value = ""; // so that the same photo can be chosen again
    });
  }
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("view").classList.toggle("drop", name === "dragover");
      if (name === "drop") answerFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => answerFile(event.clipboardData.files[0]));
}

function showProgress(done, total) {
  Object.assign($("loading"), { hidden: false, value: done, max: total });
  if (task === 0) $("detail").textContent = `${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
}

async function start() {
  showVerdict("Loading the model …");
  listen();
  startCamera();
  $("offline").textContent = (await install(showProgress)) || "Ready for use without a network.";
  try {
    about = await (await fetch("model.json")).json();
    $("about").textContent = about.about;
    await load();
  } catch (error) {
    showVerdict("No model");
    tell(`The model cannot be loaded: ${reasonOf(error)}. Reload the page; if that does not help, the app must be published again.`);
    return;
  } finally {
    $("loading").hidden = true;
  }
  if (task === 0) showVerdict("Take or choose a photo of a car.");
  if (!pixelsAreTrue()) tell("This browser hides pixels from pages, so answers will be wrong. Allow this page to read them.");
  document.body.dataset.ready = "";
}

start();
