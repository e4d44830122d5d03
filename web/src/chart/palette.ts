/** Colours of series, in a fixed order; tokens.css has them for both schemes. */
export const COLOURS = 10;

/** The name of the n-th colour. Beyond ten they begin again. */
export function colourName(n: number): string {
  return `--s${(n % COLOURS) + 1}`;
}

/** The value of a colour as the page shows it now; a canvas knows no custom properties. */
export function colourOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888";
}
