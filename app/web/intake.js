// Files from the file picker, by drag and drop, and from the clipboard.

export function takeFiles(input, zone, take) {
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be picked again
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });

  let depth = 0; // of nested elements under the pointer
  const over = (change) => {
    depth = change && Math.max(0, depth + change);
    zone.toggleAttribute("data-over", depth > 0);
  };
  addEventListener("dragenter", () => over(+1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    take([...event.dataTransfer.files]);
  });
}
