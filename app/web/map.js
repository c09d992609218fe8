// The map of what a class is based on, drawn over the photograph, and the frame of what the model saw.

import { Problem } from "./problem.js";
import { element } from "./text.js";

const OPACITY = 0.65; // where the map is highest
const FRAMED = "Frame: what the model saw.";
const FRAME = [["rgb(0 0 0 / .55)", 4], ["#fff", 2]]; // colours and widths in CSS pixels

export class Overlay {
  #server;
  #bars;
  #input;
  #canvas;
  #image;
  #status;
  #photo = null;
  #drawn = null; // an explanation
  #asking = null; // an AbortController

  constructor(server, bars, { input, canvas, image, status }) {
    this.#server = server;
    this.#bars = bars;
    this.#input = input;
    this.#canvas = canvas;
    this.#image = image;
    this.#status = status;
    input.addEventListener("change", () => this.#update());
    for (const event of ["load", "error"]) image.addEventListener(event, () => this.#update());
    bars.addEventListener("pick", ({ detail }) => this.#explain(detail));
    new ResizeObserver(() => this.#draw(this.#drawn)).observe(image);
  }

  // The photograph on the stage; null for none.
  show(photo) {
    this.#photo = photo;
    this.#input.closest("label").hidden = !photo || photo.state === "failed" || !this.#server.info?.explain;
    this.#update();
  }

  get #wanted() {
    return this.#input.checked && !this.#input.closest("label").hidden && this.#photo.state === "answered";
  }

  #update() {
    this.#asking?.abort();
    this.#draw(null);
    this.#bars.pick();
    this.#say("");
    if (!this.#wanted || !this.#image.complete) return; // "load" or "error" follows
    if (!this.#image.naturalWidth) return this.#say("No map: your browser cannot display this format.");
    const { explained, reply } = this.#photo;
    this.#explain(explained ?? reply.answer.predictions[0].class_id);
  }

  // Shows the map of a class. Each map is requested once.
  async #explain(id) {
    const photo = this.#photo;
    const asking = (this.#asking?.abort(), (this.#asking = new AbortController()));
    photo.explained = id;
    photo.maps ??= new Map();
    this.#bars.pick(id);
    try {
      if (!photo.maps.has(id)) photo.maps.set(id, await this.#ask(photo, id, asking.signal));
    } catch (problem) {
      if (asking.signal.aborted) return;
      if (!(problem instanceof Problem)) throw problem;
      this.#draw(null);
      return this.#say(`No map: ${problem.message}`);
    }
    if (!asking.signal.aborted) this.#show(photo, photo.maps.get(id));
  }

  async #ask(photo, id, signal) {
    this.#say("Computing the map…");
    return (await this.#server.predict(photo.file, photo.name, signal, { explain: id })).answer.explanation;
  }

  #show({ reply }, explanation) {
    const { label } = reply.answer.predictions.find(({ class_id: id }) => id === explanation.class_id);
    const supported = Math.max(...explanation.grid.flat()) > 0;
    this.#draw(explanation);
    this.#canvas.ariaLabel = `Map of ${label}`;
    this.#say(supported ? `Colour: parts that support ${label}. ${FRAMED}` : `No part supports ${label}. ${FRAMED}`, supported);
  }

  #say(text, key = false) {
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.#status.toggleAttribute("data-key", key);
  }

  // The canvas has the shape of the photograph, so that both are fitted into the stage in the same way.
  #draw(explanation) {
    this.#drawn = explanation;
    this.#canvas.hidden = !explanation;
    if (!explanation) return;
    const { naturalWidth, naturalHeight, clientWidth, clientHeight } = this.#image;
    const scale = Math.min(clientWidth / naturalWidth, clientHeight / naturalHeight) * devicePixelRatio;
    this.#canvas.width = Math.round(naturalWidth * scale);
    this.#canvas.height = Math.round(naturalHeight * scale);
    const [left, top, right, bottom] = explanation.box.map((edge) => edge * scale);
    const context = this.#canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(tinted(explanation.grid, getComputedStyle(this.#canvas).color), left, top, right - left, bottom - top);
    frame(context, left, top, right - left, bottom - top);
  }
}

// A light line on a dark one, inside the rectangle.
function frame(context, left, top, width, height) {
  const inset = (FRAME[0][1] / 2) * devicePixelRatio;
  for (const [colour, line] of FRAME) {
    context.strokeStyle = colour;
    context.lineWidth = line * devicePixelRatio;
    context.strokeRect(left + inset, top + inset, width - 2 * inset, height - 2 * inset);
  }
}

// The grid as a picture of one pixel per number. Parts against the class are transparent.
function tinted(grid, colour) {
  const small = element("canvas");
  [small.width, small.height] = [grid[0].length, grid.length];
  const context = small.getContext("2d");
  const pixels = context.createImageData(small.width, small.height);
  const most = Math.max(...grid.flat(), 1e-9);
  grid.flat().forEach((value, at) => (pixels.data[4 * at + 3] = 255 * OPACITY * Math.max(0, value / most)));
  context.putImageData(pixels, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, small.width, small.height);
  return small;
}
