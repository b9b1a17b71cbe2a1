// Keeps the app on the device and up to date, by the service worker.

import { $ } from "./page.js";

/**
 * Resolves when the files are on the device, or cannot be: to "" or to the reason, in a sentence.
 *
 * Until then the page loads nothing large: else a first visit would load it twice.
 */
export async function install(progress) {
  if (!navigator.serviceWorker) return "Without https the app works only with a network.";
  const report = ({ data }) => progress(data.loaded, data.total);
  navigator.serviceWorker.addEventListener("message", report);
  try {
    const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    update(registration);
    await finished(registration);
    navigator.storage?.persist?.(); // asks the browser not to make room by deleting the app
    return "";
  } catch {
    return "The app could not be kept on this device, so it works only with a network: the storage may be full.";
  } finally {
    navigator.serviceWorker.removeEventListener("message", report); // of updates, which come in the background, nothing is shown
  }
}

function finished(registration) {
  const worker = registration.installing;
  if (registration.active || !worker) return Promise.resolve();
  return new Promise((resolve, reject) => {
    worker.addEventListener("statechange", () => {
      if (worker.state === "activated") resolve();
      if (worker.state === "redundant") reject(new Error());
    });
  });
}

/** A new version waits in the background. It takes over at the next start, or when the person asks for it. */
function update(registration) {
  let asked = false;
  const takeOver = () => {
    asked = true;
    registration.waiting?.postMessage("take over");
  };
  const offer = () => ($("update").hidden = !registration.waiting);
  registration.addEventListener("updatefound", () => registration.installing.addEventListener("statechange", offer));
  navigator.serviceWorker.addEventListener("controllerchange", () => asked && location.reload());
  document.addEventListener("visibilitychange", () => document.hidden || registration.update().catch(() => {}));
  $("reload").addEventListener("click", takeOver);
  if (registration.waiting) takeOver();
}
