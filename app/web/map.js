// The map of what the best class is based on, drawn over the photograph, and the frame of what the model saw.

import { Problem } from "./problem.js";
import { element } from "./text.js";

const EDGE = 1024; // pixels of the drawing
const COLOUR = [214, 0, 122];
const OPACITY = 0.6; // where the map is highest

export class Overlay {
  #server;
  #input;
  #canvas;
  #image;
  #status;
  #photo = null;
  #asking = null; // an AbortController

  constructor(server, { input, canvas, image, status }) {
    this.#server = server;
    this.#input = input;
    this.#canvas = canvas;
    this.#image = image;
    this.#status = status;
    input.addEventListener("change", () => this.#update());
    image.addEventListener("load", () => this.#update());
  }

  // The photograph on the stage, once it is answered; null for none.
  show(photo) {
    if (photo !== this.#photo) this.#asking?.abort();
    this.#photo = photo;
    this.#input.closest("label").hidden = !(photo && this.#server.info?.explain);
    this.#update();
  }

  async #update() {
    const photo = this.#photo;
    const wanted = this.#input.checked && !this.#input.closest("label").hidden;
    this.#canvas.hidden = true;
    this.#status.textContent = "";
    if (!wanted || !this.#image.naturalWidth) return;
    if (!photo.explanation) await this.#ask(photo);
    if (photo === this.#photo && this.#input.checked && photo.explanation) this.#draw(photo);
  }

  async #ask(photo) {
    this.#asking?.abort();
    const asking = (this.#asking = new AbortController());
    this.#status.textContent = "Computing the map…";
    try {
      const reply = await this.#server.predict(photo.file, photo.name, asking.signal, { explain: "true" });
      photo.explanation = reply.answer.explanation;
      this.#status.textContent = "";
    } catch (problem) {
      if (asking.signal.aborted) return;
      if (!(problem instanceof Problem)) throw problem;
      this.#status.textContent = `No map: ${problem.message}`;
    }
  }

  // The canvas has the shape of the photograph, so that both are fitted into the stage in the same way.
  #draw({ explanation: { grid, box }, reply }) {
    const { naturalWidth, naturalHeight } = this.#image;
    const scale = Math.min(1, EDGE / Math.max(naturalWidth, naturalHeight));
    this.#canvas.width = Math.round(naturalWidth * scale);
    this.#canvas.height = Math.round(naturalHeight * scale);
    const context = this.#canvas.getContext("2d");
    const [left, top, right, bottom] = box.map((edge) => edge * scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(tinted(grid), left, top, right - left, bottom - top);
    for (const [colour, width] of [["rgb(0 0 0 / .55)", 5], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(left + 2.5, top + 2.5, right - left - 5, bottom - top - 5);
    }
    const [first] = reply.answer.predictions;
    this.#canvas.ariaLabel = `What ${first?.label ?? "the answer"} is based on; the frame is what the model saw`;
    this.#canvas.hidden = false;
  }
}

// The grid as a picture of one pixel per number. What speaks against the class is transparent.
function tinted(grid) {
  const small = element("canvas");
  [small.width, small.height] = [grid[0].length, grid.length];
  const context = small.getContext("2d");
  const pixels = context.createImageData(small.width, small.height);
  const most = Math.max(...grid.flat(), 1e-9);
  grid.flat().forEach((value, at) => pixels.data.set([...COLOUR, 255 * OPACITY * Math.max(0, value / most)], 4 * at));
  context.putImageData(pixels, 0, 0);
  return small;
}
