// A click on an overlay, or an arrow key in it, says what became of the patch there and marks where it went.
function vpCell(overlay, x, y) {
  const { rows, cols, window: [left, top, right, bottom] } = JSON.parse(overlay.dataset.patches);
  const col = Math.floor((x - left) / (right - left) * cols), row = Math.floor((y - top) / (bottom - top) * rows);
  return row >= 0 && row < rows && col >= 0 && col < cols ? row * cols + col : -1;
}
function vpMark(overlay, cell, into) {
  const { rows, cols, window: [left, top, right, bottom] } = JSON.parse(overlay.dataset.patches);
  const mark = document.createElement("div");
  const width = (right - left) / cols, height = (bottom - top) / rows;
  mark.className = into ? "vp-mark vp-into" : "vp-mark";
  mark.style.left = 100 * (left + (cell % cols) * width) + "%";
  mark.style.top = 100 * (top + Math.floor(cell / cols) * height) + "%";
  mark.style.width = 100 * width + "%";
  mark.style.height = 100 * height + "%";
  overlay.append(mark);
}
function vpTell(overlay, cell) {
  const { cols, sentences, said, into, scores } = JSON.parse(overlay.dataset.patches);
  const line = overlay.parentElement.querySelector(".vp-said");
  overlay.querySelectorAll(".vp-mark").forEach(mark => mark.remove());
  overlay.dataset.cell = cell;
  if (cell < 0) { line.textContent = "The model did not see this part of the picture."; return; }
  line.textContent = `Row ${Math.floor(cell / cols) + 1}, column ${cell % cols + 1}: ${[sentences[said[cell]], scores[cell]].filter(Boolean).join("; ")}.`;
  vpMark(overlay, cell, false);
  if (into[cell] >= 0) vpMark(overlay, into[cell], true);
}
document.addEventListener("click", event => {
  const overlay = event.target.closest && event.target.closest(".vp-overlay");
  if (!overlay) return;
  const box = overlay.getBoundingClientRect();
  vpTell(overlay, vpCell(overlay, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height));
});
document.addEventListener("keydown", event => {
  const overlay = event.target.closest && event.target.closest(".vp-overlay");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!overlay || !step) return;
  event.preventDefault();
  const { rows, cols } = JSON.parse(overlay.dataset.patches);
  const cell = Number(overlay.dataset.cell ?? -1);
  const at = (now, by, count) => Math.max(0, Math.min(count - 1, now + by));
  vpTell(overlay, cell < 0 ? 0 : at(Math.floor(cell / cols), step[0], rows) * cols + at(cell % cols, step[1], cols));
});
