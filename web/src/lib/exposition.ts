/** Reads the text that Prometheus scrapes. */

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

export function readSamples(text: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels: Record<string, string> = {};
    for (const [, name = "", value = ""] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c: string) => (c === "n" ? "\n" : c));
    }
    samples.push({ name: found[1] ?? "", labels, value: Number(found[3]) });
  }
  return samples;
}

/** The sum of all samples of a name. */
export function total(samples: Sample[], name: string): number {
  return samples.filter((s) => s.name === name).reduce((sum, s) => sum + s.value, 0);
}

/** Samples of a name by one of their labels, without zeros, the largest first. */
export function byLabel(samples: Sample[], name: string, label: string): [string, number][] {
  return samples
    .filter((s) => s.name === name && s.value > 0)
    .map((s): [string, number] => [s.labels[label] ?? "", s.value])
    .sort((a, b) => b[1] - a[1]);
}
