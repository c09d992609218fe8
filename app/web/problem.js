// What went wrong, in plain words; `code` is the service's, or this page's own where the service had no say.

import { sentence } from "./text.js";

const TITLES = {
  unsupported_media_type: "This is no image the server can read",
  undecodable_image: "The image is damaged",
  too_many_pixels: "The picture is too large",
  payload_too_large: "The file is too large",
  empty_body: "The file is empty",
  overloaded: "The server is busy",
  rate_limited: "That was too fast",
  deadline_exceeded: "The answer would have come too late",
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

  // A refusal. A proxy's own page has no body that we know.
  static of(response, body) {
    const header = Number(response.headers.get("Retry-After")) * 1000;
    return new Problem({
      code: body.code ?? "",
      title: TITLES[body.code] ?? body.title ?? "The server did not answer as expected",
      detail: body.detail ?? `status ${response.status}, without a reason`,
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

  // Whether asking again may help.
  get passing() {
    return this.code === "no_answer" || LATER.includes(this.status);
  }
}
