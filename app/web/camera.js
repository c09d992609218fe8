// The live camera: frames at a rate that the server can process, scaled to the size that the model needs.

import { Average, Steady } from "./average.js";
import { Pace } from "./pace.js";
import { Problem } from "./problem.js";

const REASONS = {
  NotAllowedError: "access was not allowed in the browser",
  NotFoundError: "no camera was found",
  NotReadableError: "another program is using it",
  OverconstrainedError: "it was disconnected",
};
const PREFERRED = { width: { ideal: 1280 }, height: { ideal: 720 } };
const RATE_OVER_MS = 2000;

// Events: "frame" (detail: {reply, predictions, unknown, rate}), "busy" (detail: Problem), "end" (detail: Problem or null).
export class Camera extends EventTarget {
  size = null; // of the frames sent: {width, height}
  #server;
  #video;
  #canvas = document.createElement("canvas");
  #running = null; // an AbortController
  #device = null;
  #paused = false; // stopped because the page is hidden

  constructor(server, video) {
    super();
    this.#server = server;
    this.#video = video;
    document.addEventListener("visibilitychange", () => this.#visibility());
  }

  get live() {
    return this.#running !== null;
  }

  // Throws Problem.
  async start() {
    const running = (this.#running = new AbortController());
    try {
      const stream = await this.#open();
      if (running.signal.aborted) return stopTracks(stream);
      running.signal.addEventListener("abort", () => stopTracks(stream));
      const [track] = stream.getVideoTracks();
      track.addEventListener("ended", () => this.stop(failed("it was unplugged, or another program is using it")));
      this.#device = track.getSettings().deviceId;
      this.#video.toggleAttribute("data-mirrored", track.getSettings().facingMode !== "environment");
      this.#video.srcObject = stream;
      await this.#video.play();
    } catch (error) {
      if (running.signal.aborted) return;
      this.#end();
      throw failed(REASONS[error.name] ?? error.message);
    }
    this.#run(running.signal);
  }

  stop(problem = null) {
    if (!this.live) return;
    this.#end();
    this.dispatchEvent(new CustomEvent("end", { detail: problem }));
  }

  // Switches to the next camera.
  async turn() {
    const ids = (await cameras()).map((camera) => camera.deviceId);
    this.#end();
    this.#device = ids[(ids.indexOf(this.#device) + 1) % ids.length];
    await this.start();
  }

  // The current frame at the camera's full size.
  async picture() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    return new File([await this.#frame(width, height, 0.92)], `camera-${time}.jpg`, { type: "image/jpeg" });
  }

  async #open() {
    if (!navigator.mediaDevices) throw new Error("browsers allow cameras on https and on localhost only");
    const selected = this.#device ? { deviceId: { exact: this.#device } } : { facingMode: { ideal: "environment" } };
    return navigator.mediaDevices.getUserMedia({ video: { ...PREFERRED, ...selected }, audio: false });
  }

  #end() {
    this.#running?.abort();
    this.#running = null;
    this.#video.srcObject = null;
  }

  // The camera is off while the page is hidden.
  async #visibility() {
    if (document.hidden && this.live) {
      this.#end();
      this.#paused = true;
    } else if (!document.hidden && this.#paused) {
      this.#paused = false;
      await this.start().catch((problem) => this.dispatchEvent(new CustomEvent("end", { detail: problem })));
    }
  }

  async #run(signal) {
    const pace = new Pace();
    const average = new Average();
    const steady = new Steady();
    const answered = []; // times
    try {
      for (let last = 0; ; ) {
        await this.#server.ready(signal);
        await pause(pace.due(last) - performance.now(), signal);
        await nextFrame(this.#video, signal);
        last = performance.now();
        try {
          const reply = await this.#server.predict(await this.#scaled(), "frame.jpg", signal);
          pace.answered(reply.ms);
          const now = performance.now();
          const predictions = average.add(reply.answer.predictions, now);
          const unknown = steady.add(reply.answer.unknown, now);
          const detail = { reply, predictions, unknown, rate: rate(answered, now) };
          this.dispatchEvent(new CustomEvent("frame", { detail }));
        } catch (problem) {
          if (!(problem instanceof Problem)) throw problem;
          if (!problem.temporary && problem.status !== 401) throw problem;
          pace.refused(problem.retryMs, performance.now());
          this.dispatchEvent(new CustomEvent("busy", { detail: problem }));
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      this.stop(error instanceof Problem ? error : failed(error.message));
    }
  }

  // A frame, scaled so that its shorter edge has the size that the model resizes to.
  #scaled() {
    const { videoWidth, videoHeight } = this.#video;
    const scale = Math.min(1, this.#server.info.preprocessing.resize / Math.min(videoWidth, videoHeight));
    this.size = { width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale) };
    return this.#frame(this.size.width, this.size.height, 0.85);
  }

  async #frame(width, height, quality) {
    Object.assign(this.#canvas, { width, height });
    const context = this.#canvas.getContext("2d", { alpha: false });
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#video, 0, 0, width, height);
    return new Promise((resolve, reject) => {
      this.#canvas.toBlob((blob) => (blob ? resolve(blob) : reject(failed("it returned no image"))), "image/jpeg", quality);
    });
  }
}

export async function cameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter((device) => device.kind === "videoinput");
}

function failed(detail) {
  return new Problem({ code: "no_camera", title: "The camera cannot be used", detail });
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

// Answers per second, including this one.
function rate(answered, now) {
  answered.push(now);
  while (answered[0] < now - RATE_OVER_MS) answered.shift();
  return answered.length < 2 ? 0 : ((answered.length - 1) * 1000) / (now - answered[0]);
}

function pause(ms, signal) {
  return until(signal, (resolve) => (ms > 0 ? setTimeout(resolve, ms) : resolve()));
}

function nextFrame(video, signal) {
  return until(signal, (resolve) =>
    video.requestVideoFrameCallback ? video.requestVideoFrameCallback(resolve) : requestAnimationFrame(resolve),
  );
}

function until(signal, begin) {
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    begin(resolve);
  });
}
