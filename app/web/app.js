// The page: photographs or the camera on the left, the server's predictions on the right.

import { Bars, showPath } from "./answer.js";
import { Camera, cameras } from "./camera.js";
import { Code } from "./code.js";
import { takeFiles } from "./intake.js";
import { Overlay } from "./map.js";
import { MOST, Photos } from "./photos.js";
import { Problem } from "./problem.js";
import { Server, url } from "./server.js";
import { Strip } from "./strip.js";
import { sentence, share, size } from "./text.js";
import { showTiming } from "./timing.js";

const LIVE_MS = 200; // animation of a bar between frames
const ANNOUNCE_MS = 3000; // between two announcements about live video

const at = (id) => document.getElementById(id);
const server = new Server();
const photos = new Photos(server);
const camera = new Camera(server, at("video"));
const bars = new Bars(at("classes"));
const code = new Code(at("tabs"), at("code"), at("copy"));
const overlay = new Overlay(server, bars, { input: at("explain"), canvas: at("map"), image: at("preview"), status: at("map-status") });
new Strip(photos, at("strip"));

// ---- the server

const STATES = {
  connecting: () => "Connecting to the server…",
  starting: () => sentence(server.detail),
  unreachable: () => "The server cannot be reached",
  locked: () => "An API key is needed",
  ready: () => {
    const { model, weights, device, precision } = server.info;
    return [...new Set([model, weights, device, precision])].join(" · ");
  },
};

server.addEventListener("change", () => {
  at("served").dataset.state = server.state;
  write("served-text", STATES[server.state]());
  if (server.state === "locked") askForKey();
  if (server.state === "ready") showServed();
  showCode();
});

function showServed() {
  const { warning, classes } = server.info;
  at("warning").hidden = !warning;
  write("warning", sentence(warning ?? ""));
  write("count", classes.toLocaleString("en"));
  at("key-form").hidden = true;
  at("forget").hidden = !server.key;
}

function askForKey() {
  at("key-form").hidden = false;
  at("forget").hidden = true;
  write("key-hint", server.key ? sentence(server.detail) : "The key is stored until you close this tab.");
  if (server.key || photos.chosen) at("key").focus();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  if (!key) return;
  server.unlock(key);
  at("key").value = "";
  at("key-form").hidden = true;
  at("file").focus();
});
at("forget").addEventListener("click", () => {
  server.unlock("");
  at("forget").hidden = true;
});

// ---- photographs

photos.addEventListener("list", () => write("left-out", ""));
photos.addEventListener("choose", () => showPhoto());
photos.addEventListener("photo", ({ detail }) => {
  if (detail === photos.chosen && !camera.live) showReply(detail);
});

function take(files) {
  if (!files.length) {
    return showProblem(new Problem({ code: "no_file", title: "No file", detail: "drop or paste the image itself; the server does not fetch URLs" }));
  }
  camera.stop();
  const left = photos.add(files);
  if (left) write("left-out", `Only the first ${MOST} photos were added; ${left} ${left === 1 ? "was" : "were"} not.`);
}

let staged = null; // the photograph on the stage

function showPhoto() {
  const photo = photos.chosen;
  if (photo && camera.live) camera.stop();
  if (photo !== staged) {
    staged = photo;
    showPreview(photo);
  }
  if (photo) showReply(photo);
  else showIdle();
}

function showPreview(photo) {
  const image = at("preview");
  URL.revokeObjectURL(image.src);
  at("stage").dataset.shows = photo ? "name" : "nothing";
  if (!photo) return image.removeAttribute("src");
  const caption = `${photo.name}, ${size(photo.file.size)}`;
  write("caption", caption);
  write("placeholder", photo.name);
  image.onload = () => {
    at("stage").dataset.shows = "photo";
    write("caption", `${photo.name}, ${image.naturalWidth} × ${image.naturalHeight} pixels, ${size(photo.file.size)}`);
  };
  image.onerror = () => write("caption", `${caption}. Your browser cannot display this format.`);
  image.src = URL.createObjectURL(photo.file);
}

function showReply(photo) {
  showCode(photo);
  overlay.show(photo);
  at("result").ariaBusy = String(photo.state === "sending" || (photo.state === "waiting" && !photo.problem));
  if (photo.problem) return showProblem(photo.problem, photo);
  if (photo.state !== "answered") return show(bars.empty ? "ghost" : "classes");
  const { predictions, unknown } = photo.reply.answer;
  showAnswer(photo.reply, predictions, unknown);
  const [first] = predictions;
  const likely = first ? `Most likely ${first.label}, ${Math.round(first.score * 100)} percent.` : "No class.";
  announce(unknown ? `Unknown. If it is one of the classes: ${likely}` : likely);
}

at("again").addEventListener("click", () => {
  if (photos.chosen) photos.again(photos.chosen);
});
at("clear").addEventListener("click", () => {
  photos.clear();
  at("file").focus();
});
at("sample").addEventListener("click", async () => {
  const response = await fetch(url("web/cat.webp"));
  take([new File([await response.blob()], "cat.webp", { type: "image/webp" })]);
});
at("stage").addEventListener("click", () => {
  if (!camera.live) at("file").click();
});

// ---- the camera

at("camera").addEventListener("click", () => watch(() => camera.start()));
at("turn").addEventListener("click", () => watch(() => camera.turn()));
at("stop").addEventListener("click", () => {
  camera.stop();
  at("camera").focus();
});
at("picture").addEventListener("click", async () => {
  take([await camera.picture()]);
  at("camera").focus();
});

async function watch(start) {
  setLive(true);
  try {
    await start();
    at("turn").hidden = (await cameras()).length < 2;
  } catch (problem) {
    ended(problem);
  }
}

function setLive(live) {
  at("stage").toggleAttribute("data-live", live);
  at("still").hidden = live;
  at("live").hidden = !live;
  write("rate", "");
  if (live) at("stop").focus();
  if (live) {
    overlay.show(null);
    show(bars.empty ? "ghost" : "classes");
  }
}

let announcedAt = 0;
let announced = "";

camera.addEventListener("frame", ({ detail: { reply, predictions, unknown, rate } }) => {
  at("result").ariaBusy = "false";
  showAnswer(reply, predictions, unknown, LIVE_MS);
  showCode({ name: "frame.jpg", reply });
  write("rate", `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} frames/s`);
  const said = unknown ? "Unknown" : predictions[0]?.label;
  if (!said || said === announced || performance.now() - announcedAt < ANNOUNCE_MS) return;
  announcedAt = performance.now();
  announced = said;
  announce(said);
});
camera.addEventListener("busy", ({ detail }) => write("rate", `${detail.title}…`));
camera.addEventListener("end", ({ detail }) => ended(detail));

function ended(problem) {
  setLive(false);
  if (problem) showProblem(problem);
  else if (photos.chosen) showPhoto();
  else showIdle();
}

// ---- the result

function show(name) {
  for (const id of ["problem", "classes", "ghost"]) at(id).hidden = id !== name;
  at("answer-title").hidden = name === "problem";
  if (name !== "classes") {
    at("wordnet").hidden = at("timing").hidden = at("unknown").hidden = true;
    write("answer-title", "Most likely");
  }
}

function showIdle() {
  at("result").ariaBusy = "false";
  bars.clear();
  overlay.show(null);
  show("ghost");
  showCode();
}

function showAnswer(reply, predictions, unknown, ms) {
  const { set } = reply.answer;
  bars.show(predictions, ms, camera.live || unknown ? [] : set, server.coverage); // nothing is promised of the unknown
  show("classes");
  at("unknown").hidden = !unknown;
  at("classes").toggleAttribute("data-unknown", Boolean(unknown));
  write("answer-title", unknown ? "If it is one of the classes" : "Most likely");
  write("unknown-share", share(server.unknown));
  showPath(at("wordnet"), unknown ? {} : reply.answer);
  showTiming(at("timing"), reply);
}

function showProblem(problem, photo) {
  const waits = photo?.state === "waiting" || photo?.state === "sending";
  const when = problem.retryMs ? ` Retrying in ${Math.max(1, Math.ceil(problem.retryMs / 1000))} s.` : " The photo is sent again when the server is ready.";
  write("problem-title", problem.title);
  write("problem-detail", problem.message + (waits ? when : ""));
  write("problem-code", [problem.status || "", problem.code].filter(Boolean).join(" "));
  write("problem-id", problem.requestId && `Request ${problem.requestId}`);
  at("again").hidden = waits || !photo || !problem.temporary;
  at("result").ariaBusy = "false";
  show("problem");
  announce(`${problem.title}. ${problem.message}`);
}

function showCode(photo = camera.live ? { name: "frame.jpg" } : photos.chosen) {
  code.show({
    name: photo?.name,
    query: photo?.reply?.query ?? server.query,
    keyed: server.keyed,
    frame: camera.live ? camera.size : null,
    reply: photo?.reply,
  });
}

// Read by screen readers, once.
function announce(text) {
  write("announcement", text);
}

function write(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

takeFiles(at("file"), at("stage"), take);
showIdle();
server.watch();
