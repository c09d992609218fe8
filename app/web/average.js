// The classes of live video. Frames differ slightly, so scores are averaged over about half a second.

const HALF_LIFE_MS = 250; // of a frame's weight

export class Average {
  #scores = new Map(); // class_id -> prediction, its score averaged
  #last = 0;

  // Adds a frame at this time in ms. Returns the classes with the highest scores; a missing class has a score of 0.
  add(predictions, now) {
    const kept = this.#last ? 0.5 ** ((now - this.#last) / HALF_LIFE_MS) : 0;
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
