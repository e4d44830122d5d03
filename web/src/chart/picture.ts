/** A chart as a PNG, with what it shows written on it. */
import type uPlot from "uplot";
import { colourOf } from "./palette.ts";

export interface Caption {
  title: string;
  subtitle: string;
  /** Lines with their colours, as CSS has them. */
  lines: { name: string; colour: string }[];
}

const LEGEND_LINES = 20;

export function pictureOf(plot: uPlot, caption: Caption): Promise<Blob | null> {
  const source = plot.ctx.canvas;
  const scale = devicePixelRatio;
  const lines = caption.lines.slice(0, LEGEND_LINES);
  const [head, row] = [56 * scale, 18 * scale];
  const canvas = document.createElement("canvas");
  canvas.width = source.width + 32 * scale;
  canvas.height = source.height + head + (lines.length + 1) * row;
  const context = canvas.getContext("2d");
  if (!context) return Promise.resolve(null);
  const family = getComputedStyle(document.body).fontFamily;
  context.fillStyle = colourOf("--surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = colourOf("--text");
  context.font = `600 ${15 * scale}px ${family}`;
  context.fillText(caption.title, 16 * scale, 24 * scale);
  context.fillStyle = colourOf("--text-soft");
  context.font = `${12 * scale}px ${family}`;
  context.fillText(caption.subtitle, 16 * scale, 43 * scale);
  context.drawImage(source, 16 * scale, head);
  lines.forEach((line, i) => {
    const y = head + source.height + (i + 1) * row;
    context.fillStyle = line.colour;
    context.fillRect(16 * scale, y - 9 * scale, 10 * scale, 10 * scale);
    context.fillStyle = colourOf("--text");
    context.fillText(line.name, 34 * scale, y);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Hands a file to the browser's downloads. */
export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // Later, because the download may not have begun yet.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
