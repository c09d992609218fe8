// Request rates: a little faster after every answer, half as fast after every refusal (additive increase,
// multiplicative decrease), so that many pages can share one server. Times are in milliseconds.

const SMOOTH = 0.2; // weight of the latest round trip in the mean

// Frames per second of a camera, with one request at a time.
export class Pace {
  rate = 4;
  #least;
  #most;
  #mean = 0;
  #notBefore = 0;

  constructor(least = 0.5, most = 30) {
    this.#least = least;
    this.#most = most;
  }

  // Records an answer's round trip. A tenth of the time stays free, so that a slow answer does not break the rhythm.
  answered(ms) {
    this.#mean = this.#mean ? this.#mean + SMOOTH * (ms - this.#mean) : ms;
    this.#set(Math.min(this.rate + 1, 900 / this.#mean));
  }

  // Records a refusal with the time to wait.
  refused(waitMs, now) {
    this.#set(this.rate / 2);
    this.#notBefore = now + waitMs;
  }

  // The time of the next frame after one at the time `last`.
  due(last) {
    return Math.max(last + 1000 / this.rate, this.#notBefore);
  }

  #set(rate) {
    this.rate = Math.min(this.#most, Math.max(this.#least, rate));
  }
}

// Concurrent requests for several files.
export class Window {
  notBefore = 0;
  #most;
  #width = 2;

  constructor(most = 4) {
    this.#most = most; // browsers open six connections to a server
  }

  get width() {
    return Math.floor(this.#width);
  }

  answered() {
    this.#width = Math.min(this.#most, this.#width + 1 / this.#width);
  }

  refused(waitMs, now) {
    this.#width = Math.max(1, this.#width / 2);
    this.notBefore = Math.max(this.notBefore, now + waitMs);
  }
}
