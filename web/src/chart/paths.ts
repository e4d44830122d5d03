/** Bars that fill their step from its beginning to its end. */
import type uPlot from "uplot";
import type { Drawing } from "./model.ts";

const GAP_PX = 1;

/** Draws the n-th of `count` lines as bars, beside the others or on top of them. */
export function bars(drawing: () => Drawing, n: number, count: number): uPlot.Series.PathBuilder {
  return (u, seriesIndex, first, last) => {
    const path = new Path2D();
    const { steps, end, isStacked } = drawing();
    const values = u.data[seriesIndex] ?? [];
    const below = isStacked && n > 0 ? u.data[seriesIndex - 1] : undefined;
    for (let i = first; i <= last; i++) {
      const value = values[i];
      if (value == null) continue;
      const left = u.valToPos((steps[i] ?? 0) / 1000, "x", true);
      const right = u.valToPos((steps[i + 1] ?? end) / 1000, "x", true);
      const room = Math.max(right - left - GAP_PX, 1);
      const width = isStacked ? room : room / count;
      const x = isStacked ? left : left + n * width;
      const from = u.valToPos(below?.[i] ?? 0, "y", true);
      const to = u.valToPos(value, "y", true);
      path.rect(x, Math.min(from, to), Math.max(width, 1), Math.abs(from - to));
    }
    return { fill: path, flags: 0 };
  };
}
