// The classes of a film: frames differ a little, so their scores are averaged over the last half second or so.

const HALF_MS = 250; // after which an old frame counts half

export class Average {
  #scores = new Map(); // class_id -> prediction, its score averaged
  #last = 0;

  // The five highest, after one more frame at this time in ms. What a frame does not name counts as zero in it.
  add(predictions, now) {
    const kept = this.#last ? 0.5 ** ((now - this.#last) / HALF_MS) : 0;
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
