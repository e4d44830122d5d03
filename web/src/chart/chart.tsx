/** A chart over time. Drag to zoom; with the keyboard, arrows read values and + and − zoom. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { stepName, type Step } from "../lib/time.ts";
import { useDark } from "../ui/hooks.ts";
import { columnsOf, dataOf, type Drawing } from "./model.ts";
import { type Handlers, optionsOf } from "./options.ts";

export interface ChartProps {
  label: string;
  drawing: Drawing;
  colours: number[];
  tz: string;
  step: Step;
  height: number;
  sync?: string;
  onZoom?(from: number, to: number): void;
  onCursor?(time: number | null): void;
  /** Told when the chart is there, for its picture. */
  onPlot?(plot: uPlot | null): void;
}

export function Chart(props: ChartProps) {
  const root = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const isDark = useDark();
  const [index, setIndex] = useState<number | null>(null);
  const { drawing } = props;
  // Everything that needs a new chart; the rest are new values in the same one.
  const { tz, height, sync, colours } = props;
  const columns = columnsOf(drawing);
  const shape = JSON.stringify([drawing.kind, drawing.isStacked, columns, tz, height, sync, colours, isDark]);
  // Not again whenever the cursor moves: there may be a hundred thousand points.
  const data = useMemo(() => dataOf(drawing), [drawing]);

  useEffect(() => {
    const element = root.current;
    if (!element) return;
    const handlers: Handlers = {
      onZoom: (from, to) => latest.current.onZoom?.(from, to),
      onCursor: (at) => {
        setIndex(at);
        latest.current.onCursor?.(at === null ? null : (latest.current.drawing.steps[at] ?? null));
      },
    };
    const frame = { width: element.clientWidth, height, tz, sync, colours };
    const made = new uPlot(optionsOf(() => latest.current.drawing, frame, handlers), data, element);
    plot.current = made;
    latest.current.onPlot?.(made);
    const observer = new ResizeObserver(() => {
      if (element.clientWidth > 0) made.setSize({ width: element.clientWidth, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
      latest.current.onPlot?.(null);
    };
  }, [shape]);

  useEffect(() => {
    plot.current?.setData(data);
  }, [drawing]);

  const onKeyDown = (event: KeyboardEvent) => {
    const { steps, end } = latest.current.drawing;
    const made = plot.current;
    if (!made || steps.length === 0) return;
    const moved = moveOf(event.key, index, steps.length);
    if (moved !== null) {
      event.preventDefault();
      const left = made.valToPos((steps[moved] ?? 0) / 1000, "x");
      made.setCursor({ left, top: made.over.clientHeight / 2 });
    } else if (event.key === "+" || event.key === "-") {
      event.preventDefault();
      const [from, to] = zoomed(steps[0] ?? 0, end, steps[index ?? 0] ?? 0, event.key === "+");
      latest.current.onZoom?.(from, to);
    }
  };

  return (
    <div class="chart">
      <div
        ref={root}
        class="chart-plot"
        role="slider"
        tabIndex={0}
        aria-label={`${props.label}. Arrow keys read values, plus and minus zoom.`}
        aria-valuemin={0}
        aria-valuemax={Math.max(drawing.steps.length - 1, 0)}
        aria-valuenow={index ?? 0}
        aria-valuetext={spoken(props, index)}
        onKeyDown={onKeyDown}
      />
    </div>
  );
}

function moveOf(key: string, index: number | null, count: number): number | null {
  const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[key];
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (by === undefined) return null;
  return Math.min(Math.max((index ?? (by > 0 ? -1 : count)) + by, 0), count - 1);
}

function zoomed(from: number, to: number, centre: number, isIn: boolean): [number, number] {
  const factor = isIn ? 0.5 : 2;
  return [centre - (centre - from) * factor, centre + (to - centre) * factor];
}

const SPOKEN_LINES = 5;

function spoken({ drawing, step, tz }: ChartProps, index: number | null): string {
  const time = index === null ? undefined : drawing.steps[index];
  if (time === undefined) return "no time chosen";
  const values = drawing.lines
    .slice(0, SPOKEN_LINES)
    .map((line) => `${line.name}: ${line.texts.get(time) ?? "no value"}`);
  const open = drawing.open !== null && time >= drawing.open ? ", not final" : "";
  return `${stepName(time, step, tz)}${open}. ${values.join(", ")}`;
}
