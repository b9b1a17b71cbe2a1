// The last photos with their answers, in the browser's own database on this device.

const MAX_ENTRIES = 20;
const STORE = "photos";
const DATABASE = `cars ${new URL("./", location.href).pathname}`; // hosts serve several apps from one origin

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

let opened;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    resultOf(request).then(resolve, reject);
  });
  opened.catch(() => (opened = undefined));
  return opened;
}

/** Runs `work` on the store; resolves when the transaction is on the disk. */
async function transaction(mode, work) {
  const change = (await open()).transaction(STORE, mode);
  const finished = new Promise((resolve, reject) => {
    change.oncomplete = resolve;
    change.onabort = () => reject(change.error ?? new Error("the browser gave up"));
  });
  const [result] = await Promise.all([work(change.objectStore(STORE)), finished]);
  return result;
}

/** Adds {photo: Blob, answer, time} and removes the oldest entries beyond twenty. */
export function add(entry) {
  return transaction("readwrite", async (store) => {
    await resultOf(store.add(entry));
    const keys = await resultOf(store.getAllKeys());
    keys.slice(0, -MAX_ENTRIES).forEach((key) => store.delete(key));
  });
}

/** Returns all entries, newest first. */
export async function list() {
  return (await transaction("readonly", (store) => resultOf(store.getAll()))).reverse();
}

export const remove = (id) => transaction("readwrite", (store) => resultOf(store.delete(id)));
export const clear = () => transaction("readwrite", (store) => resultOf(store.clear()));
