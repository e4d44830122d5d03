/** What is drawn beside the values: the open step, and corrected ones. */
import type uPlot from "uplot";
import type { Drawing } from "./model.ts";
import { colourOf } from "./palette.ts";

/** Hatches the step that is not over: its value still grows. */
export function drawOpenStep(u: uPlot, drawing: Drawing, colour: string): void {
  const { open, end } = drawing;
  if (open === null) return;
  const left = Math.max(u.valToPos(open / 1000, "x", true), u.bbox.left);
  const right = Math.min(u.valToPos(end / 1000, "x", true), u.bbox.left + u.bbox.width);
  if (right <= left) return;
  const { ctx } = u;
  const { top, height } = u.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, right - left, height);
  ctx.clip();
  ctx.strokeStyle = colourOf(colour);
  ctx.globalAlpha = 0.6;
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  for (let x = left - height; x < right; x += 7 * devicePixelRatio) {
    ctx.moveTo(x, top + height);
    ctx.lineTo(x + height, top);
  }
  ctx.stroke();
  ctx.restore();
}

/** A small triangle above each step that was corrected. */
export function drawMarks(u: uPlot, drawing: Drawing): void {
  const { ctx } = u;
  const size = 5 * devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colourOf("--warn");
  for (const mark of drawing.marks) {
    const x = u.valToPos(mark / 1000, "x", true);
    ctx.beginPath();
    ctx.moveTo(x - size, u.bbox.top);
    ctx.lineTo(x + size, u.bbox.top);
    ctx.lineTo(x, u.bbox.top + 1.6 * size);
    ctx.fill();
  }
  ctx.restore();
}
