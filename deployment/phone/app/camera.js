// The camera, shown in the page's video.

import { $ } from "./page.js";

let stream = null;
let starting = null; // while the person is asked for permission

export const isOn = () => stream !== null;

/** Starts the camera and returns "", or what to do without it. `ended` is called when it is taken away. */
export function start(ended) {
  starting ??= open(ended).finally(() => {
    starting = null;
  });
  return starting;
}

async function open(ended) {
  if (!navigator.mediaDevices?.getUserMedia) return "The camera is shown only over https. The button below opens the phone's own camera.";
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 960 }, resizeMode: "none" },
    });
  } catch (error) {
    if (error.name === "NotAllowedError") {
      return "This page may not use the camera. Allow it in the browser's settings, or choose a photo.";
    }
    if (error.name === "NotFoundError") return "No camera was found. Choose a photo, drop one here, or paste one.";
    return "The camera does not start; another app may use it. Choose a photo instead.";
  }
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    stop();
    ended();
  });
  $("video").srcObject = stream;
  await $("video").play().catch(() => {}); // it plays as soon as the browser lets it
  return "";
}

function stop() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
}
