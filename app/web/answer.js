// The classes as bars, and their path in WordNet. Rows are reused for the next answer, so that they can be animated.

import { element, percent } from "./text.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const EASE = "cubic-bezier(.2, .7, .2, 1)";
const STEPS = 5; // the last steps of a long path

export class Bars {
  #list;
  #rows = new Map(); // class_id -> row
  #among = element("span", "among");

  constructor(list) {
    this.#list = list;
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
    this.#among.textContent = `The right class is ${set.length === 1 ? "" : "among "}${these}, ${Math.round(coverage * 1000) / 10}%`;
    rows[Math.min(set.length, rows.length) - 1].item.append(this.#among);
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
    ? "Most specific answer that contains all of these"
    : "Most specific answer with at least 90% confidence";
  root.querySelector("#confident").textContent = answer.label;
  root.querySelector("#confident-score").textContent = percent(answer.score);
  const steps = taxonomy.map(({ wnid, label, score }) => {
    const step = element("li", "", label);
    step.title = `${wnid}, ${percent(score)}`;
    if (wnid === answer.wnid) step.ariaCurrent = "true";
    return step;
  });
  root.querySelector("#path").replaceChildren(...steps.slice(-STEPS));
  root.querySelector("#path").toggleAttribute("data-cut", steps.length > STEPS);
}
