// The dialog with the last photos.

import * as history from "./history.js";
import { $, element, percent, reasonOf } from "./page.js";

export async function open() {
  await refresh();
  $("history").showModal();
}

async function refresh() {
  let entries = [];
  try {
    entries = await history.list();
    $("history-note").textContent = entries.length
      ? "These photos stay on this device. Nothing is sent anywhere."
      : "No photos yet. The last twenty stay here, on this device.";
  } catch (error) {
    $("history-note").textContent = `The last photos cannot be read: ${reasonOf(error)}.`;
  }
  $("history-list").querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
  $("history-list").replaceChildren(...entries.map(itemOf));
  $("clear-history").hidden = !entries.length;
}

async function change(work) {
  try {
    await work();
    await refresh();
  } catch (error) {
    $("history-note").textContent = `The photo cannot be deleted: ${reasonOf(error)}.`;
  }
  $("close-history").focus(); // the button that had it is gone
}

function itemOf({ id, photo, answer, time }) {
  const [best] = answer.guesses;
  const title = answer.sure ? best.name : `Not sure: ${best.name}?`;
  const when = new Date(time).toLocaleString();
  const image = element("img", { src: URL.createObjectURL(photo), alt: "" });
  const file = new File([photo], `${best.name.replace(/[^\p{L}\p{N}]+/gu, "-")}.jpg`, { type: "image/jpeg" });
  const action = (text, click) => {
    const made = element("button", { type: "button", textContent: text });
    made.setAttribute("aria-label", `${text}: ${title}, ${when}`);
    made.addEventListener("click", click);
    return made;
  };
  const actions = element("div", { className: "actions" });
  if (navigator.canShare?.({ files: [file] })) {
    // A person who closes the share sheet rejects the promise.
    actions.append(action("Share", () => navigator.share({ files: [file], text: title }).catch(() => {})));
  }
  actions.append(
    action("Save", () => element("a", { href: image.src, download: file.name }).click()),
    action("Delete", () => change(() => history.remove(id))),
  );
  const text = element("div", {}, element("strong", { textContent: title }), element("small", { textContent: `${percent(best.probability)}, ${when}` }));
  return element("li", {}, image, text, actions);
}

$("open-history").addEventListener("click", open);
$("close-history").addEventListener("click", () => $("history").close());
$("clear-history").addEventListener("click", () => confirm("Delete all photos of this list?") && change(history.clear));
