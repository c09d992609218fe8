// The durations of a request: one bar with the stages of Server-Timing; the rest is the network.

import { element, milliseconds } from "./text.js";

const STAGES = { upload: "Upload", decode: "Decode", queue: "Queue", inference: "Device" };

export function showTiming(root, { ms, timing }) {
  const stages = parsed(timing);
  const network = Math.max(0, ms - (stages.total ?? ms));
  const parts = Object.entries(STAGES).filter(([stage]) => stage in stages);
  const named = parts.map(([stage, name]) => [stage, name, stages[stage]]);
  const rest = (stages.total ?? ms) - named.reduce((sum, [, , part]) => sum + part, 0);
  const all = [["network", "Network", network], ...named, ["rest", "Other", Math.max(0, rest)]].filter(([, , part]) => part > 0);
  root.querySelector("#round-trip").textContent = milliseconds(ms);
  root.querySelector("#stack").replaceChildren(...all.map(([stage, , part]) => slice(stage, part)));
  root.querySelector("#stages").replaceChildren(...all.map(([stage, name, part]) => entry(stage, name, part)));
  root.hidden = false;
}

// `decode;dur=9.20, queue;dur=0.70` as {decode: 9.2, queue: 0.7}
function parsed(header) {
  const found = header.matchAll(/([\w-]+);dur=([\d.]+)/g);
  return Object.fromEntries([...found].map(([, stage, ms]) => [stage, Number(ms)]));
}

function slice(stage, ms) {
  const part = element("i", stage);
  part.style.flexGrow = ms;
  return part;
}

function entry(stage, name, ms) {
  const both = element("div", stage);
  both.append(element("dt", "", name), element("dd", "", milliseconds(ms)));
  return both;
}
