// The result of live video. Frames differ slightly, so they are averaged over about half a second.

const HALF_LIFE_MS = 250; // of a frame's weight

// Whether the image is unknown. It changes when most frames agree.
export class Steady {
  #unknown = false;
  #share = 0; // of the frames that are unknown
  #last = 0;

  add(unknown, now) {
    const kept = weight(this.#last, now);
    this.#last = now;
    this.#share = this.#share * kept + (unknown ? 1 - kept : 0);
    if (Math.abs(this.#share - 0.5) > 0.25) this.#unknown = this.#share > 0.5;
    return this.#unknown;
  }
}

export class Average {
  #scores = new Map(); // class_id -> prediction, its score averaged
  #last = 0;

  // Adds a frame at this time in ms. Returns the classes with the highest scores; a missing class has a score of 0.
  add(predictions, now) {
    const kept = weight(this.#last, now);
    this.#last = now;
    for (const [id, old] of this.#scores) {
      if (old.score < 0.001) this.#scores.delete(id);
      else this.#scores.set(id, { ...old, score: old.score * kept });
    }
    for (const seen of predictions) {
      const old = this.#scores.get(seen.class_id)?.score ?? 0;
      this.#scores.set(seen.class_id, { ...seen, score: old + seen.score * (1 - kept) });
    }
    return [...this.#scores.values()].sort((a, b) => b.score - a.score).slice(0, predictions.length);
  }
}

// The weight of the frames until `last` at the time `now`; 0 if there were none.
function weight(last, now) {
  return last ? 0.5 ** ((now - last) / HALF_LIFE_MS) : 0;
}
