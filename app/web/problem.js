// Errors with messages for users. `code` is the service's error code, or the page's own if there was no response.

import { sentence } from "./text.js";

const TITLES = {
  unsupported_media_type: "Unsupported image format",
  undecodable_image: "The image is damaged",
  too_many_pixels: "The image has too many pixels",
  payload_too_large: "The file is too large",
  empty_body: "The file is empty",
  overloaded: "The server is busy",
  rate_limited: "Too many requests",
  deadline_exceeded: "The server took too long",
  upload_timeout: "The upload took too long",
  not_ready: "The model is not ready",
  unauthorized: "An API key is needed",
  internal: "The server failed",
};
const BUSY = ["overloaded", "rate_limited", "deadline_exceeded"];
const LATER = [408, 429, 500, 502, 503, 504];

export class Problem extends Error {
  constructor({ code, title, detail, status = 0, retryMs = 0, requestId = "" }) {
    super(sentence(detail));
    Object.assign(this, { code, title: title ?? TITLES[code], status, retryMs, requestId });
  }

  // An error response. The body is empty if it came from a proxy and was not JSON.
  static of(response, body) {
    const header = Number(response.headers.get("Retry-After")) * 1000;
    return new Problem({
      code: body.code ?? "",
      title: TITLES[body.code] ?? body.title ?? "Unexpected response",
      detail: body.detail ?? `the server responded with status ${response.status}`,
      status: response.status,
      retryMs: body.retry_after_ms ?? (header || 0),
      requestId: body.request_id ?? response.headers.get("X-Request-ID") ?? "",
    });
  }

  static lost() {
    return new Problem({ code: "no_answer", title: "No answer", detail: "the server could not be reached, or the connection broke" });
  }

  get busy() {
    return BUSY.includes(this.code);
  }

  // Whether a retry may succeed.
  get temporary() {
    return this.code === "no_answer" || LATER.includes(this.status);
  }
}
