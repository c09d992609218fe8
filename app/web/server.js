// The service: its state, its model and its predictions. All URLs are relative.

import { Problem } from "./problem.js";

const READY_MS = 15_000; // between two checks while the service is ready
const WAITING_MS = [500, 1000, 2000, 3000]; // and while it is not; the last one repeats
const CHECK_MS = 5000; // timeout of a check
const COVERAGE = 0.95;
const UNKNOWN = 0.01;
const STORED = "topk-api-key";

export const url = (path) => new URL(path, document.baseURI);

export class Server extends EventTarget {
  state = "connecting"; // then starting, ready, unreachable or locked
  detail = ""; // of that state
  info = null; // the response of v1/info
  key = remembered();
  keyed = false; // whether the service requires an API key
  #wake = () => {};

  // Checks the service regularly while the page is visible.
  async watch() {
    for (const event of ["online", "visibilitychange"]) addEventListener(event, () => this.check(), true);
    for (let misses = 0; ; ) {
      if (!document.hidden) {
        await this.#check();
        misses = this.state === "ready" ? 0 : misses + 1;
      }
      const waits = this.state === "locked" || document.hidden;
      const ms = misses ? WAITING_MS[Math.min(misses, WAITING_MS.length) - 1] : READY_MS;
      await new Promise((resolve) => {
        this.#wake = resolve;
        if (!waits) setTimeout(resolve, ms);
      });
    }
  }

  // Checks now.
  check() {
    this.#wake();
  }

  // Resolves when the service is ready.
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
    this.#become("connecting");
    this.check();
  }

  // The query of a prediction: five classes or all of fewer, the path in WordNet if the model has one, and a prediction
  // set if the model is calibrated.
  get query() {
    const query = new URLSearchParams({ top_k: Math.min(5, this.info?.classes ?? 5) });
    if (this.info?.taxonomy) query.set("taxonomy", "true");
    if (this.info?.calibration) {
      query.set("coverage", this.coverage);
      query.set("unknown", this.unknown);
    }
    return query.toString();
  }

  // The probability with which a prediction set contains the right class; 0 if the model is not calibrated.
  get coverage() {
    const most = this.info?.calibration?.most_coverage ?? 0;
    return Math.min(COVERAGE, Math.floor(most * 1e3) / 1e3);
  }

  // An image is unknown if at most this share of the images of the calibration is as unusual.
  get unknown() {
    return Math.max(UNKNOWN, Math.ceil((this.info?.calibration?.least_unknown ?? 0) * 1e4) / 1e4);
  }

  // Classifies an image, a Blob, with further options. Throws Problem, or the signal's reason.
  async predict(image, name, signal, options = {}) {
    const body = new FormData();
    body.append("file", image, name);
    const query = new URLSearchParams([...new URLSearchParams(this.query), ...Object.entries(options)]).toString();
    const started = performance.now();
    let response, answer;
    try {
      response = await this.#fetch(`v1/predict?${query}`, { method: "POST", body, signal });
      answer = await response.json().catch((error) => (response.ok ? Promise.reject(error) : {}));
    } catch {
      signal?.throwIfAborted();
      await this.#check();
      this.check();
      throw Problem.lost();
    }
    const ms = performance.now() - started;
    if (response.ok) {
      if (answer.model !== this.info.model || answer.weights !== this.info.weights) this.#reload();
      return { answer, ms, query, status: response.status, timing: response.headers.get("Server-Timing") ?? "" };
    }
    const problem = Problem.of(response, answer);
    if (problem.status === 401) this.#become("locked", problem.message);
    if (problem.code === "not_ready") this.#reload("starting", problem.message);
    throw problem;
  }

  // Another model is served, or the model is not ready.
  #reload(state = "connecting", detail = "") {
    this.#become(state, detail);
    this.check();
  }

  async #check() {
    try {
      const signal = AbortSignal.timeout(CHECK_MS);
      const probe = await this.#fetch("readyz", { signal });
      if (probe.status >= 500) return this.#unready(await probe.json().catch(() => ({})));
      if (this.state === "ready") return;
      const response = await this.#fetch("v1/info", { signal });
      const body = await response.json();
      if (response.status === 401) return this.#become("locked", body.detail);
      if (!response.ok) return this.#unready(body);
      this.info = body;
      this.keyed ||= Boolean(this.key);
      this.#become("ready");
    } catch {
      this.#become("unreachable");
    }
  }

  #unready(body) {
    this.#become(body.code === "not_ready" ? "starting" : "unreachable", body.detail);
  }

  #become(state, detail = "") {
    if (state === "locked") this.keyed = true;
    if (state === this.state && detail === this.detail && state !== "locked") return;
    Object.assign(this, { state, detail });
    this.dispatchEvent(new Event("change"));
  }

  #fetch(path, options) {
    const headers = this.key ? { "X-API-Key": this.key } : {};
    return fetch(url(path), { ...options, headers, cache: "no-store" });
  }
}

// The key is stored until the tab is closed, or until the page is left if storage is disabled.
function remembered(key) {
  try {
    if (key) sessionStorage.setItem(STORED, key);
    if (key === "") sessionStorage.removeItem(STORED);
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return key ?? "";
  }
}
