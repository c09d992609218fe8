// The classes as bars, and their path in WordNet. Rows are reused for the next answer, so that they can be animated.

import { element, percent, share } from "./text.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const EASE = "cubic-bezier(.2, .7, .2, 1)";
const STEPS = 5; // shown of a long path: its last ones, or those from the answer on

// Event: "pick" (detail: the class_id that the user chose).
export class Bars extends EventTarget {
  #list;
  #rows = new Map(); // class_id -> row
  #among = element("span", "among");
  #picked = null; // a class_id

  constructor(list) {
    super();
    this.#list = list;
    list.addEventListener("change", ({ target }) => this.dispatchEvent(new CustomEvent("pick", { detail: Number(target.value) })));
  }

  // Turns the rows into a choice of one class, of which `id` is chosen. Without an `id`, there is no choice.
  pick(id = null) {
    this.#picked = id;
    this.#list.toggleAttribute("data-picks", id !== null);
    for (const row of this.#rows.values()) this.#offer(row);
  }

  get empty() {
    return !this.#rows.size;
  }

  clear() {
    this.show([]);
  }

  // `set`: the prediction set of a calibrated model, and `coverage`, its probability.
  show(predictions, ms = 500, set = [], coverage = 0) {
    const before = new Map([...this.#rows.values()].map((row) => [row, row.item.offsetTop]));
    const rows = predictions.map((prediction) => this.#row(prediction));
    this.#rows = new Map(rows.map((row) => [row.id, row]));
    const widths = rows.map((row) => row.fill.offsetWidth);
    this.#list.replaceChildren(...rows.map((row) => row.item));
    this.#bracket(rows, set, coverage);
    for (const row of rows) this.#offer(row);
    if (CALM.matches) return;
    rows.forEach((row, at) => {
      const moved = (before.get(row) ?? row.item.offsetTop) - row.item.offsetTop;
      if (moved) row.item.animate([{ transform: `translateY(${moved}px)` }, {}], { duration: ms / 2, easing: EASE });
      row.fill.animate([{ width: `${widths[at]}px` }, {}], { duration: ms, easing: EASE });
    });
  }

  // Marks the rows of the set, which are the first ones, and says what they are.
  #bracket(rows, set, coverage) {
    this.#among.remove();
    rows.forEach((row, at) => row.item.toggleAttribute("data-in-set", at < set.length));
    if (!set.length || !rows.length) return;
    const more = set.length - rows.length;
    const these = set.length === 1 ? "this one" : more > 0 ? `these and ${more.toLocaleString("en")} more` : "these";
    this.#among.textContent = `The right class is ${set.length === 1 ? "" : "among "}${these}, ${share(coverage)}`;
    rows[Math.min(set.length, rows.length) - 1].item.append(this.#among);
  }

  // A radio button in a row, so that arrow keys work.
  #offer({ id, radio, item, label }) {
    if (this.#picked === null) return radio.remove();
    radio.ariaLabel = `Map of ${label.textContent}`;
    radio.checked = id === this.#picked;
    if (!radio.isConnected) item.prepend(radio);
  }

  // The existing row of a class, or a new one.
  #row({ class_id: id, wnid, label, score }) {
    const row = this.#rows.get(id) ?? newRow(id);
    row.item.title = wnid ? `class ${id}, ${wnid}` : `class ${id}`;
    row.label.textContent = label;
    row.score.textContent = percent(score);
    row.fill.style.width = `${score * 100}%`;
    return row;
  }
}

function newRow(id) {
  const row = { id, item: element("li"), label: element("span", "label"), score: element("span", "score") };
  const bar = element("span", "bar");
  row.fill = element("i");
  row.radio = Object.assign(element("input"), { type: "radio", name: "explained", value: id });
  bar.ariaHidden = "true";
  bar.append(row.fill);
  row.item.append(row.label, row.score, bar);
  return row;
}

// The confident answer and the path to it. Hidden if the model has no WordNet classes.
export function showPath(root, { answer, taxonomy, set }) {
  root.hidden = !answer;
  if (!answer) return;
  root.querySelector("#answer-kind").textContent = set
    ? "Most specific answer that contains the whole set"
    : "Most specific answer with at least 90% confidence";
  root.querySelector("#confident").textContent = answer.label;
  root.querySelector("#confident-score").textContent = percent(answer.score);
  const steps = taxonomy.map(({ wnid, label, score }) => {
    const step = element("li", "", label);
    step.title = `${wnid}, ${percent(score)}`;
    if (wnid === answer.wnid) step.ariaCurrent = "true";
    return step;
  });
  const from = Math.max(0, Math.min(steps.length - STEPS, taxonomy.findIndex(({ wnid }) => wnid === answer.wnid)));
  root.querySelector("#path").replaceChildren(...steps.slice(from, from + STEPS));
  root.querySelector("#path").toggleAttribute("data-cut", from > 0);
  root.querySelector("#path").toggleAttribute("data-goes-on", from + STEPS < steps.length);
}
