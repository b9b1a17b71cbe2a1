// The service worker of version {{version}}: keeps the app on the device, and lets no request leave its origin.

const FILES = {{files}}; // name → SHA-256 and bytes; index.html is fetched as "./", as hosts redirect its name

const SCOPE = new URL("./", self.location.href);
const CACHE = `cars ${SCOPE.pathname}`;
const keyOf = (name) => new URL(`${name}?${FILES[name].hash}`, SCOPE).href;

async function tellPages(message) {
  for (const page of await self.clients.matchAll({ includeUncontrolled: true })) page.postMessage(message);
}

/** Fetches a file as it was built; a host that serves an older or altered one makes the installation fail. */
async function download(name, onBytes) {
  const response = await fetch(name === "index.html" ? "./" : name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`);
  const chunks = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    onBytes(value.length);
  }
  const blob = new Blob(chunks, { type: response.headers.get("Content-Type") ?? "" });
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  const hash = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hash !== FILES[name].hash) throw new Error(`${name} is not the file that was built`);
  return new Response(blob);
}

async function install() {
  const cache = await caches.open(CACHE);
  const kept = new Set((await cache.keys()).map((request) => request.url));
  const missing = Object.keys(FILES).filter((name) => !kept.has(keyOf(name)));
  const total = missing.reduce((sum, name) => sum + FILES[name].bytes, 0);
  let loaded = 0;
  const onBytes = (bytes) => tellPages({ loaded: (loaded += bytes), total });
  await Promise.all(missing.map(async (name) => cache.put(keyOf(name), await download(name, onBytes))));
}

async function activate() {
  const cache = await caches.open(CACHE);
  const wanted = new Set(Object.keys(FILES).map(keyOf));
  const old = (await cache.keys()).filter((request) => !wanted.has(request.url));
  await Promise.all(old.map((request) => cache.delete(request)));
  await self.clients.claim();
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("message", ({ data }) => data === "take over" && self.skipWaiting());

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (url.origin !== SCOPE.origin) return event.respondWith(Response.error());
  const name = url.pathname.slice(SCOPE.pathname.length) || "index.html";
  if (!Object.hasOwn(FILES, name)) return;
  event.respondWith(
    caches.open(CACHE).then(async (cache) => (await cache.match(keyOf(name))) ?? fetch(event.request)),
  );
});
