// The photographs of this visit as a row of thumbnails. They are radio buttons, so that arrow keys work.

import { element, percent } from "./text.js";

const EDGE = 144; // pixels

export class Strip {
  #photos;
  #root;
  #list;
  #items = new Map(); // photo -> its parts
  #drawing = Promise.resolve(); // one at a time, because photographs may be large

  constructor(photos, root) {
    this.#photos = photos;
    this.#root = root;
    this.#list = root.querySelector("#visit");
    photos.addEventListener("list", () => this.#draw());
    photos.addEventListener("photo", ({ detail }) => this.#label(detail));
    photos.addEventListener("choose", () => this.#choose());
  }

  #draw() {
    const { list } = this.#photos;
    for (const photo of this.#items.keys()) if (!list.includes(photo)) this.#items.delete(photo);
    this.#list.replaceChildren(...list.map((photo) => this.#item(photo).item));
    this.#root.hidden = list.length < 2; // a single one is on the stage
    this.#count();
  }

  #item(photo) {
    if (this.#items.has(photo)) return this.#items.get(photo);
    const parts = {
      item: element("li"),
      label: element("label", "shot"),
      radio: element("input", "unseen"),
      picture: element("span", "thumb"),
      name: element("span", "name"),
      score: element("span", "score"),
    };
    Object.assign(parts.radio, { type: "radio", name: "visit" });
    parts.radio.addEventListener("change", () => this.#photos.choose(photo));
    parts.label.title = photo.name;
    parts.picture.textContent = /\.\w{1,5}$/.exec(photo.name)?.[0].slice(1) ?? ""; // until the thumbnail is drawn
    parts.label.append(parts.radio, parts.picture, parts.name, parts.score);
    parts.item.append(parts.label);
    this.#items.set(photo, parts);
    this.#label(photo);
    this.#drawing = this.#drawing.then(() => this.#picture(photo, parts.picture));
    return parts;
  }

  #label(photo) {
    const parts = this.#items.get(photo);
    if (!parts) return;
    const [first] = photo.reply?.answer.predictions ?? [];
    parts.label.dataset.state = photo.state;
    const unknown = photo.state === "answered" && photo.reply.answer.unknown;
    const known = unknown ? "Unknown" : (first?.label ?? photo.name);
    parts.name.textContent = photo.state === "failed" ? photo.problem.title : known;
    parts.score.textContent = photo.state === "answered" && first && !unknown ? percent(first.score) : "";
    this.#count();
  }

  #choose() {
    for (const [photo, { radio }] of this.#items) radio.checked = photo === this.#photos.chosen;
  }

  #count() {
    const { list } = this.#photos;
    const done = list.filter(({ state }) => state === "answered" || state === "failed").length;
    this.#root.querySelector("#visit-count").textContent = done < list.length ? `${done} of ${list.length}` : list.length;
  }

  async #picture(photo, root) {
    if (photo.dropped) return;
    const blob = await thumbnail(photo.file);
    if (!blob || photo.dropped) return;
    const image = element("img");
    image.alt = "";
    image.src = photo.thumbnail = URL.createObjectURL(blob);
    root.replaceChildren(image);
  }
}

// A small JPEG of a file, or null if the browser does not support its format.
async function thumbnail(file) {
  const bitmap = await createImageBitmap(file, { resizeHeight: EDGE, resizeQuality: "medium" }).catch(() => null);
  if (!bitmap) return null;
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.min(bitmap.width, EDGE * 2), height: EDGE });
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - bitmap.width) / 2, 0);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
}
