// The page's request as curl, JavaScript and Python code. It never contains the API key.

import { url } from "./server.js";
import { element } from "./text.js";

const TOKENS = /("(?:\\.|[^"\\])*"|'[^']*'|`[^`]*`)|(\/\/ .*|# .*)/g;

export class Code {
  #tabs;
  #panel;
  #written = {}; // language -> text
  #language = "curl";

  constructor(tabs, panel, copy) {
    this.#tabs = [...tabs.children];
    this.#panel = panel;
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.#open(tab));
    tabs.addEventListener("keydown", (event) => this.#step(event));
    copy.addEventListener("click", () => this.#copy(copy));
  }

  // `frame`: the size of a camera frame, optional. `reply`: the server's response, optional.
  show({ name = "photo.jpg", query, keyed, frame, reply }) {
    const target = url(`v1/predict?${query}`).href;
    this.#written = {
      curl: curl(name, target, keyed),
      javascript: javascript(target, keyed, frame),
      python: python(name, target, keyed),
      answer: reply ? `HTTP ${reply.status}\n${JSON.stringify(reply.answer, null, 2)}` : "No request yet.",
    };
    this.#draw();
  }

  #open(tab) {
    for (const each of this.#tabs) {
      each.ariaSelected = String(each === tab);
      each.tabIndex = each === tab ? 0 : -1;
    }
    this.#language = tab.dataset.language;
    this.#panel.setAttribute("aria-labelledby", tab.id);
    this.#draw();
  }

  #step(event) {
    const last = this.#tabs.length - 1;
    const at = this.#tabs.indexOf(event.target);
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#tabs[to].focus();
    this.#open(this.#tabs[to]);
  }

  #draw() {
    const text = this.#written[this.#language];
    if (this.#panel.textContent !== text) this.#panel.replaceChildren(...coloured(text));
  }

  async #copy(button) {
    const copied = await copy(this.#panel, this.#written[this.#language]);
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}

function coloured(text) {
  const pieces = [];
  let end = 0;
  for (const found of text.matchAll(TOKENS)) {
    pieces.push(text.slice(end, found.index), element("span", found[1] ? "string" : "comment", found[0]));
    end = found.index + found[0].length;
  }
  return [...pieces, text.slice(end)];
}

async function copy(panel, text) {
  getSelection().selectAllChildren(panel);
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return document.execCommand("copy"); // the clipboard API requires https or localhost
  }
}

function curl(name, target, keyed) {
  const file = /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name; // they have a special meaning in -F
  return ["curl", ...(keyed ? ['-H "X-API-Key: $API_KEY"'] : []), `-F ${quoted(`file=@${file}`)}`, quoted(target)].join(" ");
}

function quoted(word) {
  return /^[\w:/.,@%=~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function javascript(target, keyed, frame) {
  const given = frame
    ? `// video: a <video> that plays the camera
const canvas = document.createElement("canvas");
canvas.width = ${frame.width}; // the size that this model needs
canvas.height = ${frame.height};
canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
const file = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));`
    : "// file: a File or Blob, from <input type=file>, a drop or a canvas";
  const name = frame ? ', "frame.jpg"' : "";
  return `${given}
const body = new FormData();
body.append("file", file${name});

const response = await fetch(${JSON.stringify(target)}, {
  method: "POST",${keyed ? '\n  headers: { "X-API-Key": API_KEY },' : ""}
  body,
});
const answer = await response.json();
if (!response.ok) throw new Error(\`\${answer.code}: \${answer.detail}\`);
for (const { label, score } of answer.predictions) console.log(label, score);`;
}

function python(name, target, keyed) {
  return `${keyed ? "import os\n\n" : ""}import requests

with open(${JSON.stringify(name)}, "rb") as file:
    response = requests.post(
        ${JSON.stringify(target)},${keyed ? '\n        headers={"X-API-Key": os.environ["API_KEY"]},' : ""}
        files={"file": file},
    )
answer = response.json()
if not response.ok:
    raise SystemExit(f"{answer['code']}: {answer['detail']}")
for prediction in answer["predictions"]:
    print(f"{prediction['score']:.1%}", prediction["label"])`;
}
