/** Every page in both schemes, at the width of a desk and of a phone. */
import { expect, expectAccessible, setup, shot, signIn, test } from "./fixture.ts";

const WEEK = "from=2013-01-08T00:00:00Z&to=2013-01-15T00:00:00Z";

/** Addresses, and what is there when the page is complete. */
const PAGES = [
  { name: "explore", path: `/explore?metric=departure_delay&${WEEK}&agg=count,p95&by=origin&compare=1`, ready: ".uplot canvas" },
  { name: "explore-empty", path: "/explore", ready: ".empty" },
  { name: "table", path: `/explore?metric=departure_delay&${WEEK}&by=carrier,origin&view=table&step=1d`, ready: "td" },
  { name: "live", path: "/live?metric=visits&by=shop", ready: ".live-now, .empty" },
  { name: "boards", path: "/boards", ready: "form" },
  { name: "cluster", path: "/operate", ready: "[aria-label=Shards] td" },
  { name: "accounting", path: "/operate/accounting", ready: ".identity" },
  { name: "quarantine", path: "/operate/quarantine", ready: ".empty, td" },
  { name: "replays", path: "/operate/replays", ready: ".empty, .panel" },
  { name: "limits", path: "/operate/limits", ready: "[aria-label=Configuration] td" },
  { name: "start", path: "/start", ready: ".code" },
];
const WIDTHS = [
  { name: "desk", viewport: { width: 1360, height: 900 } },
  { name: "phone", viewport: { width: 390, height: 844 } },
];

for (const { name: width, viewport } of WIDTHS) {
  for (const colorScheme of ["light", "dark"] as const) {
    test.describe(`${width}, ${colorScheme}`, () => {
      test.use({ viewport, colorScheme });
      test("every page fits, and axe finds no serious fault", async ({ page }) => {
        const { keyed, keys, open } = setup();
        const complete = async (name: string, ready: string) => {
          await expect(page.locator(ready).first()).toBeVisible();
          const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          expect(overflow, `${name} is wider than the screen`).toBeLessThanOrEqual(0);
          await expectAccessible(page);
          await shot(page, `${width}-${colorScheme}-${name}`);
        };
        for (const { name, path, ready } of PAGES) {
          await page.goto(`${open}/#${path}`);
          await complete(name, ready);
        }
        await page.goto(keyed);
        await complete("sign-in", "form");
        await signIn(page, keys.all);
        await page.getByRole("link", { name: "Boards" }).click();
        await complete("signed-in", "form");
        await expect(page.getByRole("link", { name: "Sign out" })).toBeInViewport();
      });
    });
  }
}
