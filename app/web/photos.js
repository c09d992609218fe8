// The photographs of this visit with their answers, newest first. A few are sent at a time.

import { Window } from "./pace.js";
import { Problem } from "./problem.js";
import { size } from "./text.js";

export const MOST = 48; // photographs kept
const MOST_BYTES = 256 * 2 ** 20; // of files: those from a camera or the clipboard are in memory
const TRIES = 5;
const BACKOFF_MS = 500; // before the second try; doubles with every try
const AUTOMATIC = ["no_answer", "not_ready", "unauthorized"]; // sent again when the server is ready

export class Photo {
  state = "waiting"; // then sending, answered or failed
  reply = null;
  problem = null;
  thumbnail = ""; // an object URL
  tries = 0;

  constructor(file) {
    this.file = file;
    this.name = file.name || "pasted.png";
  }
}

// Events: "list" when photographs are added or removed, "choose", and "photo" (detail: the changed photo).
export class Photos extends EventTarget {
  list = [];
  chosen = null;
  #server;
  #window = new Window();
  #sending = new Map(); // photo -> AbortController
  #waking = 0;

  constructor(server) {
    super();
    this.#server = server;
    server.addEventListener("change", () => this.#pump());
  }

  // Adds files and chooses the first one. Returns the number of files that were not added.
  add(files) {
    const photos = files.slice(0, MOST).map((file) => new Photo(file));
    this.list.unshift(...photos);
    this.#forget();
    this.dispatchEvent(new Event("list"));
    if (photos.length) this.choose(photos[0]);
    this.#pump();
    return files.length - photos.length;
  }

  choose(photo) {
    this.chosen = photo;
    this.dispatchEvent(new Event("choose"));
  }

  again(photo) {
    Object.assign(photo, { state: "waiting", problem: null, tries: 0 });
    this.#changed(photo);
    this.#pump();
  }

  clear() {
    for (const photo of this.list.splice(0)) this.#drop(photo);
    this.chosen = null;
    this.dispatchEvent(new Event("list"));
    this.dispatchEvent(new Event("choose"));
  }

  #forget() {
    let bytes = 0;
    const fits = (photo, at) => at < MOST && ((bytes += photo.file.size) <= MOST_BYTES || at === 0 || photo.state === "waiting");
    const kept = this.list.filter(fits);
    for (const photo of this.list) if (!kept.includes(photo)) this.#drop(photo);
    this.list = kept;
  }

  #drop(photo) {
    this.#sending.get(photo)?.abort();
    photo.dropped = true;
    URL.revokeObjectURL(photo.thumbnail);
  }

  // Sends waiting photographs, within the window and after the delay of the last refusal.
  #pump() {
    if (this.#server.state !== "ready") return;
    const wait = this.#window.notBefore - performance.now();
    if (wait > 0) {
      clearTimeout(this.#waking);
      this.#waking = setTimeout(() => this.#pump(), wait);
      return;
    }
    for (const photo of this.list) {
      if (this.#sending.size >= this.#window.width) return;
      if (photo.state === "waiting") this.#send(photo);
    }
  }

  async #send(photo) {
    const leaving = new AbortController();
    this.#sending.set(photo, leaving);
    photo.state = "sending";
    this.#changed(photo);
    try {
      await this.#check(photo.file);
      photo.reply = await this.#server.predict(photo.file, photo.name, leaving.signal);
      photo.state = "answered";
      photo.problem = null;
      this.#window.answered();
    } catch (problem) {
      if (leaving.signal.aborted) return;
      this.#failed(photo, problem);
    } finally {
      this.#sending.delete(photo);
      if (!photo.dropped) this.#changed(photo);
      this.#pump();
    }
  }

  // Temporary problems are retried a few times.
  #failed(photo, problem) {
    if (!(problem instanceof Problem)) throw problem;
    photo.problem = problem;
    if (problem.retryMs) problem.retryMs = Math.max(problem.retryMs, BACKOFF_MS * 2 ** photo.tries);
    photo.tries += 1;
    const waits = problem.retryMs > 0 || AUTOMATIC.includes(problem.code);
    if (problem.busy) this.#window.refused(problem.retryMs * (1 + Math.random() / 4), performance.now());
    photo.state = waits && photo.tries < TRIES ? "waiting" : "failed";
  }

  async #check(file) {
    const most = this.#server.info.limits.max_upload_bytes;
    if (file.size > most) {
      throw new Problem({ code: "payload_too_large", detail: `it has ${size(file.size)}; this server accepts up to ${size(most)}` });
    }
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      throw new Problem({ code: "unreadable", title: "The file cannot be read", detail: "it may be a folder, or it was moved or changed" });
    }
  }

  #changed(photo) {
    this.dispatchEvent(new CustomEvent("photo", { detail: photo }));
  }
}
