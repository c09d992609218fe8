// Formats numbers and text, and creates elements.

export function percent(score) {
  return score < 0.0005 ? "< 0.1%" : `${(score * 100).toFixed(1)}%`;
}

// A share that was asked for, which is a round number.
export function share(part) {
  return `${Math.round(part * 1000) / 10}%`;
}

export function milliseconds(ms) {
  if (ms < 0.05) return "< 0.1 ms";
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

export function sentence(text = "", end = ".") {
  const written = text.charAt(0).toUpperCase() + text.slice(1);
  return written && !/[.!?…]$/.test(written) ? written + end : written;
}

export function element(tag, className = "", text = "") {
  const created = document.createElement(tag);
  if (className) created.className = className;
  if (text) created.textContent = text;
  return created;
}
