/** Nodes and shards, and the work of the node that answers. */
import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { NodeSummary, StatusAnswer } from "../../api/types.ts";
import { duration, figure, plural } from "../../lib/format.ts";
import { useLoaded } from "../../ui/hooks.ts";
import { Badge, Empty, FailureNotice, Notice, Panel, Tile } from "../../ui/parts.tsx";
import { NodeWork } from "./node-work.tsx";
import { ShardTable } from "./shard-table.tsx";

const REFRESH_MS = 2000;

export function Cluster() {
  const { value: status, failure, reload } = useLoaded((signal) => api.status(signal), [], REFRESH_MS);
  const [onlyProblems, setOnlyProblems] = useState(false);
  if (!status) return failure ? <FailureNotice failure={failure} retry={reload} /> : <Empty title="Asking for the status" />;
  const shards = onlyProblems ? status.shards.filter((shard) => shard.problem) : status.shards;
  return (
    <>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <Summary status={status} />
      <Panel title="Nodes" flush>
        <NodeTable nodes={status.nodes} />
      </Panel>
      <NodeWork />
      <Panel
        title={`Shards (${figure(status.shards.length)})`}
        flush
        actions={
          <label class="check">
            <input type="checkbox" checked={onlyProblems} onChange={(event) => setOnlyProblems(event.currentTarget.checked)} />
            Only those with a problem
          </label>
        }
      >
        {shards.length > 0 ? <ShardTable shards={shards} /> : <Empty title="No shard has a problem" />}
      </Panel>
    </>
  );
}

const largest = (values: (number | null | undefined)[]) => {
  const known = values.filter((value): value is number => value != null);
  return known.length > 0 ? Math.max(...known) : null;
};

function Summary({ status }: { status: StatusAnswer }) {
  const problems = status.shards.filter((shard) => shard.problem).length;
  const ready = status.nodes.filter((node) => node.ready).length;
  const lag = largest(status.shards.map((shard) => shard.lag));
  const age = largest(status.shards.map((shard) => shard.age_ms));
  const unarchived = status.shards.reduce((sum, shard) => sum + (shard.archive_lag ?? 0), 0);
  return (
    <>
      <dl class="tiles">
        <Tile name="Cluster" tone={status.healthy ? "good" : "bad"} under={problems > 0 ? `${plural(problems, "shard")} with a problem` : "every shard keeps up"}>
          {status.healthy ? "Healthy" : "Not healthy"}
        </Tile>
        <Tile name="Nodes ready" tone={ready < status.nodes.length ? "warn" : undefined}>
          {ready} of {status.nodes.length}
        </Tile>
        <Tile name="Oldest shard" under="since it was up to date">{duration(age)}</Tile>
        <Tile name="Largest lag" under="records not applied">{figure(lag)}</Tile>
        <Tile name="Not archived" under="records, of all shards">{figure(unarchived)}</Tile>
        <Tile name="Store" tone={status.store && status.store !== "reachable" ? "bad" : undefined}>
          {status.store === "reachable" ? "Reachable" : status.store ? "Unreachable" : "None here"}
        </Tile>
      </dl>
      {status.store && status.store !== "reachable" && <Notice tone="bad" title="The store cannot be reached.">{status.store}</Notice>}
    </>
  );
}

function NodeTable({ nodes }: { nodes: NodeSummary[] }) {
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label="Nodes">
      <table>
        <thead>
          <tr>
            <th scope="col">Node</th>
            <th scope="col">State</th>
            <th scope="col">Roles</th>
            <th scope="col" class="right">Shards</th>
            <th scope="col">Version</th>
            <th scope="col" class="right">Up for</th>
          </tr>
        </thead>
        <tbody>
          {nodes.map((node, i) => (
            <tr key={node.name}>
              <th scope="row">
                {node.name} {i === 0 && <span class="soft">(answers you)</span>}
              </th>
              <td>
                <Badge tone={node.ready ? "good" : "bad"} dot>
                  {node.ready ? "ready" : "not ready"}
                </Badge>{" "}
                {node.not_ready}
              </td>
              <td>{node.roles.join(", ")}</td>
              <td class="right">{figure(node.shards)}</td>
              <td>{node.version}</td>
              <td class="right">{duration(node.uptime_ms)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
