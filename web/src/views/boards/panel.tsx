/** A panel of a board: a question of Explore, drawn small. */
import { useMemo } from "preact/hooks";
import type { BoardPanel } from "../../api/types.ts";
import { DEFAULT_HEIGHT, DEFAULT_WIDTH, HEIGHTS, MAX_TEXT, WIDTHS } from "../../lib/board.ts";
import { readQuestion, snapped, stepOf } from "../../lib/question.ts";
import { panelsOf } from "../../lib/shape.ts";
import { stepStart } from "../../lib/time.ts";
import { CompletenessNotices } from "../../ui/completeness.tsx";
import { useNow } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Field } from "../../ui/parts.tsx";
import { REFRESH_MS, useAnswers } from "../explore/answers.ts";
import { ChartGroup } from "../explore/chart-group.tsx";
import { Options } from "../explore/form.tsx";
import { PointTable } from "../explore/table.tsx";

export interface PanelEdit {
  change(part: Partial<BoardPanel>): void;
  move(by: -1 | 1): void;
  remove(): void;
}

export function PanelView({ panel, edit }: { panel: BoardPanel; edit: PanelEdit | null }) {
  const width = Math.min(Math.max(panel.width ?? DEFAULT_WIDTH, 1), 12);
  return (
    <section class="panel" style={{ "--span": width }} aria-label={panel.title}>
      <header class="panel-head">
        <h2>{panel.title}</h2>
        <a class="button small quiet" href={`#/explore?${panel.question}`} aria-label={`Explore ${panel.title}`}>
          Explore
        </a>
      </header>
      {edit && <EditRow panel={panel} edit={edit} />}
      <div class="body">
        <PanelChart panel={panel} />
      </div>
    </section>
  );
}

function EditRow({ panel, edit }: { panel: BoardPanel; edit: PanelEdit }) {
  const numbers = (values: number[]) => values.map((value) => ({ value: String(value) }));
  return (
    <div class="board-edit">
      <Field label="Title">
        {(id) => <input id={id} class="input" maxLength={MAX_TEXT} value={panel.title} onInput={(event) => edit.change({ title: event.currentTarget.value })} />}
      </Field>
      <Field label="Columns of 12">
        {(id) => (
          <select id={id} class="select" value={String(panel.width ?? DEFAULT_WIDTH)} onChange={(event) => edit.change({ width: Number(event.currentTarget.value) })}>
            <Options choices={numbers(WIDTHS)} />
          </select>
        )}
      </Field>
      <Field label="Height">
        {(id) => (
          <select id={id} class="select" value={String(panel.height ?? DEFAULT_HEIGHT)} onChange={(event) => edit.change({ height: Number(event.currentTarget.value) })}>
            <Options choices={numbers(HEIGHTS)} />
          </select>
        )}
      </Field>
      <button type="button" class="button small" aria-label={`Move ${panel.title} forward`} onClick={() => edit.move(-1)}>↑</button>
      <button type="button" class="button small" aria-label={`Move ${panel.title} back`} onClick={() => edit.move(1)}>↓</button>
      <button type="button" class="button small danger" aria-label={`Remove ${panel.title}`} onClick={edit.remove}>Remove</button>
    </div>
  );
}

function PanelChart({ panel }: { panel: BoardPanel }) {
  const question = useMemo(() => readQuestion(new URLSearchParams(panel.question)), [panel.question]);
  const now = useNow(REFRESH_MS);
  const { answer, before } = useAnswers(question, now);
  const { value, failure, reload } = answer;
  if (!question.metric) return <Empty title="This panel asks for no metric" />;
  if (failure && !value) return <FailureNotice failure={failure} retry={reload} />;
  if (!value) return <Empty title="Asking" />;
  const step = stepOf(question, now);
  const range = snapped(question, now);
  const open = stepStart(now, step, question.tz);
  const hasPoints = value.series.some((series) => series.points.length > 0);
  return (
    <div class="col">
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <CompletenessNotices completeness={value.completeness} tz={question.tz} />
      {!hasPoints && <Empty title="No events in this range" />}
      {hasPoints && question.view === "table" && <PointTable answer={value} question={question} step={step} />}
      {hasPoints &&
        question.view !== "table" &&
        panelsOf(question.aggregates, question.by).map((aggregates) => (
          <ChartGroup
            key={aggregates.join()}
            aggregates={aggregates}
            question={question}
            step={step}
            range={range}
            open={open < range.to ? open : null}
            answer={value}
            before={question.compare && before.isCurrent ? before.value : null}
            height={panel.height ?? DEFAULT_HEIGHT}
          />
        ))}
    </div>
  );
}
