// The classes as bars, and where they stand in WordNet. Rows are kept from answer to answer, so that they move.

import { element, percent } from "./text.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const EASE = "cubic-bezier(.2, .7, .2, 1)";
const SHOWN = 5; // steps of a long path, the last ones

export class Bars {
  #list;
  #rows = new Map(); // class_id -> row

  constructor(list) {
    this.#list = list;
  }

  get empty() {
    return !this.#rows.size;
  }

  clear() {
    this.show([]);
  }

  show(predictions, ms = 500) {
    const before = new Map([...this.#rows.values()].map((row) => [row, row.item.offsetTop]));
    const rows = predictions.map((prediction) => this.#row(prediction));
    this.#rows = new Map(rows.map((row) => [row.id, row]));
    const widths = rows.map((row) => row.fill.offsetWidth);
    this.#list.replaceChildren(...rows.map((row) => row.item));
    if (CALM.matches) return;
    rows.forEach((row, at) => {
      const moved = (before.get(row) ?? row.item.offsetTop) - row.item.offsetTop;
      if (moved) row.item.animate([{ transform: `translateY(${moved}px)` }, {}], { duration: ms / 2, easing: EASE });
      row.fill.animate([{ width: `${widths[at]}px` }, {}], { duration: ms, easing: EASE });
    });
  }

  // The row of a class, the one shown or a new one.
  #row({ class_id: id, wnid, label, score }) {
    const row = this.#rows.get(id) ?? made(id);
    row.item.title = wnid ? `class ${id}, ${wnid}` : `class ${id}`;
    row.label.textContent = label;
    row.score.textContent = percent(score);
    row.fill.style.width = `${score * 100}%`;
    return row;
  }
}

function made(id) {
  const row = { id, item: element("li"), label: element("span", "label"), score: element("span", "score") };
  const bar = element("span", "bar");
  row.fill = element("i");
  bar.ariaHidden = "true";
  bar.append(row.fill);
  row.item.append(row.label, row.score, bar);
  return row;
}

// The surest answer and the path to it; hidden where the service offers none.
export function showPath(root, { answer, taxonomy }) {
  root.hidden = !answer;
  if (!answer) return;
  root.querySelector("#surest").textContent = answer.label;
  root.querySelector("#surest-score").textContent = percent(answer.score);
  const steps = taxonomy.map(({ wnid, label, score }) => {
    const step = element("li", "", label);
    step.title = `${wnid}, ${percent(score)}`;
    if (wnid === answer.wnid) step.ariaCurrent = "true";
    return step;
  });
  root.querySelector("#path").replaceChildren(...steps.slice(-SHOWN));
  root.querySelector("#path").toggleAttribute("data-cut", steps.length > SHOWN);
}
