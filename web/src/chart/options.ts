/** The settings of uPlot for a drawing. */
import uPlot from "uplot";
import { isAdditive } from "../lib/shape.ts";
import { tick } from "../lib/format.ts";
import { drawMarks, drawOpenStep } from "./marks.ts";
import { type Column, columnsOf, type Drawing, isolated } from "./model.ts";
import { colourName, colourOf } from "./palette.ts";
import { bars } from "./paths.ts";
import { timeTicks } from "./ticks.ts";

export interface Handlers {
  onZoom?(from: number, to: number): void;
  onCursor?(index: number | null): void;
}

export interface Frame {
  width: number;
  height: number;
  tz: string;
  /** Charts with the same name move their cursors together. */
  sync?: string;
  /** The number of a line's colour. */
  colours: number[];
}

/** Closer together than this, points would hide their line. */
const MIN_POINT_PX = 18;
/** A drag below this many pixels is a click. */
const MIN_DRAG_PX = 6;

export function optionsOf(drawing: () => Drawing, frame: Frame, handlers: Handlers): uPlot.Options {
  const text = colourOf("--text-soft");
  const grid = { stroke: colourOf("--line"), width: 1 };
  const columns = columnsOf(drawing());
  const { kind, isStacked } = drawing();
  const axis = { stroke: text, grid, ticks: { ...grid, size: 4 }, font: `11px ${fontOf()}` };
  return {
    width: frame.width,
    height: frame.height,
    // On the right, room for half of the last date.
    padding: [10, 32, 0, 0],
    legend: { show: false },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), frame.tz),
    scales: {
      x: { range: () => [(drawing().steps[0] ?? 0) / 1000, drawing().end / 1000] },
      y: { range: (_, min, max) => rangeOf(drawing(), min, max) },
    },
    axes: [
      { ...axis, space: 64, values: (_, splits, _axis, _space, step) => timeTicks(splits, step, frame.tz) },
      { ...axis, size: axisSize, gap: 6, incrs: incrementsOf(drawing()), values: (_, values) => values.map((v) => tick(v)) },
    ],
    series: [{}, ...columns.map((column) => seriesOf(drawing, column, frame.colours, columns))],
    bands:
      kind === "stacked" && isStacked
        ? columns.slice(1).map((_, i) => ({ series: [i + 2, i + 1] as [number, number] }))
        : [],
    cursor: {
      drag: { x: true, y: false, setScale: false, dist: MIN_DRAG_PX },
      sync: frame.sync ? { key: frame.sync, setSeries: false } : undefined,
      points: { size: 7, show: kind === "line" },
      y: false,
    },
    hooks: {
      // Behind lines, but over bars, which would hide it.
      drawClear: [(u) => kind !== "bar" && drawOpenStep(u, drawing(), "--line-strong")],
      draw: [
        (u) => kind === "bar" && drawOpenStep(u, drawing(), "--surface"),
        (u) => drawMarks(u, drawing()),
      ],
      setCursor: [(u) => handlers.onCursor?.(u.cursor.idx ?? null)],
      setSelect: [(u) => selected(u, handlers)],
    },
  };
}

function selected(u: uPlot, handlers: Handlers): void {
  const { left, width } = u.select;
  if (width < MIN_DRAG_PX) return;
  const [from, to] = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
  u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  handlers.onZoom?.(from * 1000, to * 1000);
}

function seriesOf(drawing: () => Drawing, column: Column, colours: number[], all: Column[]): uPlot.Series {
  const { kind, isStacked } = drawing();
  const colour = colourOf(colourName(colours[column.line] ?? column.line));
  if (kind === "bar") {
    const paths = bars(drawing, column.line, all.length);
    return { label: column.name, fill: colour, width: 0, points: { show: false }, paths };
  }
  if (kind === "stacked" && isStacked) {
    return { label: column.name, stroke: colour, fill: `${colour}55`, width: 1, points: { show: false } };
  }
  const isMain = column.part === "main";
  return {
    label: column.name,
    stroke: isMain ? colour : `${colour}${column.part === "open" ? "" : "99"}`,
    width: column.part === "before" ? 1.25 : 1.75,
    dash: isMain ? undefined : column.part === "open" ? [3, 3] : [6, 4],
    points: {
      size: 5,
      width: 1,
      // A hollow point is not final.
      fill: column.part === "open" ? colourOf("--surface") : colour,
      show: (u, _, first, last) => column.part !== "before" && u.bbox.width / devicePixelRatio / (last - first) > MIN_POINT_PX,
      // Without this, a value between two gaps is not seen.
      filter: (u, index, show) => (show ? null : isolated(u.data[index] ?? [])) as number[],
    },
  };
}

/** What is counted has no halves. */
function incrementsOf(drawing: Drawing): uPlot.Axis.Incrs | undefined {
  const aggregate = drawing.lines[0]?.aggregate;
  if (aggregate !== "count" && aggregate !== "distinct") return undefined;
  return Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();
}

function rangeOf(drawing: Drawing, min: number | null, max: number | null): uPlot.Range.MinMax {
  if (min == null || max == null) return [0, 1];
  const aggregate = drawing.lines[0]?.aggregate ?? "count";
  const fromZero = drawing.kind !== "line" || isAdditive(aggregate) || aggregate === "distinct";
  const low = fromZero ? Math.min(min, 0) : min;
  const high = fromZero ? Math.max(max, 0) : max;
  if (low === high) return [low, low + 1];
  const [from, to] = uPlot.rangeNum(low, high, 0.08, true);
  return [fromZero && low === 0 ? 0 : (from ?? low), to ?? high];
}

/** As wide as the longest tick. */
function axisSize(_: uPlot, values: string[] | null): number {
  const longest = Math.max(0, ...(values ?? []).map((value) => (value ?? "").length));
  return Math.max(36, 16 + longest * 6.6);
}

function fontOf(): string {
  return getComputedStyle(document.body).fontFamily;
}
