// The service behind this page: whether it is there, what it serves, what it says of an image. All URLs are relative.

import { Problem } from "./problem.js";

const IDLE_MS = 15_000; // between two looks while it is ready
const SOON_MS = [500, 1000, 2000, 3000]; // and while it is not, the last one again and again
const LOOK_MS = 5000; // a look takes no longer
const STORED = "topk-api-key";

export const url = (path) => new URL(path, document.baseURI);

export class Server extends EventTarget {
  state = "asking"; // then starting, ready, away or locked
  detail = ""; // of that state
  info = null; // v1/info, once known
  key = remembered();
  keyed = false; // whether it asks for keys
  #wake = () => {};

  // Looks again and again, quietly, as long as the page is seen.
  async watch() {
    for (const event of ["online", "visibilitychange"]) addEventListener(event, () => this.look(), true);
    for (let misses = 0; ; ) {
      if (!document.hidden) {
        await this.#look();
        misses = this.state === "ready" ? 0 : misses + 1;
      }
      const waits = this.state === "locked" || document.hidden;
      const ms = misses ? SOON_MS[Math.min(misses, SOON_MS.length) - 1] : IDLE_MS;
      await new Promise((resolve) => {
        this.#wake = resolve;
        if (!waits) setTimeout(resolve, ms);
      });
    }
  }

  // Look now.
  look() {
    this.#wake();
  }

  // Resolves as soon as it can be asked.
  async ready(signal) {
    while (this.state !== "ready") {
      signal?.throwIfAborted();
      await new Promise((resolve) => {
        this.addEventListener("change", resolve, { once: true });
        signal?.addEventListener("abort", resolve, { once: true });
      });
    }
    signal?.throwIfAborted();
  }

  unlock(key) {
    this.key = remembered(key);
    this.#become("asking");
    this.look();
  }

  // The query of a prediction: five classes where there are as many, and WordNet's path where there is one.
  get query() {
    const query = new URLSearchParams({ top_k: Math.min(5, this.info?.classes ?? 5) });
    if (this.info?.taxonomy) query.set("taxonomy", "true");
    return query.toString();
  }

  // What it says of one image, a Blob. Throws Problem, or the signal's reason.
  async predict(image, name, signal) {
    const body = new FormData();
    body.append("file", image, name);
    const query = this.query;
    const started = performance.now();
    let response, answer;
    try {
      response = await this.#ask(`v1/predict?${query}`, { method: "POST", body, signal });
      answer = await response.json().catch((error) => (response.ok ? Promise.reject(error) : {}));
    } catch {
      signal?.throwIfAborted();
      await this.#look();
      this.look();
      throw Problem.lost();
    }
    const ms = performance.now() - started;
    if (response.ok) {
      if (answer.model !== this.info.model || answer.weights !== this.info.weights) this.#again();
      return { answer, ms, query, status: response.status, timing: response.headers.get("Server-Timing") ?? "" };
    }
    const problem = Problem.of(response, answer);
    if (problem.status === 401) this.#become("locked", problem.message);
    if (problem.code === "not_ready") this.#again("starting", problem.message);
    throw problem;
  }

  // Another model is served, or none at the moment.
  #again(state = "asking", detail = "") {
    this.#become(state, detail);
    this.look();
  }

  async #look() {
    try {
      const signal = AbortSignal.timeout(LOOK_MS);
      const probe = await this.#ask("readyz", { signal });
      if (probe.status >= 500) return this.#unready(await probe.json().catch(() => ({})));
      if (this.state === "ready") return;
      const response = await this.#ask("v1/info", { signal });
      const body = await response.json();
      if (response.status === 401) return this.#become("locked", body.detail);
      if (!response.ok) return this.#unready(body);
      this.info = body;
      this.keyed ||= Boolean(this.key);
      this.#become("ready");
    } catch {
      this.#become("away");
    }
  }

  #unready(body) {
    this.#become(body.code === "not_ready" ? "starting" : "away", body.detail);
  }

  #become(state, detail = "") {
    if (state === "locked") this.keyed = true;
    if (state === this.state && detail === this.detail && state !== "locked") return;
    Object.assign(this, { state, detail });
    this.dispatchEvent(new Event("change"));
  }

  #ask(path, options) {
    const headers = this.key ? { "X-API-Key": this.key } : {};
    return fetch(url(path), { ...options, headers, cache: "no-store" });
  }
}

// The key lasts until the tab is closed, or until the page is left where storage is switched off.
function remembered(key) {
  try {
    if (key) sessionStorage.setItem(STORED, key);
    if (key === "") sessionStorage.removeItem(STORED);
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return key ?? "";
  }
}
