/** Takes the answer elsewhere: commands, CSV, a picture. */
import { useState } from "preact/hooks";
import type uPlot from "uplot";
import { api } from "../../api/client.ts";
import { asFailure } from "../../api/failure.ts";
import { currentKey } from "../../api/key.ts";
import { download, pictureOf } from "../../chart/picture.ts";
import { cliCommand, curlCommand } from "../../lib/commands.ts";
import { type Question, queryParams } from "../../lib/question.ts";
import { rangeName } from "../../lib/range.ts";
import { printMatchers } from "../../lib/matchers.ts";
import { CopyButton } from "../../ui/parts.tsx";
import { AddToBoard } from "../boards/add-to-board.tsx";

export function Tools({ question, now, plots }: { question: Question; now: number; plots: Map<string, uPlot> }) {
  const [problem, setProblem] = useState("");
  const [isAdding, setAdding] = useState(false);
  const params = queryParams(question, now);
  const saveCsv = async () => {
    try {
      download(await api.csv(params), `${question.metric}.csv`);
      setProblem("");
    } catch (thrown) {
      setProblem(asFailure(thrown).message);
    }
  };
  const savePictures = async () => {
    for (const [name, plot] of plots) {
      const blob = await pictureOf(plot, captionOf(question, name, plot));
      if (blob) download(blob, `${question.metric}-${name.replaceAll(",", "-")}.png`);
    }
  };
  return (
    <div class="toolbar" role="group" aria-label="Take this elsewhere">
      <CopyButton quiet name="Copy curl" text={() => curlCommand(location.origin, params, currentKey() !== null)} />
      <CopyButton quiet name="Copy command" text={() => cliCommand(location.origin, params)} />
      <button type="button" class="button small quiet" onClick={saveCsv}>CSV</button>
      <button type="button" class="button small quiet" disabled={question.view === "table"} onClick={savePictures}>PNG</button>
      <button type="button" class="button small quiet" onClick={() => setAdding(true)}>Add to a board</button>
      {isAdding && <AddToBoard question={question} onClose={() => setAdding(false)} />}
      {problem && <span role="alert" class="badge bad">{problem}</span>}
    </div>
  );
}

function captionOf(question: Question, name: string, plot: uPlot) {
  const colours = new Map<string, string>();
  plot.series.slice(1).forEach((series, i) => {
    const [stroke, fill] = [paintOf(series.stroke, plot, i + 1), paintOf(series.fill, plot, i + 1)];
    colours.set(String(series.label), stroke || fill);
  });
  return {
    title: `${name} of ${question.metric} ${printMatchers(question.matchers)}`.trim(),
    subtitle: `${rangeName(question.range, question.tz)}, ${question.tz}`,
    lines: [...colours].map(([line, colour]) => ({ name: line, colour })),
  };
}

/** uPlot keeps colours as functions. */
function paintOf(paint: uPlot.Series.Stroke | undefined, plot: uPlot, index: number): string {
  const value = typeof paint === "function" ? paint(plot, index) : paint;
  return typeof value === "string" ? value : "";
}
