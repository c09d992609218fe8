// The page: one photograph at a time goes to v1/predict; v1/info says what is served. All URLs are relative.

const at = (id) => document.getElementById(id);
const url = (path) => new URL(path, document.baseURI);

const AGAIN_MS = 1000; // between two looks at a server that is loading
const AWAY_MS = 3000; // or that does not answer
const STAGES = ["upload", "decode", "queue", "inference"];

let underWay = null; // the AbortController of the photograph being classified
let photograph = null; // the file last taken, to be sent again
let sendWhenReady = false;
let served = null; // v1/info, once known
let watching = 0;

// ---- the API key, where the server wants one

let apiKey = remembered();

function remembered(key) {
  try {
    if (key) sessionStorage.setItem("topk-api-key", key);
    return sessionStorage.getItem("topk-api-key");
  } catch {
    return key ?? null; // storage is switched off: it lasts until the page is left
  }
}

function askForKey(detail) {
  at("key-form").hidden = false;
  at("key-hint").textContent = apiKey ? sentence(detail) : "It is kept until this tab is closed.";
  if (apiKey || photograph) at("key").focus();
  showCurl();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = at("key").value;
  remembered(apiKey);
  at("key-form").hidden = true;
  at("file").focus();
  watchServed();
  if (photograph) classify(photograph);
});

function ask(path, options = {}) {
  const headers = { ...options.headers, ...(apiKey && { "X-API-Key": apiKey }) };
  return fetch(url(path), { ...options, headers, cache: "no-store" });
}

// ---- what is served

async function watchServed() {
  const watch = ++watching;
  for (;;) {
    let wait = AWAY_MS;
    try {
      const response = await ask("v1/info");
      const body = await response.json();
      if (watch !== watching) return;
      if (response.ok) return showServed(body);
      if (response.status === 401) {
        showState("locked", "An API key is needed");
        return askForKey(body.detail);
      }
      showState("waiting", sentence(body.detail));
      wait = AGAIN_MS;
    } catch {
      if (watch !== watching) return;
      showState("away", "The server cannot be reached");
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (watch !== watching) return;
  }
}

function showState(state, text) {
  at("served").dataset.state = state;
  if (at("served-text").textContent !== text) at("served-text").textContent = text; // said once, not at every look
}

function showServed(info) {
  served = info;
  showState("ready", [info.model, info.weights, info.device, info.precision].filter(Boolean).join(" · "));
  at("warning").hidden = !info.warning;
  at("warning").textContent = sentence(info.warning ?? "");
  at("count").textContent = info.classes.toLocaleString("en");
  if (sendWhenReady && photograph) classify(photograph);
}

// ---- one photograph

function take(files, otherwise) {
  if (files?.length) classify(files[0]);
  else if (otherwise) showProblem({ title: "That is no file", detail: otherwise });
}

async function classify(file) {
  underWay?.abort();
  const mine = (underWay = new AbortController());
  const stale = () => underWay !== mine;
  sendWhenReady = false;
  if (file !== photograph) showPhotograph(file);
  photograph = file;
  show("ghost");
  try {
    const most = served?.limits.max_upload_bytes;
    if (file.size > most) {
      return showProblem({ title: "The file is too large", detail: `It has ${size(file.size)}; this server takes ${size(most)} at most.` });
    }
    if (!(await readable(file))) {
      if (!stale()) showProblem({ title: "The file cannot be read", detail: "Is it a folder, or was it moved or changed?" });
      return;
    }
    if (stale()) return;
    const started = performance.now();
    const response = await ask("v1/predict?top_k=5", {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream" }, // the server judges by content
      signal: mine.signal,
    });
    const body = await response.json().catch(() => ({})); // a proxy's own page
    const ms = performance.now() - started;
    if (stale()) return;
    if (response.ok) showAnswer(body, ms, response.headers.get("Server-Timing"));
    else refused(response, body);
  } catch {
    if (stale()) return;
    showProblem({ title: "No answer", detail: "The server could not be reached, or the connection broke.", again: true });
    watchServed();
  }
}

async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function refused(response, problem) {
  let detail = sentence(problem.detail ?? "The server did not say why");
  const again = [408, 429, 503, 504].includes(response.status);
  if (problem.code === "not_ready") {
    sendWhenReady = true;
    detail += " The photograph is sent as soon as it is ready.";
    watchServed();
  } else if (again) {
    const ms = problem.retry_after_ms ?? Number(response.headers.get("Retry-After")) * 1000;
    if (ms) detail += ` Try again in ${Math.max(1, Math.ceil(ms / 1000))} s.`;
  }
  showProblem({ title: problem.title ?? `Status ${response.status}`, detail, again: again && !sendWhenReady });
  if (response.status === 401) askForKey(detail);
}

// ---- what is shown

function showPhotograph(file) {
  const image = at("preview");
  const name = file.name || "Pasted photograph";
  URL.revokeObjectURL(image.src);
  at("caption").textContent = `${name}, ${size(file.size)}`;
  at("choose").textContent = "Choose another";
  showPreview(false);
  at("invite-text").textContent = name;
  image.onload = () => {
    showPreview(true);
    at("caption").textContent = `${name}, ${image.naturalWidth} × ${image.naturalHeight} pixels, ${size(file.size)}`;
  };
  image.onerror = () => {
    at("caption").textContent = `${name}, ${size(file.size)}. Your browser cannot show it.`;
  };
  image.src = URL.createObjectURL(file);
}

function showPreview(shown) {
  at("preview").hidden = !shown;
  at("invite").hidden = shown;
  at("another").hidden = !shown;
  at("zone").toggleAttribute("data-shown", shown);
}

function show(name) {
  for (const id of ["problem", "classes", "ghost"]) at(id).hidden = id !== name;
  at("timing").hidden = name !== "classes";
  at("answer-title").hidden = name === "problem";
  at("result").ariaBusy = String(name === "ghost");
}

function showProblem({ title, detail, again = false }) {
  at("problem-title").textContent = title;
  at("problem-detail").textContent = detail;
  at("again").hidden = !again;
  show("problem");
}

function showAnswer(answer, ms, serverTiming) {
  at("classes").replaceChildren(...answer.predictions.map(row));
  const stages = timings(serverTiming);
  at("timing").replaceChildren(
    pair("Round trip", `${Math.round(ms)} ms`),
    ...STAGES.filter((stage) => stage in stages).map((stage) => pair(sentence(stage, ""), milliseconds(stages[stage]))),
  );
  show("classes");
  if (!served || answer.model !== served.model || answer.weights !== served.weights) watchServed();
}

function row({ label, score, class_id: id, wnid }) {
  const item = element("li", "");
  item.title = wnid ? `class ${id}, ${wnid}` : `class ${id}`;
  const bar = element("span", "bar");
  bar.style.setProperty("--score", score);
  bar.ariaHidden = "true";
  item.append(element("span", "label", label), element("span", "score", percent(score)), bar);
  return item;
}

function pair(term, value) {
  const both = element("div", "");
  both.append(element("dt", "", term), element("dd", "", value));
  return both;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// `decode;dur=9.20, queue;dur=0.70` as {decode: 9.2, queue: 0.7}
function timings(header) {
  const found = (header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g);
  return Object.fromEntries([...found].map(([, stage, ms]) => [stage, Number(ms)]));
}

function percent(score) {
  return score < 0.0005 ? "< 0.1%" : `${(score * 100).toFixed(1)}%`;
}

function milliseconds(ms) {
  return ms < 0.05 ? "< 0.1 ms" : `${ms.toFixed(1)} ms`;
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function sentence(text, end = ".") {
  const said = text.charAt(0).toUpperCase() + text.slice(1);
  return said && !/[.!?]$/.test(said) ? said + end : said;
}

// ---- ways in: picked, dropped anywhere, pasted

at("file").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same file can be picked again
});

let depth = 0; // of nested elements the drag is over
const over = (change) => {
  depth = change && Math.max(0, depth + change);
  at("zone").toggleAttribute("data-over", depth > 0);
};
addEventListener("dragenter", () => over(+1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(0);
  take(event.dataTransfer.files, "Drop the image file itself: the server fetches no addresses.");
});
addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  take(event.clipboardData.files);
});
at("again").addEventListener("click", () => classify(photograph));

// ---- the same from a terminal

function showCurl() {
  const target = url("v1/predict").href.replaceAll("'", "%27");
  const quoted = /[^\w:/.,%@~-]/.test(target) ? `'${target}'` : target;
  const key = apiKey || !at("key-form").hidden ? '-H "X-API-Key: $API_KEY" ' : "";
  at("curl").textContent = `curl ${key}-F file=@photo.jpg ${quoted}`;
}

at("copy").addEventListener("click", async () => {
  const copied = await copy(at("curl"));
  at("copy").textContent = copied ? "Copied" : "Selected";
  setTimeout(() => (at("copy").textContent = "Copy"), 2000);
});

async function copy(source) {
  getSelection().selectAllChildren(source);
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    return document.execCommand("copy"); // the clipboard API is only there over https and on localhost
  }
}

showCurl();
watchServed();
