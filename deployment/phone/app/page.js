// What every part of the page uses.

export const $ = (id) => document.getElementById(id);

/** Shows an error in one sentence; "" hides the last one. */
export function tell(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

/** Returns what an error means to a person. */
export function reasonOf(error) {
  if (error?.name === "QuotaExceededError") return "the browser's storage is full";
  return error?.message || "the browser does not allow it";
}

/** Returns a probability as text: 93 %, 4.2 %. */
export const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;

/** Makes an element with the given properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
